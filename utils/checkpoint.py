"""Checkpoints: the only place that knows what an `epoch_NN.pth` holds, how it is written and how it is read.

A checkpoint is a dict of plain Python values and tensors, so that `torch.load(..., weights_only=True)`, which runs no
code from the file, reads it:

    format      2
    epoch       the epoch after which it was saved, from 1
    model       the state dict of the plain network
    optimizer   its state dict
    scheduler   its state dict
    history     a list of rows, see utils/history.py
    config      {"options": the recipe, "network": the arguments of ResidualCNN, "mean" and "std" of the images}

A file of weights to take away, as in models/, has `format`, `model` and `config` alone.
"""

import contextlib
import csv
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout  # torch depends on it
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, first_line
from utils.history import COLUMNS

FORMAT = 2
WEIGHTS = {"format": int, "model": dict, "config": dict}
KEYS = WEIGHTS | {"epoch": int, "optimizer": dict, "scheduler": dict, "history": list}
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
    "seed": int,
    "data": ("cifar10", "synthetic"),
    "subset": (int, None),
    "max_parameters": int,
    "compile": ("on", "off"),
}
NETWORK = {"widths": [int], "blocks": [int], "se_reduction": int, "dropout": float}  # the arguments of ResidualCNN
PROGRESS = dict.fromkeys(("last_epoch", "_step_count", "_last_lr"))  # what changes in a scheduler as a run goes on
PARTIAL = ".partial"  # the ending of a file that is still being written
ADVICE = "test another epoch, or move it away to resume from an earlier one"


def path_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:02d}.pth"


def saved_epochs(folder: Path) -> list[int]:
    """The epochs whose checkpoints are in `folder`, ascending; none if there is no such folder."""
    matches = (re.fullmatch(r"epoch_(\d+)", path.stem) for path in folder.glob("epoch_*.pth"))
    numbers = (int(match[1]) for match in matches if match)
    return sorted(number for number in numbers if path_of(folder, number).exists())


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make `folder` if need be and hold it for this run alone. A run that was killed leaves no claim behind.

    Raises:
        UserError: if another run holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another run is writing to {folder}; wait for it, or name another --checkpoint-dir") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another --checkpoint-dir") from error
    try:
        yield
    finally:
        lock.release()


def clear_leftovers(folder: Path) -> None:
    """Remove what a save that was cut off has left in `folder`."""
    for pattern in ("epoch_*.pth", "history.csv"):
        for path in folder.glob(pattern + PARTIAL):
            path.unlink()


def clear(folder: Path) -> None:
    """Remove a run from `folder`: its checkpoints, its history and leftovers; nothing else."""
    clear_leftovers(folder)
    for epoch in saved_epochs(folder):
        path_of(folder, epoch).unlink()
    (folder / "history.csv").unlink(missing_ok=True)


def save(folder: Path, checkpoint: dict) -> None:
    """Write the checkpoint of an epoch, and history.csv beside it.

    Under its final name a file is there whole or not at all, whenever the process or the machine stops.

    Raises:
        UserError: if the disk is full or the folder is not to be written.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    _write(path_of(folder, checkpoint["epoch"]), buffer.getbuffer())
    save_history(folder, checkpoint["history"])


def save_history(folder: Path, history: list[dict]) -> None:
    """Write history.csv, unless it is there already with these rows. Raises as `save` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    table, path = text.getvalue().encode(), folder / "history.csv"
    if not path.exists() or path.read_bytes() != table:
        _write(path, table)


def _write(path: Path, data: bytes | memoryview) -> None:
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; earlier epochs are untouched, mend that and go on with --resume"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut; a folder is no file to be flushed on Windows."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> dict:
    """The checkpoint in `path`, checked in every part that can be checked without the network. Runs no code from it.

    Raises:
        UserError: if there is none, or it is damaged, of a newer format or not one of ours.
    """
    try:
        return _read(path)
    except ValueError as error:
        raise UserError(f"{path} is no usable checkpoint: {error}; {ADVICE}") from error


