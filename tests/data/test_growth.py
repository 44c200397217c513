"""A source that grows: what is read, and that the snapshot is the same as if all had been read."""

from __future__ import annotations

import json
from collections import Counter, namedtuple
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from raymlp.config.data import Data, ForwardFill, Join
from raymlp.config.privacy import Hash, Privacy
from raymlp.config.problem import Problem
from raymlp.config.quality import Checks
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource, DeltaSource, IcebergSource, ImageSource, JsonSource, KafkaSource, ParquetSource, TextSource
from raymlp.config.split import ColumnSplit, GroupSplit, HashSplit, RandomSplit, StratifiedSplit, TimeSplit
from raymlp.core.errors import ContractError, DataError, SourceUnavailable
from raymlp.core.records import Snapshot
from raymlp.data import building, forward_fill, parquet, sources, staging
from raymlp.data.forget import forget, person
from raymlp.data.growth import Earlier
from raymlp.data.place import split_files
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_association, load_contract, load_profile, prepare, read_split
from raymlp.data.sources import images, kafka
from raymlp.data.suppression import Suppressed
from tests.data.people import SECRET, SNAPSHOT_SECRET

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes", id_columns=("id",))
NAMELESS = PROBLEM.model_copy(update={"id_columns": ()})
QUICK = Checks(outliers="off", label_noise="off", leakage="off")
BY_ID = HashSplit(columns=("id",), valid=0.3, test=0.2)
BY_GROUP = GroupSplit(column="g", valid=0.3, test=0.2)
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def parts_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that are read, in this process: the tasks run here, not in Ray."""
    seen: list[str] = []

    def each_part(work: Callable[[int], dict[str, Any]], count: int) -> list[dict[str, Any]]:
        return [work(index) for index in range(count)]

    def read(source: Any, part: sources.Part, *rest: Any, **more: Any) -> Any:
        seen.append(Path(part.path).name + (f" {part.piece}" if part.piece else ""))
        return whole(source, part, *rest, **more)

    whole = sources.read
    for module in (building, staging, forward_fill):
        monkeypatch.setattr(module, "each_part", each_part)
    monkeypatch.setattr(building, "begun", lambda work: lambda: each_part(work, 1))
    monkeypatch.setattr(sources, "read", read)
    return seen


def table(rows: int, seed: int = 0, first: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    wild = np.where(rng.random(rows) < 0.03, 1e4, 1.0)
    return pa.table(
        {
            "id": np.arange(first, first + rows),
            "x": pa.array(rng.normal(size=rows) * wild, mask=rng.random(rows) < 0.1),
            "n": rng.integers(-3, 3, rows),
            "k": rng.choice(["a", "b", "c d", ""], rows),
            "g": [f"g{value}" for value in rng.integers(0, 30, rows)],
            "t": pa.array([START + timedelta(minutes=int(m)) for m in rng.integers(0, 10_000, rows)], pa.timestamp("us", "UTC")),
            "s": rng.choice(["train", "train", "train", "valid", "test", "live"], rows),
            "y": rng.choice(["no", "yes"], rows),
        }
    )


def data(path: Path, split: Any = BY_ID, **changes: Any) -> Data:
    return Data(source=ParquetSource(path=str(path)), split=split, checks=QUICK, max_bad_share=0.5, **changes)


def rows_of(made: Snapshot, folder: str) -> Counter[str]:
    """The rows of a split or of the quarantine, whatever their order."""
    return Counter(
        json.dumps(row, default=str, sort_keys=True) for file in split_files(made.path, folder) for row in parquet.read(file).to_pylist()
    )


def manifest_of(made: Snapshot) -> dict[str, Any]:
    return dict(json.loads((made.path / "manifest.json").read_text()))


def assert_same_profile(left: Profile, right: Profile) -> None:
    assert left.rows == right.rows
    assert left.columns.keys() == right.columns.keys()
    for name, column in left.columns.items():
        other = right.columns[name]
        assert (column.type, column.rows, column.nulls, column.minimum, column.maximum) == (
            other.type, other.rows, other.nulls, other.minimum, other.maximum,
        )  # fmt: skip
        assert column.mean == pytest.approx(other.mean, rel=1e-12, abs=1e-12)
        size = max(abs(column.minimum), abs(column.maximum)) if column.values and column.is_measured else 0.0
        assert column.m2 == pytest.approx(other.m2, rel=1e-12, abs=1e-12 * max(1.0, column.values * size**2))
        assert column.counts() == other.counts()
        assert column.num_distinct == other.num_distinct
        for share in (0.1, 0.5, 0.9):
            assert column.quantile(share) == pytest.approx(other.quantile(share), nan_ok=True)


def assert_same_snapshot(left: Snapshot, right: Snapshot) -> None:
    assert left.rows == right.rows
    assert left.quarantined == right.quarantined
    for folder in ("train", "valid", "test", "live", "quarantine"):
        assert rows_of(left, folder) == rows_of(right, folder)
    for split in ("train", "valid", "test", "live"):
        assert_same_profile(load_profile(left.path, split), load_profile(right.path, split))
    assert load_contract(left.path) == load_contract(right.path)
    assert left.path.name == right.path.name
    ours, theirs = load_association(left.path), load_association(right.path)
    assert ours.outline.edges == theirs.outline.edges
    assert ours.pairs == pytest.approx(theirs.pairs, rel=1e-9, abs=1e-9)
    told = ("unlabelled", "purged", "newest", "quality", "warnings", "source", "schema", "types")
    assert {name: manifest_of(left)[name] for name in told} == {name: manifest_of(right)[name] for name in told}


def test_only_new_parts_are_read_and_the_snapshot_is_that_of_all(tmp_path: Path, parts_read: list[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        pq.write_table(table(200, seed=i, first=200 * i), folder / f"{i}.parquet")
    first = prepare(PROBLEM, data(folder), tmp_path / "out")
    assert (parts_read, first.growth) == ([f"{i}.parquet (0,)" for i in range(3)], "")
    parts_read.clear()
    pq.write_table(table(200, seed=3, first=600), folder / "3.parquet")
    said: list[str] = []
    grown = prepare(PROBLEM, data(folder), tmp_path / "out", say=said.append)
    assert parts_read == ["3.parquet (0,)"]
    assert said[0] == f"reading 1 new of 4 parts, 0 MB; 3 taken over from {first.digest[:12]}"
    assert grown.growth == f"read 1 new of 4 parts, 3 taken over from {first.digest[:12]}"
    assert {name: manifest_of(grown)[name] for name in ("grown_from", "parts_read")} == {"grown_from": first.digest, "parts_read": 1}
    assert (grown.path / "train" / "part-00001.parquet").samefile(first.path / "train" / "part-00001.parquet")
    parts_read.clear()
    fresh = prepare(PROBLEM, data(folder), tmp_path / "other")
    assert len(parts_read) == 4
    assert_same_snapshot(grown, fresh)
    assert prepare(PROBLEM, data(folder), tmp_path / "out").reused


SPLITS_THAT_GROW = [
    HashSplit(columns=("id", "k"), valid=0.3, test=0.2),
    BY_ID.model_copy(update={"folds": 3, "fold": 1}),
    BY_GROUP,
    TimeSplit(column="t", valid_start=START + timedelta(days=4), valid_end=START + timedelta(days=6), purge=timedelta(hours=9)),
    ColumnSplit(column="s"),
]


@settings(
    max_examples=20,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(drawn=st.data())
def test_the_history_of_a_source_leaves_no_trace(
    tmp_path_factory: pytest.TempPathFactory, parts_read: list[str], drawn: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("history")
    whole = table(drawn.draw(st.integers(120, 400)), seed=drawn.draw(st.integers(0, 99)))
    cuts = sorted(drawn.draw(st.sets(st.integers(60, len(whole) - 1), min_size=1, max_size=4)))
    names = drawn.draw(st.permutations(range(len(cuts) + 1)))  # new files may come between old ones
    rule = drawn.draw(st.sampled_from(SPLITS_THAT_GROW))
    steps = drawn.draw(st.sets(st.integers(1, len(cuts)), min_size=1))
    (place / "in").mkdir()
    for step, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(whole)], strict=True)):
        pq.write_table(whole.slice(start, end - start), place / "in" / f"{names[step]}.parquet")
        if step in steps - {len(cuts)} or step == 0:
            prepare(PROBLEM, data(place / "in", rule), place / "grown")
    parts_read.clear()
    grown = prepare(PROBLEM, data(place / "in", rule), place / "grown")
    last = max({0, *steps} - {len(cuts)})
    assert sorted(parts_read) == sorted(f"{names[step]}.parquet (0,)" for step in range(last + 1, len(cuts) + 1))
    assert_same_snapshot(grown, prepare(PROBLEM, data(place / "in", rule), place / "fresh"))


def grow(
    tmp_path: Path, parts: list[pa.Table], settings_of: Callable[[Path], Data], problem: Problem = PROBLEM
) -> tuple[Snapshot, Snapshot]:
    """The snapshot that grew part by part, and that of all at once."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, part in enumerate(parts):
        pq.write_table(part, folder / f"{i}.parquet")
        grown = prepare(problem, settings_of(folder), tmp_path / "grown")
    return grown, prepare(problem, settings_of(folder), tmp_path / "fresh")


