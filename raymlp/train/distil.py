"""What a teacher says of the training rows, and the loss that listens to it (Hinton et al. 2015).

Legend: B rows, K classes, M members and O outputs of the net. Soft targets are float32 (B, O): the logit of the teacher's
probability (binary), the logarithm of each class's (multiclass; the same as its logits, but for a constant a row), or its value,
standardised as the answers are (regression). They are made of calibrated scores, so that any kind of model can teach.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from raymlp.config.distil import Distil
from raymlp.core.errors import ConfigError
from raymlp.core.metrics import EPSILON
from raymlp.core.records import Task
from raymlp.data.target import Target
from raymlp.model.predictor import Predictor

SOFT = "soft"
"""Name of the soft targets among the tensors of a block."""


class Teacher:
    """A bundle that teaches a net with the given target. Raises ConfigError when it answers another question."""

    def __init__(self, bundle: str, target: Target) -> None:
        self._predictor, self._target = _predictor(bundle), target
        own = self._predictor.bundle.plan.target
        same = (own.column, own.task, own.positive_above, sorted(own.classes)) == (
            target.column, target.task, target.positive_above, sorted(target.classes),
        )  # fmt: skip
        if not same or (target.task == "binary" and own.classes != target.classes):
            raise ConfigError(
                f"the teacher {bundle} predicts '{own.column}' ({own.task}: {', '.join(own.classes) or 'numbers'}), and training "
                f"'{target.column}' ({target.task}: {', '.join(target.classes) or 'numbers'}); expected the same. Set train.distil.teacher."
            )

    @property
    def inputs(self) -> list[str]:
        """Columns that it reads."""
        return self._predictor.bundle.plan.inputs

    def soft(self, table: pa.Table) -> NDArray[np.float32]:
        """Soft targets of B rows of a snapshot."""
        scores, target = self._predictor.scores(table), self._target
        if target.task == "regression":
            return ((scores - target.mean) / target.scale).astype(np.float32)[:, None]
        p = np.clip(scores, EPSILON, 1 - EPSILON)
        if target.task == "binary":
            return (np.log(p) - np.log1p(-p)).astype(np.float32)[:, None]
        own = self._predictor.bundle.plan.target.classes
        return np.log(p[:, [own.index(name) for name in target.classes]]).astype(np.float32)


def teacher_of(settings: Distil | None, target: Target) -> Teacher | None:
    """The teacher of a run, where it has one. Raises ConfigError when it does not fit, BundleError when its bundle is not whole."""
    return None if settings is None else Teacher(settings.teacher, target)


@lru_cache(maxsize=1)
def _predictor(bundle: str) -> Predictor:
    return Predictor.load(bundle)


def distilled_sum(task: Task, loss: Tensor, outputs: Tensor, soft: Tensor, settings: Distil) -> Tensor:
    """The summed loss of B rows by their answers, mixed with that by the teacher: `outputs` float32 (B, O), or (B, M, O) of M members,
    whose mean counts; `soft` float32 (B, O).

    Classes: T^2 times the cross entropy of the teacher's and the net's probabilities at temperature T; the square keeps the size
    of the gradient the same at any T. Regression: squared error.
    """
    if outputs.ndim == 3:
        members = outputs.shape[1]
        listened = _listened(task, outputs.flatten(0, 1), soft.repeat_interleave(members, dim=0), settings.temperature) / members
    else:
        listened = _listened(task, outputs, soft, settings.temperature)
    return (1 - settings.weight) * loss + settings.weight * listened


def _listened(task: Task, outputs: Tensor, soft: Tensor, t: float) -> Tensor:
    if task == "regression":
        return functional.mse_loss(outputs, soft, reduction="sum")
    if task == "binary":
        return t**2 * functional.binary_cross_entropy_with_logits(outputs / t, (soft / t).sigmoid(), reduction="sum")
    return t**2 * functional.cross_entropy(outputs / t, (soft / t).softmax(dim=1), reduction="sum")
