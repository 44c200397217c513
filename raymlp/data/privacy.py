"""Personal data made harmless: the same transform for Arrow columns at ingestion and for one value at the endpoint.

Every transform gives its own results back unchanged, so that rows of a snapshot can be sent to the endpoint and rows of the
prediction log can be scored again. Tokens prove themselves for that: a hash carries eight digits that only the key's holder
can make, and a pseudonym is authenticated by AES-SIV.

The key comes from `RAYMLP_PRIVACY_KEY` alone and is in no file, log or representation. Contracts carry its check value, eight
hexadecimal digits that show whether another key is the same one.
"""

from __future__ import annotations

import base64
import hmac
import math
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.privacy import Generalise, Hash, Keep, Mask, Pseudonymise, Rule
from raymlp.config.sources import ColumnType
from raymlp.core.errors import ConfigError
from raymlp.core.secret import environment_secret

KEY_VARIABLE = "RAYMLP_PRIVACY_KEY"
PROOF_DIGITS = 8
BASE64URL = re.compile(r"[A-Za-z0-9_-]{22,}")
ONE_WAY = "-"
"""Stands between a hash and its proof."""

ROUTING_KEY = "routing_key"

Single = Callable[[Any], Any]
"""One value, not null. Raises TypeError or ValueError for a value of the wrong type."""


class Mac:
    """HMAC-SHA256 (RFC 2104) with the key's blocks hashed once: a quarter of the time of `hmac.digest` on short texts."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        block = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def __reduce__(self) -> tuple[type[Mac], tuple[bytes]]:
        return type(self), (self._key,)

    def hex(self, text: str) -> str:
        """The 64 hexadecimal digits of a text."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode())
        outer.update(inner.digest())
        return outer.hexdigest()


class PrivacyKey:
    """The secret, as keys for each purpose. Its representation says nothing about it."""

    def __init__(self, secret: str) -> None:
        self._hash, self._proof = Mac(_derived(secret, "hash")), Mac(_derived(secret, "proof"))
        self._check = _derived(secret, "check")
        self._pseudonym = _derived(secret, "pseudonym 1") + _derived(secret, "pseudonym 2")
        self.suppression = Mac(_derived(secret, "suppression"))

    def __repr__(self) -> str:
        return "PrivacyKey(***)"

    @property
    def check(self) -> str:
        """Eight hexadecimal digits that tell this key from another, and nothing else about it."""
        return self._check.hex()[:8]

    def hashed(self, text: str, *, column: str, length: int) -> str:
        """HMAC-SHA256 of column and text, `length` hexadecimal digits, then `-` and the proof."""
        digits = self._hash.hex(f"{column}\0{text}")[:length]
        return f"{digits}{ONE_WAY}{self._proof_of(column, digits)}"

    def is_hashed(self, text: str, *, column: str, length: int) -> bool:
        """Whether a text came out of `hashed` of this key and column."""
        if len(text) != length + 1 + PROOF_DIGITS or text[length] != ONE_WAY:
            return False
        return hmac.compare_digest(text[length + 1 :].encode(), self._proof_of(column, text[:length]).encode())

    def _proof_of(self, column: str, digits: str) -> str:
        return self._proof.hex(f"{column}\0{digits}")[:PROOF_DIGITS]

    def cipher(self) -> Any:
        """AES-256 in SIV mode (RFC 5297): deterministic and authenticated."""
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        return AESSIV(self._pseudonym)


def _derived(secret: str, use: str) -> bytes:
    return hmac.digest(secret.encode(), f"raymlp privacy: {use}".encode(), "sha256")


def environment_key(reason: str = "the data has privacy rules") -> PrivacyKey:
    """The key of this process. Raises ConfigError that names the variable when it is missing or short."""
    return PrivacyKey(environment_secret(KEY_VARIABLE, reason))


def given_key() -> PrivacyKey | None:
    """The key of this process, where one is set. Raises ConfigError when it is short."""
    return environment_key("people who are forgotten are listed with it") if os.environ.get(KEY_VARIABLE) else None