def labelled(split: str, rows: int = 40, **columns: Any) -> pa.Table:
    return pa.table({"s": [split] * rows, "y": ["no", "yes"] * (rows // 2), **{name: pa.array(v) for name, v in columns.items()}})


def test_held_out_rows_are_judged_by_the_contract_of_all_training_rows(tmp_path: Path, parts_read: list[str]) -> None:
    moments = pa.array([START + timedelta(microseconds=i) for i in range(40)], pa.timestamp("us", "UTC"))
    more = {"b": [None, True, False, True] * 10, "t": moments, "k": ["1", " 1 ", "", None] * 10}
    narrow = labelled("train", x=np.linspace(0, 1, 40), **more)
    held_out = labelled("valid", x=np.r_[np.full(20, 0.1 + 0.2), np.full(20, 50.0 + 1e-9)], **more)
    wide = labelled("train", x=np.linspace(0, 90, 40), **more)
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.concat_tables([narrow, held_out]), folder / "0.parquet")
    first = prepare(NAMELESS, data(folder, ColumnSplit(column="s")), tmp_path / "grown")
    assert (first.rows, first.quarantined) == ({"train": 40, "valid": 20}, 20)
    pq.write_table(wide, folder / "1.parquet")
    grown, fresh = (prepare(NAMELESS, data(folder, ColumnSplit(column="s")), tmp_path / place) for place in ("grown", "fresh"))
    assert (grown.rows, grown.quarantined) == ({"train": 80, "valid": 40}, 0)
    assert sorted(set(read_split(grown.path, "valid").column("x").to_pylist())) == [0.1 + 0.2, 50.0 + 1e-9]
    assert_same_snapshot(grown, fresh)
    assert len(parts_read) == 4


def test_a_contract_that_narrows_takes_held_out_rows_away(tmp_path: Path, parts_read: list[str]) -> None:
    none = pa.array([None] * 40, pa.float64())
    first = pa.concat_tables([labelled("train", x=none), labelled("valid", x=np.r_[np.full(30, 1000.0), np.full(10, 1.5)])])
    parts = [first, labelled("train", x=np.ones(40))]
    grown, fresh = grow(tmp_path, parts, lambda folder: data(folder, ColumnSplit(column="s")), NAMELESS)
    assert (grown.rows, grown.quarantined) == ({"train": 80, "valid": 10}, 30)
    assert_same_snapshot(grown, fresh)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (RandomSplit(), "data.split.kind=random new rows move others"),
        (StratifiedSplit(), "data.split.kind=stratified new rows move others"),
        (TimeSplit(column="t", valid_start=START + timedelta(days=3), folds=2), "data.split.kind=time with folds new rows move others"),
    ],
)
def test_where_new_rows_move_others_the_source_is_read_anew(tmp_path: Path, parts_read: list[str], rule: Any, words: str) -> None:
    grown, fresh = grow(tmp_path, [table(100), table(100, seed=1, first=100)], lambda folder: data(folder, rule))
    assert words in grown.growth
    assert len(parts_read) == 1 + 2 + 2
    assert grown.digest == fresh.digest
    assert manifest_of(grown)["grown_from"] is None


