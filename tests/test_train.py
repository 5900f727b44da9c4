import csv
import functools
import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

import dataset
import test
import train
from conftest import ROOT, TINY, assert_stem_has_statistics_of, run, start_warm
from dataset import Batches, Split
from models import ResidualCNN
from test_resume import assert_same_run
from utils import checkpoint, engine, files
from utils.errors import UserError
from utils.history import COLUMNS, duration

ALIKE = "notes.txt", "epoch_best.pth", "epoch_1.pth", "epoch_003.pth", "epoch_notes.pth.1.partial"  # no run's own files


def test_the_tour_trains_draws_and_says_what_to_do_next_in_lines_without_a_bar():
    code, out, err = run("train.py", *TINY, "--epochs", "2")
    assert (code, err) == (0, "")
    assert not re.search(r"[\r\x1b]", out)
    assert all(len(line) <= 80 for line in out.splitlines() if str(ROOT) not in line)
    rows = [line for line in out.splitlines() if re.match(r" +\d+[* ] ", line)]
    assert len(rows) == 2 and len({len(row) for row in rows}) == 1
    files = sorted(os.listdir("checkpoints"))
    assert files == [".lock", "epoch_01.pth", "epoch_02.pth", "history.csv"]
    assert out.splitlines()[-1].startswith(f"    {Path(sys.executable).name} {ROOT / 'test.py'} --epoch ")
    assert "synthetic, not CIFAR-10" in out
    assert open("loss_curve.png", "rb").read(4) == b"\x89PNG"


