"""DP-SGD (Abadi et al. 2016): what it costs, how batches are drawn, and the optimizer that clips and adds noise, by Opacus.

The accountant is that of Renyi differential privacy for the subsampled Gaussian mechanism (Mironov et al. 2019), between tables
that differ by one row. It asks for Poisson sampling, and so batches are drawn: every row comes into every batch with the same
chance, whatever became of the others. Covered are the weights, against whoever has them. Not covered are the number of rows,
what the profile and the feature plan tell of the training rows, and the validation rows.

Legend: N training rows.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from raymlp.config.train import Train
from raymlp.core.errors import ConfigError
from raymlp.model.nets import NetShape
from raymlp.train.batches import Batch, TrainBatches, batch_of
from raymlp.train.blocks import Source, joined

DELTA_SHARE = 0.1
HIGHER_ORDERS = (96, 128, 256, 512)
NOISE = (0.1, 100.0)
"""Least and most noise that is chosen; what is given may be any."""
TRIED_ROWS = 3
"""Rows that a net is tried on."""


@dataclass(frozen=True)
class Budget:
    """What a private run spends: each of `epoch_steps` steps an epoch takes a batch of `batch_rows` of `rows` rows on average, and adds
    noise of deviation `noise` times `clip`."""

    rows: int
    batch_rows: int
    noise: float
    clip: float
    delta: float
    max_epsilon: float
    asked_epochs: int

    @property
    def rate(self) -> float:
        """Chance of a row to be in a batch."""
        return self.batch_rows / self.rows

    @property
    def epoch_steps(self) -> int:
        return max(1, self.rows // self.batch_rows)

    def epsilon(self, epochs: int) -> float:
        """What is spent after so many epochs, at `delta`."""
        from opacus.accountants.analysis import rdp

        if not epochs:
            return 0.0
        orders, each = _step_cost(self.noise, self.rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another order might bound it more tightly: it is a bound at any
            return float(rdp.get_privacy_spent(orders=orders, rdp=each * epochs * self.epoch_steps, delta=self.delta)[0])

    @cached_property
    def epochs(self) -> int:
        """Epochs that the budget allows, at most those asked for. Raises ConfigError when it does not allow one."""
        low, high = 0, self.asked_epochs
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon(middle) <= self.max_epsilon else (low, middle - 1)
        if not low:
            raise ConfigError(
                f"an epoch of {self.epoch_steps} steps spends an epsilon of {self.epsilon(1):.3g} with train.private.noise={self.noise:g}, "
                f"and max_epsilon is {self.max_epsilon:g}; expected at least one epoch within it. Set train.private.noise or max_epsilon."
            )
        return low


@lru_cache(maxsize=64)
def _step_cost(noise: float, rate: float) -> tuple[list[float], NDArray[np.float64]]:
    """Orders, and the Renyi divergence of one step at each: many steps cost as many times that."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp

    orders = [*RDPAccountant.DEFAULT_ALPHAS, *HIGHER_ORDERS]
    return orders, np.asarray(rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=orders))


@lru_cache(maxsize=8)
def budget_of(settings: Train, rows: int) -> Budget | None:
    """The budget of a run over `rows` training rows; None without `train.private`. Raises ConfigError when it allows nothing, or a batch
    has as many rows as there are."""
    private = settings.private
    if private is None:
        return None
    if settings.batch_size >= rows:
        raise ConfigError(
            f"train.batch_size is {settings.batch_size} of {rows} rows; a private batch is a small part. Set train.batch_size."
        )
    delta = private.delta or DELTA_SHARE / rows
    noise = private.noise or NOISE[1]
    budget = Budget(rows, settings.batch_size, noise, private.clip, delta, private.max_epsilon, settings.epochs)
    return budget if private.noise else _with_noise(budget)


def _with_noise(budget: Budget) -> Budget:
    """The budget with the least noise that keeps all epochs within it, to a thousandth."""
    low, high = NOISE
    epochs, wanted = budget.asked_epochs, budget.max_epsilon
    if replace(budget, noise=high).epsilon(epochs) > wanted:
        raise ConfigError(
            f"{epochs * budget.epoch_steps} steps spend more than an epsilon of {wanted:g} at delta {budget.delta:.2g} even under noise of "
            f"{high:g}; expected a larger train.private.max_epsilon, fewer train.epochs or a smaller train.batch_size."
        )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if replace(budget, noise=middle).epsilon(epochs) <= wanted else (middle, high)
    return replace(budget, noise=high)


class PoissonBatches(TrainBatches):
    """Batches in which every row of the worker is with the same chance, drawn from the operating system's randomness. Holds the rows in
    memory, copied once. A batch may be empty: it is a step of noise alone."""

    def __init__(self, source: Source, budget: Budget) -> None:
        super().__init__(source, rows=budget.rows, batch_size=budget.batch_rows, buffer_rows=0, seed=(0, 0), epoch=lambda: 0)
        self._budget = budget

    def __len__(self) -> int:
        return self._budget.epoch_steps

    def _batches(self) -> Iterator[Batch]:
        rng = np.random.default_rng()
        rows = joined(self._source(None))
        for _ in range(len(self)):
            # as many as a coin for each row would give, and any of them: the same as throwing the coins
            yield batch_of(rows, rng.choice(len(rows), rng.binomial(len(rows), self._budget.rate), replace=False, shuffle=False))