CONTRACT = "columns: {id: {type: int, unique: true}, x: {type: float}, g: {type: string}, t: {type: timestamp}, y: {type: string}}\n"


def contracted(folder: Path, rules: str = "", split: Any = BY_GROUP, **changes: Any) -> Data:
    (folder.parent / "contract.yaml").write_text(CONTRACT + rules)
    return data(folder, split, contract=str(folder.parent / "contract.yaml"), **changes)


def test_a_key_that_an_earlier_part_has_is_a_repeat(tmp_path: Path, parts_read: list[str]) -> None:
    grown, fresh = grow(tmp_path, [table(200), table(200, seed=1, first=150), table(100, seed=2, first=300)], contracted)
    assert (sum(grown.rows.values()), grown.quarantined) == (400, 100)
    assert parts_read[:3] == [f"{i}.parquet (0,)" for i in range(3)]
    assert_same_snapshot(grown, fresh)


def test_unique_keys_are_read_anew_where_the_first_row_might_be_another(tmp_path: Path, parts_read: list[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(table(200), folder / "b.parquet")
    prepare(PROBLEM, contracted(folder), tmp_path / "grown")
    pq.write_table(table(200, seed=1, first=150), folder / "a.parquet")
    grown, fresh = (prepare(PROBLEM, contracted(folder), tmp_path / place) for place in ("grown", "fresh"))
    assert "unique keys, of which the first row stays" in grown.growth
    assert grown.digest == fresh.digest
    gap = TimeSplit(column="t", valid_start=START + timedelta(days=4), purge=timedelta(hours=9))
    prepare(PROBLEM, contracted(folder, split=gap), tmp_path / "gap")
    pq.write_table(table(50, seed=2, first=0), folder / "c.parquet")
    assert "left out rows that lie in no split" in prepare(PROBLEM, contracted(folder, split=gap), tmp_path / "gap").growth


def test_rules_about_all_rows_count_old_and_new(tmp_path: Path, parts_read: list[str]) -> None:
    grown, _ = grow(tmp_path, [table(100), table(100, seed=1, first=100)], lambda folder: contracted(folder, "max_rows: 200\n"))
    assert sum(grown.rows.values()) == 200
    folder = tmp_path / "in"
    pq.write_table(table(1, seed=2, first=200), folder / "2.parquet")
    with pytest.raises(ContractError, match=r"max_rows 200: 201 good rows"):
        prepare(PROBLEM, contracted(folder, "max_rows: 200\n"), tmp_path / "grown")
    assert sorted(path.name for path in (tmp_path / "grown" / "p").iterdir() if path.name.startswith(".")) == []
    bad = table(30, seed=3, first=300).set_column(1, "x", pa.array(["oops"] * 30))
    pq.write_table(bad, folder / "2.parquet")
    pq.write_table(table(100, seed=4, first=400), folder / "3.parquet")
    with pytest.raises(ContractError, match=r"30 of 330 rows \(9.1%\) break the contract"):
        prepare(PROBLEM, contracted(folder).model_copy(update={"max_bad_share": 0.05}), tmp_path / "other")


def test_copies_and_shared_rows_are_found_across_old_and_new_parts(tmp_path: Path, parts_read: list[str]) -> None:
    grown, fresh = grow(tmp_path, [table(200), table(200, first=200)], data)
    found = {item["check"]: item["rows"] for item in manifest_of(grown)["quality"]}
    assert found["duplicates"] > 30
    assert found["shared_rows"] > 10
    assert_same_snapshot(grown, fresh)
    quasi = Privacy(quasi_identifiers=("n", "k"), min_k=2)
    (tmp_path / "k").mkdir()
    grown, fresh = grow(tmp_path / "k", [table(60), table(60, first=60)], lambda folder: data(folder, privacy=quasi))
    assert manifest_of(grown)["anonymity"] == manifest_of(fresh)["anonymity"]
    assert manifest_of(grown)["anonymity"]["k"] >= 2 or manifest_of(grown)["anonymity"]["rows_below_min_k"] > 0


def test_rows_that_became_too_old_go_when_the_snapshot_grows(
    tmp_path: Path, parts_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(folder: Path) -> Data:
        return data(folder, privacy=Privacy(retention_days=1, retention_column="t"))

    def today(days: int) -> None:
        for module in ("snapshot", "door"):
            monkeypatch.setattr(f"raymlp.data.{module}.oldest_kept", lambda *_: START + timedelta(days=days))

    folder = tmp_path / "in"
    folder.mkdir()
    today(1)
    pq.write_table(table(300), folder / "0.parquet")
    first = prepare(PROBLEM, rule(folder), tmp_path / "grown")
    pq.write_table(table(100, seed=1, first=300), folder / "1.parquet")
    today(3)
    parts_read.clear()
    grown = prepare(PROBLEM, rule(folder), tmp_path / "grown")
    assert parts_read == ["1.parquet (0,)"]
    fresh = prepare(PROBLEM, rule(folder), tmp_path / "fresh")
    assert_same_snapshot(grown, fresh)
    assert manifest_of(grown)["expired"] == manifest_of(fresh)["expired"] > manifest_of(first)["expired"]
    assert min(read_split(grown.path, "train").column("t").to_pylist()) >= START + timedelta(days=3)
    today(0)
    assert "reaches further back" in prepare(PROBLEM, rule(folder), tmp_path / "grown").growth


def test_people_who_were_forgotten_do_not_come_back(tmp_path: Path, parts_read: list[str]) -> None:
    def unnamed(folder: Path) -> Data:
        return data(folder, drop=("n",))

    grow(tmp_path, [table(200), table(200, seed=1, first=200)], unnamed)
    folder = tmp_path / "grown" / "p"

    def forgotten(column: str, value: str) -> None:
        forget(person(folder, column, value, {}), snapshots=folder, log=tmp_path / "log", labels=tmp_path / "labels")

    forgotten("id", "7")
    pq.write_table(pa.concat_tables([table(8), table(100, seed=2, first=400)]), tmp_path / "in" / "2.parquet")
    parts_read.clear()
    later = prepare(PROBLEM, unnamed(tmp_path / "in"), tmp_path / "grown")
    assert parts_read == ["2.parquet (0,)"]
    assert manifest_of(later)["suppressed"]["rows"] == 1
    ids = Counter(i for split in later.rows for i in read_split(later.path, split).column("id").to_pylist())
    assert (ids[7], ids[6], ids[207], ids[407]) == (0, 2, 1, 1)
    for split in later.rows:
        mean = load_profile(later.path, split).columns["id"].mean
        assert mean == pytest.approx(np.mean(read_split(later.path, split).column("id").to_numpy()))
    listed = Suppressed.load(folder).listing("n", {"1"})[1]  # by a column that no snapshot keeps, so that none could be cleaned
    listed.save()
    pq.write_table(table(100, seed=3, first=500), tmp_path / "in" / "3.parquet")
    assert "may hold people who were forgotten" in prepare(PROBLEM, unnamed(tmp_path / "in"), tmp_path / "grown").growth


def test_values_carried_in_time_are_carried_anew(tmp_path: Path, parts_read: list[str]) -> None:
    timed = PROBLEM.model_copy(update={"time_column": "t"})
    rule = ForwardFill(columns=("x",), by=("g",), flag=True)
    grown, fresh = grow(tmp_path, [table(200), table(200, seed=1, first=200)], lambda folder: data(folder, forward_fill=(rule,)), timed)
    assert grown.growth == "read anew since data.forward_fill carries values from part to part"
    assert grown.digest == fresh.digest


def test_a_part_that_changed_or_went_is_the_only_one_that_counts_anew(tmp_path: Path, parts_read: list[str]) -> None:
    folder = tmp_path / "in"
    grow(tmp_path, [table(150, seed=i, first=150 * i) for i in range(3)], data)
    pq.write_table(table(150, seed=9, first=150), folder / "1.parquet")
    (folder / "0.parquet").unlink()
    parts_read.clear()
    grown = prepare(PROBLEM, data(folder), tmp_path / "grown")
    assert parts_read == ["1.parquet (0,)"]
    assert_same_snapshot(grown, prepare(PROBLEM, data(folder), tmp_path / "fresh"))


def test_what_a_part_became_does_not_hang_on_how_the_whole_is_judged(tmp_path: Path, parts_read: list[str]) -> None:
    first, _ = grow(tmp_path, [table(200, seed=i, first=200 * i) for i in range(2)], contracted)
    parts_read.clear()
    strict = contracted(tmp_path / "in").model_copy(update={"checks": Checks(constant="stop", outliers="off", label_noise="off")})
    again = prepare(PROBLEM, strict, tmp_path / "grown")
    assert (parts_read, again.digest, again.path == first.path) == ([], first.digest, False)
    (tmp_path / "in" / "0.parquet").unlink()
    assert "a part went, or came before others" in prepare(PROBLEM, contracted(tmp_path / "in"), tmp_path / "grown").growth
    parts_read.clear()
    (tmp_path / "other").mkdir()
    grow(tmp_path / "other", [table(200, seed=i, first=200 * i) for i in range(2)], data)
    (tmp_path / "other" / "in" / "0.parquet").unlink()
    parts_read.clear()
    left = prepare(PROBLEM, data(tmp_path / "other" / "in"), tmp_path / "other" / "grown")
    assert (parts_read, left.growth[:22]) == ([], "read 0 new of 1 part, ")
    assert_same_snapshot(left, prepare(PROBLEM, data(tmp_path / "other" / "in"), tmp_path / "other" / "fresh"))


def test_a_snapshot_that_changed_meanwhile_or_was_damaged_is_not_grown(tmp_path: Path, parts_read: list[str]) -> None:
    grown, _ = grow(tmp_path, [table(200)], data)
    pq.write_table(table(100, seed=1, first=200), tmp_path / "in" / "1.parquet")
    damaged = grown.path / "train" / "part-00000.parquet"
    pq.write_table(pq.read_table(damaged).slice(1), damaged)
    with pytest.raises(DataError, match=r"train/part-00000.parquet was changed since it was written"):
        prepare(PROBLEM, data(tmp_path / "in"), tmp_path / "grown")
    damaged.unlink()
    with pytest.raises(DataError, match=r"train/part-00000.parquet is gone"):
        prepare(PROBLEM, data(tmp_path / "in"), tmp_path / "grown")
    assert [path.name for path in (tmp_path / "grown" / "p").iterdir()] == [grown.path.name]
    earlier = Earlier(grown.path, manifest_of(grown), {0: 0})
    earlier.hold_unchanged({}, {})
    (grown.path / "manifest.json").write_text(json.dumps(manifest_of(grown) | {"digest": "another"}))
    with pytest.raises(DataError, match="was changed while it grew into another snapshot"):
        earlier.hold_unchanged({}, {})


def test_encrypted_snapshots_grow_with_their_key_alone(tmp_path: Path, parts_read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def sealed(folder: Path) -> Data:
        return data(folder, privacy=Privacy(columns={"g": Hash()}, encrypt_snapshots=True))

    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SNAPSHOT_SECRET)
    grown, fresh = grow(tmp_path, [table(200), table(100, seed=1, first=200)], sealed)
    assert parts_read[:2] == ["0.parquet (0,)", "1.parquet (0,)"]
    assert all(parquet.is_encrypted(file) for file in grown.path.rglob("*.parquet"))
    assert_same_snapshot(grown, fresh)
    pq.write_table(table(100, seed=2, first=300), tmp_path / "in" / "2.parquet")
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SNAPSHOT_SECRET + " another")
    with pytest.raises(DataError, match="was encrypted with another key"):
        prepare(PROBLEM, sealed(tmp_path / "in"), tmp_path / "grown")


def test_a_changed_join_is_read_into_all_rows(tmp_path: Path, parts_read: list[str]) -> None:
    def joined(folder: Path) -> Data:
        return data(folder, joins=(Join(source=CsvSource(path=str(tmp_path / "side.csv")), keys=("n",)),))

    (tmp_path / "side.csv").write_text("n,size\n-1,10\n0,20\n")
    grown, fresh = grow(tmp_path, [table(200), table(100, seed=1, first=200)], joined)
    assert [name for name in parts_read if name != "side.csv"] == [f"{i}.parquet (0,)" for i in (0, 1, 0, 1)]
    assert_same_snapshot(grown, fresh)
    (tmp_path / "side.csv").write_text("n,size\n-1,11\n0,20\n")
    pq.write_table(table(100, seed=2, first=300), tmp_path / "in" / "2.parquet")
    after = prepare(PROBLEM, joined(tmp_path / "in"), tmp_path / "grown")
    assert manifest_of(after)["grown_from"] is None
    assert set(read_split(after.path, "train").column("size").to_pylist()) == {11, 20, None}


# ---------------------------------------------------------------------- kinds of source


def lines(kind: str, rows: range) -> str:
    made = [{"id": i, "x": i * 0.5, "k": "a, b" if i % 3 else 'say "no"', "y": "yes" if i % 4 else "no"} for i in rows]
    if kind == "json":
        return "".join(json.dumps(row) + "\n" for row in made)
    quoted = ('"' + row["k"].replace('"', '""') + '"' for row in made)
    return "".join(f"{row['id']},{row['x']},{k},{row['y']}\n" for row, k in zip(made, quoted, strict=True))


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_of_a_file_that_was_appended_to_the_rest_is_read(tmp_path: Path, parts_read: list[str], kind: str) -> None:
    def settings_of(folder: Path) -> Data:
        source: Any = CsvSource(path=str(folder)) if kind == "csv" else JsonSource(path=str(folder))
        return Data(source=source, split=BY_ID, checks=QUICK)

    folder = tmp_path / "in"
    folder.mkdir()
    file = folder / f"a.{kind}"
    head = "id,x,k,y\n" if kind == "csv" else ""
    file.write_text("\ufeff" + head + lines(kind, range(100)))
    prepare(PROBLEM, settings_of(folder), tmp_path / "grown")
    ends = [0, file.stat().st_size]
    for rows in (range(100, 180), range(180, 200)):
        parts_read.clear()
        with file.open("a") as opened:
            opened.write(lines(kind, rows))
        ends.append(file.stat().st_size)
        grown = prepare(PROBLEM, settings_of(folder), tmp_path / "grown")
        assert parts_read == [f"a.{kind} ({ends[-2]}, {ends[-1]})"]
    assert_same_snapshot(grown, prepare(PROBLEM, settings_of(folder), tmp_path / "fresh"))
    (folder / f"b.{kind}").write_text(head + lines(kind, range(200, 250)))
    parts_read.clear()
    grown = prepare(PROBLEM, settings_of(folder), tmp_path / "grown")
    assert (parts_read, grown.growth.split(",")[0]) == ([f"b.{kind}"], "read 1 new of 4 parts")
    text = file.read_text()
    file.write_text(text.replace("49.5", "49.0") + lines(kind, range(250, 260)))
    parts_read.clear()
    grown = prepare(PROBLEM, settings_of(folder), tmp_path / "grown")
    assert parts_read == [f"a.{kind} ({ends[2]}, {ends[3]})", f"a.{kind}"] or parts_read == [f"a.{kind}"]
    assert_same_snapshot(grown, prepare(PROBLEM, settings_of(folder), tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.csv", "id,x\n1,2\n3,4", "5\n6,7\n"),  # the last line was not whole
        ("a.csv", 'id,x\n1,2\n3,"4\n', '5"\n6,7\n'),  # a quote was open
        ("a.csv", 'id,"x\nx"\n1,2\n', "6,7\n"),  # the header has several lines
        ("a.json", '[{"a": 1}]\n', '[{"a": 2}]\n'),
        ("a.json", '{"a": 1}\n{"a"', ": 2}\n"),
        ("a.txt", "one\ntw", "o\n"),
    ],
)
def test_a_file_is_read_anew_where_the_rest_does_not_stand_alone(tmp_path: Path, name: str, before: str, after: str) -> None:
    source: Any = {"csv": CsvSource, "json": JsonSource, "txt": TextSource}[name[2:]](path=str(tmp_path / name))

    def pieces(known: list[Any]) -> list[tuple[sources.Part, Any]]:
        parts = sources.parts_of(source)
        return sources.pieces_of(source, parts, sources.fingerprint(source, parts), known)

    (tmp_path / name).write_text(before)
    known = [mark for _, mark in pieces([])]
    (tmp_path / name).write_text(before + after)
    ((part, mark),) = pieces(known)
    assert (part.piece, mark["bytes"]) == ((), len(before + after))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6), min_size=2, max_size=12),
    cuts=st.sets(st.integers(1, 11), max_size=3),
)
def test_ranges_of_a_file_hold_its_rows(tmp_path: Path, texts: list[str], cuts: set[int]) -> None:
    """Whatever the texts hold, the ranges give the rows of the whole, or the file is not divided."""
    file = tmp_path / "a.csv"
    source = CsvSource(path=str(file), null_values=())
    rows = ['"' + text.replace('"', '""') + f'",{i}\n' for i, text in enumerate(texts)]
    known: list[Any] = []
    for end in sorted({*(cut for cut in cuts if cut < len(rows)), len(rows)}):
        file.write_text("t,n\n" + "".join(rows[:end]), newline="")
        parts = sources.parts_of(source)
        pieces = sources.pieces_of(source, parts, sources.fingerprint(source, parts), known)
        known = [mark for _, mark in pieces]
    found: dict[str, list[Any]] = {}
    for name, chosen in (("ranges", [part for part, _ in pieces]), ("whole", sources.parts_of(source))):
        read = [sources.read(source, part, {"t": "string", "n": "int"}, batch_rows=5, bad=sources.BadRows()) for part in chosen]
        found[name] = [row for tables in read for batch in tables for row in batch.to_pylist()]
    assert found["ranges"] == found["whole"]
    assert len(found["whole"]) == len(texts)


