"""The rows that a model fails on told from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from raymlp.core.errors import ConfigError, DataError
from raymlp.data.contract_batch import REASON, in_quarantine
from raymlp.model.predictor import Prediction

MOST_FAILURES = 1_000
"""Rows of a chunk that a model may fail on, each with a reason of its own; beyond it the model is at fault, and the job stops."""
Predict = Callable[[pa.Table], Prediction]


def require_apart(kept: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Raise ConfigError when a kept column and an answer have the same name."""
    doubled = next((name for name in kept if name in names), None)
    if doubled is not None:
        raise ConfigError(f"predict.keep has '{doubled}', which is a column of the answers; expected other names. Set predict.prefix.")


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
