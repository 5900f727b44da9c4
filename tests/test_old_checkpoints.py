"""A checkpoint that was written once is tested and resumed by every later version.

format_6/ holds files of the first version that promised this: two runs of three epochs on synthetic images after their
second one, `plain` and `taught` (by a teacher), and the weights of `taught` alone. `expected.pth` has what that version
made of them: the logits of four images, and all weights and statistics after the third epoch.
"""

import shutil
from pathlib import Path

import pytest
import torch

import train
from conftest import ROOT
from models import ResidualCNN
from utils import checkpoint

OLD = ROOT / "tests" / "format_6"
EXPECTED = torch.load(OLD / "expected.pth", weights_only=True)


def logits_of(saved):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return saved.build_network(ResidualCNN).eval()(images)


@pytest.mark.parametrize("name", ["plain", "taught"])
def test_the_network_of_an_old_file_gives_the_same_logits(name):
    shutil.copy(OLD / f"{name}_epoch_02.pth", "epoch_02.pth")
    torch.testing.assert_close(logits_of(checkpoint.load(Path("epoch_02.pth"))), EXPECTED[name]["logits"])


def test_so_does_an_old_file_of_weights_alone():
    saved = checkpoint.load(OLD / "weights.pth", weights_alone=True)
    torch.testing.assert_close(logits_of(saved), EXPECTED["taught"]["logits"])


@pytest.mark.parametrize("name", ["plain", "taught"])
def test_an_old_run_goes_on_as_the_version_that_began_it_would_have(name):
    Path("checkpoints").mkdir()
    shutil.copy(OLD / f"{name}_epoch_02.pth", "checkpoints/epoch_02.pth")
    teacher = ["--teacher", str(OLD / "plain_epoch_02.pth")] if name == "taught" else []
    assert train.main(["--resume", *teacher]) == 0
    model = checkpoint.load(Path("checkpoints/epoch_03.pth")).model
    weights = torch.cat([model[key].flatten().float() for key in sorted(model)])
    torch.testing.assert_close(weights, EXPECTED[name]["weights"], rtol=1e-3, atol=1e-3)  # processors round differently
