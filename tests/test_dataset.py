import numpy as np
import pytest
import torch

import dataset
from dataset import Batches, Split, crop_and_flip, cut_out
from utils import cifar10
from utils.errors import UserError

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]


def random_split(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def epoch(split, seed, batch_size=8):
    batches = Batches(split, batch_size, MEAN, STD, torch.Generator().manual_seed(seed))
    images, labels = zip(*batches)
    return torch.cat(images), torch.cat(labels)


def test_validation_is_the_last_tenth_of_the_training_set(small_cifar10):
    training, validation = dataset.load_training("cifar10", "data")
    assert training.images[:, 0, 5, 5].tolist() == list(range(90))
    assert validation.images[:, 0, 5, 5].tolist() == list(range(90, 100))
    assert validation.labels.tolist() == list(range(10))
    assert not training.images[:, 1:].any()  # planes in the order red, green, blue


def test_the_test_set_is_the_test_file(small_cifar10):
    assert dataset.load_test("cifar10", "data").images[:, 0, 0, 0].tolist() == list(range(200, 220))


@pytest.mark.parametrize("load", [dataset.load_training, dataset.load_test])
def test_synthetic_images_are_the_same_every_time(load):
    first = load("synthetic", "nowhere")
    dataset._draw_synthetic.cache_clear()  # conftest.py has them drawn once
    second = load("synthetic", "nowhere")
    first, second = (splits if isinstance(splits, tuple) else (splits,) for splits in (first, second))
    assert [len(split) for split in first] in ([4500, 500], [1000])
    assert all(torch.equal(one.images, two.images) for one, two in zip(first, second))


def test_an_epoch_has_every_image_once_and_the_last_batch_is_short():
    batches = Batches(random_split(20), 8, MEAN, STD, torch.Generator().manual_seed(0))
    labels = [batch_labels.tolist() for _, batch_labels in batches]
    assert [len(part) for part in labels] == [8, 8, 4]
    assert len(batches) == 3
    assert sorted(sum(labels, [])) == list(range(20))


def test_a_batch_larger_than_the_split_is_one_batch():
    assert len(Batches(random_split(20), 1000, MEAN, STD)) == 1


def test_without_a_generator_images_come_in_order_and_merely_normalised():
    split = random_split(20)
    images, labels = (torch.cat(parts) for parts in zip(*Batches(split, 8, MEAN, STD)))
    expected = (split.images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert labels.tolist() == list(range(20))
    torch.testing.assert_close(images, expected)


def test_order_crops_and_flips_follow_from_the_seed():
    split = random_split(20)
    for again, same in ((1, True), (2, False)):
        (images, labels), (other_images, other_labels) = epoch(split, 1), epoch(split, again)
        assert torch.equal(labels, other_labels) == same
        assert torch.equal(images, other_images) == same


def test_batches_made_ahead_on_a_gpu_are_those_made_one_by_one():
    halves = Batches(random_split(20), 4, MEAN, STD, shard=lambda size: slice(size // 2, size), cutout=8)
    for batches in (halves, Batches(random_split(20), 8, MEAN, STD)):
        epochs = []
        for batches.ahead in (1, 2, 64):
            batches.generator = torch.Generator().manual_seed(0)
            epochs.append(list(batches))
        for one_by_one, *ahead in zip(*epochs, strict=True):
            assert all(torch.equal(*pair) for other in ahead for pair in zip(one_by_one, other))


def test_each_image_is_cropped_and_flipped_on_its_own():
    image = random_split(1).images
    split = Split(image.expand(200, 3, 32, 32), torch.arange(200))
    images, _ = epoch(split, 0, batch_size=200)
    # 81 crops x 2 mirrorings of one image: 200 draws hit about 115 different ones
    assert len(torch.unique(images.flatten(1), dim=0)) > 90


def test_a_crop_is_a_window_of_the_image_with_a_mirrored_border():
    images = random_split(3).images.float()
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    corners = torch.tensor([[4, 0, 8], [4, 0, 5]])
    centre, top_left, flipped = crop_and_flip(images, corners, torch.tensor([False, False, True])).numpy()
    assert np.array_equal(centre, images[0])
    assert np.array_equal(top_left, padded[1, :, :32, :32])
    assert np.array_equal(flipped, padded[2, :, 8:40, 5:37][:, :, ::-1])


def test_a_square_is_cut_out_of_each_image_and_off_at_its_border():
    images = torch.ones(3, 3, 32, 32)
    expected = images.clone()
    expected[0, :, 6:14, 16:24] = 0
    expected[1, :, :4, :5] = 0
    expected[2, :, 27:, 27:] = 0
    assert torch.equal(cut_out(images, torch.tensor([[10, 0, 31], [20, 1, 31]]), 8), expected)


def test_squares_change_nothing_else_of_an_epoch_and_no_validation():
    split = random_split(20)
    whole, cut = (
        torch.cat([images for images, _ in Batches(split, 8, MEAN, STD, torch.Generator().manual_seed(0), cutout=side)])
        for side in (0, 8)
    )
    zeros = (cut == 0).all(dim=1)
    assert ((zeros.sum(dim=(1, 2)) >= 16) & (zeros.sum(dim=(1, 2)) <= 64)).all()
    assert len(torch.unique(zeros.flatten(1), dim=0)) > 10
    assert torch.equal(cut, torch.where(zeros[:, None], 0, whole))
    in_order = [torch.cat([images for images, _ in Batches(split, 8, MEAN, STD, cutout=side)]) for side in (0, 8)]
    assert torch.equal(*in_order)


def test_channel_statistics_are_mean_and_deviation_of_all_pixels():
    images = random_split(50).images
    images[:, 1] //= 2
    mean, std = dataset.channel_statistics(images)
    expected = (images.double() / 255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean).double(), expected.mean(1))
    torch.testing.assert_close(torch.tensor(std).double(), expected.std(1, correction=0))


def test_without_a_network_the_line_names_file_sum_folder_and_way_out(monkeypatch):
    monkeypatch.setattr(cifar10, "MIRRORS", ("http://127.0.0.1:9/cifar-10-python.tar.gz",))
    with pytest.raises(UserError) as caught:
        dataset.load_training("cifar10", "data")
    line = str(caught.value)
    assert "\n" not in line
    for fact in ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "put it into data", "--data synthetic"):
        assert fact in line
