"""Test one epoch's network on CIFAR-10's 10,000 test images.

python test.py --epoch 42                  # the verdict on epoch 42
python test.py                             # show the epochs, and ask which
python test.py --epoch 42 --report report  # and draw what it confuses
python test.py --epoch 42 --views 2        # the verdict by each image and its mirror image
python test.py --epoch 42 --image cat.jpg  # classify pictures of your own
python test.py --pretrained best           # a network that came with the repository, in place of an epoch
"""

if __name__ == "__main__":
    from utils.errors import exit_on_ctrl_c

    exit_on_ctrl_c()

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import dataset
from dataset import CLASSES, Batches, Split, read_image
from models import ResidualCNN
from utils import checkpoint, engine, history, report
from utils.accelerate import memory_format
from utils.errors import UserError, printable, report_error, run_program
from utils.files import epoch_path, make_folder, no_epoch, saved_epochs
from utils.options import CHECKPOINT_DIR, DATA_DIR, Parser, file_path, folder_path, integer
from utils.runtime import Runtime, choose_device, torch_errors_in_one_line

Predict = Callable[[Split], tuple[Tensor, Tensor]]  # images -> logits (N, classes) and labels (N,), on the CPU
PRETRAINED = {name: Path(__file__).parent / "models" / f"{name}.pth" for name in ("default", "best")}
VIEWS_HELP = "views of an image to average over; 2: with its mirror image; 6: both, and both of it moved by a pixel"
Z_95 = 1.959964  # of the normal distribution, for a two-sided interval of 95%


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument_group("what to test").add_mutually_exclusive_group().add_argument
    add("--epoch", type=integer(1), help="epoch to test; without it, show a table and ask")
    add("--pretrained", choices=PRETRAINED, help="test a network that is in models/, in place of one you have trained")
    parser.add_argument_group("how").add_argument("--views", type=int, choices=(1, 2, 6), default=1, help=VIEWS_HELP)
    add = parser.add_argument_group("more output").add_mutually_exclusive_group().add_argument
    add(
        "--report", type=file_path, help="folder for two pictures and a table, which replace those of an earlier report"
    )
    add("--image", type=file_path, nargs="+", help="pictures to classify, in place of the test images")
    add = parser.add_argument_group("files").add_argument
    add("--checkpoint-dir", type=folder_path, default=CHECKPOINT_DIR, help="folder of the run")
    add("--data-dir", type=folder_path, default=DATA_DIR, help="folder of CIFAR-10, filled if empty")
    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=integer(1), default=500, help="images per forward pass")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    return parser


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95% interval of a proportion, by E. B. Wilson (J. Am. Stat. Assoc. 22, 209-212, 1927)."""
    fraction, spread = correct / count, Z_95**2 / count
    centre = (fraction + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(fraction * (1 - fraction) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def ask_for_epoch(folder: Path, epochs: list[int]) -> int:
    """Show the `epochs` in `folder` and ask for one; Ctrl-D, the end of the input, ends the program."""
    newest = checkpoint.load(epoch_path(folder, epochs[-1]))
    rows = [row for row in newest.history if row["epoch"] in epochs]
    best = history.best_row(rows)
    print(history.HEADER)
    for row in rows:
        print(history.line(row, row is best))
    print("* lowest validation loss")
    if not sys.stdin.isatty():
        raise UserError("no terminal to ask for an epoch; name it with --epoch")
    while True:
        try:
            answer = input(f"Epoch to test [{best['epoch']}]: ").strip() or str(best["epoch"])
        except EOFError:
            print()
            sys.exit()
        if answer.isdecimal() and int(answer) in epochs:
            return int(answer)
        print(f"There is no epoch {answer!r}; choose one of the table, or leave with Ctrl-C.")


def print_verdict(title: str, logits: Tensor, labels: Tensor) -> None:
    """Accuracy with its interval, loss, and the accuracy of each class; logits (N, classes), labels (N,)."""
    loss, accuracy = engine.loss_and_accuracy(logits, labels, Runtime(logits.device))
    right = logits.argmax(dim=1) == labels
    low, high = wilson_interval(int(right.sum()), len(labels))
    print(title)
    print(f"accuracy  {accuracy:.2%}  (95% interval {low:.2%} to {high:.2%})")
    print(f"loss      {loss:.4f}")
    for index, name in enumerate(CLASSES):
        of_class = right[labels == index]
        print(f"  {name:<12}" + (f"{of_class.double().mean().item():7.1%}" if len(of_class) else "no images"))


def print_guesses(names: list[str], logits: Tensor) -> None:
    """One line per picture: its three most probable classes; logits (N, classes)."""
    width = max(map(len, names))
    for name, probabilities in zip(names, logits.double().softmax(dim=1)):
        top = zip(*(values.tolist() for values in probabilities.topk(3)))
        guesses = [f"{CLASSES[index]:<10}{probability:7.1%}" for probability, index in top]
        print(f"{name:<{width}}  " + "   ".join(guesses))


def give_verdict(options: argparse.Namespace, tested: str, predict: Predict, data: str) -> None:
    """The verdict on the test images, and the report if one is asked for; `tested` names the network."""
    if options.report:
        make_folder(options.report, report.ADVICE)
    split = dataset.load_test(data, options.data_dir)
    logits, labels = predict(split)
    kind = "test images" if data == "cifar10" else "synthetic test images, which are not CIFAR-10"
    title = f"{tested} on {len(labels):,} {kind}"
    print_verdict(title, logits, labels)
    if options.report:
        paths = report.write_report(options.report, title, CLASSES, split.images, logits, labels)
        print("report    " + ", ".join(map(str, paths)))


def classify(options: argparse.Namespace, predict: Predict, data: str) -> None:
    """The most probable classes of the user's own pictures, which need no data set; a bad one stops no other."""
    images, names, troubles = [], [], []
    for path in options.image:
        try:
            images.append(read_image(path))
            names.append(printable(str(path)))
        except UserError as trouble:
            troubles.append(trouble)
    if images:
        logits, _ = predict(Split(torch.stack(images), torch.zeros(len(images), dtype=torch.int64)))
        if data == "synthetic":
            print("note: this network has seen synthetic patterns alone; its classes are not what their names say")
        if options.views > 1:
            print(f"note: by {options.views} views of each picture")
        print_guesses(names, logits)
    for trouble in troubles[:-1]:
        report_error(trouble)
    if troubles:
        raise troubles[-1]


