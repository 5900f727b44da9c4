import math
import os
from pathlib import Path

import pytest
from PIL import Image

from conftest import run
from utils import figure, plot
from utils.errors import UserError

CONFIG = {"options": {"lr": 0.1, "batch_size": 128, "epochs": 90, "seed": 0, "data": "cifar10", "subset": None}}


def history(losses, lr=lambda epoch: 0.1):
    """Rows of a run with these validation losses."""
    return [
        {
            "epoch": epoch,
            "lr": lr(epoch),
            "train_loss": loss / 2,
            "train_accuracy": 1 / (1 + loss / 2),
            "val_loss": loss,
            "val_accuracy": 1 / (1 + loss),
            "seconds": 20.0,
            "images_per_second": 2000.0,
        }
        for epoch, loss in enumerate(losses, start=1)
    ]


@pytest.fixture
def drawn(monkeypatch):
    """A function that draws a history and returns the figure, after it was written."""
    figures = []
    write = figure.write_figure
    monkeypatch.setattr(plot, "write_figure", lambda *arguments: (figures.append(arguments[0]), write(*arguments)))

    def draw(rows, config=CONFIG):
        plot.LossCurve(Path("curve.png"), config, 387_514).draw(rows)
        return figures[-1]

    return draw


def texts(drawing):
    return [text for axes in drawing.axes for text in axes.texts if text.get_text()]


def assert_labels_keep_apart(drawing):
    labels = texts(drawing) + drawing.texts
    boxes = [(label.get_text(), label.get_window_extent()) for label in labels]
    for number, (name, box) in enumerate(boxes):
        assert drawing.bbox.x0 <= box.x0 and box.x1 <= drawing.bbox.x1, name
        assert drawing.bbox.y0 <= box.y0 and box.y1 <= drawing.bbox.y1, name
        assert not [other for other, other_box in boxes[:number] if box.overlaps(other_box)], name


def falling(epochs):
    return [2 * math.exp(-3 * epoch / epochs) for epoch in range(epochs)]


