"""A run goes on where it stopped, as if it had not, and with its own recipe alone."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import train
from conftest import ENVIRONMENT, TINY, change, run, start_warm
from utils import accelerate, checkpoint, files
from utils.errors import UserError

TIMES = ("seconds", "images_per_second")


def state_of(folder, epoch):
    """Weights, optimizer and history of an epoch, without the columns that hold times."""
    saved = checkpoint.load(files.epoch_path(Path(folder), epoch))
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in saved.history]
    return saved.model, saved.optimizer["state"], rows


def assert_same_run(folder, other, epoch):
    model, optimizer, rows = state_of(folder, epoch)
    other_model, other_optimizer, other_rows = state_of(other, epoch)
    assert rows == other_rows
    assert model.keys() == other_model.keys() and optimizer.keys() == other_optimizer.keys()
    assert all(torch.equal(model[name], other_model[name]) for name in model)
    for number, state in optimizer.items():
        assert torch.equal(state["momentum_buffer"], other_optimizer[number]["momentum_buffer"])


@pytest.mark.parametrize(
    "recipe",
    [
        "--step-size 1 --compile off --precision bf16",
        "--schedule one-cycle --nesterov --label-smoothing 0.1 --cutout 8 --compile on",
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(recipe):
    options = [*TINY, *recipe.split(), "--batch-size", "64"]
    train.main([*options, "--epochs", "3", "--checkpoint-dir", "whole"])
    train.main([*options, "--epochs", "3", "--checkpoint-dir", "resumed"])
    for epoch in (2, 3):
        os.remove(f"resumed/epoch_0{epoch}.pth")
    train.main(["--checkpoint-dir", "resumed", "--resume"])
    assert_same_run("whole", "resumed", 3)


def two_threads():
    torch.set_num_threads(2)  # in a fork: a process that has had two can no longer fork safely


def test_with_two_threads_a_run_resumes_bit_for_bit_too(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "OMP_NUM_THREADS", "2")  # for a program that is not forked
    for folder, *options in (
        ("whole", *TINY, "--epochs", "3"),
        ("resumed", *TINY, "--epochs", "2"),
        ("resumed", "--resume", "--epochs", "3", "--device", "cpu"),
    ):
        code, out, err = run("train.py", *options, "--checkpoint-dir", folder, starter=start_warm, prepare=two_threads)
        assert code == 0 and "cpu, 2 threads" in out, err
    assert_same_run("whole", "resumed", 3)


def test_a_finished_run_can_be_made_longer(trained):
    shutil.copytree(trained, "longer")
    train.main(["--checkpoint-dir", "longer", "--resume", "--epochs", "4"])
    train.main([*TINY, "--checkpoint-dir", "whole", "--epochs", "4"])
    assert_same_run("longer", "whole", 4)


def test_resuming_a_finished_run_trains_no_epoch_and_changes_no_checkpoint(trained, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in trained.glob("[eh]*")}
    undecided = ["--compile", "auto", "--precision", "auto"]  # by now they are
    assert train.main(["--checkpoint-dir", str(trained), "--resume", *undecided]) == 0
    out = capsys.readouterr().out
    assert "resumed  after epoch 3 of 3" in out and "\n   3" not in out
    assert {path.name: path.stat().st_mtime_ns for path in trained.glob("[eh]*")} == before


def test_a_finished_run_is_drawn_where_it_is_asked_for(trained):
    assert train.main(["--checkpoint-dir", str(trained), "--resume", "--plot", "new/curve.png"]) == 0
    assert Path("new/curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_compiler_has_begun_to_fail_can_go_on_without_it(folder):
    change(lambda saved: saved["config"]["options"].update(compile="on"))
    assert train.main(["--resume", "--epochs", "4", "--compile", "off"]) == 0
    assert checkpoint.load_newest(Path("checkpoints")).config.options["compile"] == "off"


def test_the_momentum_of_a_run_on_another_device_gets_the_memory_format_of_its_weights(folder):
    def as_on_mps(saved):
        for state in saved["optimizer"]["state"].values():
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()

    change(as_on_mps)
    train.main(["--resume", "--epochs", "4"])
    saved = checkpoint.load_newest(Path("checkpoints"))
    buffers = [state["momentum_buffer"] for state in saved.optimizer["state"].values()]
    weights = [tensor for name, tensor in saved.model.items() if not name.endswith(checkpoint.STATISTICS)]
    assert [tensor.stride() for tensor in buffers] == [tensor.stride() for tensor in weights]


def test_resuming_in_an_empty_folder_starts_at_the_beginning():
    assert train.main([*TINY, "--epochs", "1", "--resume"]) == 0
    assert files.saved_epochs(Path("checkpoints")) == [1]


OTHERS = (
    "--lr 0.2, --seed 1, --widths 8 8, --epochs 2, --data cifar10, --subset 7, --precision bf16, --nesterov, "
    "--downsample stride"
)


@pytest.mark.parametrize("option", OTHERS.split(", "))
def test_another_recipe_is_refused_by_name_on_resume(trained, option):
    name, *_ = option.split()
    with pytest.raises(UserError, match=f"{option} differs from .*epoch_03.pth, which has (no )?{name}"):
        train.main(["--checkpoint-dir", str(trained), "--resume", *option.split()])


def test_a_finished_run_is_mended_where_a_kill_came_after_its_last_checkpoint(trained):
    shutil.copytree(trained, "killed")
    whole = Path("killed/history.csv").read_text()
    Path("killed/history.csv").write_text(whole[: whole.rindex("3,")])
    Path("killed/epoch_04.pth.123.partial").touch()
    curve = Path("killed/loss_curve.png")
    curve.write_bytes(b"\x89PNG, of an earlier epoch")
    os.utime(curve, (0, 0))
    assert train.main(["--checkpoint-dir", "killed", "--resume"]) == 0
    assert Path("killed/history.csv").read_text() == whole
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert set(os.listdir("killed")) == set(os.listdir(trained))


def test_what_is_left_to_the_program_is_decided_once_and_kept(folder, monkeypatch):
    monkeypatch.setattr(accelerate, "COMPILE_PAYS_FROM", {"cpu": 0})  # as for a longer run
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True})
    train.main(["--resume", "--epochs", "4", "--compile", "auto", "--precision", "auto"])
    options = checkpoint.load_newest(Path("checkpoints")).config.options
    assert (options["precision"], options["compile"]) == ("fp32", "off")
