import pytest

from conftest import run
from utils import plot
from utils.errors import UserError


def test_the_curve_is_redrawn_from_a_checkpoint_folder(trained, tmp_path):
    code, out, err = run("utils.plot", "--checkpoint-dir", trained, "--plot", "again.png", cwd=tmp_path)
    assert (code, out, err) == (0, "again.png\n", "")
    assert (tmp_path / "again.png").read_bytes()[:4] == b"\x89PNG"


def test_an_empty_folder_is_a_line():
    with pytest.raises(UserError, match="no epoch in checkpoints"):
        plot.main([])
