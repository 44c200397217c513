"""An isolation forest as a bundle has it: the trees as flat arrays, run by `raymlp.model.trees`.

isolation_forest.safetensors, of all trees one after the other: `inner` int64 (T,), the inner nodes of each; `feature` int64 (I,),
`threshold` float32 (I,), `children` int64 (I, 2) as `raymlp.model.trees.Tree` has them; `leaves` float64 (L,), path lengths; `usual`
float64 (1,), the path length of ordinary rows.

A row's score is 2 ** -(mean path length / usual), in (0, 1], higher for what is more unusual (Liu, Ting and Zhou 2008, equation 2).
Legend: B rows, T trees, I inner nodes, L leaves. Features are those of boosted trees: the plan's numbers, then its ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from raymlp.core.errors import BundleError
from raymlp.features.plan import FeaturePlan
from raymlp.model.trees import Forest, Tree, matrix

FILE = "isolation_forest.safetensors"
Floats = NDArray[np.float64]


def usual_path(rows: NDArray[np.int64]) -> Floats:
    """Mean path length of an unsuccessful search in a binary tree of so many rows: 2 (H(n - 1) - (n - 1) / n), with H the harmonic number
    by Euler's constant (equation 1 of the paper)."""
    n = rows.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        many = 2 * (np.log(n - 1) + np.euler_gamma) - 2 * (n - 1) / n
    return np.asarray(np.where(n > 2, many, np.where(n == 2, 1.0, 0.0)))


@dataclass(frozen=True)
class IsolationScorer:
    """Trees whose leaves are path lengths, the features they may read, and the path length of ordinary rows."""

    trees: Sequence[Tree]
    features: int
    usual: float

    @cached_property
    def forest(self) -> Forest:
        """The trees in flat arrays. Raises ValueError when one is none."""
        if not self.trees or not np.isfinite(self.usual) or self.usual <= 0:
            raise ValueError(f"there are {len(self.trees)} trees, of a usual path of {self.usual}; expected some, of a positive one")
        return Forest(self.trees, base=np.zeros(1), features=self.features)

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> Floats:
        """Scores, float64 (B, 1)."""
        return np.asarray(np.exp2(-self.forest(matrix(tensors)) / (len(self.trees) * self.usual)))

    def save(self, folder: Path) -> None:
        trees = self.trees
        arrays = {
            "inner": np.array([len(tree.feature) for tree in trees], dtype=np.int64),
            "feature": np.concatenate([tree.feature for tree in trees]),
            "threshold": np.concatenate([tree.threshold for tree in trees]),
            "children": np.concatenate([tree.children for tree in trees]),
            "leaves": np.concatenate([tree.leaves for tree in trees]),
            "usual": np.array([self.usual]),
        }
        save_file(arrays, folder / FILE)

    @classmethod
    def load(cls, file: Path, plan: FeaturePlan) -> Self:
        """Raises BundleError when the file cannot be read, or does not fit the plan."""
        try:
            arrays = load_file(file)
            scorer = cls(_trees(arrays), features_of(plan), float(arrays["usual"][0]))
            _ = scorer.forest
        except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else error
            raise BundleError(f"{file} cannot be read as an isolation forest: {why}. Do not use this bundle.") from None
        return scorer


def features_of(plan: FeaturePlan) -> int:
    """What the trees may read: numbers and ids."""
    return plan.num_numeric + len(plan.categories)


def tree_of(feature: NDArray[np.int64], threshold: Floats, children: NDArray[np.int64], rows: NDArray[np.int64]) -> Tree:
    """A tree from nodes in an order in which each follows its parent, as scikit-learn keeps them: left and right child (nodes, 2), -1 for
    a leaf, and the rows of each node. A row goes left up to the threshold, of which float32 keeps what tells float32 rows apart."""
    leaf = children[:, 0] < 0
    numbers = np.where(leaf, ~(np.cumsum(leaf) - 1), np.cumsum(~leaf) - 1)
    depth = np.zeros(len(leaf))
    for node in np.flatnonzero(~leaf):
        depth[children[node]] = depth[node] + 1
    exact = threshold[~leaf]
    near = exact.astype(np.float32)
    inner = int((~leaf).sum())
    return Tree(
        feature=feature[~leaf].astype(np.int64),
        threshold=np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near),
        missing_left=np.zeros(inner, dtype=np.bool_),
        children=numbers[children[~leaf]].reshape(inner, 2),
        leaves=depth[leaf] + usual_path(rows[leaf]),
        categories={},
        others_left=False,
    )


def _trees(arrays: Mapping[str, NDArray[Any]]) -> list[Tree]:
    inner = arrays["inner"].astype(np.int64)
    nodes, leaves = np.cumsum(inner)[:-1], np.cumsum(inner + 1)[:-1]
    if (inner < 0).any() or len(arrays["leaves"]) != int((inner + 1).sum()) or len(arrays["feature"]) != int(inner.sum()):
        raise ValueError(f"it has {len(arrays['leaves'])} leaves of {len(inner)} trees; expected one more in each than inner nodes")
    parts = (np.split(arrays[name], nodes) for name in ("feature", "threshold", "children"))
    return [
        Tree(feature, threshold, np.zeros(len(feature), dtype=np.bool_), children, lengths, {}, others_left=False)
        for feature, threshold, children, lengths in zip(*parts, np.split(arrays["leaves"], leaves), strict=True)
    ]
