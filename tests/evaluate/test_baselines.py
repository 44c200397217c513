"""Baselines: what they learn, in which form they answer, and where they fall back to the rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raymlp.core.metrics import accuracy, auc, r2
from raymlp.core.records import Task
from raymlp.evaluate.baselines import sample_rows, scores_of
from raymlp.model.bundle import load_bundle
from tests.evaluate.planted import Case

ALL = ("rule", "linear", "gradient_boosting")


def scored(case: Case) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    plan = load_bundle(case.bundle).plan
    y = plan.target.read(case.tables["test"].column("answer"))
    return y, scores_of(ALL, plan, case.tables["train"], case.tables["test"])


def test_binary_baselines_find_what_was_planted(cases: Callable[[Task], Case]) -> None:
    y, found = scored(cases("binary"))
    known = ~np.isnan(y)
    answers = cases("binary").tables["train"]["answer"].drop_null().to_pylist()
    assert found["rule"][0] == pytest.approx(answers.count("yes") / len(answers))
    assert np.ptp(found["rule"]) == 0
    assert auc(y[known], found["linear"][known]) > 0.85
    assert auc(y[known], found["gradient_boosting"][known]) > 0.8


def test_multiclass_baselines_give_a_probability_a_class(cases: Callable[[Task], Case]) -> None:
    y, found = scored(cases("multiclass"))
    known = ~np.isnan(y)
    for scores in found.values():
        assert scores.shape == (1_000, 4)
        assert np.allclose(scores.sum(axis=1), 1)
    assert accuracy(y[known], found["gradient_boosting"][known]) > 0.9
    assert accuracy(y[known], found["linear"][known]) > 0.85


def test_regression_baselines_answer_in_the_targets_unit(cases: Callable[[Task], Case]) -> None:
    y, found = scored(cases("regression"))
    known = ~np.isnan(y)
    assert r2(y[known], found["rule"][known]) == pytest.approx(0, abs=0.02)
    assert r2(y[known], found["linear"][known]) > 0.9
    assert r2(y[known], found["gradient_boosting"][known]) > 0.85


def test_one_class_in_training_leaves_the_rule(cases: Callable[[Task], Case]) -> None:
    case = cases("binary")
    plan = load_bundle(case.bundle).plan
    train = case.tables["train"]
    ones = train.set_column(train.schema.get_field_index("answer"), "answer", pa.array(["yes"] * train.num_rows))
    found = scores_of(ALL, plan, ones, case.tables["test"])
    assert all((scores == 1).all() for scores in found.values())


def test_a_class_that_training_lacks_gets_probability_zero(cases: Callable[[Task], Case]) -> None:
    case = cases("multiclass")
    plan = load_bundle(case.bundle).plan
    train = case.tables["train"]
    found = scores_of(ALL, plan, train.filter(pc.not_equal(train["answer"], "high")), case.tables["test"])
    place = plan.target.classes.index("high")
    assert all((scores[:, place] == 0).all() for scores in found.values())


def test_sampling_is_the_same_for_the_same_seed_and_keeps_the_order() -> None:
    rows = sample_rows(1_000, 100, seed=3)
    assert rows is not None
    assert len(np.unique(rows)) == 100
    assert (np.diff(rows) > 0).all()
    assert (rows == sample_rows(1_000, 100, seed=3)).all()
    assert (rows != sample_rows(1_000, 100, seed=4)).any()
    assert sample_rows(100, 100, seed=3) is None
