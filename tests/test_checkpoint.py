import torch

from models import ResidualCNN
from utils import checkpoint, files


def test_only_whole_epochs_count(tmp_path):
    for name in "epoch_02.pth epoch_10.pth epoch_100.pth epoch_3.pth epoch_04.pth.1.partial epoch_x.pth".split():
        (tmp_path / name).touch()
    assert files.saved_epochs(tmp_path) == [2, 10, 100]


def test_a_checkpoint_is_plain_values_and_has_the_promised_keys(trained):
    saved = torch.load(trained / "epoch_03.pth", weights_only=True)
    assert saved.keys() == {"format", "epoch", "model", "optimizer", "scheduler", "history", "config"}
    assert saved["model"].keys() == ResidualCNN(**saved["config"]["network"]).state_dict().keys()


def test_rebuilding_gives_the_weights_that_were_saved(trained):
    path = trained / "epoch_03.pth"
    saved = checkpoint.load(path)
    network = saved.build_network(ResidualCNN)
    assert all(torch.equal(tensor, saved.model[name]) for name, tensor in network.state_dict().items())
    assert saved.parameters == sum(parameter.numel() for parameter in network.parameters())
