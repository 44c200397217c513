"""The rows of one rollout, kept from the files of the prediction log and of the labels as they come, each file once and in any order.

What is kept of a row is what is counted, about 1 kB with what counting takes, whatever the row holds. Inputs are fetched again when the
row's label has come, scored by both versions once, and not kept.

Legend: N rows of the rollout, in the order of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.core.errors import DataError
from raymlp.data.casting import ARROW
from raymlp.data.labels import row_ids, with_values
from raymlp.model.predictor import Predictor
from raymlp.serve.log import INPUT
from raymlp.serve.routing import Routes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
COLUMNS = ("prediction_id", "row", "time", "version", "routing_key", "status", "prediction", "latency_ms", "routes")
"""Columns of the log that a row is kept from."""


@dataclass(frozen=True)
class Versions:
    """The two versions of a rollout: labels as in the log, and their predictors."""

    champion_label: str
    challenger_label: str
    champion: Predictor
    challenger: Predictor


@dataclass(frozen=True)
class Rows:
    """Arrays of N: the challenger's share when it was routed, whether the challenger answered, the key as a number, and what came of it.
    `ids` has `prediction_id` and `row`."""

    ids: pa.Table
    row: NDArray[np.int64]
    time: NDArray[np.int64]
    key: NDArray[np.uint64]
    weight: Floats
    theirs: Mask
    status: NDArray[np.int64]
    prediction: Floats
    latency_ms: Floats

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: NDArray[np.int64]) -> Rows:
        """Some of them."""
        arrays = {name: value[places] for name, value in vars(self).items() if name != "ids"}
        return Rows(self.ids.take(pa.array(places)), **arrays)


@dataclass
class _Part:
    """Rows of one file, where they are in it, and both versions' scores of those that were labelled, (2, rows), NaN before."""

    rows: Rows
    at: NDArray[np.int64]
    inputs: Callable[[], pa.Table]
    scores: Floats
    scored: Mask


@dataclass
class Ledger:
    """What is known of the rollout with this salt."""

    versions: Versions
    salt: str
    _parts: dict[str, _Part] = field(default_factory=dict)
    _labels: dict[str, pa.Table] = field(default_factory=dict)
    _sorted: tuple[Rows, NDArray[np.int64]] | None = None

    def add(self, name: str, table: pa.Table, inputs: Callable[[], pa.Table]) -> None:
        """Rows of a file of the log, with COLUMNS; `inputs` gives the file's columns `in.NAME`."""
        rows, at = _of_rollout(table, self.salt, self.versions.challenger_label)
        if len(rows):
            self._parts[name] = _Part(rows, at, inputs, np.full((2, len(rows)), np.nan), np.zeros(len(rows), dtype=bool))
            self._sorted = None

    def add_labels(self, name: str, table: pa.Table) -> None:
        """A file of labels. Raises DataError when its types and those of the others exclude each other."""
        self._labels[name] = table
        self.labels()

    def labels(self) -> pa.Table | None:
        """All labels, in the order of the files' names: the first of several for a row counts."""
        tables = [table for _, table in sorted(self._labels.items())]
        try:
            return pa.concat_tables(tables, promote_options="permissive") if tables else None
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise DataError(f"the labels do not go together ({error}); expected each column in one type. Mend the files.") from None

    def rows(self) -> Rows:
        """All rows of the rollout."""
        return self._ordered()[0]

    def labelled(self) -> tuple[Floats, Floats, Floats] | None:
        """True answers of the labelled rows that were answered, and both versions' scores of them, in the order of time; None without any,
        and where the log leaves out what a version needs."""
        rows, order = self._ordered()
        target, labels = self.versions.champion.bundle.plan.target, with_values(self.labels(), "label")
        good = np.flatnonzero(rows.status == 200)
        if labels is None or not len(good):
            return None
        place = pc.index_in(row_ids(rows.ids.take(pa.array(good))), value_set=row_ids(labels).combine_chunks())
        good = good[np.asarray(place.is_valid())]
        y = target.read(labels.column("label").take(place.drop_null()))
        usable = ~np.isnan(y) & (y >= 0 if target.task == "multiclass" else True)
        good, y = good[usable], y[usable]
        if not len(good) or not self._score(order[good]):
            return None
        scores = np.concatenate([part.scores for _, part in sorted(self._parts.items())], axis=1)[:, order[good]]
        return y, scores[0], scores[1]

    def _ordered(self) -> tuple[Rows, NDArray[np.int64]]:
        """All rows, and the place of each among the parts in the order of their names."""
        if self._sorted is None:
            parts = [part.rows for _, part in sorted(self._parts.items())] or [_of_rollout(_EMPTY, self.salt, "")[0]]
            names = [name for name in vars(parts[0]) if name != "ids"]
            arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
            joined = Rows(pa.concat_tables([part.ids for part in parts]), **arrays)
            order = np.lexsort((joined.row, joined.time))
            self._sorted = joined.take(order), order
        return self._sorted

    def _score(self, places: NDArray[np.int64]) -> bool:
        """Have scores for these places among the parts; False where inputs are missing."""
        start = 0
        for _, part in sorted(self._parts.items()):
            size = len(part.rows)
            wanted = places[(places >= start) & (places < start + size)] - start
            start += size
            wanted = np.sort(wanted[~part.scored[wanted]])
            if not len(wanted):
                continue
            inputs = part.inputs().take(pa.array(part.at[wanted]))
            table = inputs.rename_columns([name.removeprefix(INPUT) for name in inputs.column_names])
            for side, predictor in enumerate((self.versions.champion, self.versions.challenger)):
                complete = _complete(table, predictor)
                if complete is None:
                    return False
                part.scores[side, wanted] = predictor.scores(complete)
            part.scored[wanted] = True
        return True


