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
    """argparse without abbreviations of options; raises `UserError` where argparse would print its usage."""

    def __init__(self, docstring: str | None, prog: str | None = None, recipe: "Parser | None" = None, **options):
        """`docstring`: what the program does, a blank line, examples; `recipe`: parses what a checkpoint keeps."""
        super().__init__(prog, allow_abbrev=False, parents=[recipe] if recipe else [], **options)
        lines = (docstring or "").splitlines()  # there is none under `python -OO`
        self.description, *examples = [line.strip() for line in lines if line] or [None]
        self.epilog = "\n  ".join(["examples:", *examples]) if examples else None
        self.usage, self.formatter_class = "%(prog)s [options]", HelpFormatter
        self.recipe = recipe

    def error(self, message: str):
        raise UserError(f"{message}; see --help")

    @property
    def recipe_names(self) -> list[str]:
        """The names of the options that a checkpoint keeps."""
        return list(vars(self.recipe.parse_args([])))

    def refuse(self, argv: list[str], names: tuple[str, ...], reason: str) -> None:
        """Raise `UserError` if one of these options is on the command line, as it has no effect for this `reason`."""
        given = self.parse_args(argv, argparse.Namespace(**dict.fromkeys(names)))  # which puts no default there
        for name in names:
            if getattr(given, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} has no effect {reason}; leave it out")

    def changed(self, options: argparse.Namespace, names: list[str]) -> str:
        """Those of the options that differ from their defaults, as on a command line; not what "auto" became."""
        values = {name: getattr(options, name) for name in names}
        changed = {name: value for name, value in values.items() if self.get_default(name) not in (value, "auto")}
        return shlex.join(words_of(changed))


class Options(argparse.Namespace):
    """The options of a run, decided: nothing changes them afterwards."""

    def __init__(self, values: dict):
        vars(self).update(values)

    def __setattr__(self, name: str, value: object):
        raise AttributeError(f"the options of a run are decided; {name!r} cannot change")


def decide(parser: Parser, argv: list[str], saved: Checkpoint | None, runtime: Runtime, images: dict) -> Options:
    """The options of a run: the checkpoint's, then the command line's; `images`: how many each choice of --data has."""
    given = _resume(parser, argv, saved) if saved else parser.parse_args(argv)
    given.precision = choose_precision(given.precision, runtime.device)
    per_epoch = min(images[given.data], given.subset or images[given.data])
    given.compile = choose_compile(given.compile, given.epochs * per_epoch, runtime.device)
    _check_together(given, runtime)
    if given.schedule != "step":
        parser.refuse(argv, ("step_size", "gamma"), f"with --schedule {given.schedule}")
    if given.data == "synthetic":
        parser.refuse(argv, ("data_dir",), "with --data synthetic")
    if per_epoch == images[given.data]:
        parser.refuse(argv, ("subset",), f"with {per_epoch:,} training images in all")
    return Options(vars(given))


def _resume(parser: Parser, argv: list[str], saved: Checkpoint) -> argparse.Namespace:
    """The checkpoint's options and the command line's, which may differ in what a resumed run may change alone."""
    with errors_name_file(saved.path):  # a file's options go through the checks of a command line; one may lack some
        recipe = vars(parser.recipe.parse_args(words_of(saved.config.recipe)))
        for name, value in saved.config.recipe.items():
            if name not in recipe or recipe[name] != value:
                raise ValueError(f"its option --{name.replace('_', '-')} is not one of a run")
        if saved.epoch > recipe["epochs"]:
            raise ValueError(f"it is of epoch {saved.epoch} in a run of {recipe['epochs']}")
    given = parser.parse_args([*words_of(recipe), *argv])
    for name, before in recipe.items():
        asked = getattr(given, name)
        longer = name == "epochs" and asked > before
        if asked == "auto":  # decided when the run began
            setattr(given, name, before)
        elif longer and recipe["schedule"] == "step":
            continue  # of the steps there can be more
        elif asked != before and (name, asked) != ("compile", "off"):  # a compiler may have begun to fail
            option = "--" + name.replace("_", "-")
            asked, before = (" ".join(words_of({name: value})) or f"no {option}" for value in (asked, before))
            fixed = " (this schedule's end is fixed from its start)" if longer else ""
            advice = "to resume, leave out what sets it; or start another run with another --checkpoint-dir"
            raise UserError(f"{asked} differs from {saved.path}, which has {before}{fixed}; {advice}")
    return given


def _check_together(options: argparse.Namespace, runtime: Runtime) -> None:
    """Refuse options of train.py that exclude each other, the kind of device or the number of processes."""
    size, processes = options.batch_size, runtime.world_size
    if size < processes:
        raise UserError(f"--batch-size: {size} for {processes} processes; give each an image at least")
    if options.sync_bn and (runtime.device.type != "cuda" or processes == 1):
        raise UserError("--sync-bn: it is for several processes on CUDA GPUs; leave it out")
    if options.nesterov and options.momentum == 0:
        raise UserError("--nesterov: there is no momentum to correct; give a --momentum above 0, or leave it out")
    folder = os.path.realpath(options.checkpoint_dir)  # Path.resolve() may raise RuntimeError: for a link to itself
    if options.overwrite and options.teacher and os.path.dirname(os.path.realpath(options.teacher)) == folder:
        raise UserError(
            f"--teacher: it lies in {options.checkpoint_dir}, which is to be overwritten; name another --checkpoint-dir"
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


def folder_path(text: str) -> Path:
    """An argparse type: a folder, which need not be there."""
    path = file_path(text)
    if path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is a file; name its folder, {str(path.parent)!r}")
    return path


def png_path(text: str) -> Path:
    """An argparse type: the name of a picture, so that none is drawn over a checkpoint, say."""
    if file_path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} is not a name like curve.png")
    return file_path(text)


file_path.metavar = folder_path.metavar = png_path.metavar = "PATH"
