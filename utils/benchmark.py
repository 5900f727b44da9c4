"""This machine on random images: the loop that everyone writes, this project's, and what the processor could do.

python -m utils.benchmark                                      # the default network, in about two minutes
python -m utils.benchmark --widths 32 64 128 --blocks 1 1 1    # another network
torchrun --nproc-per-node 2 -m utils.benchmark                 # what several processes bring
"""

import os
import statistics
import subprocess
import sys
import time
from argparse import SUPPRESS, Namespace
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.optim import SGD, lr_scheduler
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

TRAINING = 45_000  # images of an epoch, as in train.py
MEAN, STD = [0.5] * 3, [0.25] * 3  # to normalise random images with
RECIPE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}  # of SGD
WORKERS = (0, min(16, os.cpu_count() or 1))  # of the plain loop


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Do `work` twice: once to warm up, and once to be timed."""
    for _ in range(2):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
    return time.perf_counter() - started


class RandomCIFAR10(datasets.CIFAR10):
    """Random images, handed out one by one as torchvision does CIFAR-10's, with the usual transforms."""

    def __init__(self, count: int):
        self.data = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).numpy()
        self.targets, self.target_transform = [0] * count, None
        crop, flip = transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([crop, flip, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def plain_loop(options: Namespace, device: torch.device, workers: int) -> float:
    """Train as tutorials do: DataLoader, PIL, NCHW, fp32, `loss.item()` at each step. Return images a second."""
    network, size, pin = ResidualCNN(**options.network).to(device), options.batch_size, device.type == "cuda"
    optimizer = SGD(network.parameters(), **RECIPE)
    data = RandomCIFAR10((options.steps + 3) * size)  # with the steps that warm up, and one more
    for step, (images, labels) in enumerate(DataLoader(data, size, shuffle=True, num_workers=workers, pin_memory=pin)):
        if step == 2:  # two have warmed up
            started = time.perf_counter()
        if step == 2 + options.steps:
            return options.steps * size / (time.perf_counter() - started)
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for the device


def plain_rates(argv: list[str]) -> list[float]:
    """Run the plain loop in a process of its own: what `keep_freed_memory` does to this one cannot be undone."""
    command = [sys.executable, "-m", "utils.benchmark", *argv, "--plain"]
    try:
        return [float(rate) for rate in subprocess.check_output(command, text=True).split()]
    except subprocess.CalledProcessError as error:
        advice = "perhaps for lack of memory; try a smaller --batch-size"
        raise UserError(f"the process of the plain loop was killed, {advice}") from error


def our_loop(options: Namespace, runtime: Runtime, split: Split, compiled: bool = False) -> Callable[[], object]:
    """Prepare network and step as train.py does. Return a function that takes `options.steps` steps."""
    size, memory_format = options.batch_size, accelerate.memory_format(runtime.device)
    network = ResidualCNN(**options.network).to(runtime.device, memory_format=memory_format)
    optimizer = SGD(network.parameters(), **RECIPE)
    scheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    step = engine.TrainingStep(runtime.parallel(network), optimizer, runtime)
    step = accelerate.accelerate(step, runtime, options.precision, size, compiled)
    batches = Batches(split[: options.steps * size], size, MEAN, STD, torch.Generator(), runtime.shard)
    return lambda: engine.train_one_epoch(network, step, batches, scheduler, runtime)


def matrix_product(precision: str, device: torch.device) -> float:
    """Measure the FLOP/s of a product of two large matrices."""
    rows = 8192 if device.type == "cuda" else 2048  # a GPU takes longer to launch a smaller one than to do it
    matrix = torch.rand(rows, rows, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    torch.set_float32_matmul_precision("high")  # in fp32 a GPU's convolutions are in TF32, too
    seconds = seconds_of(lambda: matrix @ matrix, device)
    torch.set_float32_matmul_precision("highest")
    return 2 * rows**3 / seconds


def compare_loops(argv: list[str], options: Namespace, runtime: Runtime, split: Split, operations: float) -> None:
    """Measure all rows in turns, and print their medians; `operations`: those of a training step, for each image."""
    ours = {"this project, eager": our_loop(options, runtime, split)}
    if options.compile == "on" and accelerate.compiler_works(runtime):
        ours["this project, compiled"] = our_loop(options, runtime, split, compiled=True)
    measured = defaultdict(list)  # images a second, turn by turn
    for _ in tqdm(range(options.turns), "turns", leave=False, disable=None):
        for workers, rate in zip(WORKERS, plain_rates(argv)):
            measured[f"plain loop, {workers} workers"].append(rate)
        for name, train in ours.items():
            measured[name].append(options.steps * options.batch_size / seconds_of(train, runtime.device))
        measured["ceiling: arithmetic"].append(matrix_product(options.precision, runtime.device) / operations)
    rates = {name: statistics.median(values) for name, values in measured.items()}

    plain = max(rates[name] for name in rates if name.startswith("plain"))
    print(f"\n{'training':<24}{'images/s':>10}{'GFLOP/s':>10}{'of ceiling':>12}{'of plain':>10}")
    for name, rate in rates.items():
        part = rate / rates["ceiling: arithmetic"]
        print(f"{name:<24}{rate:10,.0f}{rate * operations / 1e9:10,.1f}{part:12.3f}{rate / plain:10.2f}")
    print(f"ceiling: a product of two large matrices, in {options.precision}; of plain: the faster one, in fp32")


def compare_processes(options: Namespace, runtime: Runtime, split: Split) -> None:
    """Measure under torchrun how fast one process trains while the others wait, and all of them together."""

    def measure(runtime: Runtime) -> float:
        train = our_loop(options, runtime, split)
        seconds = [seconds_of(train, runtime.device) for _ in range(options.turns)]
        return options.steps * options.batch_size / statistics.median(seconds)

    alone = runtime.broadcast_from_main(lambda: measure(Runtime(runtime.device)))
    together = measure(runtime)
    runtime.print(f"one process, eager       {alone:8,.0f} images/s")
    runtime.print(f"{runtime.world_size} processes, eager      {together:8,.0f} images/s, {together / alone:.2f} times")


def count_multiply_adds(network: ResidualCNN) -> float:
    """Count those of one image's forward pass."""
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
    add("--steps", type=integer(1), help="steps per measurement (default: on a CPU 4 to 20, by the network; else 200)")
    add("--turns", type=integer(1), default=3, help="measurements of each row; their median is shown")
    add("--compile", choices=("on", "off"), default="on", help="measure the compiled network, too")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of this project's loop, as in train.py")
    add("--plain", action="store_true", help=SUPPRESS)  # for `plain_rates`: the plain loop alone, once
    return parser


def main(argv: list[str] | None = None) -> int:
    argv, parser = sys.argv[1:] if argv is None else argv, build_parser()
    options = parser.parse_args(argv)
    options.network = {name: getattr(options, name) for name in ("widths", "blocks", "dropout", "downsample")}
    with start(options.device) as runtime:
        try:
            network = ResidualCNN(**options.network)
        except ValueError as error:
            parser.error(f"there is no such network: {error}")
        multiply_adds = count_multiply_adds(network)
        device = runtime.device
        usual = min(max(4, round(600e6 / multiply_adds)), 20) if device.type == "cpu" else 200
        options.steps = min(options.steps or usual, TRAINING // options.batch_size)
        options.precision = accelerate.choose_precision(options.precision, device)
        if options.plain:
            print(*[plain_loop(options, device, workers) for workers in WORKERS])
            return 0
        accelerate.keep_freed_memory()
        images = torch.randint(0, 256, (TRAINING, 3, 32, 32), dtype=torch.uint8)
        split = Split(images, torch.arange(TRAINING) % 10).to(device)
        if is_distributed():
            compare_processes(options, runtime, split)
            return 0
        precision = accelerate.describe_precision(options.precision, device)
        print(f"machine  {runtime.describe()}, {precision}, torch {torch.__version__}")
        print(f"network  {count_parameters(network):,} parameters, {multiply_adds / 1e6:.1f} million multiply-adds")
        print(f"length   medians of {options.turns} turns of {options.steps} steps, batch {options.batch_size}")
        compare_loops(argv, options, runtime, split, 3 * 2 * multiply_adds)  # forward, backward twice
    return 0


if __name__ == "__main__":
    run_program(main)
