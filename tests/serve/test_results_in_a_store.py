"""An endpoint's results in a store that speaks the S3 protocol: bundles, graphs, the prediction log, labels, records, orders, the lease."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.rollout import Rollout
from raymlp.config.runtime import Runtime
from raymlp.config.serve import Log
from raymlp.core.errors import BundleError, DataError, ServingError
from raymlp.data import forget as forgetting
from raymlp.data.forget import Wanted
from raymlp.data.hours import write_table
from raymlp.data.labels import read_labels
from raymlp.model.bundle import load_bundle, local
from raymlp.model.comparison import compare
from raymlp.model.predictor import Predictor
from raymlp.runtime.claim import Claim
from raymlp.runtime.store import StorePlace, place_of
from raymlp.serve import runtime as graphs
from raymlp.serve.application import application_of, user_config_of
from raymlp.serve.fitting import bytes_of
from raymlp.serve.log import PredictionLog, read_log
from raymlp.serve.reading import Reading
from raymlp.serve.rollout import orders
from raymlp.serve.rollout.course import Course, Records
from raymlp.serve.rollout.lease import Lost, StoreLease, lease_of
from raymlp.serve.rollout.orders import Answer, Order
from tests.serve.bundles import json_rows, make_bundle, make_config
from tests.serve.test_log import entry, log_in
from tests.serve.test_reading import SETTINGS, VERSIONS, labels_of, log_of, nearly

pytest.importorskip("obstore")


@pytest.fixture
def lake(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorePlace]:
    """An empty folder in the bucket, on a machine without copies."""
    filesystem, query = bucket
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "cache"))
    folder = place_of(f"s3://lake/results?{query}")
    assert isinstance(folder, StorePlace)
    yield folder
    filesystem.delete_dir_contents("lake")


# ------------------------------------------------------------------------------------------------- bundles


def test_a_bundle_answers_as_the_local_one_wherever_it_is_fetched(
    lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = make_bundle(tmp_path / "bundle", seed=1), make_bundle(lake / "bundle", seed=1)
    rows = json_rows(8)
    assert all(fact.same for fact in compare(here, there))
    address = str(there)
    scores = Predictor.load(here).predict(rows).scores
    assert (Predictor.load(address).predict(rows).scores == scores).all()
    assert bytes_of(address) == sum(file.stat().st_size for file in here.iterdir())
    copied = local(address)
    assert copied.is_relative_to(tmp_path / "cache")
    assert load_bundle(there).path == copied
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "another machine"))
    assert (Predictor.load(address).predict(rows).scores == scores).all()


def test_what_an_upload_that_was_cut_off_left_is_written_over(lake: StorePlace) -> None:
    (lake / "bundle" / "plan.json").write_text("{")
    there = make_bundle(lake / "bundle", seed=1)
    assert load_bundle(there).digest


def test_a_bundle_that_is_not_whole_is_refused_and_not_copied(lake: StorePlace, tmp_path: Path) -> None:
    made = make_bundle(lake / "bundle", seed=1)
    with pytest.raises(BundleError, match="exists; expected a new place"):
        make_bundle(lake / "bundle", seed=2)
    metrics = (made / "metrics.json").read_text()
    (made / "metrics.json").write_text(metrics.replace("0.5", "0.9"))
    with pytest.raises(BundleError, match=r"metrics\.json was changed after it was written"):
        load_bundle(made)
    (made / "metrics.json").write_text(metrics)
    assert load_bundle(made).metrics == {"auc": 0.5}
    (made / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"s3://lake/results/bundle.* is no bundle"):
        load_bundle(made)


def test_a_graph_is_made_once_and_runs_on_another_machine(lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    predictor = Predictor.load(make_bundle(tmp_path / "bundle", seed=1))
    size = graphs.prepare(predictor, "onnx", lake / "graphs")
    assert size > 0
    monkeypatch.setattr(graphs, "_made", None)
    assert graphs.prepare(predictor, "onnx", lake / "graphs") == size
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "another machine"))
    found, ran = graphs.with_runtime(predictor, "onnx", lake / "graphs")
    assert ran == "onnx"
    rows = json_rows(8)
    assert found.predict(rows).scores == pytest.approx(predictor.predict(rows).scores, abs=1e-5)


def test_replicas_are_told_addresses(lake: StorePlace, tmp_path: Path) -> None:
    config = make_config(Runtime(), auth="none", fallback={"kind": "rule"}).model_copy(update={"runtime": Runtime(storage=str(lake))})
    bundle = str(make_bundle(lake / "bundle", seed=1))
    args = application_of(config, user_config_of({"v1": bundle}, {"v1": 1.0}), [], runtime_env={}).args
    assert place_of(args["log_folder"]) == lake / "predictions" / "flights"
    assert place_of(args["shadow_folder"]) == lake / "shadows" / "flights"
    assert place_of(args["label_folder"]) == lake / "labels" / "flights"
    assert place_of(args["loading"]["graphs"]) == lake / "graphs"


# ------------------------------------------------------------------------------------------------- the log and the labels


def test_logged_rows_come_back_as_from_a_disk(lake: StorePlace, tmp_path: Path) -> None:
    for folder in (tmp_path / "log", lake / "log"):
        log = log_in(folder)  # type: ignore[arg-type]
        for number in (1, 2, 4_000):
            log.add(entry(number, status=500 if number == 2 else 200))
        assert log.flush() == 3
    assert read_log(lake / "log") == read_log(tmp_path / "log")
    assert [file.parent.name for file in (lake / "log").files()] == ["1970-01-01T00", "1970-01-01T01"]
    late = datetime.fromtimestamp(3_700, UTC)
    assert read_log(lake / "log", since=late)["prediction_id"].to_pylist() == ["id4000"]
    assert read_log(lake / "log", newest_rows=1)["prediction_id"].to_pylist() == ["id4000"]
    assert read_log(lake / "none").num_rows == 0


def test_rows_wait_while_the_store_is_away(lake: StorePlace) -> None:
    log = PredictionLog(StorePlace("s3://none", "log", lake.query), Log())
    log.add(entry(1, status=500))
    with pytest.raises(DataError, match=r"s3://none/log/.* cannot be read or written"):
        log.flush()
    assert len(log) == 1
    log.folder = lake / "log"
    assert log.flush() == 1


def test_a_rollout_follows_the_log_file_by_file(lake: StorePlace) -> None:
    log = log_of(60, 0)
    labels = labels_of(log, 0)
    folder = lake / "log" / "2026-01-01T00"
    reading = Reading(lake / "log", lake / "labels", VERSIONS, "s", SETTINGS, since=0.0)
    for number in range(3):
        write_table(log.slice(20 * number, 20), folder / f"{number}.parquet")
        reading.evidence()
    write_table(labels, lake / "labels" / "0.parquet")
    found = reading.evidence()
    nearly(found, Reading(lake / "log", lake / "labels", VERSIONS, "s", SETTINGS, since=0.0).evidence())
    assert reading.evidence() is found, "nothing is read again"
    write_table(log.slice(0, 10), folder / "0.parquet")
    assert reading.evidence().requests < found.requests, "a file that was changed is read anew"


def test_a_person_is_forgotten_in_log_labels_and_shadows(lake: StorePlace) -> None:
    at = pa.array([0, 0, 0], pa.timestamp("us", tz="UTC"))
    rows = pa.table({"prediction_id": ["a", "b", "c"], "routing_key": ["ann", "bob", "ann"], "time": at})
    write_table(rows, lake / "log" / "1970-01-01T00" / "x.parquet")
    write_table(rows.slice(0, 1), lake / "log" / "1970-01-01T00" / "y.parquet")
    write_table(rows, lake / "shadows" / "1970-01-01T00" / "x.parquet")
    write_table(pa.table({"prediction_id": ["a", "b", "c"], "label": [1, 0, 1]}), lake / "labels" / "x.parquet")
    wanted = Wanted("user", oldest=None, routing_keys=frozenset({"ann"}))
    told = {"snapshots": lake / "snapshots", "log": lake / "log", "labels": lake / "labels", "shadows": lake / "shadows"}
    found = forgetting.forget(wanted, **told)  # type: ignore[arg-type]
    assert (found.log_rows, found.labels) == (3, 2)
    assert [file.name for file in (lake / "log").files()] == ["x.parquet"]
    for file in [*(lake / "log").files(), *(lake / "shadows").files(), *(lake / "labels").files()]:
        with file.open("rb") as source:
            assert pq.read_table(source)["prediction_id"].to_pylist() == ["b"]
    labels = read_labels(lake / "labels")
    assert labels is not None
    assert labels["label"].to_pylist() == [0]


# ------------------------------------------------------------------------------------------------- rollouts


def test_the_last_record_counts(lake: StorePlace) -> None:
    records = Records(lake / "rollouts")
    assert records.latest() is None
    course = Course.start("flights", "v1", "v2", salt="s", settings=Rollout(), now=1.0, by="ann")
    later = Course.start("flights", "v1", "v3", salt="t", settings=Rollout(), now=2.0, by="ann")
    records.save(later)
    records.save(course)
    assert records.latest() == later
    records.save(later.pause(now=3.0, by="bob"))
    found = records.latest()
    assert found is not None
    assert found.state == "paused"


def taken_by(lease: StoreLease) -> None:
    tries = iter(range(10**6))
    while not lease.take():
        assert next(tries) < 10**5


def test_one_drives_and_who_was_overtaken_changes_nothing(lake: StorePlace) -> None:
    folder = lake / "rollouts" / "flights"
    first = lease_of(folder)
    assert isinstance(first, StoreLease)
    assert first.take()
    with pytest.raises(ServingError, match=r"process \d+ on .* drives the rollouts of flights"), lease_of(folder).held():
        pass
    with first.fenced():
        (folder / "record").write_text("first")
    second = StoreLease(folder, silent_s=0.2)
    taken_by(second)
    with pytest.raises(Lost, match="another process took over the rollouts of flights"), first.fenced():
        (folder / "record").write_text("too late")
    with second.fenced():
        pass
    assert (folder / "record").read_text() == "first"
    assert (second.is_live(), second.epoch) == (True, 2)
    second.release()
    assert not lease_of(folder).is_live()


def test_an_act_during_which_another_took_over_is_told_to_have_lost_its_right(lake: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claim, "_breathe", lambda self, ended: None)  # as in a process that does not run for a while
    first, second = StoreLease(lake, silent_s=0.2), StoreLease(lake, silent_s=0.2)
    assert first.take()
    with pytest.raises(Lost, match="another process took over"), first.fenced():
        taken_by(second)
    with second.fenced():
        pass


def test_orders_and_answers_go_through_the_store(lake: StorePlace) -> None:
    first, second = Order("set", "ann@laptop", share=0.1), Order("resume", "bob@desk", accept=("ratio",))
    orders.place(lake, second)
    orders.place(lake, first)
    (lake / orders.FOLDER / "0-bad.json").write_text("{}")
    found = orders.waiting(lake, lambda number: "nobody")
    assert [(order.by, order.verb, order.share, order.accept) for order in found] == [
        ("ann@laptop", "set", 0.1, ()),
        ("bob@desk", "resume", None, ("ratio",)),
    ]
    assert json.loads((lake / orders.FOLDER / "0-bad.answer").read_text())["done"] is False
    orders.answer(lake, first.id, Answer(True, "done"))
    assert orders.answer_to(lake, first) == (True, "done")
    assert orders.answer_to(lake, first) is None
    assert not orders.withdraw(lake, first)
    assert orders.withdraw(lake, second)
    assert orders.waiting(lake, lambda number: "nobody") == []
    with pytest.raises(ServingError, match="nobody answered 'pause', so it was taken back"):
        orders.asked(lake, Order("pause", "ann@laptop"), limit_s=0.0)
    assert time.time() - (lake / orders.FOLDER / "0-bad.answer").stat().st_mtime < 3_600
