"""Train ResidualCNN on CIFAR-10, keep a checkpoint of every epoch and draw loss_curve.png.

python train.py                                                                  the recipe, 90 epochs
python train.py --resume                                                         go on after an interruption
python train.py --data synthetic --subset 2000 --epochs 3 --schedule one-cycle   a tour without CIFAR-10
"""

import argparse
import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import dataset
from dataset import Batches, Split
from models import ResidualCNN, cnn, count_parameters
from utils import checkpoint, compiler, contents, cuda_graph, distillation, engine, history, messages, plot
from utils.errors import UserError, interrupt_code, run_program, warn
from utils.options import CHECKPOINT_DIR, DATA_DIR, Parser, check_together, integer, location, png, real
from utils.resume import finish, resume_point
from utils.runtime import Runtime, derived_seed, keep_freed_memory, start

SCHEDULE_HELP = "course of the learning rate; step: it drops; one-cycle: straight up to --lr, then down to nothing"
TEACHER_HELP = "checkpoint of a larger network, whose answers are learned, too (distillation); with --resume again"
PRECISION_HELP = "of training steps; bf16: mixed, by autocast; auto: bf16 on GPUs that have it, else fp32"


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument_group("recipe").add_argument
    add("--epochs", type=integer(1, 100_000), default=90, help="passes over the training images")
    add("--batch-size", type=integer(1), default=128, help="images per step, of all processes together")
    add("--lr", type=real(0, 10**6, open_low=True), default=0.1, help="learning rate of SGD: the schedule's highest")
    add("--momentum", type=real(0, 1), default=0.9, help="momentum of SGD")
    add("--weight-decay", type=real(0, 10**6), default=5e-4, help="weight decay (L2) of SGD")
    add("--nesterov", action="store_true", help="Nesterov's momentum")
    add("--schedule", choices=("step", "one-cycle"), default="step", help=SCHEDULE_HELP)
    add("--step-size", type=integer(1), default=30, help="of schedule step: epochs between drops")
    add("--gamma", type=real(0, 1, open_low=True), default=0.1, help="of schedule step: factor of each drop")
    add("--label-smoothing", type=real(0, 0.99), default=0.0, help="share of a label spread over all classes")
    add("--cutout", type=integer(0, 32), default=0, help="side in pixels of a square blanked in each image; 0: none")
    add("--teacher", type=location, help=TEACHER_HELP)
    add("--seed", type=integer(0, 2**32 - 1), default=0, help="seed of all random numbers")

    add = parser.add_argument_group("network").add_argument
    add("--widths", type=integer(1, 4096), nargs="+", default=list(cnn.WIDTHS), help="channels of up to five stages")
    add("--blocks", type=integer(1, 256), nargs="+", default=list(cnn.BLOCKS), help="residual blocks, stage by stage")
    add("--dropout", type=real(0, 0.99), default=cnn.DROPOUT, help="DropBlock's probability, last stage; others: half")
    add("--downsample", choices=cnn.DOWNSAMPLING, default="pool", help="how resolution halves: averages, or a stride")
    add("--max-parameters", type=integer(1), default=399_999, help="refuse a network with more trainable parameters")

    add = parser.add_argument_group("data").add_argument
    add("--data", choices=("cifar10", "synthetic"), default="cifar10", help="what to train on")
    add("--data-dir", type=location, default=DATA_DIR, help="folder of CIFAR-10, filled if empty")
    add("--subset", type=integer(1), help="train on the first N images, and validate on N at most")

    files = parser.add_argument_group("files")
    add = files.add_argument
    add("--checkpoint-dir", type=location, default=CHECKPOINT_DIR, help="folder of the checkpoints and history.csv")
    add("--plot", type=png, help="the curve, a PNG (default: loss_curve.png, in --checkpoint-dir if that is another)")
    add = files.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="go on after the newest epoch in the folder")
    add("--overwrite", action="store_true", help="remove the run that is in the folder, and start anew")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    add("--sync-bn", action="store_true", help="under torchrun on GPUs, batch norm over all processes' images")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: where it pays")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=PRECISION_HELP)
    add("--deterministic", action="store_true", help="on a GPU the same weights each time")
    parser.set_defaults(added={})  # to the recipe of the run that is resumed
    return parser


def build_network(options: argparse.Namespace) -> ResidualCNN:
    """The network of the options, initialised from the seed.

    Raises:
        UserError: if there is no network of this shape, or it is over the budget of parameters.
    """
    arguments = contents.network_arguments(options)
    with torch.device("meta"):  # counts without taking the memory
        parameters = count_parameters(ResidualCNN(**arguments))
    if parameters > options.max_parameters:
        raise UserError(
            f"the network has {parameters:,} trainable parameters, more than {options.max_parameters:,}; choose "
            "smaller --widths or --blocks, or raise --max-parameters"
        )
    torch.manual_seed(options.seed)
    return ResidualCNN(**arguments)