def private_optimizer(net: nn.Module, optimizer: Optimizer, budget: Budget) -> Optimizer:
    """The optimizer, behind one that clips the gradient of each row and adds noise to their sum. Losses are means over the batch."""
    _tell_rows_apart(net)
    generator = torch.Generator(next(net.parameters()).device).manual_seed(secrets.randbits(63))
    settings = {"noise_multiplier": budget.noise, "max_grad_norm": budget.clip, "expected_batch_size": budget.batch_rows}
    wrapped: Optimizer = _optimizer(net)(optimizer, generator=generator, **settings)
    return wrapped


def empty_step(net: nn.Module) -> Tensor:
    """The loss of a batch without rows, which not every net takes: the step after it is one of noise alone."""
    learning = [weight for weight in net.parameters() if weight.requires_grad]

    def no_rows(_: Tensor) -> None:
        for weight in learning:
            weight.grad_sample = weight.new_zeros((0, *weight.shape))  # type: ignore[attr-defined]

    loss = torch.stack([(weight * 0).sum() for weight in learning]).sum()
    loss.register_hook(no_rows)  # type: ignore[no-untyped-call]  # in the backward pass: gradients are reset before it
    return loss


def refuse_unfit(net: nn.Module, kind: str) -> None:
    """Raise ConfigError for a net that mixes rows (batch normalisation), or whose gradient of each row Opacus cannot tell."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    errors = [*ModuleValidator.validate(net, strict=False), *GradSampleModule.validate(net, strict=False)]
    if errors:
        raise ConfigError(
            f"train.private does not go with model.kind={kind}: {str(errors[0]).splitlines()[0]} Choose a model without it, such as mlp."
        )


def try_rows(net: nn.Module, shape: NetShape) -> None:
    """Raise ConfigError when a pass over some rows does not leave the gradient of each: one a row for every weight that learns, with the
    gradient of the batch as their mean. The net is not to be used afterwards."""
    _tell_rows_apart(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the first layer's inputs need no gradient
        (net.train()(_drawn(shape)).float().square().sum() / TRIED_ROWS).backward()
    for name, weight in net.named_parameters():
        each = getattr(weight, "grad_sample", None)
        if not weight.requires_grad or weight.grad is None:
            continue
        if (
            not isinstance(each, Tensor)
            or len(each) != TRIED_ROWS
            or not torch.allclose(_mean(net, weight, each), weight.grad, rtol=1e-3, atol=1e-5)
        ):
            raise ConfigError(
                f"train.private does not go with model.kind={shape.model.kind} as it is set: Opacus cannot tell each row's gradient of "
                f"{name}. "
                "Choose another model, such as mlp; of an encoder, let adapters learn (model.transfer.lora) or the upper blocks alone."
            )


def _drawn(shape: NetShape) -> dict[str, Tensor]:
    """Inputs of `TRIED_ROWS` rows, drawn at random."""
    draws, rows = torch.Generator().manual_seed(0), TRIED_ROWS

    def ids(below: int, width: int = 1) -> Tensor:
        return torch.randint(below, (rows, width), generator=draws)

    drawn = {
        "numeric": torch.randn(rows, shape.num_numeric, generator=draws),
        "categorical": torch.cat([torch.zeros(rows, 0, dtype=torch.int64), *map(ids, shape.cardinalities)], dim=1),
    }
    if shape.texts:
        drawn["text"] = torch.cat([ids(size, length) for size, length in shape.texts], dim=1)
    if shape.image:
        drawn["image"] = torch.randint(256, (rows, 3, *shape.image), generator=draws, dtype=torch.uint8)
    return drawn


def _tell_rows_apart(net: nn.Module) -> None:
    """Have each backward pass leave the gradient of every row, as `grad_sample`, beside that of the batch."""
    from opacus import GradSampleModule

    for layer in net.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            layer.register_forward_pre_hook(_channels_first)
    GradSampleModule(net, loss_reduction="mean")  # leaves its hooks in the net itself


def _channels_first(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Opacus cuts an image into patches by the strides of channels that come first: with others the gradients of rows would be mixed."""
    return tuple(part.contiguous() for part in inputs)


def _padding(net: nn.Module) -> dict[Tensor, int]:
    """Of every embedding with padding that learns, which row stands for it."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Embedding) and layer.weight.requires_grad]
    return {layer.weight: layer.padding_idx for layer in layers if layer.padding_idx is not None}


def _mean(net: nn.Module, weight: nn.Parameter, each: Tensor) -> Tensor:
    mean = each.mean(dim=0)
    if (row := _padding(net).get(weight)) is not None:
        mean[row] = 0
    return mean


def _optimizer(net: nn.Module) -> type[Any]:
    from opacus.optimizers import DPOptimizer

    class RowOptimizer(DPOptimizer):
        """Leaves padding at 0, which Opacus takes for a word like others: it gets neither gradient nor noise."""

        def clip_and_accumulate(self) -> None:
            for weight, row in _padding(net).items():
                weight.grad_sample[:, row] = 0  # type: ignore[attr-defined]
            super().clip_and_accumulate()

        def add_noise(self) -> None:
            super().add_noise()
            for weight, row in _padding(net).items():
                if weight.grad is not None:
                    weight.grad[row] = 0

    return RowOptimizer
