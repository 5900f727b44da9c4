"""Training that no kill, full disk or bad file can take away: the real programs, and the plug really pulled."""

import contextlib
import errno
import fcntl
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import train
from conftest import ROOT, TINY, run, start, start_warm, wait_for_line
from test_resume import assert_same_run
from utils import checkpoint, files, history
from utils.errors import UserError

KILLS = int(os.environ.get("KILLS", "8"))
EPOCHS = 2 * KILLS
LONG_RUN = [*TINY, "--epochs", str(EPOCHS), "--step-size", "5", "--compile", "off", "--resume"]
PYTHON = Path(sys.executable).name
GO_ON = f"{PYTHON} {ROOT}/train.py --resume {' '.join(TINY)} --epochs 10000 --compile off"
ENDLESS = [*TINY, "--epochs", "10000", "--compile", "off"]


def kill_at_any_moment(folder, epochs, chance):
    """Once it has kept so many more `epochs`, kill a run at any moment of the next two.

    After the first epoch of a start the curve is drawn, which takes longer than two: a kill meets training and
    validation after the second alone.
    """
    kept = len(files.saved_epochs(folder))
    process = start_warm("train.py", *LONG_RUN)
    while len(files.saved_epochs(folder)) < kept + epochs:
        assert process.poll() is None
    seconds = checkpoint.load_newest(folder).history[-1]["seconds"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(chance.uniform(0, 2 * seconds))
    process.kill()
    assert process.wait() == -signal.SIGKILL


def kill_inside_a_save(folder, chance):
    size = files.epoch_path(folder, 1).stat().st_size
    process = start_warm("tests/killed_in_a_save.py", chance.randrange(1, size), *LONG_RUN)
    assert process.wait() == -signal.SIGXFSZ
    assert len(list(folder.glob("epoch_*.pth.*.partial"))) == 1


def test_killed_at_any_moment_a_run_ends_as_if_never_killed():
    chance, folder = random.Random(0), Path("checkpoints")
    for number in range(KILLS):
        if number % 2 == 0:
            kill_at_any_moment(folder, epochs=2 if number % 4 else 1, chance=chance)
        else:
            kill_inside_a_save(folder, chance)
        for epoch in files.saved_epochs(folder):
            checkpoint.load(files.epoch_path(folder, epoch))
    code, _, err = run("train.py", *LONG_RUN, starter=start_warm)
    assert (code, err) == (0, "")
    assert not list(folder.glob("*.partial"))
    assert files.saved_epochs(folder) == list(range(1, EPOCHS + 1))
    train.main([*LONG_RUN, "--checkpoint-dir", "whole"])
    assert_same_run("checkpoints", "whole", EPOCHS)


def assert_drawn_since(epoch):
    saved = files.epoch_path(Path("checkpoints"), epoch)
    assert os.stat("loss_curve.png").st_mtime_ns > saved.stat().st_mtime_ns


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on():
    process = start_warm("train.py", *ENDLESS)
    wait_for_line(process, "   3")
    process.send_signal(signal.SIGINT)
    process.stdout.close()  # as `tee` does, which the same Ctrl-C ends
    assert process.wait(timeout=30) == 130
    err = process.stderr.read()
    epochs = files.saved_epochs(Path("checkpoints"))
    line = f"interrupted; checkpoints keeps {len(epochs)} epochs. To go on: {GO_ON}"
    assert err.splitlines() == ["", line]
    assert len(epochs) >= 3
    assert_drawn_since(epochs[-1])


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_a_closed_window_do_the_same(number, code):
    process = start_warm("train.py", *ENDLESS, stderr=subprocess.STDOUT)
    wait_for_line(process, "   3")
    process.send_signal(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    process.send_signal(number)  # a second one, where a destructor has swallowed the first
    assert process.wait(timeout=30) == code
    assert_drawn_since(files.saved_epochs(Path("checkpoints"))[-1])


def test_a_reader_that_leaves_ends_the_run_as_ctrl_c_does():
    process = start_warm("train.py", *ENDLESS)
    wait_for_line(process, "   3")
    process.stdout.close()  # as `| head` does, or `| less`
    assert process.wait(timeout=30) == 1
    epochs = files.saved_epochs(Path("checkpoints"))
    line = f"interrupted; checkpoints keeps {len(epochs)} epochs. To go on: {GO_ON}"
    assert process.stderr.read().splitlines() == ["", line]
    assert_drawn_since(epochs[-1])


def test_to_go_on_is_the_same_command_with_resume(trained):
    shutil.copytree(trained, "checkpoints")
    process = start_warm("train.py", "--resume", "--epochs", "10000", "--plot", "my curve.png")
    wait_for_line(process, "epoch")  # the head of the table
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    go_on = f"{PYTHON} {ROOT}/train.py --resume --epochs 10000 --plot 'my curve.png'"
    assert err.splitlines()[-1].endswith(f"To go on: {go_on}")


def test_under_torchrun_it_is_torchruns_command(trained):
    hint = history.resume_hint(["--resume", "--device", "cpu"], trained, processes=2)
    assert hint.endswith(f"To go on: torchrun ... {ROOT}/train.py --resume --device cpu")


def test_a_second_ctrl_c_ends_the_run_at_once():
    process = start_warm("train.py", *ENDLESS)
    wait_for_line(process, "   1")
    while process.poll() is None:  # as from an impatient finger
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT  # which ends the drawing of the curve, too
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_the_file_system_has_no_locks_a_run_goes_on_without(number, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    Path("checkpoints").mkdir()
    Path("checkpoints/.lock").write_text("of a run that was killed")
    assert train.main([*TINY, "--epochs", "1"]) == 0
    assert train.main(["--resume", "--epochs", "2"]) == 0
    line = "note: there are no locks in checkpoints; see to it that no other program writes there\n"
    assert capsys.readouterr().err == 2 * line


def test_a_run_that_waits_for_anothers_download_says_so(small_cifar10):
    small_cifar10.rename("elsewhere")
    with FileLock("data/.cifar10.lock"):
        process = start_warm("train.py", *"--widths 4 --blocks 1 --epochs 1 --device cpu".split())
        wait_for_line(process, "waiting for another process, which fetches CIFAR-10 into data")
        Path("elsewhere").rename(small_cifar10)
    assert process.wait(timeout=60) == 0


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))


def test_a_full_disk_is_a_line_and_leaves_other_epochs_whole(trained):
    shutil.copytree(trained, "checkpoints")
    before = {path.name: path.read_bytes() for path in Path("checkpoints").glob("epoch*")}
    code, _, err = run("train.py", "--resume", "--epochs", "5", starter=start_warm, prepare=full_disk)
    assert code == 2
    assert err.startswith("error: cannot write checkpoints/epoch_04.pth: File too large;") and err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path("checkpoints").glob("epoch*")} == before


