"""What train.py says before and after the table of epochs."""

import argparse
import shlex
from pathlib import Path

from utils.history import in_epochs
from utils.options import CHECKPOINT_DIR, DATA_DIR, arguments_of

# Options that no checkpoint holds, and what they are where they are not given.
USUAL = {"checkpoint_dir": CHECKPOINT_DIR, "data_dir": DATA_DIR, "plot": None, "device": "auto", "teacher": None}
USUAL |= {"sync_bn": False, "deterministic": False}


def header(options: argparse.Namespace, training: int, validation: int, parameters: int, machine: str) -> str:
    """The facts of a run, a line each; `training`, `validation`: how many images."""
    what = "synthetic, not CIFAR-10" if options.data == "synthetic" else "CIFAR-10"
    widths, blocks = ("-".join(map(str, numbers)) for numbers in (options.widths, options.blocks))
    strided = ", strided" * (options.downsample == "stride")
    dropout = f", dropout {options.dropout:g}" if options.dropout else ""
    megabytes = options.epochs * 8 * parameters / 1e6  # weights and momentum, four bytes each
    steps = f"x {options.gamma:g} every {in_epochs(options.step_size)}"
    course = "one cycle" if options.schedule == "one-cycle" else steps
    momentum = "Nesterov " * options.nesterov + f"momentum {options.momentum:g}"
    smoothing = f", label smoothing {options.label_smoothing:g}" if options.label_smoothing else ""
    cutout = f", cutout {options.cutout}" if options.cutout else ""
    facts = {
        "data": f"{what}: {training:,} training and {validation:,} validation images",
        "network": f"ResidualCNN, widths {widths}, blocks {blocks}{strided}{dropout}; {parameters:,} parameters",
        "recipe": f"{in_epochs(options.epochs)}, batch {options.batch_size}, seed {options.seed}{smoothing}{cutout}",
        "SGD": f"lr {options.lr:g}, {course}, {momentum}, weight decay {options.weight_decay:g}",
        "teacher": options.teacher,
        "machine": machine,
        "files": f"{options.checkpoint_dir}, about {max(megabytes, 1):,.0f} MB in all",
    }
    return "\n".join(f"{name:<9}{fact}" for name, fact in facts.items() if fact)


def interrupted(options: argparse.Namespace, kept: int, processes: int = 1) -> str:
    """After Ctrl-C or the like, with `kept` epochs on disk."""
    if kept == 0:
        return "\ninterrupted before the first epoch ended; nothing is kept, start again with the same command"
    # What was added to the recipe is in no checkpoint before the first epoch with it has ended.
    more = "".join(f" {word}" for word in arguments_of(options.added))
    program = "python train.py" if processes == 1 else "torchrun ... train.py"
    go_on = f"{program} --resume{more}{_as_given(options, *USUAL)}"
    return f"\ninterrupted; {options.checkpoint_dir} keeps {in_epochs(kept)}. To go on: {go_on}"


def finished(options: argparse.Namespace, best_epoch: int, curve: Path) -> str:
    """After the last epoch: what to look at, and what to do next."""
    same = _as_given(options, "checkpoint_dir", "data_dir")
    return (
        f"Lowest validation loss: epoch {best_epoch}. The curve is in {curve}. Next:\n"
        f"    python test.py{same}    # the epochs, and which to test\n"
        f"    python test.py --epoch {best_epoch}{same}"
    )


def nothing_left(options: argparse.Namespace) -> str:
    """When a run with all its epochs is to be resumed."""
    more = "; more with --epochs" if options.schedule == "step" else ""
    return f"{options.checkpoint_dir} holds the whole run, {in_epochs(options.epochs)}: nothing left to do{more}"


def _as_given(options: argparse.Namespace, *names: str) -> str:
    """Those of the options that differ from what they usually are, for a command to run next."""
    unusual = {name: getattr(options, name) for name in names if getattr(options, name) != USUAL[name]}
    texts = {name: value.as_posix() if isinstance(value, Path) else value for name, value in unusual.items()}
    return "".join(f" {shlex.quote(text)}" for text in arguments_of(texts))
