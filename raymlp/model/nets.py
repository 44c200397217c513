"""Nets. Legend: B rows, N numbers, C categories, L ids of all texts, H height, W width, O outputs.

A net takes a dict of tensors: `numeric` float32 (B, N), `categorical` int64 (B, C) and, where the plan has them, `text` int64 (B, L) and
`image` uint8 (B, 3, H, W). It gives float32 (B, O): one logit (binary), K logits (multiclass), or one standardised value (regression).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from raymlp.config.model import Model
from raymlp.config.section import Section
from raymlp.features.plan import FeaturePlan
from raymlp.features.text import PADDING

SMALL = 0.05
"""Deviation of fresh text embeddings: a rare n-gram that learns little must not say much."""


class NetShape(Section):
    """What a net is built from: kept in the bundle, so that weights always find their net."""

    model: Model
    """Kind and hyperparameters."""
    num_numeric: int = Field(ge=0)
    """N."""
    cardinalities: tuple[int, ...]
    """Ids of each category, C of them."""
    outputs: int = Field(ge=1)
    """O."""
    texts: tuple[tuple[int, int], ...] = ()
    """Number of different ids, and of ids a row, of each text column."""
    image: tuple[int, int] | None = None
    """H and W."""

    @classmethod
    def of(cls, model: Model, plan: FeaturePlan) -> NetShape:
        return cls(
            model=model,
            num_numeric=plan.num_numeric,
            cardinalities=plan.cardinalities,
            outputs=plan.target.outputs,
            texts=tuple((step.size, step.length) for step in plan.texts),
            image=(plan.image.height, plan.image.width) if plan.image else None,
        )


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


class ImageEncoder(nn.Module):
    """A convolution, a halving of height and width, normalisation and ReLU for each entry of `channels`, then means over a grid of at
    most 4 x 4 places. Pixels come in as uint8 and are brought to [-1, 1]; halving first, channels last, takes half the time on a CPU."""

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
        pixels = (image.float() / 127.5 - 1).to(weight.dtype, memory_format=torch.channels_last)
        encoded: Tensor = self.layers(pixels)
        return encoded


class MlpNet(nn.Module):
    """Numbers, category embeddings, texts and the image side by side, through linear, normalisation, ReLU and dropout layers."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        model = shape.model
        widths = [min(model.max_embedding, round(1.6 * size**0.56)) for size in shape.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(shape.cardinalities, widths, strict=True))
        self.texts = nn.ModuleList(TextMean(size, model.text_embedding, model.text_dropout) for size, _ in shape.texts)
        self.lengths = [length for _, length in shape.texts]
        self.image = ImageEncoder(shape.image, model.image_channels) if shape.image else None
        layers: list[nn.Module] = []
        width = shape.num_numeric + sum(widths) + len(self.texts) * model.text_embedding + (self.image.width if self.image else 0)
        for hidden in model.hidden:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(model.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, shape.outputs)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = [tensors["numeric"].to(self.head.weight.dtype)]
        parts += [embedding(tensors["categorical"][:, i]) for i, embedding in enumerate(self.embeddings)]
        if self.lengths:
            parts += [text(ids) for text, ids in zip(self.texts, torch.split(tensors["text"], self.lengths, dim=1), strict=True)]
        if self.image is not None:
            parts.append(self.image(tensors["image"]))
        out: Tensor = self.head(self.body(torch.cat(parts, dim=1)))
        return out


def build_net(shape: NetShape) -> nn.Module:
    """A freshly initialised net of the shape; seed torch first for equal weights."""
    return MlpNet(shape)


def parameters_of(shape: NetShape) -> int:
    """How many parameters the net of a shape has; none of them is made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_net(shape).parameters())
