"""Checkpoints: what an `epoch_NN.pth` holds, and how it is written, found, checked and read.

It is a dict of plain values and tensors, which `torch.load(..., weights_only=True)` reads without running code:

    format      6
    epoch       the epoch after which it was saved, from 1
    model       the state dict of the network
    optimizer   its state dict; resuming takes the momentum from it, the rest follows from the options
    scheduler   its state dict; resuming makes another, and moves it to this epoch
    history     a list of rows, see utils/history.py
    config      the fields of `Config`

A file of weights alone, as in models/, has `format`, `model` and `config`. Every later version reads what was written
once: a field that was added to `Config` since takes the default below, an option that on the command line. So give each
the default that changes nothing.
"""

import contextlib
import hashlib
import io
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils.errors import UserError, first_line
from utils.files import epoch_path, saved_epochs, write_file
from utils.history import DISK_ADVICE, NOT_OURS, check_csv, check_rows, write_csv

FORMAT = 6  # of what is written, and the oldest that is read
WEIGHTS_KEYS = {"format": int, "model": dict, "config": dict}
KEYS = WEIGHTS_KEYS | {"epoch": int, "optimizer": dict, "scheduler": dict, "history": list}
ADVICE = "test another epoch, or move it away to resume from an earlier one"
STATISTICS = "running_mean", "running_var", "num_batches_tracked"  # of batch norms: no parameters


