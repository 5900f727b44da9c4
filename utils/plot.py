"""history -> loss_curve.png. `python -m utils.plot` redraws it from a checkpoint folder."""

import math
import statistics
import time
from itertools import pairwise
from pathlib import Path

from utils import checkpoint
from utils.errors import UserError, run_program
from utils.figure import (
    DPI,
    QUIET,
    STYLE,
    TRAIN_COLOUR,
    VALIDATION_COLOUR,
    WIDTH,
    fit_width,
    keep_between,
    measured,
    number,
    spread,
    write_figure,
)
from utils.history import best_row
from utils.options import Parser

CHECKPOINT_DIR = Path("checkpoints")
MIN_INTERVAL = 5.0  # seconds between two drawings

MARGINS = {"left": 0.09, "right": 0.83, "bottom": 0.09, "top": 0.89, "hspace": 0.17, "height_ratios": (1.25, 1)}
LINE_HEIGHT = 12.5  # points between the middles of two labels

MAX_LR_LINES = 6  # a schedule with more changes than this is told in words
ZERO = 5e-5  # a loss below this is printed as 0.0000, and drawn as 0
CHANCE = math.log(10)  # the loss of a network that knows nothing of ten classes
OFF_SCALE = 10 * CHANCE  # losses above it are drawn at the upper edge, unless most are
LOG_FROM = 3.0  # ratio of the highest to the lowest loss from which the scale is logarithmic


def draw_loss_curve(path: Path, history: list[dict], title: str) -> None:
    """Draw loss (above) and accuracy (below) of every epoch in `history`, at least one, into the PNG at `path`.

    Raises:
        UserError: if the picture cannot be written.
    """
    from matplotlib import style  # half a second, which test.py need not wait for
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):  # whatever the user's own matplotlibrc says
        figure = Figure(figsize=(WIDTH, 5.4), dpi=DPI)
        losses, accuracies = figure.subplots(2, 1, sharex=True, gridspec_kw=MARGINS)
        losses.tick_params(bottom=False)
        _scale_epochs(accuracies, len(history))
        _draw_losses(losses, history)
        _draw_accuracies(accuracies, history)
        _draw_learning_rates(figure, (losses, accuracies), history)
        _mark_best(figure, losses, accuracies, best_row(history))
        caption_text = figure.text(MARGINS["left"], 0.965, title, color=QUIET, fontsize=8, va="center")
        fit_width(caption_text, 0.98)
        write_figure(figure, path, "name another file with --plot")


def _scale_epochs(axes, count: int) -> None:
    margin = max(0.012 * (count - 1), 0.02)
    axes.set_xlim(1 - margin if count > 1 else 0.5, count + margin if count > 1 else 1.5)
    axes.set_xticks(epoch_ticks(count))
    axes.set_xlabel("epoch")


def epoch_ticks(count: int) -> list[int]:
    """The first and the last epoch, and round numbers between them."""
    steps = (digit * 10**power for power in range(6) for digit in (1, 2, 5))
    step = next(step for step in steps if count / step <= 12)
    return sorted({1, count, *(tick for tick in range(step, count, step) if tick > 1 and count - tick > 0.6 * step)})


def _draw_losses(axes, history: list[dict]) -> None:
    values = [row[name] for row in history for name in ("train_loss", "val_loss")]
    low, high, logarithmic = loss_range(values)
    has_zero, has_more = min(values) < low, max(values) > high
    if logarithmic:
        axes.set_yscale("log")
        span = high / low
        bottom, edge = (low / max(2, span**0.15) if has_zero else low), (high * span**0.2 if has_more else high)
        limits = bottom / span**0.05, edge * span ** (0.15 if has_more else 0.05)
        ticks = log_ticks(low, high)
    else:
        bottom = 0.0 if has_zero else low
        span = max(high - bottom, 0.1 * high)
        edge = high + 0.4 * span if has_more else high
        slack = (span - (high - bottom)) / 2 + 0.05 * span
        limits = bottom - slack, edge + max(slack, 0.2 * span if has_more else 0)
        ticks = _linear_ticks(*limits, high if has_more else limits[1])
    labels = [number(tick) for tick in ticks]
    if has_zero and logarithmic:
        ticks, labels = [bottom, *ticks], ["0", *labels]
    if has_more:
        ticks, labels = [*ticks, edge], [*labels, "higher"]
    axes.set_ylim(limits)
    axes.set_yticks(ticks, labels)
    axes.minorticks_off()
    axes.set_ylabel("loss (cross-entropy)")
    axes.yaxis.set_label_coords(-0.085, 0.5)
    _draw_lines(axes, history, "loss", lambda loss: min(max(loss, bottom), edge), measured)
    if has_more:
        _mark_off_scale(axes, history, edge)