def save_weights(path: Path, checkpoint: dict) -> None:
    """Write what classifies, without what only training needs. Raises as `save` does."""
    buffer = io.BytesIO()
    torch.save({key: checkpoint[key] for key in WEIGHTS}, buffer)
    _write(path, buffer.getbuffer())


def load_weights(path: Path) -> dict:
    """What `save_weights` has written to `path`, checked as `load` does.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    try:
        return _read(path, WEIGHTS)
    except ValueError as error:
        raise UserError(f"{path} holds no usable weights: {error}; get it again from the repository") from error


def load_newest(folder: Path) -> dict | None:
    """The checkpoint of the newest epoch in `folder`, None where there is none.

    Raises:
        UserError: if it is not usable; the line names the newest epoch that is.
    """
    epochs = saved_epochs(folder)
    if not epochs:
        return None
    newest = path_of(folder, epochs[-1])
    try:
        return _read(newest)
    except ValueError as error:
        good = next((path_of(folder, epoch) for epoch in reversed(epochs[:-1]) if _usable(folder, epoch)), None)
        advice = (
            f"move it away to go on from {good}" if good else "no other epoch is usable, start anew with --overwrite"
        )
        raise UserError(f"{newest} is no usable checkpoint: {error}; {advice}") from error


def _usable(folder: Path, epoch: int) -> bool:
    try:
        return bool(_read(path_of(folder, epoch)))
    except ValueError:
        return False


def _read(path: Path, keys: dict[str, type] = KEYS) -> dict:
    """The checkpoint in `path`, with `keys` in it; a `ValueError` says in a line what is wrong with it."""
    try:
        data = path.read_bytes()
        _check_archive(data)
        with warnings.catch_warnings(action="ignore"):  # remarks on strange files, which end as errors below
            checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        _check_contents(checkpoint, keys)
        if "epoch" in keys:
            _require(path.name == path_of(path.parent, checkpoint["epoch"]).name, "its name is that of another epoch")
            _check_history(checkpoint["history"], checkpoint["epoch"])
    except OSError as error:
        raise ValueError(error.strerror) from error
    except Exception as error:  # a file from anywhere can fail in any way
        raise ValueError(first_line(error)) from error
    return checkpoint


def rebuild_network(path: Path, checkpoint: dict, network_class: Callable[..., nn.Module]) -> nn.Module:
    """The network that the checkpoint from `path` describes, with its weights, on the CPU.

    Raises:
        UserError: if description and weights do not belong together.
    """
    arguments, weights = checkpoint["config"]["network"], checkpoint["model"]
    try:
        _require(sum(arguments["blocks"]) <= len(weights), "its weights are those of another network than it describes")
        with torch.device("meta"):  # no memory is spent on what a damaged description may ask for
            network = network_class(**arguments)
        expected, found = (
            {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
            for state in (network.state_dict(), weights)
        )
        _require(found == expected, "its weights are those of another network than it describes")
        network.load_state_dict(weights, assign=True)
    except Exception as error:  # the arguments are from a file, too
        raise UserError(f"{path} is no usable checkpoint: {first_line(error)}; {ADVICE}") from error
    return network


def trainable_parameters(checkpoint: dict) -> int:
    """Number of trainable parameters of the network in a checkpoint: all but the statistics of its batch norms."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(tensor.numel() for name, tensor in checkpoint["model"].items() if not name.endswith(statistics))


