"""Batch prediction for real: sources on disk, workers in the shared Ray, answers compared with the predictor's.

What needs no second process runs its one worker in this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from raymlp import pipeline
from raymlp.config.loader import to_yaml, with_overrides
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import BundleError, ConfigError, ContractError, DataError
from raymlp.core.records import BatchPrediction
from raymlp.data import parquet
from raymlp.model.bundle import load_bundle
from raymlp.model.predictor import Predictor
from raymlp.model.scorer import placed
from raymlp.model.trees import TreeScorer
from raymlp.predict import prediction, room
from raymlp.predict.job import Job, Tally, Worker, _left, _take, read
from raymlp.predict.output import Facts, Output
from tests.serve.bundles import json_rows, make_bundle, make_config, source_table

ROWS = 500


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", seed=1)


def rows_of_table() -> pa.Table:
    """The rows that the bundle was made for, without the target, with a number each."""
    return source_table().drop(["late"]).append_column("row", pa.array(range(ROWS)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet files of ten row groups each, which makes two parts a file."""
    folder = tmp_path_factory.mktemp("source")
    for part in range(2):
        pq.write_table(rows_of_table().slice(part * 250, 250), folder / f"{part}.parquet", row_group_size=25)
    return folder


def config_for(runtime: Runtime, source: Path, place: Path, **predict: Any) -> Config:
    settings = {
        "data.source": {"kind": "parquet", "path": str(source)},
        "predict": {"output": str(place), "keep": ["row"], "file_rows": 60, "num_workers": 1, "cpus_per_worker": 0.5, **predict},
    }
    return with_overrides(make_config(runtime), settings)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, in this process, without Ray."""

    def run(job: Job, tally: Tally, done: Mapping[tuple[int, int], Facts], *, on_chunk: Callable[[Tally], None]) -> None:
        worker = Worker(job)
        for part, skip in _left(job, tally, done):
            for chunk in read(job, part, skip):
                _take(worker.answer(chunk), tally)
                on_chunk(tally)

    monkeypatch.setattr(prediction, "run", run)
    monkeypatch.setattr(prediction, "ray_session", lambda _: nullcontext())


def answers(result: BatchPrediction) -> pa.Table:
    return pq.read_table(result.output).sort_by("row")


def quarantine(result: BatchPrediction) -> list[dict[str, Any]]:
    return list(pq.read_table(result.quarantine).sort_by("raymlp_row").to_pylist())


# ---------------------------------------------------------------------- values


@pytest.mark.ray
def test_answers_of_two_workers_equal_the_predictors_though_one_is_killed(
    ray_runtime: Runtime, bundle: Path, source: Path, tmp_path: Path
) -> None:
    import psutil

    killed = []

    def kill_one(words: str) -> None:
        """Once, a worker of this test's own Ray, which has answered a chunk."""
        if "rows" in words and not killed:
            workers = [
                process for process in psutil.Process().children(recursive=True) if "".join(process.cmdline()).startswith("ray::Worker")
            ]
            killed.extend(workers[:1])
            workers[0].send_signal(signal.SIGKILL)

    config = config_for(ray_runtime, source, tmp_path / "out", num_workers=2)
    result = prediction.predict(config, pipeline.resolve(config, bundle), tmp_path / "none", say=kill_one)
    assert len(killed) == 1
    found, predictor = answers(result), Predictor.load(bundle)
    expected = predictor.predict(json_rows(ROWS))
    alone = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in json_rows(40)]
    assert found.column_names == ["row", "score", "label", "model_version", "model_digest"]
    assert found.column("row").to_pylist() == list(range(ROWS))
    assert found.column("score").to_pylist() == pytest.approx(expected.scores, abs=1e-6)
    assert found.column("score").to_pylist()[:40] == pytest.approx(alone, abs=1e-6)
    assert found.column("label").to_pylist() == expected.labels
    digest = predictor.bundle.digest
    assert set(found.column("model_version").to_pylist()) == {digest[:12]}
    assert set(found.column("model_digest").to_pylist()) == {digest}
    assert (result.rows, result.quarantined, result.resumed) == (ROWS, 0, 0)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert sum(rows for _, rows in manifest["files"].values()) == ROWS
    assert max(rows for _, rows in manifest["files"].values()) == 60


