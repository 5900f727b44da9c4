"""Train ResidualCNN on CIFAR-10, keep a checkpoint of every epoch and draw loss_curve.png.

python train.py                                                                     # the recipe, 90 epochs
python train.py --resume                                                            # go on after an interruption
python train.py --data synthetic --subset 2000 --epochs 3 --schedule one-cycle      # a tour without CIFAR-10
"""

if __name__ == "__main__":
    from utils.errors import exit_on_ctrl_c

    exit_on_ctrl_c()

import argparse
import contextlib
import inspect
import math
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD
from tqdm import tqdm

from dataset import TRAINING_IMAGES, Batches, channel_statistics, load_training
from models import ResidualCNN, cnn, count_parameters
from utils import checkpoint, engine, files, history
from utils.accelerate import accelerate, compiler_works, describe_precision, keep_freed_memory, memory_format
from utils.checkpoint import Checkpoint, Config
from utils.engine import TrainingStep, derived_seed
from utils.errors import UserError, ignore_further_signals, interrupt_code, run_program, warn
from utils.options import (
    CHECKPOINT_DIR,
    DATA_DIR,
    Options,
    Parser,
    decide,
    file_path,
    folder_path,
    integer,
    number,
    png_path,
)
from utils.plot import LossCurve, curve_path
from utils.runtime import Runtime, start

# The options that each --recipe stands for. One given beside it comes later on the command line, and wins.
RECIPES = {
    "default": "",
    "quick": "--widths 16 32 96 --downsample stride --dropout 0 --epochs 10 --batch-size 64 --schedule one-cycle "
    "--nesterov --label-smoothing 0.1",
    "best": "--widths 48 64 64 --downsample stride --dropout 0 --epochs 250 --schedule one-cycle --nesterov --cutout 8",
}
ADVICE = "--teacher takes an epoch_NN.pth, or a file of weights as in models/"


def build_parser() -> Parser:
    # The recipe: a checkpoint keeps these options. The default of each is also what it stands for in a checkpoint that
    # is older than the option, so a new option begins with the default that changes nothing.
    recipe = Parser(None, add_help=False)
    add = recipe.add_argument_group("recipe").add_argument
    add("--epochs", type=integer(1, 100_000), default=90, help="passes over the training images")
    add("--batch-size", type=integer(1), default=128, help="images per step, of all processes together")
    add("--lr", type=number(0, 10**6, open_low=True), default=0.1, help="learning rate of SGD: the schedule's highest")
    add("--momentum", type=number(0, 1), default=0.9, help="momentum of SGD")
    add("--weight-decay", type=number(0, 10**6), default=5e-4, help="weight decay (L2) of SGD")
    add("--nesterov", action=argparse.BooleanOptionalAction, default=False, help="Nesterov's momentum")
    add("--schedule", choices=("step", "one-cycle"), default="step", help="course of the rate: drops, or up and down")
    add("--step-size", type=integer(1), default=30, help="of schedule step: epochs between drops")
    add("--gamma", type=number(0, 1, open_low=True), default=0.1, help="of schedule step: factor of each drop")
    add("--label-smoothing", type=number(0, 0.99), default=0.0, help="part of a label spread over all classes")
    add("--cutout", type=integer(0, 32), default=0, help="side in pixels of a square blanked in each image; 0: none")
    add("--seed", type=integer(0, 2**32 - 1), default=0, help="seed of all random numbers")
    add("--data", choices=("cifar10", "synthetic"), default="cifar10", help="what to train on")
    add("--subset", type=integer(1), help="train on the first N images, and validate on N at most")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of steps; auto: bf16 where faster")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: where it pays")
    add("--max-parameters", type=integer(1), default=399_999, help="refuse a network with more trainable parameters")
    add = recipe.add_argument_group("network, the arguments of ResidualCNN").add_argument
    add("--widths", type=integer(1, 4096), nargs="+", default=list(cnn.WIDTHS), help="channels of up to five stages")
    add("--blocks", type=integer(1, 256), nargs="+", default=list(cnn.BLOCKS), help="residual blocks, stage by stage")
    add("--dropout", type=number(0, 0.99), default=cnn.DROPOUT, help="of DropBlock, last stage; in the others half")
    add("--downsample", choices=cnn.DOWNSAMPLING, default="pool", help="how resolution halves: averages or a stride")

    # Where and on what: a resumed run needs these again.
    parser = Parser(__doc__, recipe=recipe)
    lines = [f"{name:8} {options or 'the defaults'}" for name, options in RECIPES.items()]
    lines = [textwrap.fill(line, 76, subsequent_indent=9 * " ", break_on_hyphens=False) for line in lines]
    add = parser.add_argument_group("named recipes", "\n".join(lines)).add_argument
    add("--recipe", choices=RECIPES, default="default", help="these options; one beside it wins; best needs --teacher")
    group = parser.add_argument_group("files")
    add = group.add_argument
    add("--checkpoint-dir", type=folder_path, default=CHECKPOINT_DIR, help="folder of the checkpoints and history.csv")
    add("--data-dir", type=folder_path, default=DATA_DIR, help="folder of CIFAR-10, filled if empty")
    add("--plot", type=png_path, help="the curve (default: loss_curve.png, in --checkpoint-dir if that is another)")
    add("--teacher", type=file_path, help="checkpoint of a larger network, whose logits are learned too (distillation)")
    add = group.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="go on after the newest epoch in the folder")
    add("--overwrite", action="store_true", help="remove the run that is in the folder, and start anew")
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--sync-bn", action="store_true", help="under torchrun on GPUs, batch norm over all processes' images")
    add("--deterministic", action="store_true", help="on a GPU the same weights each time")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    given = parser.parse_args(argv)
    with start(given.device, given.deterministic) as runtime:
        lock = files.locked(given.checkpoint_dir) if runtime.is_main else contextlib.nullcontext()
        with lock:
            try:
                # A function of its own: its network must be gone before `start` ends the processes' group.
                train(parser, argv, given, runtime)
            except SystemExit as end:  # after an interruption
                return end.code
    return 0