def test_history_csv_has_the_checkpoints_rows(trained):
    saved = checkpoint.load(files.epoch_path(trained, 3))
    with open(trained / "history.csv", newline="") as file:
        rows = [{key: COLUMNS[key](value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == saved.history
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_the_rate_drops_every_step_size_epochs_and_the_optimizer_gets_its_numbers():
    recipe = "--lr 0.2 --momentum 0.8 --weight-decay 0.01 --step-size 2 --gamma 0.5"
    train.main([*TINY, *recipe.split(), "--epochs", "5"])
    saved = checkpoint.load_newest(Path("checkpoints"))
    assert [row["lr"] for row in saved.history] == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.05])
    (group,) = saved.optimizer["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.01)


def test_one_cycle_goes_up_to_lr_and_down_to_nothing_and_its_length_is_fixed():
    cycle = [*TINY, *"--schedule one-cycle --lr 0.3 --epochs 4 --subset 500 --batch-size 10".split()]
    train.main(cycle)
    rates = [row["lr"] for row in checkpoint.load_newest(Path("checkpoints")).history]
    assert rates[0] == pytest.approx(0.3 / 25)  # where torch's OneCycleLR starts
    fall = rates[1] - rates[2]  # in 50 steps; step 29 is the highest, epoch 2 begins at 50
    assert fall > 0 and rates[2] - rates[3] == pytest.approx(fall)
    assert rates[1] + 21 / 50 * fall == pytest.approx(0.3)
    scheduler = checkpoint.load_newest(Path("checkpoints")).scheduler
    assert scheduler["_last_lr"][0] < 1e-4
    with pytest.raises(
        UserError, match="--epochs 5 differs from .*epoch_04.pth, which has --epochs 4 .this schedule's end"
    ):
        train.main(["--resume", "--epochs", "5"])


OPTIONS = "--nesterov, --label-smoothing 0.5, --cutout 8, --schedule one-cycle, --precision bf16, --downsample stride"


@pytest.mark.parametrize("option", OPTIONS.split(", "))
def test_each_option_of_the_recipe_changes_the_run(option, trained):
    plain = [row["train_loss"] for row in checkpoint.load_newest(trained).history[:2]]
    train.main([*TINY, "--epochs", "2", *option.split()])
    assert [row["train_loss"] for row in checkpoint.load_newest(Path("checkpoints")).history] != plain


@pytest.mark.parametrize("recipe", train.RECIPES)
def test_a_named_recipe_is_a_set_of_options_and_one_given_beside_it_wins(recipe):
    assert train.main(["--recipe", recipe, *TINY, *"--epochs 1 --no-nesterov --compile off".split()]) == 0
    given = {"widths": [4, 8], "blocks": [1, 1], "dropout": 0.2, "batch_size": 32, "epochs": 1, "nesterov": False}
    given |= {"data": "synthetic", "subset": 100, "precision": "fp32", "compile": "off"}
    options = checkpoint.load(Path("checkpoints/epoch_01.pth")).config.recipe
    assert options == vars(train.build_parser().recipe.parse_args(train.RECIPES[recipe].split())) | given
    assert train.main(["--resume"]) == 0  # which needs no name


def test_bf16_is_for_training_steps_and_validation_stays_in_fp32(monkeypatch):
    seen, build = [], train.build_network

    def build_network(*arguments):
        network = build(*arguments)
        network.stem[0].register_forward_hook(lambda _, __, output: seen.append((network.training, output.dtype)))
        return network

    monkeypatch.setattr(train, "build_network", build_network)
    train.main([*TINY, "--epochs", "1", "--precision", "bf16", "--compile", "off"])
    # Four steps, batch norm's statistics, validation:
    assert seen == 4 * [(True, torch.bfloat16)] + [(True, torch.float32), (False, torch.float32)]


def test_batch_norms_statistics_are_of_the_first_training_images_as_they_are_and_of_the_last_weights(monkeypatch):
    monkeypatch.setattr(engine, "STATISTICS_IMAGES", 50)
    train.main([*TINY, "--epochs", "1", "--compile", "off"])
    saved = checkpoint.load(Path("checkpoints/epoch_01.pth"))
    training, _ = dataset.load_training("synthetic", Path("data"))
    batches = Batches(training[:50], 50, saved.config.mean, saved.config.std)
    assert_stem_has_statistics_of(saved.build_network(ResidualCNN), *batches)


@pytest.mark.parametrize("count", [1, 125, 126, 1001, 2000])
def test_no_batch_of_the_statistics_is_much_smaller_than_the_others(count):
    split = Split(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
    sizes = Batches(split, engine.evaluation_batch(count, torch.device("cpu")), [0.5] * 3, [0.25] * 3).sizes
    assert max(sizes) <= 125 and max(sizes) - min(sizes) < len(sizes)


def test_where_the_compiler_does_not_work_training_goes_on_without_it(monkeypatch, capsys):
    def backend(graph, inputs):
        raise OSError(2, "no g++")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    assert train.main([*TINY, "--epochs", "1", "--compile", "on"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("note: training without torch.compile") and "torch.compile" not in out


def test_files_that_are_not_a_runs_own_are_left_alone():
    os.mkdir("mine")
    for name, text in ("history.csv", "epoch,lr\n"), ("movie.partial", "mine"):
        Path("mine", name).write_text(text)
    with pytest.raises(UserError, match="history.csv is there without its epochs"):
        train.main([*TINY, "--checkpoint-dir", "mine"])
    os.remove("mine/history.csv")
    train.main([*TINY, "--checkpoint-dir", "mine", "--epochs", "1"])
    assert Path("mine/movie.partial").read_text() == "mine"


def test_a_folder_with_a_run_is_not_touched_unasked(trained):
    with pytest.raises(UserError, match="--resume.*--overwrite"):
        train.main([*TINY, "--checkpoint-dir", str(trained)])


def test_overwrite_removes_the_run_and_nothing_else(trained):
    shutil.copytree(trained, "again")
    for name in (*ALIKE, "epoch_04.pth.123.partial"):
        open(f"again/{name}", "w").close()
    assert files.saved_epochs(Path("again")) == [1, 2, 3]
    with pytest.raises(UserError):  # another check fails: nothing is removed
        train.main([*TINY, "--overwrite", "--checkpoint-dir", "again", "--max-parameters", "10"])
    assert os.path.exists("again/epoch_03.pth")
    train.main([*TINY, "--overwrite", "--checkpoint-dir", "again", "--epochs", "1"])
    names = set(os.listdir("again")) - {".lock", "loss_curve.png"}
    assert names == {"epoch_01.pth", "history.csv", *ALIKE}


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
@pytest.mark.parametrize("name", ["epoch_07.pth", "history.csv"])
def test_files_of_another_program_are_named_and_left_alone(trained, name, options):
    shutil.copytree(trained, "shared")
    path = Path("shared", name)
    if name == "history.csv":
        path.write_text("time,loss\n1,2.3\n")
    else:
        torch.save({"state_dict": {}, "epoch": 7}, path)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    with pytest.raises(UserError, match=rf"{path} is not .*; nothing was changed; move it away, or name another"):
        train.main([*TINY, "--checkpoint-dir", "shared", *options])
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_network_over_the_budget_is_refused_unless_the_budget_is_lifted():
    resnet_32 = "--widths 16 32 64 --blocks 5 5 5".split()
    with pytest.raises(UserError, match=r"46\d,\d{3} trainable parameters, more than 399,999"):
        train.main([*TINY, *resnet_32])
    train.check_network(train.build_parser().parse_args([*resnet_32, "--max-parameters", "500000"]))


def test_training_reads_no_test_image(small_cifar10, monkeypatch):
    (small_cifar10 / "test_batch").write_bytes(b"not a pickle")
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    options = "--widths 4 --blocks 1 --epochs 1 --device cpu".split()
    assert train.main(options) == 0
    with pytest.raises(Exception, match="invalid load key"):
        test.main(["--epoch", "1"])


def test_the_checkpoint_holds_no_paths_and_no_device(trained):
    config = checkpoint.load(files.epoch_path(trained, 1)).config
    assert config.network == {"widths": [4, 8], "blocks": [1, 1], "dropout": 0.2, "downsample": "pool"}
    assert not {"checkpoint_dir", "data_dir", "plot", "device", "resume", "overwrite"} & config.recipe.keys()
    assert config.changed == (
        "--epochs 3 --batch-size 32 --data synthetic --subset 100 --widths 4 8 --blocks 1 1 --dropout 0.2"
    )


def test_a_bad_option_is_one_line_that_names_it():
    code, out, err = run("train.py", "--lr=nan\n1", starter=start_warm)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "--lr" in err and err.count("\n") == 1
    assert os.listdir() == []


def test_deterministic_is_for_gpus_and_changes_nothing_on_a_cpu(trained):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert train.main([*TINY, "--epochs", "1", "--deterministic"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_run("checkpoints", trained, 1)


def test_zero_is_fine_for_momentum_decay_dropout_and_seed():
    zeros = "--momentum 0 --weight-decay 0 --dropout 0 --seed 0".split()
    assert train.main([*TINY, *zeros, "--epochs", "1"]) == 0


@pytest.mark.parametrize(
    "seconds, text", [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "0:10"), (59.6, "1:00"), (3599.6, "1:00:00")]
)
def test_times_are_short_and_never_sixty_seconds(seconds, text):
    assert duration(seconds) == text
