from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.data import Data, Join
from raymlp.config.problem import Problem
from raymlp.config.quality import Checks
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource, ParquetSource
from raymlp.config.split import ColumnSplit, GroupSplit, HashSplit, RandomSplit, StratifiedSplit, TimeSplit
from raymlp.core.errors import ConfigError, ContractError, DataError, RaymlpError, SourceUnavailable
from raymlp.core.records import DataReport
from raymlp.data.contract_batch import REASON
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_association, load_contract, load_profile, open_snapshot, prepare, read_split
from raymlp.data.sources.retry import Unanswered
from raymlp.data.tasks import each_part

pytestmark = pytest.mark.ray
PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes", known_after=("after",))
ROWS = 1_000


def write_csv(folder: Path, name: str = "a.csv", *, rows: int = ROWS, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "id": np.arange(rows),
        "x": np.round(rng.normal(size=rows), 3),
        "k": rng.choice(["a", "b"], rows),
        "after": rng.integers(0, 9, rows),
        "y": rng.choice(["no", "yes"], rows, p=[0.8, 0.2]),
    } | changes
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def data(path: Path, **changes: Any) -> Data:
    return Data(source=CsvSource(path=str(path)), split=changes.pop("split", RandomSplit()), **changes)


def test_rows_are_split_profiled_and_published_whole(ray_runtime: Runtime, tmp_path: Path) -> None:
    snapshot = prepare(PROBLEM, data(write_csv(tmp_path)), tmp_path / "out")
    assert snapshot.rows == {"train": 700, "valid": 150, "test": 150}
    tables = {name: read_split(snapshot.path, name) for name in snapshot.rows}
    ids = np.concatenate([table.column("id").to_numpy() for table in tables.values()])
    assert sorted(ids) == list(range(ROWS))
    assert "after" not in tables["train"].column_names
    profile = load_profile(snapshot.path)
    assert (profile.rows, profile.columns["x"].values) == (700, 700)
    assert profile.columns["x"].mean == pytest.approx(tables["train"].column("x").to_numpy().mean())
    assert load_contract(snapshot.path).columns["k"].type == "string"
    manifest = json.loads((snapshot.path / "manifest.json").read_text())
    assert manifest["digest"] == snapshot.digest
    assert not (snapshot.path / "staging").exists()


