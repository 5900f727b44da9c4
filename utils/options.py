"""Command lines: a parser whose complaints are one line, and checked types of number."""

import argparse
import math
from collections.abc import Callable

from utils.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default, and leaves the examples at the end of the page as they are."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations of options; raises `UserError` where argparse would print its usage."""

    def __init__(self, **arguments):
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **arguments)

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
            if value is not None:
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

    return convert
