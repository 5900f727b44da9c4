"""Draw loss_curve.png, from the history in a folder of checkpoints.

python -m utils.plot                             # the run in checkpoints/
python -m utils.plot --checkpoint-dir other      # another run, its picture beside it
"""

import contextlib
import io
import logging
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils.checkpoint import Config, load_newest
from utils.errors import UserError, printable, run_program
from utils.files import make_folder, no_epoch, write_file
from utils.history import best_row, count_epochs
from utils.options import CHECKPOINT_DIR, Parser, folder_path, png_path

WIDTH, DPI = 8.3, 200  # inches and dots an inch: 1,660 px, twice the width at which README shows a picture
TRAIN_COLOUR, VALIDATION_COLOUR, QUIET = "#D07800", "#00468B", "#666666"  # different to every kind of colour vision
ADVICE = "name another file with --plot"
DRAWING_TIME = 0.02  # of the time of training, at most
LOSSES = (1e-3, 25)  # others leave the picture; pure guessing has 2.3


def import_matplotlib() -> tuple:
    """Import all that draws, in half a second which test.py need not wait; returns style, Figure, FigureCanvasAgg."""
    is_new = "matplotlib" not in sys.modules
    jupyters = os.environ.pop("MPLBACKEND", None)  # it names its backend to all programs, which may not have it
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells where its cache is if not in $HOME
    try:
        from matplotlib import rcParams, style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image

        Image.preinit()  # imports what writes a PNG
        if jupyters and is_new:
            with contextlib.suppress(ValueError):  # there is no such backend here
                rcParams["backend"] = jupyters
    finally:
        logger.setLevel(level)
        if jupyters:
            os.environ["MPLBACKEND"] = jupyters
    return style, Figure, FigureCanvasAgg


@contextlib.contextmanager
def picture(path: Path, height: float, advice: str) -> Iterator:
    """A matplotlib figure, `height` inches high, to draw into; then it is written to `path`, as by `write_file`."""
    style, figure_class, canvas_class = import_matplotlib()
    with style.context(["default", {"font.size": 9}]):  # whatever the user's own matplotlibrc says
        figure = figure_class(figsize=(WIDTH, height), dpi=DPI)
        yield figure
        png = io.BytesIO()
        canvas_class(figure).print_png(png)
    write_file(path, png.getvalue(), advice)


def write_heading(figure, heading: str, note: str) -> None:
    """Two lines at the top left: what the picture shows, and quietly what else to know; small type for long ones."""
    line = 15 / 72 / figure.get_figheight()
    heading_size, note_size = min(10, 850 / len(heading)), min(8, 1030 / len(note))
    figure.text(0.015, 1 - line, heading, color=VALIDATION_COLOUR, weight="bold", size=heading_size, va="center")
    figure.text(0.015, 1 - 2 * line, note, color=QUIET, size=note_size, va="center", parse_math=False)


def _scale_losses(axes, history: list[dict]) -> None:
    """Choose the scale and its ends: an explosion must not press all other epochs flat, nor a loss of zero."""
    losses = [row[name] for row in history for name in ("train_loss", "val_loss")]
    low, high = np.clip([min(losses), max(losses)], *LOSSES)
    if high > 5 * low:
        axes.set_yscale("log", subs=[])
        axes.locator_params("y", subs=(1, 2, 5))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(low / 1.15, high * 1.15)


def _draw_lines(axes, history: list[dict], quantity: str, number_format: str) -> None:
    """Draw both curves of a quantity, their names and last values at their ends, and a ring at the best epoch."""
    epochs = [row["epoch"] for row in history]
    train, validation = ([row[f"{split}_{quantity}"] for row in history] for split in ("train", "val"))
    upper = "train" if train[-1] > validation[-1] else "validation"
    marker = "o" if len(epochs) <= 20 else ""  # a single epoch has no line
    limits = axes.get_ylim()  # of an accuracy 0 and 1
    for name, values, colour, style in (
        ("validation", validation, VALIDATION_COLOUR, "-"),
        ("train", train, TRAIN_COLOUR, "--"),  # above the other, which shows between its dashes
    ):
        places = np.clip(values, *limits)
        axes.plot(epochs, places, color=colour, linestyle=style, linewidth=1.7, marker=marker, markersize=4)
        text = f"{name} {number_format.format(values[-1])}"
        side = "bottom" if name == upper else "top"  # so that the two never overlap
        beside = {"transform": axes.get_yaxis_transform(), "weight": "bold", "size": 8}
        axes.text(1.02, places[-1], text, color=colour, va=side, **beside)
    best = best_row(history)["epoch"]
    place = np.clip(validation[best - 1], *axes.get_ylim())
    axes.plot(best, place, "o", color=VALIDATION_COLOUR, markersize=9, fillstyle="none", clip_on=False)


