"""People who were forgotten stay out: `forget` lists them, and `prepare` drops their rows before any file is written.

The list lies beside a problem's snapshots. It holds HMAC-SHA256 digests of column, type and value, never a value. Their key comes
from `RAYMLP_PRIVACY_KEY` where that is set, else from a random salt beside the list that its owner alone can read, or, in an object
store, whoever may read the snapshots.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.sources import ColumnType
from raymlp.core.errors import ConfigError, DataError
from raymlp.core.files import Place, digest_of, to_json
from raymlp.data.casting import ARROW, read_column
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.privacy import KEY_VARIABLE, Mac, environment_key, given_key
from raymlp.data.profile import column_type
from raymlp.runtime.store import write_whole

LIST = "suppressed.json"
SALT = "suppressed.salt"
SALT_BYTES = 32
BY_SALT = "salt"
"""Name, in the list, of the key that is made from the salt; another goes by its check value."""
KINDS: tuple[ColumnType, ...] = ("string", "int", "float", "bool", "timestamp")
"""Types that a value is listed under, to be recognised whatever type its column has: `007` is 7 among whole numbers."""


@dataclass(frozen=True)
class Sieve:
    """What a worker needs to recognise people: by column, each key with the digests that were made with it."""

    columns: Mapping[str, Sequence[tuple[Mac, frozenset[str]]]] = field(default_factory=dict)

    def let_through(self, table: pa.Table, contract: Contract) -> pa.Table:
        """The raw rows that belong to nobody on the list, read as `contract` reads them. Each distinct value is hashed once."""
        for name in self.columns:
            if name in table.column_names:
                table = table.filter(pc.invert(self._belong(name, table.column(name), contract.columns.get(name))))
        return table

    def _belong(self, name: str, raw: pa.ChunkedArray, rule: ColumnContract | None) -> pa.Array:
        """Which values are listed; one that is not of the contract's type, or has no contract, is taken as it is."""
        kind = column_type(raw.type)
        if rule is None:
            return self._listed(name, kind, read_column(raw, ColumnContract(type=kind))[0]) if kind else _none_of(raw)
        values, unreadable = read_column(raw, rule)
        found = self._listed(name, rule.type, values)
        return pc.or_(found, self._listed(name, kind, raw)) if kind and unreadable.any() else found

    def _listed(self, name: str, kind: ColumnType, values: pa.ChunkedArray) -> pa.Array:
        if kind not in KINDS:
            return _none_of(values)
        encoded = pc.cast(values, pa.string()).combine_chunks().dictionary_encode()
        listed = [
            any(mac.hex(_message(name, kind, text)) in digests for mac, digests in self.columns[name])
            for text in encoded.dictionary.to_pylist()
        ]
        return pc.fill_null(pa.array(listed, pa.bool_()).take(encoded.indices), False)


