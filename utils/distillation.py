"""Distillation: learning another network's answers as well as the labels (Hinton et al., arXiv 1503.02531)."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from utils import checkpoint, contents
from utils.runtime import Runtime

ADVICE = "--teacher takes an epoch_NN.pth, or a file of weights as in models/"
# The teacher's share of the loss, and the temperature that softens the probabilities in it, as others have them on
# CIFAR (github.com/HobbitLong/RepDistiller).
SHARE, TEMPERATURE = 0.9, 4.0


def load_teacher(
    path: Path | None, network_class: Callable[..., nn.Module], runtime: Runtime, mean: list[float], std: list[float]
) -> tuple[nn.Module, str] | tuple[None, None]:
    """The network in the checkpoint at `path`, for its answers alone, on the device; and its fingerprint.

    `mean` and `std` are those of the run's training images. Without a `path` there is no teacher: None and None.

    Raises:
        UserError: if it is not usable, or was trained on other images: it may know those kept for validation.
    """
    if path is None:
        return None, None
    saved = runtime.from_first(lambda: checkpoint.load(path, contents.WEIGHTS_KEYS, ADVICE))
    checkpoint.check_images(path, saved, mean, std, "teacher and pupil need the same --data and --subset")
    network = checkpoint.rebuild_network(path, saved, network_class, ADVICE).eval().requires_grad_(False)
    fingerprint = contents.fingerprint(saved["model"])
    return network.to(runtime.device, memory_format=runtime.memory_format), fingerprint


def loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Sum over the images of how far the softened probabilities are from the teacher's; logits of both (B, classes).

    The temperature's square keeps the size of the gradients.
    """
    student, teacher = (F.log_softmax(values / TEMPERATURE, dim=1) for values in (logits, answers))
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)
