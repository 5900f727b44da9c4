"""What the pictures share: size, colours and type, labels that keep apart, and files that are never half-written."""

import io
import os
from pathlib import Path

from utils.checkpoint import PARTIAL
from utils.errors import UserError

WIDTH, DPI = 8.3, 200  # inches and dots an inch: 1,660 px, twice the width at which README shows a picture
# Blue and orange look different to every kind of colour vision; one is dark and the other is not, for a grey printer.
TRAIN_COLOUR, VALIDATION_COLOUR, QUIET, FAINT = "#D07800", "#00468B", "#666666", "#E4E4E4"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}


def number(value: float) -> str:
    """At most three digits, as a person writes them: 0.3, 12.3, 4,560, 1e8."""
    if 1000 <= value < 99_999:
        return f"{value:,.0f}"
    digits, _, power = f"{value:.3g}".partition("e")
    return f"{digits}e{int(power)}" if power else digits


def measured(value: float) -> str:
    """As `number`, but with the zeros that a measured value has: 0.300."""
    if 0.01 <= value < 1:
        return f"{value:.3f}"
    return f"{value:#.3g}".rstrip(".") if 1 <= value < 999 else number(value)


def spread(texts: list, low: float, high: float) -> None:
    """Push labels of one row apart, from `low` to `high` (pixels), where they would run into each other."""
    for text in texts:
        keep_between(text, low, high)
        low = text.get_window_extent().x1 + 8
    for text in reversed(texts):
        keep_between(text, 0, high)
        high = text.get_window_extent().x0 - 8


def keep_between(text, low: float, high: float) -> None:
    """Move a label sideways, so that it lies between `low` and `high` (pixels) if it can, and above `low` if not."""
    box = text.get_window_extent()
    pixels = max(low - box.x0, min(high - box.x1, 0))
    x, y = text.xyann
    text.xyann = (x + pixels * 72 / text.figure.dpi, y)


def fit_width(text, share: float) -> None:
    """Make the letters of a line smaller, if it would end beyond that share of the figure's width."""
    box, width = text.get_window_extent(), share * text.figure.bbox.width
    text.set_fontsize(text.get_fontsize() * min(1.0, (width - box.x0) / box.width))


def write_figure(figure, path: Path, advice: str) -> None:
    """Write a matplotlib figure as a PNG at its own dpi. Raises as `write_file` does."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_file(path, buffer.getvalue(), advice)


def write_file(path: Path, data: bytes, advice: str) -> None:
    """Write a file, and its folder if there is none, so that whoever looks sees the old one or the new one, whole.

    Raises:
        UserError: if it cannot be written; `advice` says what to do about it.
    """
    target = Path(os.path.realpath(path))  # what a symbolic link points to is written, and the link stays
    partial = target.with_name(f"{target.name}.{os.getpid()}{PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # /dev/null, say, which must not be replaced by a file
            target.write_bytes(data)
            return
        try:
            partial.write_bytes(data)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {advice}") from error
