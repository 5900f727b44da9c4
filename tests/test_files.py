import os
from multiprocessing import get_context

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