class Run:
    """One run of training: its data, network, optimiser and history.

    Raises:
        UserError: if the data cannot be had, or `saved`, the checkpoint to go on from, is not usable with it.
    """

    def __init__(self, options: argparse.Namespace, runtime: Runtime, network: ResidualCNN, saved: dict | None = None):
        self.options, self.runtime = options, runtime
        self._load_data()
        keep_freed_memory()  # from here on: what loading the data has freed goes back to the system
        if options.compile == "auto":  # decided once: a resumed run has it from its checkpoint
            options.compile = "on" if compiler.pays(options.epochs * len(self.training), runtime.device) else "off"
        options.precision = runtime.choose_precision(options.precision)  # likewise
        self.compiled = options.compile == "on" and compiler.works(runtime)
        self.history = []
        if saved:
            path = checkpoint.path_of(options.checkpoint_dir, saved["epoch"])
            network = checkpoint.rebuild_network(path, saved, ResidualCNN)
            checkpoint.check_images(path, saved, self.mean, self.std, "name their folder with --data-dir")
        teacher, self.teacher_fingerprint = distillation.load_teacher(
            options.teacher, ResidualCNN, runtime, self.mean, self.std
        )
        self._prepare_training(network, teacher)
        if saved:
            self._restore(path, saved)
        self.config = contents.config_of(options, self.mean, self.std, self.teacher_fingerprint)  # decided by now

    def _load_data(self) -> None:
        training, validation = dataset.load_training(self.options.data, self.options.data_dir)
        training, validation = training[: self.options.subset], validation[: self.options.subset]  # None: all of it
        self.mean, self.std = dataset.channel_statistics(training.images)
        self.training, self.validation = training.to(self.runtime.device), validation.to(self.runtime.device)
        self.steps_per_epoch = math.ceil(len(training) / self.options.batch_size)

    def _prepare_training(self, network: ResidualCNN, teacher: ResidualCNN | None) -> None:
        options, runtime = self.options, self.runtime
        if options.sync_bn:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(runtime.device, memory_format=runtime.memory_format)
        forward = self._fast(runtime.parallel(self.network))
        teacher = teacher and self._fast(teacher)
        parameters = self.network.parameters()
        self.optimizer = SGD(
            parameters, options.lr, options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov
        )
        self.step = cuda_graph.step_class(runtime)(forward, self.optimizer, runtime, options.label_smoothing, teacher)
        self.scheduler = engine.build_scheduler(self.optimizer, options, self.steps_per_epoch)

    def _fast(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The forward pass of training steps, compiled and in the precision of the options, if they ask for it."""
        if self.compiled:
            share = self.runtime.share(self.options.batch_size)
            forward = compiler.compiled(forward, share.stop - share.start)
        return self.runtime.in_precision(self.options.precision, forward)

    def _restore(self, path: Path, saved: dict) -> None:
        self.mean, self.std, fingerprint = (saved["config"][name] for name in ("mean", "std", "teacher"))
        if fingerprint != self.teacher_fingerprint:
            which = f"another teacher than {self.options.teacher}" if self.options.teacher else "a teacher"
            raise UserError(f"{path} was trained with {which}; give that one with --teacher")
        checkpoint.restore_training(path, saved, self.optimizer, self.scheduler, saved["epoch"] * self.steps_per_epoch)
        self.history = saved["history"]

    def train_epoch(self) -> dict:
        """Train for the next epoch, compute batch norm's statistics anew and validate; returns its row of the history.

        What is random in an epoch follows from (seed, epoch), so that a resumed run draws what the first would have.
        """
        options, epoch = self.options, len(self.history) + 1
        started = time.perf_counter()
        torch.manual_seed(derived_seed(options.seed, epoch, self.runtime.rank + 1))  # dropout, process by process
        generator = torch.Generator().manual_seed(derived_seed(options.seed, epoch))  # order, crops, flips and squares
        batches = self.batches(self.training, options.batch_size, generator)
        lr = self.scheduler.get_last_lr()[0]
        hidden = None if self.runtime.is_first else True  # None: shown where stderr is a terminal
        with tqdm(total=len(batches), desc=f"epoch {epoch}/{options.epochs}", leave=False, disable=hidden) as bar:
            train_loss, train_accuracy = engine.train_one_epoch(
                self.network, self.step, batches, self.scheduler, self.runtime, bar.update
            )
            training_seconds = time.perf_counter() - started
            bar.set_description("validating")
            few = self.training[: engine.STATISTICS_IMAGES]  # in every process all of them
            update_bn(Batches(few, self.runtime.evaluation_batch(len(few)), self.mean, self.std), self.network)
            val_loss, val_accuracy = self.validate()
        return {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "seconds": time.perf_counter() - started,
            "images_per_second": len(self.training) / training_seconds,
        }

    def validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation split."""
        self.runtime.broadcast_buffers(self.network)
        batches = self.batches(self.validation, self.runtime.evaluation_batch(len(self.validation)))
        return engine.loss_and_accuracy(*engine.predict(self.network, batches), self.runtime)

    def batches(self, split: Split, batch_size: int, generator: torch.Generator | None = None) -> Batches:
        """This process's shares of the batches of `split`."""
        return Batches(split, batch_size, self.mean, self.std, generator, self.runtime.share, self.options.cutout)

    def keep(self, row: dict) -> None:
        """Write the checkpoint of the epoch just trained, and enter its row into the history."""
        if self.runtime.is_first:
            rows = [*self.history, row]
            saved = contents.checkpoint_of(self.network, self.optimizer, self.scheduler, rows, self.config)
            checkpoint.save(self.options.checkpoint_dir, saved)
        self.history.append(row)


def fit(run: Run, curve: plot.LossCurve) -> None:
    """Train to the last epoch, keeping a checkpoint of each.

    Raises:
        UserError: if training diverges, or a checkpoint or the curve cannot be written.
    """
    epochs = run.options.epochs
    run.runtime.say(history.HEADER + "     left")
    while len(run.history) < epochs:
        row = run.train_epoch()
        if not engine.is_finite(row["train_loss"] + row["val_loss"], run.network, run.optimizer):
            raise UserError(
                f"loss or weights of epoch {row['epoch']} are not finite: training has diverged; try a smaller --lr "
                f"than {run.options.lr:g}"
            )
        run.keep(row)
        if run.runtime.is_first:
            # The median: an epoch in which the compiler started, or the machine slept, says little about the next.
            left = (epochs - row["epoch"]) * statistics.median_low(past["seconds"] for past in run.history[-10:])
            run.runtime.say(f"{history.line(row, row is history.best_row(run.history))}{history.duration(left):>9}")
            if row["epoch"] < epochs:  # the whole run is drawn at its end
                curve.draw_if_due(run.history)


def fit_and_draw(run: Run, curve: plot.LossCurve) -> int:
    """Train to the last epoch or an interruption, and draw the curve of what there is; returns the exit code."""
    options, first = run.options, run.runtime.is_first
    try:
        fit(run, curve)
        if first:
            curve.draw(run.history)
    except (KeyboardInterrupt, BrokenPipeError, UserError) as stop:  # a broken pipe: the reader of stdout has left
        if first and run.history:
            with contextlib.suppress(UserError):  # which must not hide why the run ends
                curve.draw(run.history)
        if first and not isinstance(stop, UserError):  # said on stderr: Ctrl-C ends a reader of stdout (`tee`), too
            kept = len(checkpoint.saved_epochs(options.checkpoint_dir))  # the history may not have the last one yet
            warn(messages.interrupted(options, kept, run.runtime.world_size))
        if not isinstance(stop, KeyboardInterrupt):
            raise
        return interrupt_code(stop)
    run.runtime.say(messages.finished(options, history.best_row(run.history)["epoch"], curve.path))
    return 0


def train(parser: Parser, options: argparse.Namespace, argv: list[str], runtime: Runtime) -> int:
    """The run that the options ask for; returns the exit code. Raises `UserError` for what cannot be done."""
    options, saved = runtime.from_first(lambda: resume_point(parser, options, argv))
    check_together(options, runtime.device.type, runtime.world_size)
    network = build_network(options)
    with checkpoint.claimed(options.checkpoint_dir) if runtime.is_first else contextlib.nullcontext():
        if runtime.is_first and not options.overwrite:
            checkpoint.check_newest(options.checkpoint_dir, saved)
        if saved and saved["epoch"] >= options.epochs:
            if runtime.is_first:
                finish(options, saved)
            return 0
        run = Run(options, runtime, network, saved)
        parameters = count_parameters(run.network)
        curve = plot.LossCurve(plot.curve_path(options), run.config, parameters)
        if runtime.is_first:
            curve.prepare()
            if options.overwrite:
                checkpoint.clear(options.checkpoint_dir)
            checkpoint.clear_partial(options.checkpoint_dir)
        machine = runtime.describe(options.precision) + ", torch.compile" * run.compiled
        runtime.say(messages.header(options, len(run.training), len(run.validation), parameters, machine))
        if saved:
            runtime.say(f"resumed  after epoch {saved['epoch']}")
        elif options.resume:
            runtime.say(f"note: no epoch in {options.checkpoint_dir} yet, starting with the options given")
        return fit_and_draw(run, curve)


def main(argv: list[str] | None = None) -> int:
    parser, argv = build_parser(), sys.argv[1:] if argv is None else argv
    options = parser.parse_args(argv)
    with start(options.device, options.deterministic) as runtime:
        # A function of its own: what it made must be gone before `start` ends the processes' group.
        return train(parser, options, argv, runtime)


if __name__ == "__main__":
    run_program(main)
