"""A contract enforced on single rows, as the endpoint meets them."""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType
from raymlp.core.errors import RequestError, nearest
from raymlp.data.casting import ARROW, moment
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.pattern import MAX_TEXT, matches
from raymlp.data.pictures import BrokenImage, decoded
from raymlp.data.privacy import PrivacyKey, single

KNOWN_TEXTS = 4_096
"""Texts of requests whose match is remembered, for each pattern."""
LARGEST = sys.float_info.max
Row = dict[str, Any]


def row_checker(contract: Contract, *, key: PrivacyKey | None = None) -> Callable[[Any, str], Row]:
    """A function that turns one JSON row into typed values, privacy rules applied, or raises RequestError naming the field.

    Every column must be there (null where nullable), no other may be; numbers are not read from text.
    Raises ConfigError when a rule needs a key and there is none.
    """
    key = contract.key(key)
    checks = {name: _private_checker(name, rule, key) for name, rule in contract.columns.items()}
    columns = [(name, convert, *_plain_range(contract.columns[name])) for name, convert in checks.items()]
    private = {name for name, rule in contract.columns.items() if rule.privacy is not None}
    nullable = {name for name, rule in contract.columns.items() if rule.nullable}
    names = list(checks)

    def check(row: Any, where: str = "instances[0]") -> Row:
        if not isinstance(row, Mapping):
            raise RequestError(where, shown(row), "an object with the fields " + ", ".join(names))
        typed: Row = {}
        for name, convert, low, high in columns:
            value = row.get(name)
            if type(value) is float and low <= value <= high:  # as most are: a call for each would take most of the time
                typed[name] = value
                continue
            if value is None:
                if name not in nullable:
                    found = "null" if name in row else "missing"
                    raise RequestError(f"{where}.{name}", found, contract.describe(name))
                typed[name] = None
                continue
            try:
                typed[name] = convert(value)
            except BrokenImage as error:
                raise RequestError(f"{where}.{name}", str(error), contract.describe(name)) from None
            except (TypeError, ValueError, OverflowError):
                found = f"a value ({type(value).__name__})" if name in private else shown(value)
                raise RequestError(f"{where}.{name}", found, contract.describe(name)) from None
        if len(row) > len(names) or not row.keys() <= checks.keys():
            extra = next((str(key) for key in row if key not in checks), None)
            if extra is not None:
                raise RequestError(
                    f"{where}.{extra}", "not a field", "only known fields" + nearest(extra, names).replace(" Did", "; did").rstrip(".")
                )
        return typed

    return check


def table_of(rows: list[Row], contract: Contract) -> pa.Table:
    """Typed rows as an Arrow table with the contract's types."""
    return pa.table({name: pa.array([row[name] for row in rows], ARROW[rule.type]) for name, rule in contract.columns.items()})


def shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _plain_range(rule: ColumnContract) -> tuple[float, float]:
    """Where a float of this column lies that is taken as it is; nowhere when there is more to look at."""
    if rule.type != "float" or rule.categories or rule.privacy is not None:
        return math.inf, -math.inf
    low, high = rule.minimum, rule.maximum
    return -LARGEST if low is None else max(low, -LARGEST), LARGEST if high is None else min(high, LARGEST)


def _private_checker(name: str, rule: ColumnContract, key: PrivacyKey | None) -> Callable[[Any], Any]:
    """One value of a request: the raw value's type, then the transform, then what the contract says of the result."""
    check = value_checker(rule)
    if rule.privacy is None:
        return check
    convert = single(name, rule.privacy, key)
    if rule.type == "string":
        return lambda value: check(convert(value))
    readable = value_checker(ColumnContract(type=rule.type))
    return lambda value: check(convert(readable(value)))


def value_checker(rule: ColumnContract) -> Callable[[Any], Any]:
    """One value of a request: raises TypeError or ValueError when it does not fit."""
    low = -math.inf if rule.minimum is None else rule.minimum
    high = math.inf if rule.maximum is None else rule.maximum
    known = frozenset(rule.categories)

    @lru_cache(maxsize=KNOWN_TEXTS)
    def fits(value: str) -> bool:
        """The same engine as for batches: Python's own could be made to run for ever. Remembered, since a call takes 60 us."""
        return bool(matches(pa.array([value], pa.string()), rule.pattern or "")[0])

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
        if rule.pattern is not None and (len(value) > MAX_TEXT or not fits(value)):
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
        "bool": truth, "int": whole, "float": floating, "string": text, "timestamp": moment, "bytes": encoded,
    }  # fmt: skip
    return checkers[rule.type]
