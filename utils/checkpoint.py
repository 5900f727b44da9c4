"""Checkpoints on disk: how they are written, found and read. utils/contents.py says what is in one."""

import contextlib
import csv
import io
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout  # torch depends on it
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.contents import KEYS, WEIGHTS_KEYS, check_archive, check_contents, check_tensor, require
from utils.errors import UserError, first_line
from utils.files import PARTIAL, write_file
from utils.history import COLUMNS

DISK_ADVICE = "other files are untouched; fix that, then go on with --resume"
ADVICE = "test another epoch, or move it away to resume from an earlier one"
STATISTICS = "running_mean", "running_var", "num_batches_tracked"  # of batch norms: no parameters


def path_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch_{epoch:02d}.pth"


def saved_epochs(folder: Path) -> list[int]:
    """The epochs whose checkpoints are in `folder`, ascending; none if there is no such folder."""
    try:
        names = os.listdir(folder)  # unlike Path.glob, which takes a folder that may not be read for an empty one
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = {int(match[1]) for name in names if (match := re.fullmatch(r"epoch_(\d+)\.pth", name))}
    return sorted(epoch for epoch in numbers if path_of(folder, epoch).exists())


def claimed(folder: Path) -> contextlib.AbstractContextManager:
    """Make `folder` if need be and hold it for this run alone. A run that was killed leaves no claim behind.

    Raises:
        UserError: if another run holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another run is writing to {folder}; wait for it, or name another --checkpoint-dir") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; name another --checkpoint-dir") from error


def check_newest(folder: Path, saved: dict | None) -> None:
    """Make sure that `saved` is still the newest checkpoint in `folder`, or that there still is none.

    Raises:
        UserError: if another run has come between.
    """
    if max(saved_epochs(folder), default=None) != (saved and saved["epoch"]):
        raise UserError(f"another run has just written to {folder}; start again")


def clear_partial(folder: Path) -> None:
    """Remove what a save that was cut off has left in `folder`."""
    for path in folder.glob("*" + PARTIAL):
        if re.fullmatch(r"(epoch_\d+\.pth|history\.csv)(\.\d+)?", path.stem):
            path.unlink()


def clear(folder: Path) -> None:
    """Remove a run from `folder`: its checkpoints, its history and leftovers; nothing else."""
    clear_partial(folder)
    for epoch in saved_epochs(folder):
        path_of(folder, epoch).unlink()
    (folder / "history.csv").unlink(missing_ok=True)


def save(folder: Path, checkpoint: dict) -> None:
    """Write the checkpoint of an epoch, and history.csv beside it.

    Under its final name a file is there whole or not at all, whenever the process or the machine stops.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    _write(path_of(folder, checkpoint["epoch"]), checkpoint)
    save_history(folder, checkpoint["history"])


def save_weights(path: Path, checkpoint: dict) -> None:
    """Write what classifying needs, without the state of training. Raises as `save` does."""
    _write(path, {key: checkpoint[key] for key in WEIGHTS_KEYS})


def _write(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getbuffer(), DISK_ADVICE)


def save_history(folder: Path, history: list[dict]) -> None:
    """Write history.csv, unless it is there already with these rows. Raises as `save` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    table, path = text.getvalue().encode(), folder / "history.csv"
    if not path.exists() or path.read_bytes() != table:
        write_file(path, table, DISK_ADVICE)


@contextlib.contextmanager
def usable(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """What fails in this block is the fault of the checkpoint in `path`; `advice` says what to do about it.

    Raises:
        UserError: in place of what the block raises.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # of a GPU: not the fault of the file
        raise
    except Exception as error:  # a file from anywhere can fail in any way
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} is not a usable checkpoint: {reason}; {advice}") from error