RUNS = {
    "one epoch": history([1.7]),
    "two epochs": history([1.7, 1.4]),
    "the recipe": history(falling(90), lr=lambda epoch: 0.1 ** (1 + (epoch - 1) // 30)),
    "a thousand epochs": history(falling(1000)),
    "drops close together": history(
        falling(90), lr=lambda epoch: 0.1 * 0.37 ** sum(epoch >= e for e in (2, 3, 89, 90))
    ),
    "an explosion in the middle": history([*falling(40), 1e8, *falling(40)]),
    "an explosion at the end": history([2.0, 1.5, 1e8]),
    "nothing but explosions": history([1e8, 1e7, 1e8]),
    "a loss of zero": history([2.0, 1.0, 0.0, 0.0]),
    "nothing but zeros": history([0.0, 0.0]),
    "the level of chance": history([math.log(10)] * 5),
}


@pytest.mark.parametrize("run_drawn", RUNS)
def test_labels_keep_apart_and_inside_the_picture(run_drawn, drawn):
    assert_labels_keep_apart(drawn(RUNS[run_drawn]))


def test_the_picture_is_twice_as_wide_as_readme_shows_it(drawn):
    drawn(RUNS["the recipe"])
    with Image.open("curve.png") as picture:
        assert picture.width == 1660


def test_the_epoch_of_lowest_validation_loss_is_named_with_its_accuracy(drawn):
    labels = [text.get_text() for text in texts(drawn(history([2.0, 0.25, 1.0])))]
    assert "epoch 2: lowest validation loss 0.250, accuracy 80.00%" in labels


def test_drops_of_the_learning_rate_are_lines_with_their_value(drawn):
    drawing = drawn(RUNS["the recipe"])
    labels = [text.get_text() for text in texts(drawing)]
    assert [label for label in labels if label.startswith(("lr", "→"))] == ["lr 0.1", "→ 0.01", "→ 0.001"]
    assert {30.5, 60.5} <= {float(line.get_xdata()[0]) for line in drawing.axes[0].lines}


def test_a_rate_that_changes_every_epoch_is_told_in_words(drawn):
    drawing = drawn(history(falling(20), lr=lambda epoch: 0.1 / epoch))
    assert "lr from 0.1 to 0.005, changed 19 times" in [text.get_text() for text in texts(drawing)]
    assert len(drawing.axes[0].lines) == 3  # training, validation and the ring


def test_one_explosion_leaves_the_other_epochs_their_room(drawn):
    drawing = drawn(RUNS["an explosion in the middle"])
    assert drawing.axes[0].get_ylim()[1] < 20
    assert "▲ 1e8 in epoch 41" in [text.get_text() for text in texts(drawing)]


def test_a_loss_of_zero_is_marked_as_zero_on_the_logarithmic_scale(drawn):
    axes = drawn(RUNS["a loss of zero"]).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_yticklabels()[0].get_text() == "0"
    assert "train 0" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "epochs, ticks",
    [(1, [1]), (3, [1, 2, 3]), (30, [1, 5, 10, 15, 20, 25, 30]), (47, [1, 5, 10, 15, 20, 25, 30, 35, 40, 47])],
)
def test_the_first_and_the_last_epoch_are_ticks_and_no_two_crowd(epochs, ticks):
    assert plot.epoch_ticks(epochs) == ticks


def test_ticks_of_the_loss_are_plain_numbers():
    assert [figure.number(tick) for tick in plot.log_ticks(0.04, 2.5)] == ["0.05", "0.1", "0.2", "0.5", "1", "2"]
    assert [figure.number(value) for value in (0, 0.3, 1234, 1e8, 3e-7)] == ["0", "0.3", "1,234", "1e8", "3e-7"]


def test_the_line_of_facts_says_what_is_not_cifar_10_and_what_is_unfinished():
    rows = history(falling(30))
    assert "30 of 90 epochs" in plot.caption(CONFIG, rows, 1000)
    options = CONFIG["options"] | {"data": "synthetic", "subset": 200, "epochs": 30}
    caption = plot.caption({"options": options}, rows, 1000)
    assert "the first 200 images of synthetic data, not CIFAR-10" in caption and " of 30 epochs" not in caption


def test_whoever_looks_sees_a_whole_picture():
    os.mkdir("folder")
    Path("folder/new.png").write_bytes(b"old")
    with open("folder/new.png", "rb") as reader:
        figure.write_file(Path("folder/new.png"), b"new", "")
        assert reader.read() == b"old"  # the file that was open is not the one that was written
    assert os.listdir("folder") == ["new.png"] and Path("folder/new.png").read_bytes() == b"new"


def test_a_device_is_written_to_and_a_link_stays_a_link():
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    figure.write_file(Path("pipe"), b"picture", "")
    assert os.read(reader, 100) == b"picture" and Path("pipe").is_fifo()
    os.close(reader)
    os.symlink("real.png", "link.png")
    figure.write_file(Path("link.png"), b"picture", "")
    assert Path("link.png").is_symlink() and Path("real.png").read_bytes() == b"picture"


def test_a_picture_that_cannot_be_written_is_a_line(drawn):
    os.mkdir("curve.png")
    with pytest.raises(UserError, match="cannot write curve.png: .*; name another file with --plot"):
        drawn(RUNS["one epoch"])


def test_the_curve_is_redrawn_from_a_checkpoint_folder(trained, tmp_path):
    code, out, err = run("utils.plot", "--checkpoint-dir", trained, "--plot", "again.png", cwd=tmp_path)
    assert (code, out, err) == (0, "again.png\n", "")
    assert (tmp_path / "again.png").read_bytes()[:4] == b"\x89PNG"


def test_an_empty_folder_is_a_line():
    with pytest.raises(UserError, match="no epoch in checkpoints"):
        plot.main([])
