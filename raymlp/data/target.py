"""The answer column as numbers, and back.

Binary: 1.0 for positive, else 0.0. Multiclass: class index. Regression: (value - mean) / scale for training,
the value itself for scoring.
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
from raymlp.core.records import Task
from raymlp.data.profile import ColumnProfile, Profile, to_float, to_text

MAX_CLASSES = 1_000


class Target(Section):
    """How the answer is read from its column."""

    column: str
    """Column that holds the answer."""
    task: Task
    """Kind of answer."""
    positive_above: float | None = None
    """Binary: positive above this number."""
    classes: tuple[str, ...] = ()
    """Binary: (negative, positive) labels. Multiclass: labels in the order of their index."""
    mean: float = 0.0
    """Regression: mean over the training rows."""
    scale: float = 1.0
    """Regression: standard deviation over the training rows."""

    @classmethod
    def fit(cls, problem: Problem, profile: Profile) -> Self:
        """Read classes and scale from the profile of the training split.

        Raises ConfigError when the positive class is not given and cannot be guessed, DataError when there is
        nothing to learn (one class, a constant) or the column is missing.
        """
        name = problem.target
        if name not in profile.columns:
            raise DataError(f"the data has no column '{name}'; expected the target. Set problem.target.{nearest(name, profile.columns)}")
        column = profile.columns[name]
        if problem.task == "regression":
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
        if problem.task == "multiclass":
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
        return len(self.classes) if self.task == "multiclass" else 1

    def class_shares(self, column: ColumnProfile) -> tuple[float, ...]:
        """Share of each of the K classes (binary: negative, positive) in a profile of the column, which has values. None for regression.

        Exact for text, booleans and integers of few values; else as near as the profile's quantiles.
        """
        if self.task == "regression":
            return ()
        if self.positive_above is not None:
            negative = column.share_up_to(self.positive_above)
            return (negative, 1 - negative)
        counts = column.counts()
        if self.task == "binary":
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
        if self.task == "binary":
            hit = pc.equal(texts, self.classes[1]).fill_null(False).to_numpy(zero_copy_only=False).astype(float)
            return np.where(missing, np.nan, hit)
        index = pc.index_in(texts, value_set=pa.array(self.classes, pa.string())).fill_null(-1)
        return np.where(missing, np.nan, index.to_numpy(zero_copy_only=False).astype(float))

    def encode(self, column: pa.ChunkedArray) -> NDArray[np.float32]:
        """Answers for training, float32 (N,); regression is standardised."""
        values = self.read(column)
        return ((values - self.mean) / self.scale if self.task == "regression" else values).astype(np.float32)
