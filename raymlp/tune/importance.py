"""Which settings made the difference in a study: permutation importance in a random forest (Breiman 2001). No Ray here.

Legend: T trials, K settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.tune import Choice, Integer, LogUniform, Space, Uniform
from raymlp.tune.trials import Trial

TREES, REPEATS = 200, 20
FEWEST = 8
"""Trials below which nothing is said."""
Floats = NDArray[np.float64]


def importance(trials: Sequence[Trial], space: Space, objective: str) -> dict[str, float]:
    """Share of each setting in what the forest knows of the objective, largest first; they sum to one.

    The forest learns the objective's rank from the settings; a setting's importance is how much its squared error grows when that
    setting alone is shuffled. Empty with fewer than FEWEST trials, or where no setting tells anything.
    """
    from sklearn.ensemble import RandomForestRegressor

    known = [trial for trial in trials if math.isfinite(trial.values.get(objective, math.nan))]
    if len(known) < FEWEST:
        return {}
    groups = {key: _columns(key, domain, known) for key, domain in space.items()}
    groups = {key: columns for key, columns in groups.items() if np.ptp(columns, axis=0).any()}
    if not groups:
        return {}
    values = np.array([trial.values[objective] for trial in known])
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)
    table = np.hstack(list(groups.values()))
    forest = RandomForestRegressor(n_estimators=TREES, min_samples_leaf=2, random_state=0, n_jobs=1).fit(table, ranks)
    rng = np.random.default_rng(0)
    before = np.mean((forest.predict(table) - ranks) ** 2)
    grown: dict[str, float] = {}
    start = 0
    for key, columns in groups.items():
        place = slice(start, start + columns.shape[1])
        start = place.stop
        shuffled = np.tile(table, (REPEATS, 1))
        shuffled[:, place] = np.vstack([rng.permutation(columns) for _ in range(REPEATS)])
        grown[key] = max(0.0, float(np.mean((forest.predict(shuffled) - np.tile(ranks, REPEATS)) ** 2) - before))
    total = sum(grown.values())
    shares = {key: value / total for key, value in grown.items()} if total else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _columns(key: str, domain: Choice | Uniform, trials: Sequence[Trial]) -> Floats:
    """A setting as numbers (T, ...): its place in the domain, or a 0/1 column a choice; -1 and zeros where it was not drawn."""
    if isinstance(domain, Choice):
        texts = [json.dumps(trial.draw.get(key)) if key in trial.draw else "" for trial in trials]
        return np.array([[float(text == name) for name in sorted(set(texts))] for text in texts])
    return np.array([[place(domain, trial.draw[key]) if key in trial.draw else -1.0] for trial in trials])


def place(domain: Uniform, value: Any) -> float:
    """Where a number lies in its domain, in [0, 1]; on a logarithmic scale where the domain has one."""
    low, high, at = float(domain.low), float(domain.high), float(value)
    if isinstance(domain, LogUniform) or (isinstance(domain, Integer) and domain.log):
        low, high, at = math.log(low), math.log(high), math.log(at)
    return min(1.0, max(0.0, (at - low) / (high - low)))
