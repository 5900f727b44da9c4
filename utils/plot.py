"""Draw loss_curve.png, from the history in a folder of checkpoints.

python -m utils.plot                               the run in checkpoints/
python -m utils.plot --checkpoint-dir other        another run, its picture beside it
"""

import argparse
import contextlib
import math
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path

from utils import checkpoint
from utils.errors import UserError, run_program
from utils.figure import QUIET, TRAIN_COLOUR, VALIDATION_COLOUR, import_matplotlib, picture, write_heading
from utils.files import make_folder
from utils.history import best_row, duration, in_epochs
from utils.options import CHECKPOINT_DIR, Parser, location, png

ADVICE = "name another file with --plot"
MAX_SHARE = 0.02  # of the time of training, that drawing may take
FLOOR = 1e-4  # a loss below it is drawn at the lower edge
OFF_SCALE = 10 * math.log(10)  # ten times the loss of pure guessing; one above it is drawn at the upper edge
LOG_FROM = 5  # ratio of the highest to the lowest loss from which the scale is logarithmic


def draw_loss_curve(path: Path, history: list[dict], facts: str) -> None:
    """Draw loss (left) and accuracy (right) of every epoch in `history`, at least one, into the PNG at `path`.

    Raises:
        UserError: if the picture cannot be written.
    """
    best = best_row(history)
    loss, accuracy = measured(best["val_loss"]), f"{best['val_accuracy']:.2%}"
    heading = f"○ epoch {best['epoch']}: lowest validation loss {loss}, validation accuracy {accuracy}"
    with picture(path, 3.8, ADVICE) as figure:
        figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 0.85), wspace=0.06)
        write_heading(figure, heading, facts, VALIDATION_COLOUR)
        losses, accuracies = figure.subplots(1, 2)
        for axes, quantity in (losses, "loss (cross-entropy)"), (accuracies, "accuracy"):
            axes.locator_params("y", nbins=6, steps=[1, 2, 5, 10])
            axes.set(xlabel="epoch", ylabel=quantity, xticks=epoch_ticks(len(history)))
        _draw_lines(losses, history, "loss", measured, *_scale_losses(losses, history))
        _draw_lines(accuracies, history, "accuracy", "{:.1%}".format, 0, 1)
        accuracies.yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:.3g}%")
        for axes in losses, accuracies:
            _draw_learning_rates(axes, history)
            axes.xaxis.set_major_formatter("{x:,.0f}")


def number(value: float) -> str:
    """At most three digits: 0.3, 12.3, 1e8."""
    return f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")


def measured(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else number(value)


def epoch_ticks(count: int) -> list[int]:
    """The first and the last epoch, and round numbers between them."""
    from matplotlib.ticker import MaxNLocator

    round_numbers = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]).tick_values(1, count)
    return sorted({1, count} | {int(tick) for tick in round_numbers if 1 + count / 15 < tick < count - count / 15})


