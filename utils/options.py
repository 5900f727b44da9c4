"""Command lines: a parser whose complaints are one line, types of option, and the options of a run, decided once."""

import argparse
import math
import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from utils.accelerate import choose_compile, choose_precision
from utils.checkpoint import Checkpoint, errors_name_file
from utils.errors import UserError
from utils.runtime import Runtime

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
    """argparse without abbreviations of options; raises `UserError` where argparse would print its usage.

    Attributes:
        recipe: a parser of the options that a checkpoint keeps, which are options of this one as well; or None.
    """

    def __init__(self, docstring: str | None, prog: str | None = None, recipe: "Parser | None" = None):
        """A page of help from a module's docstring: what it does, a blank line, and example commands."""
        lines = (docstring or "").splitlines()  # there is none under `python -OO`
        description, *examples = [line.strip() for line in lines if line] or [None]
        super().__init__(
            prog,
            "%(prog)s [options]",
            description,
            epilog="\n  ".join(["examples:", *examples]) if examples else None,
            parents=[recipe] if recipe else [],
            formatter_class=HelpFormatter,
            add_help=docstring is not None,
            allow_abbrev=False,
        )
        self.recipe = recipe

    def error(self, message: str):
        raise UserError(f"{message}; see --help")

    @property
    def recipe_names(self) -> list[str]:
        """The names of the options that a checkpoint keeps."""
        return list(vars(self.recipe.parse_args([])))

    def changed(self, options: argparse.Namespace, names: list[str]) -> str:
        """Those of the options that differ from their defaults, as on a command line; not what "auto" became."""
        values = {name: getattr(options, name) for name in names}
        return shlex.join(
            words_of({name: value for name, value in values.items() if self.get_default(name) not in (value, "auto")})
        )


class Options(argparse.Namespace):
    """The options of a run, decided: nothing changes them afterwards."""

    def __init__(self, values: dict):
        vars(self).update(values)

    def __setattr__(self, name: str, value: object):
        raise AttributeError(f"the options of a run are decided; {name!r} cannot change")


def decide(
    parser: Parser, argv: list[str], saved: Checkpoint | None, runtime: Runtime, images: dict[str, int]
) -> Options:
    """The options of a run: those of the checkpoint it goes on from, then the command line's; each "auto" is decided.

    `images`: how many training images each choice of --data has.
    """
    given = parser.parse_args(argv)
    recipe = {}
    if saved:
        recipe = _check_recipe(parser, saved)
        given = parser.parse_args([*words_of(recipe), *argv])
        for name, before in recipe.items():
            if getattr(given, name) == "auto":  # decided when the run began
                setattr(given, name, before)
            elif getattr(given, name) != before:
                _check_difference(saved, recipe, name, getattr(given, name))
    given.precision = choose_precision(given.precision, runtime.device)
    per_epoch = min(images[given.data], given.subset or images[given.data])
    given.compile = choose_compile(given.compile, given.epochs * per_epoch, runtime.device)
    _check_together(given, runtime)
    return Options(vars(given))


def _check_recipe(parser: Parser, saved: Checkpoint) -> dict:
    """The options that a checkpoint keeps, after the checks of a command line; those it lacks have their defaults."""
    with errors_name_file(saved.path):
        recipe = vars(parser.recipe.parse_args(words_of(saved.config.recipe)))
        for name, value in saved.config.recipe.items():
            if name not in recipe or recipe[name] != value:
                raise ValueError(f"its option --{name.replace('_', '-')} is not one of a run")
    return recipe


def _check_difference(saved: Checkpoint, recipe: dict, name: str, value: object) -> None:
    """Refuse another value than the checkpoint's, but for what a resumed run may change."""
    longer = name == "epochs" and value > recipe[name]
    if (longer and recipe["schedule"] == "step") or (name, value) == ("compile", "off"):
        return  # of the steps there can be more; and a compiler may have begun to fail
    option = f"--{name.replace('_', '-')}"
    asked, before = (" ".join(words_of({name: each})) or f"no {option}" for each in (value, recipe[name]))
    fixed = " (this schedule's end is fixed from its start)" if longer else ""
    raise UserError(
        f"{asked} differs from {saved.path}, which has {before}{fixed}; leave it out to resume, or start another run "
        "with another --checkpoint-dir"
    )


def _check_together(options: argparse.Namespace, runtime: Runtime) -> None:
    """Refuse options of train.py that exclude each other, the kind of device or the number of processes."""
    if options.batch_size < runtime.world_size:
        raise UserError(
            f"--batch-size: {options.batch_size} for {runtime.world_size} processes; give each an image at least"
        )
    if options.sync_bn and runtime.device.type != "cuda":
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


def words_of(values: dict) -> list[str]:
    """The command line that gives options these values; None and False: not given."""
    words = []
    for name, value in values.items():
        if value is not None and value is not False:
            texts = [] if value is True else map(str, value if isinstance(value, list) else [value])
            words += ["--" + name.replace("_", "-"), *texts]
    return words


def _number(kind: type, low: float, high: float = 2**31 - 1, open_low: bool = False) -> Callable[[str], float]:
    """An argparse type: a number of this `kind`, int or float, from `low` (above it if `open_low`) to `high`."""
    bounds = f"above {low} and at most {high}" if open_low else f"from {low} to {high}"
    name = "whole number" if kind is int else "number"

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (open_low and value == low):  # so it is with "nan", too
            raise argparse.ArgumentTypeError(f"{text!r} is not a {name} {bounds}")
        return value

    convert.metavar = "N" if kind is int else "X"
    return convert


integer, number = partial(_number, int), partial(_number, float)


def file_path(text: str) -> Path:
    """An argparse type: a file or folder. Shells leave the `~` in `--data-dir=~/data` to the program."""
    return Path(os.path.expanduser(text))


def png_path(text: str) -> Path:
    """An argparse type: the name of a picture, so that none is drawn over a checkpoint, say."""
    if file_path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return file_path(text)


file_path.metavar = png_path.metavar = "PATH"