def train(parser: Parser, argv: list[str], given: argparse.Namespace, runtime: Runtime) -> None:
    """One run, in the order in which it happens; `given`: the options on the command line `argv`."""
    folder = given.checkpoint_dir
    # 1. Where to start: from scratch, or after the newest epoch.
    saved = runtime.broadcast_from_main(lambda: checkpoint.starting_point(folder, given.resume, given.overwrite))
    options = decide(parser, [*RECIPES[given.recipe].split(), *argv], saved, runtime, TRAINING_IMAGES)
    if saved is None:
        check_network(options)
    rows = list(saved.history) if saved else []

    # 2. Data: uint8 images on the device, and what normalises them, from the training images alone.
    training, validation = load_training(options.data, options.data_dir)
    training, validation = training[: options.subset], validation[: options.subset]
    mean, std = channel_statistics(training.images)
    if saved:
        saved.check_images(mean, std, "name their folder with --data-dir")
        mean, std = saved.config.mean, saved.config.std  # processors differ in the last digits
    training, validation = training.to(runtime.device), validation.to(runtime.device)
    keep_freed_memory()  # from here on: what loading the data has freed goes back to the system

    # 3. Network, SGD, schedule; the training step, whose loss is the cross-entropy, and what makes it faster.
    network = build_network(options, saved, runtime)
    teacher, fingerprint = load_teacher(options, saved, mean, std, runtime)
    decay, nesterov = options.weight_decay, options.nesterov
    optimizer = SGD(network.parameters(), options.lr, options.momentum, weight_decay=decay, nesterov=nesterov)
    steps_per_epoch = math.ceil(len(training) / options.batch_size)
    scheduler = engine.build_scheduler(optimizer, options, steps_per_epoch)
    if saved:
        engine.skip_epochs(scheduler, saved.epoch, steps_per_epoch)
        saved.restore_training(optimizer, scheduler, steps_per_epoch)
    step = TrainingStep(runtime.parallel(network), optimizer, runtime, options.label_smoothing, teacher)
    compiled = options.compile == "on" and compiler_works(runtime)
    step = accelerate(step, runtime, options.precision, options.batch_size, compiled)

    # 4. Epochs: train, validate, save, show, draw.
    config = build_config(parser, options, mean, std, fingerprint)
    curve = LossCurve(curve_path(options.plot, folder), config, count_parameters(network))
    if runtime.is_main:
        curve.prepare()
        files.prepare_run(folder, options.overwrite)
        machine = f"{runtime.describe()}, {describe_precision(options.precision, runtime.device)}"
        machine += ", torch.compile" if compiled else ""
        history.print_header(options, config.changed, curve.parameters, len(training), len(validation), machine)
        if saved:
            print(f"resumed  after epoch {saved.epoch} of {options.epochs}")
        elif options.resume:
            print(f"note: {files.no_epoch(folder)}; starting with the options given")
    no_bar = None if runtime.is_main else True  # None: there is one where stderr is a terminal
    few = training[: engine.STATISTICS_IMAGES]  # as they are, and in every process the same
    few_size, validation_size = (engine.evaluation_batch(len(split), runtime.device) for split in (few, validation))
    with draw_curve_at_end(argv, folder, curve, rows, runtime):
        runtime.print(history.HEADER + "     left")
        for epoch in range(len(rows) + 1, options.epochs + 1):
            started, lr = time.perf_counter(), scheduler.get_last_lr()[0]
            # What is random follows from (seed, epoch), so that a resumed run draws what the first would have.
            torch.manual_seed(derived_seed(options.seed, epoch, runtime.rank + 1))  # dropout, process by process
            generator = torch.Generator().manual_seed(derived_seed(options.seed, epoch))  # order and augmentation
            batches = Batches(training, options.batch_size, mean, std, generator, runtime.shard, options.cutout)
            with tqdm(total=len(batches), desc=f"epoch {epoch}/{options.epochs}", leave=False, disable=no_bar) as bar:
                train_loss, train_accuracy = engine.train_one_epoch(
                    network, step, batches, scheduler, runtime, bar.update
                )
                training_seconds = time.perf_counter() - started
                bar.set_description("validating")
                engine.refresh_batch_norm(network, Batches(few, few_size, mean, std), runtime)
                batches = Batches(validation, validation_size, mean, std, shard=runtime.shard)
                val_loss, val_accuracy = engine.evaluate(network, batches, runtime)
            row = {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": time.perf_counter() - started,
                "images_per_second": len(training) / training_seconds,
            }
            engine.check_finite(row, network, optimizer)
            if runtime.is_main:
                checkpoint.save(folder, network, optimizer, scheduler, [*rows, row], config)
            rows.append(row)
            if runtime.is_main:
                history.print_newest(rows, options.epochs)
                if epoch < options.epochs:  # the whole run is drawn at its end
                    curve.draw_if_due(rows)
    folders = parser.changed(options, ["checkpoint_dir", "data_dir"])
    runtime.print(history.next_commands(rows, curve.path, folders))


