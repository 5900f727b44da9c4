"""A checkpoint from anywhere is read or refused in one line, and never runs anything."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import test
import train
from utils import checkpoint, contents
from utils.errors import UserError

NEWEST = Path("checkpoints/epoch_03.pth")


@pytest.fixture
def folder(trained):
    shutil.copytree(trained, "checkpoints")


def refused(reason=""):
    """Both programs that read a checkpoint refuse it, naming file and reason in one line."""
    for program, options in ((test, ["--epoch", "3"]), (train, ["--resume", "--epochs", "4"])):
        with pytest.raises(UserError) as caught:
            program.main(options)
        line = str(caught.value)
        assert line.startswith(f"{NEWEST} is no usable checkpoint: ") and "\n" not in line
        assert reason in line


def change(edit):
    saved = torch.load(NEWEST, weights_only=True)
    edit(saved)
    torch.save(saved, NEWEST)


def test_damaged_files(folder):
    whole = NEWEST.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        NEWEST.write_bytes(whole[:length])
        refused()
    NEWEST.write_bytes(b"these are no weights")
    refused()


def test_a_byte_flipped_in_the_weights(folder):
    data = bytearray(NEWEST.read_bytes())
    weight = torch.load(NEWEST, weights_only=True)["model"]["classifier.weight"]
    position = bytes(data).index(weight.numpy().tobytes())
    data[position + 5] ^= 1
    NEWEST.write_bytes(data)
    torch.load(NEWEST, weights_only=True)  # torch does not notice
    refused("damaged")


def test_a_directory(folder):
    NEWEST.unlink()
    NEWEST.mkdir()
    refused("Is a directory")


def test_the_newest_good_epoch_is_named_and_resumed_from_once_the_bad_one_is_away(folder):
    NEWEST.write_bytes(b"")
    Path("checkpoints/epoch_02.pth").write_bytes(b"")
    with pytest.raises(UserError, match="move it away to go on from checkpoints/epoch_01.pth"):
        train.main(["--resume"])
    os.remove(NEWEST)
    os.remove("checkpoints/epoch_02.pth")
    assert train.main(["--resume"]) == 0


def test_a_newer_format(folder):
    change(lambda saved: saved.update(format=contents.FORMAT + 1))
    refused(f"format {contents.FORMAT + 1}, newer than this program")


def test_an_older_format(folder):
    change(lambda saved: saved.update(format=contents.FORMAT - 1))
    refused(f"format {contents.FORMAT - 1}, of an older program")


@pytest.mark.parametrize("key", ["epoch", "model", "optimizer", "scheduler", "history", "config", "format"])
def test_keys_missing_or_of_the_wrong_type(folder, key):
    change(lambda saved: saved.pop(key))
    refused(f"'{key}' is missing")
    change(lambda saved: saved.update({key: "text"}))
    refused(f"'{key}' is missing or no")


def test_another_networks_weights(folder):
    change(lambda saved: saved["config"]["network"].update(widths=[4, 16]))
    refused("another network")
    for blocks in ([10**9, 1], [10**9, 2 - 10**9], []):
        change(lambda saved, blocks=blocks: saved["config"]["network"].update(blocks=blocks))
        refused()


class Runs:
    """Unpickles by calling what it is told to."""

    def __init__(self, call, *arguments):
        self.how = call, arguments

    def __reduce__(self):
        return self.how


def nan(saved):
    saved["model"]["stem.0.weight"][0, 0, 0, 0] = float("nan")


def wrong_type(saved):
    saved["model"]["stem.0.weight"] = saved["model"]["stem.0.weight"].double()


def expanded(saved):
    saved["model"]["stem.0.weight"] = torch.zeros(1).expand(4, 3, 3, 3)


def larger_than_the_file(saved):
    saved["model"]["stem.0.weight"] = Runs(torch.Tensor, 10**9)


def name_that_is_a_number(saved):
    saved["model"][1] = saved["model"].pop("stem.0.weight")


def endless_epoch(saved):
    saved["history"][-1]["seconds"] = 1.7e308


def no_tensor(saved):
    saved["model"]["stem.0.weight"] = [1.0]


def short_history(saved):
    saved["history"].pop()


def wrong_statistics(saved):
    saved["config"]["std"] = [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "edit",
    [
        nan,
        wrong_type,
        expanded,
        larger_than_the_file,
        name_that_is_a_number,
        endless_epoch,
        no_tensor,
        short_history,
        wrong_statistics,
    ],
)
def test_weights_and_history_that_cannot_be_used(folder, edit):
    change(edit)
    refused()


def test_another_epochs_file_under_this_name(folder):
    shutil.copy("checkpoints/epoch_01.pth", NEWEST)
    refused("its name is that of another epoch")


def test_options_and_network_that_are_not_those_of_a_run(folder):
    change(lambda saved: saved["config"]["network"].update(classes=5))
    refused("'network' are not those of a run")


def another_momentum_shape(saved):
    saved["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(2)


def another_schedule(saved):
    saved["scheduler"]["step"] = 3


def another_optimizer(saved):
    saved["optimizer"]["param_groups"][0]["lr"] = "fast"


def missing_option(saved):
    del saved["config"]["options"]["lr"]


def bad_option(saved):
    saved["config"]["options"]["lr"] = "quick"


def option_that_is_none(saved):
    saved["config"]["network"]["widths"] = [4, "--help"]


def later_in_the_schedule(saved):
    saved["scheduler"]["last_epoch"] += 1


def another_rate(saved):
    saved["optimizer"]["param_groups"][0]["lr"] *= 2


def zero_step(saved):
    saved["scheduler"]["step_size"] = 0


def overlapping_momentum(saved):
    saved["optimizer"]["state"][1]["momentum_buffer"] = torch.zeros(1).expand(4)


def lost_momentum(saved):
    saved["optimizer"]["state"].clear()


def dangerous_option(saved):
    saved["config"]["options"]["checkpoint_dir"] = "/"


@pytest.mark.parametrize(
    "edit",
    [
        another_momentum_shape,
        another_schedule,
        another_optimizer,
        missing_option,
        bad_option,
        dangerous_option,
        option_that_is_none,
        zero_step,
        later_in_the_schedule,
        another_rate,
        overlapping_momentum,
        lost_momentum,
    ],
)
def test_what_only_resuming_needs_is_checked_on_resume(folder, edit):
    change(edit)
    with pytest.raises(UserError, match=f"{NEWEST} is no usable checkpoint"):
        train.main(["--resume", "--epochs", "4"])


ATTACKS = {
    "system": Runs(os.system, "touch ran"),
    "eval": Runs(eval, "open('ran', 'w')"),
    "exec": Runs(exec, "open('ran', 'w')"),
    "open": Runs(open, "ran", "w"),
    "mkdir": Runs(os.mkdir, "ran"),
    "import": Runs(__import__, "this"),
    "popen": Runs(subprocess.Popen, ["touch", "ran"]),
    "numpy": Runs(np._core.multiarray.scalar, np.dtype("O"), pickle.dumps(Runs(os.mkdir, "ran"))),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("container", ["torch", "torch legacy", "pickle", "zip"])
def test_pickles_that_would_run_code_run_nothing(folder, attack, container):
    evil = {"format": 1, "model": ATTACKS[attack]}
    if container == "pickle":
        NEWEST.write_bytes(pickle.dumps(evil))
    elif container == "zip":
        with zipfile.ZipFile(NEWEST, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(evil))
            archive.writestr("archive/version", "3")
    else:
        torch.save(evil, NEWEST, _use_new_zipfile_serialization=container == "torch")
    refused()
    assert not os.path.exists("ran") and "this" not in sys.modules


def test_a_bomb_of_zeros_is_not_unpacked(folder):
    with zipfile.ZipFile(NEWEST, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    refused("compressed")


@pytest.fixture(scope="module")
def small_file(trained):
    """A checkpoint without its weights, so that mutations hit its structure."""
    saved = torch.load(trained / "epoch_01.pth", weights_only=True)
    saved["model"] = {"weight": torch.ones(3)}
    saved["optimizer"] = {}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return buffer.getvalue()


MUTATION = st.tuples(st.sampled_from(["set", "cut", "insert", "repeat"]), st.integers(0, 2**20), st.binary(max_size=8))


@settings(
    max_examples=int(os.environ.get("MUTATIONS", "3000")),
    deadline=2000,  # milliseconds: a hang is an error
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4), inside=st.booleans())
def test_a_mutated_file_is_a_checkpoint_or_a_clean_error(small_file, tmp_path_factory, mutations, inside):
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    if inside:  # with check sums that are right: what somebody wrote on purpose
        with zipfile.ZipFile(io.BytesIO(small_file)) as whole, zipfile.ZipFile(path, "w") as changed:
            for entry in whole.infolist():
                content = whole.read(entry)
                changed.writestr(entry, mutated(content, mutations) if entry.filename.endswith(".pkl") else content)
    else:
        path.write_bytes(mutated(small_file, mutations))
    try:
        checkpoint.load(path)
    except UserError as error:
        assert "\n" not in str(error)


def mutated(original, mutations):
    data = bytearray(original)
    for kind, position, value in mutations:
        position %= len(data) + 1
        if kind == "set":
            data[position : position + len(value)] = value
        elif kind == "cut":
            del data[position : position + len(value) ** 2]
        elif kind == "insert":
            data[position:position] = value
        else:
            data[position:position] = data[position : position + 50]
    return bytes(data)
