"""Predictions on the test images -> confusion_matrix.png, mistakes.png and predictions.csv."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.figure import DPI, QUIET, STYLE, VALIDATION_COLOUR, WIDTH, fit_width, write_figure, write_file

ADVICE = "name another folder with --report"
COLUMNS, MAX_ROWS = 6, 5  # of the grid of mistakes
ZOOM = 7  # pixels of the picture for each pixel of an image, a whole number so that they stay squares
CELL_WIDTH, CELL_HEIGHT, HEADER_HEIGHT = 270, 340, 120  # pixels of the picture


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report, before the work whose result goes into it.

    Raises:
        UserError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}; {ADVICE}") from error


def write_report(
    folder: Path, what: str, classes: tuple[str, ...], images: Tensor, logits: Tensor, labels: Tensor
) -> list[Path]:
    """Write the three files into `folder`, over those of an earlier report; returns their paths.

    Args:
        folder: made if there is none; its other files stay.
        what: the epoch and the images it was tested on, for the pictures' headings.
        classes: their names.
        images: uint8 (N, 3, H, W).
        logits: float (N, classes).
        labels: int64 (N,).

    Raises:
        UserError: if a file cannot be written.
    """
    probabilities = logits.double().softmax(dim=1)
    names = "confusion_matrix.png", "mistakes.png", "predictions.csv"
    matrix_path, mistakes_path, table_path = paths = [folder / name for name in names]
    write_file(table_path, predictions_csv(classes, probabilities, labels).encode(), ADVICE)
    draw_confusion_matrix(matrix_path, what, classes, confusion_matrix(probabilities.argmax(dim=1), labels))
    draw_mistakes(mistakes_path, what, classes, images, probabilities, labels)
    return paths


def predictions_csv(classes: tuple[str, ...], probabilities: Tensor, labels: Tensor) -> str:
    """A line an image: its index, the names of its true and predicted class, the probability of each class."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["index", "true", "predicted", *classes])
    predicted = probabilities.argmax(dim=1).tolist()
    for index, (label, prediction, row) in enumerate(zip(labels.tolist(), predicted, probabilities.tolist())):
        writer.writerow([index, classes[label], classes[prediction], *(f"{share:.6f}" for share in row)])
    return table.getvalue()


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int = 10) -> Tensor:
    """Counts, int64 (classes, classes): a row for each true class, a column for each predicted one."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def draw_confusion_matrix(path: Path, what: str, classes: tuple[str, ...], counts: Tensor) -> None:
    """Draw the counts as percentages of their rows into the PNG at `path`. Raises as `write_figure` does."""
    from matplotlib import style
    from matplotlib.figure import Figure

    totals = counts.sum(dim=1)
    shares = counts / totals.clamp(min=1).unsqueeze(1)
    with style.context(["default", STYLE, {"axes.grid": False}]):
        figure = Figure(figsize=(WIDTH, 7.2), dpi=DPI)
        axes = figure.add_axes((0.17, 0.02, 0.815, 0.85))
        # A square root's scale: a confusion of 2% is to be seen beside a diagonal of 95%.
        axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, shares_of_row in enumerate(shares.tolist()):
            for column, share in enumerate(shares_of_row):
                _write_share(axes, row, column, share if totals[row] else None)
        _name_classes(axes, classes, totals.tolist())
        accuracy = (counts.trace() / counts.sum().clamp(min=1)).item()
        _head(
            figure,
            f"{what}: {accuracy:.2%} correct",
            "Each row adds up to 100%: what the network took the images of a class for.",
        )
        write_figure(figure, path, ADVICE)


def _write_share(axes, row: int, column: int, share: float | None) -> None:
    """The percentage in its cell: none where nothing was predicted, a dash where there are no images."""
    text = "–" if share is None else f"{100 * share:.1f}" if share else ""
    colour = "white" if share and share > 0.3 else "black"
    weight = "bold" if row == column else "normal"
    axes.text(column, row, text, ha="center", va="center", color=colour, weight=weight)


def _name_classes(axes, classes: tuple[str, ...], totals: list[int]) -> None:
    places = range(len(classes))
    axes.set_xticks(places, classes)
    axes.set_yticks(places, [f"{name}\n{total:,} images" for name, total in zip(classes, totals)])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xticks([place - 0.5 for place in places[1:]], minor=True)
    axes.set_yticks([place - 0.5 for place in places[1:]], minor=True)
    axes.grid(which="minor", axis="both", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted class", color=QUIET, labelpad=6)
    axes.set_ylabel("true class", color=QUIET, labelpad=6)


def _head(figure, heading: str, note: str) -> None:
    """Two lines at the top left: what the picture shows, and quietly how to read it."""
    points = 72 * figure.get_figheight()
    text = figure.text(0.02, 1 - 15 / points, heading, weight="bold", fontsize=10, va="center")
    fit_width(text, 0.98)
    figure.text(0.02, 1 - 29 / points, note, color=QUIET, fontsize=8, va="center")


def draw_mistakes(
    path: Path, what: str, classes: tuple[str, ...], images: Tensor, probabilities: Tensor, labels: Tensor
) -> None:
    """Draw the images whose wrong class got the highest probabilities into the PNG at `path`.

    Arguments as for `write_report`; raises as `write_figure` does.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    mistakes, count = most_confident_mistakes(probabilities, labels)
    rows = -(-len(mistakes) // COLUMNS)
    height = HEADER_HEIGHT + rows * CELL_HEIGHT
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, height / DPI), dpi=DPI)
        most = f"the {len(mistakes)} of which the network was most certain"
        note = most if len(mistakes) < count else "the most certain first" if mistakes else "nothing to show"
        _head(figure, f"{what}: {f'{count:,}' if count else 'no'} {'mistake' if count == 1 else 'mistakes'}", note)
        for place, index in enumerate(mistakes):
            row, column = divmod(place, COLUMNS)
            left, top = 33 + column * CELL_WIDTH, height - HEADER_HEIGHT - row * CELL_HEIGHT
            confidence, prediction = probabilities[index].max(dim=0)
            _draw_image(figure, images[index], left, top)
            names = classes[labels[index]], classes[prediction]
            _write_below(figure, left, top - 32 * ZOOM, *names, f"{confidence:.1%} · image {index}")
        write_figure(figure, path, ADVICE)


def most_confident_mistakes(probabilities: Tensor, labels: Tensor) -> tuple[list[int], int]:
    """Indices of the wrong predictions, the most confident first and no more than fit, and the number of all."""
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][: COLUMNS * MAX_ROWS].tolist(), len(wrong)


def _draw_image(figure, image: Tensor, left: int, top: int) -> None:
    """Put an image, uint8 (3, 32, 32), pixel by pixel into the figure; figimage does not resample."""
    enlarged = image.permute(1, 2, 0).repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1)
    figure.figimage(enlarged.cpu().numpy(), left, top - 32 * ZOOM, origin="upper")


def _write_below(figure, left: int, bottom: int, true: str, predicted: str, note: str) -> None:
    width, height = figure.bbox.size
    lines = (f"true: {true}", "black"), (f"predicted: {predicted}", VALIDATION_COLOUR), (note, QUIET)
    for number, (line, colour) in enumerate(lines):
        y = (bottom - 20 - 25 * number) / height
        figure.text(left / width, y, line, color=colour, fontsize=7.5, va="center")