def loss_range(losses: list[float]) -> tuple[float, float, bool]:
    """Lowest and highest loss that the scale shows as they are, and whether it is logarithmic.

    A loss below `ZERO` has no place on a logarithmic scale, and one explosion would press all other epochs flat.
    """
    positive = [loss for loss in losses if loss >= ZERO]
    if not positive:
        return 0.0, 1.0, False
    shown = [loss for loss in positive if loss <= OFF_SCALE]
    if 2 * len(shown) < len(positive):
        shown = positive
    return min(shown), max(shown), max(shown) > LOG_FROM * min(shown)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, at most seven, as many as fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= 7:
            break
    return ticks[:: math.ceil(len(ticks) / 7)]


def _linear_ticks(low: float, high: float, last: float) -> list[float]:
    """Round numbers for a scale from `low` to `high`, from 0 to `last` at most."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [tick for tick in ticks if max(low, -1e-9) <= tick <= min(high, last)]


def _draw_accuracies(axes, history: list[dict]) -> None:
    values = [100 * row[name] for row in history for name in ("train_accuracy", "val_accuracy")]
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 2.5 - (high - low) / 2)  # five percentage points at least
    ticks = _linear_ticks(low - margin, high + margin, 100.0)
    axes.set_yticks(ticks, [f"{tick:g}%" for tick in ticks])
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_label_coords(-0.085, 0.5)
    _draw_lines(axes, history, "accuracy", lambda accuracy: 100 * accuracy, lambda accuracy: f"{accuracy:.1%}")


def _draw_lines(axes, history: list[dict], quantity: str, place, text) -> None:
    """Both curves of a quantity, drawn where `place` puts a value, and at their ends name and `text` of the last."""
    epochs = [row["epoch"] for row in history]
    marks = len(history) <= 20
    width = 1.7 if len(history) <= 200 else 1.0
    ends = []
    for name, label, colour, style, marker in (
        ("val", "validation", VALIDATION_COLOUR, "-", "o"),
        ("train", "train", TRAIN_COLOUR, (0, (3.5, 1.3)), "s"),  # above the other, which shows between its dashes
    ):
        values = [row[f"{name}_{quantity}"] for row in history]
        places = [place(value) for value in values]
        axes.plot(
            epochs, places, linestyle=style, linewidth=width, color=colour, marker=marker if marks else None,
            markersize=4, clip_on=False,
        )  # fmt: skip
        ends.append((places[-1], f"{label} {text(values[-1])}", colour))
    _label_ends(axes, ends)


def _label_ends(axes, ends: list[tuple[float, str, str]]) -> None:
    """Write two labels to the right of the axes, at the heights of the lines' ends or as near as they fit."""
    pixels_a_point = axes.figure.dpi / 72
    (lower, *_), (upper, *_) = ends = sorted(ends, key=lambda end: end[0])
    bottom, top = (axes.transData.transform((0, y))[1] / pixels_a_point for y in (lower, upper))
    apart = max(LINE_HEIGHT - (top - bottom), 0) / 2
    for (y, text, colour), shift in zip(ends, (-apart, apart)):
        axes.annotate(
            text, (1, y), xycoords=("axes fraction", "data"), xytext=(5, shift), textcoords="offset points",
            color=colour, va="center", weight="bold", annotation_clip=False,
        )  # fmt: skip


def _mark_off_scale(axes, history: list[dict], edge: float) -> None:
    """Say in the free strip above `edge` how high the loss went."""
    row = max(history, key=lambda row: max(row["train_loss"], row["val_loss"]))
    worst = max(("train_loss", "val_loss"), key=row.get)
    text = axes.annotate(
        f"▲ {number(row[worst])} in epoch {row['epoch']}", (row["epoch"], edge), xytext=(0, 4),
        textcoords="offset points", ha="center", va="bottom", fontsize=8,
        color=TRAIN_COLOUR if worst == "train_loss" else VALIDATION_COLOUR,
        bbox={"color": "white", "pad": 0.5},
    )  # fmt: skip
    keep_between(text, axes.bbox.x0 + 8, axes.bbox.x1 - 24)


