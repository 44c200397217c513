"""Answers as columns, and the rows that a model fails on told from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from raymlp.core import language
from raymlp.core.errors import ConfigError, DataError
from raymlp.core.records import Task
from raymlp.data.contract_batch import REASON, in_quarantine
from raymlp.model.predictor import Prediction

VERSION, DIGEST = "model_version", "model_digest"
MOST_FAILURES = 1_000
"""Rows of a chunk that a model may fail on, each with a reason of its own; beyond it the model is at fault, and the job stops."""
COLUMNS: dict[Task, tuple[str, ...]] = {
    "binary": ("score", "label"),
    "multiclass": ("score", "label"),
    "regression": ("score",),
    "clustering": ("cluster", "distance"),
    "anomaly": ("score", "flagged"),
    "language": ("log_likelihood", "tokens", "token_loss", "perplexity"),
}
Predict = Callable[[pa.Table], Prediction]


def names_of(task: Task, classes: tuple[str, ...], prefix: str) -> tuple[str, ...]:
    """Columns that answers have, by task: `score` (float64: probability of the positive class, of the label, the value, or how unusual a
    row is), `label` (text, where there are classes), `score_CLASS` for each of several classes, `flagged`; `cluster` and `distance`;
    `log_likelihood`, `tokens`, `token_loss` and `perplexity` of a text; version and digest of the model."""
    found = [*COLUMNS[task], *(f"score_{name}" for name in classes if task == "multiclass")]
    return tuple(prefix + name for name in (*found, VERSION, DIGEST))


def require_apart(kept: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Raise ConfigError when a kept column and an answer have the same name."""
    doubled = next((name for name in kept if name in names), None)
    if doubled is not None:
        raise ConfigError(f"predict.keep has '{doubled}', which is a column of the answers; expected other names. Set predict.prefix.")


def columns_of(prediction: Prediction, prefix: str, version: str, digest: str) -> pa.Table:
    """The answers as the columns of `names_of`."""
    columns = _values(prediction)
    columns += [pa.repeat(pa.scalar(text), len(prediction)) for text in (version, digest)]
    return pa.table(columns, names=list(names_of(prediction.task, prediction.classes, prefix)))


def _values(prediction: Prediction) -> list[pa.Array]:
    scores, task = prediction.scores, prediction.task
    if task == "clustering":
        return [pa.array(scores.argmin(axis=1)), pa.array(scores.min(axis=1))]
    if task == "language":
        told = language.told(scores)
        return [pa.array(told[name], from_pandas=True) for name in COLUMNS[task]]
    if task == "anomaly":
        return [pa.array(scores), pa.array(scores >= prediction.threshold)]
    columns = [pa.array(scores if scores.ndim == 1 else scores.max(axis=1))]
    if prediction.labels is not None:
        columns.append(pa.array(prediction.labels, pa.string()))
    if scores.ndim == 2:
        columns += [pa.array(np.ascontiguousarray(scores[:, place])) for place in range(scores.shape[1])]
    return columns


def answered(predict: Predict, rows: pa.Table) -> tuple[pa.Table, Prediction | None, pa.Table]:
    """The rows that the model answers with numbers, their answers (None for no rows), and the other rows as text with the reason.

    Where the model fails, halves are tried until the rows that make it fail are alone. Raises DataError when there are too many.
    """
    good: list[tuple[pa.Table, Prediction]] = []
    failed: list[tuple[pa.Table, str]] = []
    waiting = [rows] if rows.num_rows else []
    while waiting:
        part = waiting.pop()
        try:
            good.append((part, predict(part)))
        except Exception as error:
            if part.num_rows > 1:
                half = part.num_rows // 2
                waiting += [part.slice(half), part.slice(0, half)]
                continue
            failed.append((part, f"the model fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}"))
            if len(failed) > MOST_FAILURES:
                raise DataError(
                    f"the model fails on more than {MOST_FAILURES:,} of {rows.num_rows:,} rows; expected it to answer. The first: "
                    f"{failed[0][1]}. Look at the bundle."
                ) from error
    told = [_told(part, reason) for part, reason in failed]
    answers: list[tuple[pa.Table, Prediction]] = []
    for part, prediction in good:
        numbers = np.isfinite(prediction.scores.reshape(len(prediction), -1)).all(axis=1)
        if numbers.all():
            answers.append((part, prediction))
            continue
        told.append(_told(part.filter(pa.array(~numbers)), "the model's answer is not a number"))
        kept = replace(prediction, scores=prediction.scores[numbers])
        answers.append((part.filter(pa.array(numbers)), kept))
    broken = pa.concat_tables(told) if told else _told(rows.slice(0, 0), "")
    if not answers:
        return rows.slice(0, 0), None, broken
    whole = replace(answers[0][1], scores=np.concatenate([prediction.scores for _, prediction in answers]))
    return pa.concat_tables([part for part, _ in answers]), whole, broken


def _told(rows: pa.Table, reason: str) -> pa.Table:
    text = {name: in_quarantine(rows.column(name)) for name in rows.column_names}
    return pa.table({**text, REASON: pa.repeat(pa.scalar(reason), rows.num_rows)})
