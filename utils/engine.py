"""The loop bodies: one epoch of training, and the predictions of an evaluation."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

Batch = tuple[Tensor, Tensor]  # images, float (B, 3, 32, 32), and labels, int64 (B,)


def train_one_epoch(
    network: nn.Module, forward: Callable[[Tensor], Tensor], batches: Iterable[Batch], optimizer: Optimizer
) -> tuple[float, float]:
    """One optimiser step a batch; returns the mean loss and the accuracy over the images, as they were seen.

    `forward` computes the logits of `network`; the two differ where the forward pass is compiled. Nothing in the loop
    waits for the device: loss and accuracy are summed there and read once, at the end.
    """
    network.train()
    images_seen, totals = 0, None
    for images, labels in batches:
        logits = forward(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == labels).sum()
            sums = torch.stack([loss * len(labels), correct])
            totals = sums if totals is None else totals + sums
        images_seen += len(labels)
    loss_sum, correct = totals.tolist()
    return loss_sum / images_seen, correct / images_seen


@torch.inference_mode()
def predict(network: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of all batches, on the CPU."""
    network.eval()
    results = [(network(images), labels) for images, labels in batches]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*results))
    return logits, labels


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and share of correct predictions; logits (N, classes), labels (N,)."""
    loss = F.cross_entropy(logits.double(), labels)
    return loss.item(), (logits.argmax(dim=1) == labels).double().mean().item()