_EMPTY = pa.table(
    {
        "prediction_id": pa.array([], pa.string()),
        "row": pa.array([], pa.int64()),
        "time": pa.array([], pa.timestamp("us", tz="UTC")),
        "version": pa.array([], pa.string()),
        "routing_key": pa.array([], pa.string()),
        "status": pa.array([], pa.int64()),
        "prediction": pa.array([], pa.float64()),
        "latency_ms": pa.array([], pa.float64()),
        "routes": pa.array([], pa.string()),
    }
)


def _of_rollout(log: pa.Table, salt: str, challenger: str) -> tuple[Rows, NDArray[np.int64]]:
    """Rows that the routes of this rollout divided, and their places in the log."""
    texts = pc.fill_null(log.column("routes"), "").combine_chunks().dictionary_encode()
    shares = []
    for text in texts.dictionary.to_pylist():
        routes = Routes.parse(text) if text else None
        shares.append(routes.share(challenger) if routes and routes.salt == salt and challenger in routes.labels else None)
    weight = pa.array(shares, pa.float64()).take(texts.indices)
    at = np.flatnonzero(np.asarray(weight.is_valid()))
    own = log.select(COLUMNS).take(pa.array(at))
    keys = own.column("routing_key").combine_chunks().dictionary_encode()
    numbers = np.array([_number(key) for key in keys.dictionary.to_pylist()], dtype=np.uint64)
    return Rows(
        own.select(["prediction_id", "row"]),
        row=own.column("row").to_numpy(),
        time=own.column("time").to_numpy().astype("datetime64[us]").astype(np.int64),
        key=numbers[keys.indices.to_numpy(zero_copy_only=False)],
        weight=np.asarray(weight)[at].astype(np.float64),
        theirs=np.asarray(pc.equal(own.column("version"), challenger)).astype(bool),
        status=own.column("status").to_numpy(),
        prediction=pc.cast(own.column("prediction"), pa.float64()).to_numpy().astype(np.float64),
        latency_ms=own.column("latency_ms").to_numpy(),
    ), at


def _number(key: str) -> int:
    """A key in 64 bits: among a million keys, two fall together with a chance of 3 in 100 million."""
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _complete(table: pa.Table, predictor: Predictor) -> pa.Table | None:
    """Logged inputs with nulls for those that only the other version knew; None without bytes, which the log leaves out."""
    for name, rule in predictor.bundle.contract.columns.items():
        if name not in table.column_names:
            if rule.type == "bytes":
                return None
            table = table.append_column(name, pa.nulls(table.num_rows, ARROW[rule.type]))
    return table
