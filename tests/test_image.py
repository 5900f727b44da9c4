"""Pictures of the user's own: read by dataset.py, classified by test.py --image."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
import test
from conftest import ENVIRONMENT, run, start_warm
from dataset import read_image
from utils.errors import UserError


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8).squeeze()


def colour(path):
    """The colour of a picture of one colour."""
    image = read_image(path)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert (image == image[:, :1, :1]).all()
    return image[:, 0, 0].tolist()


def test_an_image_of_32_by_32_pixels_is_read_as_it_is():
    pixels = noise(32, 32)
    Image.fromarray(pixels).save("a.png")
    assert np.array_equal(read_image("a.png").permute(1, 2, 0).numpy(), pixels)


def test_the_square_in_the_middle_is_taken():
    pixels = np.zeros((96, 320, 3), np.uint8)
    pixels[:, 112:208] = [10, 20, 30]
    Image.fromarray(pixels).save("wide.png")
    Image.fromarray(pixels.swapaxes(0, 1)).save("high.png")
    assert colour("wide.png") == colour("high.png") == [10, 20, 30]


def test_a_large_picture_is_averaged_and_not_sampled():
    checks = np.indices((320, 320)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save("checks.png")
    assert (read_image("checks.png").int() - 128).abs().max() <= 2


def test_a_photograph_stands_upright():
    upright = np.zeros((40, 40, 3), np.uint8)
    upright[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise by 90 degrees
    Image.fromarray(np.rot90(upright)).save("photo.png", exif=exif)
    image = read_image("photo.png")
    assert image[:, :14].min() > 200 and image[:, 18:].max() < 55


def test_what_is_transparent_is_white():
    Image.new("RGBA", (50, 50), (200, 0, 0, 0)).save("rgba.png")
    Image.new("LA", (50, 50), (0, 0)).save("la.png")
    Image.new("P", (50, 50), 3).save("palette.gif", transparency=3)
    Image.new("L", (50, 50), 9).save("grey.png", transparency=9)
    assert all(colour(name) == [255] * 3 for name in ("rgba.png", "la.png", "palette.gif", "grey.png"))
    Image.new("RGBA", (50, 50), (0, 0, 0, 128)).save("half.png")
    assert colour("half.png") == [127] * 3


@pytest.mark.parametrize(
    "mode, value, name, expected",
    [
        ("L", 77, "a.png", 77),
        ("1", 1, "a.png", 255),
        ("CMYK", (0, 0, 0, 155), "a.tif", 100),
        ("I;16", 77 * 257, "a.png", 77),
        ("I;16", 200, "a.png", 1),
        ("I", 77, "a.tif", 77),
        ("I", 77 * 257, "a.tif", 77),
        ("F", 0.2, "a.tif", 51),
        ("F", 51.0, "a.tif", 51),
        ("F", float("nan"), "a.tif", 0),
    ],
)
def test_every_kind_of_pixel_becomes_8_bits(mode, value, name, expected):
    Image.new(mode, (40, 50), value).save(name)
    assert colour(name) == [expected] * 3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (33, 32), (7, 5)])
def test_any_size_will_do(size):
    Image.new("RGB", size, (1, 2, 3)).save("a.png")
    assert colour("a.png") == [1, 2, 3]


def test_what_is_no_picture_is_a_line_with_its_name(tmp_path):
    Image.fromarray(noise(100, 100)).save("whole.jpg")
    contents = {
        "text.jpg": b"hello",
        "empty.png": b"",
        "cut.jpg": (tmp_path / "whole.jpg").read_bytes()[:2000],
        "header.ppm": b"P6 9 9 255\n",
        "bomb.ppm": b"P6 60000 60000 255\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "missing.png", "."):
        with pytest.raises(UserError) as caught:
            read_image(name)
        line = str(caught.value)
        assert name in line and "; " in line and "\n" not in line
        assert ("too large" in line) == (name == "bomb.ppm")


def peak_memory(name):
    """Megabytes that a process takes at most which reads this picture, and what it reads."""
    code = f"import re, dataset; print(dataset.read_image({name!r}).float().mean().item());"
    code += "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"  # since exec, unlike getrusage
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    mean, kilobytes = map(float, done.stdout.split())
    return kilobytes / 1000, mean


def test_a_large_picture_takes_little_more_memory_than_its_pixels():
    for name, size in ("small.png", (32, 32)), ("large.jpg", (12_000, 9_000)), ("large.png", (13_300, 13_300)):
        Image.new("RGB", size, (200, 200, 200)).save(name)
    small, jpeg, png = map(peak_memory, ("small.png", "large.jpg", "large.png"))
    assert jpeg[0] < small[0] + 300 and png[0] < small[0] + 800
    assert small[1] == jpeg[1] == png[1] == 200


def test_an_animation_is_its_first_frame_and_a_line_says_so(capsys):
    frames = [Image.new("RGB", (40, 40), (value, 0, 0)) for value in (10, 200)]
    frames[0].save("a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert colour("a.webp") == [10, 0, 0]
    assert capsys.readouterr().err == "note: a.webp has several frames; this is about the first one\n"


def test_a_bad_picture_is_named_and_the_others_are_classified(trained):
    Image.new("RGB", (40, 40)).save("good\x1b[2J\n.png")
    Path("bad.png").write_text("hello")
    names = "bad.png", "good\x1b[2J\n.png", "missing.png"
    code, out, err = run("test.py", "--epoch", "3", "--checkpoint-dir", trained, "--image", *names, starter=start_warm)
    assert code == 2 and out.splitlines()[-1].startswith(r"good\x1b[2J\n.png  ")
    bad, missing = err.splitlines()
    assert bad.startswith("error: bad.png is no picture") and missing.startswith("error: cannot read the picture miss")


def test_images_are_classified_without_any_data_set(trained, capsys, monkeypatch):
    monkeypatch.setattr(dataset, "load_test", None)
    for index, name in enumerate(("one.png", "another picture.jpg")):
        Image.fromarray(noise(40 + index, 60)).save(name)
    test.main(["--epoch", "3", "--checkpoint-dir", str(trained), "--image", "one.png", "another picture.jpg"])
    note, *lines = capsys.readouterr().out.splitlines()
    assert "synthetic" in note and "accuracy" not in note
    assert [line[:19].strip() for line in lines] == ["one.png", "another picture.jpg"]
    for line in lines:
        guesses = re.findall(r"(\w+) +([\d.]+)%", line[19:])
        percentages = [float(percentage) for _, percentage in guesses]
        assert len({name for name, _ in guesses} & set(test.CLASSES)) == 3
        assert percentages == sorted(percentages, reverse=True) and sum(percentages) <= 100.2


def test_a_test_image_in_a_file_is_predicted_as_in_the_test_set(trained, capsys):
    options = ["--epoch", "3", "--checkpoint-dir", str(trained)]
    test.main([*options, "--report", "report"])
    predicted = [line.split(",")[2] for line in open("report/predictions.csv").read().splitlines()[1:6]]
    names = [f"{index}.png" for index in range(5)]
    for name, image in zip(names, dataset.load_test("synthetic", "").images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)
    capsys.readouterr()
    test.main([*options, "--image", *names])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]] == predicted


def test_image_and_report_exclude_each_other(trained):
    with pytest.raises(UserError, match="--image.*not allowed with.*--report"):
        test.main(["--report", "report", "--image", "a.png"])
