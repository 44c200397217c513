"""The linear model: logistic, softmax or linear regression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raymlp.model.encoders import TextMean, pixels_of

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape


class LinearNet(nn.Module):
    """A weight for every number, category, word and colour of a pixel, and their sum. A word's is divided by the words of its text."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        pixels = 3 * shape.image[0] * shape.image[1] if shape.image else 0
        self.head = nn.Linear(shape.num_numeric + pixels, shape.outputs)
        self.categories = nn.ModuleList(nn.Embedding(size, shape.outputs) for size in shape.cardinalities)
        for weight in self.categories.parameters():
            nn.init.zeros_(weight)
        self.texts = nn.ModuleList(TextMean(size, shape.outputs, dropout=0) for size, _ in shape.texts)
        self.lengths = [length for _, length in shape.texts]
        self.has_image = shape.image is not None

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        dtype = self.head.weight.dtype
        numbers = [tensors["numeric"].to(dtype)]
        if self.has_image:
            numbers.append(pixels_of(tensors["image"], dtype).flatten(1))
        out: Tensor = self.head(torch.cat(numbers, dim=1))
        for i, category in enumerate(self.categories):
            out = out + category(tensors["categorical"][:, i])
        if self.lengths:
            for text, ids in zip(self.texts, torch.split(tensors["text"], self.lengths, dim=1), strict=True):
                out = out + text(ids)
        return out
