"""Boosted trees in the file that XGBoost or LightGBM wrote, run as flat arrays.

The libraries are not needed to predict, and neither gets to read a file that came from elsewhere: at a damaged one both end the whole
process, where `TreeScorer` says what is wrong with it. See docs/decisions/0020-boosted-trees.md.

Legend: B rows, F features (the plan's N numbers, then its C ids), O outputs, T trees, I inner nodes, L leaves, W words of 8 categories.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from raymlp.core.errors import BundleError
from raymlp.core.records import Task
from raymlp.features.plan import FeaturePlan

Library = Literal["xgboost", "lightgbm"]
FILES: dict[Library, str] = {"xgboost": "xgboost.json", "lightgbm": "lightgbm.txt"}
OBJECTIVES: dict[Library, dict[Task, str]] = {
    "xgboost": {"binary": "binary:logistic", "multiclass": "multi:softprob", "regression": "reg:squarederror"},
    "lightgbm": {"binary": "binary", "multiclass": "multiclass", "regression": "regression"},
}
FEW_ROWS = 512
"""Rows up to which each is taken alone through all trees."""
IN_TREE, MISSING_NAN = 1, 2
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def matrix(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """What trees see: float32 (B, F), a missing number is NaN."""
    return np.concatenate([tensors["numeric"], tensors["categorical"].astype(np.float32)], axis=1)


@dataclass(frozen=True)
class Tree:
    """One tree as its file has it: inner nodes before leaves. A child is an inner node from 0, or ~leaf, as LightGBM writes it.

    A number up to `threshold` goes left, a missing one where `missing_left` says. A category goes left when it is in `categories` of
    its node, or, with `others_left`, when it is not.
    """

    feature: Ints
    threshold: NDArray[np.float32]
    missing_left: Flags
    children: Ints
    """(I, 2)."""
    leaves: Floats
    categories: Mapping[int, Sequence[int]]
    others_left: bool


class Forest:
    """All trees in flat arrays. Raises ValueError when a tree is none."""

    def __init__(self, trees: Sequence[Tree], *, base: Floats, features: int) -> None:
        self.base = base
        """Outputs before the first tree, (O,)."""
        for place, tree in enumerate(trees):
            _check(tree, f"tree {place}", features)
        inner = np.array([len(tree.feature) for tree in trees], dtype=np.int64)
        leaves = np.array([len(tree.leaves) for tree in trees], dtype=np.int64)
        num_inner = int(inner.sum())
        first_inner, first_leaf = np.cumsum(inner) - inner, np.cumsum(leaves) - leaves + num_inner
        self.roots = np.where(inner > 0, first_inner, first_leaf)
        moved = [
            np.where(tree.children >= 0, tree.children + at, ~tree.children + leaf)
            for tree, at, leaf in zip(trees, first_inner, first_leaf, strict=True)
        ]
        self.children = np.ascontiguousarray(_joined(moved, np.int64).reshape(-1, 2).T)
        """Left and right node, (2, I)."""
        self.feature = _joined([tree.feature for tree in trees], np.int64)
        self.threshold = _joined([tree.threshold for tree in trees], np.float32)
        self.missing_left = _joined([tree.missing_left for tree in trees], np.bool_)
        self.leaves = _joined([tree.leaves for tree in trees], np.float64)
        self.places = np.arange(num_inner, num_inner + len(self.leaves))
        """Nodes that are leaves: they follow the inner ones."""
        found = [
            (at + node, chosen, tree.others_left)
            for tree, at in zip(trees, first_inner, strict=True)
            for node, chosen in tree.categories.items()
        ]
        self.category_nodes = np.array([node for node, _, _ in found], dtype=np.int64)
        self.category_features, self.category_rows = self.feature[self.category_nodes], np.arange(len(found))
        self.category_places = np.full(num_inner, -1, dtype=np.int64)
        self.category_places[self.category_nodes] = self.category_rows
        self.limit = max((max(chosen, default=0) + 1 for _, chosen, _ in found), default=0)
        """Categories from here on are in no node's list."""
        bits = np.zeros((len(found), self.limit + 2), dtype=np.bool_)
        for row, (node, chosen, others_left) in zip(bits, found, strict=True):
            row[list(chosen)] = True
            row ^= others_left
            row[-1] = self.missing_left[node]
        self.left_bits = np.packbits(bits, axis=1, bitorder="little")
        """Whether a category goes left at a category node, (., W): those below the limit, all others, and a missing one."""
        self.depth = self._depth()

    def _depth(self) -> int:
        depth, level = 0, self.roots[self.roots < len(self.feature)]
        while len(level):
            level = self.children[:, level].ravel()
            level = level[level < len(self.feature)]
            depth += 1
        return depth

    def __call__(self, x: NDArray[np.float32]) -> Floats:
        """Outputs float64 (B, O) of `x` float32 (B, F)."""
        outputs = len(self.base)
        missing: Flags = np.isnan(x)
        ids = np.where(missing, self.limit + 1, np.where((x < 0) | (x >= self.limit), self.limit, x)).astype(np.int64)
        if len(x) <= FEW_ROWS:
            gaps = np.asarray(missing.any(axis=1))
            found = np.array([self._row(*row) for row in zip(x, ids, gaps, strict=True)]).reshape(len(x), -1, outputs)
            return np.asarray(found.sum(axis=1) + self.base)
        total = np.zeros((len(x), outputs))
        columns, id_columns = np.ascontiguousarray(x.T), np.ascontiguousarray(ids.T)
        for place, root in enumerate(self.roots):
            self._add(columns, id_columns, int(root), total[:, place % outputs])
        return total + self.base

    def _row(self, x: NDArray[np.float32], ids: Ints, has_missing: bool) -> Floats:
        """The leaf of each tree for one row, (T,): every node decides, then all trees are walked at once."""
        values = x[self.feature]
        left = values <= self.threshold
        if has_missing:
            left |= np.isnan(values) & self.missing_left
        if len(self.category_nodes):
            chosen = ids[self.category_features]
            left[self.category_nodes] = self.left_bits[self.category_rows, chosen >> 3] >> (chosen & 7).astype(np.uint8) & 1
        following = np.concatenate([np.where(left, self.children[0], self.children[1]), self.places])
        node = self.roots
        for _ in range(self.depth):
            node = following[node]
        return np.asarray(self.leaves[node - len(self.feature)])

    def _add(self, columns: NDArray[np.float32], ids: Ints, root: int, total: Floats) -> None:
        """Add a tree's leaves to `total` (B,), its rows divided node by node."""
        num_inner = len(self.feature)
        waiting: list[tuple[int, Ints]] = [(root, np.arange(len(total)))]
        while waiting:
            node, rows = waiting.pop()
            if node >= num_inner:
                total[rows] += self.leaves[node - num_inner]
                continue
            feature, place = self.feature[node], self.category_places[node]
            if place >= 0:
                left = np.unpackbits(self.left_bits[place], bitorder="little").astype(np.bool_)[ids[feature][rows]]
            else:
                values = columns[feature][rows]
                left = values <= self.threshold[node]
                if self.missing_left[node]:
                    left |= np.isnan(values)
            for side, child in zip((rows[left], rows[~left]), self.children[:, node], strict=True):
                if len(side):
                    waiting.append((int(child), side))


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _check(tree: Tree, name: str, features: int) -> None:
    """Every inner node and leaf is the child of one earlier node; features, thresholds and leaves are what they can be."""
    inner, leaves = len(tree.feature), len(tree.leaves)
    lengths = {len(tree.threshold), len(tree.missing_left), len(tree.children)}
    if lengths != {inner} or leaves != inner + 1:
        raise ValueError(f"{name} has {inner} inner nodes and {leaves} leaves; expected one leaf more, and arrays of one length")
    children = tree.children.ravel()
    order = np.where(children >= 0, children, ~children + inner)
    if (
        not np.array_equal(np.sort(order), np.arange(1, inner + leaves) if inner else [])
        or ((children >= 0) & (children <= np.repeat(np.arange(inner), 2))).any()
    ):
        raise ValueError(f"the nodes of {name} are no tree; expected each but the first to follow one earlier node")
    if inner and not (tree.feature.min() >= 0 and tree.feature.max() < features):
        raise ValueError(f"{name} reads feature {tree.feature.max()}; expected 0 to {features - 1}")
    if not np.isfinite(tree.leaves).all() or np.isnan(tree.threshold).any():
        raise ValueError(f"{name} holds a number that is none")
    if any(min(chosen, default=0) < 0 or max(chosen, default=0) >= 1 << 24 for chosen in tree.categories.values()):
        raise ValueError(f"{name} holds a category outside 0 to {1 << 24}")