def _draw_learning_rates(axes, history: list[dict]) -> None:
    """Draw a dotted line at each change of the learning rate, and the new rate above it; many changes in words."""
    rates = [row["lr"] for row in history]
    labels = {0: f"lr {rates[0]:.3g}"}  # by the number of epochs before
    labels |= {done: f"→ {rates[done]:.3g}" for done in range(1, len(rates)) if rates[done] != rates[done - 1]}
    if any(np.diff(list(labels)) < 0.24 * len(rates)):  # a label takes about a quarter of the width
        labels = {0: f"lr {rates[0]:.3g} to {rates[-1]:.3g}, highest {max(rates):.3g}"}
    for done, text in labels.items():
        axes.text(done + 0.5, 1.02, text, transform=axes.get_xaxis_transform(), color=QUIET, size=8)
        axes.axvline(done + 0.5, color=QUIET, linewidth=0.7, linestyle=":")


class LossCurve:
    """The curve of a run, in the PNG at `path`; `parameters`: how many are trainable."""

    def __init__(self, path: Path, config: Config, parameters: int):
        self.path = Path(os.path.realpath(path)) if path.is_symlink() else path  # a link to a picture stays one
        self.config, self.parameters = config, parameters
        self.next_drawing = 0.0  # not before this time

    def prepare(self) -> None:
        """Import what draws, and raise `UserError` if the picture cannot be written: to be known before training.

        An import that Ctrl-C cuts off cannot be done again, and then there is still a curve to draw.
        """
        import_matplotlib()
        make_folder(self.path.parent, ADVICE)
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path} is a folder, a device or a pipe; {ADVICE}")

    def draw_if_due(self, history: list[dict]) -> None:
        """Draw, if it takes at most `DRAWING_TIME` of all time. A picture that cannot be written ends no training."""
        started = time.monotonic()
        if started >= self.next_drawing:
            with contextlib.suppress(UserError):
                self.draw(history)
            self.next_drawing = time.monotonic() + (time.monotonic() - started) / DRAWING_TIME

    def draw(self, history: list[dict]) -> None:
        """Draw loss (left) and accuracy (right) of every epoch, if there is one. Raises as `write_file` does."""
        if not history:
            return
        best = best_row(history)
        result = f"lowest validation loss {best['val_loss']:.3g}, validation accuracy {best['val_accuracy']:.2%}"
        with picture(self.path, 3.8, ADVICE) as figure:
            figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 0.85), wspace=0.06)
            write_heading(figure, f"○ epoch {best['epoch']}: {result}", caption(self.config, history, self.parameters))
            losses, accuracies = figure.subplots(1, 2)
            _scale_losses(losses, history)
            _draw_lines(losses, history, "loss", "{:.3g}")
            _draw_lines(accuracies, history, "accuracy", "{:.1%}")
            accuracies.yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:.3g}%")
            for axes, quantity in (losses, "loss (cross-entropy)"), (accuracies, "accuracy"):
                axes.set(xlabel="epoch", ylabel=quantity, xlim=(0.5, len(history) + 0.5))
                axes.locator_params("x", nbins=6, integer=True, min_n_ticks=1)
                axes.grid(axis="y", color="#E4E4E4")
                axes.spines[["top", "right"]].set_visible(False)
                _draw_learning_rates(axes, history)


def caption(config: Config, history: list[dict], parameters: int) -> str:
    """A run's key facts in one line: what every run has, and the options that differ from the defaults."""
    data = "synthetic data, not CIFAR-10" if config.options["data"] == "synthetic" else "CIFAR-10"
    epochs = f"{len(history):,} of {count_epochs(config.options['epochs'])}, seed {config.options['seed']}"
    seconds = statistics.median(row["seconds"] for row in history)
    facts = [f"{parameters:,} parameters", data, epochs, f"{seconds:,.1f} s an epoch"]
    if config.changed:
        facts.append(config.changed)
    if config.teacher:
        facts.append("with a teacher")
    return " · ".join(facts)


def curve_path(plot: Path | None, folder: Path) -> Path:
    """`plot`, or without it beside the checkpoints; for their usual folder, in the working folder."""
    is_usual = os.path.realpath(folder) == os.path.realpath(CHECKPOINT_DIR)  # however it is spelt
    return plot or (Path() if is_usual else folder) / "loss_curve.png"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, "python -m utils.plot")
    parser.add_argument("--checkpoint-dir", type=folder_path, default=CHECKPOINT_DIR, help="folder of the run")
    parser.add_argument("--plot", type=png_path, help="picture to draw (default: where train.py draws it)")
    options = parser.parse_args(argv)
    saved = load_newest(options.checkpoint_dir)
    if saved is None:
        raise UserError(f"{no_epoch(options.checkpoint_dir)}; train first, or name another --checkpoint-dir")
    curve = LossCurve(curve_path(options.plot, options.checkpoint_dir), saved.config, saved.parameters)
    curve.prepare()
    curve.draw(saved.history)
    print(printable(str(curve.path)))
    return 0


if __name__ == "__main__":
    run_program(main)