def _scale_losses(axes, history: list[dict]) -> tuple[float, float]:
    """Choose the scale; returns its ends. One explosion must not press all other epochs flat, nor a loss of zero."""
    losses = [row[name] for row in history for name in ("train_loss", "val_loss")]
    ceiling = OFF_SCALE if statistics.median_low(losses) <= OFF_SCALE else math.inf
    shown = [loss for loss in losses if FLOOR <= loss <= ceiling] or [0.0]
    low, high, worst = min(shown), max(shown), max(losses)
    if min(losses) < FLOOR:
        low /= 1.5
    if worst > ceiling:
        high *= 1.5
        epoch = history[losses.index(worst) // 2]["epoch"]
        transform = axes.get_xaxis_transform()
        axes.text(epoch, 1.1, f"▲ {number(worst)} in epoch {epoch}", transform=transform, size=8, ha="center")
    if 0 < LOG_FROM * low < high:
        axes.set_yscale("log", subs=[])
        axes.locator_params("y", subs=(1, 2, 5))
        axes.yaxis.set_major_formatter(lambda loss, _: number(loss))
    return low, high


def _draw_lines(axes, history: list[dict], quantity: str, printed, low: float, high: float) -> None:
    """Both curves of a quantity from `low` to `high`, at their ends names and last values, and a ring at the best."""
    epochs = [row["epoch"] for row in history]
    look = {"linewidth": 1.7 if len(epochs) <= 200 else 0.9, "markersize": 4.5 if len(epochs) <= 20 else 0}
    upper = max(("val", "train"), key=lambda name: history[-1][f"{name}_{quantity}"])
    for name, label, colour, style, marker in (
        ("val", "validation", VALIDATION_COLOUR, "-", "o"),
        ("train", "train", TRAIN_COLOUR, (0, (3.5, 1.3)), "s"),  # above the other, which shows between its dashes
    ):
        places = [min(max(row[f"{name}_{quantity}"], low), high) for row in history]
        axes.plot(epochs, places, color=colour, linestyle=style, marker=marker, markeredgewidth=0, **look)
        text = f"{label} {printed(history[-1][f'{name}_{quantity}'])}"
        side = "bottom" if name == upper else "top"  # so that the two never overlap
        beside = {"transform": axes.get_yaxis_transform(), "weight": "bold", "size": 8}
        axes.text(1.03, places[-1], text, color=colour, va=side, **beside)
    axes.update_datalim([(1, 0.9 * axes.dataLim.y1)])  # so that noise fills no picture
    best = best_row(history)
    place = min(max(best[f"val_{quantity}"], low), high)
    axes.plot(best["epoch"], place, "o", color=VALIDATION_COLOUR, markersize=9, fillstyle="none", clip_on=False)


def _draw_learning_rates(axes, history: list[dict]) -> None:
    """A dotted line at each change of the learning rate, and above it the rate from there on.

    Where there is no room for that, the first, the highest and the last rate in words alone.
    """
    changes = [(row["epoch"] - 0.5, row["lr"]) for before, row in pairwise(history) if row["lr"] != before["lr"]]
    left, first, last = axes.get_xlim()[0], number(history[0]["lr"]), number(history[-1]["lr"])
    labels = [(left, f"lr {first}"), *((epoch, f"→ {number(lr)}") for epoch, lr in changes)]
    width = 0.035 * len(history)  # of a character, about, in epochs
    if any(after - before < width * len(text) for (before, text), (after, _) in pairwise(labels)):
        highest = number(max(row["lr"] for row in history))
        rates = (first, last) if highest in (first, last) else (first, highest, last)
        labels, changes = [(left, "lr " + " → ".join(rates))], []
    for epoch, text in labels:
        axes.text(epoch, 1.02, text, transform=axes.get_xaxis_transform(), color=QUIET, size=8)
    for epoch, _ in changes:
        axes.axvline(epoch, color=QUIET, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)


class LossCurve:
    """The curve of a run in the PNG at `path`; `config` as in its checkpoints, `parameters`: how many are trainable."""

    def __init__(self, path: Path, config: dict, parameters: int):
        # A link stays one, if it leads anywhere.
        self.path = Path(os.path.realpath(path)) if path.is_symlink() else path
        self.config, self.parameters = config, parameters
        self.quiet_until = 0.0

    def prepare(self) -> None:
        """Import what draws, make the picture's folder, and find out before long work whether it can be written.

        Raises:
            UserError: if it cannot be written.
        """
        import_matplotlib()
        make_folder(self.path.parent, ADVICE)
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"{self.path} is a folder, a device or a pipe; {ADVICE}")

    def draw_if_due(self, history: list[dict]) -> None:
        """Draw, unless the last drawing is too recent: drawing takes at most `MAX_SHARE` of the time.

        A picture that cannot be written now does not end the training: at its end there is another one.
        """
        started = time.monotonic()
        if started >= self.quiet_until:
            with contextlib.suppress(UserError):
                self.draw(history)
            self.quiet_until = time.monotonic() + (time.monotonic() - started) / MAX_SHARE

    def draw(self, history: list[dict]) -> None:
        draw_loss_curve(self.path, history, caption(self.config, history, self.parameters))


def caption(config: dict, history: list[dict], parameters: int) -> str:
    """A run's key facts in one line."""
    options = config["options"]
    data = "synthetic data, not CIFAR-10" if options["data"] == "synthetic" else "CIFAR-10"
    subset = f"the first {options['subset']:,} images of " if options["subset"] else ""
    unfinished = f"{len(history):,} of " if len(history) < options["epochs"] else ""
    seconds = statistics.median(row["seconds"] for row in history)
    pace = f"{seconds:.3g} s" if seconds < 999.5 else duration(seconds)
    epochs = unfinished + in_epochs(options["epochs"])
    course = "one cycle up to" if options["schedule"] == "one-cycle" else "learning rate"
    teacher = ", with a teacher" if config["teacher"] else ""
    dropout = f", dropout {config['network']['dropout']:g}" if config["network"]["dropout"] else ""
    return (
        f"{parameters:,} parameters{dropout}{teacher} · SGD: {course} {options['lr']:g}, "
        f"batch {options['batch_size']}, {epochs}, seed {options['seed']} · {subset}{data} · {pace} an epoch"
    )


def curve_path(options: argparse.Namespace) -> Path:
    """--plot, or without it beside the checkpoints; for their usual folder, the working folder."""
    folder = options.checkpoint_dir
    return options.plot or (Path() if folder == CHECKPOINT_DIR else folder) / "loss_curve.png"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__, "python -m utils.plot")
    add = parser.add_argument
    add("--checkpoint-dir", type=location, default=CHECKPOINT_DIR, help="folder of the run")
    add("--plot", type=png, help="picture to draw (default: where train.py draws it)")
    options = parser.parse_args(argv)
    saved = checkpoint.load_newest(options.checkpoint_dir)
    if saved is None:
        raise UserError(f"there is no epoch in {options.checkpoint_dir}; train first, or name another --checkpoint-dir")
    curve = LossCurve(curve_path(options), saved["config"], checkpoint.trainable_parameters(saved))
    curve.prepare()
    curve.draw(saved["history"])
    print(curve.path)
    return 0


if __name__ == "__main__":
    run_program(main)
