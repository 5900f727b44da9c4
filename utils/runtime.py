"""The machine a run is on: device, processes, allocator and seeds."""

import contextlib
import ctypes
import gc
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError, first_line

# mallopt(3): how glibc is told to keep freed blocks instead of handing each large one back to the system.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

# Of AVX-512 and of AMX, as torch.cpu.get_capabilities names them. With AMX, and with AVX-512's on an AMD, bf16 was
# faster than fp32; with AVX-512's alone on an Intel it was not (docs/speed.md).
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")

# Images that at most go through the network at once when an epoch is over. On a CPU they fit into the memory that a
# training step has left, and more are no faster; on a GPU they take fewer launches.
EVALUATION_BATCH = {"cpu": 125, "cuda": 1000}

GROUP_TIMEOUT = timedelta(minutes=10)  # after which a process that waits for another gives up


@dataclass(frozen=True)
class Runtime:
    """The device of this process, and its place among those of the run: number `rank` of `world_size`."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    @property
    def memory_format(self) -> torch.memory_format:
        """The order of a network's weights, and so of its activations, that is fastest here and right.

        On MPS backward passes in channels last are wrong or abort (github.com/pytorch/pytorch/issues/175189, 175190).
        """
        return torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    def evaluation_batch(self, count: int) -> int:
        """How many of `count` images to pass through the network at once: batches of about the same size.

        To `update_bn` each batch counts alike.
        """
        return math.ceil(count / math.ceil(count / EVALUATION_BATCH.get(self.device.type, 125)))

    def share(self, size: int) -> slice:
        """This process's part of a batch of `size` images; the parts differ by at most one image."""
        return slice(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_first:
            print(text, flush=True)

    def from_first(self, make: Callable[[], object]) -> object:
        """What `make` returns in the first process, where alone it is called; plain values and CPU tensors."""
        values = [make() if self.is_first else None]
        if self.world_size > 1:
            distributed.broadcast_object_list(values, device=self.device)
        return values[0]

    def all_reduce(self, *numbers: float) -> list[float]:
        """Each number summed over the processes."""
        if self.world_size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return sums.tolist()

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's batch norm statistics, which are the ones that are saved."""
        if self.world_size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)

    def describe(self, precision: str) -> str:
        """What the run computes on, and how, for the header."""
        name = str(self.device)
        if self.device.type == "cuda":
            name += f", {torch.cuda.get_device_name(self.device)}"
            precision += " (convolutions: TF32 where the GPU has it)" * (precision == "fp32")
        elif self.device.type == "cpu":
            threads = torch.get_num_threads()
            name += f", {threads} thread{'s' * (threads != 1)}"
            has = torch.cpu.get_capabilities().get
            has_bf16 = any(map(has, BF16_INSTRUCTIONS))
            if precision == "bf16" and not has_bf16 and not has("bf16"):  # ARM's, which have not been measured
                precision += " (slow: this processor only emulates it)"
            if precision == "fp32" and has_bf16:
                precision += " (--precision bf16 may be faster)"
        name = name if self.world_size == 1 else f"{self.world_size} processes, the first on {name}"
        return f"{name}, {precision}"

    def has_bf16(self) -> bool:
        """Whether this is a CUDA GPU that computes in bf16, rather than emulating it."""
        if self.device.type != "cuda":
            return False
        with torch.cuda.device(self.device):
            return torch.cuda.is_bf16_supported(including_emulation=False)

    def choose_precision(self, name: str) -> str:
        """The precision called `name`, "fp32" or "bf16"; "auto" is bf16 on GPUs that have it, and fp32 elsewhere."""
        if name == "auto":
            return "bf16" if self.has_bf16() else "fp32"
        return name

    def in_precision(self, precision: str, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`forward` in "fp32", or in mixed precision, "bf16": autocast, with weights and the loss in fp32.

        Raises:
            UserError: if this kind of device, or this GPU, has no bf16.
        """
        if precision == "fp32":
            return forward
        advice = "begin a run with --precision fp32, or use another --device"  # a run begun in bf16 stays in it
        if not torch.amp.is_autocast_available(self.device.type):
            raise UserError(f"--precision bf16: torch has no autocast on {self.device.type}; {advice}")
        if self.device.type == "cuda" and not self.has_bf16():
            raise UserError(f"--precision bf16: this GPU only emulates it, slowly; {advice}")

        def in_bf16(images: Tensor) -> Tensor:
            # Without an image, synchronised batch norm must offer its fp32 sums to those that have some.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=len(images) > 0):
                return forward(images).float()

        return in_bf16

    def parallel(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass of `network`, whose gradients are averaged over the processes.

        A process that gets nothing of a short last batch joins in with an image that counts for nothing.
        """
        if self.world_size == 1:
            return network
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings(action="ignore"):  # the option's new name is not in torch 2.11
            replica = DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)
        synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())

        def forward(images: Tensor) -> Tensor:
            if len(images) > 0 or synchronised:  # synchronised batch norm needs every process, even without images
                return replica(images)
            return replica(images.new_zeros(1, *images.shape[1:]))[:0]

        return forward


