import argparse
import functools
import math
import platform

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from dataset import Batches, Split
from models import ResidualCNN
from utils import accelerate, engine
from utils.engine import derived_seed
from utils.errors import UserError
from utils.runtime import Runtime, torch_errors_in_one_line

MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
CPU = Runtime(torch.device("cpu"))


def images(count):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.randint(0, 10, (count,), generator=generator))


@functools.cache
def losses_of_ten_steps(fast, precision="fp32"):
    """Loss of each of ten steps: compiled and channels last, or as the tutorials have it."""
    torch.manual_seed(0)
    network = ResidualCNN((8, 16), (1, 1), dropout=0)
    if fast:
        network = network.to(memory_format=torch.channels_last)
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    scheduler = StepLR(optimizer, 30)
    losses = []
    for step in range(10):
        batch = Batches(images(32), 32, MEAN, STD, torch.Generator().manual_seed(step))
        if fast:
            step = accelerate.accelerate(
                engine.TrainingStep(network, optimizer, CPU), CPU, precision, 32, compiled=True
            )
            losses.append(engine.train_one_epoch(network, step, batch, scheduler, CPU)[0])
        else:
            (pixels, labels), *_ = batch
            loss = F.cross_entropy(network(pixels.contiguous()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return torch.tensor(losses)


def test_compiled_and_channels_last_the_first_ten_steps_are_those_of_the_plain_loop():
    plain, fast = losses_of_ten_steps(fast=False), losses_of_ten_steps(fast=True)
    assert plain.std() > 0.01  # ten steps that go somewhere
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-3)


def test_in_bf16_the_first_ten_steps_are_those_of_fp32_to_two_percent():
    exact, rounded = losses_of_ten_steps(fast=True), losses_of_ten_steps(fast=True, precision="bf16")
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0)


def test_a_compiler_that_fails_is_a_line():
    def backend(graph, inputs):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(UserError, match=r"torch.compile failed \(.*No space left on device\); go on with --compile off"),
        torch_errors_in_one_line(),
    ):
        torch.compile(torch.neg, backend=backend)(torch.zeros(3))


def test_on_mps_the_network_is_not_in_channels_last():
    formats = [accelerate.memory_format(torch.device(name)) for name in ("mps", "cpu", "cuda")]
    assert formats == [torch.contiguous_format, torch.channels_last, torch.channels_last]


@pytest.mark.parametrize(
    "device, instructions, from_images",
    [("cpu", "amx_tile", 200_000), ("cpu", "avx512_f", math.inf), ("cuda", "avx2", 4_000_000), ("mps", "", math.inf)],
)
def test_a_long_run_is_compiled_and_a_short_one_is_not(device, instructions, from_images, monkeypatch):
    assert "amx_tile" in torch.cpu.get_capabilities() or platform.machine() != "x86_64"  # as torch spells it
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True})
    for count in (199_999, 200_000, 90 * 45_000):
        chosen = accelerate.choose_compile("auto", count, torch.device(device))
        assert chosen == ("on" if count >= from_images else "off")


def test_bf16_is_refused_where_torch_has_none():
    with pytest.raises(UserError, match="--precision bf16: torch has no autocast on meta"):
        accelerate.choose_precision("bf16", torch.device("meta"))


@pytest.mark.parametrize(
    "has, chosen, emulated",
    [
        ("avx2", "fp32", True),
        ("avx512_bf16", "fp32", False),  # an Intel without AMX
        ("avx512_bf16 sse4a", "bf16", False),  # an AMD
        ("avx512_bf16 amx_bf16", "bf16", False),
        ("bf16", "fp32", False),  # an ARM, which has not been measured
    ],
)
def test_on_a_cpu_training_is_in_bf16_where_that_is_faster(has, chosen, emulated, monkeypatch):
    assert {"avx512_bf16", "sse4a"} <= set(torch.cpu.get_capabilities()) or platform.machine() != "x86_64"  # the names
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has.split(), True))
    assert accelerate.choose_precision("auto", CPU.device) == chosen
    assert accelerate.choose_precision("fp32", CPU.device) == "fp32"
    assert ("emulates" in accelerate.describe_precision("bf16", CPU.device)) == emulated


def test_label_smoothing_changes_what_is_learned_and_not_the_loss_that_is_shown():
    weights, losses = [], []
    for smoothing in (0.0, 0.5):
        torch.manual_seed(0)
        network, batch = ResidualCNN((4,), (1,)), Batches(images(8), 8, MEAN, STD)
        optimizer = SGD(network.parameters(), 0.1)
        scheduler = StepLR(optimizer, 30)
        step = engine.TrainingStep(network, optimizer, CPU, smoothing)
        losses.append(engine.train_one_epoch(network, step, batch, scheduler, CPU)[0])
        weights.append(network.classifier.weight)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert not torch.allclose(*weights)


def test_loss_and_accuracy_are_means_over_images_not_over_batches():
    torch.manual_seed(0)
    network, split = ResidualCNN((4,), (1,)), images(10)
    (whole, labels), *_ = Batches(split, 10, MEAN, STD)
    with torch.inference_mode():
        logits = network.eval()(whole)
    expected = F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()
    predictions = engine.predict(network, Batches(split, 7, MEAN, STD))
    loss, accuracy = engine.loss_and_accuracy(*predictions, CPU)
    torch.testing.assert_close(torch.tensor([loss, accuracy]), torch.tensor(expected))


def test_with_more_views_the_logits_are_the_mean_over_mirror_images_and_moved_ones():
    torch.manual_seed(0)
    network, split = ResidualCNN((4,), (1,)), images(10)

    def logits(views, change=lambda pixels: pixels):
        changed = Split(change(split.images), split.labels)
        return engine.predict(network, Batches(changed, 7, MEAN, STD), views)[0]

    def mirrored(pixels):
        return pixels.flip(3)

    def moved(pixels, rows):  # by numpy: a border that mirrors what lies inside it
        padded = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
        return torch.from_numpy(padded[:, :, rows, rows].copy())

    assert not torch.allclose(logits(1), logits(1, mirrored), atol=1e-3)
    torch.testing.assert_close(logits(2), (logits(1) + logits(1, mirrored)) / 2)
    lower, upper = (functools.partial(moved, rows=rows) for rows in (slice(0, 32), slice(2, 34)))
    torch.testing.assert_close(logits(6), logits(2) / 2 + (logits(2, lower) + logits(2, upper)) / 4)


@pytest.mark.parametrize("part", ["loss", "weights", "statistics", "momentum"])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(part):
    network = ResidualCNN((4,), (1,))
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    row = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0}
    engine.check_finite(row, network, optimizer)
    places = {
        "weights": network.stem[0].weight.data,
        "statistics": network.stem[1].running_var,
        "momentum": optimizer.state[network.classifier.weight]["momentum_buffer"],
    }
    if part in places:
        places[part].view(-1)[0] = math.inf
    else:
        row["val_loss"] = math.nan
    with pytest.raises(UserError, match="not finite: training has diverged; try a smaller --lr"):
        engine.check_finite(row, network, optimizer)


def test_a_schedule_that_nobody_handles_is_an_error_and_not_a_default():
    with pytest.raises(ValueError, match="no schedule is called 'cosine'"):
        engine.build_scheduler(SGD([torch.zeros(1)], 0.1), argparse.Namespace(schedule="cosine"), 10)


def test_seeds_of_neighbouring_epochs_and_processes_differ():
    numbers = [(seed, epoch, *process) for seed in range(3) for epoch in range(3) for process in ((), (1,), (2,))]
    assert len({derived_seed(*number) for number in numbers}) == len(numbers)
