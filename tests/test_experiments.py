"""`pipeline`'s experiments from end to end, with an endpoint that routes as a replica does and writes the real log."""

from __future__ import annotations

import io
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raymlp import pipeline
from raymlp.cli import run_command
from raymlp.config.experiment import Bandit, Business, ErrorRate, Experiment, LatencyQuantile, Quality
from raymlp.config.rollout import Rollout
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.serve import Log
from raymlp.core.errors import ServingError
from raymlp.core.files import make_folder
from raymlp.core.records import Registration
from raymlp.pipeline.exclusive import open_experiment, open_rollout
from raymlp.runtime.progress import Story
from raymlp.serve import deploy as serving
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.rollout.course import Course, Records
from raymlp.serve.routing import Routes, misrouted
from tests.serve.bundles import make_config
from tests.test_rollout import CONTRACT, Model, deal_the_same

PAID = {"v1": 0.1, "v2": 0.1, "v3": 0.22}
"""Share of keys that pay, by version."""
EXPERIMENT = Experiment(
    versions=("2", "challenger"),
    primary=Business(column="paid", margin=0.2),
    guard_rails=(ErrorRate(margin=0.03), LatencyQuantile(margin=0.5)),
)


@dataclass
class Place:
    """The endpoint and the registry of a test."""

    config: Config
    wanted: dict[str, Any]
    models: dict[str, Model] = field(default_factory=lambda: {f"v{number}": Model() for number in (1, 2, 3)})
    failing: float = 0.0
    """Share of v3's requests that fail."""
    sent: int = 0

    def get(self, reference: str) -> Registration:
        version = "3" if reference.endswith("@challenger") else reference.rpartition("/")[2]
        return Registration("flights", version, Path(f"v{version}"))

    def set_versions(self, _c: Any, _n: str, versions: Mapping[str, str], weights: Mapping[str, float], *, salt: str = "") -> None:
        self.wanted = {"versions": dict(versions), "weights": dict(weights), "champion": next(iter(versions)), "salt": salt}

    def traffic(self, keys: int) -> None:
        """Two requests a key, as the present weights say, and what came of them."""
        rng = np.random.default_rng(self.sent)
        log = PredictionLog(Path(self.config.runtime.storage) / "predictions" / "flights", Log(max_rows=10**6))
        for label in self.models:
            log.know(label, CONTRACT)
        routes = Routes.of(self.wanted["champion"], self.wanted["weights"], salt=self.wanted["salt"])
        ids, paid, answers, now = [], [], [], time.time()
        for number in range(self.sent, self.sent + keys):
            key = f"user-{number}"
            label = routes.choose(key)
            pays = float(rng.random() < PAID[label])
            for place in range(2):
                name, x = f"{number}-{place}", rng.random()
                failed = label == "v3" and rng.random() < self.failing
                inputs = None if failed else {"x": x, "noise": rng.normal()}
                latency, score = float(rng.lognormal(1, 0.3)), None if failed else 0.5
                log.add(Entry(name, 0, now + number / 1e3, label, key, 500 if failed else 200, score, latency, inputs, str(routes)))
                ids.append(name)
                paid.append(pays)
                answers.append(float(rng.random() < 1 / (1 + np.exp(-4 * (x - 0.5)))))
        log.flush()
        folder = make_folder(pipeline.label_folder(self.config))
        pq.write_table(pa.table({"prediction_id": ids, "paid": paid, "label": answers}), folder / f"{self.sent}.parquet")
        self.sent += keys


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    config = make_config(Runtime(storage=str(tmp_path)), experiment=EXPERIMENT)
    made = Place(config, {"versions": {"v1": "v1"}, "weights": {"v1": 1.0}, "champion": "v1", "salt": ""})
    deal_the_same(monkeypatch, "experiments")
    monkeypatch.setattr("raymlp.pipeline.experiments.store_of", lambda _: made)
    monkeypatch.setattr("raymlp.model.predictor.Predictor.load", lambda path: made.models[path])
    monkeypatch.setattr("raymlp.serve.deploy.declared", lambda _: made.wanted)
    monkeypatch.setattr(serving, "set_versions", made.set_versions)
    monkeypatch.setattr(serving, "status", lambda _: {"state": "RUNNING"})
    return made


