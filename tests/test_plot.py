import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import train
from conftest import ENVIRONMENT, run
from utils import plot
from utils.checkpoint import Config
from utils.errors import UserError

OPTIONS = {"data": "cifar10", "epochs": 90, "seed": 0}
CONFIG = Config(options=OPTIONS, network={}, mean=[0.5] * 3, std=[0.2] * 3, teacher=None)


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
    heading = plot.write_heading
    monkeypatch.setattr(plot, "write_heading", lambda *arguments: (figures.append(arguments[0]), heading(*arguments)))

    def draw(rows, config=CONFIG):
        plot.LossCurve(Path("curve.png"), config, 387_514).draw(rows)
        return figures[-1]

    return draw


def texts(drawing):
    return [text for axes in drawing.axes for text in axes.texts] + drawing.texts


def assert_labels_keep_apart(drawing):
    boxes = [(label.get_text(), label.get_window_extent().padded(-1)) for label in texts(drawing)]
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
    "rates of many digits": history(falling(120), lr=lambda epoch: 0.05 * 0.3 ** ((epoch - 1) // 30)),
    "drops close together": history(falling(90), lr=lambda epoch: 0.1 * 0.37 ** ((epoch - 1) // 15)),
    "one cycle": history(falling(10), lr=lambda epoch: 0.1 * math.sin(epoch / 4)),
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


def test_loss_is_left_and_accuracy_right_at_twice_the_width_of_readme(drawn):
    left, right = drawn(RUNS["the recipe"]).axes
    assert left.get_ylabel().startswith("loss") and right.get_ylabel() == "accuracy"
    assert left.bbox.x1 < right.bbox.x0 and left.bbox.y0 == right.bbox.y0
    with Image.open("curve.png") as picture:
        assert picture.size == (1660, 760)


def test_the_epoch_of_lowest_validation_loss_is_named_with_its_accuracy(drawn):
    labels = [text.get_text() for text in texts(drawn(history([2.0, 0.25, 1.0])))]
    assert "○ epoch 2: lowest validation loss 0.25, validation accuracy 80.00%" in labels


def test_training_and_validation_differ_without_colour(drawn):
    for axes in drawn(RUNS["the recipe"]).axes:
        validation, train = axes.lines[:2]
        assert (validation.get_linestyle(), train.get_linestyle()) == ("-", "--")


def test_last_values_are_at_the_ends_of_the_lines(drawn):
    left, right = drawn(history([2.0, 1.0])).axes
    ends = {text.get_text().strip(): text.get_position() for axes in (left, right) for text in axes.texts}
    assert ends["validation 1"] == (1.02, 1) and ends["train 0.5"] == (1.02, 0.5)
    assert ends["validation 50.0%"] == (1.02, 1 / 2) and ends["train 66.7%"] == (1.02, 2 / 3)


def rates(axes):
    return [text.get_text() for text in axes.texts if text.get_text().startswith(("lr", "→"))]


def test_drops_of_the_learning_rate_are_lines_with_their_value(drawn):
    for axes in drawn(RUNS["the recipe"]).axes:
        assert rates(axes) == ["lr 0.1", "→ 0.01", "→ 0.001"]
        assert {30.5, 60.5} <= {float(line.get_xdata()[0]) for line in axes.lines}


def test_a_rate_that_changes_every_epoch_is_told_in_words(drawn):
    for axes in drawn(RUNS["one cycle"]).axes:
        assert rates(axes) == ["lr 0.0247 to 0.0598, highest 0.0997"]
        assert 1.5 not in [float(line.get_xdata()[0]) for line in axes.lines]


def test_an_explosion_leaves_the_other_epochs_their_room(drawn):
    assert drawn(RUNS["an explosion in the middle"]).axes[0].get_ylim()[1] < 30
    axes = drawn(RUNS["an explosion at the end"]).axes[0]
    assert axes.get_ylim()[1] < 30 and "validation 1e+08" in [text.get_text().strip() for text in axes.texts]


def test_a_loss_of_zero_leaves_the_other_epochs_their_room(drawn):
    axes = drawn(RUNS["a loss of zero"]).axes[0]
    assert axes.get_ylim()[0] > 5e-4
    assert "train 0" in [text.get_text().strip() for text in axes.texts]


def visible_ticks(axis):
    low, high = axis.get_view_interval()
    return [tick.label1.get_text() for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.parametrize(
    "epochs, ticks", [(1, ["1"]), (3, ["1", "2", "3"]), (90, ["20", "40", "60", "80"]), (47, ["10", "20", "30", "40"])]
)
def test_ticks_of_epochs_are_whole_numbers(epochs, ticks, drawn):
    axes = drawn(history(falling(epochs))).axes[0]
    assert visible_ticks(axes.xaxis) == ticks


def test_ticks_of_the_loss_are_plain_numbers(drawn):
    axes = drawn(history(falling(90))).axes[0]
    assert axes.get_yscale() == "log"
    assert visible_ticks(axes.yaxis) == ["0.05", "0.1", "0.2", "0.5", "1", "2"]
    assert drawn(history([1.7, 1.4])).axes[0].get_yscale() == "linear"


def test_the_line_of_facts_says_what_is_not_cifar_10_and_what_is_unfinished():
    rows = history(falling(30))
    assert plot.caption(CONFIG, rows, 1000) == "1,000 parameters · CIFAR-10 · 30 of 90 epochs, seed 0 · 20.0 s an epoch"
    changed = "--epochs 30 --data synthetic"
    config = replace(CONFIG, options=OPTIONS | {"data": "synthetic", "epochs": 30}, teacher=64 * "a", changed=changed)
    caption = plot.caption(config, rows, 1000)
    assert caption.startswith("1,000 parameters · synthetic data, not CIFAR-10 · 30 of 30 epochs")
    assert caption.endswith("· --epochs 30 --data synthetic · with a teacher")


def test_whoever_looks_sees_a_whole_picture(drawn):
    Path("curve.png").write_bytes(b"old")
    with open("curve.png", "rb") as reader:
        drawn(RUNS["one epoch"])
        assert reader.read() == b"old"  # the file that was open is not the one that was written
    assert os.listdir() == ["curve.png"] and Path("curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_a_line(drawn):
    os.mkdir("curve.png")
    with pytest.raises(UserError, match="cannot write curve.png: .*; name another file with --plot"):
        drawn(RUNS["one epoch"])


def test_a_link_to_a_picture_stays_one(drawn):
    os.mkdir("elsewhere")
    os.symlink("elsewhere/target.png", "curve.png")
    drawn(history([1.7]))
    assert os.path.islink("curve.png") and os.listdir("elsewhere") == ["target.png"]
    os.symlink("/proc/curve.png", "nowhere.png")
    with pytest.raises(UserError, match="cannot write to the folder /proc"):
        plot.LossCurve(Path("nowhere.png"), CONFIG, 387_514).prepare()


def test_what_draws_is_imported_before_training():
    """Where Ctrl-C cuts an import off, it cannot be done again to draw the last curve."""
    program = f"""
import sys
from pathlib import Path
from utils import plot
from utils.checkpoint import Config
assert "matplotlib" not in sys.modules
curve = plot.LossCurve(Path("curve.png"), {CONFIG}, 387_514)
curve.prepare()
before = set(sys.modules)
curve.draw({RUNS["one cycle"]})
print(*set(sys.modules) - before)
"""
    environment = os.environ | ENVIRONMENT
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_pipe_or_a_device_is_not_replaced_by_a_picture():
    os.mkfifo("pipe.png")
    with pytest.raises(UserError, match="pipe.png is a folder, a device or a pipe; name another file with --plot"):
        plot.LossCurve(Path("pipe.png"), CONFIG, 387_514).prepare()


def test_a_picture_that_cannot_be_written_during_training_does_not_end_it():
    curve = plot.LossCurve(Path("folder/curve.png"), CONFIG, 387_514)
    curve.prepare()
    os.rename("folder", "away")
    curve.draw_if_due(RUNS["one epoch"])
    os.rename("away", "folder")
    curve.draw(RUNS["one epoch"])
    assert curve.path.exists()


def test_drawing_takes_a_fiftieth_of_the_time_at_most(monkeypatch):
    now, drawn_at = [0], []

    def draw(history):
        drawn_at.append(now[0])
        now[0] += 2

    curve = plot.LossCurve(Path("curve.png"), CONFIG, 387_514)
    monkeypatch.setattr(plot.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(curve, "draw", draw)
    for _ in range(300):  # epochs of a second
        curve.draw_if_due([])
        now[0] += 1
    assert drawn_at == [0, 102, 204]


def test_the_curve_is_redrawn_from_a_checkpoint_folder(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")  # where matplotlib would keep its cache
    code, out, err = run("utils.plot", "--checkpoint-dir", trained, "--plot", "new/again.png", cwd=tmp_path)
    assert (code, out, err) == (0, "new/again.png\n", "")
    assert (tmp_path / "new/again.png").read_bytes()[:4] == b"\x89PNG"


def test_an_empty_folder_is_a_line():
    with pytest.raises(UserError, match="no epoch in checkpoints"):
        plot.main([])


@pytest.mark.parametrize("spelling", ["checkpoints", "./checkpoints/", "{here}/checkpoints"])
def test_a_resumed_run_is_drawn_where_it_was_however_its_folder_is_spelt(folder, spelling, tmp_path):
    train.main(["--resume", "--epochs", "4", "--checkpoint-dir", spelling.format(here=tmp_path)])
    assert Path("loss_curve.png").exists() and set(os.listdir()) == {"checkpoints", "loss_curve.png"}
