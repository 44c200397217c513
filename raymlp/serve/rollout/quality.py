"""Are the challenger's answers worse?

The mean of `loss(challenger) - loss(champion)` on labelled rows, both scored on the same row, and for binary problems the same of
misranked pairs, since a model that separates nothing may have a fair loss by luck. Both tests are asymptotic and hold however often one
looks (see `sequential.mean_above`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymlp.config.rollout import Quality
from raymlp.serve.rollout.facts import Check, Paired
from raymlp.serve.rollout.sequential import mean_above, mean_of, radius

BURN_IN = 100
"""Labelled rows before anything is said: the test is asymptotic, and losses are skewed."""

TARGET_ROWS = 2_000
"""Labelled rows at which the test is sharpest."""

RANKING_BLOCK = 16
"""Rows in a block within which positives and negatives are compared."""

RANKING_STRIDE = 32
"""Blocks that are filled at the same time, row by row in turn."""

RANKING_BURN_IN = 30
"""Blocks before the ranking says anything; a block's value is a mean itself, and bounded."""


@dataclass(frozen=True)
class Question:
    """One way of being worse: differences, the mean for which nothing is held against a challenger, the one that is to be excluded
    before promotion, and the rows it takes to say anything."""

    name: str
    unit: str
    difference: Paired
    tolerated: float
    margin: float
    burn_in: int
    target_rows: float


def check_quality(loss: Paired, ranking: Paired | None, settings: Quality, *, alpha: float) -> Check:
    """Harm: the mean e-value of loss and ranking. Fine: both must be, so the smaller counts; not asked where labels are not
    `required` and none have come."""
    scale = abs(loss.champion_loss)
    questions = [
        Question("loss", "labelled rows", loss, settings.tolerated * scale, settings.margin * scale, BURN_IN, TARGET_ROWS),
    ]
    if ranking is not None:
        bounds = settings.ranking_tolerated, settings.ranking_margin
        questions.append(Question("misranking", "blocks", ranking, *bounds, RANKING_BURN_IN, TARGET_ROWS / RANKING_BLOCK))
    known = [question for question in questions if question.difference.rows >= question.burn_in]
    harms = [_log_e(question, 1, question.tolerated, alpha) for question in known] + [0.0] * (len(questions) - len(known))
    fine = min(_log_e(question, -1, question.margin, alpha) for question in known) if len(known) == len(questions) else 0.0
    told = "; ".join(_told(question, alpha) for question in known)
    asked = settings.required or loss.rows > 0
    return Check("quality", float(mean_of(harms)), fine if asked else None, told or f"{loss.rows:,} labelled rows; too few to judge")


def _log_e(question: Question, sign: int, bound: float, alpha: float) -> float:
    """Log e-value against "the mean is at most `bound`", or at least with the sign -1."""
    found = question.difference
    total = sign * found.rows * (found.mean - bound)
    return mean_above(found.rows, total, found.rows * found.variance, alpha=alpha, target_rows=question.target_rows)


def _told(question: Question, alpha: float) -> str:
    found = question.difference
    half = radius(found.rows, found.variance, alpha=alpha, target_rows=question.target_rows)
    interval = f"[{found.mean - half:+.4f}, {found.mean + half:+.4f}]"
    return f"{question.name} {found.mean:+.4f} {interval} on {found.rows:,} {question.unit}, margin {question.margin:+.4f}"


def misranking(y: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of (positive, negative) pairs in the wrong order within each block of 16 rows, ties half; blocks with one
    class are left out. Its mean estimates 1 - AUC, and blocks do not share rows, as ranks over all rows would.

    `y` 0 or 1 and `p` scores, float64 (N,), in the order of arrival. A block takes every 32nd row of a run of 512, since
    neighbours are alike (same hour, same weather); a run that is not complete yet gives nothing.
    """
    y, p = (_blocks(values) for values in (y, p))
    pairs = (y[:, :, None] > 0) & (y[:, None, :] <= 0)
    difference = p[:, :, None] - p[:, None, :]
    count = pairs.sum(axis=(1, 2))
    wrong = (pairs * ((difference < 0) + 0.5 * (difference == 0))).sum(axis=(1, 2))
    return np.asarray(wrong[count > 0] / count[count > 0])


def _blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Float64 (blocks, 16): 32 interleaved blocks of each complete run of 512 values."""
    run = RANKING_BLOCK * RANKING_STRIDE
    whole = values[: len(values) // run * run].reshape(-1, RANKING_BLOCK, RANKING_STRIDE)
    return whole.transpose(0, 2, 1).reshape(-1, RANKING_BLOCK)