def choose_checkpoint(options: argparse.Namespace) -> checkpoint.Checkpoint:
    """The epoch that is to be tested, or the weights that came with the repository."""
    if options.pretrained:
        return checkpoint.load(PRETRAINED[options.pretrained], "get it again from the repository", weights_alone=True)
    folder = options.checkpoint_dir
    epochs = saved_epochs(folder)
    if not epochs:
        raise UserError(f"{no_epoch(folder)}; train first, name another --checkpoint-dir, or use --pretrained best")
    epoch = options.epoch or ask_for_epoch(folder, epochs)
    if epoch not in epochs:
        raise UserError(f"there is no epoch {epoch} in {folder}; without --epoch, test.py shows those there are")
    return checkpoint.load(epoch_path(folder, epoch))


@torch_errors_in_one_line()
def main(argv: list[str] | None = None) -> int:
    argv, parser = sys.argv[1:] if argv is None else argv, build_parser()
    options = parser.parse_args(argv)
    if options.pretrained:
        parser.refuse(argv, ("checkpoint_dir",), "with --pretrained")
    if options.image:
        parser.refuse(argv, ("data_dir",), "with --image")
    device = choose_device(options.device)
    saved = choose_checkpoint(options)
    network = saved.build_network(ResidualCNN).to(device, memory_format=memory_format(device))

    def predict(split: Split) -> tuple[Tensor, Tensor]:
        batches = Batches(split.to(device), options.batch_size, saved.config.mean, saved.config.std)
        bar = tqdm(batches, leave=False, disable=None)  # None: shown where stderr is a terminal
        return engine.predict(network, bar, options.views)

    data = saved.config.options["data"]
    if data == "synthetic":
        parser.refuse(argv, ("data_dir",), "for a network that was trained on synthetic images")
    if options.image:
        classify(options, predict, data)
    else:
        tested = f"models/{saved.path.name}" if options.pretrained else f"epoch {saved.epoch}"
        if options.views > 1:
            tested += f", by {options.views} views of each image,"
        give_verdict(options, tested, predict, data)
    return 0


if __name__ == "__main__":
    run_program(main)
