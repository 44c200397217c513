"""The residual net of Gorishniy et al. 2021, by their package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from raymlp.config.model import Resnet
from raymlp.model.side_by_side import VectorNet

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape


class ResnetNet(VectorNet):
    """Residual blocks. A batch of one row is normalised by the running statistics, since it has none of its own."""

    def __init__(self, model: Resnet, shape: NetShape) -> None:
        super().__init__(model, shape)
        import rtdl_revisiting_models as authors

        self.body = authors.ResNet(
            d_in=sum(self.widths),
            d_out=shape.outputs,
            n_blocks=model.blocks,
            d_block=model.width,
            d_hidden=max(1, round(model.width * model.hidden_factor)),
            d_hidden_multiplier=None,
            dropout1=model.hidden_dropout,
            dropout2=model.residual_dropout,
        )

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        vector = self.vector(tensors, self.body.input_projection.weight.dtype)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.train(self.training and len(vector) > 1)
        out: Tensor = self.body(vector)
        return out
