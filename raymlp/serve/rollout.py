"""Promote, roll back or wait: what the evidence of a rollout says, however often it is looked at.

Three questions, each with its own test:

- Quality: the mean of `loss(challenger) - loss(champion)` on labelled rows, both scored on the same row, and for binary
  problems the same of misranked pairs, since a model that separates nothing may have a fair loss by luck. An asymptotic
  confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, "Time-uniform central limit theory and
  asymptotic confidence sequences") covers each at all times at once; two-sided, alpha / 2 together.
- Errors: an e-process against "the error rate is at most the limit", exact for any number of looks (Ville's inequality),
  at alpha / 2.
- Latency: the ratio of the two p95s against its limit, once both sides have enough requests. A plain threshold: it
  guards against the gross, and carries no share of alpha.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.serve import Rollout
from raymlp.core.records import Decision

BURN_IN = 100
"""Labelled rows before the sequence may give a verdict: its coverage is asymptotic, and losses are skewed."""

RANKING_BLOCK = 16
"""Rows in a block within which positives and negatives are compared."""

RANKING_STRIDE = 32
"""Blocks that are filled at the same time, row by row in turn."""

RANKING_BURN_IN = 30
"""Blocks before the ranking may give a verdict; a block's value is a mean itself, and bounded."""

LATENCY_REQUESTS = 100
"""Requests each side needs before its p95 (the fifth largest of a hundred) is compared."""

ERROR_RATES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Alternatives of the error test, as multiples of the limit; those at 1 or above give way to rates near 1."""


@dataclass(frozen=True)
class Traffic:
    """What one version answered: requests, those that failed (status 500 or above), p95 latency in ms (NaN: none yet)."""

    requests: int = 0
    errors: int = 0
    p95_ms: float = math.nan


@dataclass(frozen=True)
class Paired:
    """Per-row loss differences, challenger minus champion, on `rows` labelled rows: their mean and sample variance
    (divided by n - 1), and the champion's mean loss. Lower loss is better."""

    rows: int = 0
    mean: float = 0.0
    variance: float = 0.0
    champion_loss: float = 0.0

    @classmethod
    def of(cls, champion: NDArray[np.float64], challenger: NDArray[np.float64]) -> Paired:
        """From the losses of both on the same rows, float64 (N,). Raises ValueError when the lengths differ."""
        if champion.shape != challenger.shape:
            raise ValueError(f"{len(champion)} losses of the champion and {len(challenger)} of the challenger; expected the same rows")
        rows = len(champion)
        if rows == 0:
            return cls()
        difference = challenger - champion
        variance = float(difference.var(ddof=1)) if rows > 1 else 0.0
        return cls(rows, float(difference.mean()), variance, float(champion.mean()))


@dataclass(frozen=True)
class Evidence:
    """All that is known of a rollout so far."""

    champion: Traffic
    challenger: Traffic
    loss: Paired = Paired()
    ranking: Paired | None = None
    """Differences of `misranking` (binary problems): a model that separates nothing can have a fair loss by luck."""
    has_answers: bool = True
    """Whether true answers may come; a task without a target is judged by errors and latency alone."""


def decide(evidence: Evidence, settings: Rollout) -> Decision:
    """`promote`, `rollback` or `hold`, with the numbers behind it.

    The chance of a false rollback of an equal challenger through errors or quality, or of a false promotion of one that
    is worse by more than the margin, is at most `settings.alpha` over the whole rollout. Without answers nothing is known of quality.
    """
    champion, challenger = evidence.champion, evidence.challenger
    total = champion.requests + challenger.requests
    facts: dict[str, Any] = asdict(evidence)

    if credibly_above(challenger.errors, challenger.requests, limit=settings.max_error_rate, alpha=settings.alpha / 2):
        return Decision(
            "rollback",
            f"{challenger.errors:,} of {challenger.requests:,} challenger requests failed; the limit is {settings.max_error_rate:.2%}",
            facts,
        )
    if min(champion.requests, challenger.requests) >= LATENCY_REQUESTS:
        ratio = challenger.p95_ms / champion.p95_ms if champion.p95_ms > 0 else math.nan
        facts["latency_ratio"] = ratio
        if ratio > settings.max_latency_ratio:
            return Decision(
                "rollback",
                f"challenger's p95 latency is {challenger.p95_ms:.1f} ms against {champion.p95_ms:.1f} ms, "
                f"{ratio:.1f} times; the limit is {settings.max_latency_ratio:g}",
                facts,
            )
    checks = [_check(question) for question in _questions(evidence, settings)]
    known = [check for check in checks if check.is_known]
    facts["quality"] = [asdict(check) for check in known]
    words = "; ".join(map(str, known))
    for check in known:
        if check.low > check.allowed:
            return Decision("rollback", f"{check}: worse", facts)
    if len(known) == len(checks) and all(check.high < check.allowed for check in checks) and challenger.requests >= settings.min_requests:
        return Decision("promote", f"{words or 'errors and latency alone, since the task has no answers'}: no worse", facts)
    if total >= settings.max_requests:
        return Decision("rollback", f"no verdict after {total:,} requests ({words or f'{evidence.loss.rows:,} labelled rows'})", facts)
    if challenger.requests < settings.min_requests:
        return Decision("hold", f"{challenger.requests:,} of {settings.min_requests:,} challenger requests so far", facts)
    if len(known) < len(checks):
        return Decision("hold", f"{evidence.loss.rows:,} labelled rows so far; too few to judge", facts)
    return Decision("hold", words, facts)


