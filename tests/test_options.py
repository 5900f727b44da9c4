"""Options that are refused: by name, in one line, before anything is written."""

import os

import pytest

import train
from utils.errors import UserError


@pytest.mark.parametrize(
    "option",
    [
        *(
            f"--{name} {value}"
            for name in ("epochs", "batch-size", "step-size")
            for value in ("0", "-1", "nan", "x", "1e99")
        ),
        *(f"--lr {value}" for value in ("0", "-1", "nan", "inf", "1e39", "x")),
        *(
            f"--{name} {value}"
            for name in ("momentum", "weight-decay", "gamma", "dropout", "label-smoothing")
            for value in ("-1", "nan", "x")
        ),
        *(
            f"--{name} {value}"
            for name in ("widths", "blocks", "subset", "max-parameters")
            for value in ("0", "-1", "x")
        ),
        "--widths 16 99999999999",
        "--widths 4096 4096 --blocks 256 256",
        "--widths 4 8",
        "--widths 4 4 4 4 4 4 --blocks 1 1 1 1 1 1",
        "--seed -1",
        "--device quantum",
        "--device cuda:99",
        "--data mnist",
        "--compile maybe",
        "--schedule cosine",
        "--label-smoothing 1",
        "--cutout 33",
        "--nesterov --momentum 0",
        "--step-size 5 --schedule one-cycle",
        "--gamma 0.2 --schedule one-cycle",
        "--step-size 30 --recipe quick",
        "--data-dir elsewhere",
        "--subset 4500",
        "--sync-bn",
        "--plot curve",
        "--plot .png",
        "--plot checkpoints/epoch_01.pth",
        "--no-such-option",
        "--epoch 3",
    ],
)
def test_a_bad_option_is_refused_by_name_before_anything_is_written(option):
    with pytest.raises(UserError) as caught:
        train.main(["--data", "synthetic", *option.split()])
    assert option.split()[0] in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir() == []
