import os

from conftest import run
from models import ResidualCNN
from utils.benchmark import count_multiply_adds

ROWS = (
    "machine", "network", "length", "plain loop, 0 workers", "plain loop, ", "this project, eager",
    "this project, compiled", "ceiling: arithmetic",
)  # fmt: skip


def test_the_benchmark_prints_every_row_and_leaves_nothing_behind():
    options = "--widths 4 --blocks 1 --batch-size 16 --steps 2 --turns 1 --device cpu".split()
    code, out, err = run("utils.benchmark", *options)
    assert code == 0, err
    lines = out.splitlines()
    assert [row for row in ROWS if not any(line.startswith(row) for line in lines)] == []
    assert sum(line.startswith("plain loop") for line in lines) == 2
    assert os.listdir() == []


def test_the_multiply_adds_of_an_image_are_counted():
    network = ResidualCNN((4,), (1,))
    pixels = 32 * 32
    stem, convolution, classifier = 3 * 4 * 9, 4 * 4 * 9, 4 * 10
    assert count_multiply_adds(network) == pixels * (stem + 2 * convolution) + classifier
