"""What the tests share: a tiny run, CIFAR-10 in miniature, and the programs as a user starts them."""

import gc
import hashlib
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10
from tqdm import tqdm

import dataset
import test
import train
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TINY = "--data synthetic --subset 100 --batch-size 32 --widths 4 8 --blocks 1 1 --dropout 0.2 --device cpu".split()
TINY += ["--precision", "fp32"]  # on every processor
NEWEST = Path("checkpoints/epoch_03.pth")  # of `trained`, in `folder`


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_test():
    torch.set_num_threads(1)  # the networks here are too small to share


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_the_programs():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts pytest with `&` has it ignored


@pytest.fixture(scope="session", autouse=True)
def synthetic_images_are_drawn_once():
    dataset._draw_synthetic = cache(dataset._draw_synthetic)


@pytest.fixture(scope="session", autouse=True)
def bars_share_nothing_with_forks():
    """By default all forks have one lock, which a killed one would not give back, and a thread holds it at times."""
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_gpu(request, monkeypatch):
    """Where there is a GPU, too, the programs choose the CPU: what is compared here was trained on it."""
    if request.module.__name__ != "test_cuda_graph":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


STARTED = []  # the programs that a test has started


@pytest.fixture(autouse=True)
def no_program_outlives_its_test():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "",  # an empty one is none, whatever this shell has set
    "CUDA_VISIBLE_DEVICES": "",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # the compiler forks nothing, so that nothing of it outlives a program
    "PYTHONFAULTHANDLER": "1",  # for `run`
}


def start(script, *arguments, **options):
    """Start one of the programs as a user does; `text` pipes for what it says."""
    program = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    command = [sys.executable, *program, *map(str, arguments)]
    STARTED.append(subprocess.Popen(command, env=os.environ | ENVIRONMENT, **PIPES | options))
    return STARTED[-1]


def start_warm(script, *arguments, prepare=lambda: None, **options):
    """Like `start`, but forked from this process, which has torch already: importing it takes a program seconds.

    `prepare` is called in the new process, where there is a GPU before the program is loaded. For what the interpreter
    itself does at its start and end, and for warnings, which pytest collects, use `start`.
    """
    if torch.cuda.device_count():  # autograd has started a thread for each GPU, and refuses to work in a fork
        return start(script, *arguments, preexec_fn=prepare, **options)

    def program():  # which Popen calls in the new process, and which never returns to have another one executed
        os.closerange(3, 1024)  # Popen's own pipe among them: by its end it knows of the start
        gc.enable()  # again: Popen has it off there
        os.environ |= ENVIRONMENT
        sys.argv = [str(ROOT / script), *map(str, arguments)]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
        code = 1
        try:
            prepare()
            if script.endswith(".py"):
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
            finally:
                os._exit(code)

    STARTED.append(subprocess.Popen(sys.executable, preexec_fn=program, restore_signals=False, **PIPES | options))
    return STARTED[-1]


def run(script, *arguments, starter=start, **options):
    """Run one of the programs to its end; returns (exit code, stdout, stderr)."""
    process = starter(script, *arguments, **options)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # upon which Python says where it is
        pytest.fail(f"{script} does not end: {process.communicate(timeout=10)}")
    return process.returncode, out, err


def wait_for_line(process, beginning):
    too_late = threading.Timer(120, process.kill)
    too_late.start()
    while not (line := process.stdout.readline()).startswith(beginning):
        assert line, f"it has ended: {process.stderr and process.stderr.read()}"
    too_late.cancel()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with the checkpoints of a tiny run of three epochs."""
    folder = tmp_path_factory.mktemp("trained") / "checkpoints"
    assert train.main([*TINY, "--epochs", "3", "--checkpoint-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def small_cifar10(tmp_path, monkeypatch):
    """`data/` with CIFAR-10's own files, 20 images each; torchvision is told their MD5 sums.

    Image i of the training set is one colour: red i, and its label is i % 10.
    """
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(first):
        images = np.zeros((20, 3, 32, 32), np.uint8)
        images[:, 0] = np.arange(first, first + 20).reshape(-1, 1, 1)
        return {"data": images.reshape(20, 3072), "labels": [number % 10 for number in range(first, first + 20)]}

    train_list = [[f"data_batch_{n}", write(f"data_batch_{n}", batch(20 * (n - 1)))] for n in range(1, 6)]
    meta = {"label_names": ["a"] * 10}
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", batch(200))]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": write("batches.meta", meta)})
    return folder


def assert_stem_has_statistics_of(network, batch):
    """The stem's batch norm has those of this batch of images, with the weights as they are."""
    convolution, batch_norm, _ = network.stem
    with torch.no_grad():
        variance, mean = torch.var_mean(convolution(batch[0]), dim=(0, 2, 3))
    seen = batch_norm.running_mean, batch_norm.running_var
    torch.testing.assert_close(seen, (mean, variance), rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(trained):
    """`checkpoints/` with the tiny run in it, to be damaged."""
    shutil.copytree(trained, "checkpoints")


def refused(reason=""):
    """Both programs that read a checkpoint refuse it, naming file and reason in one line."""
    for program, options in ((test, ["--epoch", "3"]), (train, ["--resume", "--epochs", "4"])):
        with pytest.raises(UserError) as caught:
            program.main(options)
        line = str(caught.value)
        assert line.startswith(f"{NEWEST} is not a usable checkpoint: ") and "\n" not in line
        assert reason in line and "weights_only" not in line  # which torch advises to switch off


def change(edit):
    saved = torch.load(NEWEST, weights_only=True)
    edit(saved)
    torch.save(saved, NEWEST)
