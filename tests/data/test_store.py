"""Snapshots in an object store: written to and read from a server that speaks the S3 protocol."""

from __future__ import annotations

import json
import pickle
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from raymlp.config.data import Data, ForwardFill
from raymlp.config.features import ColumnFeatures, Features
from raymlp.config.privacy import Privacy
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource
from raymlp.config.split import HashSplit, RandomSplit
from raymlp.core.errors import ContractError, DataError
from raymlp.core.files import Place, digest_of, sha256_file
from raymlp.core.records import Snapshot
from raymlp.data import building, parquet, place
from raymlp.data import forget as forgetting
from raymlp.data.changes import changes_since_last
from raymlp.data.conformance import check_source
from raymlp.data.forget import Wanted, forget
from raymlp.data.place import published_at, publishing, require_store, snapshot_root, snapshots_in, split_files
from raymlp.data.profile_page import quarantine_reasons
from raymlp.data.snapshot import find, load_association, load_contract, load_profile, open_snapshot, prepare, read_split
from raymlp.runtime import store as stores
from raymlp.runtime.store import StorePlace, files_in, place_of, remove, take_over
from tests.data.people import SNAPSHOT_SECRET, make_snapshot

PROBLEM = Problem(name="toy", task="binary", target="y", positive_class="yes")
ROWS = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files with a category that tells the answer; one value in each is no number."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for part in range(3):
        kinds = rng.choice(["a", "b", "c"], ROWS // 3)
        answers = np.where(rng.random(ROWS // 3) < np.where(kinds == "a", 0.9, 0.2), "yes", "no")
        lines = [f"{i},{'x' if i == 7 else rng.normal():.3},{kinds[i]},{answers[i]}" for i in range(ROWS // 3)]
        (folder / f"{part}.csv").write_text("\n".join(["id,n,k,y", *lines]) + "\n")
    return folder


def data(source: Path, **changes: Any) -> Data:
    return Data(source=CsvSource(path=str(source / "*.csv"), types={"n": "float"}), split=RandomSplit(), **changes)


@pytest.fixture
def lake(bucket: Any) -> Iterator[StorePlace]:
    """An empty folder in the bucket."""
    store, query = bucket
    folder = place_of(f"s3://lake/deep/snapshots?{query}")
    assert isinstance(folder, StorePlace)
    yield folder
    store.delete_dir_contents("lake")


def names_in(folder: StorePlace) -> list[str]:
    return [str(file.relative_to(folder)) for file in folder.files()]


def stored(folder: StorePlace, name: str, local: Path) -> StorePlace:
    """A snapshot of people, written by hand, in the store."""
    made = make_snapshot(local, name)
    for file in files_in(made):
        with stores.writing(folder / f"{name}-00000000" / str(file.relative_to(made))) as out:
            out.write(file.open("rb").read())
    shutil.rmtree(made)
    return folder / f"{name}-00000000"


# ------------------------------------------------------------------------------------------------- the whole way


@pytest.mark.ray
def test_a_snapshot_in_a_store_is_the_local_one_and_is_found_again(
    ray_runtime: Runtime, source: Path, lake: StorePlace, tmp_path: Path
) -> None:
    local, remote = (prepare(PROBLEM, data(source, max_bad_share=0.1), folder) for folder in (tmp_path, lake))
    assert (remote.digest, remote.rows, remote.quarantined) == (local.digest, local.rows, 3)
    assert sum(local.rows.values()) == ROWS - 3
    for split in local.rows:
        assert read_split(remote.path, split) == read_split(local.path, split)
        assert load_profile(remote.path, split).to_dict() == load_profile(local.path, split).to_dict()
    assert load_contract(remote.path) == load_contract(local.path)
    assert load_association(remote.path).to_dict() == load_association(local.path).to_dict()
    assert quarantine_reasons(remote.path) == quarantine_reasons(local.path)
    files = {str(file.relative_to(local.path)) for file in files_in(local.path)}
    assert {str(file.relative_to(remote.path)) for file in files_in(remote.path)} == files
    manifest = json.loads((remote.path / "manifest.json").read_text())
    assert manifest["files"] == {name: sha256_file(local.path / name) for name in files if name.endswith(".parquet")}
    assert manifest["digest"] == digest_of(manifest["files"])
    assert [str(file) for file in (remote.path / "train").glob("*")] == split_files(remote.path, "train")
    again = prepare(PROBLEM, data(source, max_bad_share=0.1), lake)
    assert (again.path, again.reused) == (remote.path, True)
    assert find(PROBLEM, data(source, max_bad_share=0.1), lake) == again
    assert find(PROBLEM, data(source, max_bad_share=0.2), lake) is None
    assert changes_since_last(lake / PROBLEM.name / "next", load_contract(local.path), load_profile(local.path)) == []
    assert changes_since_last(lake / PROBLEM.name / "next", load_contract(local.path).without(["k"]), load_profile(local.path)) != []


@pytest.mark.ray
def test_an_encrypted_snapshot_in_a_store_shows_nothing_without_the_key(
    ray_runtime: Runtime, source: Path, lake: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SNAPSHOT_SECRET)
    settings = data(source, max_bad_share=0.1, privacy=Privacy(encrypt_snapshots=True))
    made = prepare(PROBLEM, settings, lake)
    assert read_split(made.path, "train").num_rows == load_profile(made.path).rows == made.rows["train"]
    assert sum(table.num_rows for table in parquet.batches(split_files(made.path, "train")[0], ["n"], rows=50)) > 0
    files = [file for file in files_in(made.path) if file.name.endswith(".parquet")]
    assert len(files) >= 9
    assert all(parquet.is_encrypted(file) for file in files)
    assert quarantine_reasons(made.path)[0][1] == 3
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["files"] == {str(file.relative_to(made.path)): sha256_file(file) for file in files}
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SNAPSHOT_SECRET + "!")
    with pytest.raises(DataError, match=r"s3://lake/.*/train/part-00000\.parquet\?.* cannot be decrypted"):
        read_split(made.path, "train")


@pytest.mark.ray
def test_a_prepare_that_stops_leaves_nothing(ray_runtime: Runtime, source: Path, lake: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContractError, match=r"3 of 600 rows .* break the contract"):
        prepare(PROBLEM, data(source, max_bad_share=0.001), lake)
    assert names_in(lake) == []

    def stopped(*_: Any) -> None:
        assert len(names_in(lake)) > 3
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_page_data", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(PROBLEM, data(source, max_bad_share=0.1), lake)
    assert names_in(lake) == []
    assert find(PROBLEM, data(source, max_bad_share=0.1), lake) is None


@pytest.mark.ray
def test_values_are_carried_in_a_store_and_who_was_forgotten_stays_out(ray_runtime: Runtime, lake: StorePlace, tmp_path: Path) -> None:
    lines = [f"2026-01-{1 + i // 10:02}T00:00:00Z,u{i % 7},{'' if i % 3 else i},{'yes' if i % 2 else 'no'}" for i in range(280)]
    for part in range(2):
        (tmp_path / f"{part}.csv").write_text("\n".join(["t,user,x,y", *lines[part::2]]) + "\n")
    source = CsvSource(path=str(tmp_path / "?.csv"), types={"x": "float"})
    settings = Data(source=source, split=RandomSplit(), forward_fill=(ForwardFill(columns=("x",), by=("user",), flag=True),))
    problem = PROBLEM.model_copy(update={"time_column": "t"})
    local, remote = (prepare(problem, settings, where) for where in (tmp_path / "out", lake))
    assert remote.digest == local.digest
    filled = read_split(remote.path, "train").column("x_filled")
    assert 0 < len(filled) - filled.null_count < len(filled)
    for folder in (tmp_path / "out", lake):
        forgotten(folder / "toy", tmp_path, "u3")
    again = [prepare(problem, settings, where) for where in (tmp_path / "out", lake)]
    assert [(made.reused, made.rows) for made in again] == [(True, again[0].rows)] * 2
    assert sum(again[0].rows.values()) == 240
    (tmp_path / "1.csv").write_text("\n".join(["t,user,x,y", *lines[1::2][:-1]]) + "\n")
    newer = prepare(problem, settings, lake)
    assert (newer.reused, sum(newer.rows.values())) == (False, 240 - (lines[279].split(",")[1] != "u3"))
    assert "u3" not in read_split(newer.path, "train").column("user").to_pylist()


@pytest.mark.ray
def test_a_snapshot_in_a_store_grows_as_a_local_one(ray_runtime: Runtime, source: Path, lake: StorePlace, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    settings = data(folder, max_bad_share=0.1).model_copy(update={"split": HashSplit(columns=("id",))})
    for part in range(3):
        shutil.copy(source / f"{part}.csv", folder)
        local, remote = (prepare(PROBLEM, settings, where) for where in (tmp_path / "out", lake))
        assert (remote.digest, remote.rows, remote.growth) == (local.digest, local.rows, local.growth)
    assert remote.growth.startswith("read 1 new of 3 parts")
    whole = prepare(PROBLEM, settings, tmp_path / "whole")
    assert (whole.digest, whole.growth) == (remote.digest, "")
    manifest = json.loads((remote.path / "manifest.json").read_text())
    assert manifest["files"] == {str(f.relative_to(remote.path)): sha256_file(f) for f in files_in(remote.path) if "parquet" in f.name}
    file = (remote.path / "train" / "part-00000.parquet").path  # type: ignore[attr-defined]
    with place_of(str(remote.path)).asking() as (filesystem, _), filesystem.open_output_stream(f"lake/{file}") as out:  # type: ignore[union-attr]
        out.write((remote.path / "train" / "part-00001.parquet").open("rb").read())
    (folder / "3.csv").write_text((source / "0.csv").read_text())
    with pytest.raises(DataError, match=r"s3://lake/.*/train/part-00000\.parquet.* was changed since it was written"):
        prepare(PROBLEM, settings, lake)


@pytest.mark.ray
def test_a_snapshot_in_a_store_grows_after_people_were_forgotten(ray_runtime: Runtime, lake: StorePlace, tmp_path: Path) -> None:
    source = CsvSource(path=str(tmp_path / "?.csv"), types={"x": "float"})
    settings = Data(source=source, split=HashSplit(columns=("i",)))

    def write(part: int) -> None:
        rows = [f"{i},u{i % 7},{i / 2},{'yes' if i % 2 else 'no'}" for i in range(140 * part, 140 * part + 140)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["i,user,x,y", *rows]) + "\n")

    write(0)
    for folder in (tmp_path / "out", lake):
        prepare(PROBLEM, settings, folder)
        forgotten(folder / "toy", tmp_path, "u3")
    write(1)
    local, remote = (prepare(PROBLEM, settings, where) for where in (tmp_path / "out", lake))
    assert (remote.digest, remote.rows, remote.growth) == (local.digest, local.rows, local.growth)
    assert remote.growth.startswith("read 1 new of 2 parts, 1 taken over")
    assert sum(remote.rows.values()) == 240
    assert all("u3" not in read_split(remote.path, split).column("user").to_pylist() for split in remote.rows)


@pytest.mark.ray
def test_a_source_is_held_to_a_contract_and_nothing_stays_in_the_store(
    ray_runtime: Runtime, source: Path, lake: StorePlace, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("columns: {n: {type: float}, k: {type: string, categories: [a, b]}, y: {type: string}}\n")
    settings = data(source, drop=("id",), contract=str(tmp_path / "mine.yaml"))
    broken = check_source(PROBLEM, settings, lake)
    assert broken == check_source(PROBLEM, settings, tmp_path)
    assert len(broken) == 2
    assert names_in(lake) == []


@pytest.mark.ray
def test_a_model_trains_from_a_store_as_from_a_disk(ray_runtime: Runtime, lake: StorePlace, tmp_path: Path) -> None:
    from raymlp.features.plan import FeaturePlan
    from raymlp.train.feed import local_blocks
    from raymlp.train.trainer import train
    from tests.train.planted import config_of, planted, write_snapshot

    local = write_snapshot(tmp_path / "p" / "one", {"train": planted(600, 0, "binary"), "valid": planted(200, 1, "binary")})
    for file in files_in(local.path):
        with stores.writing(lake / "p" / "one" / str(file.relative_to(local.path))) as out:
            out.write(file.open("rb").read())
    remote = Snapshot(lake / "p" / "one", local.digest, local.rows)
    encoded = Features(columns={"kind": ColumnFeatures(encoding="target")})
    settings = config_of(epochs=2).model_copy(update={"features": encoded})
    blocks = []
    for snapshot in (local, remote):
        files = split_files(snapshot.path, "train")
        plan = FeaturePlan.fit(encoded, settings.problem, load_profile(snapshot.path), files=files)
        parts = list(local_blocks(snapshot.path, plan, "train"))
        blocks.append({name: np.concatenate([block.tensors[name] for block in parts]) for name in parts[0].tensors})
    assert blocks[0].keys() == blocks[1].keys() != set()
    assert all(np.array_equal(blocks[0][name], blocks[1][name]) for name in blocks[0])
    models = [train(settings, snapshot, run_dir=tmp_path / f"run{i}", run_id="r") for i, snapshot in enumerate((local, remote))]
    assert models[0].metrics == models[1].metrics


# ------------------------------------------------------------------------------------------------- publishing


def test_without_a_manifest_nobody_sees_it_and_two_writers_do_no_harm(lake: StorePlace) -> None:
    target = lake / "toy" / "0123"
    with publishing(target) as first, publishing(target) as second:
        for folder in (first, second):
            (folder / "profile.json").write_text("{}")
            assert published_at(target) is None
        assert snapshots_in(lake / "toy") == []
        (second / "manifest.json").write_text('{"created": "2026-02"}')
        assert published_at(target) == second
        (first / "manifest.json").write_text('{"created": "2026-01"}')
    assert published_at(target) == first
    assert published_at(lake / "toy" / "012") is None
    assert [path for path, _ in snapshots_in(lake / "toy")] == [first, second]
    remove(first)
    assert published_at(target) == second
    older = [place.beside(target) for _ in range(6)]
    for number, folder in enumerate(older):
        (folder / "manifest.json").write_text(json.dumps({"created": f"2025-0{9 - number}"}))
    assert published_at(target) == older[-1]
    assert [path for path, _ in snapshots_in(lake / "toy")] == [*reversed(older), second]
    assert [str(file.relative_to(second)) for file in second.files()] == ["manifest.json", "profile.json"]  # type: ignore[attr-defined]


def forgotten(folder: Place, local: Path, user: str, **changes: Any) -> Any:
    return forget(Wanted("user", forms=frozenset({user})), snapshots=folder, log=local / "log", labels=local / "labels", **changes)


def test_a_person_is_forgotten_in_a_store(lake: StorePlace, bucket: Any, tmp_path: Path) -> None:
    folder = lake / "people"
    before, other = stored(folder, "one", tmp_path), stored(folder, "two", tmp_path)
    digest = open_snapshot(before).digest
    assert forgotten(folder, tmp_path, "user-3", dry_run=True).snapshots == {before.name: 11, other.name: 11}
    assert names_in(before)
    assert forgotten(folder, tmp_path, "user-3").snapshots == {before.name: 11, other.name: 11}
    path = published_at(folder / "one")
    assert isinstance(path, StorePlace)
    assert path != before
    assert not before.exists()
    after = open_snapshot(path)
    assert (after.rows, after.quarantined, load_profile(path).rows) == ({"train": 65, "valid": 25}, 0, 65)
    left = pa.concat_tables([read_split(path, name) for name in after.rows])
    assert sorted(left.column("n").to_pylist()) == [i for i in range(100) if i % 10 != 3]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"] == {name: sha256_file(path / name) for name in names_in(path) if name.endswith(".parquet")}
    assert (manifest["digest"], manifest["replaces"]) == (digest_of(manifest["files"]), before.name)
    assert manifest["forgotten"][0]["digest_before"] == digest
    assert forgotten(folder, tmp_path, "user-3").snapshots == {}
    assert published_at(folder / "one") == path
    store, _ = bucket
    for file in folder.files():
        with store.open_input_stream(file.path.join(("lake/", ""))) as content:
            assert b"user-3" not in content.read()


def test_a_forget_that_dies_is_finished_by_the_next(lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lake / "people"
    before = stored(folder, "one", tmp_path)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_noted", dies)
        with pytest.raises(KeyboardInterrupt):
            forgotten(folder, tmp_path, "user-3")
        assert [path for path, _ in snapshots_in(folder)] == [before]
        assert {name.split("/")[0] for name in names_in(folder) if "/" in name} == {before.name}
    with monkeypatch.context() as patch:
        patch.setattr(place, "remove", dies)
        with pytest.raises(KeyboardInterrupt):
            forgotten(folder, tmp_path, "user-3")
    path = published_at(folder / "one")
    assert path is not None
    assert read_split(path, "train").num_rows == 65
    assert before.exists()
    assert [found for found, _ in snapshots_in(folder)] == [path]
    assert forgotten(folder, tmp_path, "user-3").snapshots == {}
    assert not before.exists()
    assert published_at(folder / "one") == path


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("rows", [70, 100, 140, 1_000])
def test_rows_come_in_the_batches_of_a_local_file(lake: StorePlace, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 100)
    table = pa.table({"n": range(430), "who": [f"user {i}" for i in range(430)]})
    found = []
    for folder in (tmp_path, lake):
        writer = parquet.Writer(folder / "a.parquet")
        writer.write(table)
        writer.close()
        assert (writer.rows, writer.sha256) == (430, sha256_file(folder / "a.parquet"))
        found.append(list(parquet.batches(str(folder / "a.parquet"), ["who"], rows=rows)))
    assert found[0] == found[1]
    assert all(batch.column(0).num_chunks == 1 for batch in found[1])
    assert parquet.read(lake / "a.parquet") == table
    assert parquet.group_rows(lake / "a.parquet") == [100, 100, 100, 100, 30]
    assert parquet.num_rows(lake / "a.parquet") == 430


def test_a_file_is_fetched_group_by_group(lake: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP", 10_000)
    writer = parquet.Writer(lake / "a.parquet")
    writer.write(pa.table({"n": np.random.default_rng(0).random(200_000)}))
    writer.close()
    fetched: list[int] = []
    real = StorePlace.open

    class Counted:
        closed = False

        def __init__(self, file: Any) -> None:
            self.file = file

        def read(self, size: int = -1) -> Any:
            content = self.file.read(size)
            fetched.append(len(content))
            return content

        def read_buffer(self, size: int) -> Any:
            return self.read(size)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    monkeypatch.setattr(StorePlace, "open", lambda self, mode: Counted(real(self, mode)))
    batches = parquet.batches(lake / "a.parquet", rows=10_000)
    next(batches)
    size = 200_000 * 8
    assert sum(fetched) < size / 4
    assert sum(batch.num_rows for batch in batches) == 190_000
    assert size * 0.9 < sum(fetched) < size * 1.2


def test_a_file_without_rows_is_not_there(lake: StorePlace) -> None:
    parquet.Writer(lake / "a.parquet").close()
    assert names_in(lake) == []
    with pytest.raises(FileNotFoundError):
        parquet.read(lake / "a.parquet")


# ------------------------------------------------------------------------------------------------- places


class Plain(pafs.FileSystemHandler):  # type: ignore[misc]
    """A folder on the disk as a filesystem of pyarrow that cannot copy, as that of HDFS cannot."""

    def __init__(self, folder: Path) -> None:
        self.inner = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.writes: list[str] = []

    def get_type_name(self) -> str:
        return "hdfs"

    def copy_file(self, source: str, target: str) -> None:
        raise NotImplementedError

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.writes.append(path)
        self.inner.create_dir(path.rpartition("/")[0], recursive=True)
        return self.inner.open_output_stream(path)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.inner.get_file_info(selector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    get_file_info = lambda self, paths: self.inner.get_file_info(paths)  # noqa: E731
    open_input_stream = lambda self, path: self.inner.open_input_stream(path)  # noqa: E731
    open_input_file = lambda self, path: self.inner.open_input_file(path)  # noqa: E731
    move = lambda self, old, new: self.inner.move(old, new)  # noqa: E731
    delete_file = lambda self, path: self.inner.delete_file(path)  # noqa: E731
    delete_dir = lambda self, path: self.inner.delete_dir(path)  # noqa: E731
    create_dir = delete_dir_contents = delete_root_dir_contents = open_append_stream = normalize_path = None


@pytest.fixture(params=["s3", "hdfs"])
def root(request: pytest.FixtureRequest, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorePlace]:
    if request.param == "s3":
        yield request.getfixturevalue("lake")
        return
    handler = Plain(tmp_path)
    handler.normalize_path = lambda path: path  # type: ignore[assignment]
    monkeypatch.setattr(stores, "_filesystem", lambda root, query: (pafs.PyFileSystem(handler), "/"))
    yield StorePlace("hdfs://name:8020", "deep/snapshots")
    written = [path for path in handler.writes if "manifest.json" in path]
    assert written
    assert all(path.rpartition(".json.")[1] for path in written)


def test_a_place_does_what_a_path_does(root: StorePlace, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("local")
    names = ["b/manifest.json", "a/manifest.json", ".c/manifest.json", "a/train/2.parquet", "a/train/1.parquet", "a/x.json"]

    def seen(top: Any, make: Callable[[Any, str], None]) -> Any:
        for name in names:
            make(top / name, f"text of {name}, ä")
        a = top / "a"
        for _ in range(2):
            take_over(a / "x.json", top / "d" / "y.json")
        (a / "x.json").unlink()
        found = {pattern: sorted(str(p.relative_to(top)) for p in top.glob(pattern)) for pattern in (
            "*", "[!.]*/manifest.json", "a*/manifest.json", "a/train/*.parquet", "none/*.parquet", "a", "none", "a/manifest.json", "*.json",
        )}  # fmt: skip
        return (
            found,
            [str(p.relative_to(a)) for p in files_in(a)],
            [p.is_file() for p in (a, a / "manifest.json", top / "none")],
            [p.exists() for p in (a, a / "manifest.json", top / "none")],
            [(a / "train/1.parquet").read_text(), (top / "d/y.json").read_text()],
            [a.name, a.parent == top, (a / "train" / "1.parquet").parent.parent == a, a.with_name("z") == top / "z", a < top / "b"],
            (a / "manifest.json").open("rb").read(3),
        )

    def make_local(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert seen(root, lambda path, text: path.write_text(text)) == seen(folder, make_local)
    require_store(root)
    assert StorePlace(root.root, "", root.query).exists()
    for missing in (lambda: (root / "none").read_text(), lambda: (root / "none").open("rb"), lambda: (root / "none").unlink()):
        with pytest.raises(FileNotFoundError):
            missing()
    for top in (root, folder):
        remove(top / "a")
        remove(top / "none")
        assert not (top / "a").exists()
        assert (top / "b").exists()


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("s3://lake/a%20b/c?region=eu-west-1", "lake/a b/c"),
        ("s3://lake?region=eu-west-1", "lake"),
        ("gs://anonymous@lake/a/c/", "lake/a/c"),
        ("abfs://lake@account.dfs.core.windows.net/a/c", "lake/a/c"),
        ("abfss://account.blob.core.windows.net/lake/a/c", "lake/a/c"),
    ],
)
def test_an_address_is_what_pyarrow_makes_of_it(address: str, inside: str) -> None:
    found = place_of(address)
    assert isinstance(found, StorePlace)
    with found.asking() as (filesystem, path):
        assert path == inside == pafs.FileSystem.from_uri(address)[1].rstrip("/")
        assert filesystem.type_name in stores.WHOLE_AT_CLOSE
    below = found / "x" / "y.parquet"
    assert place_of(str(below)) == below == pickle.loads(pickle.dumps(below))
    with below.asking() as (_, path):
        assert path == f"{inside}/x/y.parquet"


def test_where_snapshots_go_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert snapshot_root(Runtime(storage="s")) == tmp_path / "s" / "snapshots"
    assert snapshot_root(Runtime(snapshots="mine")) == tmp_path / "mine"
    assert snapshot_root(Runtime(snapshots=f"file://{tmp_path}/x")) == tmp_path / "x"
    assert str(snapshot_root(Runtime(snapshots="s3://lake/x/?region=eu-west-1"))) == "s3://lake/x?region=eu-west-1"


@pytest.mark.parametrize("address", ["s3://key:geheim@lake/x", "abfs://lake@a.dfs.core.windows.net/x?sv=1&sig=geheim", "ftp://lake/x"])
def test_an_address_with_a_secret_or_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"holds a key or a signature|begins with ftp://; expected a folder or s3://") as refused:
        Runtime(snapshots=address)
    assert "geheim" not in refused.value.errors()[0]["msg"]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- a store that refuses


def test_a_bucket_that_is_not_there_is_named_before_a_row_is_read(bucket: Any, tmp_path: Path) -> None:
    _, query = bucket
    (tmp_path / "a.csv").write_text("x,y\n1,yes\n2,no\n")
    where = place_of(f"s3://none/x?{query}")
    with pytest.raises(DataError, match=r"s3://none/x\?.* is in a bucket that does not exist\. .*runtime\.snapshots"):
        prepare(PROBLEM, Data(source=CsvSource(path=str(tmp_path / "a.csv")), split=RandomSplit()), where)


def test_a_writer_names_the_store_that_refuses(bucket: Any) -> None:
    _, query = bucket
    writer = parquet.Writer(place_of(f"s3://none/a.parquet?{query}"))
    with pytest.raises(
        DataError, match=r"s3://none/a\.parquet\?.* cannot be read or written: .*NO_SUCH_BUCKET.*Set runtime\.storage or runtime\.snapshots"
    ):
        _written(writer)


def _written(writer: parquet.Writer) -> None:
    writer.write(pa.table({"n": [1]}))
    writer.close()


def test_a_server_that_is_not_there_and_one_that_refuses_are_one_line_each(bucket: Any) -> None:
    _, query = bucket
    put = place_of(f"s3://lake/x/manifest.json?{query}&scheme=http")
    put.write_text("{}")
    address = query.split("=")[1].split("&")[0]

    def refuse_after(count: str) -> None:
        request = urllib.request.Request(f"{address}/moto-api/reset-auth", count.encode(), {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=9)

    refuse_after("0")
    try:
        with pytest.raises(DataError, match=r"^s3://lake/x/manifest\.json\?.* cannot be read or written: [^\n]*\. Expected [^\n]*$"):
            open_snapshot(put.parent)
    finally:
        refuse_after("inf")
    assert put.is_file()
    gone = place_of("s3://lake/x?endpoint_override=http://127.0.0.1:9&region=us-east-1")
    with pytest.raises(DataError, match=r"^s3://lake/x/manifest\.json\?[^\n]* cannot be read or written: [^\n]*NETWORK_CONNECTION[^\n]*$"):
        open_snapshot(gone)
    with pytest.raises(DataError, match=r"hdfs://nowhere:1/x cannot be read or written: .*libjvm"):
        place_of("hdfs://nowhere:1/x").is_file()
    with pytest.raises(DataError, match=r"s3://lake/x\?rgion=1 cannot be read or written: Unexpected query parameter"):
        place_of("s3://lake/x?rgion=1").exists()