def needs_key(rule: Rule | None) -> bool:
    """Whether a rule cannot be applied without the key."""
    return isinstance(rule, Hash | Pseudonymise)


def makes_text(rule: Rule) -> bool:
    """Whether a rule turns text and whole numbers into text of its own."""
    return isinstance(rule, Hash | Pseudonymise | Mask)


def key_for(rules: Mapping[str, Rule]) -> PrivacyKey | None:
    """The key when one of the rules needs it. Raises ConfigError when it is missing or short."""
    column = next((name for name, rule in rules.items() if needs_key(rule)), None)
    return environment_key(f"the column '{column}' is to be {_past(rules[column])}") if column is not None else None


def type_after(name: str, kind: ColumnType, rule: Rule) -> ColumnType:
    """A column's type after its rule: tokens are text. Raises ConfigError for a rule that does not fit the type."""
    if makes_text(rule):
        allowed: tuple[ColumnType, ...] = ("string", "int")
        after: ColumnType = "string"
    elif isinstance(rule, Generalise):
        allowed = ("string",) if rule.first else ("timestamp",) if rule.to else ("int", "float")
        after = kind
        if kind == "int" and rule.width and not rule.width.is_integer():
            raise ConfigError(
                f"data.privacy.columns.{name}.width is {rule.width:g} for whole numbers; expected a whole number. "
                f"Set data.privacy.columns.{name}.width, or data.source.types.{name}=float."
            )
    else:
        return kind
    if kind not in allowed:
        raise ConfigError(
            f"data.privacy.columns.{name} is {rule.kind}, and the column's type is {kind}; expected {' or '.join(allowed)}. "
            f"Set data.privacy.columns.{name} or data.source.types.{name}."
        )
    return after


def single(name: str, rule: Rule, key: PrivacyKey | None) -> Single:
    """The transform of one value of a column."""
    if isinstance(rule, Hash):
        return _hasher(name, rule, _present(key))
    if isinstance(rule, Pseudonymise):
        return _pseudonymiser(name, _present(key))
    if isinstance(rule, Mask):
        return lambda value: masked(_as_text(value), keep_last=rule.keep_last)
    if isinstance(rule, Generalise):
        return _generaliser(rule)
    return lambda value: value


def transformed(array: pa.ChunkedArray, name: str, rule: Rule, key: PrivacyKey | None) -> pa.ChunkedArray:
    """The transform of a column; null stays null. Work is done once for each distinct value of a chunk.

    A value that the rule cannot take (text in a numeric column) becomes null: the contract has said so already.
    """
    if isinstance(rule, Keep) or pa.types.is_null(array.type):
        return array
    if isinstance(rule, Generalise) and not rule.first:
        return _generalised(array, rule)
    convert = single(name, rule, key)
    chunks = [_by_distinct(chunk, convert) for chunk in array.chunks]
    return pa.chunked_array(chunks, pa.string())


def routing_key_hider(key: PrivacyKey | None) -> Callable[[str], str]:
    """What the prediction log holds in place of a routing key, which is often a person's id: its hash, where there is a key."""
    if key is None:
        return lambda text: text
    return _hasher(ROUTING_KEY, Hash(), key)


def revealed(token: str, *, column: str, key: PrivacyKey | None = None) -> str:
    """The value behind a pseudonym of a column. Raises ConfigError when the key or the column is not the token's."""
    value = _opened(token, column, (key or environment_key("a pseudonym is to be turned back")).cipher())
    if value is None:
        raise ConfigError(f"'{token[:60]}' is no pseudonym of the column '{column}' under this key. Set {KEY_VARIABLE}, or the column.")
    return value


