"""Dropout and ReLU in one, whose random numbers do not hold up a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropoutReLU(nn.Dropout):
    """ReLU after nn.Dropout, in place on dense tensors; on CPUs that are not Intel's, much faster (docs/speed.md).

    The two can change places; in this order ReLU can work in place, too, and training keeps one tensor less.

    On those torch draws a mask one number after the other; on Intel's, MKL draws it in parallel. Here each element has
    16 bits of a 64-bit random number, and is kept where they, as an integer from -2^15 on, are at least p 2^16 - 2^15.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 0.999 or not _is_slow_in_torch(x.device):
            return F.relu(super().forward(x), inplace=True)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        dropped = bits[: x.numel()].as_strided(x.shape, x.stride()) < round(self.p * 2**16) - 2**15
        x = x.mul_(1 / (1 - self.p))
        with torch.no_grad():  # no mask to keep for the backward pass: ReLU lets no gradient through where x is zero
            x.masked_fill_(dropped, 0)
        return F.relu(x, inplace=True)


def _is_slow_in_torch(device: torch.device) -> bool:
    if device.type != "cpu" or torch.compiler.is_compiling():  # the compiler makes something slower of the above
        return False
    return "Intel" not in torch.cpu.get_capabilities().get("cpu_name", "")
