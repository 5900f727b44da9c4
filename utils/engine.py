"""The training step and its loss, one epoch of steps, the schedule of the learning rate, and evaluation."""

import argparse
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from torch.optim.swa_utils import update_bn

from utils.errors import UserError
from utils.runtime import Runtime

Batch = tuple[Tensor, Tensor]  # images, float (B, 3, 32, 32), and labels, int64 (B,): this process's shard
Forward = Callable[[Tensor], Tensor]  # images -> logits (B, classes): a network, or its compiled or parallel form
Step = Callable[[Tensor, Tensor, int], None]  # a `TrainingStep`, or its accelerated form

WARMUP = 0.15  # of one cycle's steps, up to --lr; the others lead down (docs/experiments.md)
# The teacher's part of the loss, and the temperature that softens probabilities, by github.com/HobbitLong/RepDistiller.
TEACHER_WEIGHT, TEMPERATURE = 0.9, 4.0
# Training images, uncropped, that batch norm's statistics are computed from when an epoch is over. Those gathered
# during it are of cropped images, and of weights that have changed since (PreciseBN, arXiv 2105.07576, section 3).
STATISTICS_IMAGES = 2_000


def build_scheduler(optimizer: Optimizer, options: argparse.Namespace, steps_per_epoch: int) -> LRScheduler:
    """The course of the learning rate that `options.schedule` names."""
    if options.schedule == "step":
        return StepLR(optimizer, options.step_size, options.gamma)
    if options.schedule != "one-cycle":
        raise ValueError(f"no schedule is called {options.schedule!r}")
    steps = options.epochs * steps_per_epoch  # in straight lines up to --lr and down to nothing (arXiv 1708.07120)
    return OneCycleLR(optimizer, options.lr, steps, pct_start=WARMUP, anneal_strategy="linear", cycle_momentum=False)


def moves_every_step(scheduler: LRScheduler) -> bool:
    """Whether the learning rate changes after each step; if not, it does so after each epoch."""
    return isinstance(scheduler, OneCycleLR)


