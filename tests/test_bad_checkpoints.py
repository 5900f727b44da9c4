"""A damaged checkpoint, or one of another run or program, is refused in one line."""

import math
import os
import shutil
from pathlib import Path

import pytest
import torch

import train
from conftest import NEWEST, change, refused
from test_resume import assert_same_run
from utils import checkpoint, plot
from utils.errors import UserError


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
    with pytest.raises(UserError, match="move it away to go on from checkpoints/epoch_02.pth"):
        train.main(["--resume"])
    Path("checkpoints/epoch_02.pth").write_bytes(b"")
    with pytest.raises(UserError, match="move it away to go on from checkpoints/epoch_01.pth"):
        train.main(["--resume"])
    os.remove(NEWEST)
    os.remove("checkpoints/epoch_02.pth")
    assert train.main(["--resume"]) == 0


def test_a_newer_format(folder):
    change(lambda saved: saved.update(format=checkpoint.FORMAT + 1))
    refused(f"format {checkpoint.FORMAT + 1}, newer than this program")


def test_an_older_format(folder):
    change(lambda saved: saved.update(format=checkpoint.FORMAT - 1))
    refused(f"format {checkpoint.FORMAT - 1}, of an older program")


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


def test_a_network_of_more_stages_than_an_image_has_halvings(folder):
    def deepen(saved):
        saved["config"]["network"].update({"widths": [4] * 7, "blocks": [1] * 7})

    change(deepen)
    refused("7 stages, where an image has room for 1 to 5")


def nan(saved):
    saved["model"]["stem.0.weight"][0, 0, 0, 0] = float("nan")


def wrong_type(saved):
    saved["model"]["stem.0.weight"] = saved["model"]["stem.0.weight"].double()


def expanded(saved):
    saved["model"]["stem.0.weight"] = torch.zeros(1).expand(4, 3, 3, 3)


def name_that_is_a_number(saved):
    saved["model"][1] = saved["model"].pop("stem.0.weight")


def endless_epoch(saved):
    saved["history"][-1]["seconds"] = 1.7e308


def no_tensor(saved):
    saved["model"]["stem.0.weight"] = [1.0]


def short_history(saved):
    saved["history"].pop()


def dropout_that_is_no_number(saved):
    saved["config"]["network"]["dropout"] = math.nan


def teacher_that_is_no_fingerprint(saved):
    saved["config"]["teacher"] = 7


def no_teacher_and_no_none(saved):
    del saved["config"]["teacher"]


def wrong_statistics(saved):
    saved["config"]["std"] = [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "edit",
    [
        nan,
        wrong_type,
        expanded,
        name_that_is_a_number,
        endless_epoch,
        no_tensor,
        short_history,
        wrong_statistics,
        teacher_that_is_no_fingerprint,
        no_teacher_and_no_none,
        dropout_that_is_no_number,
    ],
)
def test_weights_and_history_that_cannot_be_used(folder, edit):
    change(edit)
    refused()


def test_another_epochs_file_under_this_name(folder):
    shutil.copy("checkpoints/epoch_01.pth", NEWEST)
    refused("its name is that of another epoch")


@pytest.mark.parametrize("edit", [{"classes": 5}, {"widths": [4, "--help"]}, {"downsample": "max"}, {"dropout": "0.1"}])
def test_a_network_that_is_not_that_of_a_run(folder, edit):
    change(lambda saved: saved["config"]["network"].update(edit))
    refused()


