"""A step that ends its process when it meets the value 7: what a net with a faulty kernel or a leaking library does to a replica."""

from __future__ import annotations

import os
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