def test_the_same_data_is_found_again_and_changed_data_is_not(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    first = prepare(PROBLEM, data(path), tmp_path / "out")
    again = prepare(PROBLEM, data(path), tmp_path / "out")
    assert (again.path, again.digest, again.reused, first.reused) == (first.path, first.digest, True, False)
    elsewhere = prepare(PROBLEM, data(path), tmp_path / "other")
    assert elsewhere.digest == first.digest
    write_csv(tmp_path, rows=ROWS + 1)
    assert prepare(PROBLEM, data(path), tmp_path / "out").path != first.path
    assert prepare(PROBLEM, data(path, split=RandomSplit(seed=1)), tmp_path / "out").digest != first.digest


def test_the_profile_page_shows_what_the_splits_hold_and_reads_no_row(ray_runtime: Runtime, tmp_path: Path) -> None:
    import raymlp
    from raymlp.config.schema import Config
    from raymlp.config.tune import Choice, Tune

    for i in range(2):
        write_csv(tmp_path, f"part{i}.csv", id=np.arange(ROWS) + ROWS * i)
    settings = data(tmp_path / "part*.csv", split=RandomSplit(valid=0.3, test=0.1))
    config = Config(problem=PROBLEM, data=settings, runtime=ray_runtime, tune=Tune(space={"train.epochs": Choice(values=(1,))}))
    made = raymlp.profile(config)
    path = made.snapshot.path
    for split in ("valid", "test"):
        assert load_profile(path, split).columns["x"].mean == pytest.approx(read_split(path, split).column("x").to_numpy().mean())
    assert load_profile(path, "live").rows == 0
    frame = read_split(path, "train").to_pandas()
    association = load_association(path)
    rates = (frame.y == "yes").groupby(frame.k).mean()
    assert {answer.bin: answer.mean for answer in association.answers("k")} == pytest.approx(rates.to_dict())
    assert association.correlations()[1] == pytest.approx(frame[["id", "x"]].corr().to_numpy())
    for split in made.snapshot.rows:
        for file in split_files(path, split):
            Path(file).unlink()
    assert raymlp.profile(config) == DataReport(replace(made.snapshot, reused=True), made.report)


def test_several_parts_give_the_rows_of_all_in_order(ray_runtime: Runtime, tmp_path: Path) -> None:
    for i in range(3):
        write_csv(tmp_path, f"part{i}.csv", rows=100, id=np.arange(100) + 100 * i)
    snapshot = prepare(PROBLEM, data(tmp_path / "part*.csv"), tmp_path / "out")
    ids = read_split(snapshot.path, "train").column("id").to_numpy()
    assert np.all(np.diff(ids) > 0)
    assert sum(snapshot.rows.values()) == 300
    assert len(split_files(snapshot.path, "train")) == 3


def test_splits_by_class_group_and_time_hold_what_they_promise(ray_runtime: Runtime, tmp_path: Path) -> None:
    stamps = [f"2013-{1 + i * 12 // ROWS:02}-01T00:00:00Z" for i in range(ROWS)]
    path = write_csv(tmp_path, t=stamps, g=[f"g{i % 50}" for i in range(ROWS)])
    by_class = prepare(PROBLEM, data(path, split=StratifiedSplit()), tmp_path / "out")
    rates = [np.mean(read_split(by_class.path, name).column("y").to_numpy(zero_copy_only=False) == "yes") for name in by_class.rows]
    assert max(rates) - min(rates) < 0.01
    by_group = prepare(PROBLEM, data(path, split=GroupSplit(column="g")), tmp_path / "out")
    groups = [set(read_split(by_group.path, name).column("g").to_pylist()) for name in by_group.rows]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 50
    rule = TimeSplit(column="t", valid_start="2013-07-01", valid_end="2013-09-01")
    by_time = prepare(PROBLEM, data(path, split=rule), tmp_path / "out")
    months = {name: {t.month for t in read_split(by_time.path, name).column("t").to_pylist()} for name in by_time.rows}
    assert months == {"train": {1, 2, 3, 4, 5, 6}, "valid": {7, 8}, "live": {9, 10, 11, 12}}


def test_a_row_keeps_its_hash_split_when_the_data_grows(ray_runtime: Runtime, tmp_path: Path) -> None:
    rule = HashSplit(columns=("id", "k"))
    before = prepare(PROBLEM, data(write_csv(tmp_path), split=rule), tmp_path / "out")
    homes = {i: name for name in before.rows for i in read_split(before.path, name).column("id").to_pylist()}
    with (tmp_path / "a.csv").open("a") as file:
        file.writelines(f"{i},1.5,a,3,no\n" for i in range(ROWS, 2 * ROWS))
    after = prepare(PROBLEM, data(tmp_path / "a.csv", split=rule), tmp_path / "out")
    later = {i: name for name in after.rows for i in read_split(after.path, name).column("id").to_pylist()}
    assert len(homes) == ROWS
    assert {i: later[i] for i in homes} == homes


def test_a_column_that_names_the_split_is_no_feature(ray_runtime: Runtime, tmp_path: Path) -> None:
    names = ["train" if i % 4 else ("valid" if i % 8 else "test") for i in range(ROWS)]
    snapshot = prepare(PROBLEM, data(write_csv(tmp_path, s=names), split=ColumnSplit(column="s")), tmp_path / "out")
    assert snapshot.rows == {"train": 750, "valid": 125, "test": 125}
    assert "s" not in read_split(snapshot.path, "train").column_names
    assert "s" not in load_contract(snapshot.path).columns


def test_rows_in_the_gap_before_validation_are_counted(ray_runtime: Runtime, tmp_path: Path) -> None:
    stamps = [f"2013-01-{1 + i // 100:02}T00:00:00Z" for i in range(ROWS)]
    rule = TimeSplit(column="t", valid_start="2013-01-08", purge="2d")
    snapshot = prepare(PROBLEM, data(write_csv(tmp_path, t=stamps), split=rule), tmp_path / "out")
    assert snapshot.rows["train"] == 500
    assert json.loads((snapshot.path / "manifest.json").read_text())["purged"] == 200


def test_a_join_adds_columns_keeps_order_and_counts_repeated_keys(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    (tmp_path / "side.csv").write_text("k,size,year\na,1,2001\nb,2,2002\na,99,2099\n")
    join = Join(source=CsvSource(path=str(tmp_path / "side.csv")), keys=("k",), prefix="side_", columns=("size",))
    snapshot = prepare(PROBLEM, data(path, joins=(join,)), tmp_path / "out")
    table = read_split(snapshot.path, "train")
    assert {(row["k"], row["side_size"]) for row in table.to_pylist()} == {("a", 1), ("b", 2)}
    assert np.all(np.diff(table.column("id").to_numpy()) > 0)
    manifest = json.loads((snapshot.path / "manifest.json").read_text())
    assert "1 rows of" in manifest["warnings"][0]


def test_rows_without_an_answer_are_left_out_and_counted(ray_runtime: Runtime, tmp_path: Path) -> None:
    answers = ["NA" if i % 10 == 0 else ("yes" if i % 3 else "no") for i in range(ROWS)]
    snapshot = prepare(PROBLEM, data(write_csv(tmp_path, y=answers)), tmp_path / "out")
    assert sum(snapshot.rows.values()) == 900
    assert json.loads((snapshot.path / "manifest.json").read_text())["unlabelled"] == 100


def test_bad_rows_go_to_quarantine_within_the_budget_and_stop_the_run_beyond(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    with path.open("a") as file:
        file.write("oops,1,a,1,no\n7,2\n")
    wrong = Data(source=CsvSource(path=str(path), types={"id": "int"}), split=RandomSplit())
    snapshot = prepare(PROBLEM, wrong, tmp_path / "out")
    assert snapshot.quarantined == 2
    kept = pq.read_table(snapshot.path / "quarantine")
    assert sorted(kept.column(REASON).to_pylist()) == ["id is not of type int", "row 1003 has 2 fields; expected 5"]
    with pytest.raises(ContractError, match=r"2 of 1,002 rows .*at most 0.1%.*a.csv: id is not of type int"):
        prepare(PROBLEM, wrong.model_copy(update={"max_bad_share": 0.001}), tmp_path / "strict")
    assert list((tmp_path / "strict" / "p").iterdir()) == []


def test_a_given_contract_is_enforced(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = write_csv(tmp_path, x=[-5 if i == 3 else 1.5 for i in range(ROWS)])
    first = prepare(PROBLEM, data(path), tmp_path / "out")
    text = (first.path / "contract.yaml").read_text().replace("minimum: -11.5", "minimum: 0.0")
    (tmp_path / "contract.yaml").write_text(text)
    snapshot = prepare(PROBLEM, data(path, contract=str(tmp_path / "contract.yaml")), tmp_path / "out")
    assert snapshot.quarantined == 1
    assert pq.read_table(snapshot.path / "quarantine").column(REASON).to_pylist() == ["x is below 0"]
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        prepare(PROBLEM, data(path, contract=str(tmp_path / "nothing.yaml")), tmp_path / "out")


CONTRACT = """
columns:
  id: {type: int, unique: true}
  x: {type: float, minimum: 0}
  k: {type: string, pattern: "[a-c]", example: a}
  y: {type: string}
"""


def test_rows_that_repeat_a_key_go_to_quarantine_across_parts(ray_runtime: Runtime, tmp_path: Path) -> None:
    write_csv(tmp_path, "part0.csv", rows=100, x=np.ones(100))
    write_csv(tmp_path, "part1.csv", rows=100, x=np.ones(100), id=np.arange(100) + 98)
    (tmp_path / "contract.yaml").write_text(CONTRACT + "min_rows: 198\n")
    given = data(tmp_path / "part*.csv", contract=str(tmp_path / "contract.yaml"))
    snapshot = prepare(PROBLEM, given, tmp_path / "out")
    assert (sum(snapshot.rows.values()), snapshot.quarantined) == (198, 2)
    ids = [i for name in snapshot.rows for i in read_split(snapshot.path, name).column("id").to_pylist()]
    assert sorted(ids) == list(range(198))
    kept = pq.read_table(snapshot.path / "quarantine")
    assert kept.select(["id", REASON]).to_pylist() == [{"id": i, REASON: "id repeats an earlier row"} for i in ("98", "99")]
    (tmp_path / "contract.yaml").write_text(CONTRACT + "min_rows: 199\n")
    with pytest.raises(ContractError, match=r"min_rows 199: 198 good rows"):
        prepare(PROBLEM, given, tmp_path / "more")
    (tmp_path / "contract.yaml").write_text(CONTRACT)
    with pytest.raises(ContractError, match=r"2 of 200 rows .*id repeats an earlier row"):
        prepare(PROBLEM, given.model_copy(update={"max_bad_share": 0.001}), tmp_path / "more")
    assert list((tmp_path / "more" / "p").iterdir()) == []


def test_old_data_is_refused_also_when_its_snapshot_is_there(ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    from raymlp.data import rules

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2013, 1, 4, tzinfo=UTC)

    moments = [f"2013-01-0{1 + i % 2}T00:00:00Z" for i in range(ROWS)]
    given = "columns: {x: {type: float}, t: {type: timestamp}, y: {type: string}}\nfreshness: {t: 3d}\n"
    (tmp_path / "contract.yaml").write_text(given)
    settings = data(write_csv(tmp_path, t=moments), contract=str(tmp_path / "contract.yaml"))
    with pytest.raises(ContractError, match=r"freshness of t: 3 days.*2013-01-02"):
        prepare(PROBLEM, settings, tmp_path / "out")
    monkeypatch.setattr(rules, "datetime", Later)
    assert not prepare(PROBLEM, settings, tmp_path / "out").reused
    assert prepare(PROBLEM, settings, tmp_path / "out").reused
    monkeypatch.undo()
    with pytest.raises(ContractError, match="freshness of t"):
        prepare(PROBLEM, settings, tmp_path / "out")


def test_a_source_is_checked_against_a_contract_without_a_snapshot(ray_runtime: Runtime, tmp_path: Path) -> None:
    from raymlp.data.conformance import check_source

    path = write_csv(tmp_path, x=[-5 if i in (3, 7) else 1.5 for i in range(ROWS)], k=["a", "d"] * (ROWS // 2))
    with path.open("a") as file:
        file.write("0,1.5,a,1,no\n7,2\n")
    (tmp_path / "contract.yaml").write_text(CONTRACT + "max_rows: 10\n")
    broken = check_source(PROBLEM, data(path, contract=str(tmp_path / "contract.yaml")), tmp_path / "out")
    assert [(item.rule, item.rows, item.first) for item in broken] == [
        ("k does not match its pattern", 498, "'d'"),
        ("x is below 0", 2, "'-5'"),
        ("a row has 2 fields; expected 5", 1, "row 1003"),
        ("id repeats an earlier row", 1, "good row 501 of 501"),
        ("max_rows 10", 501, "501 good rows"),
    ]
    assert list((tmp_path / "out").iterdir()) == []
    open_rules = "columns: {x: {type: float}, y: {type: string}}"
    (tmp_path / "contract.yaml").write_text(open_rules)
    good = write_csv(tmp_path, "good.csv")
    assert check_source(PROBLEM, data(good, contract=str(tmp_path / "contract.yaml")), tmp_path / "out") == []


def test_findings_are_kept_and_noted_and_a_stop_publishes_nothing(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = write_csv(tmp_path, k=["same"] * ROWS)
    snapshot = prepare(PROBLEM, data(path), tmp_path / "out")
    found = json.loads((snapshot.path / "manifest.json").read_text())["quality"]
    assert {(item["check"], item["severity"], item["column"]) for item in found} >= {("constant", "warn", "k"), ("id_like", "warn", "id")}
    assert any(note.startswith("constant: 'k' has one value") for note in snapshot.notes)
    with pytest.raises(DataError, match="1 quality checks stop the run"):
        prepare(PROBLEM, data(path, checks=Checks(constant="stop")), tmp_path / "strict")
    assert list((tmp_path / "strict" / "p").iterdir()) == []


def test_changes_since_the_last_snapshot_are_kept_and_noted(ray_runtime: Runtime, tmp_path: Path) -> None:
    first = prepare(PROBLEM, data(write_csv(tmp_path)), tmp_path / "out")
    assert json.loads((first.path / "manifest.json").read_text())["changes"] == []
    path = write_csv(tmp_path, rows=ROWS, k=["a", "z"] * (ROWS // 2), more=[1.5, 2.5] * (ROWS // 2))
    second = prepare(PROBLEM, data(path), tmp_path / "out")
    assert json.loads((second.path / "manifest.json").read_text())["changes"] == [
        {"kind": "added", "column": "more", "detail": "type float"},
        {"kind": "new categories", "column": "k", "detail": "z"},
    ]
    assert {"more: added, type float", "k: new categories, z"} <= set(second.notes)


@pytest.mark.parametrize(
    ("problem", "changes", "error", "words"),
    [
        ({"target": "z"}, {}, ConfigError, "problem.target names 'z'"),
        ({"known_after": ("aftr",)}, {}, ConfigError, r"problem.known_after names 'aftr'.*Did you mean 'after'"),
        ({}, {"drop": ("kk",)}, ConfigError, "data.drop names 'kk'"),
        ({}, {"drop": ("k",), "split": GroupSplit(column="k")}, ConfigError, "data.split needs the column 'k'"),
        ({}, {"split": HashSplit(columns=("id", "kk"))}, ConfigError, "data.split.columns names 'kk'"),
        ({}, {"split": TimeSplit(column="x", valid_start="2013-01-01")}, DataError, "holds double values; expected timestamps"),
        ({"positive_class": "maybe"}, {}, ConfigError, "positive_class is 'maybe'; expected one of no, yes"),
    ],
)
def test_a_wrong_name_is_explained_and_nothing_is_published(
    ray_runtime: Runtime, tmp_path: Path, problem: dict[str, Any], changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        prepare(PROBLEM.model_copy(update=problem), data(write_csv(tmp_path), **changes), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_a_target_with_one_class_is_refused(ray_runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'y' has one class \('no'\) in training"):
        prepare(PROBLEM, data(write_csv(tmp_path, y=["no"] * ROWS)), tmp_path / "out")


def test_an_empty_file_and_a_file_with_only_a_header_are_refused(ray_runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("id,x,k,after,y\n")
    for name in ("empty.csv", "header.csv"):
        with pytest.raises(DataError, match=name):
            prepare(PROBLEM, data(tmp_path / name), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(ray_runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RaymlpError, match=r"cannot be created .*Set runtime.storage"):
        prepare(PROBLEM, data(write_csv(tmp_path)), tmp_path / "file" / "out")


def test_parquet_gives_the_same_rows_as_csv(ray_runtime: Runtime, tmp_path: Path) -> None:
    from raymlp.data import sources

    path = write_csv(tmp_path)
    pq.write_table(sources.read_all(CsvSource(path=str(path))), tmp_path / "a.parquet", row_group_size=100)
    from_csv = prepare(PROBLEM, data(path), tmp_path / "out")
    from_parquet = prepare(PROBLEM, Data(source=ParquetSource(path=str(tmp_path / "a.parquet")), split=RandomSplit()), tmp_path / "out")
    left, right = (read_split(snapshot.path, "train") for snapshot in (from_csv, from_parquet))
    assert left.equals(right)


def test_a_damaged_snapshot_beside_stops_with_its_name(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    made = prepare(PROBLEM, data(path), tmp_path / "out")
    (made.path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=f"{made.path.name} is no snapshot: its manifest.json cannot be read .* Remove the folder"):
        prepare(PROBLEM, data(path, max_bad_share=0.5), tmp_path / "out")


def test_no_snapshot_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no snapshot"):
        open_snapshot(tmp_path)


def test_the_run_as_another_user_cannot_write(tmp_path: Path) -> None:
    from raymlp.core.files import make_folder

    if os.geteuid() == 0:
        os.chmod(tmp_path, 0o777)
        place = Path("/proc/1/nothing")
    else:
        place = tmp_path / "locked"
        place.mkdir(mode=0o500)
    with pytest.raises(RaymlpError, match=r"Set runtime\.storage"):
        make_folder(place / "below")


def test_arrow_types_we_do_not_know_are_left_out(ray_runtime: Runtime, tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(100.0), "y": ["yes", "no"] * 50, "after": [1] * 100, "list": [[1]] * 100})
    pq.write_table(table, tmp_path / "a.parquet")
    snapshot = prepare(PROBLEM, Data(source=ParquetSource(path=str(tmp_path / "a.parquet")), split=RandomSplit()), tmp_path / "out")
    assert read_split(snapshot.path, "train").column_names == ["x", "y"]


def test_an_error_inside_a_task_arrives_with_its_own_words(ray_runtime: Runtime, tmp_path: Path) -> None:
    def work(index: int) -> dict[str, Any]:
        if index == 1:
            raise SourceUnavailable("s3://b/c is not there")
        if index == 2:
            raise KeyError("x")
        return {"rows": index}

    def broken_off(_: int) -> dict[str, Any]:
        raise Unanswered("s3://b/c broke off")

    with pytest.raises(SourceUnavailable, match=r"^s3://b/c is not there$"):
        each_part(work, 3)
    with pytest.raises(SourceUnavailable, match=r"^s3://b/c broke off$"):
        each_part(broken_off, 1)
    with pytest.raises(DataError, match=r"^preparing failed: KeyError: 'x'$"):
        each_part(lambda index: work(2 * index), 2)
    assert [row["rows"] for row in each_part(lambda index: {"rows": index}, 3)] == [0, 1, 2]
