"""history -> loss_curve.png. `python -m utils.plot` redraws it from a checkpoint folder."""

import io
import statistics
import time
from itertools import pairwise
from pathlib import Path

from utils import checkpoint
from utils.errors import UserError, run_program
from utils.history import best_row
from utils.options import Parser

TRAIN_COLOUR, VALIDATION_COLOUR = "#56B4E9", "#D55E00"  # of Okabe and Ito's palette, for every kind of colour vision
QUIET = "#666666"
CHECKPOINT_DIR = Path("checkpoints")
MIN_INTERVAL = 5.0  # seconds between two drawings


def draw_loss_curve(path: Path, history: list[dict], title: str) -> None:
    """Draw loss (left) and accuracy (right) of every epoch in `history`, at least one, into the PNG at `path`.

    Raises:
        UserError: if the picture cannot be written.
    """
    from matplotlib.figure import Figure  # half a second, which test.py need not wait for

    best = best_row(history)
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10, color=QUIET)
    losses, accuracies = figure.subplots(1, 2)
    _draw_panel(losses, history, best, "loss", 1)
    _draw_panel(accuracies, history, best, "accuracy", 100)
    losses.set(title="Loss", ylabel="cross-entropy")
    losses.set_yscale("log")
    accuracies.set(title="Accuracy", ylabel="%")
    _write_figure(figure, path)


def _draw_panel(axes, history: list[dict], best: dict, quantity: str, scale: float) -> None:
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 20 else None
    for split, colour, style in (("train", TRAIN_COLOUR, "--"), ("val", VALIDATION_COLOUR, "-")):
        values = [scale * row[f"{split}_{quantity}"] for row in history]
        axes.plot(epochs, values, style, color=colour, marker=marker, markersize=3, label=split)
    for before, after in pairwise(history):
        if after["lr"] != before["lr"]:
            axes.axvline(after["epoch"] - 0.5, color=QUIET, linewidth=0.6, linestyle=":")
    value = scale * best[f"val_{quantity}"]
    axes.plot(best["epoch"], value, "o", color=VALIDATION_COLOUR, markersize=8, fillstyle="none")
    axes.set_xlabel("epoch")
    axes.legend()


def _write_figure(figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getbuffer())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file with --plot") from error


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
    seconds = statistics.median(row["seconds"] for row in history)
    return (
        f"{data} · {parameters:,} parameters · SGD, learning rate {options['lr']:g}, batch {options['batch_size']}, "
        f"seed {options['seed']} · {seconds:.3g} s an epoch"
    )


def default_path(checkpoint_dir: Path) -> Path:
    """Where the curve of the run in `checkpoint_dir` goes: the working folder, for the usual folder of checkpoints."""
    return (Path() if checkpoint_dir == CHECKPOINT_DIR else checkpoint_dir) / "loss_curve.png"


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m utils.plot", description="Redraw loss_curve.png from a checkpoint folder.")
    parser.add_argument("--checkpoint-dir", type=Path, default=CHECKPOINT_DIR, help="folder of the run")
    parser.add_argument("--plot", type=Path, default=None, help="picture to draw (default: where train.py draws it)")
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
