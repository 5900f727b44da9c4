"""With --teacher a network learns another one's answers, too."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD

import train
from conftest import TINY
from models import ResidualCNN
from test_resume import assert_same_run
from utils import checkpoint, engine, files
from utils.errors import UserError
from utils.runtime import Runtime

CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def teacher(trained):
    return str(files.epoch_path(trained, 3))


def newest(folder="checkpoints"):
    return checkpoint.load_newest(Path(folder))


def test_the_distillation_loss_is_hintons():
    student, teacher = torch.randn(2, 5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    loss = engine.distillation_loss(student, teacher)
    p, q = (F.softmax(logits / 4, dim=1) for logits in (teacher, student))
    torch.testing.assert_close(loss, 16 * (p * (p / q).log()).sum())
    loss.backward()
    torch.testing.assert_close(student.grad, 4 * (q - p).detach())
    assert engine.distillation_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)


def test_a_step_learns_the_teachers_answers_shows_the_labels_loss_and_leaves_the_teacher_as_it_is():
    torch.manual_seed(0)
    network, teacher = ResidualCNN((8,), (1,), dropout=0), ResidualCNN((4,), (1,)).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    logits, answers = network(images), 9 * teacher(images).detach()
    step = engine.TrainingStep(network, SGD(network.parameters(), 0.1), CPU, teacher=lambda images: 9 * teacher(images))
    distances = []
    for _ in range(30):
        step.totals.zero_()
        step(images, labels, 16)
        distances.append(engine.distillation_loss(network(images), answers).item())
        if len(distances) == 1:
            assert step.totals[0].item() == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item())
    assert distances[-1] < distances[0] / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_checkpoint_knows_its_teacher_by_its_weights_and_not_by_its_file(teacher, capsys):
    assert train.main([*TINY, "--epochs", "1", "--teacher", teacher]) == 0
    assert f"\nteacher  {teacher}\n" in capsys.readouterr().out
    assert newest().config.teacher == checkpoint.load(Path(teacher)).fingerprint
    assert teacher not in str(newest().config)
    train.main([*TINY, "--epochs", "1", "--checkpoint-dir", "plain"])
    assert newest("plain").config.teacher is None
    assert newest("plain").history[0]["train_loss"] != newest().history[0]["train_loss"]


@pytest.mark.parametrize("how", ["--compile off --precision bf16", "--compile on"])
def test_with_a_teacher_a_run_resumes_bit_for_bit_from_wherever_the_teachers_file_is(teacher, how):
    options = [*TINY, *how.split(), "--epochs", "2"]
    train.main([*options, "--teacher", teacher, "--checkpoint-dir", "whole"])
    train.main([*options, "--teacher", teacher, "--checkpoint-dir", "resumed"])
    Path("resumed/epoch_02.pth").unlink()
    checkpoint.save_weights(Path("moved.pth"), checkpoint.load(Path(teacher)))
    train.main(["--checkpoint-dir", "resumed", "--resume", "--teacher", "moved.pth", "--device", "cpu"])
    assert_same_run("whole", "resumed", 2)


def test_a_run_goes_on_with_its_own_teacher_alone(teacher, trained):
    train.main([*TINY, "--epochs", "1", "--teacher", teacher])
    other = str(files.epoch_path(trained, 1))
    for given, which in ([], "a teacher"), (["--teacher", other], f"another teacher than {other}"):
        with pytest.raises(UserError, match=f"epoch_01.pth was trained with {which}; give that one with --teacher"):
            train.main(["--resume", "--epochs", "2", *given])
    shutil.copytree(trained, "plain")
    for epochs in "3", "4":
        with pytest.raises(UserError, match="epoch_03.pth was trained without a teacher; leave out --teacher"):
            train.main(["--checkpoint-dir", "plain", "--resume", "--epochs", epochs, "--teacher", teacher])


def test_a_teacher_that_is_none_is_a_line_and_nothing_is_touched(teacher):
    Path("notes.txt").write_text("not a network")
    for name, reason in ("notes.txt", "something else"), ("missing.pth", "No such file or directory"):
        with pytest.raises(UserError, match=rf"{name} is not a usable checkpoint: .*{reason}; --teacher takes"):
            train.main([*TINY, "--teacher", name])
    with pytest.raises(UserError, match="epoch_03.pth was trained on other images; teacher and pupil need the same"):
        train.main([*TINY, "--subset", "90", "--teacher", teacher])
    assert files.saved_epochs(Path("checkpoints")) == []


def test_a_teacher_is_not_overwritten_by_its_pupil(folder):
    with pytest.raises(UserError, match="--teacher: it lies in checkpoints, which is to be overwritten; name another"):
        train.main([*TINY, "--overwrite", "--teacher", "checkpoints/epoch_03.pth"])
    assert files.saved_epochs(Path("checkpoints")) == [1, 2, 3]
