import os

from conftest import run, start_warm

ROWS = (
    "plain loop, 0 workers", "plain loop, ", "this project, eager", "this project, compiled", "ceiling: arithmetic",
    "ceiling: memory", "loading", "augmenting", "stepping", "validating", "saving", "drawing", "all", "validation",
    "peak memory", "test.py",
)  # fmt: skip


def test_the_benchmark_prints_every_row_and_leaves_nothing_behind():
    options = "--widths 4 --blocks 1 --batch-size 16 --steps 2 --turns 1 --device cpu".split()
    code, out, err = run("utils.benchmark", *options, starter=start_warm)
    assert code == 0, err
    lines = out.splitlines()
    assert [row for row in ROWS if not any(line.startswith(row) for line in lines)] == []
    assert sum(line.startswith("plain loop") for line in lines) == 2
    assert os.listdir() == []
