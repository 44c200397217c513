"""Rows moved against the net within a small bound: one step along the sign of the slope (Goodfellow et al. 2015), or several,
each brought back within the bound, from a random start (Madry et al. 2018).

Legend: B rows, N numbers, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raymlp.config.adversarial import Adversarial, Pgd
from raymlp.core.errors import ConfigError, nearest
from raymlp.features.plan import FeaturePlan
from raymlp.features.scalers import Piecewise
from raymlp.features.steps import Number, NumberStep
from raymlp.train.batches import Batch

WHITE = 255.0
LossOf = Callable[[Batch], Tensor]
"""The summed loss of a batch."""


class Attacker:
    """Moves the numbers and pixels of a batch by at most `epsilon` and `image_epsilon`.

    Raises ConfigError when there is nothing to move, or a name in `immutable` is no input.
    """

    def __init__(self, settings: Adversarial, plan: FeaturePlan) -> None:
        unknown = next((name for name in settings.immutable if name not in plan.inputs), None)
        if unknown is not None:
            raise ConfigError(f"train.adversarial.immutable names '{unknown}', which is no input.{nearest(unknown, plan.inputs)}")
        moves = [movable and not set(step.columns) & set(settings.immutable) for step in plan.numbers for movable in _movable(step)]
        self.share = settings.share
        self._steps = settings.steps if isinstance(settings, Pgd) else 1
        self._step = settings.step_share if isinstance(settings, Pgd) else 1.0
        self._random = isinstance(settings, Pgd)
        pixels = plan.image is not None and plan.image.column not in settings.immutable
        self._bounds: dict[str, Tensor] = {}
        """Largest change of each tensor, (N,) or one number."""
        if settings.epsilon and any(moves):
            self._bounds["numeric"] = torch.tensor(moves, dtype=torch.float32) * settings.epsilon
        if settings.image_epsilon and pixels:
            self._bounds["image"] = torch.tensor(settings.image_epsilon)
        if not self._bounds:
            raise ConfigError(
                "train.adversarial has nothing to move: no input is an image or stays a number, or its epsilon is 0, or it is immutable. "
                "Leave train.adversarial out, or set epsilon, image_epsilon or immutable."
            )

    def moved(self, batch: Batch, loss_of: LossOf) -> Batch:
        """The batch with `numeric` float32 (B, N) and `image` float32 (B, 3, H, W), whole numbers up to 255, moved to raise the loss.

        No gradient reaches the net's weights. Call it outside inference mode.
        """
        bounds = {name: bound.to(batch.target.device) for name, bound in self._bounds.items()}
        start = {name: batch.tensors[name].detach().float().clone() for name in bounds}
        places = start
        if self._random:
            places = {name: _within(name, at + bounds[name] * (2 * torch.rand_like(at) - 1)) for name, at in start.items()}
        for _ in range(self._steps):
            places = {name: place.detach().clone().requires_grad_() for name, place in places.items()}
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss_of(_with(batch, places)), list(places.values()))
            for (name, place), slope in zip(list(places.items()), slopes, strict=True):
                step = place.detach() + self._step * bounds[name] * slope.sign()
                change = (step - start[name]).clamp(-bounds[name], bounds[name])
                places[name] = _within(name, start[name] + change)
        return _with(batch, {name: place.round() if name == "image" else place for name, place in places.items()})


def _movable(step: NumberStep) -> list[bool]:
    """Of each output of a step, whether it stays a number that a small change makes sense for."""
    if not isinstance(step, Number) or step.part is not None or isinstance(step.scaler, Piecewise):
        return [False] * len(step.names)
    return [True, False] if step.indicator else [True]


def outside_inference(batch: Batch) -> Batch:
    """A copy that gradients can flow through, of a batch that was made in inference mode. Call it outside."""
    return Batch({name: values.clone() for name, values in batch.tensors.items()}, batch.target.clone())


def _with(batch: Batch, tensors: dict[str, Tensor]) -> Batch:
    return Batch({**batch.tensors, **tensors}, batch.target, batch.soft)


def _within(name: str, place: Tensor) -> Tensor:
    return place.clamp(0.0, WHITE) if name == "image" else place