def restore_training(path: Path, checkpoint: dict, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Put optimizer and scheduler into the state they had when the checkpoint from `path` was saved.

    Raises:
        UserError: if that is not a state of theirs.
    """
    try:
        schedule, fresh = checkpoint["scheduler"], scheduler.state_dict()
        _require(_alike(schedule, fresh) and schedule | PROGRESS == fresh | PROGRESS, "its scheduler is another one")
        (group,), (fresh_group,) = checkpoint["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"]
        same = _alike(group, fresh_group) and group | {"lr": 0} == fresh_group | {"lr": 0}
        _require(same, "its optimizer is another one")
        scheduler.load_state_dict(schedule)
        optimizer.load_state_dict(checkpoint["optimizer"])
        for parameter, state in optimizer.state.items():
            for name, tensor in state.items():
                _check_tensor(f"optimizer's {name!r}", tensor)
                _require(tensor.shape == parameter.shape, f"optimizer's {name!r} is of another shape")
    except Exception as error:
        raise UserError(f"{path} is no usable checkpoint: {first_line(error)}; {ADVICE}") from error


def _alike(found: object, expected: object) -> bool:
    """Whether two nested values differ in nothing but their numbers."""
    if isinstance(expected, dict):
        same_keys = isinstance(found, dict) and found.keys() == expected.keys()
        return same_keys and all(_alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_alike, found, expected))
    return type(found) is type(expected)


def _check_archive(data: bytes) -> None:
    """Compare the check sums in the file, which `torch.load` does not; refuse what would be larger unpacked."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is a compressed archive")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")


def _check_contents(checkpoint: dict, keys: dict[str, type]) -> None:
    _require(isinstance(checkpoint, dict), "it holds no dict")
    if isinstance(checkpoint.get("format"), int) and checkpoint["format"] > FORMAT:
        raise ValueError(f"it is of format {checkpoint['format']}, newer than this program, which reads {FORMAT}")
    for key, kind in keys.items():
        _require(isinstance(checkpoint.get(key), kind), f"its {key!r} is missing or no {kind.__name__}")
    _require(checkpoint["format"] == FORMAT, f"it is of format {checkpoint['format']}")
    _check_config(checkpoint["config"])
    for name, tensor in checkpoint["model"].items():
        _check_tensor(f"model's {name!r}", tensor)


def _check_history(history: list, epoch: int) -> None:
    _require(epoch >= 1 and len(history) == epoch, "its history has not a row for each epoch")
    for number, row in enumerate(history, start=1):
        good = isinstance(row, dict) and row.keys() == COLUMNS.keys() and row["epoch"] == number
        good = good and all(type(row[key]) is kind and 0 <= row[key] < float("inf") for key, kind in COLUMNS.items())
        _require(good, f"row {number} of its history is not as expected")


def _check_config(config: dict) -> None:
    kinds = {"options": dict, "network": dict, "mean": list, "std": list}
    for key, kind in kinds.items():
        _require(isinstance(config.get(key), kind), f"its config's {key!r} is missing or no {kind.__name__}")
    for part, options in (("options", OPTIONS), ("network", NETWORK)):
        good = config[part].keys() == options.keys()
        good = good and all(_is_of(kind, config[part][name]) for name, kind in options.items())
        _require(good, f"its config's {part!r} are not those of a run")
    for key in ("mean", "std"):
        good = len(config[key]) == 3 and all(type(value) is float and 0 <= value <= 1 for value in config[key])
        _require(good and (key == "mean" or min(config[key]) > 0), f"its config's {key!r} is not as expected")


def _is_of(kind: object, value: object) -> bool:
    """Whether an option's value is of its kind: a type, a list of a type, or one of several."""
    if isinstance(kind, list):
        return isinstance(value, list) and all(type(item) is kind[0] for item in value)
    if isinstance(kind, tuple):
        return type(value) in kind or value in kind
    return type(value) is kind


def _check_tensor(name: str, tensor: object) -> None:
    _require(isinstance(tensor, Tensor) and tensor.layout == torch.strided, f"{name} is no dense tensor")
    dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    _require(dense, f"{name} is no dense tensor")
    elements_in_file = tensor.untyped_storage().nbytes() // tensor.element_size()
    _require(tensor.numel() <= elements_in_file, f"{name} is larger than the file")
    _require(bool(torch.isfinite(tensor).all()), f"{name} has values that are not finite")


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)
