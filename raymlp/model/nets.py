"""Nets for tables. Legend: B rows, N numbers, C categories, O outputs.

A net takes `numeric` float32 (B, N) and `categorical` int64 (B, C) and gives float32 (B, O): one logit (binary),
K logits (multiclass), or one standardised value (regression).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from raymlp.config.model import Model
from raymlp.config.section import Section
from raymlp.features.plan import FeaturePlan


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

    @classmethod
    def of(cls, model: Model, plan: FeaturePlan) -> NetShape:
        return cls(model=model, num_numeric=plan.num_numeric, cardinalities=plan.cardinalities, outputs=plan.target.outputs)


class MlpNet(nn.Module):
    """Numbers and category embeddings side by side, through linear, normalisation, ReLU and dropout layers."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        widths = [min(shape.model.max_embedding, round(1.6 * size**0.56)) for size in shape.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(shape.cardinalities, widths, strict=True))
        layers: list[nn.Module] = []
        width = shape.num_numeric + sum(widths)
        for hidden in shape.model.hidden:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(shape.model.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, shape.outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        parts = [numeric.to(self.head.weight.dtype)]
        parts += [embedding(categorical[:, i]) for i, embedding in enumerate(self.embeddings)]
        out: Tensor = self.head(self.body(torch.cat(parts, dim=1)))
        return out


def build_net(shape: NetShape) -> nn.Module:
    """A freshly initialised net of the shape; seed torch first for equal weights."""
    return MlpNet(shape)
