"""The device that a run computes on, and its processes."""

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError, first_line, is_distributed


@dataclass(frozen=True)
class Runtime:
    """The device of this process, and its place among those of the run: number `rank` of `world_size`."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def shard(self, size: int) -> slice:
        """This process's part of a batch of `size` images; the parts differ by at most one image."""
        return slice(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def print(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            print(text, flush=True)

    def broadcast_from_main(self, make: Callable[[], object]) -> object:
        """What `make` returns in the main process, where alone it is called; plain values and CPU tensors."""
        values = [make() if self.is_main else None]
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
        """Give every process the main one's batch norm statistics, which are the ones that are saved."""
        if self.world_size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)

    def parallel(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass of `network`, whose gradients are averaged over the processes."""
        if self.world_size == 1:
            return network
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the option's new name is not in torch 2.11
            replica = DistributedDataParallel(network, device_ids=device_ids, broadcast_buffers=False)
        synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())

        def forward(images: Tensor) -> Tensor:
            if len(images) > 0 or synchronised:  # synchronised batch norm needs every process, even without images
                return replica(images)
            # A process without images still owes the others its gradients: one black image, whose logits count nowhere.
            return replica(images.new_zeros(1, *images.shape[1:]))[:0]

        return forward

    def describe(self) -> str:
        """What the run computes on, for the header."""
        name = str(self.device)
        if self.device.type == "cuda":
            name += f", {torch.cuda.get_device_name(self.device)}"
        elif self.device.type == "cpu":
            threads = torch.get_num_threads()
            name += f", {threads} thread" if threads == 1 else f", {threads} threads"
        return name if self.world_size == 1 else f"{self.world_size} processes, the first on {name}"


@contextlib.contextmanager
def start(device_name: str, deterministic: bool = False) -> Iterator[Runtime]:
    """The runtime of this process on the device called `device_name`, among others if torchrun started it."""
    with torch_errors_in_one_line(), _torch_switches(deterministic):
        if not is_distributed():
            yield Runtime(choose_device(device_name))
            return
        device = _device_among_processes(device_name)
        _join_group("nccl" if device.type == "cuda" else "gloo")
        yield Runtime(device, distributed.get_rank(), distributed.get_world_size())
        gc.collect()  # a replica that still held the group would now and then abort the process at its exit
        distributed.destroy_process_group()


@contextlib.contextmanager
def _torch_switches(deterministic: bool) -> Iterator[None]:
    """Set what is global in torch; put it back at the end, for a notebook that goes on."""
    settings, generator = torch.utils.deterministic, torch.get_rng_state()
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    logger = logging.getLogger("torch")
    level = logger.level
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
    if deterministic:  # on a GPU; a CPU is so anyway (docs.pytorch.org/docs/stable/notes/randomness)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
        settings.fill_uninitialized_memory = False  # which takes time, and nothing reads it
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        settings.fill_uninitialized_memory = before[1]
        torch.set_rng_state(generator)
        logger.setLevel(level)  # `compiler_works` may have raised it
        if torch.cuda.is_initialized():
            torch.cuda.set_stream(stream or torch.cuda.default_stream(0))  # a captured step had another


@contextlib.contextmanager
def torch_errors_in_one_line() -> Iterator[None]:
    """Raise `UserError` where memory does not suffice, the compiler fails, or another process has ended."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"not enough memory ({first_line(error)}); try a smaller --batch-size") from error
    except (MemoryError, RuntimeError) as error:
        if is_distributed() and (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise UserError(f"another process of the run has ended ({first_line(error)}); look there") from error
        # Of the CPU, on Linux and on Windows, of MPS, and of the libraries of CUDA.
        phrases = "can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED"
        if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases):
            raise UserError("not enough memory; try a smaller --batch-size") from error
        if type(error).__module__ in ("torch._dynamo.exc", "torch._inductor.exc"):
            raise UserError(f"torch.compile failed ({first_line(error)}); go on with --compile off") from error
        raise


def _join_group(backend: str) -> None:
    """As torch.distributed.init_process_group, but each restart has names of its own in the store."""
    timeout = timedelta(minutes=10)  # after which a process that waits for another gives up
    store, rank, count = next(distributed.rendezvous("env://", timeout=timeout))
    # torchrun keeps its store when it restarts the processes: with the same names, they would look for those that have
    # ended. Where it makes a new one each time (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), as it must on several machines,
    # which count their restarts each for itself, there is nothing to keep apart.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = distributed.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)


def _device_among_processes(name: str) -> torch.device:
    """A GPU for each of torchrun's processes on this machine, or the CPU for all."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {name}: under torchrun it is auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not distributed.is_nccl_available():
        raise UserError("this torch has no NCCL, which several processes need on GPUs; use --device cpu")
    gpus = torch.cuda.device_count()
    if int(os.environ["LOCAL_WORLD_SIZE"]) > gpus:
        raise UserError(f"--nproc-per-node: there are {gpus} GPUs here; use no more, or --device cpu")
    device = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
    torch.cuda.set_device(device)
    return device


def choose_device(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda:1", ...); "auto" is the first of CUDA, MPS and the CPU that is there."""
    chosen = name
    if name == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            device = torch.device(chosen)
            torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises half a dozen kinds, from AssertionError to NotImplementedError
        advice = "try --device cpu" if name == "auto" else "try --device auto"
        raise UserError(f"--device {name}: no such device here ({first_line(error)}); {advice}") from error
    return device
