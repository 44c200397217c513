"""Target encoding: the one thing a feature plan needs the answers for, in one further pass over the training split.

A category becomes the smoothed mean of its rows' answers, (sum + m prior) / (rows + m), with m rows of the overall mean
mixed in (Micci-Barreca 2001). A training row must not see its own answer: it gets the mean over the other folds. Folds
come from a row's file and place, so that every pass gives a row the same one.

Legend: F folds, I ids, K outputs (classes, or 1), B rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.data import parquet
from raymlp.data.target import Target
from raymlp.features.ids import IdStep
from raymlp.features.steps import Lookup
from raymlp.runtime.store import place_of

BATCH_ROWS = 65_536
Floats = NDArray[np.float64]


def folds_of(file: str, start: int, rows: int) -> NDArray[np.int64]:
    """A number for each row of a file from `start` on, int64 (rows,), evenly spread: its remainder by F is the row's fold.

    A row's place is mixed by the finaliser of SplitMix64 (Steele, Lea, Flood 2014), so that no order in the file shows.
    """
    place = place_of(file)
    seed = np.uint64(zlib.crc32(f"{place.parent.name}/{place.name}".encode()) << 32)
    state = (np.arange(start, start + rows, dtype=np.uint64) + seed) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


@dataclass
class Sums:
    """Answers and rows of each id by fold: `answers` float64 (F, I, K), `rows` float64 (F, I)."""

    answers: Floats
    rows: Floats

    @classmethod
    def empty(cls, folds: int, ids: int, outputs: int) -> Self:
        return cls(np.zeros((folds, ids, outputs)), np.zeros((folds, ids)))

    def add(self, folds: NDArray[np.int64], ids: NDArray[np.int64], answers: Floats) -> None:
        """Take in B rows: `answers` (B, K)."""
        num_folds, num_ids, outputs = self.answers.shape
        cell = (folds % num_folds) * num_ids + ids
        self.rows += np.bincount(cell, minlength=num_folds * num_ids).reshape(num_folds, num_ids)
        for k in range(outputs):
            sums = np.bincount(cell, weights=answers[:, k], minlength=num_folds * num_ids)
            self.answers[:, :, k] += sums.reshape(num_folds, num_ids)

    def merge(self, other: Sums) -> None:
        self.answers += other.answers
        self.rows += other.rows

    def encoded(self, step: Lookup, target: Target, smoothing: float) -> Lookup:
        """The step with its numbers, standardised over the training rows."""
        whole = _means(self.answers.sum(axis=0), self.rows.sum(axis=0), smoothing)
        weights = self.rows.sum(axis=0)
        centre = np.average(whole, axis=0, weights=weights)
        spread = np.sqrt(np.average((whole - centre) ** 2, axis=0, weights=weights))
        spread = np.where(spread > 0, spread, 1.0)
        folds = zip(self.answers, self.rows, strict=True)
        others = [_means(self.answers.sum(axis=0) - answers, weights - rows, smoothing) for answers, rows in folds]
        labels = tuple(f"target_{name}" for name in target.classes) if target.task == "multiclass" else ("target",)
        return step.model_copy(
            update={
                "labels": labels,
                "values": _rows((whole - centre) / spread),
                "out_of_fold": tuple(_rows((part - centre) / spread) for part in others),
            }
        )


def count(files: Sequence[str], steps: Sequence[tuple[IdStep, int]], target: Target) -> list[Sums]:
    """Sums of each step over the training files; a step comes with its number of folds. One pass."""
    sums = [Sums.empty(folds, ids.size, target.outputs) for ids, folds in steps]
    columns = list(dict.fromkeys([*(name for ids, _ in steps for name in ids.columns), *target.columns]))
    for file in files:
        start = 0
        for table in parquet.batches(file, columns, rows=BATCH_ROWS):
            answers, usable = one_hot(target, table)
            folds = folds_of(file, start, len(usable))[usable]
            start, table = start + len(usable), table.filter(pa.array(usable))
            for (ids, _), total in zip(steps, sums, strict=True):
                total.add(folds, ids.batch(table), answers[usable])
    return sums


def one_hot(target: Target, table: pa.Table) -> tuple[Floats, NDArray[np.bool_]]:
    """Answers float64 (B, K) as training sees them, one column a class when there are several, and which rows have one (B,)."""
    answers, usable = target.answers(table)
    values = target.scaled(answers).astype(np.float64)
    if target.task == "multiclass":
        return (np.where(usable, values, -1)[:, None] == np.arange(target.outputs)).astype(np.float64), usable
    return values[:, None], usable


def _means(answers: Floats, rows: Floats, smoothing: float) -> Floats:
    """Smoothed mean answers (I, K); an id without rows gets the overall mean."""
    prior = answers.sum(axis=0) / max(rows.sum(), 1.0)
    weight = np.maximum(rows + smoothing, np.finfo(float).tiny)[:, None]
    means = (answers + smoothing * prior) / weight
    return np.asarray(np.where(rows[:, None] > 0, means, prior))


def _rows(values: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in values)