def load(path: Path, keys: dict[str, type] = KEYS, advice: str = ADVICE) -> dict:
    """The checkpoint in `path`, checked in every part that can be checked without the network. Runs no code from it.

    `keys` are those it must have: `WEIGHTS_KEYS` for what `save_weights` has written.

    Raises:
        UserError: if there is none, or it is damaged, of a newer format or not one of ours.
    """
    with usable(path, advice):
        data = path.read_bytes()
        check_archive(data)
        with warnings.catch_warnings(action="ignore"):  # remarks on strange files, which end as errors below
            try:
                checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:  # whose text advises to run what is in the file
                raise ValueError("it holds more than tensors and plain values") from error
        check_contents(checkpoint, keys, len(data))
        if "epoch" in keys:
            require(path.name == path_of(path.parent, checkpoint["epoch"]).name, "its name is that of another epoch")
    return checkpoint


def load_newest(folder: Path) -> dict | None:
    """The checkpoint of the newest epoch in `folder`, None where there is none.

    Raises:
        UserError: if it is not usable; the line names the newest epoch that is.
    """
    paths = [path_of(folder, epoch) for epoch in reversed(saved_epochs(folder))]
    if not paths:
        return None
    try:
        return load(paths[0])
    except UserError:
        advice = "no other epoch is usable, start anew in another --checkpoint-dir"
        for path in paths[1:]:
            with contextlib.suppress(UserError):
                load(path)
                advice = f"move it away to go on from {path}"
                break
        return load(paths[0], advice=advice)  # to fail again, with that


def rebuild_network(
    path: Path, checkpoint: dict, network_class: Callable[..., nn.Module], advice: str = ADVICE
) -> nn.Module:
    """The network that the checkpoint from `path` describes, with its weights, on the CPU.

    Raises:
        UserError: if description and weights do not belong together.
    """
    arguments, weights = checkpoint["config"]["network"], checkpoint["model"]
    with usable(path, advice):
        require(sum(arguments["blocks"]) <= len(weights), "its weights are those of another network than it describes")
        with torch.device("meta"):  # no memory is spent on what a damaged description may ask for
            network = network_class(**arguments)
        expected, found = (
            {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
            for state in (network.state_dict(), weights)
        )
        require(found == expected, "its weights are those of another network than it describes")
        network.load_state_dict(weights, assign=True)
    return network


def check_images(path: Path, checkpoint: dict, mean: list[float], std: list[float], advice: str) -> None:
    """Make sure that the network in the checkpoint from `path` was trained on images of this `mean` and `std`.

    Raises:
        UserError: if it was not; `advice` says what to do about it.
    """
    config = checkpoint["config"]
    if not np.allclose((config["mean"], config["std"]), (mean, std), atol=1e-6):  # devices round differently
        raise UserError(f"{path} was trained on other images; {advice}")


def trainable_parameters(checkpoint: dict) -> int:
    """Number of trainable parameters of the network in a checkpoint."""
    return sum(tensor.numel() for name, tensor in checkpoint["model"].items() if not name.endswith(STATISTICS))


def restore_training(path: Path, checkpoint: dict, optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> None:
    """Put fresh optimizer and scheduler into the state they had when the checkpoint from `path` was saved.

    All of it but the momentum follows from the options and the number of `steps`, so that no file can forge it.

    Raises:
        UserError: if the checkpoint is of another step, or without the momentum of these weights.
    """
    with warnings.catch_warnings(action="ignore"):  # it misses the steps of the optimizer
        for _ in range(steps):
            scheduler.step()
    (group,) = optimizer.param_groups
    with usable(path):
        require(checkpoint["scheduler"].get("last_epoch") == steps, "its scheduler is at another step")
        saved = checkpoint["optimizer"]["state"]
        for number, parameter in enumerate(group["params"] if group["momentum"] else ()):
            buffer = saved.get(number, {}).get("momentum_buffer")
            fits = isinstance(buffer, Tensor) and (buffer.shape, buffer.dtype) == (parameter.shape, parameter.dtype)
            require(fits, "its optimizer does not have the momentum of these weights")
            check_tensor("its momentum", buffer)
            # In the parameter's own memory format, without which a fused SGD would mix up its elements.
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
