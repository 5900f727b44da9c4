"""The record of a run: a row, a dict of `COLUMNS`, for each epoch; what the screen shows of a run; history.csv."""

import argparse
import csv
import io
import shlex
import statistics
import sys
import textwrap
from pathlib import Path

from utils.errors import UserError, printable
from utils.files import saved_epochs, write_file

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
NOT_OURS = "nothing was changed; move it away, or name another --checkpoint-dir"
DISK_ADVICE = "other files are untouched; fix that, then go on with --resume"


def check_rows(rows: list) -> list[dict]:
    """`rows` from a file, each with all columns; `ValueError` unless they are one row an epoch, from 1 on."""
    for number, row in enumerate(rows, start=1):
        usable = isinstance(row, dict) and row.keys() <= COLUMNS.keys()
        usable = usable and all(isinstance(row.get(name), kind) for name, kind in COLUMNS.items())
        usable = usable and all(value is None or 0 <= value < LARGEST for value in row.values())
        if not (usable and type(row["epoch"]) is int and row["epoch"] == number):  # True is 1, too
            raise ValueError(f"row {number} of its history is not as expected")
    return [{name: row.get(name) for name in COLUMNS} for row in rows]


def best_row(history: list[dict]) -> dict:
    """The row of lowest validation loss; of several, the first."""
    return min(history, key=lambda row: row["val_loss"])


def check_csv(path: Path) -> None:
    """Raise `UserError` if there is a history.csv that another program wrote, which a run would write over."""
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            columns = file.readline().strip().split(",")
        if columns[0] != "epoch" or not set(columns) <= COLUMNS.keys():
            raise UserError(f"{path} is not the history of a run of this program; {NOT_OURS}")


def write_csv(folder: Path, history: list[dict]) -> None:
    """Write history.csv, unless it is there already with these rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    table, path = text.getvalue().encode(), folder / "history.csv"
    if not path.exists() or path.read_bytes() != table:
        write_file(path, table, DISK_ADVICE)


def print_header(
    options: argparse.Namespace, changed: str, parameters: int, training: int, validation: int, machine: str
) -> None:
    """The facts of a run, a line each; `changed`: the options that differ from the defaults."""
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
    print(f"files    {printable(str(options.checkpoint_dir))}, about {megabytes:,.0f} MB in all", flush=True)


def print_newest(history: list[dict], epochs: int) -> None:
    """Print the newest row, and about how long the rest of so many epochs will take."""
    row = history[-1]
    # The median: an epoch in which the compiler started, or the machine slept, says little about the next.
    seconds = statistics.median_low(past["seconds"] for past in history[-10:])
    left = duration((epochs - row["epoch"]) * seconds)
    print(f"{line(row, row is best_row(history))}{left:>9}", flush=True)


def next_commands(history: list[dict], curve: Path, folders: str) -> str:
    """After the last epoch: what to look at and what to do next; `folders`: the options that name them."""
    best = best_row(history)["epoch"]
    test = printable(f"{_command('test.py')} {folders}".rstrip())
    return (
        f"Lowest validation loss: epoch {best}. The curve is in {printable(str(curve))}. Next:\n"
        f"    {test}    # the epochs, and which to test\n"
        f"    {test} --epoch {best}"
    )


def resume_hint(argv: list[str], folder: Path, processes: int) -> str:
    """After an interruption: what is kept, and the command that goes on."""
    kept = len(saved_epochs(folder))
    if kept == 0:
        return "\ninterrupted before the first epoch ended; nothing is kept, start again with the same command"
    program = _command("train.py", processes)
    same = [word for word in argv if word not in ("--resume", "--overwrite")]
    go_on = shlex.join(["--resume", *same])
    return f"\ninterrupted; {folder} keeps {count_epochs(kept)}. To go on: {program} {go_on}"


def _command(name: str, processes: int = 1) -> str:
    """What starts one of the programs, which lie side by side: the one that runs was started as sys.argv[0] says."""
    started = Path(sys.argv[0])
    launcher = shlex.quote(Path(sys.executable).name) if processes == 1 else "torchrun ..."
    folder = started.parent if started.name == "train.py" else Path(__file__).parent.parent
    return f"{launcher} {shlex.quote(str(folder / name))}"


def count_epochs(count: int) -> str:
    """1 epoch, 1,000 epochs."""
    return "1 epoch" if count == 1 else f"{count:,} epochs"


def line(row: dict, best: bool) -> str:
    """A row below `HEADER`; the epoch of lowest validation loss has a star."""
    star = "*" if best else " "
    losses = row["train_loss"], row["val_loss"]
    train, validation = (f"{loss:.4f}" if loss < 1000 else f"{loss:.1e}" for loss in losses)
    return (
        f"{row['epoch']:4d}{star}{row['lr']:9.3g}{train:>12}{row['train_accuracy']:8.2%}"
        f"{validation:>10}{row['val_accuracy']:8.2%}{duration(row['seconds']):>8}{row['images_per_second']:8.0f}"
    )


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour, or 4.5 s below ten seconds."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
