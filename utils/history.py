"""The record of a run, as the checkpoint holds it: a list with one row per epoch, and its printed form.

A row is a dict with the keys of `COLUMNS`: the epoch's number, the learning rate at its start, mean losses, accuracies
as fractions, the seconds of the whole epoch and the images a second of its training part.
"""

COLUMNS = {
    "epoch": int,
    "lr": float,
    "train_loss": float,
    "train_accuracy": float,
    "val_loss": float,
    "val_accuracy": float,
    "seconds": float,
    "images_per_second": float,
}
HEADER = "epoch       lr  train loss     acc  val loss     acc    time   img/s"


def best_row(history: list[dict]) -> dict:
    """The row of lowest validation loss; of several, the first."""
    return min(history, key=lambda row: row["val_loss"])


def in_epochs(count: int) -> str:
    """1 epoch, 1,000 epochs."""
    return f"{count:,} epoch{'s' * (count != 1)}"


def line(row: dict, best: bool) -> str:
    """A row below `HEADER`; the epoch of lowest validation loss has a star."""
    losses = {key: f"{row[key]:.4f}" if row[key] < 1000 else f"{row[key]:.1e}" for key in ("train_loss", "val_loss")}
    return (
        f"{row['epoch']:4d}{'*' if best else ' '}{row['lr']:9.3g}"
        f"{losses['train_loss']:>12}{row['train_accuracy']:8.2%}"
        f"{losses['val_loss']:>10}{row['val_accuracy']:8.2%}"
        f"{duration(row['seconds']):>8}{row['images_per_second']:8.0f}"
    )


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour, or 4.5 s below ten seconds."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
