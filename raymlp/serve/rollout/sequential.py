"""Tests that hold however often one looks: e-values as natural logarithms.

An e-value has mean at most 1 while its null hypothesis is true, at every moment and at any moment chosen by looking, so it reaches
1 / alpha with a chance of at most alpha (Ville 1939). E-values of several tests may be averaged, whatever ties them together.

Bets on the version. Which version answers a request is drawn by its key alone, so under the null hypothesis, given what happened to a
request, the challenger had it with a chance of w, its share. A bet on "failures are more often the challenger's" wins only when that
is so. It stays valid when the error rate moves with the hour, since both versions live through the same hours, and when w changes. For
rare events it is the conditional test of two Poisson streams (Lindon and Malek 2022, "Anytime-valid inference for multinomial count
data"); a mean over alternatives makes it a mixture sequential probability ratio test (Robbins 1970; Johari, Koomen, Pekelis and Walsh
2017). The bets are nonnegative martingales, so nothing about them is asymptotic.

Legend: S steps with their shares, G alternatives. Arrays of counts are (..., S), and results (...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfcx, log_ndtr

Floats = NDArray[np.float64]
LARGEST_Z = 1e8
"""Deviations beyond which more say nothing more; their square is still a number."""


Ratios = tuple[float, ...] | tuple[tuple[float, ...], ...]


class Outcome(NamedTuple):
    """One thing that can happen to a request: how often it did, (..., S) for each version, and how many times as often it is said to
    happen to the challenger's as to the champion's: (G,) alternatives, and the largest (or smallest) ratio of the null hypothesis.
    Several things that are asked about alike: counts (T, S), alternatives (T, G) and ratios (T,)."""

    champion: Floats
    challenger: Floats
    alternatives: Ratios
    null: float | tuple[float, ...] = 1.0


def bet(outcomes: Sequence[Outcome], weights: Sequence[float]) -> Floats:
    """Log e-value against "no outcome is the challenger's more often than its null ratio says", (...); less often where the
    alternatives are below it. 0 without steps.

    An outcome whose ratio of rates challenger : champion is r is the challenger's with the chance w r / (w r + 1 - w). Outcomes must
    exclude each other; alternative g of one goes with alternative g of the others. `weights` are the challenger's shares, (S,).
    """
    found = bets_since(outcomes, weights)
    return found[..., 0] if found.shape[-1] else np.zeros(found.shape[:-1])


def bets_since(outcomes: Sequence[Outcome], weights: Sequence[float]) -> Floats:
    """`bet` on each step and those after it, (..., S); `from_any_step` makes one of them."""
    total: Floats | float = 0.0
    for outcome in outcomes:
        gain, cost = _stakes(tuple(weights), outcome.alternatives, outcome.null)
        total = total + outcome.challenger[..., None] * gain - (outcome.champion + outcome.challenger)[..., None] * cost
    return mean_of(since_each(np.asarray(total).swapaxes(-1, -2)).swapaxes(-1, -2))


def since_each(values: Floats) -> Floats:
    """Sums over each step and those after it, (..., S)."""
    return np.asarray(values[..., ::-1].cumsum(axis=-1)[..., ::-1])


def from_any_step(log_values: Floats) -> Floats:
    """The mean of e-values that begin at each step, (..., S): the first has a weight of a half, the next a quarter, and so on, the rest
    being those that have not begun, which are 1. What shows only at a larger share is not outweighed by what went well before."""
    steps = log_values.shape[-1]
    weighted = log_values - math.log(2) * np.arange(1, steps + 1)
    return np.asarray(np.logaddexp.reduce(weighted, axis=-1, initial=-math.log(2) * steps))


@lru_cache(maxsize=4096)
def _stakes(weights: tuple[float, ...], ratios: Ratios, null: float | tuple[float, ...]) -> tuple[Floats, Floats]:
    """What one of the challenger's adds to the logarithm, (..., 1, G), and what each of either takes away, (..., S, G)."""
    share, ratio = np.asarray(weights, dtype=np.float64).reshape(-1, 1), np.asarray(ratios)[..., None, :]
    bound = np.asarray(null)[..., None, None]
    return np.log(ratio / bound), np.log1p(share * (ratio - 1)) - np.log1p(share * (bound - 1))


