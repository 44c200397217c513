"""Making scores mean what they say, fitted on the validation split.

Binary: Platt scaling (Platt 1999), sigmoid(slope * logit + offset). Multiclass: temperature scaling (Guo et al. 2017),
softmax(slope * logits). Regression is left as it is.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from raymlp.config.section import Section
from raymlp.core.records import Task


class Calibration(Section):
    """From the net's output to a probability (or, for regression, to the same value)."""

    task: Task
    """Kind of answer."""
    slope: float = 1.0
    """Factor on the logits; 1 changes nothing."""
    offset: float = 0.0
    """Added to the scaled logit (binary)."""

    @classmethod
    def fit(cls, task: Task, outputs: NDArray[np.float64], y: NDArray[np.float64]) -> Self:
        """Minimise log loss on `outputs`, (N,) or (N, K) logits, and answers `y` (N,). One class only: left as it is."""
        if task == "regression" or len(np.unique(y)) < 2:
            return cls(task=task)
        if task == "binary":
            result = minimize(
                lambda w: float(np.mean(np.logaddexp(0, -(2 * y - 1) * (np.exp(w[0]) * outputs + w[1])))), np.zeros(2), method="L-BFGS-B"
            )
            return cls(task=task, slope=float(np.exp(result.x[0])), offset=float(result.x[1]))
        known = y >= 0
        index = y[known].astype(int)
        result = minimize(
            lambda w: -float(np.mean(log_softmax(np.exp(w[0]) * outputs[known], axis=1)[np.arange(len(index)), index])),
            np.zeros(1),
            method="L-BFGS-B",
        )
        return cls(task=task, slope=float(np.exp(result.x[0])))

    def apply(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability of the positive class (N,), class probabilities (N, K), or values (N,)."""
        if self.task == "regression":
            return outputs
        if self.task == "binary":
            return np.asarray(expit(self.slope * outputs + self.offset))
        return np.asarray(softmax(self.slope * outputs, axis=1))