def test_the_same_job_is_found_again_and_another_needs_a_place_of_its_own(here: None, bundle: Path, source: Path, tmp_path: Path) -> None:
    config = config_for(Runtime(storage=str(tmp_path)), source, tmp_path / "out")
    first, again = (pipeline.predict(config, bundle) for _ in range(2))
    assert (first.chunks, first.resumed) == (10, 0)
    assert (again.rows, again.chunks, again.resumed, again.reused) == (ROWS, 0, 10, True)
    other = with_overrides(config, {"predict.keep": ["row", "carrier"]})
    with pytest.raises(ConfigError, match=r"holds answers of flights .*predict.overwrite=true"):
        pipeline.predict(other, bundle)
    replaced = pipeline.predict(with_overrides(other, {"predict.overwrite": True}), bundle)
    assert answers(replaced).column("carrier") == rows_of_table().column("carrier")


@pytest.mark.parametrize("same", [True, False])
def test_what_another_process_published_meanwhile_is_not_deleted(
    here: None, bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """As in a store, which no lock spans."""
    monkeypatch.setattr(Output, "alone", lambda _: nullcontext())
    config = config_for(Runtime(storage=str(tmp_path / "artifacts")), source, tmp_path / "out")
    other = config if same else with_overrides(config, {"predict.keep": ["row", "carrier"]})
    published: list[BatchPrediction] = []

    def say(words: str) -> None:
        if "4 of 4 parts" in words and not published:
            published.append(prediction.predict(other, pipeline.resolve(other, bundle), tmp_path / "none"))

    if same:
        found = prediction.predict(config, pipeline.resolve(config, bundle), tmp_path / "none", say=say)
        assert (found.rows, found.reused) == (ROWS, True)
    else:
        with pytest.raises(ConfigError, match=r"holds answers of flights .*predict.overwrite=true"):
            prediction.predict(config, pipeline.resolve(config, bundle), tmp_path / "none", say=say)
    assert answers(published[0]).num_rows == ROWS
    assert ("carrier" in answers(published[0]).column_names) != same


# ---------------------------------------------------------------------- going on


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_goes_on_after_its_driver_was_killed(ray_runtime: Runtime, bundle: Path, source: Path, tmp_path: Path) -> None:
    import ray

    runtime = ray_runtime.model_copy(update={"address": ray.get_runtime_context().gcs_address})
    config = config_for(runtime, source, tmp_path / "out", file_rows=5)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    code = f"""
import yaml
from pathlib import Path
from raymlp import pipeline
from raymlp.config.loader import build_config
pipeline.predict(build_config(yaml.safe_load(Path({str(tmp_path / "config.yaml")!r}).read_text())), {str(bundle)!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as driver:
        while not (finished := list(tmp_path.glob(".out.*/_facts/*.json"))):
            assert driver.poll() is None, driver.stderr and driver.stderr.read().decode()
            threading.Event().wait(0.02)
        driver.kill()
        driver.wait()
    assert not (tmp_path / "out").exists()
    assert 0 < len(finished) < 100
    (working,) = (path for path in tmp_path.glob(".out.*") if path.is_dir())  # beside it lies the lock
    before = {
        file.name: file.stat().st_mtime_ns for file in working.glob("*.parquet") if (working / "_facts" / f"{file.stem}.json").is_file()
    }
    result = pipeline.predict(config, bundle)
    assert result.resumed >= len(finished)
    assert (result.resumed + result.chunks, result.rows) == (100, ROWS)
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    found = answers(result)
    assert found.column("row").to_pylist() == list(range(ROWS))
    assert found.column("score").to_pylist() == pytest.approx(Predictor.load(bundle).predict(json_rows(ROWS)).scores, abs=1e-6)


# ---------------------------------------------------------------------- bad rows


@pytest.fixture
def bad_source(tmp_path: Path) -> Path:
    """200 rows, of which 7 is out of range, 8 has damaged bytes for an image, 150 no carrier."""
    table = rows_of_table().slice(0, 200)
    columns: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in table.column_names}
    columns["delay"][7], columns["shot"][8], columns["carrier"][150] = 1e9, b"no image", None
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns, schema=table.schema), tmp_path / "in" / "rows.parquet")
    return tmp_path / "in"


def test_bad_rows_go_to_quarantine_with_reason_and_place(here: None, bundle: Path, bad_source: Path, tmp_path: Path) -> None:
    config = config_for(Runtime(storage=str(tmp_path)), bad_source, tmp_path / "out", max_bad_share=0.015)
    result = pipeline.predict(config, bundle)
    assert (result.rows, result.quarantined) == (197, 3)
    assert [(row["raymlp_row"], row["row"], row["raymlp_reason"].split(" ")[0]) for row in quarantine(result)] == [
        (7, "7", "delay"), (8, "8", "shot"), (150, "150", "carrier"),
    ]  # fmt: skip
    assert quarantine(result)[0]["delay"] == "1000000000"
    assert answers(result).column("row").to_pylist() == [row for row in range(200) if row not in (7, 8, 150)]


def test_over_budget_nothing_is_seen_and_a_larger_budget_goes_on(here: None, bundle: Path, bad_source: Path, tmp_path: Path) -> None:
    config = config_for(Runtime(storage=str(tmp_path)), bad_source, tmp_path / "out")
    with pytest.raises(ContractError, match=r"3 of 200 rows \(1.5%\).*rows.parquet, row 7: delay is above.*_quarantine"):
        pipeline.predict(config, bundle)
    assert not (tmp_path / "out").exists()
    result = pipeline.predict(with_overrides(config, {"predict.max_bad_share": 0.02}), bundle)
    assert (result.rows, result.chunks, result.resumed) == (197, 0, 4)


def test_rows_that_the_model_fails_on_and_lines_that_are_none(
    here: None, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows_of_table().slice(0, 30).drop(["shot"])
    pacsv.write_csv(table, tmp_path / "rows.csv")
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join([*lines[:11], "one,two", *lines[11:]]) + "\n")
    outputs = Predictor.outputs

    def odd(self: Predictor, rows: pa.Table) -> Any:
        if pc.any(pc.equal(rows.column("raymlp_row"), 4)).as_py():
            raise ZeroDivisionError("by chance")
        return outputs(self, rows)

    monkeypatch.setattr(Predictor, "outputs", odd)
    config = config_for(Runtime(storage=str(tmp_path)), tmp_path, tmp_path / "out", missing_as_null=True, max_bad_share=0.1)
    config = with_overrides(config, {"data.source": {"kind": "csv", "path": str(tmp_path / "rows.csv")}})
    result = pipeline.predict(config, bundle)
    assert (result.rows, result.quarantined) == (29, 2)
    found = {row["raymlp_row"]: row["raymlp_reason"] for row in quarantine(result)}
    assert found[4] == "the model fails: ZeroDivisionError: by chance"
    assert "has 2 columns" in found[None] or "has 2 fields" in found[None]


def test_with_encrypted_snapshots_the_quarantine_is_encrypted_too(
    here: None, bundle: Path, bad_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", "s" * 40)
    config = config_for(Runtime(storage=str(tmp_path)), bad_source, tmp_path / "out", max_bad_share=0.015)
    result = pipeline.predict(with_overrides(config, {"data.privacy.encrypt_snapshots": True}), bundle)
    files = list(Path(result.quarantine).glob("*.parquet"))
    assert [parquet.is_encrypted(file) for file in files] == [True] * 2
    assert sum(parquet.read(file).num_rows for file in files) == 3
    assert answers(result).num_rows == 197


def test_a_net_on_a_device_gives_the_same_answers_and_trees_have_none(bundle: Path) -> None:
    here, there = Predictor.load(bundle), Predictor.of(load_bundle(bundle), device="cpu:0", key=None)
    assert there.bundle.scorer.device == "cpu:0"  # type: ignore[attr-defined]
    assert here.predict(json_rows(30)).scores.tolist() == there.predict(json_rows(30)).scores.tolist()
    trees = TreeScorer("xgboost", "", cast(Any, None))
    assert placed(trees, "cpu") is trees
    with pytest.raises(ConfigError, match=r"holds no net, and is scored on CPUs; .*predict.gpus_per_worker=0"):
        placed(trees, "cuda")


# ---------------------------------------------------------------------- what is refused


def test_a_bundle_that_was_tampered_with_is_refused(here: None, bundle: Path, source: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    with (tmp_path / "bundle" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    config = config_for(Runtime(storage=str(tmp_path)), source, tmp_path / "out")
    with pytest.raises(BundleError, match=r"weights.safetensors was changed after it was written"):
        pipeline.predict(config, tmp_path / "bundle")
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_column_of_the_model_is_refused_and_named(here: None, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = rows_of_table().slice(0, 20)
    pq.write_table(
        table.rename_columns(["hour" if name == "hours" else name for name in table.column_names]), tmp_path / "in" / "a.parquet"
    )
    config = config_for(Runtime(storage=str(tmp_path)), tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match=r"no column 'hours'; .*Did you mean 'hour'.*missing_as_null"):
        pipeline.predict(config, bundle)
    result = pipeline.predict(with_overrides(config, {"predict.missing_as_null": True}), bundle)
    rows = [{name: value for name, value in row.items() if name != "hours"} for row in json_rows(20)]
    assert answers(result).column("score").to_pylist() == pytest.approx(Predictor.load(bundle).predict(rows).scores, abs=1e-6)


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        ({"keep": ["rwo"]}, "predict.keep names 'rwo'.*Did you mean 'row'"),
        ({"output": ""}, "predict.output is empty"),
        ({"gpus_per_worker": 2}, "gpus_per_worker is 2; expected at most 1"),
    ],
)
def test_wrong_settings_are_named(here: None, bundle: Path, source: Path, tmp_path: Path, predict: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline.predict(config_for(Runtime(storage=str(tmp_path)), source, tmp_path / "out", **predict), bundle)


@pytest.mark.ray
def test_more_workers_than_the_cluster_holds_are_refused_with_the_arithmetic(
    ray_runtime: Runtime, bundle: Path, source: Path, tmp_path: Path
) -> None:
    for predict, words in (({"num_workers": 9}, r"9 workers of 0.5 CPUs.*has 4 CPUs"), ({"gpus_per_worker": 1}, r"1 GPUs.*and 0 GPUs")):
        with pytest.raises(ConfigError, match=words):
            pipeline.predict(config_for(ray_runtime, source, tmp_path / "out", **predict), bundle)


@pytest.mark.ray
def test_a_busy_cluster_is_told_and_a_job_begins_with_the_workers_that_fit(
    ray_runtime: Runtime, bundle: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    @ray.remote
    class Holder:
        def ready(self) -> None:
            pass

    config = config_for(ray_runtime, source, tmp_path / "out", num_workers=2)
    for cpus in (3.8, 3.3):
        holder = Holder.options(num_cpus=cpus).remote()  # type: ignore[attr-defined]
        ray.get(holder.ready.remote())
        try:
            if cpus == 3.8:
                monkeypatch.setattr(room, "START_S", 1.0)
                with pytest.raises(
                    ConfigError, match=r"2 workers of 0.5 CPUs .*waited 1 s for the first; .*0.2 and 0 are free, with room for 0"
                ):
                    pipeline.predict(config, bundle)
            else:
                monkeypatch.setattr(room, "START_S", 60.0)
                result = pipeline.predict(config, bundle)
                assert (result.rows, answers(result).column("row").to_pylist()) == (ROWS, list(range(ROWS)))
        finally:
            ray.kill(holder)
