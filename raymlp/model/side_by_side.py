"""A row as one long vector: what mlp, resnet and tabm begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymlp.config.model import SideBySide
from raymlp.model.encoders import ImageEncoder, TextMean
from raymlp.model.numbers import NumberEmbeddings

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape


class VectorNet(nn.Module):
    """Numbers, categories, texts and the image of a row, side by side. Nets that take such a vector are subclasses of it."""

    def __init__(self, model: SideBySide, shape: NetShape, *, max_onehot: int = 0) -> None:
        """Categories with up to `max_onehot` ids go in one-hot, the others as an embedding."""
        super().__init__()
        self.numbers = NumberEmbeddings(model.numbers, shape.num_numeric, shape.embedded, shape.edges, width=None, relu=True)
        self._onehot = [size if size <= max_onehot else 0 for size in shape.cardinalities]
        embedded = [size for size in shape.cardinalities if size > max_onehot]
        widths = [min(model.max_embedding, round(1.6 * size**0.56)) for size in embedded]
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(embedded, widths, strict=True))
        self.texts = nn.ModuleList(TextMean(size, model.text_embedding, model.text_dropout) for size, _ in shape.texts)
        self._lengths = [length for _, length in shape.texts]
        self.image = ImageEncoder(shape.image, model.image_channels) if shape.image else None
        left = iter(widths)
        self.widths = [
            *[self.numbers.width] * self.numbers.count,
            *[1] * self.numbers.rest,
            *(size or next(left) for size in self._onehot),
            *[model.text_embedding] * len(self.texts),
            *([self.image.width] if self.image else []),
        ]
        """Width of each feature in the vector, in its order."""

    def vector(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The rows as (B, sum of widths)."""
        embedded, others = self.numbers(tensors["numeric"].to(dtype))
        parts = [others] if embedded is None else [embedded.flatten(1), others]
        layers = iter(self.embeddings)
        for i, size in enumerate(self._onehot):
            ids = tensors["categorical"][:, i]
            parts.append(functional.one_hot(ids, size).to(dtype) if size else next(layers)(ids))
        if self._lengths:
            parts += [text(ids) for text, ids in zip(self.texts, torch.split(tensors["text"], self._lengths, dim=1), strict=True)]
        if self.image is not None:
            parts.append(self.image(tensors["image"]))
        return torch.cat(parts, dim=1)
