"""What a person at a terminal sees: the question, and the bar."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from conftest import TINY, start_warm
from utils.files import saved_epochs


def own_terminal():
    """In the new process: make the terminal at its streams the one whose Ctrl-C reaches it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def at_a_terminal(script, *arguments, prepare=own_terminal):
    """Start a program whose three streams are a terminal; returns it and the terminal's other end."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = start_warm(script, *arguments, stdin=its, stdout=its, stderr=its, prepare=prepare)
    os.close(its)
    return process, ours


def read_until(terminal, pattern=None):
    """What the program writes until it has written `pattern`, or to its end."""
    text = ""
    while not (pattern and re.search(pattern, text)):
        assert select.select([terminal], [], [], 60)[0], f"nothing more after {text!r}"
        try:
            text += os.read(terminal, 4096).decode()
        except OSError:  # the program has ended
            break
    return text


def ask(trained):
    process, terminal = at_a_terminal("test.py", "--checkpoint-dir", trained)
    screen = read_until(terminal, r"Epoch to test \[\d+\]: ")
    assert len(re.findall(r"^ +\d+[* ]", screen, re.M)) == 3
    return process, terminal, int(re.search(r"\[(\d+)\]", screen)[1]), re.search(r"^ +(\d+)\*", screen, re.M)[1]


def test_enter_tests_the_epoch_of_lowest_validation_loss(trained):
    process, terminal, offered, marked = ask(trained)
    assert offered == int(marked)
    os.write(terminal, b"\n")
    assert f"epoch {offered} on 1,000 synthetic test images" in read_until(terminal)
    assert process.wait() == 0


def test_nonsense_is_asked_again_and_a_number_accepted(trained):
    process, terminal, *_ = ask(trained)
    os.write(terminal, b"seven\n")
    screen = read_until(terminal, r"choose one[\s\S]*Epoch to test \[\d+\]: ")
    assert "There is no epoch 'seven'; choose one of the table" in screen
    os.write(terminal, b"2\n")
    assert "epoch 2 on 1,000" in read_until(terminal)
    assert process.wait() == 0


@pytest.mark.parametrize(("key", "code"), [(b"\x04", 0), (b"\x03", 130)])
def test_ctrl_d_and_ctrl_c_leave_quietly(trained, key, code):
    process, terminal, *_ = ask(trained)
    while process.poll() is None:  # once more if the key came before the question listened
        os.write(terminal, key)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    assert process.returncode == code
    assert "Traceback" not in read_until(terminal)


def test_a_terminal_sees_a_bar():
    process, terminal = at_a_terminal("train.py", *TINY, "--epochs", "2")
    screen = read_until(terminal)
    assert process.wait() == 0
    assert "\repoch 1/2: " in screen


@pytest.mark.parametrize("seen", [r"\n +1[* ]", ""])  # the first epoch; nothing yet
def test_a_terminal_that_goes_away_ends_no_run_that_was_disowned(seen):
    process, terminal = at_a_terminal("train.py", *TINY, "--epochs", "4", prepare=lambda: None)  # it gets no SIGHUP
    if seen:
        read_until(terminal, seen)
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert saved_epochs(Path("checkpoints")) == [1, 2, 3, 4] and Path("loss_curve.png").exists()
