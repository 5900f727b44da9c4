"""This machine on random images: the loop that everyone writes, this project's, and what the processor could do.

python -m utils.benchmark                                        the default network, in under three minutes
python -m utils.benchmark --widths 32 64 128 --blocks 1 1 1      another network
torchrun --nproc-per-node 2 -m utils.benchmark                   what several processes bring
"""

import argparse
import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.flop_counter import FlopCounterMode

import dataset
from dataset import Batches, Split
from models import ResidualCNN, cnn, count_parameters
from utils import checkpoint, compiler, contents, cuda_graph, engine, plot
from utils.errors import run_program
from utils.measure import in_turns, peak_memory, process_for, run_script, seconds_of
from utils.options import Parser, arguments_of, integer, real
from utils.plain_loop import RECIPE, WORKERS, PlainLoop, matrix_rows
from utils.runtime import Runtime, choose_device, keep_freed_memory, start, torch_trouble

TRAINING, VALIDATION, EPOCHS = 45_000, 5_000, 90  # images and epochs, as in train.py
STEPS = 200  # a measurement, anywhere but on a CPU
CPU_WORK = 320e6  # multiply-adds an image, times steps, of a measurement there: some three seconds on two slow cores


class ThisProject:
    """The parts of an epoch of train.py, on as many random images."""

    def __init__(self, shape: dict, batch_size: int, steps: int, device: torch.device, precision: str):
        self.memory_at_start = peak_memory()
        keep_freed_memory()
        self.runtime, self.batch_size, self.precision = Runtime(device), batch_size, precision
        self.network = ResidualCNN(**shape).to(device, memory_format=self.runtime.memory_format)
        self.optimizer = SGD(self.network.parameters(), **RECIPE)
        self.scheduler = StepLR(self.optimizer, 30 * TRAINING)
        training, validation = random_images(TRAINING), random_images(VALIDATION)
        self.mean, self.std = dataset.channel_statistics(training.images)
        self.training, self.validation = training.to(device), validation.to(device)  # all of them, as in train.py
        self.to_step = self.training[: steps * batch_size]
        self.to_load = self.training[: max(steps, 32) * batch_size]
        self.evaluation_batch = self.runtime.evaluation_batch(VALIDATION)
        self.to_validate = self.validation[: 4 * self.evaluation_batch]
        self._step_with(self.network)

    def _step_with(self, forward: Callable[[Tensor], Tensor]) -> None:
        forward = self.runtime.in_precision(self.precision, forward)
        self.step = cuda_graph.step_class(self.runtime)(forward, self.optimizer, self.runtime)

    def compile(self) -> float | None:
        """Compile the forward pass; seconds until the first step is done, None where there is no compiler."""
        if not compiler.works(self.runtime):
            return None
        self._step_with(compiler.compiled(self.network, self.batch_size))
        return seconds_of(lambda: self._train_on(self.to_step[: self.batch_size]), self.runtime.device)

    def divide_among(self, runtime: Runtime) -> None:
        """From now on train together with the other processes of `runtime`, each on its share of a batch."""
        self.runtime = runtime
        self._step_with(runtime.parallel(self.network))

    def train(self) -> float:
        """Images a second."""
        for _ in range(1 if self.runtime.device.type == "cpu" else 2):  # to warm up; on a GPU the second is captured
            self._train_on(self.to_step[: self.batch_size])
        return len(self.to_step) / seconds_of(lambda: self._train_on(self.to_step), self.runtime.device)

    def _train_on(self, split: Split) -> None:
        engine.train_one_epoch(self.network, self.step, self._batches(split), self.scheduler, self.runtime)

    def _batches(self, split: Split) -> Batches:
        generator = torch.Generator().manual_seed(0)
        return Batches(split, self.batch_size, self.mean, self.std, generator, self.runtime.share)

    def load(self) -> float:
        """Seconds for an epoch's batches, without a step: gather, augment, normalise."""
        seconds = seconds_of(lambda: [None for _ in self._batches(self.to_load)], self.runtime.device)
        return seconds * TRAINING / len(self.to_load)

    def augment(self) -> float:
        """Seconds for an epoch's crops and flips alone."""
        split = self.to_load
        corners = torch.randint(0, 2 * dataset.PADDING + 1, (2, len(split)), device=split.images.device)
        flips = torch.rand(len(split), device=split.images.device) < 0.5
        group = self.batch_size * self._batches(split).ahead  # as many at once as `Batches` makes
        parts = split.images.float().split(group), corners.split(group, dim=1), flips.split(group)
        seconds = seconds_of(lambda: [dataset.crop_and_flip(*part) for part in zip(*parts)], self.runtime.device)
        return seconds * TRAINING / len(split)

    def validate(self) -> float:
        """Images a second."""
        batches = Batches(self.to_validate, self.evaluation_batch, self.mean, self.std)

        def work():
            engine.loss_and_accuracy(*engine.predict(self.network, batches), self.runtime)

        return len(self.to_validate) / seconds_of(work, self.runtime.device)

    def infer(self) -> float:
        """Images a second of the bare forward pass."""
        images = torch.rand(self.evaluation_batch, 3, 32, 32, device=self.runtime.device)
        with torch.inference_mode():
            return len(images) / seconds_of(lambda: self.network.eval()(images), self.runtime.device)

    def memory(self) -> float:
        """Bytes at the peak, above what the imports take."""
        return peak_memory() - self.memory_at_start


