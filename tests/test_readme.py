"""The commands of README and docs, run: long ones shortened, on synthetic data."""

import re
import shlex

import pytest
from PIL import Image

import test
import train
from conftest import ROOT, TINY
from utils import benchmark, plot

README = (ROOT / "README.md").read_text()
OPTIONS = (ROOT / "docs" / "options.md").read_text()
DOCUMENTS = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SHORT = [*TINY, "--compile", "off"]


def commands(text, language="bash"):
    """The lines in fences of this language."""
    fences = re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    return [line for fence in fences for line in fence.splitlines() if line.strip()]


def run_shortened(words):
    """Run one of the programs as a document has it, for one epoch of a tiny network."""
    if words[0] == "torchrun":  # run in test_torchrun.py
        program, parser = ("train.py", train) if "train.py" in words else ("utils.benchmark", benchmark)
        parser.build_parser().parse_args(words[words.index(program) + 1 :])
    elif words[1] == "train.py":
        train.check_network(train.build_parser().parse_args(words[2:]))  # is it within its own budget?
        words = [re.sub(r"epoch_\d+", "epoch_01", word) for word in words]  # each run has one epoch
        resume = "--resume" in words
        given = ["--resume"] if resume else [*words[2:], *SHORT, "--epochs", "1", "--overwrite"]
        assert train.main(given) == 0
    elif words[1] == "test.py":
        assert test.main([*words[2:], *(["--epoch", "1"] if "--epoch" in words else [])]) == 0
    elif words[1:3] == ["-m", "utils.plot"]:
        assert plot.main(words[3:]) == 0
    elif words[1:3] == ["-m", "utils.benchmark"]:
        benchmark.build_parser().parse_args(words[3:])  # run in test_benchmark.py
    else:
        assert " ".join(words).startswith(("pip install -r requirements", "python -m pytest", "python -m venv"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_works(name, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    Image.new("RGB", (50, 40)).save("cat.jpg")
    run_shortened(["python", "train.py"])
    for command in commands(DOCUMENTS[name]):
        for part in command.split("&&"):
            run_shortened(shlex.split(part, comments=True))


def test_readme_has_the_commands_of_the_first_minutes():
    found = "\n".join(commands(README))
    for line in (
        "pip install -r requirements.txt && python train.py",
        "pip install -r requirements-dev.txt && python -m pytest",
        "python train.py --data synthetic",
        "python train.py --resume",
        "python test.py --epoch",
        "torchrun --nproc-per-node",
    ):
        assert line in found
    assert len(README.splitlines()) <= 170


def test_the_python_of_readme_loads_the_weights_in_another_project(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    exec("\n".join(commands(README, "python")), names)
    images = names["torch"].rand(2, 3, 32, 32)
    assert names["network"]((images - names["mean"]) / names["std"]).shape == (2, 10)


def test_every_option_is_explained():
    for parser in (train.build_parser(), test.build_parser()):
        for action in parser._actions:
            if action.dest != "help":
                assert f"`{action.option_strings[0]}" in OPTIONS, action.option_strings[0]


def test_defaults_are_those_in_the_tables():
    tables = re.findall(r"(?:^\| `--.*\n)+", OPTIONS, re.M)
    for parser, table in zip((train.build_parser(), test.build_parser()), tables, strict=True):
        usual = vars(parser.parse_args([]))
        for row in table.splitlines():
            _, names, values, *_ = row.split("|")
            for name, value in zip(re.findall(r"--[\w-]+", names), values.strip().split(", ")):
                if value and usual[name[2:].replace("-", "_")] is not None:  # a word such as `asks` stands for None
                    assert vars(parser.parse_args([name, *value.split()])) == usual, name


LINKS = [(name, link) for name, text in DOCUMENTS.items() for link in re.findall(r"\]\((?!http)([^)#]+)", text)]


@pytest.mark.parametrize("name, link", LINKS)
def test_files_that_a_document_links_to_are_there(name, link):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    assert (folder / link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:docs|tests|utils|models)/[\w./]+)`", README))))
def test_files_that_readme_names_are_there(name):
    assert (ROOT / name).exists()
