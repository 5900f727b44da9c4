"""Test one epoch's network on CIFAR-10's 10,000 test images.

python test.py --epoch 42       the verdict on epoch 42
python test.py                  show the epochs, and ask which
"""

import math
import sys
from pathlib import Path

import torch

import dataset
from dataset import CLASSES, Batches
from models import ResidualCNN
from utils import checkpoint, engine, history, plot
from utils.errors import UserError, run_program
from utils.options import Parser, integer
from utils.runtime import Runtime, choose_device

Z_95 = 1.959964  # of the normal distribution, for a two-sided interval of 95%


def build_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0], epilog="\n".join(__doc__.splitlines()[2:]))
    parser.add_argument("--epoch", type=integer(1), default=None, help="epoch to test (default: show a table and ask)")
    parser.add_argument("--checkpoint-dir", type=Path, default=plot.CHECKPOINT_DIR, help="folder of the run")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of CIFAR-10, filled if empty")
    parser.add_argument("--batch-size", type=integer(1), default=500, help="images a forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    return parser


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95% interval of a proportion, by E. B. Wilson (J. Am. Stat. Assoc. 22, 209-212, 1927)."""
    share, spread = correct / count, Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def ask_for_epoch(folder: Path, epochs: list[int]) -> int | None:
    """Show the epochs in `folder` and ask for one; None if the answer is the end of the input, Ctrl-D.

    Raises:
        UserError: if there is no terminal to ask at.
    """
    rows = checkpoint.load_newest(folder)["history"]
    best = history.best_row(rows)
    print(history.HEADER)
    for row in rows:
        print(history.line(row, row is best))
    print("* lowest validation loss")
    if not sys.stdin.isatty():
        raise UserError("no terminal to ask for an epoch; name it with --epoch")
    while True:
        try:
            answer = input("epoch to test: ").strip()
        except EOFError:
            print()
            return None
        if answer.isdecimal() and int(answer) in epochs:
            return int(answer)
        print(f"{answer!r} is none of {listed(epochs)}")


def listed(epochs: list[int]) -> str:
    """1-4, 6, 9-10 for [1, 2, 3, 4, 6, 9, 10]."""
    ranges: list[list[int]] = []
    for epoch in epochs:
        if ranges and ranges[-1][1] == epoch - 1:
            ranges[-1][1] = epoch
        else:
            ranges.append([epoch, epoch])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def print_verdict(epoch: int, data: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    loss, accuracy = engine.loss_and_accuracy(logits, labels, Runtime(logits.device))
    right = logits.argmax(dim=1) == labels
    low, high = wilson_interval(int(right.sum()), len(labels))
    what = "test images" if data == "cifar10" else "synthetic test images, which are not CIFAR-10"
    print(f"epoch {epoch} on {len(labels):,} {what}")
    print(f"accuracy  {accuracy:.2%}  (95% interval {low:.2%} to {high:.2%})")
    print(f"loss      {loss:.4f}")
    for index, name in enumerate(CLASSES):
        print(f"  {name:<12}{right[labels == index].double().mean().item():7.1%}")


def main(argv: list[str] | None = None) -> int:
    options, _ = build_parser().parse(argv)
    device = choose_device(options.device)
    folder = options.checkpoint_dir
    epochs = checkpoint.saved_epochs(folder)
    if not epochs:
        raise UserError(f"there is no epoch in {folder}; train first, or name another --checkpoint-dir")
    epoch = options.epoch if options.epoch is not None else ask_for_epoch(folder, epochs)
    if epoch is None:
        return 0
    if epoch not in epochs:
        raise UserError(f"there is no epoch {epoch} in {folder}; choose from {listed(epochs)}")
    path = checkpoint.path_of(folder, epoch)
    saved = checkpoint.load(path)
    network = checkpoint.rebuild_network(path, saved, ResidualCNN).to(device, memory_format=torch.channels_last)
    config = saved["config"]
    split = dataset.load_test(config["options"]["data"], options.data_dir).to(device)
    batches = Batches(split, options.batch_size, config["mean"], config["std"])
    print_verdict(epoch, config["options"]["data"], *engine.predict(network, batches))
    return 0


if __name__ == "__main__":
    run_program(main)
