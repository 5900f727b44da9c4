import csv
import functools
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10

import test
import train
from conftest import ENVIRONMENT, TINY, change, run, start_warm
from utils import checkpoint, compiler
from utils.errors import UserError
from utils.history import COLUMNS
from utils.runtime import Runtime

TIMES = ("seconds", "images_per_second")
ALIKE = "notes.txt", "epoch_best.pth", "epoch_1.pth", "epoch_003.pth", "epoch_notes.pth.partial"  # no run's own files


def contents(folder, epoch):
    """Weights, optimizer and history of an epoch, without the columns that hold times."""
    saved = checkpoint.load(checkpoint.path_of(Path(folder), epoch))
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in saved["history"]]
    return saved["model"], saved["optimizer"]["state"], rows


def assert_same_run(folder, other, epoch):
    (model, optimizer, rows), (other_model, other_optimizer, other_rows) = (
        contents(folder, epoch),
        contents(other, epoch),
    )
    assert rows == other_rows
    assert model.keys() == other_model.keys() and optimizer.keys() == other_optimizer.keys()
    assert all(torch.equal(model[name], other_model[name]) for name in model)
    for number, state in optimizer.items():
        assert torch.equal(state["momentum_buffer"], other_optimizer[number]["momentum_buffer"])


def test_the_tour_trains_draws_and_says_what_to_do_next_in_lines_without_a_bar():
    code, out, err = run("train.py", *TINY, "--epochs", "2")
    assert (code, err) == (0, "")
    assert not re.search(r"[\r\x1b]", out)
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = [line for line in out.splitlines() if re.match(r" +\d+[* ] ", line)]
    assert len(rows) == 2 and len({len(row) for row in rows}) == 1
    files = sorted(os.listdir("checkpoints"))
    assert files == [".lock", "epoch_01.pth", "epoch_02.pth", "history.csv"]
    assert out.splitlines()[-1].startswith("    python test.py --epoch ")
    assert "synthetic, not CIFAR-10" in out
    assert open("loss_curve.png", "rb").read(4) == b"\x89PNG"


