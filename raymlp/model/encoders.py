"""Encoders that nets share: a text and an image to numbers. Legend: B rows, L ids of a text, H height, W width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from raymlp.features.text import PADDING

SMALL = 0.05
"""Deviation of fresh text embeddings: a rare n-gram that learns little must not say much."""


class TextMean(nn.Module):
    """Mean of the embeddings of a text's ids, 0 without any: the text as fastText sees it (Joulin et al. 2017), with dropout."""

    def __init__(self, ids: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, width, padding_idx=PADDING)
        nn.init.normal_(self.embedding.weight, std=SMALL)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 (B, L) to (B, width)."""
        known = (ids != PADDING).sum(dim=1, keepdim=True).clamp_min(1)
        mean: Tensor = self.dropout(self.embedding(ids).sum(dim=1) / known)
        return mean


def pixels_of(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Uint8 (B, 3, H, W) to the same shape in [-1, 1]."""
    return (image.float() / 127.5 - 1).to(dtype)


class ImageEncoder(nn.Module):
    """A convolution, a halving of height and width, normalisation and ReLU for each entry of `channels`, then means over a grid of at
    most 4 x 4 places. Halving first, channels last, takes half the time on a CPU."""

    def __init__(self, size: tuple[int, int], channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((3, *channels)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.GroupNorm(1, after), nn.ReLU()]
        grid = tuple(min(4, -(-side // 2 ** len(channels))) for side in size)
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.width = channels[-1] * grid[0] * grid[1]

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 (B, 3, H, W) to (B, width)."""
        weight: Tensor = self.layers[0].weight  # type: ignore[assignment]
        encoded: Tensor = self.layers(pixels_of(image, weight.dtype).contiguous(memory_format=torch.channels_last))
        return encoded


def in_pieces(run: Callable[[Mapping[str, Tensor]], Tensor], tensors: Mapping[str, Tensor], rows: int) -> Tensor:
    """Outputs of B rows, so many at a time."""
    if torch.compiler.is_exporting():  # a graph for any number of rows has no loop over them
        return run(tensors)
    count = len(next(iter(tensors.values())))
    if count <= rows:
        return run(tensors)
    return torch.cat([run({name: part[start : start + rows] for name, part in tensors.items()}) for start in range(0, count, rows)])