def another_momentum_shape(saved):
    saved["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(2)


@pytest.mark.parametrize(
    "edit", [{"data": "mnist"}, {"seed": "0"}, {"lr": math.nan}, {"lr": [[0.1]]}, {"a b": 1}, {"dropout": 0.9}]
)
def test_options_that_no_run_has(folder, edit):
    change(lambda saved: saved["config"]["options"].update(edit))
    refused()


FORGED = [
    {"lr": "quick"},
    {"lr": [0.1, "--overwrite"]},
    {"seed": 0, "subset": "7 --overwrite"},
    {"nesterov": "--overwrite"},
    {"checkpoint_dir": "/"},
    {"overwrite": True},
    {"schedule": "--nesterov"},
    {"epochs": True},
    {"epochs": 2},
    {"lr": None},
]


@pytest.mark.parametrize("edit", FORGED)
def test_a_forged_option_never_becomes_an_argument(folder, edit):
    change(lambda saved: saved["config"]["options"].update(edit))
    with pytest.raises(UserError, match=f"{NEWEST} is not a usable checkpoint: "):
        train.main(["--resume", "--epochs", "4"])
    assert NEWEST.exists()


@pytest.mark.parametrize("changed", [7, "a\nb", "\N{SNOWMAN}", r"$\foo$"])
def test_the_line_of_options_is_text_and_never_read_as_more(folder, changed):
    change(lambda saved: saved["config"].update(changed=changed))
    if changed == r"$\foo$":  # which matplotlib would typeset
        assert plot.main([]) == 0
    else:
        refused()


@pytest.mark.parametrize("name", ["lr", "cutout", "label_smoothing"])
def test_an_option_that_a_file_lacks_has_its_default(folder, name):
    shutil.copytree("checkpoints", "whole")
    change(lambda saved: saved["config"]["options"].pop(name))
    for checkpoints in "checkpoints", "whole":
        assert train.main(["--resume", "--epochs", "4", "--checkpoint-dir", checkpoints]) == 0
    assert_same_run("checkpoints", "whole", 4)


def option_out_of_range(saved):
    saved["config"]["options"]["lr"] = -1.0  # of its type: a command line alone refuses it


def momentum_in_double(saved):
    buffer = saved["optimizer"]["state"][0]["momentum_buffer"].double()
    saved["optimizer"]["state"][0]["momentum_buffer"] = buffer.fill_(1e300)  # finite in 64 bits alone


def no_momentum_buffer(saved):
    saved["optimizer"]["state"][0].clear()


def later_in_the_schedule(saved):
    saved["scheduler"]["last_epoch"] += 1


def overlapping_momentum(saved):
    saved["optimizer"]["state"][1]["momentum_buffer"] = torch.zeros(1).expand(4)


def lost_momentum(saved):
    saved["optimizer"]["state"].clear()


@pytest.mark.parametrize(
    "edit, reason",
    [
        (another_momentum_shape, "momentum of these weights"),
        (momentum_in_double, "momentum of these weights"),
        (no_momentum_buffer, "momentum of these weights"),
        (option_out_of_range, "argument --lr"),
        (later_in_the_schedule, "at another step"),
        (overlapping_momentum, "not a dense tensor"),
        (lost_momentum, "momentum of these weights"),
    ],
)
def test_what_only_resuming_needs_is_checked_on_resume(folder, edit, reason):
    change(edit)
    with pytest.raises(UserError, match=f"{NEWEST} is not a usable checkpoint: .*{reason}"):
        train.main(["--resume", "--epochs", "4"])


def of_another_torch(saved):
    for state in saved["scheduler"], saved["optimizer"]["param_groups"][0]:
        state["of_another_version"] = 0


def of_a_gpu(saved):
    saved["optimizer"]["param_groups"][0]["fused"] = True  # as utils/accelerate.py leaves it


def forged(saved):
    saved["scheduler"]["step_size"] = 0
    saved["optimizer"]["param_groups"][0]["lr"] = "fast"
    saved["optimizer"]["state"][99] = {"momentum_buffer": "much"}


@pytest.mark.parametrize("edit", [of_another_torch, of_a_gpu, forged])
def test_what_follows_from_the_options_is_not_taken_from_the_file(folder, edit):
    shutil.copytree("checkpoints", "whole")
    change(edit)
    for name in "checkpoints", "whole":
        assert train.main(["--resume", "--epochs", "4", "--checkpoint-dir", name]) == 0
    assert_same_run("checkpoints", "whole", 4)
