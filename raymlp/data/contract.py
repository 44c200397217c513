"""What a column may hold. Inferred from a profile, edited by a person, enforced at ingestion and at the endpoint."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError, model_validator

from raymlp.config.privacy import Rule
from raymlp.config.section import Section
from raymlp.config.sources import ColumnType
from raymlp.config.split import Duration
from raymlp.core.errors import ConfigError, DataError, RequestError, nearest
from raymlp.data.pictures import FORMATS, BrokenImage, decoded
from raymlp.data.privacy import KEY_VARIABLE, PrivacyKey, key_for, makes_text, needs_key, single, transformed
from raymlp.data.profile import Profile, column_type, to_text

ARROW: dict[ColumnType, pa.DataType] = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "bytes": pa.binary(),
}
REASON = "raymlp_reason"
"""Column that says, in quarantined rows, why the row is there."""
MAX_PATTERN_TEXT = 1_000
"""Characters of a text that a pattern is tried on; a longer text does not match."""
KNOWN_TEXTS = 4_096
"""Texts of requests whose match is remembered, for each pattern."""
Row = dict[str, Any]


class ColumnContract(Section):
    """What one column may hold."""

    type: ColumnType
    """Type after reading."""
    nullable: bool = True
    """Whether a value may be missing."""
    minimum: float | None = None
    """Smallest number allowed; timestamps are not ranged."""
    maximum: float | None = None
    """Largest number allowed."""
    categories: tuple[str, ...] = ()
    """Values allowed, as text; empty allows any. Only a person closes a set of categories; inference leaves it open."""
    pattern: str | None = Field(default=None, max_length=1_000)
    """Regular expression that the whole text must match, in the syntax of RE2: no look-around and no back-references, which
    in return takes time linear in the text."""
    unique: bool = False
    """Whether each value may occur once in a snapshot; later rows go to quarantine. Null may repeat, and single requests are
    not compared."""
    max_pixels: int | None = Field(default=None, ge=1)
    """The bytes are an image that can be read, of at most this many pixels; null takes any bytes."""
    example: bool | int | float | str | None = None
    """A typical value, shown in the endpoint's documentation."""
    privacy: Rule | None = None
    """What is done to a raw value before anything else; the rest of the contract speaks of the result."""
    privacy_key: str = ""
    """Check value of the key that `privacy` needs, so that another key is refused."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum is {self.minimum:g}; expected at most maximum ({self.maximum:g})")
        if self.privacy is not None and makes_text(self.privacy) and self.type != "string":
            raise ValueError(f"type is {self.type} with privacy {self.privacy.kind}; expected string")
        if self.max_pixels is not None and self.type != "bytes":
            raise ValueError(f"max_pixels is set on a column of type {self.type}; expected type bytes")
        return self

    @model_validator(mode="after")
    def _pattern_works(self) -> Self:
        if self.pattern is None:
            return self
        if self.type != "string":
            raise ValueError(f"pattern is set on a column of type {self.type}; expected type string")
        for expression in (self.pattern, _whole(self.pattern)):
            try:
                pc.match_substring_regex(pa.array([""]), expression)
            except pa.ArrowInvalid as error:
                raise ValueError(f"pattern is '{self.pattern}', which RE2 does not take ({error})") from None
        if self.example is None and not self.nullable:
            raise ValueError("pattern needs an example that matches it, since a row must be there to try a model on")
        if self.example is not None and not _matches(pa.array([str(self.example)]), self.pattern)[0]:
            raise ValueError(f"example is '{self.example}', which does not match the pattern '{self.pattern}'")
        return self


class Contract(Section):
    """Columns by name. Other columns are refused by the endpoint and dropped at ingestion."""

    version: Literal[1] = 1
    """Format of this file."""
    columns: dict[str, ColumnContract] = Field(min_length=1)
    """What each column may hold."""
    unique_keys: tuple[tuple[str, ...], ...] = ()
    """Columns that together may occur once in a snapshot, as [[origin, time_hour], ...]; later rows go to quarantine. A row with
    a null among them is not compared."""
    min_rows: int | None = Field(default=None, ge=0)
    """Fewest good rows of a snapshot, all splits together."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most good rows of a snapshot."""
    freshness: dict[str, Duration] = {}
    """Age that the newest value of a timestamp column may have when the data is prepared: `{time_hour: 3d}`."""

    @model_validator(mode="after")
    def _names_columns(self) -> Self:
        named = {"unique_keys": [name for key in self.unique_keys for name in key], "freshness": list(self.freshness)}
        for rule, names in named.items():
            unknown = next((name for name in names if name not in self.columns), None)
            if unknown is not None:
                raise ValueError(f"{rule} names '{unknown}', which is no column of the contract.{nearest(unknown, self.columns)}")
        untimed = next((name for name in self.freshness if self.columns[name].type != "timestamp"), None)
        if untimed:
            raise ValueError(f"freshness names '{untimed}', a column of type {self.columns[untimed].type}; expected a timestamp")
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise ValueError(f"min_rows is {self.min_rows}; expected at most max_rows ({self.max_rows})")
        return self

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """Every set of columns that may not repeat."""
        return (*((name,) for name, rule in self.columns.items() if rule.unique), *self.unique_keys)

    @classmethod
    def infer(cls, profile: Profile) -> Self:
        """A contract that the profiled rows keep.

        Numbers may go beyond the seen range by its own width on either side, since tomorrow is not like yesterday;
        a column without nulls must stay without; categories stay open.
        """
        columns = {}
        for name, column in profile.columns.items():
            low = high = None
            example: Any = None
            if column.type in ("int", "float") and column.values:
                width = max(column.maximum - column.minimum, abs(column.maximum), 1.0)
                low, high = column.minimum - width, column.maximum + width
                median = column.quantile(0.5)
                example = round(median) if column.type == "int" else round(median, 4)
            elif column.type == "timestamp" and column.values:
                example = datetime.fromtimestamp(round(column.quantile(0.5)), UTC).isoformat()
            elif column.values:
                example = next(iter(column.counts()), None)
                example = example == "true" if column.type == "bool" else example
            columns[name] = ColumnContract(
                type=column.type, nullable=column.nulls > 0 or not column.values, minimum=low, maximum=high, example=example
            )
        return cls(columns=columns)

    def only(self, names: list[str]) -> Contract:
        """The rules of some columns, in the given order; what concerns a whole snapshot is left out."""
        return Contract(columns={name: self.columns[name] for name in names})

    def with_privacy(self, rules: Mapping[str, Rule], key: PrivacyKey | None) -> Contract:
        """The same with privacy rules on some columns. A value of a person is no example."""
        columns = dict(self.columns)
        for name, rule in rules.items():
            if name in columns:
                changes: dict[str, Any] = {"privacy": rule, "privacy_key": key.check if key is not None and needs_key(rule) else ""}
                if rule.kind != "keep":
                    changes["example"] = None
                if makes_text(rule):
                    changes |= {"type": "string", "minimum": None, "maximum": None}
                columns[name] = columns[name].model_copy(update=changes)
        return self.model_copy(update={"columns": columns})

    def with_images(self, names: Collection[str], max_pixels: int) -> Contract:
        """The same with some columns held to be images; a limit that is there stays. Raises ConfigError for a column of another type."""
        columns = dict(self.columns)
        for name in names:
            if name in columns and columns[name].type != "bytes":
                raise ConfigError(f"data.images names '{name}', which holds {columns[name].type} values; expected bytes. Set data.images.")
            if name in columns and columns[name].max_pixels is None:
                columns[name] = columns[name].model_copy(update={"max_pixels": max_pixels})
        return self.model_copy(update={"columns": columns})

    def without_privacy(self) -> Contract:
        """The same for rows that are already transformed."""
        return self._changed(privacy=None)

    def without_examples(self) -> Contract:
        """The same without values of rows."""
        return self._changed(example=None)

    def key(self, given: PrivacyKey | None = None) -> PrivacyKey | None:
        """The key that the rules need: the given one, or the environment's. Raises ConfigError when it is missing or another."""
        rules = {name: rule.privacy for name, rule in self.columns.items() if rule.privacy is not None}
        if not any(map(needs_key, rules.values())):
            return None
        key = given or key_for(rules)
        for name, rule in self.columns.items():
            if key is not None and rule.privacy_key and rule.privacy_key != key.check:
                raise ConfigError(
                    f"{KEY_VARIABLE} is another key than the one that '{name}' was transformed with: its check value is {key.check}; "
                    f"expected {rule.privacy_key}. Set {KEY_VARIABLE} to the key of the training data."
                )
        return key

    def _changed(self, **rules: Any) -> Contract:
        columns = {name: rule.model_copy(update=rules) for name, rule in self.columns.items()}
        return self.model_copy(update={"columns": columns})

    def without(self, names: Collection[str]) -> Contract:
        """The contract without some columns and the rules that name them."""
        kept: dict[str, Any] = {
            "columns": {name: rule for name, rule in self.columns.items() if name not in names},
            "unique_keys": tuple(key for key in self.unique_keys if not set(key) & set(names)),
            "freshness": {name: age for name, age in self.freshness.items() if name not in names},
        }
        return self.model_copy(update=kept)

    def to_yaml(self) -> str:
        import yaml

        plain = self.model_dump(mode="json", exclude_defaults=True)
        for name, rule in self.columns.items():
            if rule.privacy is not None:
                plain["columns"][name]["privacy"] = rule.privacy.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "contract") -> Self:
        """Raises ConfigError that names `source` when the text is no contract."""
        import yaml

        try:
            return cls.model_validate(yaml.safe_load(text))
        except (ValidationError, yaml.YAMLError) as error:
            detail = error.errors()[0] if isinstance(error, ValidationError) else None
            where = ".".join(map(str, detail["loc"])) if detail else "the file"
            raise ConfigError(f"{source}: {where} is wrong: {detail['msg'] if detail else error}.") from None

    # ------------------------------------------------------------------ whole batches

    def check_table(self, table: pa.Table, *, where: str = "the source", key: PrivacyKey | None = None) -> tuple[pa.Table, pa.Table]:
        """Split a batch into rows that keep the contract (cast to its types) and rows that break it (as text,
        with the reason in `raymlp_reason`), both with the privacy rules applied. `key` is the environment's when not given.

        Raises DataError when a column is missing, ConfigError when a rule needs a key and there is none."""
        key = self.key(key)
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            raise DataError(
                f"{where} has no column '{missing[0]}'; expected the columns {', '.join(self.columns)}."
                f"{nearest(missing[0], table.column_names)} Mend the source, or change the contract."
            )
        reasons = np.full(table.num_rows, None, dtype=object)
        bad_rows = np.zeros(table.num_rows, dtype=bool)
        columns = []
        hidden: dict[str, pa.ChunkedArray] = {}
        for name, rule in self.columns.items():
            array = table.column(name)
            if rule.privacy is None or rule.privacy.kind == "keep":
                cast, unreadable = _cast(array, rule.type)
            else:
                cast, unreadable = _cast_raw(array, rule.type)
                cast = hidden[name] = transformed(cast, name, rule.privacy, key)
            columns.append(cast)
            for bad, reason in ((unreadable, f"{name} is not of type {rule.type}"), *_broken(name, cast, unreadable, rule)):
                reasons[bad & ~bad_rows] = reason
                bad_rows |= bad
        typed = pa.table(columns, names=list(self.columns))
        if not bad_rows.any():
            return typed, typed.slice(0, 0)
        text = {name: in_quarantine(hidden.get(name, table.column(name))) for name in self.columns}
        broken = pa.table({**text, REASON: pa.array(reasons.tolist(), pa.string())}).filter(pa.array(bad_rows))
        return typed.filter(pa.array(~bad_rows)), broken

    # ------------------------------------------------------------------ one row, as the endpoint meets it

    def row_checker(self, *, key: PrivacyKey | None = None) -> Callable[[Any, str], Row]:
        """A function that turns one JSON row into typed values, privacy rules applied, or raises RequestError naming the field.

        Every column must be there (null where nullable), no other may be; numbers are not read from text.
        Raises ConfigError when a rule needs a key and there is none.
        """
        key = self.key(key)
        checks = {name: _private_checker(name, rule, key) for name, rule in self.columns.items()}
        private = {name for name, rule in self.columns.items() if rule.privacy is not None}
        nullable = {name for name, rule in self.columns.items() if rule.nullable}
        names = list(checks)

        def check(row: Any, where: str = "instances[0]") -> Row:
            if not isinstance(row, Mapping):
                raise RequestError(where, _show(row), "an object with the fields " + ", ".join(names))
            typed: Row = {}
            for name, convert in checks.items():
                value = row.get(name)
                if value is None:
                    if name not in nullable:
                        found = "null" if name in row else "missing"
                        raise RequestError(f"{where}.{name}", found, self.describe(name))
                    typed[name] = None
                    continue
                try:
                    typed[name] = convert(value)
                except BrokenImage as error:
                    raise RequestError(f"{where}.{name}", str(error), self.describe(name)) from None
                except (TypeError, ValueError, OverflowError):
                    found = f"a value ({type(value).__name__})" if name in private else _show(value)
                    raise RequestError(f"{where}.{name}", found, self.describe(name)) from None
            if len(row) > len(names) or not row.keys() <= checks.keys():
                extra = next((str(key) for key in row if key not in checks), None)
                if extra is not None:
                    raise RequestError(
                        f"{where}.{extra}", "not a field", "only known fields" + nearest(extra, names).replace(" Did", "; did").rstrip(".")
                    )
            return typed

        return check

    def describe(self, name: str) -> str:
        """What a column expects, for people: `a number from 0 to 23`."""
        rule = self.columns[name]
        noun = {"bool": "true or false", "int": "a whole number", "float": "a number", "string": "text", "bytes": "base64 text"}
        words = noun.get(rule.type, "a timestamp in ISO 8601, as 2013-07-01T09:00:00Z")
        if rule.privacy is not None and makes_text(rule.privacy):
            words = "text or a whole number"
        if rule.categories:
            words = "one of " + ", ".join(rule.categories)
        elif rule.pattern:
            words = f"text of at most {MAX_PATTERN_TEXT:,} characters that matches {rule.pattern}"
        elif rule.max_pixels is not None:
            words = f"base64 text of an image ({', '.join(FORMATS)}) of at most {rule.max_pixels:,} pixels"
        if rule.minimum is not None or rule.maximum is not None:
            words += f" from {_number(rule.minimum, '-inf')} to {_number(rule.maximum, 'inf')}"
        return words + (" or null" if rule.nullable else "")


