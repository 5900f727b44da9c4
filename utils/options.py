"""Command lines: a parser whose complaints are one line, and checked types of number."""

import argparse
import math
from collections.abc import Callable
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
        named = "PATH" if action.type is Path else super()._get_default_metavar_for_optional(action)
        return getattr(action.type, "metavar", named)


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

    def parse(self, argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
        """Parse `argv` (None: the command line); return all options, and as a dict those that were given."""
        options = self.parse_args(argv)
        # argparse fills in a default only where the namespace has no value yet, not even None.
        only_given = self.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(options))))
        return options, {name: value for name, value in vars(only_given).items() if value is not None}

    def as_typed(self, values: dict) -> dict:
        """Option values from a file, after the checks that they would pass on the command line; None: not given."""
        arguments = []
        for name, value in values.items():
            if value is True:
                arguments.append("--" + name.replace("_", "-"))
            elif value is not None and value is not False:
                texts = map(str, value if isinstance(value, list) else [value])
                arguments += ["--" + name.replace("_", "-"), *texts]
        options, _ = self.parse(arguments)
        return {name: vars(options)[name] for name in values}


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return number

    convert.metavar = "N"
    return convert


def real(low: float, high: float = math.inf, open_low: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number of at least `low` (above it if `open_low`) and at most `high`."""
    bounds = f"{'above' if open_low else 'of at least'} {low:g}" + (f" and at most {high:g}" if high < math.inf else "")

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number {bounds}")
        return number

    convert.metavar = "X"
    return convert
