"""Models to beat, on the same training rows: the rule, a linear model, histogram gradient boosting. Those of tasks that learn from the
rows alone are in `raymlp.evaluate.plain`, those of language in `raymlp.evaluate.counting`.

scikit-learn is loaded when a baseline is asked for.
Legend: N training rows, M scored rows, F inputs, K classes. Scores are as in `raymlp.core.metrics`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from raymlp.core.records import needs_target
from raymlp.data.profile import to_float
from raymlp.features.ids import FIRST, MISSING, UNSEEN, Buckets
from raymlp.features.plan import FeaturePlan
from raymlp.features.steps import Number, NumberStep
from raymlp.features.text import PADDING, TextStep

Floats = NDArray[np.float64]
ROUNDS = 200
"""Boosting rounds."""
MAX_BINS = 254
"""Categories that histogram gradient boosting tells apart, the most frequent ones; the others share one."""
PARTS = 64
"""Numbers that a text or an image becomes where a baseline takes few: its leading singular vectors, from the training rows."""
SIDE = 16
"""Height and width at which baselines look at an image."""


def scores_of(
    names: Sequence[str], plan: FeaturePlan, train: pa.Table, scored: pa.Table, *, clusters: int = 0, seed: int = 0
) -> dict[str, Floats]:
    """Fit each named baseline that the task has on `train` and score the rows of `scored`: (M,) or, for several classes, (M, K).

    Both tables hold the plan's inputs, `train` the target too; `clusters` are as many as the model has. Training rows without an
    answer, or of an unknown
    class, are left out. With one class in training every baseline is the rule. Half of the cores are used: OpenMP threads
    that wait for a core that something else has cost more than they give (measured on 2 busy cores: 47 s instead of 1 s).
    """
    from threadpoolctl import threadpool_limits

    if plan.target.task == "language":
        from raymlp.evaluate.counting import counted_scores_of

        return counted_scores_of(names, plan, train, scored)
    if not needs_target(plan.target.task):
        from raymlp.evaluate.plain import plain_scores_of

        return plain_scores_of(names, plan, train, scored, clusters=clusters, seed=seed)
    y, known = plan.target.answers(train)
    train, y = train.filter(pa.array(known)), y[known]
    fits = {"rule": _rule, "linear": _linear, "gradient_boosting": _gradient_boosting}
    learnable = len(np.unique(y)) > 1
    with threadpool_limits(max(1, (os.cpu_count() or 1) // 2)):
        return {name: fits[name if learnable else "rule"](plan, train, y, scored, seed) for name in names}


def sample_rows(rows: int, limit: int, *, seed: int) -> NDArray[np.int64] | None:
    """Indices of `limit` of `rows` rows, rising, the same for the same seed; None when all fit."""
    if rows <= limit:
        return None
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def _rule(plan: FeaturePlan, train: pa.Table, y: Floats, scored: pa.Table, seed: int) -> Floats:
    """The same answer for every row: the positive rate, the class shares, or the mean."""
    rows = scored.num_rows
    if plan.target.task == "multiclass":
        shares = np.bincount(y.astype(int), minlength=len(plan.target.classes)) / max(len(y), 1)
        return np.tile(shares, (rows, 1))
    return np.full(rows, y.mean() if len(y) else 0.0)


def _linear(plan: FeaturePlan, train: pa.Table, y: Floats, scored: pa.Table, seed: int) -> Floats:
    """Logistic or ridge regression on the plan's own tensors: categories one-hot, texts as the set of their ids, images by their
    `PARTS` numbers. Stops after 100 iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge

    bags = [(_bag(step, train), _bag(step, scored)) for step in plan.texts]
    pixels = [leading(*pair, seed=seed) for pair in _pixels(plan, train, scored)]
    x, x_scored = (
        sparse.hstack([one_hot(plan, table), *(pair[place] for pair in (*bags, *pixels))], format="csr")
        for place, table in enumerate((train, scored))
    )
    if plan.target.task == "regression":
        return np.asarray(Ridge(alpha=1.0, random_state=seed).fit(x, y).predict(x_scored))
    model = LogisticRegression(C=1.0, max_iter=100, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return _probabilities(plan, model, x_scored)


def _gradient_boosting(plan: FeaturePlan, train: pa.Table, y: Floats, scored: pa.Table, seed: int) -> Floats:
    """Histogram gradient boosting on the raw inputs: missing values stay missing, categories are native, and each text and image comes as
    `PARTS` numbers.

    All rounds are used, except with several classes: there rare classes are learned by heart, so it stops when a tenth of
    the training rows says so.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    bags = [(_bag(step, train), _bag(step, scored)) for step in plan.texts]
    parts = [leading(*pair, seed=seed) for pair in (*bags, *_pixels(plan, train, scored))]
    settings: dict[str, Any] = {
        "max_iter": ROUNDS,
        "learning_rate": 0.1,
        "early_stopping": plan.target.task == "multiclass",
        "categorical_features": np.array([*_are_categories(plan), *([False] * sum(pair[0].shape[1] for pair in parts))]),
        "random_state": seed,
    }
    x, x_scored = (
        np.concatenate([_raw(plan, table), *(pair[place] for pair in parts)], axis=1) for place, table in enumerate((train, scored))
    )
    if plan.target.task == "regression":
        return np.asarray(HistGradientBoostingRegressor(**settings).fit(x, y).predict(x_scored))
    return _probabilities(plan, HistGradientBoostingClassifier(**settings).fit(x, y), x_scored)


def _probabilities(plan: FeaturePlan, model: Any, x: Any) -> Floats:
    """Probability of the positive class, (M,), or of each class of the target, (M, K); 0 for one that training lacked."""
    found = np.asarray(model.predict_proba(x), dtype=np.float64)
    if plan.target.task == "binary":
        return found[:, 1]
    out = np.zeros((len(found), len(plan.target.classes)))
    out[:, model.classes_.astype(int)] = found
    return out


def one_hot(plan: FeaturePlan, table: pa.Table) -> Any:
    """The plan's numbers beside one column for each category id: a sparse float64 matrix with N rows. A number that the plan leaves
    missing is 0, and a further column says so."""
    tensors = plan.model_copy(update={"steps": (*plan.numbers, *plan.categories)}).transform(table)
    ids = tensors["categorical"]
    starts = np.cumsum([0, *plan.cardinalities])[:-1].astype(np.int64)
    rows = np.repeat(np.arange(table.num_rows), ids.shape[1])
    places = (ids + starts).ravel()
    hot = sparse.csr_matrix((np.ones(len(places)), (rows, places)), shape=(table.num_rows, sum(plan.cardinalities)))
    numbers = tensors["numeric"].astype(np.float64)
    left = np.array([isinstance(step, Number) and step.fill is None for step in plan.numbers for _ in step.names], dtype=bool)
    missing = np.isnan(numbers[:, left]).astype(np.float64)
    return sparse.hstack([sparse.csr_matrix(np.nan_to_num(numbers)), sparse.csr_matrix(missing), hot], format="csr")


def _bag(step: TextStep, table: pa.Table) -> Any:
    """Which ids a text holds: a sparse float64 matrix with N rows of 0 and 1."""
    ids = step.batch(table)
    rows, places = np.nonzero(ids != PADDING)
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, ids[rows, places])), shape=(table.num_rows, step.size))
    return counts.sign()


def _pixels(plan: FeaturePlan, train: pa.Table, scored: pa.Table) -> list[tuple[Floats, Floats]]:
    """The pixels of both tables in [0, 1], `SIDE` x `SIDE`; nothing without an image."""
    if plan.image is None:
        return []
    small = plan.image.model_copy(update={"height": SIDE, "width": SIDE})
    first, second = (small.batch(table).reshape(table.num_rows, -1) / 255.0 for table in (train, scored))
    return [(first, second)]


def leading(train: Any, scored: Any, *, seed: int) -> tuple[Floats, Floats]:
    """Up to `PARTS` numbers a row, float64 (N, P) and (M, P)."""
    reduce = reducer(train, seed=seed)
    return reduce(train), reduce(scored)


def reducer(train: Any, *, seed: int) -> Callable[[Any], Floats]:
    """From rows to their up to `PARTS` leading components, as the training rows have them."""
    from sklearn.decomposition import TruncatedSVD

    found: Callable[[Any], Floats] = (
        TruncatedSVD(max(1, min(PARTS, *(side - 1 for side in train.shape))), random_state=seed).fit(train).transform
    )
    return found


def _raw(plan: FeaturePlan, table: pa.Table) -> Floats:
    """Inputs as trees take them, float64 (N, F): plain numbers unscaled with NaN for missing, categories as ids up to `MAX_BINS`."""
    columns: list[Floats] = []
    for step in (*plan.numbers, *plan.categories):
        if isinstance(step, Number) and step.part is None:
            columns.append(to_float(table.column(step.column)))
        elif isinstance(step, NumberStep):
            columns += [numbers.astype(np.float64) for numbers in step.batch(table)]
        else:
            ids = step.batch(table).astype(np.float64)
            ids[ids >= MAX_BINS] = UNSEEN
            columns.append(np.where(ids == MISSING, np.nan, np.where(ids < FIRST, UNSEEN, ids)))
    return np.stack(columns, axis=1) if columns else np.zeros((table.num_rows, 0))


def _are_categories(plan: FeaturePlan) -> list[bool]:
    """For each column of `_raw` whether it holds categories; a bin of a number is one that has an order."""
    found: list[bool] = []
    for step in (*plan.numbers, *plan.categories):
        if isinstance(step, Number) and step.part is None:
            found.append(False)
        elif isinstance(step, NumberStep):
            found += [False] * len(step.names)
        else:
            found.append(not isinstance(step, Buckets))
    return found
