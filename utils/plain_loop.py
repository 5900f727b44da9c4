"""The training loop of the tutorials, to compare with: DataLoader, PIL, NCHW, `loss.item()` at each step."""

import os
import statistics
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from models import ResidualCNN
from utils.measure import seconds_of

RECIPE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}  # of SGD
WORKERS = min(16, os.cpu_count() or 1)  # where the loader has any
# What the machine's ceilings are measured by. A GPU would take longer to launch a smaller product than to do it.
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices of a product, by kind of device
COPY = 2**29  # bytes of a copy, more than most caches hold


class PILImages(Dataset):
    """Random images as torchvision.datasets.CIFAR10 hands them out, with the usual transforms."""

    def __init__(self, count: int):
        self.images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).numpy()
        normalise = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
        crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


class PlainLoop:
    """Train on random images as everyone does, in fp32; and the machine's ceilings, in the precision asked for."""

    def __init__(self, shape: dict, batch_size: int, steps: int, device: torch.device, precision: str):
        self.device, self.batch_size = device, batch_size
        self.network = ResidualCNN(**shape).to(device).train()
        self.optimizer = SGD(self.network.parameters(), **RECIPE)
        self.images = PILImages(steps * batch_size)
        self.loaders = {
            workers: DataLoader(
                self.images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
                pin_memory=device.type == "cuda",
            )
            for workers in (0, WORKERS)
        }  # fmt: skip
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        rows = matrix_rows(device)
        self.factors = torch.rand(2, rows, rows, device=device, dtype=dtype)

    def train(self, workers: int) -> float:
        """Images a second."""
        self._step(torch.rand(self.batch_size, 3, 32, 32), torch.zeros(self.batch_size, dtype=torch.int64))  # warms up

        def epoch():
            loss_sum = 0.0
            for images, labels in self.loaders[workers]:
                loss_sum += self._step(images, labels)

        return len(self.images) / seconds_of(epoch, self.device)

    def _step(self, images: Tensor, labels: Tensor) -> float:
        images, labels = images.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def arithmetic(self) -> float:
        """FLOP/s of a matrix product, the median of seven."""
        torch.set_float32_matmul_precision("high")  # in fp32 a GPU's convolutions are in TF32, too
        seconds = self._median_of_seven(lambda: torch.mm(*self.factors))
        torch.set_float32_matmul_precision("highest")
        return 2 * len(self.factors[0]) ** 3 / seconds

    def bandwidth(self) -> float:
        """Bytes/s that a copy reads and writes, the median of seven."""
        source = torch.zeros(COPY, dtype=torch.uint8, device=self.device)
        target = torch.zeros_like(source)
        return 2 * len(source) / self._median_of_seven(lambda: target.copy_(source))

    def _median_of_seven(self, work: Callable[[], object]) -> float:
        return statistics.median(seconds_of(work, self.device) for _ in range(7))


def matrix_rows(device: torch.device) -> int:
    """Rows of the square matrices whose product is the ceiling of arithmetic there."""
    return MATRIX.get(device.type, MATRIX["cpu"])
