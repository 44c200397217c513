"""The Lightning module: loss, optimizer, schedule, and the sums of an epoch.

Legend: B rows, K classes, M members and O outputs of the net.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from raymlp.config.train import Focal, Train
from raymlp.core.language import LIKELIHOOD, TOKENS
from raymlp.core.records import Task
from raymlp.train.adversarial import Attacker, outside_inference
from raymlp.train.augment import Augmentation
from raymlp.train.average import averaged_net
from raymlp.train.batches import Batch
from raymlp.train.distil import distilled_sum
from raymlp.train.groups import parameter_groups
from raymlp.train.layers import prepare
from raymlp.train.mixing import mixed
from raymlp.train.optimizer import optimizer_of
from raymlp.train.pace import Pace
from raymlp.train.private import Budget, empty_step, private_optimizer
from raymlp.train.schedule import shares

SURE = 1e-7
"""Smallest 1 - p of the focal loss: its slope at 0 is infinite for gamma below 1."""


def loss_sum(
    task: Task, outputs: Tensor, target: Tensor, *, weights: Sequence[float] = (), gamma: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Summed loss of B rows from `outputs` float32 (B, O) and `target` float32 (B,); 0 without rows. Of M members, (B, M, O), the mean.

    Binary and multiclass: negative log likelihood, times the weight of the row's class where weights (K,) are given, times
    (1 - p) ** gamma, p being the probability of the true class; `smoothing` is the share of the answer that is spread over all
    classes. Regression: squared error of the standardised value. Language: negative log-likelihood of the tokens of the texts.
    """
    if task == "language":
        return -outputs[:, LIKELIHOOD].sum()
    if outputs.ndim == 3:
        members = outputs.shape[1]
        each = target.repeat_interleave(members)
        return loss_sum(task, outputs.flatten(0, 1), each, weights=weights, gamma=gamma, smoothing=smoothing) / members
    if task == "regression":
        return functional.mse_loss(outputs[:, 0], target, reduction="sum")
    reduction = "none" if weights or gamma else "sum"
    if task == "multiclass":
        loss = functional.cross_entropy(outputs, target.long(), reduction=reduction, label_smoothing=smoothing)
    else:
        answer = target * (1 - smoothing) + smoothing / 2 if smoothing else target
        loss = functional.binary_cross_entropy_with_logits(outputs[:, 0], answer, reduction=reduction)
    if gamma:
        loss = (-torch.expm1(-loss)).clamp_min(SURE) ** gamma * loss
    if weights:
        loss = outputs.new_tensor(weights)[target.long()] * loss
    return loss.sum()


