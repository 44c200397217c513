"""The one door to the Parquet files of snapshots: written and read here, encrypted or not, on a disk or in an object store.

Encrypted files use Parquet modular encryption with encrypted footers, so that not even the schema shows. Each file has keys of
its own, wrapped (AES-256-GCM) by the key in `RAYMLP_SNAPSHOT_KEY`, which is in no file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymlp.config.privacy import Privacy
from raymlp.core.errors import DataError
from raymlp.core.files import Place
from raymlp.core.secret import environment_secret
from raymlp.runtime.store import StorePlace, asking, place_of, writing

KEY_VARIABLE = "RAYMLP_SNAPSHOT_KEY"
ENCRYPTED = b"PARE"
"""First bytes of a Parquet file whose footer is encrypted."""
SEALED = '{"encrypted":'
"""First characters of an encrypted text file."""
MASTER = "snapshot"
ROW_GROUP = 65_536
SAMPLED_GROUPS = 16
"""Row groups that a sample is read from at most."""
NONCE_BYTES = 12


class SnapshotKey:
    """The key that wraps the files' keys. Its representation says nothing about it."""

    def __init__(self, secret: str) -> None:
        self._key = hmac.digest(secret.encode(), b"raymlp snapshots: wrap", "sha256")

    def __repr__(self) -> str:
        return "SnapshotKey(***)"

    def wrap(self, key: bytes) -> str:
        """Bytes as text that only this key opens: a file's key, or a small file."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(NONCE_BYTES)
        return base64.b64encode(nonce + AESGCM(self._key).encrypt(nonce, key, MASTER.encode())).decode()

    def unwrap(self, wrapped: str | bytes) -> bytes:
        """What was wrapped. Raises OSError, which is what pyarrow raises for broken files, when another key did it."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        data = base64.b64decode(wrapped)
        try:
            return AESGCM(self._key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], MASTER.encode())
        except InvalidTag:
            raise OSError("it was encrypted with another key, or was changed since") from None


def environment_key() -> SnapshotKey:
    """The key of this process. Raises ConfigError that names the variable when it is missing or short."""
    return SnapshotKey(environment_secret(KEY_VARIABLE, "the snapshot is encrypted"))


def key_of(privacy: Privacy) -> SnapshotKey | None:
    """The key to write with, when snapshots are to be encrypted. Raises ConfigError when it is missing or short."""
    return environment_key() if privacy.encrypt_snapshots else None


class Writer:
    """A Parquet file that exists only if rows were written to it; encrypted when there is a key.

    Once it is closed, `rows` and `sha256` (hex, of the file's bytes as they were written) say what it holds.
    """

    def __init__(self, path: Place, key: SnapshotKey | None = None) -> None:
        self.path, self.key = path, key
        self.file: pq.ParquetWriter | None = None
        self.rows, self.sha256 = 0, ""

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        with asking(self.path):
            if self.file is None:
                self.sink = _Digested(writing(self.path))
                self.file = pq.ParquetWriter(self.sink, table.schema, compression="zstd", encryption_properties=_encryption(self.key))
            self.file.write_table(table, row_group_size=ROW_GROUP)
        self.rows += table.num_rows

    def close(self) -> None:
        if self.file is not None:
            with asking(self.path):
                self.file.close()
                self.sink.close()
            self.sha256 = self.sink.digest.hexdigest()


class _Digested:
    """A file that is written from start to end, and the digest of its bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    @property
    def closed(self) -> bool:
        return bool(self.file.closed)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.file.write(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def facts_of(writers: Iterable[Writer], folder: Place) -> str:
    """Digest and rows of the files that were written below a folder, as JSON: `{"train/part-00000.parquet": [SHA256, ROWS]}`."""
    return json.dumps({str(item.path.relative_to(folder)): [item.sha256, item.rows] for item in writers if item.rows})


def is_encrypted(path: Place | str) -> bool:
    """Whether a Parquet file cannot be read without the key."""
    with _place(path).open("rb") as file:
        return bool(file.read(len(ENCRYPTED)) == ENCRYPTED)


@contextmanager
def opened(path: Place | str, key: SnapshotKey | None = None) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read from; an encrypted one with the given key or the environment's.

    Raises ConfigError when there is none, DataError that names the file when it is another one, when the file is broken, or when
    a store does not give it.
    """
    place = _place(path)
    secret = None
    try:
        with place.open("rb") as file:
            secret = (key or environment_key()) if file.read(len(ENCRYPTED)) == ENCRYPTED else None
            file.seek(0)
            remote = isinstance(place, StorePlace)
            source = file if remote else path
            with pq.ParquetFile(source, pre_buffer=remote, decryption_properties=_decryption(secret)) as parquet:
                yield parquet
    except (OSError, pa.ArrowInvalid) as error:
        if secret is not None:
            raise DataError(f"{path} cannot be decrypted: {error}. Set {KEY_VARIABLE} to the key it was written with.") from error
        if isinstance(place, StorePlace) and not isinstance(error, FileNotFoundError):
            raise place.refusal(error) from error
        raise