def random_images(count: int) -> Split:
    return Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count) % 10)


EAGER, COMPILED = "this project, eager", "this project, compiled"
LOOPS = (PlainLoop, ThisProject, ThisProject)  # the second of ours is compiled, if it can be


def count_work(network: nn.Module) -> tuple[float, int]:
    """Multiply-adds of one image's forward pass, and how many activations its convolutions read and write."""
    activations = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            activations.append(inputs[0].numel() + output.numel())

    with FlopCounterMode(display=False) as counter, torch.no_grad(), register_module_forward_hook(count):
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() / 2, sum(activations)


def time_files(shape: dict, device: str) -> dict[str, float]:
    """Seconds to save a checkpoint, to draw a curve of ninety epochs, and of test.py from command to answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        where = ["--checkpoint-dir", folder, "--device", device]
        tiny = ["--data", "synthetic", "--subset", 128, "--epochs", 1, "--max-parameters", 10**9]
        run_script("train.py", *tiny, *arguments_of(shape), *where)
        answer = run_script("test.py", "--epoch", 1, *where)
        saved = checkpoint.load(checkpoint.path_of(folder, 1))
        saved["history"] = [saved["history"][0] | {"epoch": epoch} for epoch in range(1, 91)]
        curve = plot.LossCurve(folder / "curve.png", saved["config"], checkpoint.trainable_parameters(saved))
        curve.draw(saved["history"])  # the first one imports matplotlib
        jobs = {"saving": lambda: checkpoint.save(folder, saved), "drawing": lambda: curve.draw(saved["history"])}
        return {name: seconds_of(job, torch.device("cpu")) for name, job in jobs.items()} | {"test.py": answer}


def print_rates(
    rates: dict[str, float], measured: dict[str, float], work: tuple[float, int], precision: str, rows: int
) -> None:
    """How fast images are trained on, beside what the machine could do by `work`, as `count_work` returns it."""
    multiply_adds, activations = work
    # Three passes: forward, and backward for the activations and for the weights. What lies between the convolutions
    # could be done while they read and write.
    operations, traffic = 3 * 2 * multiply_adds, 3 * activations * (2 if precision == "bf16" else 4)
    ceilings = {
        "ceiling: arithmetic": measured["arithmetic"] / operations,
        "ceiling: memory": measured["bandwidth"] / traffic,
    }
    ceiling, plain = min(ceilings.values()), max(rate for name, rate in rates.items() if name.startswith("plain"))
    print(f"\n{'training':<24}{'images/s':>10}{'GFLOP/s':>10}{'of ceiling':>12}{'of plain':>10}")
    for name, rate in (rates | ceilings).items():
        flops = rate * operations / 1e9
        print(f"{name:<24}{rate:10,.0f}{flops:10,.1f}{rate / ceiling:12.3f}{rate / plain:10.2f}")
    print(f"arithmetic: as fast as a product of two {rows} x {rows} matrices in {precision}")
    print(f"memory: what convolutions read and write, {traffic / 1e6:.1f} MB an image, as fast as a copy")
    print("of ceiling: of the lower one; of plain: of the faster plain loop, in fp32")


def print_epoch(row: str, measured: dict[str, float], files: dict[str, float]) -> None:
    """Where the time of an epoch goes, if it is trained as `row` is."""
    seconds = {
        "loading": measured["load"] - measured["augment"],
        "augmenting": measured["augment"],
        "stepping": TRAINING / measured[row] - measured["load"],
        # About: for these the network is not in evaluation mode, as it is in the bare forward pass.
        "batch norm's statistics": engine.STATISTICS_IMAGES / measured["infer"],
        "validating": VALIDATION / measured["validate"],
        "saving": files["saving"],
    }
    seconds["drawing"] = min(files["drawing"], plot.MAX_SHARE * sum(seconds.values()))  # not after each short epoch
    total = sum(seconds.values())
    how = row.removeprefix("this project, ")
    print(f"\none epoch of train.py, {how}: {TRAINING:,} and {VALIDATION:,} images, scaled up from samples")
    for name, value in seconds.items():
        print(f"{name:<24}{value:10.2f} s{value / total:12.1%}")
    print(f"{'all':<24}{total:10.2f} s")


def compare(shape: dict, options: argparse.Namespace, device: torch.device, work: tuple[float, int]) -> None:
    """Measure and print everything that one process on this machine can tell."""
    setup = (shape, options.batch_size, options.steps, device, options.precision)
    with contextlib.ExitStack() as stack:
        plain, eager, second = (stack.enter_context(process_for(loop, *setup)) for loop in LOOPS)
        as_in_train = second if compiler.pays(EPOCHS * TRAINING, device) else eager
        rest = {name: functools.partial(as_in_train, name) for name in ("load", "augment", "validate", "infer")}
        plain("train", WORKERS)  # not counted: it starts the workers, who stay
        eager("train")  # nor this, and what follows: the first time takes longer
        for measure in rest.values():
            measure()
        compile_seconds = second("compile") if options.compile == "on" else None
        second_row = COMPILED if compile_seconds else EAGER
        rows = {f"plain loop, {count} workers": functools.partial(plain, "train", count) for count in (0, WORKERS)}
        rows |= {EAGER: functools.partial(eager, "train")} | {second_row: functools.partial(second, "train")}
        ceilings = {name: functools.partial(plain, name) for name in ("arithmetic", "bandwidth")}
        measured = in_turns(rows | rest | ceilings, options.turns)
        memory = as_in_train("memory")
    print_rates({name: measured[name] for name in rows}, measured, work, options.precision, matrix_rows(device))
    if compile_seconds:
        print(f"compiling took {compile_seconds:.1f} s, not counted")
    files = time_files(shape, options.device)
    print_epoch(second_row if as_in_train is second else EAGER, measured, files)
    print(f"\nvalidation   {measured['validate']:,.0f} images/s, the bare forward pass {measured['infer']:,.0f}")
    print(f"peak memory  {memory / 1e9:.2f} GB above what importing torch and torchvision takes")
    print(f"test.py      {files['test.py']:.1f} s from the command to its end, on 1,000 synthetic images")


def measure_processes(shape: dict, options: argparse.Namespace, runtime: Runtime) -> None:
    """Under torchrun: how fast one process goes through the images while the others wait, and all of them together."""
    project = ThisProject(shape, options.batch_size, options.steps, runtime.device, options.precision)
    hidden = None if runtime.is_first else True
    measure = functools.partial(in_turns, {"images/s": project.train}, options.turns, hidden)
    alone = runtime.from_first(measure)["images/s"]
    project.divide_among(runtime)
    together = measure()["images/s"]
    runtime.say(f"one process, eager       {alone:8,.0f} images/s")
    runtime.say(f"{runtime.world_size} processes, eager      {together:8,.0f} images/s, {together / alone:.2f} times")


def build_parser() -> Parser:
    parser = Parser(__doc__, "python -m utils.benchmark")
    add = parser.add_argument
    add("--widths", type=integer(1, 4096), nargs="+", default=list(cnn.WIDTHS), help="as in train.py")
    add("--blocks", type=integer(1, 256), nargs="+", default=list(cnn.BLOCKS), help="as in train.py")
    add("--dropout", type=real(0, 0.99), default=cnn.DROPOUT, help="as in train.py")
    add("--downsample", choices=cnn.DOWNSAMPLING, default="pool", help="as in train.py")
    add("--batch-size", type=integer(1), default=128, help="images per step")
    add("--steps", type=integer(1), help="steps per measurement (default: on a CPU 2 to 20, by the network; else 200)")
    add("--turns", type=integer(1), default=3, help="measurements of each row; their median is shown")
    add("--compile", choices=("on", "off"), default="on", help="measure the compiled network, too")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of this project's loop, as in train.py")
    return parser


def decide(options: argparse.Namespace, device: torch.device, multiply_adds: float) -> None:
    """Fill in what depends on device and network."""
    options.precision = Runtime(device).choose_precision(options.precision)
    if options.steps is None:
        on_cpu = min(max(2, round(CPU_WORK / multiply_adds)), 20)
        options.steps = on_cpu if device.type == "cpu" else STEPS
    options.steps = max(1, min(options.steps, TRAINING // options.batch_size))


@torch_trouble()
def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    shape = contents.network_arguments(options)
    network = ResidualCNN(**shape)
    work = multiply_adds, _ = count_work(network)
    if torch.distributed.is_torchelastic_launched():
        with start(options.device) as runtime:
            decide(options, runtime.device, multiply_adds)
            measure_processes(shape, options, runtime)
        return 0
    device = choose_device(options.device)
    decide(options, device, multiply_adds)
    print(f"machine  {Runtime(device).describe(options.precision)}, torch {torch.__version__}")
    print(f"network  {count_parameters(network):,} parameters, {multiply_adds / 1e6:.1f} million multiply-adds")
    print(f"length   medians of {options.turns} turns of {options.steps} steps, batch {options.batch_size}", flush=True)
    compare(shape, options, device, work)
    return 0


if __name__ == "__main__":
    run_program(main)
