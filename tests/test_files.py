import os
from multiprocessing import get_context

import pytest

import train
from conftest import TINY
from utils.errors import UserError
from utils.files import write_file


def write_often(path, content):
    for _ in range(100):
        write_file(path, content, "no advice")


def test_two_programs_may_write_the_same_file(tmp_path):
    path, contents = tmp_path / "curve.png", (b"one" * 50_000, b"other" * 40_000)
    write_often(path, contents[0])
    processes = [get_context("fork").Process(target=write_often, args=(path, content)) for content in contents]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert path.read_bytes() in contents
    assert [process.exitcode for process in processes] == [0, 0]
    assert os.listdir(tmp_path) == ["curve.png"]


def test_a_link_that_leads_nowhere_is_called_that():
    os.symlink("nowhere", "link")
    for options in (["--checkpoint-dir", "link/run"], ["--checkpoint-dir", "new", "--plot", "link/curve.png"]):
        with pytest.raises(UserError, match="link is a link that leads nowhere; name another"):
            train.main([*TINY, "--epochs", "1", *options])


def test_a_lock_that_cannot_be_opened_is_named():
    os.makedirs("checkpoints/.lock")
    with pytest.raises(UserError, match="cannot write to .*checkpoints/.lock: Is a directory; name another"):
        train.main([*TINY, "--epochs", "1"])
