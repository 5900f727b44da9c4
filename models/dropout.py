"""Dropout and ReLU in one, whose random numbers do not hold up a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropoutReLU(nn.Dropout):
    """nn.Dropout and then ReLU, of any shape; overwrites its input, which must be dense, as batch norm's output is.

    Dropout and ReLU commute; in this order ReLU works in place, and training keeps one tensor less.

    On CPUs other than Intel's, torch draws dropout's mask one number after the other, a fifth of a training step on a
    Zen 4 (docs/speed.md). On such CPUs each element has 16 random bits instead, a quarter of a 64-bit number, and is
    dropped where they, as an int16, are below p 2^16 - 2^15. (For a p of almost 1 that is no int16: torch draws.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 0.999 or not _is_slow_in_torch(x.device):
            return F.relu(super().forward(x), inplace=True)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        dropped = bits.as_strided(x.shape, x.stride()) < round(self.p * 2**16) - 2**15
        x.mul_(1 / (1 - self.p))
        with torch.no_grad():  # no mask to keep for the backward pass: ReLU lets no gradient through where x is zero
            x.masked_fill_(dropped, 0)
        return F.relu(x, inplace=True)


def _is_slow_in_torch(device: torch.device) -> bool:
    if device.type != "cpu" or torch.compiler.is_compiling():  # the compiler makes something slower of the above
        return False
    return "Intel" not in torch.cpu.get_capabilities().get("cpu_name", "")
