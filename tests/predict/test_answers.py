"""Answers as columns, and rows that a model fails on told from the others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.core.errors import ConfigError, DataError
from raymlp.data.contract_batch import REASON
from raymlp.model.answers import DIGEST, VERSION, columns_of, names_of
from raymlp.model.predictor import Prediction
from raymlp.predict.answers import MOST_FAILURES, answered, require_apart

AT = [VERSION, DIGEST]


def test_columns_of_each_task() -> None:
    binary = columns_of(Prediction("binary", ("no", "yes"), np.array([0.2, 0.5])), "", "v3", "abc")
    assert binary.to_pydict() == {
        "score": [0.2, 0.5],
        "label": ["no", "yes"],
        "model_version": ["v3", "v3"],
        "model_digest": ["abc", "abc"],
    }
    value = columns_of(Prediction("regression", (), np.array([3.5])), "p_", "v3", "abc")
    assert value.to_pydict() == {"p_score": [3.5], "p_model_version": ["v3"], "p_model_digest": ["abc"]}
    several = columns_of(Prediction("multiclass", ("a", "b", "c"), np.array([[0.1, 0.7, 0.2]])), "", "v3", "abc")
    assert several.slice(0, 1).select(["score", "label", "score_a", "score_b", "score_c"]).to_pylist() == [
        {"score": 0.7, "label": "b", "score_a": 0.1, "score_b": 0.7, "score_c": 0.2}
    ]
    assert tuple(several.column_names) == names_of("multiclass", ("a", "b", "c"), "")


def test_columns_of_tasks_without_a_target() -> None:
    clusters = columns_of(Prediction("clustering", (), np.array([[3.0, 0.5], [1.0, 4.0]])), "", "v3", "abc").drop_columns(AT)
    assert clusters.to_pydict() == {"cluster": [1, 0], "distance": [0.5, 1.0]}
    unusual = columns_of(Prediction("anomaly", (), np.array([0.4, 0.7]), threshold=0.6), "", "v3", "abc").drop_columns(AT)
    assert unusual.to_pydict() == {"score": [0.4, 0.7], "flagged": [False, True]}
    texts = columns_of(Prediction("language", (), np.array([[-4.0, 2.0, 1.0], [0.0, 0.0, 0.0]])), "", "v3", "abc").drop_columns(AT)
    assert texts.to_pydict() == {
        "log_likelihood": [-4.0, 0.0],
        "tokens": [2, 0],
        "token_loss": [2.0, None],
        "perplexity": [pytest.approx(np.exp(2.0)), None],
    }
    for task, table in (("clustering", clusters), ("anomaly", unusual), ("language", texts)):
        assert (*table.column_names, *AT) == names_of(task, (), "")


def test_a_threshold_outlives_rows_without_an_answer() -> None:
    def predict(part: pa.Table) -> Prediction:
        return Prediction("anomaly", (), part.column("x").to_numpy(), threshold=0.9)

    _, prediction, _ = answered(predict, pa.table({"x": [0.95, np.nan, 0.6]}))
    assert prediction is not None
    assert prediction.rows() == [{"score": 0.95, "flagged": True}, {"score": 0.6, "flagged": False}]


def test_a_kept_column_with_the_name_of_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"predict.keep has 'label'.*predict.prefix"):
        require_apart(("id", "label"), names_of("binary", ("no", "yes"), ""))
    require_apart(("id", "label"), names_of("binary", ("no", "yes"), "model_"))


@given(st.sets(st.integers(0, 59)), st.sets(st.integers(0, 59)))
@settings(max_examples=60)
def test_rows_that_fail_are_told_from_all_others_in_their_order(fails: set[int], nans: set[int]) -> None:
    rows = pa.table({"x": range(60)})

    def predict(part: pa.Table) -> Prediction:
        values = part.column("x").to_numpy()
        if fails & set(values.tolist()):
            raise ValueError("a row is odd\nwith more words")
        return Prediction("regression", (), np.where(np.isin(values, list(nans)), np.nan, values * 2.0))

    good, prediction, broken = answered(predict, rows)
    expected = [x for x in range(60) if x not in fails | nans]
    assert good.column("x").to_pylist() == expected
    assert (prediction.scores.tolist() if prediction else []) == [x * 2.0 for x in expected]
    reasons = dict(zip(broken.column("x").to_pylist(), broken.column(REASON).to_pylist(), strict=True))
    assert set(reasons) == {str(x) for x in fails | nans}
    assert {reasons[str(x)] for x in fails} <= {"the model fails: ValueError: a row is odd"}
    assert {reasons[str(x)] for x in nans - fails} <= {"the model's answer is not a number"}


def test_a_model_that_fails_on_everything_stops_the_job() -> None:
    def predict(part: pa.Table) -> Prediction:
        raise RuntimeError("no weights")

    with pytest.raises(DataError, match=rf"fails on more than {MOST_FAILURES:,} of 3,000 rows.*RuntimeError: no weights"):
        answered(predict, pa.table({"x": range(3_000)}))
