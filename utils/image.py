"""A user's own picture -> an image as CIFAR-10 has them."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError, first_line


def read_image(path: Path) -> Tensor:
    """Read a picture of any size and kind that Pillow knows, as uint8 (3, 32, 32): its middle square, made smaller."""
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")  # they are in Pillow's terms, not in a user's
            upright = ImageOps.exif_transpose(picture)
            side = min(upright.size)
            left, top = (upright.width - side) // 2, (upright.height - side) // 2
            square = _to_rgb(upright.crop((left, top, left + side, top + side)))
            small = square.resize((32, 32), Image.Resampling.LANCZOS)  # an antialiasing filter
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no picture of a known format; save it as PNG or JPEG") from error
    except Image.DecompressionBombError as error:  # more pixels than Pillow thinks sane: 179 million
        raise UserError(f"{path} is too large a picture ({first_line(error)}); make it smaller first") from error
    except Exception as error:  # a file from anywhere can fail in any way
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"cannot read the picture {path}: {reason}; name another file") from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert to 8 bits a channel, and put what is transparent on white."""
    if picture.mode.startswith(("I", "F")):  # grey levels of 16 bits, 32 bits or floats
        levels = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0).clip(min=0)
        usual = [65535] if picture.mode.startswith("I;16") else [1, 255, 65535]
        white = next(level for level in [*usual, levels.max()] if level >= levels.max())  # the least that fits
        picture = Image.fromarray((255 * levels / white).round().astype(np.uint8))
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