def test_what_is_appended_while_a_file_is_read_waits_for_the_next_snapshot(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("n\n1\n2\n")
    source = CsvSource(path=str(file))
    parts = sources.parts_of(source)
    file.write_text("n\n1\n2\n3\n")
    facts = sources.fingerprint(source, parts)
    tables = sources.read(source, parts[0], {"n": "int"}, batch_rows=10, bad=sources.BadRows())
    assert [n for batch in tables for n in batch.column("n").to_pylist()] == [1, 2]
    later = sources.pieces_of(source, sources.parts_of(source), sources.fingerprint(source), facts)
    assert [part.piece for part, _ in later] == [(0, 6), (6, 8)]


def test_new_files_of_a_delta_table_are_read_alone(tmp_path: Path, parts_read: list[str]) -> None:
    deltalake = pytest.importorskip("deltalake")
    place = str(tmp_path / "table")
    settings_of = Data(source=DeltaSource(path=place), split=BY_ID, checks=QUICK)
    for i in range(3):
        deltalake.write_deltalake(place, table(100, seed=i, first=100 * i), mode="append")
        grown = prepare(PROBLEM, settings_of, tmp_path / "grown")
    assert len(parts_read) == 3
    assert_same_snapshot(grown, prepare(PROBLEM, settings_of, tmp_path / "fresh"))
    wider = table(100, seed=3, first=300).append_column("more", pa.array([1.0] * 100))
    deltalake.write_deltalake(place, wider, mode="append", schema_mode="merge")
    after = prepare(PROBLEM, settings_of, tmp_path / "grown")
    assert manifest_of(after)["grown_from"] is None
    assert read_split(after.path, "train").column("more").null_count > 0


def test_new_files_of_an_iceberg_table_are_read_alone(tmp_path: Path, parts_read: list[str]) -> None:
    catalogs = pytest.importorskip("pyiceberg.catalog")
    pytest.importorskip("sqlalchemy")
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"}
    catalog = catalogs.load_catalog("test", **properties)
    catalog.create_namespace("space")
    lake = catalog.create_table("space.t", schema=table(1).schema)
    settings_of = Data(source=IcebergSource(table="space.t", catalog="test", properties=properties), split=BY_ID, checks=QUICK)
    for i in range(2):
        lake.append(table(150, seed=i, first=150 * i))
        grown = prepare(PROBLEM, settings_of, tmp_path / "grown")
    assert len(parts_read) == 2
    assert_same_snapshot(grown, prepare(PROBLEM, settings_of, tmp_path / "fresh"))
    catalog.close()


class FakeBroker:
    """A topic of two partitions, and a stand-in for the client and the reader."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray

        self.low, self.messages, self.asked = dict[int, int](), {0: 0, 1: 0}, list[Any]()
        partition = namedtuple("TopicPartition", ["topic", "partition", "offset"], defaults=[0])
        client = SimpleNamespace(Consumer=lambda _: self, TopicPartition=partition, KafkaException=OSError)
        monkeypatch.setattr(kafka, "load", lambda *_: client)
        monkeypatch.setattr(ray.data, "read_kafka", self.read)

    def list_topics(self, topic: str, timeout: float) -> Any:
        return SimpleNamespace(topics={"t": SimpleNamespace(partitions=self.messages, error=None)})

    def get_watermark_offsets(self, place: Any, timeout: float) -> tuple[int, int]:
        return self.low.get(place.partition, 0), self.messages[place.partition]

    def offsets_for_times(self, places: list[Any], timeout: float) -> list[Any]:
        at = places[0].offset // 1000  # a message a second
        return [SimpleNamespace(offset=at if at < self.messages[places[0].partition] else -1)]

    def close(self) -> None:
        pass

    def read(self, *, start_offset: Any, end_offset: Any, **_: Any) -> Any:
        self.asked.append({number: (start, end_offset["t"][number]) for number, start in start_offset["t"].items()})
        found = [
            {"partition": n, "offset": i, "timestamp": 1000 * i, "value": json.dumps({"id": 1000 * n + i, "y": "yes" if i % 3 else "no"})}
            for n, start in start_offset["t"].items()
            for i in range(start, end_offset["t"][n])
        ]
        return SimpleNamespace(sort=lambda _: SimpleNamespace(iter_rows=lambda: iter(found)))


def test_a_topic_is_read_on_from_the_offsets_reached(
    tmp_path: Path, parts_read: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = FakeBroker(monkeypatch)
    settings_of = Data(source=KafkaSource(servers=("a:1",), topic="t"), split=BY_ID, checks=QUICK)
    with pytest.raises(DataError, match="holds no message between"):
        prepare(PROBLEM, settings_of, tmp_path / "grown")
    broker.messages = {0: 100, 1: 40}
    first = prepare(PROBLEM, settings_of, tmp_path / "grown")
    assert prepare(PROBLEM, settings_of, tmp_path / "grown").reused
    broker.messages, broker.asked = {0: 130, 1: 40, 2: 10}, []
    grown = prepare(PROBLEM, settings_of, tmp_path / "grown")
    assert broker.asked == [{0: (100, 130), 1: (40, 40), 2: (0, 10)}]
    assert [part["mark"]["offsets"] for part in manifest_of(grown)["parts"]] == [
        {"0": [0, 100], "1": [0, 40]},
        {"0": [100, 130], "1": [40, 40], "2": [0, 10]},
    ]
    assert grown.growth.endswith(f"1 taken over from {first.digest[:12]}")
    assert_same_snapshot(grown, prepare(PROBLEM, settings_of, tmp_path / "fresh"))
    broker.messages, broker.low, broker.asked = {0: 200, 1: 60, 2: 30}, {0: 35, 1: 45}, []  # the broker let the oldest go
    grown = prepare(PROBLEM, settings_of, tmp_path / "grown")
    assert broker.asked == [{0: (130, 200), 1: (45, 60), 2: (10, 30)}]
    assert sum(grown.rows.values()) == 130 + 40 + 10 + 70 + 15 + 20
    assert "offsets 40 to 45 of partition 1 are gone" in caplog.text
    broker.messages, broker.low = {0: 50, 1: 50, 2: 50}, {}  # another topic of the same name
    assert manifest_of(prepare(PROBLEM, settings_of, tmp_path / "grown"))["grown_from"] is None


def test_bounds_in_time_become_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = FakeBroker(monkeypatch)
    broker.messages, broker.low = {0: 100, 1: 20}, {0: 5, 1: 5}
    bounds = {"start": datetime.fromtimestamp(10, UTC), "end": datetime.fromtimestamp(50, UTC)}
    assert sources.parts_of(KafkaSource(servers=("a:1",), topic="t", **bounds))[0].piece == ((0, 10, 50), (1, 10, 20))
    assert sources.parts_of(KafkaSource(servers=("a:1",), topic="t", start=0, end=30))[0].piece == ((0, 5, 30), (1, 5, 20))
    with pytest.raises(SourceUnavailable, match="is not there"):
        sources.parts_of(KafkaSource(servers=("a:1",), topic="other"))


def test_columns_that_are_now_read_as_other_types_are_read_anew(tmp_path: Path, parts_read: list[str]) -> None:
    source = CsvSource(path=str(tmp_path / "in"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.csv").write_text("id,x,y\n" + "".join(f"{i},{i % 7},{'yes' if i % 2 else 'no'}\n" for i in range(100)))
    settings_of = Data(source=source, split=BY_ID, checks=QUICK)
    prepare(PROBLEM, settings_of, tmp_path / "grown")
    (tmp_path / "in" / "a.csv").write_text("id,x,y\n" + "".join(f"{i},{i / 7:.2f},{'yes' if i % 2 else 'no'}\n" for i in range(100, 200)))
    grown, fresh = (prepare(PROBLEM, settings_of, tmp_path / place) for place in ("grown", "fresh"))
    assert grown.growth == "read anew since column 'x' is now read as float, and was as int"
    assert grown.digest == fresh.digest
    (tmp_path / "in" / "a.csv").unlink()
    (tmp_path / "in" / "b.csv").write_text("id,x,y\n" + "".join(f"{i},{i % 9},{'yes' if i % 2 else 'no'}\n" for i in range(100)))
    assert prepare(PROBLEM, settings_of, tmp_path / "grown").growth == "read anew since no part of it is as it was"


def test_a_part_whose_quarantine_keeps_no_values_is_read_again(tmp_path: Path, parts_read: list[str]) -> None:
    seen = {"b": [b"1", b"2"] * 20}
    narrow = pa.concat_tables(
        [labelled("train", x=np.zeros(40), **seen), labelled("valid", x=np.r_[np.zeros(20), np.full(20, 9.0)], **seen)]
    )
    parts = [narrow, labelled("train", x=np.ones(40), **seen), labelled("train", x=np.full(40, 9.0), **seen)]
    grown, fresh = grow(tmp_path, parts, lambda folder: data(folder, ColumnSplit(column="s")), NAMELESS)
    assert parts_read[:5] == [f"{i}.parquet (0,)" for i in (0, 0, 1, 0, 2)]
    assert (grown.rows, grown.quarantined) == ({"train": 120, "valid": 40}, 0)
    assert_same_snapshot(grown, fresh)


def test_a_folder_of_images_grows_by_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FILES_PER_PART", 2)
    source = ImageSource(path=str(tmp_path))

    def marks() -> list[Any]:
        parts = sources.parts_of(source)
        return [mark for _, mark in sources.pieces_of(source, parts, sources.fingerprint(source, parts))]

    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + name.encode())
    before = marks()
    (tmp_path / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nd")
    after = marks()
    assert (len(before), len(after)) == (2, 2)
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.ray
def test_a_folder_of_csv_files_grows_in_ray_as_in_one_go(ray_runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    settings_of = Data(source=CsvSource(path=str(folder)), split=BY_ID, checks=QUICK)
    for i in range(3):
        (folder / f"{i}.csv").write_text("id,x,k,y\n" + lines("csv", range(200 * i, 200 * i + 200)))
        grown = prepare(PROBLEM, settings_of, tmp_path / "grown")
    fresh = prepare(PROBLEM, settings_of, tmp_path / "fresh")
    assert grown.growth.startswith("read 1 new of 3 parts, 2 taken over from")
    assert grown.digest == fresh.digest
    assert_same_snapshot(grown, fresh)
