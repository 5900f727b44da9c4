"""ResidualCNN: a compact residual network for 32x32 images.

The layout is that of ResNet for CIFAR-10 (He et al., arXiv 1512.03385, section 4.2).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import drop_block2d

# 395,370 of at most 399,999 parameters, 151.5 million multiply-adds an image (docs/accuracy.md says why).
WIDTHS = (32, 64, 80)
BLOCKS = (2, 2, 2)
DROPOUT = 0.1
DOWNSAMPLING = ("pool", "stride")
MAX_STAGES, MAX_WIDTH, MAX_BLOCKS = 5, 4096, 256  # after five stages 2 x 2 pixels are left
NUM_CLASSES = 10


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip connection: (N, in, H, W) -> (N, out, H/stride, W/stride).

    A stride is the second convolution's: the first one still sees the full resolution. Where the shape changes, the
    skip averages over the stride and goes through a 1x1 convolution (ResNet-D, arXiv 1812.01187, section 4.2).

    Dropout lies between the convolutions (Wide ResNet, arXiv 1605.07146, section 2.4), and drops squares of a quarter
    of the map's side, the same in all channels (DropBlock, arXiv 1810.12890; there each channel has its own, which
    takes as many random numbers as there are activations).
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.dropout = dropout
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            average = nn.AvgPool2d(stride) if stride != 1 else nn.Identity()
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.skip = nn.Sequential(average, convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(x))
        if self.training and self.dropout:
            hidden.mul_(self._dropout_mask(hidden))
        hidden = self.conv2(F.relu(hidden, inplace=True))
        return F.relu(self.skip(x) + self.bn2(hidden), inplace=True)

    def _dropout_mask(self, hidden: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W): 0 in the squares to drop, elsewhere the same number, so that its mean is 1."""
        count, _, height, width = hidden.shape
        side = height // 4 | 1  # a quarter of the map's side; drop_block2d wants an odd number
        ones = torch.ones(count, 1, height, width, device=hidden.device)
        return drop_block2d(ones, self.dropout, side, inplace=True).to(hidden.dtype)


class ResidualCNN(nn.Module):
    """Images (N, 3, 32, 32), normalised floats -> logits (N, 10).

    Args:
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: residual blocks of each stage, as many numbers as there are widths.
        dropout: probability with which the blocks of the last stage drop an activation while training; in the others
            it is half of that.
        downsample: how the resolution halves. "pool": averages of 2x2 pixels after a stage's first block, which still
            sees the full resolution. "stride": a stride in that block, for less arithmetic.

    Raises:
        ValueError: if there is no network of this description.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        blocks: Sequence[int] = BLOCKS,
        dropout: float = DROPOUT,
        downsample: str = "pool",
    ):
        super().__init__()
        _check_arguments(widths, blocks, dropout, downsample)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        layers, channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks)):
            probability = dropout if stage == len(widths) - 1 else dropout / 2
            for block in range(count):
                halves = stage > 0 and block == 0
                stride = 2 if halves and downsample == "stride" else 1
                layers.append(ResidualBlock(channels, width, probability, stride))
                if halves and downsample == "pool":
                    layers.append(nn.AvgPool2d(2))
                channels = width
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, NUM_CLASSES)
        for module in self.modules():
            # He et al., arXiv 1502.01852. On torch's meta device there is nothing to fill, and trying takes seconds.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))  # (N, widths[-1], 8, 8) with three stages
        return self.classifier(features.mean(dim=(2, 3)))  # global average pooling


def _check_arguments(widths: Sequence[int], blocks: Sequence[int], dropout: float, downsample: str) -> None:
    """Raise `ValueError` for what no network can be built from; the values may come from a file."""
    if not 1 <= len(widths) <= MAX_STAGES:
        raise ValueError(f"{len(widths)} stages, where an image has room for 1 to {MAX_STAGES}")
    if len(widths) != len(blocks):
        raise ValueError(f"{len(widths)} widths but {len(blocks)} numbers of blocks; give one for each width")
    for name, numbers, most in ("widths", widths, MAX_WIDTH), ("blocks", blocks, MAX_BLOCKS):
        if not all(type(number) is int and 1 <= number <= most for number in numbers):
            raise ValueError(f"{name} are {numbers!r}, not whole numbers from 1 to {most}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}, not from 0 to below 1")
    if downsample not in DOWNSAMPLING:
        raise ValueError(f"downsample is {downsample!r}, none of {DOWNSAMPLING}")
