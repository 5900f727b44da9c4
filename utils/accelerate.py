"""What makes a training step, which works by itself, fast: compiler, bf16, CUDA graph, memory format, allocator."""

import ctypes
import logging
import math

import torch
from torch import Tensor

from utils.engine import Forward, Step, TrainingStep
from utils.errors import UserError, first_line, warn
from utils.runtime import Runtime

# Images of training after which torch.compile has won back its start (docs/speed.md). On two cores of a Xeon with AMX:
# 30 s at 0.14 to 0.29 ms an image; on an H200: 14 to 15 s at 4.0 to 4.6 us.
COMPILE_PAYS_FROM = {"cpu": 200_000, "cuda": 4_000_000}


def bf16_is_faster(device: torch.device) -> bool:
    """Whether the device itself multiplies matrices in bf16, and faster than in fp32 (docs/speed.md)."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities().get
    # AVX-512's instructions for bf16 are faster on an AMD, which SSE4a tells, and not on an Intel.
    return device.type == "cpu" and bool(has("amx_bf16") or (has("avx512_bf16") and has("sse4a")))


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of training steps, "fp32" or "bf16"; for "auto" the faster one."""
    if name == "auto":
        return "bf16" if bf16_is_faster(device) else "fp32"
    if name == "bf16":
        advice = "begin a run with --precision fp32, or use another --device"  # a run begun in bf16 stays in it
        if not torch.amp.is_autocast_available(device.type):
            raise UserError(f"--precision bf16: torch has no autocast on {device.type}; {advice}")
        if device.type == "cuda" and not bf16_is_faster(device):
            raise UserError(f"--precision bf16: this GPU only emulates it, slowly; {advice}")
    return name


def describe_precision(precision: str, device: torch.device) -> str:
    """The precision for the header, and what to know about it on this device."""
    if device.type == "cuda" and precision == "fp32":
        return "fp32 (convolutions: TF32 where the GPU has it)"
    if device.type == "cpu" and precision == "bf16":
        has = torch.cpu.get_capabilities().get
        if not (has("avx512_bf16") or has("amx_bf16") or has("bf16")):  # the last: ARM's
            return "bf16 (slow: this processor only emulates it)"
    return precision


def choose_compile(name: str, images: int, device: torch.device) -> str:
    """Whether to compile, "on" or "off"; "auto" is "on" where it pays within so many images of training."""
    if name != "auto":
        return name
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("amx_tile"):
        return "off"  # on the others that were measured, AMD's, it is hardly faster, or slower (docs/speed.md)
    return "on" if images >= COMPILE_PAYS_FROM.get(device.type, math.inf) else "off"


def compiler_works(runtime: Runtime) -> bool:
    """Whether torch.compile can compile for this device, found out by trying; if not, a line says why."""
    logging.getLogger("torch").setLevel(logging.ERROR)  # its warnings are remarks for its own developers
    try:
        torch.compile(torch.neg, dynamic=False)(torch.zeros(8, device=runtime.device))
    except Exception as error:  # no compiler, no headers, no disk: one of many kinds of error
        if runtime.is_main:
            warn(f"note: training without torch.compile, which does not work here ({first_line(error)})")
        return False
    return True


def memory_format(device: torch.device) -> torch.memory_format:
    """The order of a network's weights, and so of its activations, that is fastest on this device and right."""
    # On MPS backward passes in channels last are wrong or abort (github.com/pytorch/pytorch/issues/175189, 175190).
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one: the system would fill each large block with zeros anew."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return
    if mallopt(-3, 2**30) or mallopt(-3, 2**25):  # M_MMAP_THRESHOLD, and the most that older ones accept
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def accelerate(step: TrainingStep, runtime: Runtime, precision: str, batch_size: int, compiled: bool) -> Step:
    """The same step, faster: forward passes in `precision` and, if asked for, compiled; on a GPU a single launch."""
    shard = runtime.shard(batch_size)  # of a whole batch, of all processes together
    compiled_size = shard.stop - shard.start if compiled else None
    step.forward = _fast(step.forward, runtime.device, precision, compiled_size)
    if step.teacher:
        step.teacher = _fast(step.teacher, runtime.device, precision, compiled_size)
    # A step in which several processes wait for each other is not captured.
    return GraphedStep(step) if runtime.device.type == "cuda" and runtime.world_size == 1 else step


def _fast(forward: Forward, device: torch.device, precision: str, compiled_size: int | None) -> Forward:
    """A pass in "fp32", or in "bf16" with weights and loss in fp32; compiled for batches of `compiled_size`, if any."""
    compiled = torch.compile(forward, dynamic=False) if compiled_size else None

    def fast(images: Tensor) -> Tensor:
        # To compile again for the last, shorter batch of an epoch would cost more than it saves.
        chosen = compiled if len(images) == compiled_size else forward
        # Without an image, synchronised batch norm must offer its fp32 sums to the processes that have some.
        if precision == "fp32" or len(images) == 0:
            return chosen(images).float()
        with torch.autocast(device.type, torch.bfloat16):
            return chosen(images).float()

    return fast


class GraphedStep:
    """A `TrainingStep` as a single launch, on a GPU: launching a kernel takes longer there than it runs.

    Each size of batch has its CUDA graph (docs.pytorch.org/docs/stable/notes/cuda). The first step of a size runs as
    it is, and prepares what a capture must not: libraries, momentum, the compiler. The second one is captured. For it
    and each later one, the batch is copied to where the captured one lay, and the graph is replayed.
    """

    def __init__(self, step: TrainingStep):
        self.step, self.totals = step, step.totals
        self.prepared, self.graphs = set(), {}  # sizes; size: its graph, and the images and labels that it reads
        device = step.runtime.device
        self.lr = torch.zeros((), device=device)  # where a replayed step finds it
        (group,) = step.optimizer.param_groups
        group["fused"] = True  # the implementation of SGD that takes it from there
        torch.cuda.set_stream(torch.cuda.Stream(device))  # the default one cannot be captured
        torch.cuda.synchronize(device)  # what the default stream has still to do for weights and images

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> None:
        (group,) = self.step.optimizer.param_groups
        number, group["lr"] = group["lr"], self.lr.fill_(group["lr"])  # a number would stay in the graph as it is now
        try:
            if size not in self.prepared:
                self.prepared.add(size)
                self.step(images, labels, size)
                return
            if size not in self.graphs:
                graph, captured = torch.cuda.CUDAGraph(), (images.clone(), labels.clone())
                with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                    self.step(*captured, size)
                self.graphs[size] = graph, *captured
            graph, captured_images, captured_labels = self.graphs[size]
            captured_images.copy_(images)
            captured_labels.copy_(labels)
            graph.replay()
        finally:
            group["lr"] = number