def table_of(rows: list[Row], contract: Contract) -> pa.Table:
    """Typed rows as an Arrow table with the contract's types."""
    return pa.table({name: pa.array([row[name] for row in rows], ARROW[rule.type]) for name, rule in contract.columns.items()})


def in_quarantine(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as text, bytes as a checksum of theirs."""
    return to_text(array) if column_type(array.type) == "bytes" else pc.cast(array, pa.string())


def _number(value: float | None, default: str) -> str:
    return default if value is None else f"{value:g}"


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _cast(array: pa.ChunkedArray, wanted: ColumnType) -> tuple[pa.ChunkedArray, Any]:
    """The column in the wanted type, and a mask of the values that could not be read (they become null)."""
    none = np.zeros(len(array), dtype=bool)
    if column_type(array.type) == wanted and array.type == ARROW[wanted]:
        return array, none
    if pa.types.is_null(array.type):
        return pa.chunked_array([pa.nulls(len(array), ARROW[wanted])]), none
    try:
        if wanted in ("int", "float", "bool") and column_type(array.type) == "timestamp":
            raise pa.ArrowInvalid("a timestamp is no number")
        if wanted == "timestamp" and column_type(array.type) in ("int", "float", "bool"):
            raise pa.ArrowInvalid("a number is no timestamp")
        if wanted == "timestamp" and column_type(array.type) == "timestamp" and getattr(array.type, "tz", None) is None:
            array = pc.assume_timezone(pc.cast(array, pa.timestamp("us")), "UTC")
        return pc.cast(array, ARROW[wanted]), none
    except pa.ArrowInvalid:
        values = array.to_pylist()
        convert = _text_reader(wanted)
        read = [convert(value) for value in values]
        lost = np.array([value is not None and got is None for value, got in zip(values, read, strict=True)])
        return pa.chunked_array([pa.array(read, ARROW[wanted])]), lost


def _cast_raw(array: pa.ChunkedArray, wanted: ColumnType) -> tuple[pa.ChunkedArray, Any]:
    """`_cast` of a raw column to be transformed: 7.0 is the text `7`, as a whole number with nulls often comes as a float."""
    if wanted != "string" or not pa.types.is_floating(array.type):
        return _cast(array, wanted)
    whole, unreadable = _cast(array, "int")
    return _cast(whole, "string")[0], unreadable


def _text_reader(wanted: ColumnType) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            if value is None:
                return None
            if wanted == "string":
                return str(value)
            if wanted == "bytes":
                return value if isinstance(value, bytes) else None
            if wanted == "timestamp":
                return _moment(value)
            if wanted == "bool":
                return {"true": True, "false": False}[str(value).lower()]
            if isinstance(value, datetime):
                return None
            number = float(value)
            if wanted == "int":
                return int(number) if number == int(number) and -(2**63) <= number < 2**63 else None
            return number
        except (TypeError, ValueError, KeyError, OverflowError):
            return None

    return read


def _broken(name: str, array: pa.ChunkedArray, unreadable: Any, rule: ColumnContract) -> list[tuple[Any, str]]:
    found = []
    if not rule.nullable:
        empty = pc.is_null(array).to_numpy(zero_copy_only=False) & ~unreadable
        found.append((empty, f"{name} is null"))
    if rule.type in ("int", "float") and (rule.minimum is not None or rule.maximum is not None):
        numbers = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            low = numbers < (-math.inf if rule.minimum is None else rule.minimum)
            high = numbers > (math.inf if rule.maximum is None else rule.maximum)
        found.append((low, f"{name} is below {_number(rule.minimum, '')}"))
        found.append((high, f"{name} is above {_number(rule.maximum, '')}"))
    if rule.categories:
        known = pc.is_in(pc.cast(array, pa.string()), value_set=pa.array(rule.categories))
        unknown = ~known.to_numpy(zero_copy_only=False) & ~pc.is_null(array).to_numpy(zero_copy_only=False)
        found.append((unknown, f"{name} is not one of its categories"))
    if rule.pattern:
        wrong = ~_matches(array.combine_chunks(), rule.pattern) & ~pc.is_null(array).to_numpy(zero_copy_only=False)
        found.append((wrong, f"{name} does not match its pattern"))
    if rule.max_pixels is not None:
        found += _broken_images(name, array, rule.max_pixels)
    return found


def _broken_images(name: str, array: pa.ChunkedArray, max_pixels: int) -> list[tuple[Any, str]]:
    """A mask for each thing that is wrong with an image."""
    reasons = np.full(len(array), "", dtype=object)
    for place, content in enumerate(array):
        if content.is_valid:
            try:
                decoded(content.as_py(), max_pixels)
            except BrokenImage as error:
                reasons[place] = str(error)
    return [(reasons == reason, f"{name} is {reason}") for reason in dict.fromkeys(reasons) if reason]


def _private_checker(name: str, rule: ColumnContract, key: PrivacyKey | None) -> Callable[[Any], Any]:
    """One value of a request: the raw value's type, then the transform, then what the contract says of the result."""
    check = _value_checker(rule)
    if rule.privacy is None:
        return check
    convert = single(name, rule.privacy, key)
    if rule.type == "string":
        return lambda value: check(convert(value))
    readable = _value_checker(ColumnContract(type=rule.type))
    return lambda value: check(convert(readable(value)))


def _whole(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"


def _matches(texts: pa.Array, pattern: str) -> Any:
    """Mask of the texts that match as a whole, by RE2; null does not."""
    fits = pc.less_equal(pc.utf8_length(texts), MAX_PATTERN_TEXT)
    return pc.and_(fits, pc.match_substring_regex(texts, _whole(pattern))).fill_null(False).to_numpy(zero_copy_only=False)


def _value_checker(rule: ColumnContract) -> Callable[[Any], Any]:
    """One value of a request: raises TypeError or ValueError when it does not fit."""
    low = -math.inf if rule.minimum is None else rule.minimum
    high = math.inf if rule.maximum is None else rule.maximum
    known = frozenset(rule.categories)

    @lru_cache(maxsize=KNOWN_TEXTS)
    def matches(value: str) -> bool:
        """The same engine as for batches: Python's own could be made to run for ever. Remembered, since a call takes 60 us."""
        return bool(_matches(pa.array([value], pa.string()), rule.pattern or "")[0])

    def ranged(number: Any) -> Any:
        if not low <= number <= high or not math.isfinite(number):
            raise ValueError
        if known and str(number) not in known:
            raise ValueError
        return number

    def floating(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise TypeError
        return float(ranged(value))

    def whole(value: Any) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not -(2**63) <= value < 2**63:
            raise TypeError
        return int(ranged(value))

    def text(value: Any) -> str:
        if type(value) is not str:
            raise TypeError
        value.encode()
        if known and value not in known:
            raise ValueError
        if rule.pattern is not None and (len(value) > MAX_PATTERN_TEXT or not matches(value)):
            raise ValueError
        return value

    def encoded(value: Any) -> bytes:
        if type(value) is not str:
            raise TypeError
        content = base64.b64decode(value, validate=True)
        if rule.max_pixels is not None:
            decoded(content, rule.max_pixels)
        return content

    def truth(value: Any) -> bool:
        if type(value) is not bool:
            raise TypeError
        return value

    checkers: dict[ColumnType, Callable[[Any], Any]] = {
        "bool": truth, "int": whole, "float": floating, "string": text, "timestamp": _moment, "bytes": encoded,
    }  # fmt: skip
    return checkers[rule.type]


def _moment(value: Any) -> datetime:
    """A timestamp in UTC; text is ISO 8601, and no zone means UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
