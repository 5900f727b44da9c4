"""Predictions on the test images -> confusion_matrix.png, mistakes.png and predictions.csv."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from utils.figure import QUIET, VALIDATION_COLOUR, WIDTH, picture, write_heading
from utils.files import write_file

ADVICE = "name another folder with --report"
COLUMNS, MAX_ROWS = 6, 5  # of the grid of mistakes
HEADING, LEFT, CELL_WIDTH, CELL_HEIGHT = 0.6, 0.125, 1.35, 1.7  # inches
SIDE = 1.12  # inches of an image: at 200 dots an inch, 7 x 7 for each of its pixels


def write_report(
    folder: Path, what: str, classes: tuple[str, ...], images: Tensor, logits: Tensor, labels: Tensor
) -> list[Path]:
    """Write the three files into `folder`, over those of an earlier report; returns their paths.

    Args:
        folder: made if there is none; its other files stay.
        what: the epoch or the file that was tested, and on which images, for the pictures' headings.
        classes: their names.
        images: uint8 (N, 3, H, W).
        logits: float (N, classes).
        labels: int64 (N,).

    Raises:
        UserError: if a file cannot be written.
    """
    probabilities = logits.double().softmax(dim=1)
    paths = [folder / name for name in ("confusion_matrix.png", "mistakes.png", "predictions.csv")]
    matrix_path, mistakes_path, table_path = paths
    write_file(table_path, predictions_csv(classes, probabilities, labels).encode(), ADVICE)
    draw_confusion_matrix(matrix_path, what, classes, confusion_matrix(probabilities.argmax(dim=1), labels))
    draw_mistakes(mistakes_path, what, classes, images, probabilities, labels)
    return paths


def predictions_csv(classes: tuple[str, ...], probabilities: Tensor, labels: Tensor) -> str:
    """One line per image: its index, the names of its true and predicted class, the probability of each class."""
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
    """Draw the counts as percentages of their rows into the PNG at `path`. Raises as `write_file` does."""
    totals = counts.sum(dim=1)
    shares = counts / totals.clamp(min=1).unsqueeze(1)
    note = "Each row adds up to 100%: what the network took the images of a class for."
    with picture(path, 7.2, ADVICE) as figure:
        write_heading(figure, f"{what}: {counts.trace() / counts.sum().clamp(min=1):.2%} correct", note)
        axes = figure.add_axes((0.17, 0.02, 0.815, 0.85))
        # A square root's scale: a confusion of 2% should be visible beside a diagonal of 95%.
        axes.pcolormesh(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1.5)
        for row, column in shares.nonzero().tolist():
            share = shares[row, column].item()
            style = {"color": "white" if share > 0.5 else "black", "weight": "bold" if row == column else "normal"}
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.1f}", ha="center", va="center", **style)
        middles = [place + 0.5 for place in range(len(classes))]
        axes.set_xticks(middles, classes)
        axes.set_yticks(middles, [f"{name}\n{total:,} images" for name, total in zip(classes, totals.tolist())])
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("predicted class", labelpad=9)
        axes.set_ylabel("true class", labelpad=9)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.grid(False)


def draw_mistakes(
    path: Path, what: str, classes: tuple[str, ...], images: Tensor, probabilities: Tensor, labels: Tensor
) -> None:
    """Draw the images whose wrong class got the highest probabilities into the PNG at `path`.

    Arguments as for `write_report`; raises as `write_file` does.
    """
    mistakes, count = most_confident_mistakes(probabilities, labels)
    height = HEADING + -(-len(mistakes) // COLUMNS) * CELL_HEIGHT
    note = "those of which the network was most certain, the most certain first" if mistakes else "nothing to show"
    with picture(path, height, ADVICE) as figure:
        write_heading(figure, f"{what}: {f'{count:,}' if count else 'no'} mistake{'s' * (count != 1)}", note)
        for place, index in enumerate(mistakes):
            row, column = divmod(place, COLUMNS)
            left, bottom = LEFT + column * CELL_WIDTH, height - HEADING - row * CELL_HEIGHT - SIDE
            axes = figure.add_axes((left / WIDTH, bottom / height, SIDE / WIDTH, SIDE / height))
            axes.axis("off")
            axes.imshow(images[index].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            confidence, prediction = probabilities[index].max(dim=0)
            for y, line, colour in (
                (-0.04, f"true: {classes[labels[index]]}", "black"),
                (-0.15, f"predicted: {classes[prediction]}", VALIDATION_COLOUR),
                (-0.26, f"{confidence:.1%} · image {index}", QUIET),
            ):
                axes.text(0, y, line, transform=axes.transAxes, color=colour, size=7.5, va="top")


def most_confident_mistakes(probabilities: Tensor, labels: Tensor) -> tuple[list[int], int]:
    """Indices of the wrong predictions, the most confident first and no more than fit, and the number of all."""
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    order = confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][: COLUMNS * MAX_ROWS].tolist(), len(wrong)