@contextlib.contextmanager
def start(device_name: str, deterministic: bool = False) -> Iterator[Runtime]:
    """The runtime of this process on the device called `device_name`, among others if torchrun started it.

    Args:
        deterministic: let a GPU compute the same twice; a CPU does anyway.

    Raises:
        UserError: if this machine or this torch has no such device.
    """
    if deterministic:  # docs.pytorch.org/docs/stable/notes/randomness
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which takes time, and nothing reads it
    with torch_trouble():
        if not distributed.is_torchelastic_launched():
            yield Runtime(choose_device(device_name))
            return
        device = _device_among_processes(device_name)
        try:
            _join_group("nccl" if device.type == "cuda" else "gloo")
            yield Runtime(device, distributed.get_rank(), distributed.get_world_size())
            gc.collect()  # a replica that still held the group would now and then abort the process at its exit
            distributed.destroy_process_group()
        except RuntimeError as error:
            if isinstance(error, distributed.DistError) or "gloo" in str(error):
                raise UserError(f"another process of the run has ended ({first_line(error)}); look there") from error
            raise


@contextlib.contextmanager
def torch_trouble() -> Iterator[None]:
    """Where memory does not suffice, on the device or beside it, or the compiler fails, say so in one line.

    Raises:
        UserError: in place of what torch raises then.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"not enough memory ({first_line(error)}); try a smaller --batch-size") from error
    except (MemoryError, RuntimeError) as error:
        # Of the CPU, on Linux and on Windows, of MPS, and of the libraries of CUDA.
        phrases = "can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED"
        if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases):
            raise UserError("not enough memory; try a smaller --batch-size") from error
        if type(error).__module__ in ("torch._dynamo.exc", "torch._inductor.exc"):
            raise UserError(f"torch.compile failed ({first_line(error)}); go on with --compile off") from error
        raise


def _join_group(backend: str) -> None:
    """As torch.distributed.init_process_group, but with names of their own for what each restart puts into the store.

    torchrun keeps its store when it restarts the processes: without them, they would look for those that have ended.
    Where it makes a new one each time (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), as it must on several machines, which
    count their restarts each for itself, there is nothing to keep apart.
    """
    store, rank, count = next(distributed.rendezvous("env://", timeout=GROUP_TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = distributed.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=GROUP_TIMEOUT)


def _device_among_processes(name: str) -> torch.device:
    """A GPU for each of torchrun's processes on this machine, or the CPU for all."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: under torchrun it is auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not distributed.is_nccl_available():
        raise UserError("this torch has no NCCL, which several processes need on GPUs; use --device cpu")
    if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise UserError(
            f"--nproc-per-node: there are {torch.cuda.device_count()} GPUs here; use no more, or --device cpu"
        )
    device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
    torch.cuda.set_device(device)
    return device


def choose_device(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda:1", ...); "auto" is the first of CUDA, MPS and the CPU that is there.

    Raises:
        UserError: if this machine or this torch has no such device.
    """
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        with warnings.catch_warnings(action="ignore"):
            device = torch.device(chosen)
            torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises half a dozen kinds, from AssertionError to NotImplementedError
        advice = "try --device cpu" if name == "auto" else "try --device auto"
        raise UserError(f"--device {name}: no such device here ({first_line(error)}); {advice}") from error
    return device


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next step, where the C library is glibc.

    By default each activation of some megabytes is mapped anew, and the system fills it with zeros, at every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):  # the most that older ones accept
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def derived_seed(*numbers: int) -> int:
    """One seed from several numbers, well mixed: (seed, epoch) draws nothing like (seed, epoch + 1).

    A last number of zero counts for nothing: (seed, epoch, 0) is (seed, epoch).
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
