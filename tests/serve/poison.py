"""Steps that misbehave. One ends its process when it meets the value 7, as a net with a faulty kernel or a leaking library would; one
takes its time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raymlp.features.custom import CustomStep

DEADLY = 7.0


class Poison(CustomStep):
    """The column as it is, but for one value."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("poison",)

    def batch(self, table: Any) -> list[Any]:
        values = pc.cast(table.column(self.columns[0]), "float64").to_numpy()
        if (values == DEADLY).any():
            os._exit(13)
        return [np.asarray(values)]

    def row(self) -> Callable[[Mapping[str, Any]], list[float]]:
        (column,) = self.columns

        def run(row: Mapping[str, Any]) -> list[float]:
            if row[column] == DEADLY:
                os._exit(13)
            return [float(row[column])]

        return run


class Slow(CustomStep):
    """The column as it is, after so many milliseconds of work a call."""

    milliseconds: float

    @property
    def names(self) -> tuple[str, ...]:
        return ("slow",)

    def batch(self, table: Any) -> list[Any]:
        self._work()
        return [pc.cast(table.column(self.columns[0]), "float64").to_numpy()]

    def row(self) -> Callable[[Mapping[str, Any]], list[float]]:
        (column,) = self.columns

        def run(row: Mapping[str, Any]) -> list[float]:
            self._work()
            return [float(row[column])]

        return run

    def _work(self) -> None:
        end = time.perf_counter() + self.milliseconds / 1e3
        while time.perf_counter() < end:
            pass
