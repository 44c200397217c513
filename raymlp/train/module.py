"""The Lightning module: loss, optimizer, schedule, and the sums of an epoch.

Legend: B rows, K classes, O outputs of the net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from raymlp.config.train import Focal, Train
from raymlp.core.records import Task
from raymlp.train.batches import Batch
from raymlp.train.pace import Pace

WARM_UP = 0.1
"""Share of the steps in which the step size rises."""
SURE = 1e-7
"""Smallest 1 - p of the focal loss: its slope at 0 is infinite for gamma below 1."""


def loss_sum(task: Task, outputs: Tensor, target: Tensor, *, weights: Sequence[float] = (), gamma: float = 0.0) -> Tensor:
    """Summed loss of B rows from `outputs` float32 (B, O) and `target` float32 (B,); 0 without rows.

    Binary and multiclass: negative log likelihood, times the weight of the row's class where weights (K,) are given, times
    (1 - p) ** gamma, p being the probability of the true class. Regression: squared error of the standardised value.
    """
    if task == "regression":
        return functional.mse_loss(outputs[:, 0], target, reduction="sum")
    reduction = "none" if weights or gamma else "sum"
    if task == "multiclass":
        loss = functional.cross_entropy(outputs, target.long(), reduction=reduction)
    else:
        loss = functional.binary_cross_entropy_with_logits(outputs[:, 0], target, reduction=reduction)
    if gamma:
        loss = (-torch.expm1(-loss)).clamp_min(SURE) ** gamma * loss
    if weights:
        loss = outputs.new_tensor(weights)[target.long()] * loss
    return loss.sum()


class Sums:
    """Loss and rows of one pass, kept on the device so that no step waits for it."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.rows = 0

    def add(self, loss: Tensor, rows: int) -> None:
        loss = loss.detach().double()
        self.loss = loss if self.loss is None else self.loss + loss
        self.rows += rows

    def total(self, device: torch.device) -> Tensor:
        """float64 (2,): loss, rows."""
        loss = torch.zeros((), dtype=torch.float64, device=device) if self.loss is None else self.loss
        return torch.stack([loss, torch.tensor(float(self.rows), dtype=torch.float64, device=device)])


class TableModule(pl.LightningModule):
    """A net under AdamW and a one-cycle step size. The loss of a step is the mean over its rows."""

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        settings: Train,
        *,
        pace: Pace,
        total_steps: int,
        fused: bool,
        class_weights: Sequence[float] = (),
    ) -> None:
        """`class_weights` (K,) are those that training gives to classes, through the loss or through the choice of rows.

        Validation rows come as they are, so there the weights are always in the loss: both losses have the same minimum.
        """
        super().__init__()
        self.net, self.task, self.settings = net, task, settings
        self.gamma = settings.loss.gamma if isinstance(settings.loss, Focal) else 0.0
        self.valid_weights = class_weights
        self.train_weights = class_weights if settings.class_weights == "balanced" else ()
        self.pace, self.total_steps, self.fused = pace, total_steps, fused
        self.train_sums, self.valid_sums = Sums(), Sums()
        self.valid_outputs: list[NDArray[np.float32]] = []
        self.valid_answers: list[NDArray[np.float32]] = []

    def forward(self, batch: Batch) -> Tensor:
        """Outputs float32 (B, O)."""
        outputs: Tensor = self.net(batch.tensors)
        return outputs.float()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = loss_sum(self.task, self(batch), batch.target, weights=self.train_weights, gamma=self.gamma)
        self.train_sums.add(loss, len(batch))
        return loss / len(batch)

    def validation_step(self, batch: Batch, _: int) -> None:
        outputs = self(batch)
        loss = loss_sum(self.task, outputs, batch.target, weights=self.valid_weights, gamma=self.gamma)
        self.valid_sums.add(loss, len(batch))
        self.valid_outputs.append(outputs.cpu().numpy())
        self.valid_answers.append(batch.target.cpu().numpy())

    def on_train_epoch_start(self) -> None:
        self.train_sums = Sums()

    def on_validation_epoch_start(self) -> None:
        self.valid_sums, self.valid_outputs, self.valid_answers = Sums(), [], []

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=self.fused or None
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, self.total_steps, pct_start=WARM_UP, anneal_strategy="cos", cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Go along the schedule as far as the pace says: by one step, unless time or another number of workers sets it."""
        scheduler.last_epoch = self.pace.ahead - 1
        scheduler.step()
