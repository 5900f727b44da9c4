"""Predictions on the test images -> confusion_matrix.png, mistakes.png and predictions.csv."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from utils.files import write_file
from utils.plot import picture, write_heading

ADVICE = "name another folder with --report"
COLUMNS, ROWS = 6, 5  # of the grid of mistakes


def write_report(
    folder: Path, title: str, classes: tuple[str, ...], images: Tensor, logits: Tensor, labels: Tensor
) -> list[Path]:
    """Write the three files into `folder`, over those of an earlier report; returns their paths.

    Args:
        folder: must exist; its other files stay.
        title: the epoch or the file that was tested, and on which images, for the pictures' headings.
        classes: their names.
        images, logits, labels: uint8 (N, 3, H, W), float (N, classes), int64 (N,).

    Raises:
        UserError: if a file cannot be written.
    """
    probabilities = logits.double().softmax(dim=1)
    paths = [folder / name for name in ("confusion_matrix.png", "mistakes.png", "predictions.csv")]
    matrix_path, mistakes_path, table_path = paths
    write_file(table_path, predictions_csv(classes, probabilities, labels).encode(), ADVICE)
    draw_confusion_matrix(matrix_path, title, classes, confusion_matrix(probabilities.argmax(dim=1), labels))
    draw_mistakes(mistakes_path, title, classes, images, probabilities, labels)
    return paths


def predictions_csv(classes: tuple[str, ...], probabilities: Tensor, labels: Tensor) -> str:
    """One line per image: its index, the names of its true and predicted class, the probability of each class."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["index", "true", "predicted", *classes])
    predicted = probabilities.argmax(dim=1).tolist()
    for index, (label, prediction, row) in enumerate(zip(labels.tolist(), predicted, probabilities.tolist())):
        writer.writerow([index, classes[label], classes[prediction], *(f"{probability:.6f}" for probability in row)])
    return table.getvalue()


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int = 10) -> Tensor:
    """Counts, int64 (classes, classes): a row for each true class, a column for each predicted one."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def draw_confusion_matrix(path: Path, title: str, classes: tuple[str, ...], counts: Tensor) -> None:
    """Draw the counts as percentages of their rows into the PNG at `path`. Raises as `write_file` does."""
    totals = counts.sum(dim=1)
    percentages = 100 * counts / totals.clamp(min=1).unsqueeze(1)
    note = "Each row adds up to 100%: what the network took the images of a class for."
    with picture(path, 7.2, ADVICE) as figure:
        write_heading(figure, f"{title}: {counts.trace() / counts.sum():.2%} correct", note)
        axes = figure.add_axes((0.17, 0.02, 0.815, 0.85))
        # A square root's scale: a confusion of 2% should be visible beside a diagonal of 95%.
        axes.imshow(percentages.sqrt().numpy(), cmap="Blues", vmin=0, vmax=10, aspect="auto")
        for row, column in percentages.nonzero().tolist():
            percentage = percentages[row, column].item()
            colour = "white" if percentage > 40 else "black"
            axes.text(column, row, f"{percentage:.1f}", color=colour, ha="center", va="center")
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(classes)), [f"{name}\n{total:,} images" for name, total in zip(classes, totals)])
        axes.set_xlabel("predicted class", labelpad=6)
        axes.set_ylabel("true class", labelpad=6)
        axes.tick_params(length=0, labelsize=8, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.xaxis.set_label_position("top")


def draw_mistakes(
    path: Path, title: str, classes: tuple[str, ...], images: Tensor, probabilities: Tensor, labels: Tensor
) -> None:
    """Draw the wrong predictions of highest probability. `path`: the PNG; the others as for `write_report`."""
    mistakes = confident_mistakes(probabilities, labels)
    with picture(path, 9.2, ADVICE) as figure:
        figure.set_layout_engine("constrained", rect=(0.01, 0.01, 0.98, 0.925), hspace=0.1)
        write_heading(
            figure,
            f"{title}: {len(mistakes):,} wrong",
            f"Those of which the network was most certain, up to {ROWS * COLUMNS}.",
        )
        for place, index in enumerate(mistakes[: ROWS * COLUMNS], start=1):
            axes = figure.add_subplot(ROWS, COLUMNS, place)
            axes.axis("off")
            axes.imshow(images[index].permute(1, 2, 0).cpu().numpy())
            probability, prediction = probabilities[index].max(dim=0)
            names = f"true: {classes[labels[index]]}\npredicted: {classes[prediction]}"
            axes.set_title(f"{names}\n{probability:.1%} · image {index}", loc="left", size=7.5)


def confident_mistakes(probabilities: Tensor, labels: Tensor) -> list[int]:
    """Indices of the wrong predictions, the most confident first."""
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)].tolist()
