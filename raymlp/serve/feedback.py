"""True answers that clients send back: checked, kept in memory, and written off the request path beside other labels.

`{"feedback": [{"prediction_id": ..., "row": 0, "label": ..., "revenue": 12.5}]}`: a row has a label, named numbers of the business, or
both. The files are those that `raymlp.data.labels` reads, where the first answer to a row stays: a rollout may have been decided on it.
Whether a prediction of that id was ever made is not known here; answers to no prediction are never joined to one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from raymlp.config.privacy import Rule
from raymlp.config.sources import ColumnType
from raymlp.core.errors import DataError, RequestError, nearest
from raymlp.core.files import Place
from raymlp.data.casting import ARROW
from raymlp.data.contract import ColumnContract
from raymlp.data.contract_row import shown, value_checker
from raymlp.data.hours import write_new
from raymlp.data.privacy import key_for, single
from raymlp.data.profile import Profile, to_text
from raymlp.data.target import Target

FIELDS = ("prediction_id", "row", "label")
TIME = "time"
"""Column with the moment at which an answer came."""
MAX_ID_CHARACTERS, MAX_NAME_CHARACTERS = 128, 64
MAX_NAMES = 32
"""Different named numbers that a replica takes: each is a column."""
MAX_WAITING = 100_000
"""Answers that wait for the disk; beyond it more are refused, and none that was taken is dropped."""


class Answer(NamedTuple):
    """One row of feedback, as it is written."""

    prediction_id: str
    row: int
    label: Any
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Answers:
    """What a label may be: the type of the target's column, one of its values where it has classes, its privacy rule applied."""

    type: ColumnType | None
    check: Callable[[Any], Any]
    known: frozenset[str] = frozenset()
    expected: str = "no label: the model has no column of answers"
    is_private: bool = False

    @classmethod
    def of(cls, target: Target, profile: Profile, rule: Rule | None) -> Answers:
        """Raises ConfigError when the rule needs a key that is missing. A model without a column of answers takes no label."""
        column = profile.columns.get(str(target.column)) if target.column is not None else None
        if target.column is None or column is None:
            return cls(None, lambda value: value)
        name, kind = target.column, column.type
        check = value_checker(ColumnContract(type=kind))
        is_private = rule is not None and rule.kind != "keep"
        if rule is not None and is_private:
            check = _through(single(name, rule, key_for({name: rule})), check, kind)
        known = frozenset(column.counts()) if target.task in ("binary", "multiclass") and target.positive_above is None else frozenset()
        words = {"bool": "true or false", "int": "a whole number", "float": "a number", "string": "text", "timestamp": "a timestamp"}
        expected = "one of " + ", ".join(sorted(known)[:20]) if known and not is_private else words.get(kind, "a value")
        return cls(kind, check, known, f"{expected}, as '{name}' has in the source", is_private)

    def label(self, value: Any, where: str) -> Any:
        """The label as it is written. Raises RequestError."""
        if self.type is None:
            raise RequestError(where, "a label", self.expected)
        try:
            typed = self.check(value)
        except (TypeError, ValueError, OverflowError):
            raise RequestError(where, self._found(value), self.expected) from None
        if self.known:
            text = to_text(pa.array([typed], ARROW[self.type]))[0].as_py()
            if text not in self.known:
                hint = "" if self.is_private else nearest(text, self.known).replace(" Did", "; did").rstrip(".")
                raise RequestError(where, self._found(value), self.expected + hint)
        return typed

    def _found(self, value: Any) -> str:
        return f"a value ({type(value).__name__})" if self.is_private else shown(value)


