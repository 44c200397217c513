"""The fitted step that turns an encoded image into pixels. Legend: B rows, H height, W width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from raymlp.config.features import ImageFit
from raymlp.config.section import Section
from raymlp.core.errors import DataError
from raymlp.data.pictures import BrokenImage, decoded

Pixels = NDArray[np.uint8]
RowPixels = Callable[[dict[str, Any]], Pixels]


class Picture(Section):
    """An encoded image as RGB pixels of one size, by bilinear resampling over the area of a pixel; black when it is missing."""

    kind: Literal["picture"] = "picture"
    column: str
    """Column read."""
    height: int = Field(ge=1)
    """H."""
    width: int = Field(ge=1)
    """W."""
    fit: ImageFit
    """What happens to an image of another shape."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def batch(self, table: pa.Table) -> Pixels:
        """uint8 (B, 3, H, W). Raises DataError that names the row of a damaged image."""
        pixels = np.zeros((table.num_rows, 3, self.height, self.width), np.uint8)
        for place, content in enumerate(table.column(self.column).to_pylist()):
            if content is not None:
                pixels[place] = self._pixels(content, f"row {place} of the batch")
        return pixels

    def row(self) -> RowPixels:
        def run(row: dict[str, Any]) -> Pixels:
            content = row[self.column]
            if content is None:
                return np.zeros((3, self.height, self.width), np.uint8)
            return self._pixels(content, "the row")

        return run

    def _pixels(self, content: bytes, where: str) -> Pixels:
        from PIL import Image, ImageOps

        try:
            image = decoded(content)
        except BrokenImage as error:
            raise DataError(
                f"'{self.column}' of {where} is {error}; expected an image. Name the column in data.images: such rows go to quarantine."
            ) from error
        size = (self.width, self.height)
        if image.size != size:
            if self.fit == "stretch":
                image = image.resize(size, Image.Resampling.BILINEAR)
            else:
                shaped = ImageOps.pad if self.fit == "pad" else ImageOps.fit
                image = shaped(image, size, Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
