"""The answer column as numbers, and back.

Binary, and the label of anomalies: 1.0 for positive, else 0.0. Multiclass: class index. Regression: (value - mean) / scale for
training, the value itself for scoring. A task that learns from the rows alone has no answer: every row may be learned from.
Legend: N rows, K classes.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.problem import Problem
from raymlp.config.section import Section
from raymlp.core.errors import ConfigError, DataError, nearest
from raymlp.core.records import Task, needs_target
from raymlp.data.profile import ColumnProfile, Profile, to_float, to_text

MAX_CLASSES = 1_000


class Target(Section):
    """How the answer is read from its column, where there is one."""

    column: str | None = None
    """Column that holds the answer; None where there is none."""
    task: Task
    """Kind of answer."""
    positive_above: float | None = None
    """Binary and anomaly: positive above this number."""
    classes: tuple[str, ...] = ()
    """Binary and anomaly: (negative, positive) labels. Multiclass: labels in the order of their index."""
    mean: float = 0.0
    """Regression: mean over the training rows."""
    scale: float = 1.0
    """Regression: standard deviation over the training rows."""

    @classmethod
    def fit(cls, problem: Problem, profile: Profile) -> Self:
        """Read classes and scale from the profile of the training split; of a label, which may have one class there, the positive one.

        Raises ConfigError when the positive class is not given and cannot be guessed, DataError when there is
        nothing to learn (one class, a constant) or the column is missing.
        """
        name, task = problem.answer, problem.task
        if name is None:
            return cls(task=task)
        key = "problem.target" if needs_target(task) else "problem.label"
        if name not in profile.columns:
            raise DataError(f"the data has no column '{name}'; expected it there. Set {key}.{nearest(name, profile.columns)}")
        column = profile.columns[name]
        if not needs_target(task):
            if problem.positive_above is None:
                return cls(column=name, task=task, classes=(f"not {problem.positive_class}", str(problem.positive_class)))
            if not column.is_number:
                raise ConfigError(f"problem.positive_above needs numbers; '{name}' holds {column.type} values.")
            above = f"> {problem.positive_above:g}"
            return cls(column=name, task=task, positive_above=problem.positive_above, classes=(f"not {above}", above))
        if task == "regression":
            if not column.is_number:
                raise ConfigError(f"problem.target '{name}' holds {column.type} values; regression expects numbers. Set problem.task.")
            if not column.std:
                raise DataError(f"problem.target '{name}' is constant ({column.mean:g}) in training; expected several values.")
            return cls(column=name, task="regression", mean=column.mean, scale=column.std)
        if problem.positive_above is not None:
            if not column.is_number:
                raise ConfigError(f"problem.positive_above needs numbers; '{name}' holds {column.type} values.")
            if column.values and (column.minimum > problem.positive_above or column.maximum <= problem.positive_above):
                raise DataError(
                    f"problem.target '{name}' lies on one side of {problem.positive_above:g} in training "
                    f"({column.minimum:g} to {column.maximum:g}); expected both classes. Set problem.positive_above."
                )
            above = f"> {problem.positive_above:g}"
            return cls(column=name, task="binary", positive_above=problem.positive_above, classes=(f"not {above}", above))
        if column.type == "float":
            raise ConfigError(
                f"problem.target '{name}' holds decimal numbers; expected classes. Set problem.task=regression or problem.positive_above."
            )
        classes = sorted(column.counts())
        if len(classes) < 2:
            found = f"one class ('{classes[0]}')" if classes else "no value"
            raise DataError(f"problem.target '{name}' has {found} in training; expected two or more. Check the source and the split.")
        if task == "multiclass":
            if len(classes) > MAX_CLASSES:
                raise DataError(f"problem.target '{name}' has {len(classes)} classes; expected at most {MAX_CLASSES}.")
            return cls(column=name, task="multiclass", classes=tuple(classes))
        positive = problem.positive_class
        if positive is None:
            positive = next((guess for guess in ("true", "1", "yes") if guess in classes), None)
        if positive is None:
            raise ConfigError(f"problem.positive_class is not set; expected one of {', '.join(classes[:20])}. Set problem.positive_class.")
        if positive not in classes:
            raise ConfigError(
                f"problem.positive_class is '{positive}'; expected one of {', '.join(classes[:20])}.{nearest(positive, classes)}"
            )
        others = [label for label in classes if label != positive]
        negative = others[0] if len(others) == 1 else f"not {positive}"
        return cls(column=name, task="binary", classes=(negative, positive))

    @property
    def outputs(self) -> int:
        """Numbers the net gives a row."""
        if self.task == "language":
            return 3
        return len(self.classes) if self.task == "multiclass" else 1

    def class_shares(self, column: ColumnProfile) -> tuple[float, ...]:
        """Share of each of the K classes (two of them: negative, positive) in a profile of the column, which has values; empty without.

        Exact for text, booleans and integers of few values; else as near as the profile's quantiles.
        """
        if not self.classes:
            return ()
        if self.positive_above is not None:
            negative = column.share_up_to(self.positive_above)
            return (negative, 1 - negative)
        counts = column.counts()
        if self.task != "multiclass":
            positive = counts.get(self.classes[1], 0) / column.values
            return (1 - positive, positive)
        return tuple(counts.get(label, 0) / column.values for label in self.classes)

    def read(self, column: pa.ChunkedArray) -> NDArray[np.float64]:
        """Answers for scoring, float64 (N,): 0/1, class index, or value. NaN where there is none, -1 for a class unseen in training."""
        if self.task == "regression":
            return to_float(column)
        if self.positive_above is not None:
            values = to_float(column)
            return np.where(np.isnan(values), np.nan, (values > self.positive_above).astype(float))
        texts = to_text(column)
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        if self.task != "multiclass":
            hit = pc.equal(texts, self.classes[1]).fill_null(False).to_numpy(zero_copy_only=False).astype(float)
            return np.where(missing, np.nan, hit)
        index = pc.index_in(texts, value_set=pa.array(self.classes, pa.string())).fill_null(-1)
        return np.where(missing, np.nan, index.to_numpy(zero_copy_only=False).astype(float))

    def in_unit(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """A scorer's outputs (N, O) as (N,) or, where a row has several, (N, O), in the unit of the answer."""
        return outputs if self.task in ("multiclass", "clustering", "language") else outputs[:, 0] * self.scale + self.mean

    def answers(self, table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What `read` gives of the rows of a table, float64 (N,), and which rows are of use, (N,): those with an answer that training
        knew, or all where the task needs none. NaN without a column."""
        y = np.full(table.num_rows, np.nan) if self.column is None else self.read(table.column(self.column))
        if not needs_target(self.task):
            return y, np.ones(len(y), dtype=np.bool_)
        return y, np.isfinite(y) & ((y >= 0) | (self.task == "regression"))

    def scaled(self, y: NDArray[np.float64]) -> NDArray[np.float32]:
        """Answers (N,) as training takes them; regression is standardised."""
        return ((y - self.mean) / self.scale if self.task == "regression" else y).astype(np.float32)

    @property
    def columns(self) -> tuple[str, ...]:
        """The column to be read, or none."""
        return () if self.column is None else (self.column,)