# ---------------------------------------------------------------------- the scorer


@dataclass(frozen=True)
class TreeScorer:
    """Boosted trees and the text of their file."""

    library: Library
    text: str
    forest: Forest

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> Floats:
        return self.forest(matrix(tensors))

    def save(self, folder: Path) -> None:
        (folder / FILES[self.library]).write_text(self.text)

    @classmethod
    def load(cls, library: Library, file: Path, plan: FeaturePlan) -> Self:
        """From the file of a bundle. Raises BundleError as `read`, and when the file is no text."""
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{file} cannot be read: {error}. Do not use this bundle.") from None
        return cls.read(library, text, plan, source=file)

    @classmethod
    def read(cls, library: Library, text: str, plan: FeaturePlan, *, source: Path | str) -> Self:
        """From the text that the library wrote. Raises BundleError, which names the `source`, when it is no such text, or the trees do not
        fit the plan."""
        target = plan.target
        features = plan.num_numeric + len(plan.categories)
        read = _xgboost if library == "xgboost" else _lightgbm
        try:
            forest = read(text, target.task, features, target.outputs)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
            raise BundleError(f"{source} cannot be read as trees of {library}: {why}. Do not use this bundle.") from None
        return cls(library, text, forest)


def _agree(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"{what} is {found}; expected {expected}")


