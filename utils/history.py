"""The record of a run: a list with a row for each epoch, its line on the screen, and history.csv.

A row is a dict with the keys of `COLUMNS`. The checkpoint carries the rows; history.csv and the curve are made of them.
"""

import argparse
import csv
import io
import statistics
import textwrap
from pathlib import Path

from utils.files import write_file

# The columns, and what kind of number each holds. A column of kind `float | None` may be missing in older files: to
# add one, name it here and give its value in train.py's row.
COLUMNS = {
    "epoch": int,
    "lr": float,  # at the epoch's start
    "train_loss": float,
    "train_accuracy": float,  # accuracies are fractions
    "val_loss": float,
    "val_accuracy": float,
    "seconds": float,  # of the whole epoch
    "images_per_second": float,  # of its training part
}
LARGEST = 1e300  # of what is in a row: sums of several are still finite
HEADER = "epoch       lr  train loss     acc  val loss     acc    time   img/s"
ADVICE = "other files are untouched; fix that, then go on with --resume"


def check_rows(rows: list) -> list[dict]:
    """`rows` from a file, each with all columns.

    Raises:
        ValueError: if they are not one row for each epoch, from 1 on, with the columns of a history and no others.
    """
    checked = []
    for number, row in enumerate(rows, start=1):
        complaint = f"row {number} of its history is not as expected"
        if not (isinstance(row, dict) and row.keys() <= COLUMNS.keys()):
            raise ValueError(complaint)
        full = {name: row.get(name) for name in COLUMNS}
        if not all(isinstance(full[name], kind) and _is_plain(full[name]) for name, kind in COLUMNS.items()):
            raise ValueError(complaint)
        if full["epoch"] != number:
            raise ValueError(complaint)
        checked.append(full)
    return checked


def _is_plain(value: float | None) -> bool:
    return value is None or (not isinstance(value, bool) and 0 <= value < LARGEST)


def best_row(history: list[dict]) -> dict:
    """The row of lowest validation loss; of several, the first."""
    return min(history, key=lambda row: row["val_loss"])


def write_csv(folder: Path, history: list[dict]) -> None:
    """Write history.csv, unless it is there already with these rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    table, path = text.getvalue().encode(), folder / "history.csv"
    if not path.exists() or path.read_bytes() != table:
        write_file(path, table, ADVICE)


def print_header(
    options: argparse.Namespace, changed: str, parameters: int, training: int, validation: int, machine: str
) -> None:
    """The facts of a run, a line each.

    Args:
        changed: the options that differ from the defaults.
        parameters: how many of the network's are trainable.
        training, validation: how many images each split has.
        machine: what the run computes on, and how.
    """
    images = "synthetic, not CIFAR-10" if options.data == "synthetic" else "CIFAR-10"
    epochs = count_epochs(options.epochs)
    megabytes = max(1, options.epochs * 8 * parameters / 1e6)  # weights and momentum, four bytes each
    print(f"data     {images}: {training:,} training and {validation:,} validation images")
    print(f"network  ResidualCNN, {parameters:,} parameters")
    print(f"recipe   {epochs}, batch {options.batch_size}, lr {options.lr:g}, seed {options.seed}")
    if changed:
        print(textwrap.fill(f"options  {changed}", 80, subsequent_indent=9 * " ", break_on_hyphens=False))
    if options.teacher:
        print(f"teacher  {options.teacher}")
    print(f"machine  {machine}")
    print(f"files    {options.checkpoint_dir}, about {megabytes:,.0f} MB in all", flush=True)


def print_newest(history: list[dict], epochs: int) -> None:
    """Print the newest row, and about how long the rest of so many epochs will take."""
    row = history[-1]
    # The median: an epoch in which the compiler started, or the machine slept, says little about the next.
    seconds = statistics.median_low(past["seconds"] for past in history[-10:])
    left = duration((epochs - row["epoch"]) * seconds)
    print(f"{line(row, row is best_row(history))}{left:>9}", flush=True)


def count_epochs(count: int) -> str:
    """1 epoch, 1,000 epochs."""
    return "1 epoch" if count == 1 else f"{count:,} epochs"


def line(row: dict, best: bool) -> str:
    """A row below `HEADER`; the epoch of lowest validation loss has a star."""
    star = "*" if best else " "
    train_loss, val_loss = (
        f"{loss:.4f}" if loss < 1000 else f"{loss:.1e}" for loss in (row["train_loss"], row["val_loss"])
    )
    return (
        f"{row['epoch']:4d}{star}{row['lr']:9.3g}"
        f"{train_loss:>12}{row['train_accuracy']:8.2%}"
        f"{val_loss:>10}{row['val_accuracy']:8.2%}"
        f"{duration(row['seconds']):>8}{row['images_per_second']:8.0f}"
    )


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour, or 4.5 s below ten seconds."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
