import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
import test
from dataset import CLASSES
from utils import report
from utils.errors import UserError

FILES = ["confusion_matrix.png", "mistakes.png", "predictions.csv"]


def certain(predicted, logit=5.0):
    """Logits of a network that predicts these classes."""
    return logit * torch.eye(10)[predicted]


def write(predicted, labels, folder="report"):
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    Path(folder).mkdir(exist_ok=True)
    return report.write_report(Path(folder), "Epoch 1", CLASSES, images, certain(predicted), labels)


def test_a_report_has_a_line_for_every_test_image(trained, capsys):
    options = ["--epoch", "3", "--checkpoint-dir", str(trained)]
    test.main([*options, "--report", "deep/report"])
    assert sorted(os.listdir("deep/report")) == FILES
    accuracy = float(capsys.readouterr().out.split("accuracy")[1].split("%")[0])
    with open("deep/report/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = dataset.load_test("synthetic", "").labels
    assert [(int(row["index"]), row["true"]) for row in rows] == [(i, CLASSES[k]) for i, k in enumerate(labels)]
    assert 100 * np.mean([row["true"] == row["predicted"] for row in rows]) == pytest.approx(accuracy)
    for row in rows:
        probabilities = [float(row[name]) for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row[row["predicted"]]) == max(probabilities)


def test_pictures_say_that_images_are_synthetic(trained, monkeypatch):
    headings = []
    monkeypatch.setattr(report, "write_heading", lambda figure, heading, note: headings.append(heading))
    test.main(["--epoch", "1", "--checkpoint-dir", str(trained), "--report", "report"])
    assert len(headings) == 2 and all("synthetic test images, which are not CIFAR-10" in line for line in headings)


def test_a_row_of_the_matrix_is_a_true_class_and_a_column_a_predicted_one():
    counts = report.confusion_matrix(torch.tensor([3, 3, 5]), torch.tensor([5, 5, 5]))
    assert counts.shape == (10, 10) and counts.sum() == 3
    assert counts[5, 3] == 2 and counts[5, 5] == 1


def test_the_most_confident_mistakes_come_first():
    logits = torch.zeros(4, 10)
    logits[[0, 1, 2, 3], [1, 1, 1, 0]] = torch.tensor([1.0, 3.0, 2.0, 9.0])
    assert report.confident_mistakes(logits.softmax(1), torch.zeros(4, dtype=torch.int64)) == [1, 2, 0]


@pytest.mark.parametrize("mistakes, shown", [(0, 0), (7, 7), (60, 30)])
def test_pictures_fit_the_curve_and_show_thirty_mistakes_at_most(mistakes, shown, monkeypatch):
    figures = []
    heading = report.write_heading
    monkeypatch.setattr(report, "write_heading", lambda *arguments: (figures.append(arguments[0]), heading(*arguments)))
    labels = torch.arange(60) % 10
    predicted = torch.where(torch.arange(60) < mistakes, (labels + 1) % 10, labels)
    write(predicted, labels)
    for name in FILES[:2]:
        with Image.open(f"report/{name}") as picture:
            assert picture.width == 1660
    matrix, grid = figures
    assert grid.texts[0].get_text() == f"Epoch 1: {mistakes} wrong" and len(grid.axes) == shown
    assert f"{1 - mistakes / 60:.2%} correct" in matrix.texts[0].get_text()
    for axes in grid.axes:
        assert grid.bbox.x0 <= axes.title.get_window_extent().x0 and axes.bbox.x1 <= grid.bbox.x1


def test_images_are_shown_as_they_are():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probabilities = certain(torch.tensor([4])).softmax(1)
    report.draw_mistakes(Path("one.png"), "Epoch 1", CLASSES, image[None], probabilities, torch.tensor([7]))
    with Image.open("one.png") as picture:
        shown = np.array(picture.convert("RGB"))
    colours = [tuple(image[:, row, column].tolist()) for row, column in ((0, 0), (0, 31), (31, 0))]
    upper_left, upper_right, lower_left = (np.argwhere((shown == colour).all(2)).mean(0) for colour in colours)
    assert upper_left[0] == upper_right[0] < lower_left[0] and upper_left[1] == lower_left[1] < upper_right[1]


def test_a_class_without_images_is_no_number(capsys):
    labels = torch.tensor([0, 1, 1])
    write(torch.tensor([0, 1, 9]), labels)
    assert sorted(os.listdir("report")) == FILES
    test.print_verdict("epoch 1", certain(labels), labels)
    out = capsys.readouterr().out
    assert out.count("no images") == 8 and "nan" not in out


def test_other_files_in_the_folder_stay():
    os.mkdir("report")
    Path("report/notes.txt").write_text("mine")
    for _ in range(2):
        write(torch.tensor([1]), torch.tensor([1]))
    assert sorted(os.listdir("report")) == sorted([*FILES, "notes.txt"])
    assert Path("report/notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_is_a_line_before_the_test_images_are_read(trained, monkeypatch):
    monkeypatch.setattr(dataset, "load_test", None)
    Path("report").touch()
    with pytest.raises(UserError, match="cannot write to the folder report: .*; name another folder with --report"):
        test.main(["--epoch", "1", "--checkpoint-dir", str(trained), "--report", "report"])
