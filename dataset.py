"""Images on disk -> uint8 tensors -> training, validation and test splits -> augmented batches."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from utils import cifar10
from utils.errors import UserError, first_line, printable, warn

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAINING_IMAGES = {"cifar10": 45_000, "synthetic": 4_500}
IMAGE_SIDE = 32  # pixels
IMAGES_AHEAD = 8_192  # augmented at once on a GPU, for fewer launches; on a CPU one batch, which stays in its cache
SHRUNK_SIDE, ORIENTATION = 128, 0x0112  # of pictures of one's own: pixels; a tag of EXIF
PADDING = 4  # pixels by which an image grows on each side, before a crop of its own size is taken (arXiv 1512.03385)


@dataclass(frozen=True)
class Split:
    """Images, uint8 (N, 3, 32, 32), and their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


def load_training(data: str, data_dir: Path) -> tuple[Split, Split]:
    """The training and the validation split of `data`, "cifar10" (45,000 / 5,000) or "synthetic" (4,500 / 500)."""
    both = _draw_synthetic(5_000, seed=1) if data == "synthetic" else Split(*cifar10.read(data_dir, train=True))
    training_images = len(both) - len(both) // 10  # the last tenth is for validation
    return both[:training_images], both[training_images:]


def load_test(data: str, data_dir: Path) -> Split:
    """The test split of `data`, "cifar10" (10,000 images) or "synthetic" (1,000)."""
    return _draw_synthetic(1_000, seed=2) if data == "synthetic" else Split(*cifar10.read(data_dir, train=False))


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images (N, 3, H, W), on a scale from 0 to 1.

    From a histogram: as floats, all images would take four or eight times their memory.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = [torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)]
    frequencies = torch.stack(counts).double() * 3 / images.numel()  # (3, 256): of each channel's levels
    mean = frequencies @ levels
    variance = frequencies @ levels**2 - mean**2
    return mean.tolist(), variance.clamp(min=1e-12).sqrt().tolist()


