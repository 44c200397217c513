"""Steps as a user would write them: sound ones, and one for each mistake."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raymlp.features.custom import CustomStep


class Ratio(CustomStep):
    """a / (b + shift), minus the mean over the sample."""

    shift: float = 1.0
    mean: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        return ("ratio",)

    def fitted(self, profile: Any, sample: Any) -> Any:
        return self.model_copy(update={"mean": float(np.nanmean(self._ratio(sample)))})

    def batch(self, table: Any) -> list[Any]:
        return [self._ratio(table) - self.mean]

    def row(self) -> Any:
        (a, b), shift, mean = self.columns, self.shift, self.mean

        def run(row: Any) -> list[float]:
            if row[a] is None or row[b] is None or row[b] + shift == 0:
                return [math.nan]
            return [row[a] / (row[b] + shift) - mean]

        return run

    def _ratio(self, table: Any) -> Any:
        a, b = (pc.cast(table.column(name), "float64").to_numpy() for name in self.columns)
        with np.errstate(all="ignore"):
            return np.where(b + self.shift == 0, np.nan, a / (b + self.shift))


class Length(CustomStep):
    """Length of a text and whether it is there, without a function for a row."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("length", "there")

    def batch(self, table: Any) -> list[Any]:
        column = table.column(self.columns[0])
        return [pc.cast(pc.utf8_length(column), "float64").to_numpy(), pc.is_valid(column).to_numpy().astype(np.float32)]


class Disagrees(Ratio):
    def row(self) -> Any:
        return lambda row: [0.5]


class TooMany(Ratio):
    def batch(self, table: Any) -> list[Any]:
        return super().batch(table) * 2


class Undeclared(CustomStep):
    @property
    def names(self) -> tuple[str, ...]:
        return ("n",)

    def batch(self, table: Any) -> list[Any]:
        return [table.column("n").to_numpy()]


class NotPlain(Ratio):
    def fitted(self, profile: Any, sample: Any) -> Any:
        return self.model_copy(update={"mean": math.inf})


class Unfinished(CustomStep):
    pass


class NoStep:
    pass
