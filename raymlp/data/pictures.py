"""Encoded images: what counts as one, and its pixels. Pillow is loaded when the first one is met."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
"""Formats that are read; Pillow knows more, some of which start other programs."""
MOST_PIXELS = 89_478_485
"""Pixels beyond which Pillow itself takes an image for a decompression bomb."""


class BrokenImage(ValueError):
    """Bytes that are no image we read; the text says what was found."""


def decoded(content: bytes, max_pixels: int = MOST_PIXELS) -> Image:
    """The first frame in RGB, turned as its EXIF data say, transparency laid on white. The size is looked at before a pixel is decoded.

    Raises BrokenImage for bytes that are no image of `FORMATS`, are cut off or damaged, or have more than `max_pixels`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise BrokenImage(f"an image of {width} x {height} pixels")
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise BrokenImage(f"an image of mode {image.mode}")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except BrokenImage:
        raise
    except UnidentifiedImageError:
        raise BrokenImage(f"no image that can be read (it starts with {content[:8]!r})") from None
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, struct.error and more
        raise BrokenImage(f"a damaged image ({type(error).__name__})") from error