@dataclass(frozen=True)
class Config:
    """What, besides the weights, rebuilds and tests the network, and repeats the run."""

    options: dict  # the recipe, without the network's options
    network: dict  # the arguments of ResidualCNN
    mean: list[float]  # of each channel of the training images, on a scale from 0 to 1
    std: list[float]
    teacher: str | None  # the fingerprint of the network whose logits were learned, too
    changed: str = ""  # the options that differ from the defaults, as on a command line; to be shown, never read

    def __post_init__(self):
        for name, value in self.recipe.items():
            values = value if isinstance(value, list) else [value]
            plain = all(each is None or isinstance(each, (int, float, str)) for each in values)
            finite = all(math.isfinite(each) for each in values if isinstance(each, float))
            named = isinstance(name, str) and name.isidentifier()
            _require(named and plain and finite, f"its option {name!r} is not a plain value")
        _require(self.options.get("data") in ("cifar10", "synthetic"), "its option 'data' is missing or unknown")
        for name in "epochs", "seed":
            _require(type(self.options.get(name)) is int, f"its option {name!r} is missing or no number")
        for values, low in (self.mean, 0), (self.std, 1e-9):
            numbers = isinstance(values, list) and all(type(value) is float and low <= value <= 1 for value in values)
            _require(numbers and len(values) == 3, "its mean and std are not those of images")
        teacher = self.teacher
        _require(teacher is None or (isinstance(teacher, str) and len(teacher) == 64), "its teacher is no fingerprint")
        text = isinstance(self.changed, str) and self.changed.isascii() and self.changed.isprintable()
        _require(text and not self.options.keys() & self.network.keys(), "its options are not those of a run")

    @property
    def recipe(self) -> dict:
        """Every option of the recipe, the network's among them."""
        return self.options | self.network


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read from `path` and checked; a file of weights alone has no epoch."""

    path: Path
    model: dict[str, Tensor]
    config: Config
    epoch: int = 0
    history: Sequence[dict] = ()
    optimizer: dict | None = None
    scheduler: dict | None = None

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(tensor.numel() for name, tensor in self.model.items() if not name.endswith(STATISTICS))

    @property
    def fingerprint(self) -> str:
        """Tells the weights of one network from those of another, in whichever file they are."""
        return hashlib.sha256(b"".join(self.model[name].numpy().tobytes() for name in sorted(self.model))).hexdigest()

    def check_images(self, mean: list[float], std: list[float], advice: str) -> None:
        """Raise `UserError` with `advice` unless the network was trained on images of this mean and deviation."""
        if math.dist((*self.config.mean, *self.config.std), (*mean, *std)) > 1e-5:  # devices round differently
            raise UserError(f"{self.path} was trained on other images; {advice}")

    def check_teacher(self, path: Path | None, fingerprint: str | None) -> None:
        """Raise `UserError` unless the teacher in `path`, of this fingerprint, is the one that the run began with."""
        if fingerprint and self.config.teacher is None:
            advice = "leave out --teacher, or name another --checkpoint-dir"
            raise UserError(f"{self.path} was trained without a teacher; {advice}")
        if fingerprint != self.config.teacher:
            which = f"another teacher than {path}" if path else "a teacher"
            raise UserError(f"{self.path} was trained with {which}; give that one with --teacher")

    def build_network(self, network_class: Callable[..., nn.Module], advice: str = ADVICE) -> nn.Module:
        """The network that it describes, with its weights, on the CPU."""
        with errors_name_file(self.path, advice):
            with torch.device("meta"):  # no memory is spent on what a damaged description may ask for
                network = network_class(**self.config.network)
            described = {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}
            found = {name: (tensor.shape, tensor.dtype) for name, tensor in self.model.items()}
            _require(found == described, "its weights are those of another network than it describes")
            network.load_state_dict(self.model, assign=True)
        return network

    def restore_training(self, optimizer: Optimizer, scheduler: LRScheduler, steps_per_epoch: int) -> None:
        """Give a fresh optimiser its momentum; `scheduler` is at this epoch. All else follows from the options."""
        (group,) = optimizer.param_groups
        with errors_name_file(self.path):
            at_this_epoch = scheduler.last_epoch, self.epoch * steps_per_epoch  # earlier versions counted steps
            _require(self.scheduler.get("last_epoch") in at_this_epoch, "its scheduler is at another step")
            for number, parameter in enumerate(group["params"] if group["momentum"] else ()):
                buffer = self.optimizer["state"].get(number, {}).get("momentum_buffer")
                fits = isinstance(buffer, Tensor) and (buffer.shape, buffer.dtype) == (parameter.shape, parameter.dtype)
                _require(fits, "its optimizer does not have the momentum of these weights")
                _check_tensor("its momentum", buffer)
                # In the parameter's own memory format, without which a fused SGD would mix up its elements.
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)


def save(
    folder: Path, network: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, history: list[dict], config: Config
) -> None:
    """Write the checkpoint of the newest epoch in `history`, and history.csv beside it."""
    checkpoint = {
        "format": FORMAT,
        "epoch": len(history),
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": history,
        "config": asdict(config),
    }
    _write(epoch_path(folder, len(history)), checkpoint)
    write_csv(folder, history)


def save_weights(path: Path, checkpoint: Checkpoint) -> None:
    """Write what classifying needs, without the state of training."""
    _write(path, {"format": FORMAT, "model": checkpoint.model, "config": asdict(checkpoint.config)})


def _write(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getbuffer(), DISK_ADVICE)


def load(path: Path, advice: str = ADVICE, weights_alone: bool = False) -> Checkpoint:
    """The checkpoint in `path`, checked without the network; `weights_alone`: a file without the rest will do."""
    with errors_name_file(path, advice):
        data = path.read_bytes()
        _require(zipfile.is_zipfile(io.BytesIO(data)), "it is damaged, cut short or something else")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # for what torch does not check: size unpacked, check sums
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            _require(stored, "it is a compressed archive")
            _require(archive.testzip() is None, "it is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on strange files, which end as errors below
            try:
                content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # runs no code
            except pickle.UnpicklingError as error:  # whose text advises to run what is in the file
                raise ValueError("it holds more than tensors and plain values") from error
        _require(isinstance(content, dict), "it does not hold a dict")
        found = content.get("format")
        if type(found) is int:  # before the rest, which may not be there in another format
            _require(found <= FORMAT, f"it is of format {found}, newer than this program, which reads {FORMAT}")
            _require(found == FORMAT, f"it is of format {found}, of an older program; this one reads {FORMAT}")
        for key, kind in (WEIGHTS_KEYS if weights_alone else KEYS).items():
            _require(isinstance(content.get(key), kind), f"its {key!r} is missing or not a {kind.__name__}")
        model, config = content["model"], Config(**content["config"])
        for name, tensor in model.items():
            _require(isinstance(name, str) and isinstance(tensor, Tensor), "its model is not a state dict")
            _require(tensor.untyped_storage().nbytes() <= len(data), f"model's {name!r} is larger than the file")
            _check_tensor(f"model's {name!r}", tensor)
        if weights_alone:
            return Checkpoint(path, model, config)
        epoch, history = content["epoch"], check_rows(content["history"])
        _require(epoch >= 1 and len(history) == epoch, "its history does not have one row per epoch")
        _require(path.name == epoch_path(path.parent, epoch).name, "its name is that of another epoch")
        return Checkpoint(path, model, config, epoch, history, content["optimizer"], content["scheduler"])


def load_newest(folder: Path) -> Checkpoint | None:
    """The checkpoint of the newest epoch in `folder`, None where there is none; one that is bad is not passed over."""
    usable, problem = None, ""
    for epoch in reversed(saved_epochs(folder)):
        try:
            usable = load(epoch_path(folder, epoch), advice="")
            break
        except UserError as error:
            problem = problem or str(error)  # of the newest
    if problem:
        no_other = "no other epoch is usable, start anew in another --checkpoint-dir"
        raise UserError(problem + (f"move it away to go on from {usable.path}" if usable else no_other))
    return usable


def starting_point(folder: Path, resume: bool, overwrite: bool) -> Checkpoint | None:
    """The checkpoint that a run in `folder` goes on from; None: it starts from scratch."""
    epochs, table = saved_epochs(folder), folder / "history.csv"
    check_csv(table)
    if not resume:
        for epoch in epochs:
            load(epoch_path(folder, epoch), NOT_OURS)
    if overwrite:
        return None
    if table.exists() and not epochs:
        raise UserError(f"{table} is there without its epochs; move it away, or use --overwrite")
    if epochs and not resume:
        advice = "go on with --resume, remove it with --overwrite, or name another --checkpoint-dir"
        raise UserError(f"{folder} holds a run; {advice}")
    saved = load_newest(folder)
    if saved:
        write_csv(folder, saved.history)  # a kill may have come between checkpoint and history.csv
    return saved


def _check_tensor(name: str, tensor: Tensor) -> None:
    dense = tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
    _require(dense, f"{name} is not a dense tensor")
    _require(bool(torch.isfinite(tensor).all()), f"{name} has values that are not finite")


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


@contextlib.contextmanager
def errors_name_file(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """What fails in this block is the fault of the checkpoint in `path`; `advice` says what to do about it."""
    try:
        yield
    except torch.OutOfMemoryError:  # of a GPU: not the fault of the file
        raise
    except Exception as error:  # a file from anywhere can fail in any way
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} is not a usable checkpoint: {reason}; {advice}") from error