@dataclass(frozen=True)
class Suppressed:
    """The list of a problem: by column, the name of each key with the digests that were made with it."""

    folder: Place
    columns: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Place) -> Self:
        """The list among the snapshots in `folder`, empty where there is none. Raises DataError when it cannot be read."""
        try:
            listed = json.loads((folder / LIST).read_text())
            columns = {name: {key: frozenset(map(str, found)) for key, found in keys.items()} for name, keys in listed["columns"].items()}
        except (FileNotFoundError, NotADirectoryError):
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder / LIST} cannot be read ({error!r}); expected the list of those who were forgotten.") from None
        return cls(folder, columns)

    @property
    def digest(self) -> str:
        """Tells this list from another; empty for an empty one."""
        return digest_of(self._plain()) if self.columns else ""

    def sieve(self) -> Sieve:
        """The list with its keys. Raises ConfigError or DataError when one of them is missing or another one."""
        keys = {key: self._mac(key) for key in sorted({key for found in self.columns.values() for key in found})}
        return Sieve({name: [(keys[key], digests) for key, digests in found.items()] for name, found in self.columns.items()})

    def listing(self, column: str, values: Collection[str]) -> tuple[Suppressed, Suppressed]:
        """The list without and with a person, whose `values` in a column are all forms of the same. Makes the salt where it is needed."""
        self.sieve()
        given = given_key()
        name = given.check if given is not None else BY_SALT
        if name == BY_SALT and not (self.folder / SALT).exists():
            write_whole(self.folder / SALT, secrets.token_hex(SALT_BYTES), mode=0o600)
        mac = self._mac(name)
        person = frozenset(mac.hex(_message(column, kind, text)) for value in values for kind, text in _texts(value))
        there = self.columns.get(column, {}).get(name, frozenset())
        return self._changed(column, name, there - person), self._changed(column, name, there | person)

    def save(self) -> None:
        """Write the list, whole or not at all."""
        write_whole(self.folder / LIST, to_json({"version": 1, "columns": self._plain()}) + "\n")

    def warnings(self, known: Collection[str]) -> list[str]:
        """Columns of the list that the data does not have: people cannot be recognised by them."""
        return [
            f"the data has no column '{name}', by which people were forgotten: their rows cannot be told from others"
            for name in self.columns
            if name not in known
        ]

    def facts(self, staged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For the manifest: which list was applied, and how many rows it held back. Raises DataError when no other row is left."""
        if not self.columns:
            return {}
        rows = sum(part["suppressed"] for part in staged)
        if rows and not sum(part["rows"] + part["bad"] + part["unlabelled"] for part in staged):
            raise DataError(
                f"all {rows:,} rows belong to people who were forgotten ({self.folder / LIST}); expected others. Set data.source."
            )
        return {"suppressed": {"list": self.digest, "rows": rows}}

    def _mac(self, name: str) -> Mac:
        place = self.folder / LIST
        if name == BY_SALT:
            return Mac(_salt(self.folder / SALT))
        key = environment_key(f"{place} was made with it")
        if key.check != name:
            raise ConfigError(
                f"{KEY_VARIABLE} is another key than the one that {place} was made with: its check value is {key.check}; expected {name}. "
                f"Set {KEY_VARIABLE} to that key, or remove the list and forget those people again."
            )
        return key.suppression

    def _changed(self, column: str, name: str, digests: frozenset[str]) -> Suppressed:
        keys = {key: found for key, found in {**self.columns.get(column, {}), name: digests}.items() if found}
        columns = {other: found for other, found in {**self.columns, column: keys}.items() if found}
        return Suppressed(self.folder, columns)

    def _plain(self) -> dict[str, dict[str, list[str]]]:
        return {name: {key: sorted(digests) for key, digests in found.items()} for name, found in self.columns.items()}


def applied(manifest: Mapping[str, Any]) -> str:
    """Digest of the list that a snapshot keeps, by its manifest; empty for none."""
    return str(manifest.get("suppressed", {}).get("list", ""))


def _message(column: str, kind: ColumnType, text: str | None) -> str:
    return f"{column}\0{kind}\0{text}"


def _texts(value: str) -> list[tuple[ColumnType, str]]:
    """A value as the text that a column of each type has for it, where the type takes it."""
    found: list[tuple[ColumnType, str]] = []
    for kind in KINDS:
        try:
            found.append((kind, pc.cast(pc.cast(pa.scalar(value), ARROW[kind]), pa.string()).as_py()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return found


def _salt(file: Place) -> bytes:
    try:
        salt = bytes.fromhex(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); expected the salt of {LIST}: without it nobody is recognised. Restore it."
        ) from None
    if len(salt) != SALT_BYTES:
        raise DataError(f"{file} has {len(salt)} bytes; expected {SALT_BYTES}: without the salt nobody is recognised. Restore it.")
    return salt


def _none_of(column: pa.ChunkedArray) -> pa.Array:
    return pa.repeat(pa.scalar(False), len(column))