def _xgboost(text: str, task: Task, features: int, outputs: int) -> Forest:
    """From XGBoost's JSON. https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html has its schema."""
    learner = json.loads(text)["learner"]
    facts, booster = learner["learner_model_param"], learner["gradient_booster"]
    _agree("the objective", learner["objective"]["name"], OBJECTIVES["xgboost"][task])
    _agree("the booster", booster["name"], "gbtree")
    _agree("the number of features", int(facts["num_feature"]), features)
    _agree("the number of outputs", max(1, int(facts["num_class"])), outputs)
    model = booster["model"]
    _agree("the number of trees", len(model["trees"]), int(model["gbtree_model_param"]["num_trees"]))
    _agree("the order of the trees", model["tree_info"], [place % outputs for place in range(len(model["trees"]))])
    base = np.array([float(part) for part in facts["base_score"].strip("[]").split(",")])
    if task == "binary":
        base = np.array([math.log(share / (1 - share)) for share in base])
    return Forest([_xgboost_tree(tree) for tree in model["trees"]], base=np.broadcast_to(base, outputs).copy(), features=features)


def _xgboost_tree(tree: Mapping[str, Any]) -> Tree:
    """XGBoost keeps inner nodes and leaves in one array, and a cut node as one that nothing leads to."""
    _agree("the size of a leaf", int(tree["tree_param"]["size_leaf_vector"]) in (0, 1), True)
    left, right = (np.array(tree[name], dtype=np.int64) for name in ("left_children", "right_children"))
    condition = np.array(tree["split_conditions"], dtype=np.float32)
    reached = [0]
    for node in reached:
        if left[node] >= 0:
            reached += (int(left[node]), int(right[node]))
        if len(reached) > len(left):
            raise ValueError("the nodes of a tree are none: expected each to follow one earlier node")
    nodes = np.sort(reached)
    inner, leaves = nodes[left[nodes] >= 0], nodes[left[nodes] < 0]
    numbers = np.zeros(len(left), dtype=np.int64)
    numbers[inner], numbers[leaves] = np.arange(len(inner)), ~np.arange(len(leaves))
    all_categories = tree["categories"]
    parts = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    lists = {int(node): all_categories[start : start + size] for node, start, size in parts}
    is_category = np.array(tree["split_type"], dtype=np.int64) == IN_TREE
    return Tree(
        feature=np.array(tree["split_indices"], dtype=np.int64)[inner],
        threshold=np.nextafter(condition[inner], np.float32(-np.inf)),
        missing_left=np.array(tree["default_left"], dtype=np.bool_)[inner],
        children=numbers[np.stack([left[inner], right[inner]], axis=1)],
        leaves=condition[leaves].astype(np.float64),
        categories={int(numbers[node]): lists[int(node)] for node in inner[is_category[inner]]},
        others_left=True,
    )


