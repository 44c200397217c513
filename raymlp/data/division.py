"""The second pass: staged rows go to their splits, are profiled and hashed, and held-out ones are checked by the contract."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
from raymlp.core.errors import DataError
from raymlp.core.files import Place, to_json
from raymlp.data import parquet
from raymlp.data.anonymity import Groups
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
    """How staged parts are divided: plain values, sent once. Columns in `leave_out` go no further, those in `unhashed` do not tell
    copies apart, and rows are counted by those in `grouped`."""

    staging: Place
    aside: Place
    leave_out: Sequence[str]
    unhashed: Sequence[str]
    grouped: Sequence[str]
    seal: parquet.SnapshotKey | None

    def rows(self, index: int, codes: NDArray[np.int8]) -> Iterator[tuple[pa.Table, NDArray[np.int8]]]:
        """Staged rows of a part, and the code of each."""
        path = self.staging / f"part-{index:05}.parquet"
        start = 0
        for table in parquet.batches(path, key=self.seal) if path.exists() else ():
            yield table.drop_columns(list(self.leave_out)), codes[start : start + table.num_rows]
            start += table.num_rows


class Tally:
    """What the second pass learns of one part: profiles of held-out rows, hashes and groups of all, how training columns move together."""

    def __init__(self, cut: Cut, contract: Contract, outline: Outline) -> None:
        self.cut, self.contract = cut, contract
        self.association = Association(outline)
        self.profiles = {name: Profile() for name in SPLITS[1:]}
        self.hashes: dict[str, list[bytes]] = {name: [] for name in SPLITS if name != "live"}
        self.groups = Groups()
        self.bad, self.first = 0, ""

    def train(self, table: pa.Table) -> None:
        """Take in training rows."""
        self.association.update(table)
        self._count("train", table)

    def judge(self, split: str, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Take in held-out rows; gives those that keep the contract, and the others with their reasons."""
        good, broken = checked(self.contract, split, table)
        self.bad += broken.num_rows
        self.first = self.first or (f"{split}: {broken.column(REASON)[0].as_py()}" if broken.num_rows else "")
        if good.num_rows:
            self.profiles[split].update(good)
        self._count(split, good)
        return good, broken

    def _count(self, split: str, table: pa.Table) -> None:
        if split in self.hashes:
            told_apart = table.select([name for name in table.column_names if name not in self.cut.unhashed])
            self.hashes[split].append(row_hashes(told_apart).tobytes())
        if self.cut.grouped and table.num_rows:
            self.groups.update(table, self.cut.grouped)

    def facts(self) -> dict[str, Any]:
        """What the driver adds up."""
        return {
            "profiles": to_json({name: profile.to_dict() for name, profile in self.profiles.items()}, indent=None),
            "association": to_json(self.association.to_dict(), indent=None),
            "groups": self.groups.to_bytes(),
            "bad": self.bad,
            "first": self.first,
            **{f"hashes_{name}": b"".join(found) for name, found in self.hashes.items()},
        }


def checked(contract: Contract, split: str, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Held-out rows that keep the contract, and those that break it. Live rows are not judged."""
    return (table, table.slice(0, 0)) if split == "live" else check_table(contract, table)


def write_training(cut: Cut, index: int, codes: NDArray[np.int8]) -> dict[str, Any]:
    """Write and profile the training rows of one staged part."""
    profile = Profile()
    writer = parquet.Writer(cut.aside / "train" / f"part-{index:05}.parquet", cut.seal)
    for table, piece in cut.rows(index, codes):
        chosen = table.filter(pa.array(piece == SPLITS.index("train")))
        profile.update(chosen)
        writer.write(chosen)
    writer.close()
    return {"profile": to_json(profile.to_dict(), indent=None), "files": parquet.facts_of([writer], cut.aside)}


def write_rest(cut: Cut, index: int, codes: NDArray[np.int8], contract: Contract, outline: Outline) -> dict[str, Any]:
    """Check, write and profile the held-out rows of one staged part; see how the columns of its training rows move together."""
    tally = Tally(cut, contract, outline)
    good_files = {name: parquet.Writer(cut.aside / name / f"part-{index:05}.parquet", cut.seal) for name in SPLITS[1:]}
    bad_files = {name: parquet.Writer(cut.aside / "quarantine" / f"{name}-{index:05}.parquet", cut.seal) for name in SPLITS[1:]}
    for table, piece in cut.rows(index, codes):
        tally.train(table.filter(pa.array(piece == SPLITS.index("train"))))
        for name in SPLITS[1:]:
            good, broken = tally.judge(name, table.filter(pa.array(piece == SPLITS.index(name))))
            good_files[name].write(good)
            bad_files[name].write(broken)
    for writer in (*good_files.values(), *bad_files.values()):
        writer.close()
    files = parquet.facts_of((*good_files.values(), *bad_files.values()), cut.aside)
    return {**tally.facts(), "files": files}


def profile_of(results: list[dict[str, Any]], split: str) -> Profile:
    return merged(Profile.from_dict(json.loads(item["profiles"])[split]) for item in results)


def training_profile(results: Sequence[Mapping[str, Any]], known: Sequence[Profile] = ()) -> Profile:
    """The profile of all training rows: of those that were profiled now, and `known` ones of others."""
    return merged([*known, *(Profile.from_dict(json.loads(item["profile"])) for item in results)])


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


def quarantine_repeats(
    shape: Shape, staging: Place, indices: Sequence[int], counts: NDArray[np.int64], repeated: NDArray[np.int16], quarantine: Place
) -> str:
    """Write rows of staged parts that repeat a unique key to quarantine, as text with the reason. Gives the files' facts, as
    `parquet.facts_of` does."""
    writers = []
    for index, (start, end) in zip(indices, pairwise(counts), strict=True):
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
    keys = [keys_of(rule, problem, parquet.read(file, _key_names(rule, problem))) for file in files]
    return np.concatenate(keys) if keys else np.zeros(0)


def _key_names(rule: Split, problem: Problem) -> list[str]:
    return list(rule.key_columns or filter(None, [problem.target]))


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
