"""torch.compile: from how much work on it pays, whether it works here, and what it is not used for."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.errors import first_line, warn
from utils.runtime import Runtime

# Images of training after which torch.compile has won back its start (docs/speed.md). On two cores of a Xeon with AMX:
# 30 s at 0.14 to 0.29 ms an image; on an H200: 14 to 15 s at 4.0 to 4.6 us.
COMPILE_PAYS_FROM = {"cpu": 200_000, "cuda": 4_000_000}


def pays(images: int, device: torch.device) -> bool:
    """Whether compiling pays within so many images of training; never on other devices, where it is a prototype."""
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("amx_tile"):
        return False  # on the others that were measured, AMD's, it is hardly faster, or slower (docs/speed.md)
    return images >= COMPILE_PAYS_FROM.get(device.type, math.inf)


def works(runtime: Runtime) -> bool:
    """Whether torch.compile can compile for this device, found out by trying; if not, a line says why."""
    torch._logging.set_logs(all=logging.ERROR)  # its warnings are remarks for its own developers
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=runtime.device))
    except Exception as error:  # no compiler, no headers, no disk: one of many kinds of error
        if runtime.is_first:
            warn(f"note: training without torch.compile, which does not work here ({first_line(error)})")
        return False
    return True


def compiled(forward: Callable[[Tensor], Tensor], batch_size: int) -> Callable[[Tensor], Tensor]:
    """`forward`, compiled for batches of one size.

    The last, shorter batch of an epoch is not compiled: a second compilation would cost more than it saves.
    """
    fast = torch.compile(forward, dynamic=False)
    return lambda images: (fast if len(images) == batch_size else forward)(images)
