"""K-means as a bundle has it: the centres, and how far a row is from each.

clusters.safetensors: `numeric` float64 (K, N), `categorical` float64 (K, S).

Legend: B rows, K clusters, N numbers, C categories, S ids of all categories together. Rows lie where `raymlp.model.judging.coordinates`
says: a category is a column for each of its ids, which are never made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import cdist

from raymlp.core.errors import BundleError
from raymlp.features.plan import FeaturePlan
from raymlp.model.judging import CATEGORY

FILE = "clusters.safetensors"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClusterScorer:
    """The centres of K clusters, and where the ids of each category begin among the S, (C,)."""

    numeric: Floats
    categorical: Floats
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, centres: Floats, plan: FeaturePlan) -> Self:
        """From the coordinates of the centres, (K, N + S). Raises ValueError when they do not fit the plan."""
        return cls(centres[:, : plan.num_numeric].copy(), centres[:, plan.num_numeric :].copy(), _starts(plan)).checked(plan)

    def checked(self, plan: FeaturePlan) -> Self:
        """The same. Raises ValueError when the centres do not fit the plan."""
        wanted = (plan.num_numeric, sum(plan.cardinalities))
        found = (self.numeric.shape[-1], self.categorical.shape[-1])
        if found != wanted or self.numeric.ndim != 2 or len(self.numeric) != len(self.categorical) or not len(self.numeric):
            raise ValueError(
                f"the centres have {found[0]} numbers and {found[1]} ids; expected {wanted[0]} and {wanted[1]}, of one cluster or more"
            )
        if not (np.isfinite(self.numeric).all() and np.isfinite(self.categorical).all()):
            raise ValueError("a centre holds a number that is none")
        return self

    @cached_property
    def _apart(self) -> Floats:
        """Squared distance, (K,), of each centre's categories from a row that has none."""
        return np.asarray(np.square(self.categorical).sum(axis=1))

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> Floats:
        """Distances, float64 (B, K)."""
        squares = cdist(tensors["numeric"].astype(np.float64), self.numeric, "sqeuclidean")
        ids = tensors["categorical"]
        if ids.shape[1]:
            shared = np.zeros_like(squares)
            for place, start in enumerate(self.starts):
                shared += self.categorical.T[start + ids[:, place]]
            squares += self._apart + ids.shape[1] * CATEGORY**2 - 2 * CATEGORY * shared
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)))

    def save(self, folder: Path) -> None:
        save_file({"numeric": self.numeric, "categorical": self.categorical}, folder / FILE)

    @classmethod
    def load(cls, file: Path, plan: FeaturePlan) -> Self:
        """Raises BundleError when the file cannot be read, or does not fit the plan."""
        try:
            arrays = load_file(file)
            return cls(arrays["numeric"].astype(np.float64), arrays["categorical"].astype(np.float64), _starts(plan)).checked(plan)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise BundleError(f"{file} cannot be read as clusters: {why}. Do not use this bundle.") from None


def _starts(plan: FeaturePlan) -> NDArray[np.int64]:
    return np.cumsum([0, *plan.cardinalities])[:-1].astype(np.int64)
