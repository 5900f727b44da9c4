"""What train.py says before and after the table of epochs."""

import argparse
import shlex
from pathlib import Path

from utils.options import CHECKPOINT_DIR, DATA_DIR


def header(options: argparse.Namespace, training: int, validation: int, parameters: int, machine: str) -> str:
    """The facts of a run, a line each; `training`, `validation`: how many images."""
    what = "synthetic, not CIFAR-10" if options.data == "synthetic" else "CIFAR-10"
    shape = ", ".join(f"{count} x {width}" for width, count in zip(options.widths, options.blocks))
    se = f", SE / {options.se_reduction}" if options.se_reduction else ""
    megabytes = options.epochs * 8 * parameters / 1e6  # weights and momentum, four bytes each
    epochs = "1 epoch" if options.epochs == 1 else f"{options.epochs} epochs"
    sgd = f"{options.lr:g} / {options.momentum:g} / {options.weight_decay:g}" + " Nesterov" * options.nesterov
    course = "one cycle" if options.schedule == "one-cycle" else f"x {options.gamma:g} every {options.step_size}"
    smoothing = f", label smoothing {options.label_smoothing:g}" if options.label_smoothing else ""
    facts = {
        "data": f"{what}: {training:,} training and {validation:,} validation images",
        "network": f"ResidualCNN, blocks {shape}{se}; {parameters:,} parameters",
        "recipe": f"{epochs}, batch {options.batch_size}, seed {options.seed}, SGD {sgd}, {course}{smoothing}",
        "machine": machine,
        "files": f"{options.checkpoint_dir}, about {max(megabytes, 1):,.0f} MB in all",
    }
    return "\n".join(f"{name:<9}{fact}" for name, fact in facts.items())


def interrupted(options: argparse.Namespace, kept: int) -> str:
    """After Ctrl-C, with `kept` epochs on disk."""
    if kept == 0:
        return "\ninterrupted before the first epoch ended; nothing is kept, start again with the same command"
    go_on = f"python train.py --resume{_folders(options)}"
    return f"\ninterrupted; {options.checkpoint_dir} keeps {kept} epochs. To go on: {go_on}"


def finished(options: argparse.Namespace, best_epoch: int, curve: Path) -> str:
    """After the last epoch: what to look at, and what to do next."""
    folders = _folders(options)
    return (
        f"Lowest validation loss: epoch {best_epoch}. The curve is in {curve}. Next:\n"
        f"    python test.py{folders}    # the epochs, and which to test\n"
        f"    python test.py --epoch {best_epoch}{folders}"
    )


def nothing_left(options: argparse.Namespace) -> str:
    """When a run with all its epochs is to be resumed."""
    more = "; more with --epochs" if options.schedule == "step" else ""
    return f"{options.checkpoint_dir} holds all {options.epochs} epochs, nothing left to do{more}"


def _folders(options: argparse.Namespace) -> str:
    """The options that name other folders than the usual ones, for a command to run next."""
    folders = {
        "--checkpoint-dir": (options.checkpoint_dir, CHECKPOINT_DIR),
        "--data-dir": (options.data_dir, DATA_DIR),
    }
    others = {option: path for option, (path, usual) in folders.items() if path != usual}
    return "".join(f" {option} {shlex.quote(str(path))}" for option, path in others.items())
