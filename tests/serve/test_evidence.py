"""From the prediction log and the labels to the facts of a rollout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp import pipeline
from raymlp.config.rollout import Business, Rollout
from raymlp.config.runtime import Runtime
from raymlp.config.serve import Log
from raymlp.core.files import make_folder
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.hours import log_files
from raymlp.data.target import Target
from raymlp.model.predictor import Predictor
from raymlp.serve.evidence import Versions, gather, traffic_of
from raymlp.serve.log import Entry, PredictionLog, read_log
from raymlp.serve.rollout.distribution import REFERENCE_ROWS
from raymlp.serve.rollout.facts import Histogram, Pair
from raymlp.serve.rollout.latency import SETTLES_S
from raymlp.serve.rollout.outlook import outlook
from raymlp.serve.rollout.ratio import check_ratio
from raymlp.serve.routing import Routes, misrouted
from tests.serve.bundles import make_config

TARGET = Target(column="y", task="binary", positive_above=0.5, classes=("no", "yes"))
CONTRACT = Contract(columns={"x": ColumnContract(type="float")})


def predictor(slope: float, target: Target = TARGET) -> Predictor:
    """Gives `slope * x` as the probability of each row of the log."""
    scores = lambda table: slope * table.column("x").to_numpy()  # noqa: E731
    bundle = SimpleNamespace(plan=SimpleNamespace(target=target), contract=CONTRACT)
    return cast(Predictor, SimpleNamespace(bundle=bundle, scores=scores))


VERSIONS = Versions("v1", "v2", predictor(0.5), predictor(1.0))


def routes(share: float, salt: str = "s") -> Routes:
    return Routes.of("v1", {"v1": 1 - share, "v2": share}, salt=salt)


@dataclass
class Writer:
    """Requests in order, routed as a replica does."""

    entries: list[Entry] = field(default_factory=list)

    def send(self, key: str, by: Routes, *, status: int = 200, rows: int = 1, latency_ms: float = 5.0, x: float = 0.5) -> str:
        name, version, now = f"p{len(self.entries)}", by.choose(key), 1e9 + len(self.entries)
        for row in range(rows):
            good = status == 200
            score = x * (0.5 if version == "v1" else 1.0)
            self.entries.append(
                Entry(name, row, now, version, key, status, score if good else None, latency_ms, {"x": x} if good else None, str(by))
            )
        return name

    def table(self, folder: Path) -> pa.Table:
        log = PredictionLog(folder, Log())
        for version in ("v1", "v2"):
            log.know(version, CONTRACT)
        for entry in self.entries:
            log.add(entry)
        log.flush()
        return read_log(folder)


def keys_of(version: str, by: Routes, number: int) -> list[str]:
    return [key for key in (f"k{i}" for i in range(100_000)) if by.choose(key) == version][:number]


def test_only_requests_of_this_rollout_count_by_the_share_they_were_routed_with(tmp_path: Path) -> None:
    writer, early, late = Writer(), routes(0.2), routes(0.5)
    for i in range(100):
        writer.send(f"a{i}", early)
    for i in range(60):
        writer.send(f"b{i}", late, rows=3)
    for i in range(40):
        writer.send(f"c{i}", routes(0.5, salt="another rollout"))
    writer.entries.append(replace_routes(writer.entries[0], ""))
    found = gather(writer.table(tmp_path), None, VERSIONS, "s", Rollout())
    assert [step.weight for step in found.steps] == pytest.approx([0.2, 0.5])
    assert [sum(step.requests) for step in found.steps] == [100, 60]
    assert found.steps[0].requests.challenger == sum(early.choose(f"a{i}") == "v2" for i in range(100))
    assert (found.requests, found.loss.rows) == (160, 0)


def replace_routes(entry: Entry, text: str) -> Entry:
    return entry._replace(prediction_id="old", routes=text)


def test_a_key_counts_once(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.5)
    broken, busy = keys_of("v2", by, 2)
    quiet = keys_of("v1", by, 3)
    for _ in range(50):
        writer.send(broken, by, status=500)
        writer.send(busy, by)
    for key in quiet:
        writer.send(key, by)
    (step,) = gather(writer.table(tmp_path), None, VERSIONS, "s", Rollout()).steps
    assert (step.requests, step.keys, step.errors) == (Pair(3, 100), Pair(3, 2), Pair(0, 1))


def test_latency_and_predictions_count_after_the_champions_first_requests(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.5)
    old, new = keys_of("v1", by, REFERENCE_ROWS + 30), keys_of("v2", by, 40)
    assert SETTLES_S == 2, "the first two, a second apart"
    writer.send(old[0], by, latency_ms=500, x=0)
    writer.send(new[0], by, latency_ms=500)
    for i, key in enumerate(old[:REFERENCE_ROWS]):
        writer.send(key, by, latency_ms=10, x=i / REFERENCE_ROWS)
        if i < 20:
            writer.send(new[i], by, latency_ms=99)
    for key in old[REFERENCE_ROWS:]:
        writer.send(key, by, latency_ms=20, x=0.9)
    for key in new[20:]:
        writer.send(key, by, latency_ms=40, x=0.01)
    found = gather(writer.table(tmp_path), None, VERSIONS, "s", Rollout())
    assert found.latency_reference == Histogram.of([10.0] * REFERENCE_ROWS)
    assert found.steps[0].latency == (Histogram.of([20.0] * 30), Histogram.of([40.0] * 20))
    # Ten cells of twenty, by rank; .9 of the champion is in the last but one, and .01 of the challenger in the first.
    assert found.scores.reference == pytest.approx((20,) * 10, abs=1)
    assert found.steps[0].scores == ((0,) * 9 + (30,), (20, *(0,) * 9))
    early = gather(writer.table(tmp_path / "early").slice(0, 100), None, VERSIONS, "s", Rollout())
    assert early.steps[0].latency == (Histogram(), Histogram())


def test_an_answer_that_the_champion_often_gives_has_a_cell_of_its_own(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.5)
    old, new = keys_of("v1", by, REFERENCE_ROWS + 1), keys_of("v2", by, 3)
    for key in old:
        writer.send(key, by, x=1.0)
    for key, x in zip(new, (0.1, 0.5, 0.9), strict=True):
        writer.send(key, by, x=x)
    found = gather(writer.table(tmp_path), None, VERSIONS, "s", Rollout())
    assert found.scores.reference == (0, REFERENCE_ROWS, 0)
    assert found.steps[0].scores == ((0, 1, 0), (1, 1, 1))


def test_both_versions_are_scored_on_every_labelled_row(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.3)
    ids = [writer.send(f"k{i}", by, x=0.8) for i in range(50)]
    labels = pa.table({"prediction_id": ids[:40], "label": [1.0] * 20 + [0.0] * 20})
    found = gather(writer.table(tmp_path), labels, VERSIONS, "s", Rollout())
    assert found.loss.rows == 40
    assert found.loss.champion_loss == pytest.approx(-(np.log(0.4) + np.log(0.6)) / 2)
    assert found.loss.mean == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2 - found.loss.champion_loss)
    assert found.ranking is not None
    assert found.ranking.rows == 0


def test_a_label_belongs_to_one_row_of_its_request(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.3)
    name = writer.send("k", by, rows=4)
    table = writer.table(tmp_path)
    first = pa.table({"prediction_id": [name], "label": [1.0]})
    third = pa.table({"prediction_id": [name, name], "row": [2, 3], "label": [1.0, None]})
    assert gather(table, first, VERSIONS, "s", Rollout()).loss.rows == 1
    assert gather(table, third, VERSIONS, "s", Rollout()).loss.rows == 1


def test_a_business_metric_is_that_of_a_keys_first_value(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.5)
    old, new = keys_of("v1", by, 2), keys_of("v2", by, 2)
    ids = [writer.send(key, by) for key in (*old, *new, new[0])]
    labels = pa.table({"prediction_id": ids, "label": [1.0] * 5, "revenue": [1.0, None, 5.0, 7.0, 100.0]})
    settings = Rollout(business=Business(column="revenue"))
    (step,) = gather(writer.table(tmp_path), labels, VERSIONS, "s", settings).steps
    assert step.business == ((1, 1.0, 1.0), (2, 12.0, 74.0))
    (without,) = gather(writer.table(tmp_path / "again"), labels, VERSIONS, "s", Rollout()).steps
    assert without.business == ((0, 0.0, 0.0), (0, 0.0, 0.0))


def test_a_business_metric_may_come_before_the_labels_in_files_of_its_own(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.5)
    old, new = keys_of("v1", by, 2), keys_of("v2", by, 2)
    ids = [writer.send(key, by) for key in (*old, *new)]
    config = make_config(Runtime(storage=str(tmp_path / "storage")))
    folder = make_folder(pipeline.label_folder(config))
    settings = Rollout(business=Business(column="revenue"))
    pq.write_table(pa.table({"prediction_id": ids, "revenue": [1.0, 2.0, 5.0, 7.0]}), folder / "1.parquet")
    first = gather(writer.table(tmp_path / "first"), pipeline.labels(config), VERSIONS, "s", settings)
    pq.write_table(pa.table({"prediction_id": ids, "label": [1.0, 0.0, 1.0, 0.0]}), folder / "2.parquet")
    both = gather(writer.table(tmp_path / "both"), pipeline.labels(config), VERSIONS, "s", settings)
    assert first.steps[0].business == both.steps[0].business == ((2, 3.0, 5.0), (2, 12.0, 74.0))
    assert (first.loss.rows, both.loss.rows) == (0, 4)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    old = Target(column="y", task="multiclass", classes=("a", "b"))
    new = Target(column="y", task="multiclass", classes=("b", "c"))
    versions = Versions("v1", "v2", predictor(0.5, old), predictor(1.0, new))
    writer, by = Writer(), routes(0.5)
    for key in keys_of("v1", by, REFERENCE_ROWS + 2):
        writer.send(key, by, x=2.0)  # the champion's class 1, b
    for place, key in enumerate(keys_of("v2", by, 6)):
        writer.send(key, by, x=float(place % 2))  # the challenger's classes b and c
    found = gather(writer.table(tmp_path), None, versions, "s", Rollout())
    assert not found.scores.ordered
    assert found.scores.reference == (0, REFERENCE_ROWS, 0)
    assert found.steps[0].scores == ((0, 2, 0), (0, 3, 3))


def test_nothing_yet(tmp_path: Path) -> None:
    found = gather(Writer().table(tmp_path), None, VERSIONS, "s", Rollout())
    assert (found.steps, found.requests) == ((), 0)
    assert found.ranking is not None


def test_rows_of_the_challenger_that_never_came_show_in_the_ratio_and_the_rest_can_be_recomputed(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.5)
    for i in range(3_000):
        writer.send(f"k{i}", by)
    whole = writer.table(tmp_path / "whole")
    assert check_ratio(gather(whole, None, VERSIONS, "s", Rollout()).steps).harm < 0
    assert misrouted(*(whole.column(name).to_pylist() for name in ("routing_key", "version", "routes"))) == []
    writer.entries = [entry for i, entry in enumerate(writer.entries) if entry.version == "v1" or i % 4]
    torn = writer.table(tmp_path / "torn")
    assert check_ratio(gather(torn, None, VERSIONS, "s", Rollout()).steps).harm > np.log(1_000)


def test_traffic_is_read_from_the_champions_rows(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.0)
    rng = np.random.default_rng(0)
    for i, latency in enumerate(rng.lognormal(2, 0.5, 1_000)):
        writer.send(f"k{i}", by, latency_ms=float(latency), status=500 if i % 50 == 0 else 200)
    found = traffic_of(writer.table(tmp_path), "v1")
    assert found.requests_per_s == pytest.approx(1.0, rel=0.01)
    assert found.error_rate == pytest.approx(0.02)
    assert found.latency_ms == pytest.approx(np.exp(2), rel=0.1)
    assert found.latency_spread == pytest.approx(0.5, rel=0.1)
    assert traffic_of(writer.table(tmp_path / "again"), "v2").requests_per_s == 0


def test_the_number_of_routing_keys_is_read_from_the_champions_rows(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.0)
    for user in np.random.default_rng(0).integers(0, 150, 1_000):
        writer.send(f"user {user}", by)
    found = traffic_of(writer.table(tmp_path / "few"), "v1")
    assert found.keys == pytest.approx(150, rel=0.02)
    assert outlook(Rollout(), found).requests is None
    assert outlook(Rollout(), replace(found, keys=np.inf)).requests is not None
    writer.entries = [entry._replace(routing_key=entry.prediction_id) for entry in writer.entries]
    assert traffic_of(writer.table(tmp_path / "each"), "v1").keys == np.inf


def test_a_log_of_before_routes_were_logged_holds_no_request_of_a_rollout(tmp_path: Path) -> None:
    writer = Writer()
    for i in range(20):
        writer.send(f"k{i}", routes(0.5))
    writer.table(tmp_path)
    for file in log_files(tmp_path):
        pq.write_table(pq.read_table(file).drop_columns(["routes"]), file)
    log = read_log(tmp_path)
    assert (log.num_rows, log.column("routes").null_count) == (20, 20)
    assert gather(log, None, VERSIONS, "s", Rollout()).requests == 0
    assert traffic_of(log, "v1").requests_per_s > 0


def test_evidence_is_the_same_whatever_else_the_log_holds(tmp_path: Path) -> None:
    writer, by = Writer(), routes(0.4)
    for i in range(200):
        writer.send(f"k{i}", by, latency_ms=5 + i % 7)
    alone = gather(writer.table(tmp_path / "alone"), None, VERSIONS, "s", Rollout())
    for i in range(200):
        writer.send(f"k{i}", routes(0.4, salt="later"), status=500)
    assert gather(writer.table(tmp_path / "both"), None, VERSIONS, "s", Rollout()) == alone