def skip_epochs(scheduler: LRScheduler, epochs: int, steps_per_epoch: int) -> None:
    """Bring a new scheduler to where it is after so many epochs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the steps of the optimiser
        for _ in range(epochs * (steps_per_epoch if moves_every_step(scheduler) else 1)):
            scheduler.step()


@dataclass
class TrainingStep:
    """One step of the optimiser on a batch.

    Adds the batch's loss and its number of correct predictions to `totals`, which stays on the device, so that no step
    waits for it. The loss in `totals` is the cross-entropy with the labels, whatever else is learned.
    """

    forward: Forward
    optimizer: Optimizer
    runtime: Runtime
    label_smoothing: float = 0.0
    teacher: Forward | None = None  # another network, whose logits are learned as well as the labels

    def __post_init__(self):
        self.totals = torch.zeros(2, device=self.runtime.device)

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> None:
        """Learn from images (B, 3, H, W) and labels (B,), this process's shard of a batch of `size` images."""
        logits = self.forward(images)
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        if self.teacher:
            with torch.no_grad():
                teacher_logits = self.teacher(images)
            loss = torch.lerp(loss, distillation_loss(logits, teacher_logits), TEACHER_WEIGHT)
        self.optimizer.zero_grad()
        (loss * self.runtime.world_size / size).backward()  # the batch's mean: DDP divides by the world size
        self.optimizer.step()
        if self.label_smoothing or self.teacher:
            loss = F.cross_entropy(logits.detach(), labels, reduction="sum")
        self.totals += torch.stack([loss.detach(), (logits.argmax(dim=1) == labels).sum()])


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """How far the softened probabilities are from the teacher's, summed over the images; logits (B, classes).

    Hinton et al., arXiv 1503.02531. The temperature's square keeps the size of the gradients.
    """
    student, teacher = (F.log_softmax(values / TEMPERATURE, dim=1) for values in (logits, teacher_logits))
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def train_one_epoch(
    network: nn.Module,
    step: Step,
    batches: Iterable[Batch],
    scheduler: LRScheduler,
    runtime: Runtime,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """A step for each batch; returns mean loss and accuracy over the images, as augmented."""
    network.train()
    step.totals.zero_()  # nothing in the loop waits for the device
    for (images, labels), size in zip(batches, batches.sizes):
        step(images, labels, size)
        if moves_every_step(scheduler):
            scheduler.step()
        on_step()
    if not moves_every_step(scheduler):
        scheduler.step()
    loss_sum, correct = runtime.all_reduce(*step.totals.tolist())
    return loss_sum / sum(batches.sizes), correct / sum(batches.sizes)


def check_finite(row: dict, network: nn.Module, optimizer: Optimizer) -> None:
    """See that losses, weights, batch norm's statistics and momentum are finite numbers; waits for the device once."""
    momentum = [buffer for state in optimizer.state.values() for buffer in state.values()]
    total = sum(tensor.sum() for tensor in [*network.state_dict().values(), *momentum])
    if not math.isfinite(row["train_loss"] + row["val_loss"] + total):
        raise UserError(
            f"loss or weights of epoch {row['epoch']} are not finite: training has diverged; try a smaller --lr"
        )


def refresh_batch_norm(network: nn.Module, batches: Iterable[Batch], runtime: Runtime) -> None:
    """Compute batch norm's statistics anew, from the images of these batches, of equal size."""
    update_bn(batches, network)
    runtime.broadcast_buffers(network)


def evaluate(network: nn.Module, batches: Iterable[Batch], runtime: Runtime) -> tuple[float, float]:
    """Mean loss and accuracy over the images of all processes."""
    return loss_and_accuracy(*predict(network, batches), runtime)


@torch.inference_mode()
def predict(network: nn.Module, batches: Iterable[Batch], views: int = 1) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of all batches, on the CPU; `views` as in `mean_logits`."""
    network.eval()
    results = [(mean_logits(network, images, views), labels) for images, labels in batches]
    return tuple(torch.cat(parts).cpu() for parts in zip(*results))


def mean_logits(network: Forward, images: Tensor, views: int) -> Tensor:
    """Logits (B, classes) of images (B, 3, H, W), each seen in 1, 2 or 6 `views`; the time grows with them.

    1: as it is. 2: the mean of it and its mirror image. 6: half of that, and a quarter each of the same for the image
    moved by a pixel to the upper left and to the lower right (github.com/KellerJordan/cifar10-airbench).
    """
    if views == 1:
        return network(images)
    if views == 2:
        return (network(images) + network(images.flip(3))) / 2
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    moved = mean_logits(network, padded[..., :-2, :-2], 2) + mean_logits(network, padded[..., 2:, 2:], 2)
    return mean_logits(network, images, 2) / 2 + moved / 4


def loss_and_accuracy(logits: Tensor, labels: Tensor, runtime: Runtime) -> tuple[float, float]:
    """Mean cross-entropy and part of correct predictions over all processes; logits (N, classes), labels (N,)."""
    loss = F.cross_entropy(logits.double(), labels, reduction="sum").item()
    correct = (logits.argmax(dim=1) == labels).sum().item()
    loss_sum, correct, count = runtime.all_reduce(loss, correct, len(labels))
    return loss_sum / count, correct / count


def evaluation_batch(count: int, device: torch.device) -> int:
    """How many of `count` images to evaluate at once: batches of about one size, as `update_bn` weighs them alike."""
    # On a CPU they fit into the memory that a training step has left; on a GPU large ones take fewer launches.
    most = 1000 if device.type == "cuda" else 125
    return math.ceil(count / math.ceil(count / most))


def derived_seed(*numbers: int) -> int:
    """One seed from several numbers, well mixed; a last zero counts for nothing: (seed, epoch, 0) is (seed, epoch)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