@dataclass(frozen=True)
class Question:
    """One way of being worse: differences, the largest mean that still counts as no worse, and when it may be judged."""

    name: str
    unit: str
    difference: Paired
    allowed: float
    burn_in: int
    alpha: float
    target_rows: int


@dataclass(frozen=True)
class Check:
    """A question's answer so far: the mean difference with its confidence sequence."""

    name: str
    unit: str
    rows: int
    mean: float
    low: float
    high: float
    allowed: float
    is_known: bool

    def __str__(self) -> str:
        return f"{self.name} {self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.rows:,} {self.unit}, allowed {self.allowed:+.4f}"


def _questions(evidence: Evidence, settings: Rollout) -> list[Question]:
    loss, ranking = evidence.loss, evidence.ranking
    if not evidence.has_answers:
        return []
    alpha = settings.alpha / 2 / (1 if ranking is None else 2)
    target = max(BURN_IN, settings.max_requests // 10)
    allowed = settings.margin * abs(loss.champion_loss)
    questions = [Question("loss difference", "labelled rows", loss, allowed, BURN_IN, alpha, target)]
    if ranking is not None:
        blocks = max(RANKING_BURN_IN, target // RANKING_BLOCK)
        questions.append(Question("misranking difference", "blocks", ranking, settings.ranking_margin, RANKING_BURN_IN, alpha, blocks))
    return questions


def _check(question: Question) -> Check:
    found = question.difference
    half = radius(found.rows, found.variance, alpha=question.alpha, target_rows=question.target_rows)
    low, high = found.mean - half, found.mean + half
    return Check(question.name, question.unit, found.rows, found.mean, low, high, question.allowed, found.rows >= question.burn_in)


def misranking(y: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of (positive, negative) pairs in the wrong order within each block of 16 rows, ties half; blocks with one
    class are left out. Its mean estimates 1 - AUC, and blocks do not share rows, as ranks over all rows would.

    `y` 0 or 1 and `p` scores, float64 (N,), in the order of arrival. A block takes every 32nd row of a run of 512, since
    neighbours are alike (same hour, same weather); a run that is not complete yet gives nothing.
    """
    y, p = (_blocks(values) for values in (y, p))
    pairs = (y[:, :, None] > 0) & (y[:, None, :] <= 0)
    gap = p[:, :, None] - p[:, None, :]
    count = pairs.sum(axis=(1, 2))
    wrong = (pairs * ((gap < 0) + 0.5 * (gap == 0))).sum(axis=(1, 2))
    return np.asarray(wrong[count > 0] / count[count > 0])


def _blocks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Float64 (blocks, 16): 32 interleaved blocks of each complete run of 512 values."""
    run = RANKING_BLOCK * RANKING_STRIDE
    whole = values[: len(values) // run * run].reshape(-1, RANKING_BLOCK, RANKING_STRIDE)
    return whole.transpose(0, 2, 1).reshape(-1, RANKING_BLOCK)


def radius(rows: int, variance: float, *, alpha: float, target_rows: int) -> float:
    """Half width of the two-sided confidence sequence for a mean after `rows` values, in the values' unit.

    s * sqrt(2 (n r^2 + 1) / (n^2 r^2) * log(sqrt(n r^2 + 1) / alpha)), which is the paper's form with its rho set to
    r / s, so that the width does not depend on the unit of the loss. r is tuned to be narrowest near `target_rows`:
    r^2 = (-2 log alpha + log(1 - 2 log alpha)) / target_rows. Infinite without rows.
    """
    if rows == 0:
        return math.inf
    log_alpha = -2 * math.log(alpha)
    scale = rows * (log_alpha + math.log1p(log_alpha)) / target_rows
    return math.sqrt(variance * 2 * (scale + 1) / (rows * scale) * math.log(math.sqrt(scale + 1) / alpha))


def credibly_above(errors: int, requests: int, *, limit: float, alpha: float) -> bool:
    """Whether the error rate is above `limit`, at any number of looks with a chance of being wrong of at most `alpha`.

    The e-value is the mean likelihood ratio of some higher rates against the limit: a supermartingale while the true
    rate is at most the limit, so it reaches 1 / alpha with probability at most alpha. With a limit of zero, one error is enough.
    """
    if limit <= 0 or errors == 0 or limit >= 1:
        return limit <= 0 and errors > 0
    rates = [limit * factor for factor in ERROR_RATES if limit * factor < 1] or [(1 + limit) / 2]
    logs = [errors * math.log(rate / limit) + (requests - errors) * math.log1p((limit - rate) / (1 - limit)) for rate in rates]
    largest = max(logs)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in logs) / len(logs)) >= -math.log(alpha)
