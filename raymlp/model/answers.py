"""Answers as columns of Arrow: what batch prediction writes, and what the endpoint sends."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raymlp.core import language
from raymlp.core.records import Task
from raymlp.model.predictor import Prediction

VERSION, DIGEST = "model_version", "model_digest"
COLUMNS: dict[Task, tuple[str, ...]] = {
    "binary": ("score", "label"),
    "multiclass": ("score", "label"),
    "regression": ("score",),
    "clustering": ("cluster", "distance"),
    "anomaly": ("score", "flagged"),
    "language": ("log_likelihood", "tokens", "token_loss", "perplexity"),
}


def names_of(task: Task, classes: tuple[str, ...], prefix: str) -> tuple[str, ...]:
    """Columns that answers have, by task: `score` (float64: probability of the positive class, of the label, the value, or how unusual a
    row is), `label` (text, where there are classes), `score_CLASS` for each of several classes, `flagged`; `cluster` and `distance`;
    `log_likelihood`, `tokens`, `token_loss` and `perplexity` of a text; version and digest of the model."""
    found = [*COLUMNS[task], *(f"score_{name}" for name in classes if task == "multiclass")]
    return tuple(prefix + name for name in (*found, VERSION, DIGEST))


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
