"""`pipeline.rollout` from end to end, with an endpoint that routes as a replica does and writes the real log."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp import pipeline
from raymlp.config.rollout import Rollout
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.serve import Log
from raymlp.core.files import make_folder
from raymlp.core.records import Registration
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.hours import write_table
from raymlp.data.target import Target
from raymlp.serve import deploy as serving
from raymlp.serve.application import log_folder
from raymlp.serve.log import Entry, PredictionLog
from raymlp.serve.rollout.course import Course
from raymlp.serve.routing import Routes, misrouted
from tests.serve.bundles import make_config

TARGET = Target(column="late", task="binary", positive_above=0.5, classes=("no", "yes"))
CONTRACT = Contract(columns={name: ColumnContract(type="float") for name in ("x", "noise")})
SETTINGS = Rollout(weights=(0.1, 0.5, 1.0), min_requests=60)


@dataclass
class Model:
    """Sees the truth through noise; `sees` 0 has learned nothing."""

    sees: float = 4.0

    @property
    def bundle(self) -> Any:
        return SimpleNamespace(plan=SimpleNamespace(target=TARGET), contract=CONTRACT)

    def scores(self, table: pa.Table) -> Any:
        x, noise = (table.column(name).to_numpy() for name in ("x", "noise"))
        return 1 / (1 + np.exp(-self.sees * (x - 0.5) - 0.5 * noise))


@dataclass
class Place:
    """The endpoint and the registry of a test."""

    config: Config
    models: dict[str, Model]
    aliases_now: dict[str, str] = field(default_factory=lambda: {"champion": "1", "challenger": "2"})
    changes: list[tuple[dict[str, float], str]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    failing: float = 0.0
    """Share of the challenger's requests that fail."""
    lost: float = 0.0
    """Share of the challenger's requests that never reach the log."""

    def get(self, reference: str) -> Registration:
        alias, number = reference.partition("@")[2], reference.partition("/")[2]
        version = number or self.aliases_now[alias]
        return Registration("flights", version, Path(f"v{version}"))

    def aliases(self, _: str) -> dict[str, str]:
        return dict(self.aliases_now)

    def set_aliases(self, _: str, changes: Mapping[str, str | None]) -> None:
        merged = {**self.aliases_now, **changes}
        self.aliases_now = {alias: version for alias, version in merged.items() if version is not None}

    def set_tags(self, _: str, version: str, tags: Mapping[str, str]) -> None:
        self.tags[version] = {**self.tags.get(version, {}), **tags}

    def declared(self, _: str) -> dict[str, Any]:
        weights, salt = self.changes[-1] if self.changes else ({"v1": 1.0}, "")
        return {"versions": {label: label for label in weights}, "weights": weights, "champion": next(iter(weights)), "salt": salt}

    def set_versions(
        self, _c: Any, _n: str, versions: Mapping[str, str], weights: Mapping[str, float], *, salt: str = "", fence: Any = nullcontext
    ) -> None:
        with fence():
            self._set_versions(versions, weights, salt)

    def _set_versions(self, versions: Mapping[str, str], weights: Mapping[str, float], salt: str) -> None:
        assert {label: f"v{label[1:]}" for label in weights} == dict(versions)
        self.changes.append((dict(weights), salt))

    def problems(self, _: str) -> dict[str, str]:
        return self.left_out.pop(0) if self.left_out else {}

    def traffic(self, chunks: int = 40, rows: int = 500) -> Iterator[None]:
        """Requests as the last weights say, and their answers."""
        rng = np.random.default_rng(0)
        log = PredictionLog(log_folder(self.config, "flights"), Log(max_rows=10**6))
        for label in self.models:
            log.know(label, CONTRACT)
        for chunk in range(chunks):
            weights, salt = self.changes[-1]
            routes = Routes.of(next(iter(weights)), weights, salt=salt)
            ids, answers = [], []
            for row in range(rows):
                name, x, noise = f"{chunk}-{row}", rng.random(), rng.normal()
                label = routes.choose(name)
                failed = label == "v2" and rng.random() < self.failing
                if label == "v2" and rng.random() < self.lost:
                    continue
                inputs = None if failed else {"x": x, "noise": noise}
                score = None if failed else 0.5
                latency = float(rng.lognormal(1, 0.3))
                log.add(Entry(name, 0, 2e9 + chunk * rows + row, label, name, 500 if failed else 200, score, latency, inputs, str(routes)))
                ids.append(name)
                answers.append(float(rng.random() < 1 / (1 + np.exp(-4 * (x - 0.5)))))
            log.flush()
            folder = make_folder(pipeline.label_folder(self.config))
            write_table(pa.table({"prediction_id": ids, "label": answers}), folder / f"{chunk}.parquet")
            yield


