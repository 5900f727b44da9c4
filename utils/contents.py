"""What an `epoch_NN.pth` holds, and whether it does.

A checkpoint is a dict of plain Python values and tensors, so that `torch.load(..., weights_only=True)`, which runs no
code from the file, reads it:

    format      6
    epoch       the epoch after which it was saved, from 1
    model       the state dict of the plain network
    optimizer   its state dict; resuming takes the momentum from it, the rest follows from the options
    scheduler   its state dict; resuming makes another, by as many steps
    history     a list of rows, see utils/history.py
    config      {"options": the recipe, "network": the arguments of ResidualCNN, "mean" and "std" of the images,
                "teacher": the fingerprint of the network whose answers were learned, too, or None}

A file of weights to take away, as in models/, has `format`, `model` and `config` alone.
"""

import argparse
import hashlib
import io
import zipfile

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError
from utils.history import COLUMNS

FORMAT = 6
WEIGHTS_KEYS = {"format": int, "model": dict, "config": dict}
KEYS = WEIGHTS_KEYS | {"epoch": int, "optimizer": dict, "scheduler": dict, "history": list}
# What a checkpoint remembers of a run's options: with these it can be done again, on any machine and in any folder.
OPTIONS = {
    "epochs": int,
    "batch_size": int,
    "lr": float,
    "momentum": float,
    "weight_decay": float,
    "nesterov": bool,
    "schedule": ("step", "one-cycle"),
    "step_size": int,
    "gamma": float,
    "label_smoothing": float,
    "cutout": int,
    "seed": int,
    "data": ("cifar10", "synthetic"),
    "subset": (int, None),
    "max_parameters": int,
    "compile": ("on", "off"),
    "precision": ("fp32", "bf16"),
}
MAX_STAGES = 5  # the last one has 2 x 2 pixels
LARGEST = 1e300  # of what is in a row of the history: sums of several are still finite
# The arguments of ResidualCNN.
NETWORK = {"widths": [int], "blocks": [int], "dropout": float, "downsample": ("pool", "stride")}


def checkpoint_of(
    network: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, history: list[dict], config: dict
) -> dict:
    """The checkpoint of the newest epoch in `history`."""
    return {
        "format": FORMAT,
        "epoch": history[-1]["epoch"],
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": history,
        "config": config,
    }


def network_arguments(options: argparse.Namespace) -> dict:
    """The arguments of ResidualCNN among the options of a command line.

    Raises:
        UserError: if there is no network of this shape.
    """
    if len(options.widths) > MAX_STAGES:
        raise UserError(f"--widths: {len(options.widths)} stages leave nothing of an image; use {MAX_STAGES} at most")
    if len(options.widths) != len(options.blocks):
        raise UserError("--widths and --blocks differ in length; give a number of blocks for each width")
    return {name: getattr(options, name) for name in NETWORK}


def config_of(options: argparse.Namespace, mean: list[float], std: list[float], teacher: str | None) -> dict:
    """What, besides the weights, rebuilds and tests the network, and repeats the run."""
    recipe = {name: getattr(options, name) for name in OPTIONS}
    return {"options": recipe, "network": network_arguments(options), "mean": mean, "std": std, "teacher": teacher}


def fingerprint(weights: dict[str, Tensor]) -> str:
    """Tells the weights of one network, on the CPU, from those of another, in whichever file they are."""
    return hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


def check_archive(data: bytes) -> None:
    """Compare the check sums in the file, which `torch.load` does not; refuse what would be larger unpacked."""
    require(zipfile.is_zipfile(io.BytesIO(data)), "it is damaged, cut short or something else")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is a compressed archive")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")


def check_contents(checkpoint: dict, keys: dict[str, type], file_size: int) -> None:
    """Raise `ValueError` unless `checkpoint` has these keys, with values of the right kind and size.

    `file_size`, in bytes: no tensor from a file is larger than the file.
    """
    require(isinstance(checkpoint, dict), "it does not hold a dict")
    format_ = checkpoint.get("format")
    if type(format_) is int:  # before the rest, which may not be there in another format
        require(format_ <= FORMAT, f"it is of format {format_}, newer than this program, which reads {FORMAT}")
        require(format_ == FORMAT, f"it is of format {format_}, of an older program; this one reads {FORMAT}")
    for key, kind in keys.items():
        require(isinstance(checkpoint.get(key), kind), f"its {key!r} is missing or not a {kind.__name__}")
    _check_config(checkpoint["config"])
    if "epoch" in keys:
        _check_history(checkpoint["history"], checkpoint["epoch"])
    for name, tensor in checkpoint["model"].items():
        require(isinstance(name, str) and isinstance(tensor, Tensor), "its model is not a state dict")
        require(tensor.untyped_storage().nbytes() <= file_size, f"model's {name!r} is larger than the file")
        check_tensor(f"model's {name!r}", tensor)


def _check_history(history: list, epoch: int) -> None:
    require(epoch >= 1 and len(history) == epoch, "its history does not have one row per epoch")
    for number, row in enumerate(history, start=1):
        good = isinstance(row, dict) and row.keys() == COLUMNS.keys() and row["epoch"] == number
        good = good and all(type(row[key]) is kind and 0 <= row[key] < LARGEST for key, kind in COLUMNS.items())
        require(good, f"row {number} of its history is not as expected")


def _check_config(config: dict) -> None:
    for key, kind in {"options": dict, "network": dict, "mean": list, "std": list}.items():
        require(isinstance(config.get(key), kind), f"its config's {key!r} is missing or not a {kind.__name__}")
    for part, kinds in ("options", OPTIONS), ("network", NETWORK):
        values = config[part]
        good = values.keys() == kinds.keys() and all(_is_of(kinds[name], value) for name, value in values.items())
        require(good, f"its config's {part!r} are not those of a run")
    require("teacher" in config and _is_of((str, None), config["teacher"]), "its config's 'teacher' is not as expected")
    shape = config["network"]["widths"] + config["network"]["blocks"]
    require(min(shape, default=0) >= 1, "its network has no layers")
    require(0 <= config["network"]["dropout"] < 1, "its network's dropout is no probability")
    require(len(config["network"]["widths"]) <= MAX_STAGES, f"its network has more than {MAX_STAGES} stages")
    for key in ("mean", "std"):
        good = len(config[key]) == 3 and all(type(value) is float and 0 <= value <= 1 for value in config[key])
        require(good and (key == "mean" or min(config[key]) > 0), f"its config's {key!r} is not as expected")


def _is_of(kind: object, value: object) -> bool:
    """Whether an option's value is of its kind: a type, a list of a type, or one of several."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(type(item) is kind[0] for item in value)
    if isinstance(kind, tuple):
        return type(value) in kind or value in kind
    return type(value) is kind


def check_tensor(name: str, tensor: object) -> None:
    require(isinstance(tensor, Tensor) and tensor.layout == torch.strided, f"{name} is not a dense tensor")
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    require(dense, f"{name} is not a dense tensor")
    require(bool(torch.isfinite(tensor).all()), f"{name} has values that are not finite")


def require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)