def asking(place: Place, **changes: Any) -> Config:
    """The config with another experiment."""
    settings = EXPERIMENT.model_copy(update=changes)
    return place.config.model_copy(update={"serve": place.config.serve.model_copy(update={"experiment": settings})})


def test_the_better_arm_is_found_and_the_log_explains_the_division(place: Place) -> None:
    record = pipeline.start_experiment(place.config)
    assert place.wanted["weights"] == pytest.approx({"v1": 1 / 3, "v2": 1 / 3, "v3": 1 / 3})
    assert place.wanted["versions"] == {"v1": "v1", "v2": "v2", "v3": "v3"}
    place.traffic(6_000)
    analysis = pipeline.experiment(place.config)
    assert sum(analysis.seen.keys) == 6_000
    assert sum(analysis.seen.requests) == 12_000
    assert analysis.record.arms[analysis.outcome.choice or 0] == "v3", analysis.outcome.reason
    paid = {reading.arm: reading.effect for reading in analysis.readings[0]}
    assert paid[2].low < 0.12 < paid[2].high
    assert paid[1].low < 0 < paid[1].high
    log = pipeline.prediction_log(place.config)
    assert misrouted(*(log.column(name).to_pylist() for name in ("routing_key", "version", "routes"))) == []
    assert set(log.column("routes").unique().to_pylist()) == {str(Routes.of("v1", record.weights, salt=record.salt))}


def test_a_key_counts_once_by_its_first_request(place: Place) -> None:
    place.failing = 0.5
    pipeline.start_experiment(place.config)
    place.traffic(600)
    seen = pipeline.experiment(place.config).seen
    assert len(seen.failed.value) == 600
    share = seen.failed.of(2).mean()
    assert 0.35 < share < 0.65, "half of the first requests, not three quarters of the keys"
    assert len(seen.business["paid"].value) < 600, "a key whose requests all failed has no value that counts"


def test_a_broken_guard_rail_makes_an_arm_worse(place: Place) -> None:
    place.failing = 0.3
    pipeline.start_experiment(place.config)
    place.traffic(3_000)
    outcome = pipeline.experiment(place.config).outcome
    assert outcome.verdicts[1].call == "worse"
    assert outcome.verdicts[1].reasons[0].startswith("guard rail broken: error rate")


def test_versions_are_scored_on_the_same_labelled_rows(place: Place) -> None:
    place.models["v2"] = Model(sees=0.0)
    config = asking(place, versions=("2",), primary=Quality(measure="auc", margin=0.02), guard_rails=(Quality(measure="accuracy"),))
    pipeline.start_experiment(config)
    place.traffic(4_000)
    analysis = pipeline.experiment(config)
    auc, accuracy = (row[0] for row in analysis.readings)
    assert (auc.finding, accuracy.finding) == ("worse", "worse")
    assert auc.effect.control == pytest.approx(0.78, abs=0.04)
    assert accuracy.effect.rows == 4_000, "one row a key"


def test_a_bandit_moves_the_traffic_to_the_best_arm_and_keeps_its_intervals(place: Place) -> None:
    config = asking(place, bandit=Bandit(min_keys=300), guard_rails=(ErrorRate(margin=0.03),))
    pipeline.start_experiment(config)

    def looks() -> Iterator[None]:
        for _ in range(6):
            place.traffic(600)
            yield

    analysis = pipeline.watch_experiment(config, looks=looks())
    record = open_experiment(config)
    assert record is not None
    assert record.weights["v3"] > 0.8
    assert min(record.weights.values()) >= 0.05 - 1e-9
    assert place.wanted["weights"] == record.weights
    assert len(analysis.seen.shares) >= 2
    effect = analysis.readings[0][1].effect
    assert effect.low < 0.12 < effect.high


