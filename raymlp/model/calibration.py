"""Making scores mean what they say, fitted on the validation split.

Binary: Platt scaling (Platt 1999), sigmoid(slope * logit + offset). Multiclass: temperature scaling (Guo et al. 2017),
softmax(slope * logits). Other outputs are left as they are.

A net that was trained with class weights w, in the loss or by resampling, has logits that are log w too high. Binary: the offset
takes that in. Multiclass: log w is subtracted first, since a temperature cannot (Saerens et al. 2002).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from raymlp.config.section import Section
from raymlp.core.records import Task, has_classes


class Calibration(Section):
    """From the net's output to a probability (or, without classes, to the same value)."""

    task: Task
    """Kind of answer."""
    slope: float = 1.0
    """Factor on the logits; 1 changes nothing."""
    offset: float = 0.0
    """Added to the scaled logit (binary)."""
    shifts: tuple[float, ...] = ()
    """Added to the logits before they are scaled, (K,) (multiclass); empty adds nothing."""
    threshold: float = 0.5
    """Score from which on a row is flagged (anomaly)."""

    @classmethod
    def undoing(cls, task: Task, class_weights: Sequence[float] = ()) -> Self:
        """What takes the class weights (K,) of training back, and nothing else."""
        shifts = [-math.log(weight) for weight in class_weights]
        if task == "binary" and shifts:
            return cls(task=task, offset=shifts[1] - shifts[0])
        return cls(task=task, shifts=tuple(shifts))

    @classmethod
    def fit(cls, task: Task, outputs: NDArray[np.float64], y: NDArray[np.float64], *, class_weights: Sequence[float] = ()) -> Self:
        """Minimise log loss on `outputs`, (N,) or (N, K) logits, and answers `y` (N,). One class only: the class weights are taken back."""
        start = cls.undoing(task, class_weights)
        if not has_classes(task) or len(np.unique(y)) < 2:
            return start
        if task == "binary":
            result = minimize(
                lambda w: float(np.mean(np.logaddexp(0, -(2 * y - 1) * (np.exp(w[0]) * outputs + w[1])))), np.zeros(2), method="L-BFGS-B"
            )
            return cls(task=task, slope=float(np.exp(result.x[0])), offset=float(result.x[1]))
        known = y >= 0
        index = y[known].astype(int)
        logits = start._shifted(outputs[known])
        result = minimize(
            lambda w: -float(np.mean(log_softmax(np.exp(w[0]) * logits, axis=1)[np.arange(len(index)), index])),
            np.zeros(1),
            method="L-BFGS-B",
        )
        return cls(task=task, slope=float(np.exp(result.x[0])), shifts=start.shifts)

    def apply(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of the positive class (N,), class probabilities (N, K), or what was given."""
        if not has_classes(self.task):
            return outputs
        if self.task == "binary":
            return np.asarray(expit(self.slope * outputs + self.offset))
        return np.asarray(softmax(self.slope * self._shifted(outputs), axis=1))

    def _shifted(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        return outputs + np.array(self.shifts) if self.shifts else outputs