class Sums:
    """Loss, rows and tokens of one pass, kept on the device so that no step waits for it. Without a text there are no tokens."""

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.tokens: Tensor | None = None
        self.rows = 0

    def add(self, loss: Tensor, rows: int, tokens: Tensor | None = None) -> None:
        loss = loss.detach().double()
        self.loss = loss if self.loss is None else self.loss + loss
        self.rows += rows
        if tokens is not None:
            tokens = tokens.detach().double()
            self.tokens = tokens if self.tokens is None else self.tokens + tokens

    def total(self, device: torch.device) -> Tensor:
        """float64 (3,): loss, rows, tokens."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        loss, tokens = (zero if found is None else found for found in (self.loss, self.tokens))
        return torch.stack([loss, torch.tensor(float(self.rows), dtype=torch.float64, device=device), tokens])


class TableModule(pl.LightningModule):
    """A net under its optimizer and schedule. The loss of a step is the mean over its rows."""

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        settings: Train,
        *,
        pace: Pace,
        fused: bool,
        class_weights: Sequence[float] = (),
        budget: Budget | None = None,
        attacker: Attacker | None = None,
        losses: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        """`class_weights` (K,) are those that training gives to classes, through the loss or through the choice of rows.

        Validation rows come as they are, so there the weights are always in the loss: both losses have the same minimum.
        `pace` tells how far the schedule has come; `losses` gives the validation losses of the epochs so far.
        """
        super().__init__()
        self.averaged = averaged_net(net, settings.average, epochs=settings.epochs)
        prepare(net, settings)
        self.net, self.task, self.settings = net, task, settings
        self.gamma = settings.loss.gamma if isinstance(settings.loss, Focal) else 0.0
        self.valid_weights = class_weights
        self.train_weights = class_weights if settings.class_weights == "balanced" else ()
        self.augment = Augmentation(settings.augment) if settings.augment.is_on else None
        self.budget, self.attacker = budget, attacker
        self.pace, self.fused = pace, fused
        self._share = shares(settings, epoch_steps=pace.total / settings.epochs, losses=losses)
        self.train_sums, self.valid_sums = Sums(), Sums()
        self.valid_outputs: list[NDArray[np.float32]] = []
        self.robust_outputs: list[NDArray[np.float32]] = []
        """Outputs on validation rows that were moved against the net."""
        self.valid_answers: list[NDArray[np.float32]] = []

    @property
    def kept(self) -> nn.Module:
        """The net whose weights are validated and kept: the one that learns, or the average that follows it."""
        return self.net if self.averaged is None else self.averaged.net

    def forward(self, batch: Batch) -> Tensor:
        """Outputs float32 (B, O), or (B, M, O) of members in training."""
        outputs: Tensor = self.net(batch.tensors)
        return outputs.float()

    def training_step(self, batch: Batch, _: int) -> Tensor:
        if self.budget is not None and not len(batch):
            return empty_step(self.net)
        if self.augment is not None:
            batch = batch.with_image(self.augment(batch.tensors["image"]))
        batch, answers = mixed(batch, self.settings.mix)
        loss = self._training_loss(batch, answers)
        if self.attacker is not None:
            share = self.attacker.share
            loss = (1 - share) * loss + share * self._training_loss(self.attacker.moved(batch, self._training_loss))
        self.train_sums.add(loss, len(batch))
        return loss / max(len(batch), 1)

    def _training_loss(self, batch: Batch, answers: Sequence[tuple[Tensor, float]] = ()) -> Tensor:
        """Summed loss of a batch by its answers, given with their shares where rows were mixed, and by the teacher, where there is one."""
        outputs, smoothing = self(batch), self.settings.label_smoothing
        parts = [
            share * loss_sum(self.task, outputs, target, weights=self.train_weights, gamma=self.gamma, smoothing=smoothing)
            for target, share in answers or [(batch.target, 1.0)]
        ]
        loss = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        if self.settings.distil is not None and batch.soft is not None:
            return distilled_sum(self.task, loss, outputs, batch.soft, self.settings.distil)
        return loss

    def _validation_loss(self, batch: Batch) -> Tensor:
        return loss_sum(self.task, self._kept(batch), batch.target, weights=self.valid_weights, gamma=self.gamma)

    def _kept(self, batch: Batch) -> Tensor:
        """Outputs float32 (B, O) of the weights that are validated."""
        outputs: Tensor = (self.net if self.averaged is None else self.averaged)(batch.tensors)
        return outputs.float()

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        if self.averaged is not None:
            self.averaged.after_step(self.net)

    def validation_step(self, batch: Batch, _: int) -> None:
        outputs = self._kept(batch)
        loss = loss_sum(self.task, outputs, batch.target, weights=self.valid_weights, gamma=self.gamma)
        if self.attacker is not None:
            with torch.inference_mode(mode=False), torch.no_grad():
                moved = self.attacker.moved(outside_inference(batch), self._validation_loss)
                self.robust_outputs.append(self._kept(moved).cpu().numpy())
        self.valid_sums.add(loss, len(batch), outputs[:, TOKENS].sum() if self.task == "language" else None)
        self.valid_outputs.append(outputs.cpu().numpy())
        self.valid_answers.append(batch.target.cpu().numpy())

    def logged(self, trainer: pl.Trainer) -> dict[str, float]:
        """What a net of the user's own logged in the epoch, by name."""
        return {}

    def on_train_epoch_start(self) -> None:
        self.train_sums = Sums()

    def on_validation_epoch_start(self) -> None:
        self.valid_sums, self.valid_outputs, self.robust_outputs, self.valid_answers = Sums(), [], [], []
        if self.averaged is not None:
            self.averaged.after_epoch(self.net, self.current_epoch)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(parameter_groups(self.net, self.settings), self.settings, fused=self.fused)
        if self.budget is not None:
            optimizer = private_optimizer(self.net, optimizer, self.budget)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Go along the schedule as far as the pace says: by one step, unless time or another number of workers sets it."""
        scheduler.last_epoch = self.pace.ahead - 1
        scheduler.step()


class LanguageModule(TableModule):
    """A language model. The loss of a step is the mean over the tokens of its texts, so a long text counts as much as it has tokens; of
    several workers or batches that are accumulated, the mean of their means."""

    def training_step(self, batch: Batch, _: int) -> Tensor:
        outputs = self(batch)
        loss, tokens = loss_sum(self.task, outputs, batch.target), outputs[:, TOKENS].sum()
        self.train_sums.add(loss, len(batch), tokens)
        mean: Tensor = loss / tokens.clamp_min(1)
        return mean
