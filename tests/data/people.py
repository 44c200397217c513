"""A small snapshot of ten users, written by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from raymlp.config.privacy import Rule
from raymlp.core.files import digest_of, sha256_file
from raymlp.data import parquet
from raymlp.data.contract import Contract
from raymlp.data.contract_batch import check_table
from raymlp.data.privacy import PrivacyKey
from raymlp.data.profile import Profile

SECRET = "a secret of the tests that is long enough"
SNAPSHOT_SECRET = "a snapshot secret of the tests, long enough"
KEY = PrivacyKey(SECRET)
USERS = [f"user-{i % 10}" for i in range(100)]


def make_snapshot(folder: Path, name: str, rule: Rule | None = None, *, sealed: bool = False) -> Path:
    """100 rows of ten users in two splits, and one quarantined row of user-3."""
    path, key = folder / name, parquet.SnapshotKey(SNAPSHOT_SECRET) if sealed else None
    now = datetime(2026, 3, 1, tzinfo=UTC)
    raw = pa.table(
        {"user": USERS, "n": range(100), "at": pa.array([now - timedelta(days=i) for i in range(100)], pa.timestamp("us", "UTC"))}
    )
    contract = Contract.infer(Profile().update(raw))
    contract = contract.with_privacy({"user": rule} if rule else {}, KEY)
    table, _ = check_table(contract, raw)
    text = pa.table({column: table.column(column).slice(3, 1).cast(pa.string()) for column in table.column_names})
    for place, rows in (
        ("train/a", table.slice(0, 70)),
        ("train/b", table.slice(98)),
        ("valid/a", table.slice(70, 28)),
        ("quarantine/a", text),
    ):
        writer = parquet.Writer(path / f"{place}.parquet", key)
        writer.write(rows)
        writer.close()
    profile = Profile().update(pa.concat_tables([table.slice(0, 70), table.slice(98)]))
    (path / "profile.json").write_text(parquet.sealed_text(json.dumps(profile.to_dict()), key))
    (path / "contract.yaml").write_text(contract.to_yaml())
    files = {str(file.relative_to(path)): sha256_file(file) for file in sorted(path.rglob("*.parquet"))}
    manifest = {
        "created": name,
        "files": files,
        "digest": digest_of(files),
        "rows": {"train": 72, "valid": 28},
        "quarantined": 1,
        "key": "k",
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