def _lightgbm(text: str, task: Task, features: int, outputs: int) -> Forest:
    """From LightGBM's text, of which there is no description but `src/io/gbdt_model_text.cpp` and `src/io/tree.cpp` in its sources."""
    body, ended, _ = text.partition("\nend of trees\n")
    if not ended:
        raise ValueError("it ends before 'end of trees'")
    header, *blocks = (_fields(lines) for lines in _blocks(body))
    _agree("the objective", header["objective"].split()[0], OBJECTIVES["lightgbm"][task])
    _agree("the number of features", int(header["max_feature_idx"]) + 1, features)
    _agree("the number of outputs", int(header["num_tree_per_iteration"]), outputs)
    _agree("the number of trees", len(blocks), len(header.get("tree_sizes", "").split()))
    if "average_output" in header or (task == "binary" and "sigmoid:1" not in header["objective"].split()):
        raise ValueError("its outputs are no plain sums of logits")
    return Forest([_lightgbm_tree(block) for block in blocks], base=np.zeros(outputs), features=features)


def _blocks(body: str) -> Iterator[list[str]]:
    """The lines before the first tree, then those of each tree."""
    block: list[str] = []
    for line in body.splitlines():
        if line.startswith("Tree="):
            yield block
            block = []
        block.append(line)
    yield block


def _fields(lines: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in lines) if name}


def _lightgbm_tree(fields: Mapping[str, str]) -> Tree:
    def numbers(name: str, dtype: Any = np.int64) -> NDArray[Any]:
        return np.array(fields.get(name, "").split(), dtype=dtype)

    _agree("is_linear", fields["is_linear"], "0")
    leaves = numbers("leaf_value", np.float64)
    _agree("the number of leaves", len(leaves), int(fields["num_leaves"]))
    kinds, limits = numbers("decision_type"), numbers("threshold", np.float64)
    missing = kinds >> 2 & 3
    if not np.isin(missing, (0, MISSING_NAN)).all():
        raise ValueError("it takes 0 as missing; expected only NaN")
    is_category = (kinds & 1).astype(np.bool_)
    default = np.where(missing == MISSING_NAN, kinds & 2, limits >= 0).astype(np.bool_)  # without missing values in training, NaN is 0
    bounds, words = numbers("cat_boundaries"), numbers("cat_threshold", np.uint32)
    lists = {}
    for node in np.flatnonzero(is_category):
        start, stop = bounds[int(limits[node])], bounds[int(limits[node]) + 1]
        lists[int(node)] = np.flatnonzero(np.unpackbits(words[start:stop].astype("<u4").view(np.uint8), bitorder="little")).tolist()
    return Tree(
        feature=numbers("split_feature"),
        threshold=_down(limits),
        missing_left=default & ~is_category,
        children=np.stack([numbers("left_child"), numbers("right_child")], axis=1),
        leaves=leaves,
        categories=lists,
        others_left=False,
    )


def _down(limits: Floats) -> NDArray[np.float32]:
    """The largest float32 up to each: a float32 is below the one exactly when it is below the other."""
    with np.errstate(over="ignore"):
        near = limits.astype(np.float32)
    return np.where(near > limits, np.nextafter(near, np.float32(-np.inf)), near)
