import pytest
import torch
from torch.nn import functional as F

from models import ResidualCNN, count_parameters
from models.dropout import DropoutReLU


def test_the_default_uses_most_of_the_budget_of_400_000_parameters():
    assert 350_000 < count_parameters(ResidualCNN()) < 400_000


def test_resnet_20s_shape_has_its_0_27_million_parameters():
    assert count_parameters(ResidualCNN((16, 32, 64), (3, 3, 3))) == pytest.approx(0.27e6, rel=0.02)


def test_images_become_one_row_of_logits_each():
    assert ResidualCNN()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_each_stage_but_the_first_halves_the_resolution():
    network, sizes = ResidualCNN((4, 8, 16), (1, 2, 1)), []
    for block in network.stages:
        block.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.zeros(1, 3, 32, 32))
    assert sizes == [(4, 32, 32), (8, 16, 16), (8, 16, 16), (16, 8, 8)]


def test_where_the_resolution_halves_the_skip_sees_every_pixel():
    skip = ResidualCNN((4, 8), (1, 1)).stages[1].skip.eval()
    x = torch.rand(1, 4, 8, 8, requires_grad=True)
    skip(x).sum().backward()
    assert x.grad.abs().min() > 0


def test_a_block_halves_the_resolution_after_its_first_convolution():
    block, sizes = ResidualCNN((4, 8), (1, 1)).stages[1], []
    for convolution in (block.conv1, block.conv2):
        convolution.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    block(torch.zeros(1, 4, 8, 8))
    assert sizes == [(8, 8, 8), (8, 4, 4)]


def test_dropout_is_halved_before_the_last_stage_and_acts_only_in_training():
    network = ResidualCNN((4, 8), (1, 1), dropout=0.5)
    assert [block.dropout_relu.p for block in network.stages] == [0.25, 0.5]
    images = torch.rand(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_where_torch_is_slow_each_activation_is_dropped_by_itself(memory_format, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD EPYC"})
    monkeypatch.setattr(F, "dropout", None)
    torch.manual_seed(0)
    leaf = torch.randn(15, 17, 33, 35).abs().contiguous(memory_format=memory_format).requires_grad_()
    y = DropoutReLU(0.2)(leaf * 1)
    y.sum().backward()
    kept = y > 0
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, 1.25 * leaf * kept)
    assert torch.equal(leaf.grad, 1.25 * kept)
    dropped = (~kept.permute(0, 2, 3, 1) if memory_format == torch.channels_last else ~kept).flatten().double()
    margin = 4 * (0.2 * 0.8 / y.numel()) ** 0.5  # four standard errors
    assert dropped.mean().item() == pytest.approx(0.2, abs=margin)
    for distance in (1, 2, 3, 4):  # the chance that both go, also for those from one number
        both = dropped[distance:] * dropped[:-distance]
        assert both.mean().item() == pytest.approx(0.04, abs=margin)


def test_where_torch_is_slow_no_gradient_goes_through_what_is_negative(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD EPYC"})
    leaf = -torch.rand(8, 8, requires_grad=True)
    y = DropoutReLU(0.2)(leaf * 1)
    assert not y.any()
    assert not torch.autograd.grad(y.sum(), leaf)[0].any()


@pytest.mark.parametrize(
    "processor, compiling, p",
    [("Intel Xeon", False, 0.2), ("AMD EPYC", True, 0.2), ("AMD EPYC", False, 0), ("AMD EPYC", False, 1 - 2**-18)],
)
def test_elsewhere_dropout_is_torchs(processor, compiling, p, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor})
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    x = torch.randn(64, 64)
    results = []
    for layer in (lambda x: F.relu(F.dropout(x, p)), DropoutReLU(p)):
        torch.manual_seed(0)
        results.append((layer(x.clone()), torch.get_rng_state()))  # the state: no more random numbers than needed
    assert all(map(torch.equal, *results))


def test_widths_and_blocks_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 widths but 1"):
        ResidualCNN((4, 8), (1,))