def rate_above(hits: ArrayLike, trials: ArrayLike, *, limit: float, factors: Sequence[float]) -> Floats:
    """Log e-value against "each trial hits with a chance of at most `limit`", (...): the mean likelihood ratio of the rates
    `limit * factor`, factors above 1; where none of them is a rate, of one halfway to 1."""
    rates = [limit * factor for factor in factors if limit * factor < 1] or [(1 + limit) / 2]
    return _likelihood_ratio(hits, trials, limit, rates)


def rate_below(hits: ArrayLike, trials: ArrayLike, *, limit: float, factors: Sequence[float]) -> Floats:
    """Log e-value against "each trial hits with a chance of at least `limit`", (...): as `rate_above` with factors in [0, 1)."""
    return _likelihood_ratio(hits, trials, limit, [limit * factor for factor in factors])


def _likelihood_ratio(hits: ArrayLike, trials: ArrayLike, limit: float, rates: Sequence[float]) -> Floats:
    hit = np.asarray(hits, dtype=np.float64)[..., None]
    missed = np.asarray(trials, dtype=np.float64)[..., None] - hit
    won = np.array([math.log(rate / limit) if rate > 0 else -math.inf for rate in rates])
    lost = np.array([math.log1p(-rate) - math.log1p(-limit) for rate in rates])
    return mean_of(np.multiply(hit, won, where=hit > 0, out=np.zeros(np.broadcast_shapes(hit.shape, won.shape))) + missed * lost)


def mean_above(rows: float, total: float, variance: float, *, alpha: float, target_rows: float) -> float:
    """Asymptotic log e-value against "the mean is at most 0", from `rows` values with this total; `variance` is that of the total.

    The normal likelihood ratio mixed over positive means with a half-normal weight (Robbins 1970; the one-sided form of the asymptotic
    confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021). With z = total / sqrt(variance) and
    k = rows * r^2: log 2 - log(1 + k) / 2 + z^2 k / (2 (1 + k)) + log Phi(z sqrt(k / (1 + k))). r is tuned for `target_rows`:
    r^2 = (-2 log alpha + log(1 - 2 log alpha)) / target_rows. 0, an e-value of 1, without rows or when nothing varies around 0.
    """
    if rows <= 0 or (variance <= 0 and total == 0):
        return 0.0
    ratio = total / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, total)
    z = math.copysign(min(abs(ratio), LARGEST_Z), ratio)
    k = rows * tuning(alpha) / target_rows
    shrunk = z * math.sqrt(k / (1 + k))
    # Below 0 the square and the logarithm of Phi cancel, and their sum is that of the scaled complementary error function.
    inside = shrunk**2 / 2 + float(log_ndtr(shrunk)) if shrunk > 0 else math.log(float(erfcx(-shrunk / math.sqrt(2))) / 2)
    return math.log(2) - math.log1p(k) / 2 + inside


def tuning(alpha: float) -> float:
    """-2 log alpha + log(1 - 2 log alpha): rows times the squared width of the mixture, where the sequence is to be narrowest."""
    log_alpha = -2 * math.log(alpha)
    return log_alpha + math.log1p(log_alpha)


def radius(rows: int, variance: float, *, alpha: float, target_rows: float) -> float:
    """Half width of the two-sided asymptotic confidence sequence for a mean after `rows` values, in the values' unit.

    s * sqrt(2 (n r^2 + 1) / (n^2 r^2) * log(sqrt(n r^2 + 1) / alpha)), which is the paper's form (Waudby-Smith et al. 2021) with its
    rho set to r / s, so that the width does not depend on the unit. r as in `mean_above`. Infinite without rows.
    """
    if rows == 0:
        return math.inf
    scale = rows * tuning(alpha) / target_rows
    return math.sqrt(variance * 2 * (scale + 1) / (rows * scale) * math.log(math.sqrt(scale + 1) / alpha))


def mean_of(log_values: ArrayLike) -> Floats:
    """log of the mean over the last axis of exp(values): the average of e-values is an e-value."""
    values = np.asarray(log_values, dtype=np.float64)
    return np.asarray(np.logaddexp.reduce(values, axis=-1) - math.log(values.shape[-1]))
