"""What the pictures share: size, colours and type, and a heading."""

import importlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.files import write_file

WIDTH, DPI = 8.3, 200  # inches and dots an inch: 1,660 px, twice the width at which README shows a picture
# Blue and orange look different to every kind of colour vision; one is dark and the other is not, for a grey printer.
TRAIN_COLOUR, VALIDATION_COLOUR, QUIET = "#D07800", "#00468B", "#666666"
STYLE = {
    "font.size": 9, "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": QUIET,
    "axes.grid.axis": "y", "grid.color": "#E4E4E4", "axes.axisbelow": True, "axes.xmargin": 0.02, "axes.ymargin": 0.06,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelcolor": "black", "ytick.labelcolor": "black",
}  # fmt: skip


def import_matplotlib() -> None:
    """Import what draws; before long work, since an import that Ctrl-C has cut off cannot be done again."""
    os.environ["MPLBACKEND"] = "agg"  # Jupyter names its own to all programs, which may not be installed here
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells where its cache is if not in $HOME
    for name in ("backends.backend_agg", "figure", "style"):  # half a second, which test.py need not wait for
        importlib.import_module(f"matplotlib.{name}")


@contextmanager
def picture(path: Path, height: float, advice: str) -> Iterator:
    """A matplotlib figure, `height` inches high, to draw into; then it is written to `path`, as by `write_file`."""
    import_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):  # whatever the user's own matplotlibrc says
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        yield figure
        png = io.BytesIO()
        figure.savefig(png, format="png")
    write_file(path, png.getvalue(), advice)


def write_heading(figure, heading: str, note: str, colour: str = "black") -> None:
    """Two lines at the top left: what the picture shows, and quietly what else to know; small type for long ones."""
    line = 15 / 72 / figure.get_figheight()
    heading_size, note_size = min(10, 850 / len(heading)), min(8, 1030 / len(note))
    figure.text(0.015, 1 - line, heading, color=colour, weight="bold", size=heading_size, va="center")
    figure.text(0.015, 1 - 2 * line, note, color=QUIET, size=note_size, va="center")
