"""README's commands, run: long ones shortened, on synthetic data."""

import re
import shlex

import pytest
from PIL import Image

import test
import train
from conftest import ROOT, TINY
from utils import benchmark, plot

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^ {4}((?:pip|python|torchrun) .*)$", README, re.M)
SHORT = [*TINY, "--compile", "off"]


def test_the_first_screen_has_the_three_lines():
    first_screen = README[:2500]
    for line in (
        "pip install -r requirements.txt && python train.py",
        "pip install -r requirements-dev.txt && python -m pytest",
        "python train.py --data synthetic --subset 2000 --epochs 3 --schedule one-cycle",
    ):
        assert f"    {line}\n" in first_screen


def test_every_command_works(trained, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    Image.new("RGB", (50, 40)).save("cat.jpg")
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        for words in (shlex.split(part, comments=True) for part in command.split("&&")):
            if words[0] == "torchrun":
                train.build_parser().parse_args(words[words.index("train.py") + 1 :])  # run in test_torchrun.py
            elif words[1] == "train.py":
                train.build_network(train.build_parser().parse_args(words[2:]))  # is it within its own budget?
                resume = "--resume" in words
                words = [re.sub(r"epoch_\d+", "epoch_01", word) for word in words]  # each run has one epoch
                given = [*words[2:], *SHORT, "--epochs", "1"] if not resume else ["--resume"]
                assert train.main([*given, *(() if resume else ("--overwrite",))]) == 0
            elif words[1] == "test.py":
                epoch = ["--epoch", "1"] if "--epoch" in words else []
                assert test.main([*words[2:], *epoch]) == 0
            elif words[:3] == ["python", "-m", "utils.plot"]:
                assert plot.main(words[3:]) == 0
            elif words[:3] == ["python", "-m", "utils.benchmark"]:
                benchmark.build_parser().parse_args(words[3:])  # run in test_benchmark.py
            else:
                assert command.startswith("pip install -r requirements")


def test_every_option_is_explained():
    for parser in (train.build_parser(), test.build_parser()):
        for action in parser._actions:
            if action.dest != "help":
                assert f"`{action.option_strings[0]}" in README, action.option_strings[0]


def test_defaults_are_those_in_the_tables():
    tables = re.findall(r"(?:^\| `--.*\n)+", README, re.M)
    for parser, table in zip((train.build_parser(), test.build_parser()), tables, strict=True):
        usual = vars(parser.parse_args([]))
        for row in table.splitlines():
            _, names, values, *_ = row.split("|")
            for name, value in zip(re.findall(r"--[\w-]+", names), values.strip().split(", ")):
                if value and usual[name[2:].replace("-", "_")] is not None:  # a word such as `asks` stands for None
                    assert vars(parser.parse_args([name, *value.split()])) == usual, name


@pytest.mark.parametrize("name", re.findall(r"`((?:docs|tests|utils|models)/[\w./]+)`|\((docs/[\w.]+)\)", README))
def test_files_that_readme_names_are_there(name):
    assert (ROOT / (name[0] or name[1])).exists()