def test_a_folder_that_may_not_be_listed_is_not_empty(folder, monkeypatch):
    def refuse(path):  # chmod would not keep out root
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        train.main([*TINY, "--epochs", "1"])


def test_a_folder_below_a_file_is_refused():
    Path("file").touch()
    with pytest.raises(UserError, match="cannot write to file/checkpoints: file is not a folder; name another"):
        train.main([*TINY, "--checkpoint-dir", "file/checkpoints"])


def test_a_folder_deleted_during_the_run_is_a_line():
    process = start_warm("train.py", *ENDLESS)
    wait_for_line(process, "   2")
    shutil.move("checkpoints", "away")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("error: cannot write checkpoints/") and err.count("\n") == 1
    assert checkpoint.load(Path("away/epoch_02.pth"))


def test_a_picture_that_cannot_be_written_is_found_before_training():
    os.mkdir("folder.png")
    with pytest.raises(UserError, match="folder.png is a folder"):
        train.main([*TINY, "--plot", "folder.png"])
    assert files.saved_epochs(Path("checkpoints")) == []


def test_a_closed_output_is_no_trouble_and_a_full_disk_behind_it_is_a_line(trained):
    of_trained = ["test.py", "--checkpoint-dir", trained]
    with open("/dev/full", "w") as full:
        silent = start(*of_trained, "--epoch", "1", preexec_fn=lambda: os.close(1))
        without_errors = start("train.py", *TINY, "--epochs", "1", preexec_fn=lambda: os.close(2))
        full_at_once = start_warm("train.py", *TINY, "--epochs", "1", "--checkpoint-dir", "full", stdout=full)
        full_at_the_end = start_warm(*of_trained, stdout=full)  # the table of epochs gets there when the program ends
    _, err = silent.communicate(timeout=60)
    assert (silent.returncode, err) == (0, "")
    out, _ = without_errors.communicate(timeout=60)
    assert without_errors.returncode == 0 and "Lowest validation loss: epoch 1." in out
    _, err = full_at_once.communicate(timeout=60)
    assert full_at_once.returncode == 2
    assert err.startswith("error: standard output: No space left on device;") and err.count("\n") == 1
    _, err = full_at_the_end.communicate(timeout=60)
    assert full_at_the_end.returncode == 2
    assert err.startswith("error: no terminal to ask for an epoch;") and "No space left" in err


def test_ctrl_c_ends_a_program_whose_reader_does_not_read_on(trained):
    shutil.copytree(trained, "long")
    saved = torch.load("long/epoch_03.pth", weights_only=True)
    history = [saved["history"][0] | {"epoch": epoch} for epoch in range(1, 81)]
    torch.save(saved | {"epoch": 80, "history": history}, "long/epoch_80.pth")
    for epoch in range(4, 80):
        files.epoch_path(Path("long"), epoch).touch()
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)  # less than the table of 80 epochs
    process = start_warm("test.py", "--checkpoint-dir", "long", stdout=writer)
    assert "no terminal to ask" in process.stderr.readline()
    while process.poll() is None:  # once more if the signal came just before the write that waits
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    assert process.returncode == 130
    assert process.stderr.read() == ""
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("lr", ["1e3", "1e6"])  # the loss leaves the finite numbers, or a batch norm alone
def test_a_run_that_diverges_stops_and_keeps_no_such_checkpoint(lr):
    with pytest.raises(UserError, match="not finite: training has diverged; try a smaller --lr") as caught:
        train.main([*TINY, "--lr", lr, "--epochs", "50"])
    diverged = int(re.search(r"of epoch (\d+) are", str(caught.value))[1])
    assert files.saved_epochs(Path("checkpoints")) == list(range(1, diverged))


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives():
    process = start_warm("train.py", *ENDLESS)
    wait_for_line(process, "   1")
    for option in ("--resume", "--overwrite"):
        with pytest.raises(UserError, match="another run is writing to checkpoints"):
            train.main([*ENDLESS, option])
    process.kill()
    process.communicate()
    assert train.main([*TINY, "--epochs", "1", "--overwrite"]) == 0
