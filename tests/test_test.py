import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

import test
from conftest import run, start_warm
from utils import checkpoint, files, plot
from utils.errors import UserError


def test_the_verdict_has_accuracy_with_its_interval_loss_and_every_class(trained):
    code, out, err = run("test.py", "--epoch", "2", "--checkpoint-dir", trained, starter=start_warm)
    assert (code, err) == (0, "")
    accuracy, low, high = (
        float(number)
        for number in re.search(r"accuracy +([\d.]+)%  .95% interval ([\d.]+)% to ([\d.]+)%", out).groups()
    )
    assert low < accuracy < high
    assert "synthetic" in out and "loss" in out
    assert all(name in out for name in test.CLASSES)


def test_the_verdict_needs_the_checkpoint_alone(trained, capsys):
    shutil.copytree(trained, "elsewhere", ignore=shutil.ignore_patterns("epoch_01*", "epoch_02*", "history*", ".lock"))
    for folder in ("elsewhere", str(trained)):
        test.main(["--epoch", "3", "--checkpoint-dir", folder, "--batch-size", "77"])
    first, second = capsys.readouterr().out.split("epoch 3 on")[1:]
    assert first == second


def test_with_more_views_the_verdict_says_so(trained, capsys):
    test.main(["--epoch", "3", "--checkpoint-dir", str(trained), "--views", "6"])
    assert capsys.readouterr().out.startswith("epoch 3, by 6 views of each image, on 1,000 synthetic test images")


def test_with_two_views_a_picture_and_its_mirror_image_are_the_same(capsys):
    picture = Image.linear_gradient("L").rotate(90)
    picture.save("a.png")
    ImageOps.mirror(picture).save("b.png")
    for option, same in (([], False), (["--views", "2"], True)):
        test.main(["--pretrained", "best", "--image", "a.png", "b.png", *option])
        *note, first, second = capsys.readouterr().out.splitlines()
        assert note == ["note: by 2 views of each picture"] * same
        assert (first.removeprefix("a.png") == second.removeprefix("b.png")) == same


def test_wilson_interval_agrees_with_the_textbook():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, and 0 of 20
    assert test.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert test.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_a_missing_epoch_is_answered_with_those_there_are(trained):
    with pytest.raises(UserError, match="no epoch 7 .*without --epoch"):
        test.main(["--epoch", "7", "--checkpoint-dir", str(trained)])


def test_an_empty_folder_is_a_line():
    with pytest.raises(UserError, match="no epoch in checkpoints; train first"):
        test.main(["--epoch", "1"])


def test_without_a_terminal_the_table_is_shown_and_the_code_is_2(trained):
    code, out, err = run("test.py", "--checkpoint-dir", trained, starter=start_warm)
    assert code == 2
    assert len(re.findall(r"^ +[123][* ]", out, re.M)) == 3 and out.count("*") == 2
    assert err == "error: no terminal to ask for an epoch; name it with --epoch\n"


def test_the_star_is_on_the_best_of_the_epochs_that_are_there(folder, monkeypatch, capsys):
    rows = checkpoint.load_newest(Path("checkpoints")).history
    losses = {row["epoch"]: row["val_loss"] for row in rows}
    best, second, _ = sorted(losses, key=losses.get)
    files.epoch_path(Path("checkpoints"), best).unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match="no terminal"):
        test.main([])
    shown = re.findall(r"^ +(\d)([* ]) ", capsys.readouterr().out, re.M)
    assert shown == [(str(epoch), "*" if epoch == second else " ") for epoch in (1, 2, 3) if epoch != best]


def test_weights_taken_out_of_a_checkpoint_give_its_verdict(trained, monkeypatch, capsys):
    checkpoint.save_weights(Path("own.pth"), checkpoint.load(trained / "epoch_03.pth"))
    monkeypatch.setitem(test.PRETRAINED, "default", Path("own.pth"))
    test.main(["--epoch", "3", "--checkpoint-dir", str(trained)])
    test.main(["--pretrained", "default"])
    of_epoch, of_weights = re.findall(r" on 1,000 (.*?)  truck", capsys.readouterr().out, re.S)
    assert of_epoch == of_weights


@pytest.mark.parametrize("name", test.PRETRAINED)
def test_the_repository_comes_with_networks_that_are_ready_to_use(name, capsys):
    path = test.PRETRAINED[name]
    assert path.stat().st_size < 2_000_000
    assert torch.load(path, weights_only=True).keys() == {"format", "model", "config"}
    Image.new("RGB", (32, 32), "blue").save("sea.png")
    assert test.main(["--pretrained", name, "--image", "sea.png"]) == 0
    assert "%" in capsys.readouterr().out


def test_damaged_weights_are_refused_in_one_line(trained, monkeypatch):
    checkpoint.save_weights(Path("own.pth"), checkpoint.load(trained / "epoch_03.pth"))
    Path("own.pth").write_bytes(Path("own.pth").read_bytes()[:-100])
    monkeypatch.setitem(test.PRETRAINED, "default", Path("own.pth"))
    with pytest.raises(UserError, match="own.pth is not a usable checkpoint: .*; get it again"):
        test.main(["--pretrained", "default"])


@pytest.mark.parametrize(
    "option, reason",
    [
        ("--checkpoint-dir checkpoints --pretrained best", "with --pretrained"),
        ("--data-dir data --epoch 1 --image a.png", "with --image"),
        ("--data-dir data --epoch 1", "for a network that was trained on synthetic images"),
    ],
)
def test_an_option_without_effect_is_refused(folder, option, reason):
    with pytest.raises(UserError, match=f"{option.split()[0]} has no effect {reason}; leave it out"):
        test.main(option.split())


def test_of_a_folder_one_too_deep_or_too_high_the_right_one_is_named(folder):
    Path("checkpoints/inner").mkdir()
    cases = {
        "checkpoints/epoch_02.pth": "'checkpoints/epoch_02.pth' is a file; name its folder, 'checkpoints'",
        "checkpoints/inner": "there is no epoch in checkpoints/inner, but there is in checkpoints;",
        ".": "there is no epoch in ., but there is in checkpoints;",
    }
    for name, text in cases.items():
        for main in test.main, plot.main:
            with pytest.raises(UserError, match=re.escape(text)):
                main(["--checkpoint-dir", name])
