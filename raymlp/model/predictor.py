"""A loaded bundle that predicts: the same object in evaluation, batch scoring and serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.core.errors import DataError, RequestError
from raymlp.core.files import Place
from raymlp.core.language import losses, told
from raymlp.core.records import Task, has_classes
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.contract_row import Row, row_checker, table_of
from raymlp.data.privacy import PrivacyKey, routing_key_hider
from raymlp.model.bundle import Bundle, load_bundle
from raymlp.model.scorer import TAKEN, placed

BATCH_ROWS = 8_192
BATCH_BYTES = 4 << 20
"""Bytes of text ids and pixels that are scored at a time."""


@dataclass(frozen=True)
class Prediction:
    """Answers of N rows. `scores` float64: (N,) probability of the positive class, value or anomaly score (higher for what is more
    unusual); (N, K) class probabilities, or distances to the K clusters; (N, 3) of texts, as `raymlp.core.language` has them."""

    task: Task
    classes: tuple[str, ...]
    scores: NDArray[np.float64]
    threshold: float = 0.5
    """Anomaly: the score from which on a row is flagged."""

    def __len__(self) -> int:
        return len(self.scores)

    def alone(self, place: int) -> Prediction:
        """The answer of one row."""
        return replace(self, scores=self.scores[place : place + 1])

    @property
    def labels(self) -> list[str] | None:
        """Most likely class of each row (binary: threshold .5); None without classes."""
        if not has_classes(self.task):
            return None
        picks = self.scores.argmax(axis=1) if self.task == "multiclass" else (self.scores >= 0.5).astype(int)
        return [self.classes[pick] for pick in picks]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able answer a row: `{"probability", "label"}`, `{"probabilities", "label"}`, `{"value"}`, `{"cluster", "distance"}`,
        `{"score", "flagged"}` or `{"log_likelihood", "tokens", "token_loss", "perplexity"}`, the last two null without tokens."""
        if self.task == "regression":
            return [{"value": value} for value in self.scores.tolist()]
        if self.task == "clustering":
            return [{"cluster": int(row.argmin()), "distance": float(row.min())} for row in self.scores]
        if self.task == "anomaly":
            return [{"score": float(score), "flagged": bool(score >= self.threshold)} for score in self.scores]
        if self.task == "language":
            parts = {name: values.tolist() for name, values in told(self.scores).items()}
            return [
                {name: None if value != value else value for name, value in zip(parts, row, strict=True)}
                for row in zip(*parts.values(), strict=True)
            ]
        if self.task == "binary":
            negative, positive = self.classes
            return [{"probability": p, "label": positive if p >= 0.5 else negative} for p in self.scores.tolist()]
        labels = self.labels or []
        return [
            {"probabilities": dict(zip(self.classes, map(float, row), strict=True)), "label": label}
            for row, label in zip(self.scores, labels, strict=True)
        ]

    @property
    def summary(self) -> NDArray[np.float64]:
        """One number a row, float64 (N,), as the prediction log keeps it: the score, the place of the class or cluster, or the loss a
        token."""
        if self.task == "multiclass":
            return np.asarray(self.scores.argmax(axis=1), dtype=np.float64)
        if self.task == "language":
            return losses(self.scores)
        return np.asarray(self.scores.argmin(axis=1), dtype=np.float64) if self.task == "clustering" else self.scores


class Predictor:
    """Predicts from rows (a list of dicts, as JSON has them) or from an Arrow table."""

    def __init__(self, bundle: Bundle, *, key: PrivacyKey | None = None) -> None:
        """`key` is the environment's when it is needed and not given."""
        self.bundle, self.contract = bundle, bundle.contract
        self.key = key = bundle.contract.key(key)
        self.check: Callable[[Any, str], Row] = row_checker(bundle.contract, key=key)
        self.hide_routing_key: Callable[[str], str] = routing_key_hider(key)
        self._row = bundle.plan.row_executor()

    @classmethod
    def load(cls, path: str | Place) -> Self:
        """Load a verified bundle. Raises BundleError, and ConfigError when its privacy rules need a key that is not there."""
        return cls(load_bundle(path))

    @classmethod
    def of(cls, bundle: Bundle, *, device: str, key: PrivacyKey | None) -> Self:
        """The predictor of a loaded bundle with its net on a device. Raises ConfigError for trees on a GPU."""
        return cls(replace(bundle, scorer=placed(bundle.scorer, device)), key=key)

    def predict(self, rows: Sequence[Row] | pa.Table) -> Prediction:
        """Predict every row. Columns that are not inputs are ignored in a table and refused in a row.

        Raises RequestError for a row that breaks the contract, naming its place.
        """
        contract = self.bundle.contract
        if isinstance(rows, pa.Table):
            typed, broken = check_table(contract, rows, where="the table")
            if broken.num_rows:
                raise RequestError("table", broken.column(REASON)[0].as_py(), "rows that keep the contract")
        else:
            typed = table_of([self.check(row, f"instances[{i}]") for i, row in enumerate(rows)], contract)
        return self.predict_checked(typed)

    def predict_checked(self, typed: pa.Table) -> Prediction:
        """Predict the rows of a table that keep the contract, in its types, privacy rules applied. Other columns are ignored."""
        return self._answer(self.outputs(typed))

    def predict_typed(self, row: Row) -> Prediction:
        """Predict one row that `check` has passed: the quick path of the endpoint, without Arrow."""
        tensors = {name: np.array(values, TAKEN[name])[None] for name, values in self._row(row).items()}
        return self._answer(self.bundle.plan.target.in_unit(self.bundle.scorer(tensors).astype(np.float64)))

    def predict_together(self, rows: Sequence[Row]) -> Prediction:
        """Predict some rows that `check` has passed, each read as `predict_typed` reads it."""
        read = [self._row(row) for row in rows]
        tensors = {name: np.array([values[name] for values in read], TAKEN[name]) for name in read[0]}
        return self._answer(self.bundle.plan.target.in_unit(self.bundle.scorer(tensors).astype(np.float64)))

    def scores(self, table: pa.Table) -> NDArray[np.float64]:
        """Calibrated scores of rows of a snapshot: privacy rules are applied to them already, and ranges and closed categories are left
        to ingestion, so that two models see the same rows. Raises DataError when a row cannot be read in the types of the contract."""
        open_contract = Contract(columns={name: ColumnContract(type=rule.type) for name, rule in self.bundle.contract.columns.items()})
        typed, unreadable = check_table(open_contract, table, where="the table")
        if unreadable.num_rows:
            raise DataError(f"{unreadable.num_rows} rows cannot be read in the types of the bundle's contract. Prepare the data again.")
        return self.bundle.calibration.apply(self.outputs(typed))

    def outputs(self, table: pa.Table) -> NDArray[np.float64]:
        """Raw outputs of a typed table: (N,) or, for several classes or clusters, (N, K)."""
        plan = self.bundle.plan
        rows = plan.rows_within(BATCH_BYTES, BATCH_ROWS)
        starts = range(0, table.num_rows, rows)
        parts = [self.bundle.scorer(plan.transform(table.slice(start, rows))) for start in starts]
        out = np.concatenate(parts) if parts else np.zeros((0, plan.target.outputs))
        return plan.target.in_unit(out.astype(np.float64))

    def _answer(self, outputs: NDArray[np.float64]) -> Prediction:
        target, calibration = self.bundle.plan.target, self.bundle.calibration
        return Prediction(target.task, target.classes, calibration.apply(outputs), calibration.threshold)
