"""Command lines: a parser whose complaints are one line, and checked types of number."""

import argparse
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from utils.errors import UserError

CHECKPOINT_DIR, DATA_DIR = Path("checkpoints"), Path("data")  # where the programs look, unless told otherwise


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows every default that is a value, and leaves the examples at the end of the page as they are."""

    def _get_help_string(self, action: argparse.Action) -> str:  # as argparse.ArgumentDefaultsHelpFormatter does
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{action.help} (default: {default})".replace("%", "%%")

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "metavar", super()._get_default_metavar_for_optional(action))


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations of options; raises `UserError` where argparse would print its usage."""

    def __init__(self, docstring: str | None, prog: str | None = None):
        """A page of help from a module's docstring: what it does, a blank line, and example commands."""
        lines = (docstring or "").splitlines()  # there is none under `python -OO`
        description, *examples = [line.strip() for line in lines if line] or [None]
        epilog = "\n  ".join(["examples:", *examples]) if examples else None
        super().__init__(
            prog, "%(prog)s [options]", description, epilog, formatter_class=HelpFormatter, allow_abbrev=False
        )

    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def arguments_of(values: dict) -> list[str]:
    """The command line that gives options these values; None and False: not given."""
    arguments = []
    for name, value in values.items():
        if value is not None and value is not False:
            texts = [] if value is True else map(str, value if isinstance(value, list) else [value])
            arguments += ["--" + name.replace("_", "-"), *texts]
    return arguments


def check_together(options: argparse.Namespace, device: str, processes: int) -> None:
    """Refuse options of train.py that conflict with each other, the kind of device or the number of processes.

    Raises:
        UserError: if there are any.
    """
    if options.sync_bn and device != "cuda":
        raise UserError("--sync-bn: torch has it on CUDA GPUs alone; leave it out")
    if options.nesterov and options.momentum == 0:
        raise UserError("--nesterov: there is no momentum to correct; give a --momentum above 0, or leave it out")
    if options.overwrite and options.teacher:
        # Not by Path.resolve(), which may raise RuntimeError for a link that leads to itself.
        teacher, folder = map(os.path.realpath, (options.teacher, options.checkpoint_dir))
        if os.path.dirname(teacher) == folder:
            raise UserError(
                f"--teacher: it lies in {options.checkpoint_dir}, which is to be overwritten; name another "
                "--checkpoint-dir"
            )
    if options.batch_size < processes:
        raise UserError(f"--batch-size: {options.batch_size} for {processes} processes; give each an image at least")


def number(kind: type, low: float, high: float = 2**31 - 1, open_low: bool = False) -> Callable[[str], float]:
    """An argparse type: a number of this `kind`, int or float, from `low` (above it if `open_low`) to `high`."""
    bounds = f"above {low} and at most {high}" if open_low else f"from {low} to {high}"

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (open_low and value == low):  # so it is with "nan", too
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number {bounds}")
        return value

    convert.metavar = "N" if kind is int else "X"
    return convert


integer, real = partial(number, int), partial(number, float)


def location(text: str) -> Path:
    """An argparse type: a file or folder. Shells leave the `~` in `--data-dir=~/data` to the program."""
    return Path(os.path.expanduser(text))


def png(text: str) -> Path:
    """An argparse type: the name of a picture, so that none is drawn over a checkpoint, say."""
    if location(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return location(text)


location.metavar = png.metavar = "PATH"
