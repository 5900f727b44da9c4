import pytest
import torch
from torch.nn import functional as F

from models import ResidualCNN, count_parameters
from models.cnn import ResidualBlock


def test_the_default_uses_most_of_the_budget_of_400_000_parameters():
    assert 350_000 < count_parameters(ResidualCNN()) < 400_000


def test_resnet_20s_shape_has_its_0_27_million_parameters():
    assert count_parameters(ResidualCNN((16, 32, 64), (3, 3, 3))) == pytest.approx(0.27e6, rel=0.02)


def test_images_become_one_row_of_logits_each():
    assert ResidualCNN()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def sizes_in(network, *layers):
    """The shapes (C, H, W) that these layers of a network put out, one after the other, for a 32x32 image."""
    sizes = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[1:])))
    network(torch.zeros(1, 3, 32, 32))
    return sizes


def test_each_stage_but_the_first_halves_the_resolution_by_pooling_after_its_first_block():
    network = ResidualCNN((4, 8, 16), (1, 2, 1))
    assert [type(layer) for layer in network.stages].count(torch.nn.AvgPool2d) == 2
    pooled = [(8, 32, 32), (8, 16, 16), (8, 16, 16), (16, 16, 16), (16, 8, 8)]
    assert sizes_in(network, *network.stages) == [(4, 32, 32), *pooled]


def test_or_by_the_stride_of_that_blocks_second_convolution():
    network = ResidualCNN((4, 8, 16), (1, 2, 1), downsample="stride")
    assert sizes_in(network, *network.stages) == [(4, 32, 32), (8, 16, 16), (8, 16, 16), (16, 8, 8)]
    block = network.stages[1]
    assert sizes_in(network, block.conv1, block.conv2) == [(8, 32, 32), (8, 16, 16)]


def test_where_the_resolution_halves_the_skip_sees_every_pixel():
    skip = ResidualCNN((4, 8), (1, 1), downsample="stride").stages[1].skip.eval()
    x = torch.rand(1, 4, 8, 8, requires_grad=True)
    skip(x).sum().backward()
    assert x.grad.abs().min() > 0


def test_dropout_is_halved_before_the_last_stage_and_acts_only_in_training():
    network = ResidualCNN((4, 8), (1, 1), dropout=0.5)
    assert [block.dropout for block in network.stages[:2]] == [0.25, 0.5]
    images = torch.rand(2, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size, side", [(32, 9), (16, 5), (8, 3), (4, 1), (2, 1)])
def test_dropout_drops_squares_of_a_quarter_of_the_map_in_all_channels(size, side, dtype):
    torch.manual_seed(0)
    block, inputs = ResidualBlock(3, 4, dropout=0.2).to(dtype), []
    block.bn1.weight.data.zero_()
    block.bn1.bias.data.fill_(1)  # so that what is not dropped is one number
    block.conv2.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    block(torch.zeros(2**16 // size**2, 3, size, size, dtype=dtype))
    kept = inputs[0].float()
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    dropped = (kept[:, :1] == 0).float()
    centres = 1 - F.max_pool2d(1 - dropped, side, 1, side // 2)
    assert torch.equal(F.max_pool2d(centres, side, 1, side // 2), dropped)
    assert 0.15 < dropped.mean() < 0.22  # squares overlap, so somewhat less than 0.2 is expected
    assert kept.mean().item() == pytest.approx(1, rel=4 * torch.finfo(dtype).eps)
    assert kept.unique().numel() == 2


def test_another_way_to_downsample_is_refused():
    with pytest.raises(ValueError, match="downsample is 'max'"):
        ResidualCNN(downsample="max")


def test_widths_and_blocks_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 widths but 1"):
        ResidualCNN((4, 8), (1,))