def batches(
    path: Place | str, columns: Sequence[str] | None = None, *, rows: int = ROW_GROUP, key: SnapshotKey | None = None
) -> Iterator[pa.Table]:
    """The rows of a file, `rows` at a time; the last have fewer. Of a file in a store two row groups are held, encoded and decoded."""
    names = None if columns is None else list(columns)
    with opened(path, key) as file:
        if isinstance(_place(path), StorePlace):
            yield from _of_length(_groups_ahead(file, names), rows)
            return
        for batch in file.iter_batches(batch_size=rows, columns=names):
            yield pa.Table.from_batches([batch])


def _groups_ahead(file: pq.ParquetFile, columns: list[str] | None) -> Iterator[pa.Table]:
    """Row groups, the next one asked for while one is worked on. `iter_batches` would fetch all of them before the first."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(file.read_row_group, 0, columns)
        for group in range(1, file.num_row_groups + 1):
            table = ahead.result()
            if group < file.num_row_groups:
                ahead = pool.submit(file.read_row_group, group, columns)
            yield table


def _of_length(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of one chunk and `rows` rows each, but for the last."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while rest.num_rows >= rows:
            yield rest.slice(0, rows).combine_chunks()
            rest = rest.slice(rows)
    if rest is not None and rest.num_rows:
        yield rest.combine_chunks()


def read(path: Place | str, columns: Sequence[str] | None = None, *, key: SnapshotKey | None = None) -> pa.Table:
    """A whole file, in memory."""
    with opened(path, key) as file:
        return file.read(columns=None if columns is None else list(columns))


def num_rows(path: Place | str, *, key: SnapshotKey | None = None) -> int:
    """Rows of a file, from its footer."""
    with opened(path, key) as file:
        return int(file.metadata.num_rows)


def group_rows(path: Place | str, *, key: SnapshotKey | None = None) -> list[int]:
    """Rows of each row group of a file, from its footer."""
    with opened(path, key) as file:
        return [int(file.metadata.row_group(group).num_rows) for group in range(file.num_row_groups)]


def sample(files: Sequence[Place | str], rows: int, columns: Sequence[str] | None = None, *, key: SnapshotKey | None = None) -> pa.Table:
    """About `rows` evenly spaced rows of all files, read from at most 16 evenly spaced row groups; the same rows every time."""
    sizes = [(file, group, size) for file in files for group, size in enumerate(group_rows(file, key=key))]
    chosen = [sizes[i] for i in spread(len(sizes), SAMPLED_GROUPS)]
    total = sum(size for _, _, size in chosen)
    picked, start = [], 0
    wanted = spread(total, rows)
    for path, group, size in chosen:
        inside = wanted[(wanted >= start) & (wanted < start + size)] - start
        with opened(path, key) as file:
            picked.append(file.read_row_group(group, columns=None if columns is None else list(columns)).take(pa.array(inside)))
        start += size
    return pa.concat_tables(picked)


def spread(total: int, rows: int) -> NDArray[np.int64]:
    """About `rows` evenly spaced places of `total`, int64, rising."""
    return np.unique(np.linspace(0, total - 1, min(rows, total)).astype(np.int64))


def _place(path: Place | str) -> Place:
    return place_of(path) if isinstance(path, str) else path


def sealed_text(text: str, key: SnapshotKey | None) -> str:
    """A small text file beside the Parquet files: as it is, or inside `{"encrypted": ...}` when there is a key."""
    return text if key is None else json.dumps({"encrypted": key.wrap(text.encode())})


def is_sealed(path: Place) -> bool:
    """Whether a text file is an encrypted one."""
    return path.read_text().startswith(SEALED)


def unsealed_text(path: Place, key: SnapshotKey | None = None) -> str:
    """The text that `sealed_text` was given. Raises ConfigError without a key, DataError for another key."""
    text = path.read_text()
    if not text.startswith(SEALED):
        return text
    try:
        return (key or environment_key()).unwrap(json.loads(text)["encrypted"]).decode()
    except OSError as error:
        raise DataError(f"{path} cannot be decrypted: {error}. Set {KEY_VARIABLE} to the key it was written with.") from None


def _factory(key: SnapshotKey) -> Any:
    import pyarrow.parquet.encryption as pe

    class Kms(pe.KmsClient):  # type: ignore[misc]
        """Wraps and unwraps in this process."""

        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            return key.wrap(key_bytes)

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            return key.unwrap(wrapped_key)

    return pe.CryptoFactory(lambda _: Kms()), pe.KmsConnectionConfig()


def _encryption(key: SnapshotKey | None) -> Any:
    import pyarrow.parquet.encryption as pe

    if key is None:
        return None
    factory, connection = _factory(key)
    settings = pe.EncryptionConfiguration(footer_key=MASTER, uniform_encryption=True, plaintext_footer=False, data_key_length_bits=256)
    return factory.file_encryption_properties(connection, settings)


def _decryption(key: SnapshotKey | None) -> Any:
    if key is None:
        return None
    factory, connection = _factory(key)
    return factory.file_decryption_properties(connection)
