"""This machine on random images: the loop that everyone writes, this project's, and what the processor could do.

python -m utils.benchmark                                        the default network, in about three minutes
python -m utils.benchmark --widths 32 64 128 --blocks 1 1 1      another network
torchrun --nproc-per-node 2 -m utils.benchmark                   what several processes bring
"""

import contextlib
import inspect
import itertools
import multiprocessing
import os
import signal
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms
from tqdm import tqdm

from dataset import Batches, Split
from models import ResidualCNN, cnn, count_parameters
from utils import accelerate, engine
from utils.errors import UserError, run_program
from utils.options import Parser, integer, number
from utils.runtime import Runtime, is_distributed, start

TRAINING, VALIDATION = 45_000, 5_000  # images of an epoch, as in train.py
MEAN, STD = [0.5] * 3, [0.25] * 3  # to normalise random images with
RECIPE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}  # of SGD
WORKERS = min(16, os.cpu_count() or 1)  # of the plain loop, where it has any


def rate(step: Callable, batches: Iterable, size: int, steps: int, device: torch.device) -> float:
    """Images a second over so many steps, each with the next batch of `size` images, after two or more to warm up."""
    if device.type == "cuda" and device.index:
        torch.cuda.set_device(device)  # the one that `Timer` waits for
    names = {"step": step, "batches": itertools.chain.from_iterable(itertools.repeat(batches))}  # without an end
    timer = Timer("step(*next(batches))", globals=names, num_threads=torch.get_num_threads())
    return size / timer.timeit(steps).median


def in_turns(rows: dict[str, Callable[[], float]], turns: int, runtime: Runtime) -> dict[str, float]:
    """The median of each row, measured A B C A B C ..."""
    values = {name: [] for name in rows}
    for name in tqdm(turns * list(rows), leave=False, disable=None if runtime.is_main else True):
        values[name].append(rows[name]())
    return {name: statistics.median(measured) for name, measured in values.items()}


class RandomCIFAR10(datasets.CIFAR10):
    """Random images, handed out one by one as torchvision does CIFAR-10's, with the usual transforms."""

    def __init__(self):
        self.data = torch.randint(0, 256, (TRAINING, 32, 32, 3), dtype=torch.uint8).numpy()
        self.targets, self.target_transform = [0] * TRAINING, None
        crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def plain_loop(options: Namespace, device: torch.device, workers: int) -> float:
    """The rate of the tutorials' loop: DataLoader, PIL, NCHW, fp32, `loss.item()` at each step."""
    network, size, pin = ResidualCNN(**options.network).to(device), options.batch_size, device.type == "cuda"
    optimizer = SGD(network.parameters(), **RECIPE)
    loader = DataLoader(RandomCIFAR10(), size, shuffle=True, num_workers=workers, pin_memory=pin, drop_last=True)

    def step(images: Tensor, labels: Tensor) -> float:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return rate(step, loader, size, options.steps, device)


@contextlib.contextmanager
def another_process() -> Iterator[Callable]:
    """A function that calls others in a process of their own: what `keep_freed_memory` does cannot be undone."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the process inherits: Ctrl-C is for this one
    pool.submit(multiprocessing.set_start_method, None, force=True)  # its DataLoader starts workers as it would here
    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()
    except BrokenExecutor as error:
        advice = "perhaps for lack of memory; try a smaller --batch-size"
        raise UserError(f"a measuring process was killed, {advice}") from error
    finally:
        for process in multiprocessing.active_children():
            process.kill()


def this_project(options: Namespace, runtime: Runtime, compiled: bool) -> dict[str, Callable[[], float]]:
    """What measures the rates of train.py: of its steps, eager or compiled, too, and of the other parts of an epoch."""
    size, device, memory_format = options.batch_size, runtime.device, accelerate.memory_format(runtime.device)
    images = torch.randint(0, 256, (TRAINING + VALIDATION, 3, 32, 32), dtype=torch.uint8)  # all in memory, as there
    split = Split(images, torch.arange(len(images)) % 10).to(device)
    batches = Batches(split[: options.steps * size], size, MEAN, STD, torch.Generator(), runtime.shard)
    rows = {}
    for how in ["eager", "compiled"] if compiled else ["eager"]:
        network = ResidualCNN(**options.network).to(device, memory_format=memory_format)
        step = engine.TrainingStep(runtime.parallel(network), SGD(network.parameters(), **RECIPE), runtime)
        step = accelerate.accelerate(step, runtime, options.precision, size, how == "compiled")
        rows[f"this project, {how}"] = partial(rate, partial(step, size=size), batches, size, options.steps, device)
    rows["loading"] = partial(rate, lambda *batch: None, batches, size, max(options.steps, 32), device)

    untrained = ResidualCNN(**options.network).to(device, memory_format=memory_format)  # evaluation is another mode
    size = engine.evaluation_batch(VALIDATION, device)
    batches = Batches(split[:VALIDATION], size, MEAN, STD)

    def evaluate(*batch: Tensor) -> None:
        engine.evaluate(untrained, [batch], runtime)

    rows["validating"] = partial(rate, evaluate, batches, size, 4, device)
    return rows


def matrix_product(precision: str, device: torch.device) -> float:
    """FLOP/s of a product of two large matrices."""
    rows = 8192 if device.type == "cuda" else 2048  # a GPU takes longer to launch a smaller one than to do it
    factors = torch.rand(2, rows, rows, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    torch.set_float32_matmul_precision("high")  # in fp32 a GPU's convolutions are in TF32, too
    flops = rate(torch.mm, [factors], 2 * rows**3, 7, device)
    torch.set_float32_matmul_precision("highest")
    return flops


def compare_loops(options: Namespace, runtime: Runtime, operations: float) -> None:
    """What one process can tell: all rows, and an epoch's parts; `operations`: what a step takes, for each image."""
    compiled = options.compile == "on" and accelerate.compiler_works(runtime)
    accelerate.keep_freed_memory()
    with another_process() as call:
        rows = {f"plain loop, {n} workers": partial(call, plain_loop, options, runtime.device, n) for n in (0, WORKERS)}
        rows |= this_project(options, runtime, compiled)
        rows["ceiling: arithmetic"] = lambda: matrix_product(options.precision, runtime.device) / operations
        rates = in_turns(rows, options.turns, runtime)
    loading, validating = TRAINING / rates.pop("loading"), VALIDATION / rates.pop("validating")
    plain = max(rates[name] for name in rates if name.startswith("plain"))
    print(f"\n{'training':<24}{'images/s':>10}{'GFLOP/s':>10}{'of ceiling':>12}{'of plain':>10}")
    for name, images in rates.items():
        part = images / rates["ceiling: arithmetic"]
        print(f"{name:<24}{images:10,.0f}{images * operations / 1e9:10,.1f}{part:12.3f}{images / plain:10.2f}")
    print(f"ceiling: a product of two large matrices, in {options.precision}; of plain: the faster one, in fp32")
    fastest = max((name for name in rates if name.startswith("this project")), key=rates.get)
    print_epoch(fastest, loading, TRAINING / rates[fastest], validating)