def test_it_is_stopped_once_and_the_control_serves_alone(place: Place) -> None:
    pipeline.start_experiment(place.config)
    stopped = pipeline.stop_experiment(place.config, reason="enough")
    assert place.wanted["weights"] == {"v1": 1.0}
    assert stopped.history[-1].reason == "enough"
    with pytest.raises(ServingError, match="no experiment of flights runs"):
        pipeline.stop_experiment(place.config)
    assert not pipeline.experiment(place.config).record.is_open


def test_an_experiment_and_a_rollout_are_never_open_at_once(place: Place) -> None:
    folder = make_folder(Path(place.config.runtime.storage) / "rollouts" / "flights")
    course = Course.start("flights", "v1", "v2", salt=uuid.uuid4().hex, settings=Rollout(), now=0.0, by="me")
    Records(folder).save(course)
    assert open_rollout(place.config) == course
    with pytest.raises(ServingError, match="the rollout of v2 on flights is running"):
        pipeline.start_experiment(place.config)
    Records(folder).save(course.abort(now=1.0, by="me"))
    pipeline.start_experiment(place.config)
    with pytest.raises(ServingError, match="an experiment of v1, v2, v3 runs on flights"):
        pipeline.rollout(place.config, traffic=iter(()))
    with pytest.raises(ServingError, match="an experiment of v1, v2, v3 runs on flights"):
        pipeline.start_experiment(place.config)


def test_one_that_cannot_begin_is_on_record_as_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ServingError("no room for v3")

    monkeypatch.setattr(serving, "set_versions", broken)
    with pytest.raises(ServingError, match="no room for v3"):
        pipeline.start_experiment(place.config)
    assert open_experiment(place.config) is None
    assert "no room for v3" in pipeline.experiment(place.config).record.history[-1].reason


def test_a_watch_ends_when_somebody_stops_the_experiment(place: Place) -> None:
    config = asking(place, bandit=Bandit(min_keys=100), guard_rails=())
    pipeline.start_experiment(config)

    def looks() -> Iterator[None]:
        place.traffic(300)
        pipeline.stop_experiment(config)
        yield
        raise AssertionError("it goes on")

    pipeline.watch_experiment(config, looks=looks())
    assert place.wanted["weights"] == {"v1": 1.0}


def test_an_endpoint_that_serves_something_beside_its_champion_is_refused(place: Place) -> None:
    place.wanted["weights"] = {"v1": 0.9, "v2": 0.1}
    with pytest.raises(ServingError, match="serves v2 beside v1"):
        pipeline.start_experiment(place.config)


def test_what_can_be_found_and_when_is_told_before_the_start(place: Place) -> None:
    place.traffic(2_000)
    console = Console(file=io.StringIO(), width=300)
    pipeline.start_experiment(place.config, story=Story(console=console))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "paid: a difference of " in told
    margin = float(re.findall(r"paid: .*the margin \(([\d.]+)\)", told)[0])
    assert margin == pytest.approx(0.2 * 0.1, rel=0.15), "a fifth of about a tenth"
    assert "is not found by then" in told, "some 2,500 keys come back, and each counts once"


def test_the_page_and_its_numbers(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.start_experiment(place.config)
    empty = pipeline.report_experiment(place.config)
    assert "Not decided yet" in empty.read_text()
    place.traffic(6_000)
    page = pipeline.report_experiment(place.config)
    text, numbers = page.read_text(), json.loads((page.parent / "experiment.json").read_text())
    assert "v3 is better than v1" in text
    assert text.count("<svg") == 4
    assert "http" not in text.replace("http://www.w3.org", "")
    assert numbers["choice"] == "v3"
    assert numbers["readings"][0]["finding"] == "no difference" or numbers["readings"][0]["effect"]["rows"] > 1_000
    monkeypatch.setattr("raymlp.cli.trials.config_from", lambda *_: place.config)
    assert run_command(["experiment", "status"]) == 0
    assert "v3 is better than v1" in " ".join(capsys.readouterr().out.split())
