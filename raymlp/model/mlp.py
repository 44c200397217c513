"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from raymlp.config.model import Mlp
from raymlp.model.side_by_side import VectorNet

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape


class MlpNet(VectorNet):
    """Linear, normalisation, ReLU and dropout layers."""

    def __init__(self, model: Mlp, shape: NetShape) -> None:
        super().__init__(model, shape)
        layers: list[nn.Module] = []
        width = sum(self.widths)
        for hidden in model.hidden:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(model.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, shape.outputs)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self.head(self.body(self.vector(tensors, self.head.weight.dtype)))
        return out