def parse_feedback(body: bytes, answers: Answers, *, max_rows: int) -> list[Answer]:
    """The rows of a request. Raises RequestError that names the field."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("body", f"no JSON ({error})", 'JSON in UTF-8: {"feedback": [{"prediction_id": ..., "label": ...}]}') from None
    rows = content.get("feedback") if type(content) is dict else None
    if type(rows) is not list or len(content) != 1:
        raise RequestError("body", "something else", 'an object with one field: {"feedback": [{"prediction_id": ..., "label": ...}]}')
    if not 1 <= len(rows) <= max_rows:
        raise RequestError("feedback", f"a list of {len(rows):,} rows", f"1 to {max_rows:,} rows")
    return [_answer(row, f"feedback[{place}]", answers, max_rows) for place, row in enumerate(rows)]


def _answer(row: Any, where: str, answers: Answers, max_rows: int) -> Answer:
    if type(row) is not dict:
        raise RequestError(where, shown(row), "an object with prediction_id and label")
    known, place, label = row.get("prediction_id"), row.get("row", 0), row.get("label")
    if type(known) is not str or not 0 < len(known) <= MAX_ID_CHARACTERS or not known.isprintable():
        raise RequestError(f"{where}.prediction_id", shown(known), "the prediction_id of an answer")
    if type(place) is not int or not 0 <= place < max_rows:
        raise RequestError(f"{where}.row", shown(place), f"the place of a row in its request, from 0 to {max_rows - 1:,}")
    numbers = {name: _number(name, value, where) for name, value in row.items() if name not in FIELDS}
    if label is None and not numbers:
        raise RequestError(f"{where}.label", "null" if "label" in row else "missing", "a label, or a named number of the business")
    return Answer(known, place, None if label is None else answers.label(label, f"{where}.label"), numbers)


def _number(name: str, value: Any, where: str) -> float:
    if not name.isidentifier() or len(name) > MAX_NAME_CHARACTERS or name == TIME:
        raise RequestError(f"{where}.{name[:MAX_NAME_CHARACTERS]}", "no name of a number", "letters, digits and _, other than time")
    if type(value) not in (int, float) or not math.isfinite(value):
        raise RequestError(f"{where}.{name}", shown(value), "a finite number")
    return float(value)


class FeedbackLog:
    """Answers of one replica on their way to disk. What was taken is lost only with the process, until the next `flush`."""

    def __init__(self, folder: Place, *, writer: str) -> None:
        self.folder, self.writer = folder, writer
        self._waiting: list[tuple[float, Answer]] = []
        self._names: set[str] = set()
        self._type: ColumnType | None = None
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, answers: list[Answer], kind: ColumnType | None) -> bool:
        """Let answers wait, all or none; False when too many do. Raises RequestError for one name of a number too many."""
        names = self._names.union(*(answer.numbers for answer in answers))
        if len(names) > MAX_NAMES:
            raise RequestError("feedback", f"over {MAX_NAMES} different names of numbers", "some of: " + ", ".join(sorted(self._names)))
        if len(self._waiting) + len(answers) > MAX_WAITING:
            return False
        self._names, self._type = names, kind
        now = time.time()
        self._waiting.extend((now, answer) for answer in answers)
        return True

    def flush(self) -> int:
        """Write what waits into one file, and give back the number of rows. What cannot be written waits again; the error is raised."""
        with self._writing:
            taken, self._waiting = self._waiting, []
            if not taken:
                return 0
            try:
                write_new(_table(taken, self._type), self.folder, writer=self.writer)
            except (OSError, DataError):
                self._waiting = [*taken, *self._waiting]
                raise
            return len(taken)


def _table(taken: list[tuple[float, Answer]], kind: ColumnType | None) -> pa.Table:
    answers = [answer for _, answer in taken]
    columns: dict[str, pa.Array] = {
        "prediction_id": pa.array([answer.prediction_id for answer in answers], pa.string()),
        "row": pa.array([answer.row for answer in answers], pa.int64()),
        TIME: pa.array([round(moment * 1e6) for moment, _ in taken], pa.timestamp("us", tz="UTC")),
    }
    if kind is not None:
        columns["label"] = pa.array([answer.label for answer in answers], ARROW[kind])
    for name in sorted({name for answer in answers for name in answer.numbers}):
        columns[name] = pa.array([answer.numbers.get(name) for answer in answers], pa.float64())
    return pa.table(columns)


def _through(transform: Callable[[Any], Any], check: Callable[[Any], Any], kind: ColumnType) -> Callable[[Any], Any]:
    """A raw label through its privacy rule, to the type of the column after it."""
    if kind == "string":
        return lambda value: check(transform(value))
    return lambda value: transform(check(value))
