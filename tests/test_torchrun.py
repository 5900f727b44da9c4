"""Several processes do what one would have done."""

import contextlib
import csv
import os
import re
import signal
from pathlib import Path

import pytest
import torch

import dataset
import several_processes
import test
import train
from conftest import ROOT, TINY, assert_stem_has_statistics_of, start_warm, wait_for_line
from models import ResidualCNN
from utils import checkpoint, files
from utils.errors import UserError
from utils.runtime import Runtime

SEVERAL = "tests/several_processes.py"


def torchrun(processes, script, *arguments, options=()):
    options = ["--standalone", f"--nproc-per-node={processes}", *options]
    return start_warm("torch.distributed.run", *options, ROOT / script, *arguments)


def done(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "result.pt"
    several_processes.main(path)  # in this process, without torchrun
    return torch.load(path, weights_only=True)


def test_gradients_and_validation_are_those_of_one_process(alone):
    done(torchrun(2, SEVERAL, "result.pt"))
    several = torch.load("result.pt", weights_only=True)
    for name, gradient in alone["gradients"].items():
        largest = gradient.abs().max().item()
        assert largest > 0
        # A rounding, which the order of sums decides, can take an activation to the other side of a ReLU.
        torch.testing.assert_close(several["gradients"][name], gradient, rtol=0, atol=1e-3 * largest)
    loss, accuracy = alone["validation"]
    assert several["validation"] == (pytest.approx(loss, abs=1e-6), accuracy)


def test_every_process_needs_an_image_of_a_batch(monkeypatch):
    runtime = Runtime(torch.device("cpu"), 0, 2)
    monkeypatch.setattr(train, "start", lambda *_: contextlib.nullcontext(runtime))
    monkeypatch.setattr(Runtime, "broadcast_from_main", lambda self, make: make())  # there is no other process
    with pytest.raises(UserError, match="--batch-size: 1 for 2 processes; give each an image at least"):
        train.main(["--batch-size", "1"])


def test_an_error_ends_all_processes_with_our_one_line_first():
    process = torchrun(2, "train.py", *TINY, "--lr", "1e6", "--epochs", "50")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "not finite" in lines[0]
    # Then torchrun speaks: of the process that it ends, if that has not ended by itself, and of the one that failed.
    assert "Traceback" not in re.split(r"closing signal|failed \(exitcode", err)[0]
    assert "[rank1]" not in err


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_processes_go_on_with_one_ones_run_are_restarted_after_a_kill_and_one_goes_on_with_theirs():
    few = [*TINY, "--subset", "33"]  # batches of 32 images and of 1, of which one gets none
    train.main([*few, "--epochs", "1", "--checkpoint-dir", "teacher"])
    taught = ["--teacher", "teacher/epoch_01.pth"]
    train.main([*few, "--epochs", "3", *taught])
    process = torchrun(2, "train.py", "--resume", "--epochs", "25", *taught, options=["--max-restarts=3"])
    wait_for_line(process, "   4")
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    out = done(process)
    assert "resumed  after epoch" in out  # the second start; the first one's header is read above
    assert (
        out.count("data     ") == 1 and out.count("The curve is in loss_curve.png") == 1
    )  # only the first process prints
    assert files.saved_epochs(Path("checkpoints")) == list(range(1, 26))
    with open("checkpoints/history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(epoch) for epoch in range(1, 26)]
    path = Path("checkpoints/epoch_25.pth")
    saved = checkpoint.load(path)
    training, _ = dataset.load_training("synthetic", Path("data"))
    batch = next(iter(dataset.Batches(training[:33], 33, saved.config.mean, saved.config.std)))
    assert_stem_has_statistics_of(saved.build_network(ResidualCNN), batch)  # not of a share of it
    assert train.main(["--resume", "--epochs", "26", *taught]) == 0
    assert test.main(["--epoch", "26"]) == 0


def test_the_benchmark_compares_one_process_with_all():
    out = done(torchrun(2, "utils/benchmark.py", *"--widths 4 --blocks 1 --steps 1 --turns 1 --device cpu".split()))
    assert [line.split(",")[0] for line in out.splitlines()] == ["one process", "2 processes"]


def test_a_word_of_torchruns_that_a_shell_has_kept_starts_no_process_group(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert train.main([*TINY, "--epochs", "1"]) == 0