def read_image(path: Path) -> Tensor:
    """Read a picture of any size and kind that Pillow knows, as uint8 (3, 32, 32): its middle square, made smaller."""
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")  # they are in Pillow's terms, not in a user's
            if getattr(picture, "is_animated", False) and picture.format != "MPO":  # that is a camera's, with previews
                warn(f"note: {printable(str(path))} has several frames; this is about the first one")
            picture.draft(None, (SHRUNK_SIDE, SHRUNK_SIDE))  # a JPEG's decoder can shrink
            square = _shrink_middle(picture)
            square.getexif()[ORIENTATION] = picture.getexif().get(ORIENTATION, 1)
            small = ImageOps.exif_transpose(square).resize((32, 32), Image.Resampling.LANCZOS)  # an antialiasing filter
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no picture of a known format; save it as PNG or JPEG") from error
    except Image.DecompressionBombError as error:  # more pixels than Pillow thinks sane: 179 million
        raise UserError(f"{path} is too large a picture ({first_line(error)}); make it smaller first") from error
    except Exception as error:  # a file from anywhere can fail in any way
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot read the picture {path}: {reason}; name another file") from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def _shrink_middle(picture: Image.Image) -> Image.Image:
    """The middle square as RGB, each side below twice `SHRUNK_SIDE`; strip by strip, as copies take memory."""
    white = _white(picture)
    side = min(picture.size)
    factor = max(1, side // SHRUNK_SIDE)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    side -= side % factor
    square = Image.new("RGB", (side // factor, side // factor), "white")
    for row in range(0, square.height, 4):
        upper, lower = top + factor * row, top + factor * min(row + 4, square.height)
        strip = picture.crop((left, upper, left + side, lower))
        if white:
            strip = Image.fromarray((255 * _levels(strip) / white).round().clip(max=255).astype(np.uint8))
        strip = strip.convert("RGBA").reduce(factor)
        square.paste(strip, (0, row), strip)  # what is transparent stays white
    return square


def _white(picture: Image.Image) -> float | None:
    """The level of white where grey has 16 bits, 32 bits or floats: the least usual one that fits; None for others."""
    if picture.mode.startswith("I;16"):
        return 65535
    if not picture.mode.startswith(("I", "F")):
        return None
    highest = _levels(picture).max()
    return next(level for level in (1, 255, 65535, highest) if level >= highest)


def _levels(picture: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0).clip(min=0)


class Batches:
    """One pass over a split: yields images, float (B, 3, 32, 32) normalised, and labels, int64 (B,).

    Args:
        split: where to take them from; batches are made on its device.
        batch_size: images per batch; the last batch has what remains.
        mean, std: of each channel, on a scale from 0 to 1.
        generator: a CPU generator that draws order and augmentation, the same on every device; None: every image once,
            in order and as it is.
        shard: which part of a batch of a given size is this process's; by default all of it.
        cutout: as in `augment`.

    Attributes:
        sizes: images of each whole batch, all shards together.
        ahead: how many batches are made at once.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        mean: list[float],
        std: list[float],
        generator: torch.Generator | None = None,
        shard: Callable[[int], slice] = lambda size: slice(0, size),
        cutout: int = 0,
    ):
        self.split, self.generator, self.shard, self.cutout = split, generator, shard, cutout
        self.sizes = [min(batch_size, len(split) - start) for start in range(0, len(split), batch_size)]
        device = split.images.device
        self.ahead = 1 if device.type == "cpu" else max(1, IMAGES_AHEAD // batch_size)
        # On the scale of the pixels, from 0 to 255.
        self.mean, self.std = (
            255 * torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1) for values in (mean, std)
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._in_order() if self.generator is None else self._augmented(self.generator)

    def _parts(self) -> Iterator[slice]:
        """Where this process's part of each batch lies in the epoch's order."""
        start = 0
        for size in self.sizes:
            part = self.shard(size)
            yield slice(start + part.start, start + part.stop)
            start += size

    def _in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self._parts():
            yield self._normalise(self.split.images[part]), self.split.labels[part]

    def _augmented(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        # Every process draws for all images and keeps its own part: so the draws are the same for any number of them.
        order = torch.randperm(len(self.split), generator=generator)
        draws = draw_augmentation(len(self.split), generator)
        parts = list(self._parts())
        for first in range(0, len(parts), self.ahead):
            group = parts[first : first + self.ahead]
            sizes = [part.stop - part.start for part in group]
            places = torch.cat([torch.arange(part.start, part.stop) for part in group])
            index, *drawn = (draw[..., places].to(self.split.images.device) for draw in (order, *draws))
            images = augment(self._normalise(self.split.images[index]), *drawn, cutout=self.cutout)
            yield from zip(images.split(sizes), self.split.labels[index].split(sizes))

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().sub_(self.mean).div_(self.std)


def draw_augmentation(count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """What `augment` needs for `count` images, drawn on the CPU: corners (2, N), flips (N,), centres (2, N).

    All of it is drawn whether it is used or not, and what is new is drawn last: so older runs resume as they were.
    """
    corners = torch.randint(0, 2 * PADDING + 1, (2, count), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    centres = torch.randint(0, IMAGE_SIDE, (2, count), generator=generator)
    return corners, flips, centres


def augment(images: Tensor, corners: Tensor, flips: Tensor, centres: Tensor, cutout: int = 0) -> Tensor:
    """Change training images, float (B, 3, H, W) normalised, at random, as `draw_augmentation` has drawn.

    Args:
        cutout: side of the square that is cut out around each image's centre; 0: none.
    """
    images = crop_and_flip(images, corners, flips)
    if cutout:
        images = cut_out(images, centres, cutout)
    return images


def crop_and_flip(images: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
    """Crop images, float (B, 3, H, W), each at its own corner (2, B), and mirror those whose flip (B,) is set.

    Beyond its border an image is reflected.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (PADDING,) * 4, mode="reflect")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, 3, 9, 9, H, W): every crop there is, as a view
    top, left = corners
    crops = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(flips.view(-1, 1, 1, 1), crops.flip(3), crops)


def cut_out(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Set, in place, a square of images (B, 3, H, W) around each one's centre (2, B) to zero, the mean colour.

    It is clipped at the border (Cutout, DeVries and Taylor, arXiv 1708.04552, section 3.2).
    """
    inside = []
    for size, centre in zip(images.shape[2:], centres):
        offset = torch.arange(size, device=images.device) - centre[:, None] + side // 2  # (B, size)
        inside.append((offset >= 0) & (offset < side))
    rows, columns = inside
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


def _draw_synthetic(count: int, seed: int) -> Split:
    """Ten classes, each a mirror-symmetric pattern of coloured patches: shifted, mixed with another's and noisy."""
    patterns = torch.rand(len(CLASSES), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(patterns + patterns.flip(3), size=(32, 32), mode="bilinear") / 2
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    others = torch.randint(0, len(CLASSES), (count,), generator=generator)
    weights = 0.45 + 0.45 * torch.rand(count, generator=generator)
    shifts = torch.randint(-6, 7, (2, count), generator=generator).T
    images = 0.1 * torch.randn(count, 3, 32, 32, generator=generator)
    draws = (labels.tolist(), others.tolist(), weights.tolist(), shifts.tolist())
    for image, label, other, weight, shift in zip(images, *draws):
        image += torch.lerp(patterns[other], patterns[label], weight).roll(shift, (1, 2))
    return Split(images.mul_(255).clamp_(0, 255).to(torch.uint8), labels)