def _draw_learning_rates(figure, panels, history: list[dict]) -> None:
    """A thin line at each change of the learning rate, and above it the rate from there on."""
    changes = [after for before, after in pairwise(history) if after["lr"] != before["lr"]]
    first, last = number(history[0]["lr"]), number(history[-1]["lr"])
    if len(changes) > MAX_LR_LINES:
        labels = [(panels[0].get_xlim()[0], f"lr from {first} to {last}, changed {len(changes):,} times")]
    else:
        labels = [(panels[0].get_xlim()[0], f"lr {first}")]
        labels += [(row["epoch"] - 0.5, f"→ {number(row['lr'])}") for row in changes]
        for axes in panels:
            for row in changes:
                axes.axvline(row["epoch"] - 0.5, color=QUIET, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
    texts = [
        panels[0].annotate(
            text, (epoch, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            color=QUIET, fontsize=8, annotation_clip=False,
        )
        for epoch, text in labels
    ]  # fmt: skip
    spread(texts, panels[0].bbox.x0, figure.bbox.x1 - 4)


def _mark_best(figure, losses, accuracies, best: dict) -> None:
    """Ring the epoch of lowest validation loss in both panels, and name it between them."""
    places = max(best["val_loss"], losses.get_ylim()[0]), 100 * best["val_accuracy"]
    for axes, y, end in zip((losses, accuracies), places, (0, 1)):
        axes.plot(best["epoch"], y, "o", color=VALIDATION_COLOUR, markersize=9, fillstyle="none", clip_on=False)
        axes.annotate(
            "", (best["epoch"], y), (best["epoch"], end), textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-", "color": VALIDATION_COLOUR, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4.5},
        )  # fmt: skip
    text = losses.annotate(
        f"epoch {best['epoch']}: lowest validation loss {measured(best['val_loss'])}, "
        f"accuracy {best['val_accuracy']:.2%}",
        (best["epoch"], 0), xycoords=("data", "axes fraction"), xytext=(0, -9), textcoords="offset points",
        color=VALIDATION_COLOUR, ha="center", va="center", annotation_clip=False,
    )  # fmt: skip
    keep_between(text, losses.bbox.x0, losses.bbox.x1)


class LossCurve:
    """The curve of a run in a file, drawn again as epochs end.

    Args:
        path: the PNG to write.
        config: the checkpoint's `config`.
        parameters: number of trainable parameters of the network.
    """

    def __init__(self, path: Path, config: dict, parameters: int):
        self.path, self.config, self.parameters = path, config, parameters
        self.quiet_until = 0.0

    def draw_if_due(self, history: list[dict]) -> None:
        """Draw, unless the last drawing is too recent: drawing takes at most a twentieth of the time."""
        started = time.monotonic()
        if started >= self.quiet_until:
            self.draw(history)
            self.quiet_until = time.monotonic() + max(MIN_INTERVAL, 20 * (time.monotonic() - started))

    def draw(self, history: list[dict]) -> None:
        draw_loss_curve(self.path, history, caption(self.config, history, self.parameters))


def caption(config: dict, history: list[dict], parameters: int) -> str:
    """A run's key facts in one line."""
    options = config["options"]
    data = "synthetic data, not CIFAR-10" if options["data"] == "synthetic" else "CIFAR-10"
    subset = f"the first {options['subset']:,} images of " if options["subset"] else ""
    unfinished = f"{len(history):,} of " if len(history) < options["epochs"] else ""
    seconds = statistics.median(row["seconds"] for row in history)
    recipe = (
        f"SGD: learning rate {options['lr']:g}, batch {options['batch_size']}, "
        f"{unfinished}{options['epochs']:,} epochs, seed {options['seed']}"
    )
    return f"{parameters:,} parameters · {recipe} · {subset}{data} · {number(seconds)} s an epoch"


def default_path(checkpoint_dir: Path) -> Path:
    """Where the curve of the run in `checkpoint_dir` goes: the working folder, for the usual folder of checkpoints."""
    return (Path() if checkpoint_dir == CHECKPOINT_DIR else checkpoint_dir) / "loss_curve.png"


def main(argv: list[str] | None = None) -> int:
    parser = Parser("Redraw loss_curve.png from a checkpoint folder.\n", "python -m utils.plot")
    add = parser.add_argument
    add("--checkpoint-dir", type=Path, default=CHECKPOINT_DIR, help="folder of the run")
    add("--plot", type=Path, default=None, help="picture to draw (default: where train.py draws it)")
    options, _ = parser.parse(argv)
    saved = checkpoint.load_newest(options.checkpoint_dir)
    if saved is None:
        raise UserError(f"there is no epoch in {options.checkpoint_dir}; train first, or name another --checkpoint-dir")
    path = options.plot or default_path(options.checkpoint_dir)
    LossCurve(path, saved["config"], checkpoint.trainable_parameters(saved)).draw(saved["history"])
    print(path)
    return 0


if __name__ == "__main__":
    run_program(main)
