"""The machine a run is on: device, processor tuning and seeds."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError, first_line

# mallopt(3): how glibc is told to keep freed blocks instead of handing each large one back to the system.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

# Images of training after which torch.compile has won back its start, on two cores: 30 s at 0.15 ms an image
# (32-64-128 x 1) or 0.4 ms (24-48-96 x 2).
COMPILE_PAYS_FROM = 200_000


def choose_device(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda:1", ...); "auto" is the first of CUDA, MPS and the CPU that is there.

    Raises:
        UserError: if this machine or this torch has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        with warnings.catch_warnings(action="ignore"):
            device = torch.device(name)
            torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises half a dozen kinds, from AssertionError to NotImplementedError
        raise UserError(f"--device {name}: no such device here ({first_line(error)}); try --device auto") from error
    return device


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next step, where the C library is glibc.

    By default each activation of some megabytes is mapped anew, and the system fills it with zeros, at every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def compile_pays(images: int) -> bool:
    """Whether compiling is won back within so many images of training (docs/speed.md)."""
    return images >= COMPILE_PAYS_FROM


def compiler_works() -> bool:
    """Whether torch.compile can compile on this machine, found out by trying; if not, a line says why."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # remarks on CUDA tools, of no use here
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8))
    except Exception as error:  # no compiler, no headers, no disk: one of many kinds of error
        print(f"note: training without torch.compile, which does not work here ({first_line(error)})", file=sys.stderr)
        return False
    return True


def compiled_forward(network: nn.Module, batch_size: int) -> Callable[[Tensor], Tensor]:
    """The forward pass of `network`, compiled for full batches.

    The last, shorter batch of an epoch takes the plain network: a second compilation would cost more than it saves.
    """
    compiled = torch.compile(network, dynamic=False)
    return lambda images: (compiled if len(images) == batch_size else network)(images)


def derived_seed(*numbers: int) -> int:
    """One seed from several numbers, well mixed: (seed, epoch) draws nothing like (seed, epoch + 1)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def describe(device: torch.device) -> str:
    """What the run computes on, for the header."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
