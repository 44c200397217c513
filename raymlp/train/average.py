"""A second net that follows the first: the average of its weights over steps (EMA) or over the ends of epochs (SWA).

It is part of the module's state, so a checkpoint holds it and a strategy that divides weights divides it too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from raymlp.config.average import Average, Ema, NoAverage, Swa
from raymlp.train.schedule import first_averaged_epoch


class AveragedNet(nn.Module):
    """The average of a net's parameters and, alike, of its running statistics; other buffers are copied."""

    taken: Tensor

    def __init__(self, net: nn.Module, average: Ema | Swa, *, epochs: int) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self._average = average
        self._first_epoch = first_averaged_epoch(average, epochs) if isinstance(average, Swa) else 0
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What the average gives. To be called rather than its net, for where it is divided it is gathered here."""
        outputs: Tensor = self.net(tensors)
        return outputs

    def after_step(self, net: nn.Module) -> None:
        """Follow the net after a step of its optimizer."""
        if isinstance(self._average, Ema):
            steps = self._counted()
            self._follow(net, 1 - min(self._average.decay, (1 + steps) / (10 + steps)))

    def after_epoch(self, net: nn.Module, epoch: int) -> None:
        """Follow the net at the end of an epoch, counted from 0."""
        if isinstance(self._average, Swa):
            self._follow(net, 1 / (self._counted() + 1) if epoch >= self._first_epoch else 1.0)

    def _counted(self) -> int:
        before = int(self.taken)
        self.taken += 1
        return before

    @torch.no_grad()
    def _follow(self, net: nn.Module, weight: float) -> None:
        mine, theirs = _numbers(self.net), _numbers(net)
        torch._foreach_lerp_(mine, theirs, weight)
        for old, new in zip(self.net.buffers(), net.buffers(), strict=True):
            if not old.is_floating_point():
                old.copy_(new)


def averaged_net(net: nn.Module, average: Average, *, epochs: int) -> AveragedNet | None:
    """A net that follows another one, as the settings say; to be made before the other is compiled or divided."""
    return None if isinstance(average, NoAverage) else AveragedNet(net, average, epochs=epochs)


def _numbers(net: nn.Module) -> list[Tensor]:
    """What this worker holds of the floating-point parameters and buffers."""
    tensors = [*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())]
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
