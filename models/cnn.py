"""ResidualCNN: a compact residual network for 32x32 images.

The layout is that of ResNet for CIFAR-10 (He et al., arXiv 1512.03385, section 4.2), with squeeze-and-excitation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# 385,158 of at most 399,999 parameters, 132.1 million multiply-adds an image (docs/accuracy.md says why).
WIDTHS = (48, 64, 64)
BLOCKS = (2, 2, 2)
SE_REDUCTION = 8
MIN_HIDDEN = 4  # channels within squeeze-and-excitation, where a division by SE_REDUCTION would leave fewer
DROPOUT = 0.2
CLASSES = 10


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


class SqueezeExcitation(nn.Module):
    """Weighs each channel by what all of them are on average (arXiv 1709.01507): (N, C, H, W) -> (N, C, H, W).

    The weights are twice a sigmoid of what starts at zero: they lie between 0 and 2, and training starts with 1.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        hidden = max(channels // reduction, MIN_HIDDEN)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = 2 * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(dim=(2, 3))))))  # (N, C)
        return x * weights[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip connection: (N, in, H, W) -> (N, out, H/stride, W/stride).

    Where the shape changes, the skip averages over its stride and goes through a 1x1 convolution (ResNet-D, arXiv
    1812.01187, section 4.2). Dropout lies between the convolutions (Wide ResNet, arXiv 1605.07146, section 2.4).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, se_reduction: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.se = SqueezeExcitation(out_channels, se_reduction) if se_reduction else nn.Identity()
        self.skip = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.skip = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.dropout(F.relu(self.bn1(self.conv1(x))))
        residual = self.se(self.bn2(self.conv2(residual)))
        return F.relu(self.skip(x) + residual)


class ResidualCNN(nn.Module):
    """Images (N, 3, 32, 32), normalised floats -> logits (N, 10).

    Args:
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: residual blocks of each stage, as many numbers as there are widths.
        se_reduction: squeeze-and-excitation narrows a block's channels by this factor; 0: the blocks go without it.
        dropout: probability with which the blocks of the last stage drop an activation while training.

    Raises:
        ValueError: if `blocks` and `widths` differ in length.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        blocks: Sequence[int] = BLOCKS,
        se_reduction: int = SE_REDUCTION,
        dropout: float = DROPOUT,
    ):
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths but {len(blocks)} numbers of blocks")
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages, channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks)):
            last_stage = stage == len(widths) - 1
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(ResidualBlock(channels, width, stride, se_reduction, dropout if last_stage else 0.0))
                channels = width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, CLASSES)
        for module in self.modules():
            # He et al., arXiv 1502.01852. On torch's meta device there is nothing to fill, and trying takes seconds.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))  # (N, widths[-1], 8, 8) with three stages
        return self.classifier(features.mean(dim=(2, 3)))  # global average pooling
