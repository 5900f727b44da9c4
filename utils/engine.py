"""One epoch of training, predictions and their loss, and the schedule of the learning rate."""

import argparse
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from utils import distillation
from utils.runtime import Runtime

Batch = tuple[Tensor, Tensor]  # images, float (B, 3, 32, 32), and labels, int64 (B,): this process's share
# How many training images, uncropped, batch norm's statistics are computed from when an epoch is over: those gathered
# during it are of cropped images, and of weights that have changed since (PreciseBN, arXiv 2105.07576, section 3).
STATISTICS_IMAGES = 2_000
WARMUP = 0.15  # of the steps of one cycle, up to --lr; the rest lead down (docs/accuracy.md)


def build_scheduler(optimizer: Optimizer, options: argparse.Namespace, steps_per_epoch: int) -> LRScheduler:
    """The learning rate's course, to be stepped after every step of the optimiser."""
    if options.schedule == "one-cycle":  # in straight lines up to --lr and down to nothing (arXiv 1708.07120)
        steps = options.epochs * steps_per_epoch
        return OneCycleLR(
            optimizer, options.lr, steps, pct_start=WARMUP, anneal_strategy="linear", cycle_momentum=False
        )
    return StepLR(optimizer, options.step_size * steps_per_epoch, options.gamma)


class Step:
    """One step of the optimiser on a batch; adds its loss and its number of correct predictions to `totals`.

    `totals` stays on the device, so that no step waits for that. The loss in it is that without label smoothing and
    teacher, as in `loss_and_accuracy`. `forward` is the network, or its compiled or parallel form; `teacher`: another
    network, compiled or not, whose answers are learned as well as the labels.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        optimizer: Optimizer,
        runtime: Runtime,
        label_smoothing: float = 0.0,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ):
        self.forward, self.optimizer, self.label_smoothing = forward, optimizer, label_smoothing
        self.teacher = teacher
        self.world_size = runtime.world_size
        self.totals = torch.zeros(2, device=runtime.device)

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> None:
        """Learn from images (B, 3, H, W) and labels (B,), this process's share of a batch of `size` images."""
        logits = self.forward(images)
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        if self.teacher:
            with torch.no_grad():
                answers = self.teacher(images)
            loss = torch.lerp(loss, distillation.loss(logits, answers), distillation.SHARE)
        self.optimizer.zero_grad()
        (loss * self.world_size / size).backward()  # the batch's mean: DDP divides by world_size
        self.optimizer.step()
        if self.label_smoothing or self.teacher:
            loss = F.cross_entropy(logits.detach(), labels, reduction="sum")
        self.totals += torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum()])


def train_one_epoch(
    network: nn.Module,
    step: Step,
    batches: Iterable[Batch],
    scheduler: LRScheduler,
    runtime: Runtime,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """One step of optimiser and scheduler per batch; returns mean loss and accuracy over the images, as augmented.

    `batches.sizes` has the sizes of the whole batches. Nothing in the loop waits for the device.
    """
    network.train()
    step.totals.zero_()
    for (images, labels), size in zip(batches, batches.sizes):
        step(images, labels, size)
        scheduler.step()
        on_step()
    loss_sum, correct = runtime.all_reduce(*step.totals.tolist())
    return loss_sum / sum(batches.sizes), correct / sum(batches.sizes)


def is_finite(loss: float, network: nn.Module, optimizer: Optimizer) -> bool:
    """Whether loss, weights, batch norm's statistics and momentum all are; waits for the device once."""
    momentum = [buffer for state in optimizer.state.values() for buffer in state.values()]
    return math.isfinite(loss + sum(tensor.sum() for tensor in [*network.state_dict().values(), *momentum]))


@torch.inference_mode()
def predict(network: nn.Module, batches: Iterable[Batch], views: int = 1) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of all batches, on the CPU; `views` as in `mean_logits`."""
    network.eval()
    results = [(mean_logits(network, images, views), labels) for images, labels in batches]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*results))
    return logits, labels


def mean_logits(network: Callable[[Tensor], Tensor], images: Tensor, views: int) -> Tensor:
    """Logits (B, classes) of images (B, 3, H, W), each seen in 1, 2 or 6 `views`; the time grows with them.

    1: as it is. 2: the mean of it and its mirror image. 6: half of that, and a quarter each of the same for the image
    moved by a pixel to the upper left and to the lower right (test-time augmentation as in
    github.com/KellerJordan/cifar10-airbench).
    """
    if views == 1:
        return network(images)
    if views == 2:
        return (network(images) + network(images.flip(3))) / 2
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = [padded[:, :, shift : shift + height, shift : shift + width] for shift in (0, 2)]
    return mean_logits(network, images, 2) / 2 + sum(mean_logits(network, each, 2) for each in moved) / 4


def loss_and_accuracy(logits: Tensor, labels: Tensor, runtime: Runtime) -> tuple[float, float]:
    """Mean cross-entropy and share of correct predictions over all processes; logits (N, classes), labels (N,)."""
    loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
    correct = (logits.argmax(dim=1) == labels).sum().item()
    loss_sum, correct, count = runtime.all_reduce(loss, correct, len(labels))
    return loss_sum / count, correct / count