def deal_the_same(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Every run of a test deals its keys by the same salts."""
    drawn = random.Random(1)
    monkeypatch.setattr(f"raymlp.pipeline.{module}.uuid", SimpleNamespace(uuid4=lambda: uuid.UUID(int=drawn.getrandbits(128))))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    config = make_config(Runtime(storage=str(tmp_path)), rollout=SETTINGS)
    made = Place(config, {"v1": Model(), "v2": Model()})
    deal_the_same(monkeypatch, "driver")
    monkeypatch.setattr("raymlp.pipeline.driver.store_of", lambda _: made)
    monkeypatch.setattr("raymlp.pipeline.rollouts.outlook_of", lambda *_: [])
    monkeypatch.setattr("raymlp.model.predictor.Predictor.load", lambda path: made.models[path])
    monkeypatch.setattr(serving, "set_versions", made.set_versions)
    monkeypatch.setattr(serving, "problems", made.problems)
    monkeypatch.setattr(serving, "declared", made.declared)
    return made


def shares(place: Place) -> list[float]:
    """The challenger's share after each change."""
    return [weights.get("v2", 0.0) for weights, _ in place.changes]


def test_an_equal_challenger_goes_through_the_steps_and_takes_over(place: Place) -> None:
    result = pipeline.rollout(place.config, traffic=place.traffic())
    assert result.decision.action == "promote", result.decision.reason
    assert shares(place) == [0.1, 0.5, 1.0, 1.0]
    assert place.changes[-1][0] == {"v2": 1.0}
    assert result.shares == (0.1, 0.5, 1.0)
    assert len({salt for _, salt in place.changes}) == 1
    assert place.aliases_now == {"champion": "2", "previous": "1"}

    course = Course.from_json(result.record.read_text())
    assert course.state == "promoted"
    assert [event.what for event in course.history] == ["start", "advance", "advance", "promote"]
    assert all(event.reason for event in course.history)
    log = pipeline.prediction_log(place.config)
    assert misrouted(*(log.column(name).to_pylist() for name in ("routing_key", "version", "routes"))) == []


def test_one_that_learned_nothing_is_rolled_back_by_its_answers(place: Place) -> None:
    place.models["v2"] = Model(sees=0.0)
    result = pipeline.rollout(place.config, traffic=place.traffic())
    assert result.decision.action == "rollback"
    assert result.decision.reason.startswith("quality: loss +")
    assert result.challenger_requests < 500
    assert place.changes[-1][0] == {"v1": 1.0}
    assert place.aliases_now == {"champion": "1"}
    assert Course.from_json(result.record.read_text()).state == "rolled back"


def test_one_that_fails_is_rolled_back_by_its_errors(place: Place) -> None:
    place.failing = 0.3
    result = pipeline.rollout(place.config, traffic=place.traffic())
    assert (result.decision.action, result.requests) == ("rollback", 500)
    assert result.decision.reason.startswith("errors: ")


def test_missing_rows_take_it_out_and_leave_it_to_a_person(place: Place) -> None:
    place.lost = 0.7
    result = pipeline.rollout(place.config, traffic=place.traffic())
    assert result.decision.action == "pause"
    assert result.decision.reason.startswith("ratio: ")
    assert place.changes[-1][0] == {"v1": 1.0}
    assert place.aliases_now == {"champion": "1", "challenger": "2"}
    course = Course.from_json(result.record.read_text())
    assert [event.what for event in course.history] == ["start", "pause", "abort"]


def test_traffic_that_ends_early_keeps_the_champion(place: Place) -> None:
    result = pipeline.rollout(place.config, traffic=place.traffic(chunks=1))
    assert result.decision.action == "rollback"
    assert result.decision.reason.startswith("the traffic ended without a verdict (")
    assert place.changes[-1][0] == {"v1": 1.0}


def test_a_version_that_the_endpoint_leaves_out_is_given_once_more_and_then_rolled_back(place: Place) -> None:
    place.left_out = [{"v2": "a replica died"}, {}, {"v2": "a replica died"}]
    result = pipeline.rollout(place.config, traffic=place.traffic())
    assert result.decision.action == "rollback"
    assert result.decision.reason == "the endpoint left v2 out a second time: a replica died"
    assert shares(place)[:2] == [0.1, 0.1]
    assert json.loads(result.record.read_text())["state"] == "rolled back"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_cuts_it_off_takes_the_challenger_out(place: Place, error: type[BaseException]) -> None:
    def cut_off() -> Iterator[None]:
        yield from place.traffic(1)
        raise error

    with pytest.raises(error):
        pipeline.rollout(place.config, traffic=cut_off())
    assert shares(place) == [0.1, 0.0]
    assert place.aliases_now == {"champion": "1", "challenger": "2"}
    (record,) = (Path(place.config.runtime.storage) / "rollouts").rglob("[0-9]*.json")
    course = Course.from_json(record.read_text())
    assert (course.state, course.history[-1].reason) == ("aborted", f"cut off by {error.__name__}")
