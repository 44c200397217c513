"""TabM (Gorishniy et al. 2024), from its authors' layers. Legend: B rows, M members, O outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from raymlp.config.model import Tabm
from raymlp.core.records import Task
from raymlp.model.encoders import in_pieces
from raymlp.model.side_by_side import VectorNet

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape

PIECE = 1_024
"""Rows that are scored at a time: each takes M times the memory of a perceptron's."""


class TabmNet(VectorNet):
    """In training the outputs of every member (B, M, O), for a loss each; else their average (B, O), as one logit or value."""

    def __init__(self, model: Tabm, shape: NetShape) -> None:
        super().__init__(model, shape, max_onehot=model.max_onehot)
        import tabm as authors

        assert shape.task is not None
        self._task: Task = shape.task
        self.members = authors.EnsembleView(k=model.members)
        scales = "normal" if self.numbers.count else "random-signs"
        self.body = authors.make_tabm_backbone(
            d_in=sum(self.widths),
            n_blocks=model.blocks,
            d_block=model.width,
            dropout=model.dropout,
            k=model.members,
            arch_type=model.sharing,
            start_scaling_init=None if model.sharing == "tabm-packed" else scales,
            start_scaling_init_chunks=None if model.sharing == "tabm-packed" else self.widths,
        )
        self.head = authors.LinearEnsemble(model.width, shape.outputs, k=model.members)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if self.training:
            return self._outputs(tensors)
        return in_pieces(lambda piece: averaged(self._outputs(piece), self._task), tensors, PIECE)

    def _outputs(self, tensors: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self.head(self.body(self.members(self.vector(tensors, self.head.weight.dtype))))
        return out


def averaged(outputs: Tensor, task: Task) -> Tensor:
    """Outputs (B, M, O) of the members to (B, O): the logits of the mean of their probabilities, or the mean of their values."""
    if task == "regression":
        return outputs.mean(dim=1)
    if task == "multiclass":
        return torch.logsumexp(functional.log_softmax(outputs, dim=-1), dim=1) - math.log(outputs.shape[1])
    return torch.logsumexp(functional.logsigmoid(outputs), dim=1) - torch.logsumexp(functional.logsigmoid(-outputs), dim=1)
