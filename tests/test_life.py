"""The main job end to end on real flights: a few months, one epoch, every step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pytest

import raymlp
from raymlp import life, pipeline
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import GateRefused, RegistryError
from raymlp.core.records import RunSummary
from raymlp.data import sources
from raymlp.model.bundle import load_bundle
from raymlp.model.predictor import Predictor
from raymlp.runtime import tracking
from raymlp.runtime.ports import free_port

pytestmark = pytest.mark.ray


@dataclass
class Lived:
    config: Config
    summary: RunSummary
    root: Path


def settings_of(root: Path) -> list[str]:
    """Every eighth flight of the year, so that the seasons stay."""
    sample = root / "flights.csv"
    if not sample.exists():
        pacsv.write_csv(every_eighth(sources.read_all(raymlp.load_config("flights").data.source)), sample)
    return [f"runtime.storage={root}", f"data.source.path={sample}"]


def every_eighth(table: pa.Table) -> pa.Table:
    table = table.take(pa.array(range(0, table.num_rows, 8)))
    moments = pc.strftime(table.column("time_hour"), format="%Y-%m-%dT%H:%M:%SZ")
    return table.set_column(table.schema.get_field_index("time_hour"), "time_hour", moments)


@pytest.fixture(scope="module")
def lived(ray_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    root = tmp_path_factory.mktemp("life")
    settings = [
        *settings_of(root),
        f"serve.port={free_port()}",
        "serve.log.flush_s=0.2",
        "train.epochs=3",
        "train.batch_size=256",
        "evaluate.baselines=[rule,linear]",
        "replay.rows_per_window=1500",
        "serve.rollout.min_requests=50",
    ]
    config = raymlp.load_config("flights", settings)
    return Lived(config, raymlp.run(config), root)


def test_the_story_has_its_steps_and_every_place_exists(lived: Lived) -> None:
    titles = [title for title, _, _ in lived.summary.steps]
    assert titles[:5] == ["prepare", "train", "evaluate", "register", "deploy"]
    assert {"live", "monitor", "retrain", "compare", "rollout", "sabotage"} <= set(titles)
    assert lived.summary.gate.action == "pass"
    for name, place in lived.summary.places.items():
        assert Path(place.removeprefix("sqlite:///")).exists(), name


def test_the_retrained_model_was_compared_and_rolled_out_and_the_broken_one_rolled_back(lived: Lived) -> None:
    told = "\n".join(what for _, what in lived.summary.happened)
    assert "retrained" in told
    assert "drill: challenger rolled back after" in told
    store = pipeline.store_of(lived.config)
    aliases = store.aliases("flights")
    assert "challenger" not in aliases
    assert aliases["champion"] in ("1", "2")
    assert ("rollout: challenger promoted" in told) == (aliases["champion"] == "2")


def test_every_logged_answer_equals_the_offline_predictor(lived: Lived) -> None:
    log = pipeline.prediction_log(lived.config)
    assert set(log.column("status").to_pylist()) == {200}
    assert len(set(log.column("prediction_id").to_pylist())) == log.num_rows
    store = pipeline.store_of(lived.config)
    versions = set(log.column("version").to_pylist())
    assert {"v1"} < versions
    for version in versions:
        predictor = Predictor.load(store.get(f"flights/{version.removeprefix('v')}").bundle)
        rows = log.filter(pc.equal(log.column("version"), version))
        inputs = pa.table({name.removeprefix("in."): rows.column(name) for name in rows.column_names if name.startswith("in.")})
        offline = predictor.predict(inputs).scores
        assert rows.column("prediction").to_numpy() == pytest.approx(offline, abs=1e-6)


def test_labels_came_for_every_prediction(lived: Lived) -> None:
    labels = pipeline.labels(lived.config)
    assert labels is not None
    assert set(labels.column("prediction_id").to_pylist()) == set(pipeline.prediction_log(lived.config).column("prediction_id").to_pylist())


def test_monitoring_sees_the_season_change(lived: Lived) -> None:
    reports = sorted((lived.root / "monitor" / "flights").glob("*/*.json"))
    findings = [finding for report in reports for finding in json.loads(report.read_text())["findings"]]
    drifted = {finding["name"] for finding in findings if finding["alert"] and finding["kind"] == "feature drift"}
    assert "temp" in drifted
    assert "carrier" not in drifted
    assert all(finding["rows"] > 0 and finding["threshold"] > 0 for finding in findings)


def test_one_mlflow_run_a_job_holds_what_is_needed_to_repeat_it(lived: Lived) -> None:
    client = tracking.client(lived.config.registry, lived.config.runtime)
    experiment = client.get_experiment_by_name("flights")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["raymlp.job"] for run in runs) == ["retrain", "sabotage", "train"]
    run = next(run for run in runs if run.data.tags["raymlp.job"] == "train")
    assert run.info.status == "FINISHED"
    bundle = load_bundle(pipeline.store_of(lived.config).get("flights/1").bundle)
    assert (bundle.run_id, bundle.snapshot) == (run.info.run_id, run.data.tags["raymlp.snapshot"])
    assert run.data.metrics["bundle_auc"] == pytest.approx(bundle.metrics["auc"])
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.txt", "evaluation.html", "model"} <= files
    assert {"raymlp.seed", "raymlp.version", "raymlp.gate"} <= set(run.data.tags)


def test_no_key_is_in_anything_that_was_written(lived: Lived) -> None:
    key = (lived.root / "api-key").read_text()
    assert (lived.root / "api-key").stat().st_mode & 0o777 == 0o600
    written = [path for path in lived.root.rglob("*") if path.is_file() and path.name != "api-key"]
    assert len(written) > 50
    assert not [path for path in written if key.encode() in path.read_bytes()]


def test_mlflow_itself_loads_the_champion_without_unpickling(lived: Lived) -> None:
    import mlflow

    uri = tracking.tracking_uri(lived.config.registry, lived.config.runtime)
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/flights/1")
    table = pipeline.prediction_log(lived.config).slice(0, 3)
    rows = pa.table({name.removeprefix("in."): table.column(name) for name in table.column_names if name.startswith("in.")})
    ours = raymlp.load_predictor("models:/flights/1", config=lived.config).predict(rows).rows()
    assert model.predict(life.as_requests(rows, load_bundle(pipeline.store_of(lived.config).get("flights/1").bundle).contract)) == ours


def test_the_registry_names_what_it_has(lived: Lived) -> None:
    with pytest.raises(RegistryError, match=r"does not have 'models:/flights@nobody'; found flights@champion"):
        raymlp.load_predictor("models:/flights@nobody", config=lived.config)
    with pytest.raises(RegistryError, match="is no model reference"):
        raymlp.load_predictor("Flights!", config=lived.config)


def test_a_gate_that_asks_too_much_refuses(lived: Lived) -> None:
    config = raymlp.load_config("flights", [*settings_of(lived.root), "problem.success_threshold=0.99", "evaluate.baselines=[rule]"])
    bundle = pipeline.store_of(config).get("flights/1").bundle
    evaluation = raymlp.evaluate(config, bundle)
    assert evaluation.gate.action == "fail"
    with pytest.raises(GateRefused, match=r"0.99"):
        pipeline.require(evaluation.gate)


def test_windows_are_in_the_order_of_time_and_thinned(lived: Lived) -> None:
    config = raymlp.load_config("flights", [*settings_of(lived.root), "replay.rows_per_window=100", "monitor.min_rows=90"])
    windows = life.windows_of(config, raymlp.prepare(config))
    assert [window.name for window in windows] == ["2013-08", "2013-09", "2013-10", "2013-11", "2013-12"]
    for window in windows:
        times = window.rows.column("time_hour").to_numpy()
        assert window.rows.num_rows == 100
        assert np.all(np.diff(times).astype(int) >= 0)
