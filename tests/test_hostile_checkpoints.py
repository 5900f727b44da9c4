"""A checkpoint from anywhere is read or refused in one line, and never runs anything or fills the memory."""

import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import NEWEST, change, refused
from utils import checkpoint
from utils.errors import UserError


class Runs:
    """Unpickles by calling what it is told to."""

    def __init__(self, call, *arguments):
        self.how = call, arguments

    def __reduce__(self):
        return self.how


ATTACKS = {
    "system": Runs(os.system, "touch ran"),
    "eval": Runs(eval, "open('ran', 'w')"),
    "exec": Runs(exec, "open('ran', 'w')"),
    "open": Runs(open, "ran", "w"),
    "mkdir": Runs(os.mkdir, "ran"),
    "import": Runs(__import__, "this"),
    "popen": Runs(subprocess.Popen, ["touch", "ran"]),
    "numpy": Runs(np._core.multiarray.scalar, np.dtype("O"), pickle.dumps(Runs(os.mkdir, "ran"))),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_pickles_that_would_run_code_run_nothing(folder, attack):
    evil = {"format": 1, "model": ATTACKS[attack]}
    torch.save(evil, NEWEST)
    refused("more than tensors and plain values")
    with zipfile.ZipFile(NEWEST, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(evil))
        archive.writestr("archive/version", "3")
    refused("more than tensors and plain values")
    assert not os.path.exists("ran") and "this" not in sys.modules


def test_a_bare_pickle_is_not_even_opened(folder):
    NEWEST.write_bytes(pickle.dumps(ATTACKS["mkdir"]))
    refused("something else")
    torch.save(ATTACKS["mkdir"], NEWEST, _use_new_zipfile_serialization=False)
    refused("something else")
    assert not os.path.exists("ran")


def test_a_bomb_of_zeros_is_not_unpacked(folder):
    with zipfile.ZipFile(NEWEST, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    refused("compressed")


def test_a_tensor_that_no_file_of_this_size_holds_is_refused_untouched(folder):
    change(lambda saved: saved["model"].update({"stem.0.weight": Runs(torch.Tensor, 10**9)}))
    refused("larger than the file")


@pytest.fixture(scope="module")
def small_file(trained):
    """A checkpoint without its weights, so that mutations hit its structure."""
    saved = torch.load(trained / "epoch_01.pth", weights_only=True)
    saved["model"] = {"weight": torch.ones(3)}
    saved["optimizer"] = {}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return buffer.getvalue()


MUTATION = st.tuples(st.sampled_from(["set", "cut", "insert", "repeat"]), st.integers(0, 2**20), st.binary(max_size=8))


@settings(
    max_examples=int(os.environ.get("MUTATIONS", "2000")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4), inside=st.booleans())
def test_a_mutated_file_is_a_checkpoint_or_a_clean_error(small_file, tmp_path_factory, mutations, inside):
    path = tmp_path_factory.getbasetemp() / "mutated.pth"
    if inside:  # with check sums that are right: what somebody wrote on purpose
        with zipfile.ZipFile(io.BytesIO(small_file)) as whole, zipfile.ZipFile(path, "w") as changed:
            for entry in whole.infolist():
                content = whole.read(entry)
                changed.writestr(entry, mutated(content, mutations) if entry.filename.endswith(".pkl") else content)
    else:
        path.write_bytes(mutated(small_file, mutations))
    try:
        checkpoint.load(path)
    except UserError as error:
        assert "\n" not in str(error)


def mutated(original, mutations):
    data = bytearray(original)
    for kind, position, value in mutations:
        position %= len(data) + 1
        if kind == "set":
            data[position : position + len(value)] = value
        elif kind == "cut":
            del data[position : position + len(value) ** 2]
        elif kind == "insert":
            data[position:position] = value
        else:
            data[position:position] = data[position : position + 50]
    return bytes(data)
