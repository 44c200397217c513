"""The second pass: staged rows go to their splits, are profiled and hashed, and held-out ones are checked by the contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.split import GroupSplit, HashSplit, RandomSplit, Split, StratifiedSplit, TimeSplit
from raymlp.core.errors import ConfigError, DataError
from raymlp.core.files import Place, to_json
from raymlp.data import parquet
from raymlp.data.association import Association, Outline, merged_associations
from raymlp.data.contract import Contract
from raymlp.data.contract_batch import REASON, check_table, in_quarantine
from raymlp.data.profile import Profile, merged, to_text
from raymlp.data.rowhash import row_hashes
from raymlp.data.rules import repeat_reasons
from raymlp.data.split import SPLITS, key_hashes
from raymlp.data.staging import Shape


@dataclass(frozen=True)
class Cut:
    """How staged parts are divided: plain values, sent once. Columns in `leave_out` go no further, and those in `unhashed` do not
    tell copies apart."""

    staging: Place
    aside: Place
    leave_out: Sequence[str]
    unhashed: Sequence[str]
    seal: parquet.SnapshotKey | None


def divide(
    cut: Cut,
    index: int,
    codes: NDArray[np.int8],
    splits: Sequence[str],
    contract: Contract | None = None,
    outline: Outline | None = None,
) -> dict[str, Any]:
    """Write, profile and hash the rows of some splits of one staged part. Held-out rows are checked by the contract.

    With an outline the training rows, which were written before, are read for how columns move together.
    """
    profiles = {name: Profile() for name in splits}
    hashes: dict[str, list[bytes]] = {name: [] for name in splits}
    association = Association(outline) if outline else None
    bad, first = 0, ""
    path = cut.staging / f"part-{index:05}.parquet"
    writers = {name: parquet.Writer(cut.aside / name / path.name, cut.seal) for name in splits}
    bad_file = parquet.Writer(cut.aside / "quarantine" / f"held-out-{index:05}.parquet", cut.seal)
    start = 0
    for table in parquet.batches(path, key=cut.seal) if path.exists() else ():
        piece = codes[start : start + table.num_rows]
        start += table.num_rows
        table = table.drop_columns(list(cut.leave_out))
        if association is not None:
            association.update(table.filter(pa.array(piece == SPLITS.index("train"))))
        for name, writer in writers.items():
            chosen = table.filter(pa.array(piece == SPLITS.index(name)))
            if contract is not None and name != "live":
                chosen, broken = check_table(contract, chosen)
                bad += broken.num_rows
                first = first or (f"{name}: {broken.column(REASON)[0].as_py()}" if broken.num_rows else "")
                bad_file.write(broken)
            if chosen.num_rows or name == "train":
                profiles[name].update(chosen)
            if name != "live":
                hashes[name].append(row_hashes(chosen.select([n for n in chosen.column_names if n not in cut.unhashed])).tobytes())
            writer.write(chosen)
    for writer in (*writers.values(), bad_file):
        writer.close()
    return {
        "profiles": to_json({name: profile.to_dict() for name, profile in profiles.items()}, indent=None),
        "association": to_json(association.to_dict(), indent=None) if association else "",
        "bad": bad,
        "first": first,
        "files": parquet.facts_of((*writers.values(), bad_file), cut.aside),
        **{f"hashes_{name}": b"".join(found) for name, found in hashes.items()},
    }


def profile_of(results: list[dict[str, Any]], split: str) -> Profile:
    return merged(Profile.from_dict(json.loads(item["profiles"])[split]) for item in results)


def write_page_data(aside: Place, held_out: list[dict[str, Any]], seal: parquet.SnapshotKey | None) -> None:
    """Profiles of the held-out splits that have rows, and the association of the training split."""
    texts = {}
    for split in SPLITS[1:]:
        profile = profile_of(held_out, split)
        if profile.rows:
            texts[f"profile-{split}.json"] = to_json(profile.to_dict(), indent=None)
    association = merged_associations(Association.from_json(item["association"]) for item in held_out)
    texts["association.json"] = to_json(association.to_dict(), indent=None)
    for name, text in texts.items():
        (aside / name).write_text(parquet.sealed_text(text, seal))


def quarantine_repeats(shape: Shape, staging: Place, counts: NDArray[np.int64], repeated: NDArray[np.int16], quarantine: Place) -> str:
    """Write rows that repeat a unique key to quarantine, as text with the reason. Gives the files' facts, as `parquet.facts_of` does."""
    writers = []
    for index, (start, end) in enumerate(pairwise(counts)):
        if not np.any(repeated[start:end]):
            continue
        writer = parquet.Writer(quarantine / f"repeated-{index:05}.parquet", shape.seal)
        for table in parquet.batches(staging / f"part-{index:05}.parquet", key=shape.seal):
            again = repeated[start : start + table.num_rows]
            reasons = repeat_reasons(shape.contract)[again]
            start += table.num_rows
            text = {name: in_quarantine(table.column(name)) for name in table.column_names}
            writer.write(pa.table({**text, REASON: pa.array(reasons.tolist(), pa.string())}).filter(pa.array(again > 0)))
        writer.close()
        writers.append(writer)
    return parquet.facts_of(writers, quarantine.parent)


def split_keys(problem: Problem, data: Data, files: Sequence[Place]) -> NDArray[Any]:
    """Keys of all rows as `assign` wants them; only hashes, moments or classes are held, not the rows."""
    rule = data.split
    if type(rule) is RandomSplit:
        return np.zeros(sum(parquet.num_rows(file) for file in files))
    if isinstance(rule, StratifiedSplit) and problem.task == "regression":
        raise ConfigError(
            "data.split.kind is stratified with problem.task=regression; expected random, group, hash or time. Set data.split.kind."
        )
    return np.concatenate([keys_of(rule, problem, parquet.read(file, _key_names(rule, problem))) for file in files])


def _key_names(rule: Split, problem: Problem) -> list[str]:
    return list(rule.key_columns) or [problem.target]


def keys_of(rule: Split, problem: Problem, table: pa.Table) -> NDArray[Any]:
    """Keys of the rows of a table that has the rule's columns alone, or the target alone where the rule has none."""
    for name in table.column_names:
        if table.column(name).null_count:
            raise DataError(
                f"the column '{name}' of data.split is null in {table.column(name).null_count:,} rows; expected a value in each."
            )
    column = table.column(0)
    if isinstance(rule, TimeSplit):
        if not pa.types.is_timestamp(column.type):
            raise DataError(
                f"data.split.column '{rule.column}' holds {column.type} values; expected timestamps. "
                f"Set data.source.types.{rule.column}=timestamp."
            )
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if isinstance(rule, GroupSplit | HashSplit):
        return key_hashes([to_text(part).to_pylist() for part in table.columns], seed=rule.seed)
    if isinstance(rule, StratifiedSplit) and problem.positive_above is not None:
        return np.asarray(pc.greater(column, problem.positive_above).to_numpy(zero_copy_only=False))
    return np.asarray(to_text(column).to_numpy(zero_copy_only=False).astype(str))