def network_arguments(options: Options) -> dict:
    """The options that are arguments of ResidualCNN."""
    return {name: getattr(options, name) for name in inspect.signature(ResidualCNN).parameters}


def build_config(parser: Parser, options: Options, mean: list[float], std: list[float], teacher: str | None) -> Config:
    """What a checkpoint keeps of the run besides weights and history."""
    network = network_arguments(options)
    others = {name: getattr(options, name) for name in parser.recipe_names if name not in network}
    return Config(others, network, mean, std, teacher, parser.changed(options, parser.recipe_names))


def check_network(options: Options) -> None:
    """Raise `UserError` if there is no network of this description, or it is over the budget of parameters."""
    arguments = network_arguments(options)
    try:
        with torch.device("meta"):  # counts without taking the memory
            parameters = count_parameters(ResidualCNN(**arguments))
    except ValueError as error:
        names = ", ".join(f"--{name}" for name in arguments)
        raise UserError(f"{names}: there is no such network: {error}") from error
    if parameters > options.max_parameters:
        raise UserError(
            f"the network has {parameters:,} trainable parameters, more than {options.max_parameters:,}; choose "
            "smaller --widths or --blocks, or raise --max-parameters"
        )


def build_network(options: Options, saved: Checkpoint | None, runtime: Runtime) -> ResidualCNN:
    """The network of the options, on the device: initialised from the seed, or with the weights that were saved."""
    torch.manual_seed(options.seed)
    network = saved.build_network(ResidualCNN) if saved else ResidualCNN(**network_arguments(options))
    if options.sync_bn:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network.to(runtime.device, memory_format=memory_format(runtime.device))


def load_teacher(
    options: Options, saved: Checkpoint | None, mean: list[float], std: list[float], runtime: Runtime
) -> tuple[ResidualCNN, str] | tuple[None, None]:
    """The network in --teacher, for its logits alone, and the fingerprint of its weights; None and None without one."""
    teacher, fingerprint = None, None
    if options.teacher:
        loaded = runtime.broadcast_from_main(lambda: checkpoint.load(options.teacher, ADVICE, weights_alone=True))
        loaded.check_images(mean, std, "teacher and pupil need the same --data and --subset")
        teacher = loaded.build_network(ResidualCNN, ADVICE).eval().requires_grad_(False)
        teacher = teacher.to(runtime.device, memory_format=memory_format(runtime.device))
        fingerprint = loaded.fingerprint
    if saved:
        saved.check_teacher(options.teacher, fingerprint)
    return teacher, fingerprint


@contextlib.contextmanager
def draw_curve_at_end(
    argv: list[str], folder: Path, curve: LossCurve, rows: list[dict], runtime: Runtime
) -> Iterator[None]:
    """Around the epochs: draw the curve when they end, early too; after an interruption say how to go on."""
    try:
        yield
        if runtime.is_main:
            curve.draw(rows)
    except (KeyboardInterrupt, BrokenPipeError, UserError) as stop:  # a broken pipe: the reader of stdout has left
        ignore_further_signals()
        if runtime.is_main:
            with contextlib.suppress(UserError):  # which must not hide why the run ends
                curve.draw(rows)
            if not isinstance(stop, UserError):  # on stderr: Ctrl-C ends a reader of stdout (`tee`), too
                warn(history.resume_hint(argv, folder, runtime.world_size))
        if isinstance(stop, KeyboardInterrupt):
            sys.exit(interrupt_code(stop))
        raise


if __name__ == "__main__":
    run_program(main)
