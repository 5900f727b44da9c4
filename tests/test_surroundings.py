"""What a program finds and what it leaves: older Pythons, Ctrl-C in its first seconds, a notebook that goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, ROOT, TINY, start

PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.9"])
@pytest.mark.parametrize("program", ["train.py", "test.py", "-m utils.plot", "-m utils.benchmark"])
def test_an_older_python_is_refused_in_one_line(program, version):
    pythons = list(PYENV.glob(f"{version}.*/bin/python"))
    if not pythons:
        pytest.skip(f"there is no Python {version} here")
    done = subprocess.run([pythons[0], *program.split()], cwd=ROOT, capture_output=True, text=True)
    line = f"error: this is Python {version}; start the program with 3.10 or newer\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_python_3_10_can_read_every_file(tmp_path):
    pythons = list(PYENV.glob("3.10.*/bin/python"))
    if not pythons:
        pytest.skip("there is no Python 3.10 here")
    command = [pythons[0], "-m", "compileall", "-q", ".", "-x", r"/\."]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}, text=True)
    assert done.returncode == 0


@pytest.mark.parametrize("program", ["train.py", "test.py"])
def test_ctrl_c_while_a_program_is_imported_is_no_traceback(program, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # a line on stderr for each module that has been imported
    process = start(program)
    while not (line := process.stderr.readline()).endswith(" argparse\n"):  # torch comes later
        assert line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == []


NOTEBOOK = """
import logging, os, runpy, signal, socket, sys
import torch

def state():
    import matplotlib
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.stdout.errors, socket.getdefaulttimeout()),
        "logs": [logging.getLogger(name).level for name in ("", "matplotlib", "torch")],
        "torch": (
            torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory,
            torch.get_rng_state().tolist(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
        ),
        "backend": matplotlib.rcParams["backend"],
    }

def run(program, *arguments):
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(os.path.join(os.environ["PYTHONPATH"], program), run_name="__main__")
    except SystemExit as end:
        return end.code

sys.ps1 = "In [1]: "  # there is a prompt
torch.use_deterministic_algorithms(True, warn_only=True)
before = state()
assert run("train.py", *sys.argv[1:]) == 0
assert run("test.py", "--epoch", "1") == 0

from utils import checkpoint
save = checkpoint.save

def save_and_interrupt(*arguments):
    save(*arguments)
    os.kill(os.getpid(), signal.SIGINT)

checkpoint.save = save_and_interrupt
assert run("train.py", "--resume", "--epochs", "3") == 130
after = state()
print([(name, before[name], after[name]) for name in before if before[name] != after[name]])
"""


def test_what_a_program_changes_for_its_process_is_put_back_for_a_notebook():
    command = [sys.executable, "-c", NOTEBOOK, *TINY, "--epochs", "1", "--deterministic"]
    environment = os.environ | ENVIRONMENT | {"MPLBACKEND": "svg"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout.splitlines() or [""])[-1] == "[]", done.stderr