def test_history_csv_has_the_checkpoints_rows(trained):
    saved = checkpoint.load(checkpoint.path_of(trained, 3))
    with open(trained / "history.csv", newline="") as file:
        rows = [{key: COLUMNS[key](value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == saved["history"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    "recipe",
    [
        "--step-size 1 --compile off --precision bf16",
        "--schedule one-cycle --nesterov --label-smoothing 0.1 --cutout 8 --compile on",
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(recipe):
    options = [*TINY, *recipe.split(), "--batch-size", "64"]
    train.main([*options, "--epochs", "3", "--checkpoint-dir", "whole"])
    train.main([*options, "--epochs", "3", "--checkpoint-dir", "resumed"])
    for epoch in (2, 3):
        os.remove(f"resumed/epoch_0{epoch}.pth")
    train.main(["--checkpoint-dir", "resumed", "--resume"])
    assert_same_run("whole", "resumed", 3)


def two_threads():
    torch.set_num_threads(2)  # in a fork: a process that has had two can no longer fork safely


def test_with_two_threads_a_run_resumes_bit_for_bit_too(monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "OMP_NUM_THREADS", "2")  # for a program that is not forked
    for folder, *options in (
        ("whole", *TINY, "--epochs", "3"),
        ("resumed", *TINY, "--epochs", "2"),
        ("resumed", "--resume", "--epochs", "3", "--device", "cpu"),
    ):
        code, out, err = run("train.py", *options, "--checkpoint-dir", folder, starter=start_warm, prepare=two_threads)
        assert code == 0 and "cpu, 2 threads" in out, err
    assert_same_run("whole", "resumed", 3)


def test_a_finished_run_can_be_made_longer(trained):
    shutil.copytree(trained, "longer")
    train.main(["--checkpoint-dir", "longer", "--resume", "--epochs", "4"])
    train.main([*TINY, "--checkpoint-dir", "whole", "--epochs", "4"])
    assert_same_run("longer", "whole", 4)


def test_the_rate_drops_every_step_size_epochs_and_the_optimizer_gets_its_numbers():
    recipe = "--lr 0.2 --momentum 0.8 --weight-decay 0.01 --step-size 2 --gamma 0.5"
    train.main([*TINY, *recipe.split(), "--epochs", "5"])
    saved = checkpoint.load_newest(Path("checkpoints"))
    assert [row["lr"] for row in saved["history"]] == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.05])
    (group,) = saved["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.01)


def test_one_cycle_goes_up_to_lr_and_down_to_nothing_and_its_length_is_fixed():
    cycle = [*TINY, *"--schedule one-cycle --lr 0.3 --epochs 4 --subset 500 --batch-size 10".split()]
    train.main(cycle)
    rates = [row["lr"] for row in checkpoint.load_newest(Path("checkpoints"))["history"]]
    assert rates[0] == pytest.approx(0.3 / 25)  # where torch's OneCycleLR starts
    fall = rates[1] - rates[2]  # in 50 steps; step 29 is the highest, epoch 2 begins at 50
    assert fall > 0 and rates[2] - rates[3] == pytest.approx(fall)
    assert rates[1] + 21 / 50 * fall == pytest.approx(0.3)
    scheduler = checkpoint.load_newest(Path("checkpoints"))["scheduler"]
    assert scheduler["_last_lr"][0] < 1e-4
    with pytest.raises(UserError, match="--epochs 5 differs from 4 in .*epoch_04.pth"):
        train.main(["--resume", "--epochs", "5"])


@pytest.mark.parametrize(
    "option", ["--nesterov", "--label-smoothing 0.5", "--cutout 8", "--schedule one-cycle", "--precision bf16"]
)
def test_each_option_of_the_recipe_changes_the_run(option, trained):
    plain = [row["train_loss"] for row in checkpoint.load_newest(trained)["history"][:2]]
    train.main([*TINY, "--epochs", "2", *option.split()])
    assert [row["train_loss"] for row in checkpoint.load_newest(Path("checkpoints"))["history"]] != plain


def test_bf16_is_for_training_steps_and_validation_stays_in_fp32():
    options = train.build_parser().parse_args([*TINY, "--epochs", "1", "--precision", "bf16", "--compile", "off"])
    run, seen = train.Run(options, Runtime(torch.device("cpu")), train.build_network(options)), []
    run.network.stem[0].register_forward_hook(lambda _, __, output: seen.append((run.network.training, output.dtype)))
    run.train_epoch()
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}


def test_resuming_a_finished_run_is_a_line_and_changes_nothing(trained, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    undecided = ["--compile", "auto", "--precision", "auto"]  # by now they are
    assert train.main(["--checkpoint-dir", str(trained), "--resume", *undecided]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before


def test_a_finished_run_is_drawn_where_it_is_asked_for(trained):
    assert train.main(["--checkpoint-dir", str(trained), "--resume", "--plot", "new/curve.png"]) == 0
    assert Path("new/curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_compiler_has_begun_to_fail_can_go_on_without_it(folder):
    change(lambda saved: saved["config"]["options"].update(compile="on"))
    assert train.main(["--resume", "--epochs", "4", "--compile", "off"]) == 0
    assert checkpoint.load_newest(Path("checkpoints"))["config"]["options"]["compile"] == "off"


def test_where_the_compiler_does_not_work_training_goes_on_without_it(monkeypatch, capsys):
    def backend(graph, inputs):
        raise OSError(2, "no g++")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    assert train.main([*TINY, "--epochs", "1", "--compile", "on"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("note: training without torch.compile") and "torch.compile" not in out


def test_the_momentum_of_a_run_on_another_device_gets_the_memory_format_of_its_weights(folder):
    def as_on_mps(saved):
        for state in saved["optimizer"]["state"].values():
            state["momentum_buffer"] = state["momentum_buffer"].contiguous()

    change(as_on_mps)
    train.main(["--resume", "--epochs", "4"])
    saved = checkpoint.load_newest(Path("checkpoints"))
    buffers = [state["momentum_buffer"] for state in saved["optimizer"]["state"].values()]
    weights = [tensor for name, tensor in saved["model"].items() if not name.endswith(checkpoint.STATISTICS)]
    assert [tensor.stride() for tensor in buffers] == [tensor.stride() for tensor in weights]


def test_resuming_in_an_empty_folder_starts_at_the_beginning():
    assert train.main([*TINY, "--epochs", "1", "--resume"]) == 0
    assert checkpoint.saved_epochs(Path("checkpoints")) == [1]


@pytest.mark.parametrize(
    "option", ["--lr 0.2", "--seed 1", "--widths 8 8", "--epochs 2", "--data cifar10", "--subset 7", "--precision bf16"]
)
def test_another_recipe_is_refused_by_name_on_resume(trained, option):
    name, *_ = option.split()
    with pytest.raises(UserError, match=f"{name} .* differs from .*epoch_03.pth"):
        train.main(["--checkpoint-dir", str(trained), "--resume", *option.split()])


def test_a_finished_run_is_mended_where_a_kill_came_after_its_last_checkpoint(trained):
    shutil.copytree(trained, "killed")
    whole = Path("killed/history.csv").read_text()
    Path("killed/history.csv").write_text(whole[: whole.rindex("3,")])
    Path("killed/epoch_04.pth.partial").touch()
    curve = Path("killed/loss_curve.png")
    curve.write_bytes(b"\x89PNG, of an earlier epoch")
    os.utime(curve, (0, 0))
    assert train.main(["--checkpoint-dir", "killed", "--resume"]) == 0
    assert Path("killed/history.csv").read_text() == whole
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert set(os.listdir("killed")) == set(os.listdir(trained))


def test_files_that_are_not_a_runs_own_are_left_alone():
    os.mkdir("mine")
    for name in ("history.csv", "movie.partial"):
        Path("mine", name).write_text("mine")
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
    for name in (*ALIKE, "epoch_04.pth.partial"):
        open(f"again/{name}", "w").close()
    assert checkpoint.saved_epochs(Path("again")) == [1, 2, 3]
    with pytest.raises(UserError):  # another check fails: nothing is removed
        train.main([*TINY, "--overwrite", "--checkpoint-dir", "again", "--max-parameters", "10"])
    assert os.path.exists("again/epoch_03.pth")
    train.main([*TINY, "--overwrite", "--checkpoint-dir", "again", "--epochs", "1"])
    names = set(os.listdir("again")) - {".lock", "loss_curve.png"}
    assert names == {"epoch_01.pth", "history.csv", *ALIKE}


def test_a_network_over_the_budget_is_refused_unless_the_budget_is_lifted():
    resnet_32 = "--widths 16 32 64 --blocks 5 5 5".split()
    with pytest.raises(UserError, match=r"46\d,\d{3} trainable parameters, more than 399,999"):
        train.main([*TINY, *resnet_32])
    assert train.build_network(train.build_parser().parse_args([*resnet_32, "--max-parameters", "500000"]))


def test_training_reads_no_test_image(small_cifar10, monkeypatch):
    (small_cifar10 / "test_batch").write_bytes(b"not a pickle")
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    options = "--widths 4 --blocks 1 --epochs 1 --device cpu".split()
    assert train.main(options) == 0
    with pytest.raises(Exception, match="invalid load key"):
        test.main(["--epoch", "1"])


def test_a_run_from_a_gpu_goes_on_on_a_cpu(trained):
    shutil.copytree(trained, "moved")
    saved = checkpoint.load_newest(Path("moved"))
    saved["optimizer"]["param_groups"][0]["fused"] = True  # as utils/cuda_graph.py leaves it
    checkpoint.save(Path("moved"), saved)
    assert train.main(["--checkpoint-dir", "moved", "--resume", "--epochs", "4", "--device", "cpu"]) == 0


def test_what_is_left_to_the_program_is_decided_once_and_kept(folder, monkeypatch):
    monkeypatch.setattr(compiler, "pays", lambda *_: True)  # as for a longer run
    train.main(["--resume", "--epochs", "4", "--compile", "auto", "--precision", "auto"])
    options = checkpoint.load_newest(Path("checkpoints"))["config"]["options"]
    assert (options["precision"], options["compile"]) == ("fp32", "off")


def test_the_checkpoint_holds_no_paths_and_no_device(trained):
    config = checkpoint.load(checkpoint.path_of(trained, 1))["config"]
    assert config.keys() == {"options", "network", "mean", "std"}
    assert config["network"] == {"widths": [4, 8], "blocks": [1, 1], "dropout": 0.2}
    assert not {"checkpoint_dir", "data_dir", "plot", "device", "resume", "overwrite"} & config["options"].keys()


def test_a_bad_option_is_one_line_that_names_it():
    code, out, err = run("train.py", "--lr=nan\n1", starter=start_warm)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "--lr" in err and err.count("\n") == 1
    assert os.listdir() == []


def test_deterministic_is_for_gpus_and_changes_nothing_on_a_cpu(trained):
    try:
        with warnings.catch_warnings(action="error"):
            assert train.main([*TINY, "--epochs", "1", "--deterministic"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_run("checkpoints", trained, 1)


def test_zero_is_fine_for_momentum_decay_dropout_and_seed():
    zeros = "--momentum 0 --weight-decay 0 --dropout 0 --seed 0".split()
    assert train.main([*TINY, *zeros, "--epochs", "1"]) == 0
