"""Nets. Legend: B rows, N numbers, C categories, L ids of all texts, H height, W width, O outputs.

A net takes a dict of tensors: `numeric` float32 (B, N), `categorical` int64 (B, C) and, where the plan has them, `text` int64 (B, L) and
`image` uint8 (B, 3, H, W). It gives float32 (B, O): one logit (binary), K logits (multiclass), or one standardised value (regression).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from raymlp.config.model import Linear, Mlp, Model
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


def build_net(shape: NetShape) -> nn.Module:
    """A freshly initialised net of the shape; seed torch first for equal weights."""
    match shape.model:
        case Mlp():
            from raymlp.model.mlp import MlpNet

            return MlpNet(shape.model, shape)
        case Linear():
            from raymlp.model.linear import LinearNet

            return LinearNet(shape)


def parameters_of(shape: NetShape) -> int:
    """How many parameters the net of a shape has; none of them is made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_net(shape).parameters())
