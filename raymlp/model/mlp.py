"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raymlp.config.model import Mlp
from raymlp.model.encoders import ImageEncoder, TextMean

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape


class MlpNet(nn.Module):
    """Numbers, category embeddings, texts and the image side by side, through linear, normalisation, ReLU and dropout layers."""

    def __init__(self, model: Mlp, shape: NetShape) -> None:
        super().__init__()
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
