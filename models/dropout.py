"""Dropout whose random numbers do not hold up a CPU."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """As nn.Dropout, for dense tensors, but on CPUs that are not Intel's in a third of its time (docs/speed.md).

    On those torch draws a mask one number after the other; on Intel's, MKL draws it in parallel. Here each element has
    16 bits of a 64-bit random number, and is kept where they, as an integer from -2^15 on, are at least p 2^16 - 2^15.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 0.999 or not _is_slow_in_torch(x.device):
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[: x.numel()].as_strided(x.shape, x.stride()) >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).div_(1 - self.p)


def _is_slow_in_torch(device: torch.device) -> bool:
    if device.type != "cpu" or torch.compiler.is_compiling():  # the compiler makes something slower of the above
        return False
    return "Intel" not in torch.cpu.get_capabilities().get("cpu_name", "")