def masked(text: str, *, keep_last: int) -> str:
    """`0171234567` with keep_last 2 is `********67`. At most half of the characters stay, so that a short value is hidden too."""
    kept = min(keep_last, len(text) // 2)
    return "*" * (len(text) - kept) + text[len(text) - kept :]


def _by_distinct(chunk: pa.Array, convert: Single) -> pa.Array:
    if not pa.types.is_dictionary(chunk.type):
        chunk = chunk.dictionary_encode()
    values = pa.array([None if value is None else convert(value) for value in chunk.dictionary.to_pylist()], pa.string())
    return values.take(chunk.indices)


def _hasher(name: str, rule: Hash, key: PrivacyKey) -> Single:
    def convert(value: Any) -> str:
        text = _as_text(value)
        return text if key.is_hashed(text, column=name, length=rule.length) else key.hashed(text, column=name, length=rule.length)

    return convert


def _pseudonymiser(name: str, key: PrivacyKey) -> Single:
    cipher, context = key.cipher(), [name.encode()]

    def convert(value: Any) -> str:
        text = _as_text(value)
        if _opened(text, name, cipher) is not None:
            return text
        return base64.urlsafe_b64encode(cipher.encrypt(text.encode(), context)).decode().rstrip("=")

    return convert


def _opened(token: str, column: str, cipher: Any) -> str | None:
    from cryptography.exceptions import InvalidTag

    if not BASE64URL.fullmatch(token):
        return None
    try:
        secret = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        plain: bytes = cipher.decrypt(secret, [column.encode()])
    except (InvalidTag, ValueError):
        return None
    return plain.decode()


def _generaliser(rule: Generalise) -> Single:
    if rule.first:
        length = rule.first
        return lambda value: _as_text(value)[:length]
    if rule.to:
        return lambda moment: _period_start(moment, rule)
    width = rule.width or 1.0
    return lambda number: _lower_end(number, width)


def _lower_end(number: Any, width: float) -> Any:
    if type(number) is int and width.is_integer():
        return number // int(width) * int(width)
    if type(number) not in (int, float):
        raise TypeError
    place = number / width
    return math.floor(place + EDGE + abs(place) * ROUNDING) * width if abs(place) < MOST_WIDTHS else number


EDGE, ROUNDING = 1e-9, 4.5e-16
"""By how much, absolutely and relatively, a place may lie below an edge and still be on it: an edge must map to itself again."""
MOST_WIDTHS = 2**40
"""A number of more widths stays as it is, as do infinity and NaN: such ranges are as fine as the number's own digits."""


def _period_start(moment: Any, rule: Generalise) -> datetime:
    if not isinstance(moment, datetime):
        raise TypeError
    start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if rule.to == "day":
        return start
    month = {"year": 1, "quarter": (start.month - 1) // 3 * 3 + 1}.get(str(rule.to), start.month)
    return start.replace(month=month, day=1)


def _generalised(array: pa.ChunkedArray, rule: Generalise) -> pa.ChunkedArray:
    if rule.to:
        return pc.cast(pc.floor_temporal(array, unit=rule.to), array.type)
    width = rule.width or 1.0
    if pa.types.is_integer(array.type):
        step = int(width)
        whole = [pa.array(_floored(chunk, step), pa.int64(), mask=_nulls(chunk)) for chunk in array.chunks]
        return pa.chunked_array(whole, pa.int64())
    with np.errstate(invalid="ignore", over="ignore"):
        chunks = [pa.array(_lower_ends(chunk, width), pa.float64(), mask=_nulls(chunk)) for chunk in array.chunks]
    return pa.chunked_array(chunks, pa.float64())


def _floored(chunk: pa.Array, step: int) -> Any:
    return pc.fill_null(chunk, 0).to_numpy(zero_copy_only=False) // step * step


def _lower_ends(chunk: pa.Array, width: float) -> Any:
    values = pc.cast(chunk, pa.float64()).to_numpy(zero_copy_only=False)
    places = values / width
    return np.where(np.abs(places) < MOST_WIDTHS, np.floor(places + EDGE + np.abs(places) * ROUNDING) * width, values)


def _nulls(chunk: pa.Array) -> Any:
    return pc.is_null(chunk).to_numpy(zero_copy_only=False)


def _as_text(value: Any) -> str:
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise TypeError
    return value


def _present(key: PrivacyKey | None) -> PrivacyKey:
    return key if key is not None else environment_key()


def _past(rule: Rule) -> str:
    return "pseudonymised" if isinstance(rule, Pseudonymise) else "hashed"
