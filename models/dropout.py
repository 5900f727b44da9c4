"""Dropout in a third of torch's time on a CPU, most of which goes into random numbers (docs/speed.md)."""

import torch
from torch import Tensor, nn


@torch.library.custom_op("resnet::dropout_mask", mutates_args=())  # one piece for torch.compile, or it would be slow
def dropout_mask(x: Tensor, p: float) -> Tensor:
    """What to multiply `x` by: 0 with probability `p`, or else 1 / (1 - p), in the shape, type and order of `x`.

    An element takes 16 random bits, so `p` is rounded to a multiple of 2^-16. torch draws 64 bits at once.
    """
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: x.numel()].as_strided(x.shape, x.stride()) >= round(p * 2**16) - 2**15
    return kept.to(x.dtype).div_(1 - p)


@dropout_mask.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


class Dropout(nn.Dropout):
    """As nn.Dropout, for dense tensors; elsewhere than on a CPU it is nn.Dropout."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and x.device.type == "cpu":
            return x * dropout_mask(x.detach(), self.p)
        return super().forward(x)