def print_epoch(row: str, loading: float, training: float, validating: float) -> None:
    """Where the seconds of an epoch go, trained as `row` is; those of training are with loading."""
    print(f"\none epoch of train.py, {row.removeprefix('this project, ')}: {TRAINING:,} and {VALIDATION:,} images")
    parts = {"loading": loading, "stepping": training - loading, "validating": validating}
    for name, seconds in parts.items():
        print(f"{name:<24}{seconds:10.2f} s{seconds / (training + validating):12.1%}")
    memory = float("nan")
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak memory {memory / 1e9:22.2f} GB, of the process that measured this project")


def compare_processes(options: Namespace, runtime: Runtime) -> None:
    """Under torchrun: how fast one process trains while the others wait, and all of them together."""

    def measure(runtime: Runtime) -> float:
        row = "this project, eager"
        return in_turns({row: this_project(options, runtime, compiled=False)[row]}, options.turns, runtime)[row]

    accelerate.keep_freed_memory()
    alone = runtime.broadcast_from_main(lambda: measure(Runtime(runtime.device)))
    together = measure(runtime)
    runtime.print(f"one process, eager       {alone:8,.0f} images/s")
    runtime.print(f"{runtime.world_size} processes, eager      {together:8,.0f} images/s, {together / alone:.2f} times")


def count_multiply_adds(network: ResidualCNN) -> float:
    """Of one image's forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() / 2


def build_parser() -> Parser:
    parser = Parser(__doc__, "python -m utils.benchmark")
    add = parser.add_argument
    add("--widths", type=integer(1, 4096), nargs="+", default=list(cnn.WIDTHS), help="as in train.py")
    add("--blocks", type=integer(1, 256), nargs="+", default=list(cnn.BLOCKS), help="as in train.py")
    add("--dropout", type=number(0, 0.99), default=cnn.DROPOUT, help="as in train.py")
    add("--downsample", choices=cnn.DOWNSAMPLING, default="pool", help="as in train.py")
    add("--batch-size", type=integer(1, TRAINING), default=128, help="images per step")
    add("--steps", type=integer(1), help="steps per measurement (default: on a CPU 2 to 20, by the network; else 200)")
    add("--turns", type=integer(1), default=3, help="measurements of each row; their median is shown")
    add("--compile", choices=("on", "off"), default="on", help="measure the compiled network, too")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of this project's loop, as in train.py")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    options.network = {name: getattr(options, name) for name in inspect.signature(ResidualCNN).parameters}
    try:
        network = ResidualCNN(**options.network)
    except ValueError as error:
        parser.error(f"there is no such network: {error}")
    multiply_adds = count_multiply_adds(network)
    with start(options.device) as runtime:
        options.precision = accelerate.choose_precision(options.precision, runtime.device)
        usual = min(max(2, round(320e6 / multiply_adds)), 20) if runtime.device.type == "cpu" else 200
        options.steps = min(options.steps or usual, TRAINING // options.batch_size)
        if is_distributed():
            compare_processes(options, runtime)
            return 0
        precision = accelerate.describe_precision(options.precision, runtime.device)
        print(f"machine  {runtime.describe()}, {precision}, torch {torch.__version__}")
        print(f"network  {count_parameters(network):,} parameters, {multiply_adds / 1e6:.1f} million multiply-adds")
        length = f"{options.turns} turns of {options.steps} steps, batch {options.batch_size}"
        print(f"length   medians of {length}", flush=True)
        compare_loops(options, runtime, 3 * 2 * multiply_adds)  # forward, backward for activations and for weights
    return 0


if __name__ == "__main__":
    run_program(main)
