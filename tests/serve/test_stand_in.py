"""A version that stands apart and is away, without Ray: what the caller gets, and what the log says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.serve import Log
from raymlp.core.errors import BundleError, VersionAway
from raymlp.data.contract_row import Row
from raymlp.model.bundle import load_bundle
from raymlp.model.predictor import Prediction, Predictor
from raymlp.serve.admission import Admission
from raymlp.serve.answering import Answering
from raymlp.serve.apart import Apart, application_names, belongs_to
from raymlp.serve.keys import KeyRing
from raymlp.serve.log import PredictionLog, read_log
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.routing import Routes, misrouted
from raymlp.serve.versions import Loaded, State
from tests.serve.bundles import json_rows, make_bundle

ROW = json_rows(1)[0]


class Elsewhere(Apart):
    """A version apart whose call goes to a predictor of this process, or to nobody."""

    def __init__(self, path: Path, other: Predictor | None) -> None:
        Predictor.__init__(self, load_bundle(path, with_scorer=False))
        self.other = other

    async def ask(self, typed: Sequence[Row] | Any) -> Prediction:
        if self.other is None:
            raise VersionAway("nobody is there")
        return self.other.predict_typed(typed[0])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {label: make_bundle(folder / label, seed=int(label)) for label in "12"}


def asked(bundles: dict[str, Path], folder: Path, *, here: str, stand_in: bool, to: str = "2") -> tuple[int, Any, list[dict[str, Any]]]:
    """Status, answer and log of a request for the version `to`, where the versions of `here` are there."""
    others = {label: Predictor.load(path) if label in here else None for label, path in bundles.items()}
    loaded = {label: Loaded(label, str(path), Elsewhere(path, others[label])) for label, path in bundles.items()}
    weights = {"1": float(to == "1"), "2": float(to == "2")}
    state = State("1", loaded, Routes.of("1", weights), weights, "r", {})
    log = PredictionLog(folder, Log())
    for one in loaded.values():
        log.know(one.label, one.predictor.bundle.contract)
    answering = Answering(Admission(KeyRing([], None), needs_key=False), log, ReplicaMetrics("m", "r"), max_rows=9, stand_in=stand_in)
    for one in loaded.values():
        answering.know(one.label, one.predictor)

    async def receive() -> dict[str, Any]:
        return {"body": json.dumps({"instances": [ROW], "routing_key": "k"}).encode()}

    status, body = asyncio.run(answering.answer(state, [], receive))
    log.flush()
    return status, json.loads(body), read_log(folder).to_pylist()


def test_a_version_apart_answers_as_one_that_is_loaded(bundles: dict[str, Path], tmp_path: Path) -> None:
    status, answer, rows = asked(bundles, tmp_path, here="12", stand_in=False)
    assert (status, answer["model_version"]) == (200, "2")
    assert answer["predictions"] == Predictor.load(bundles["2"]).predict([ROW]).rows()
    assert [(row["version"], row["status"]) for row in rows] == [("2", 200)]


def test_a_version_that_is_away_costs_its_own_requests(bundles: dict[str, Path], tmp_path: Path) -> None:
    status, answer, rows = asked(bundles, tmp_path, here="1", stand_in=False)
    assert status == 503
    assert answer["error"]["found"] == "2, which does not answer"
    assert [(row["version"], row["status"], row["prediction"]) for row in rows] == [("2", 503, None)]


def test_the_champion_stands_in_where_that_is_declared_and_the_log_can_still_be_recomputed(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    status, answer, rows = asked(bundles, tmp_path, here="1", stand_in=True)
    assert (status, answer["model_version"]) == (200, "1")
    assert answer["predictions"] == Predictor.load(bundles["1"]).predict([ROW]).rows()
    assert sorted((row["version"], row["status"]) for row in rows) == [("1", 200), ("2", 503)]
    routed = [row for row in rows if row["routes"]]
    assert [row["version"] for row in routed] == ["2"]
    assert misrouted(*([row[name] for row in routed] for name in ("routing_key", "version", "routes"))) == []


def test_nobody_stands_in_for_the_champion(bundles: dict[str, Path], tmp_path: Path) -> None:
    status, answer, _ = asked(bundles, tmp_path, here="2", stand_in=True, to="1")
    assert (status, answer["error"]["found"]) == (503, "1, which does not answer")


def test_a_bundle_without_its_scorer_scores_nothing(bundles: dict[str, Path]) -> None:
    predictor = Predictor(load_bundle(bundles["1"], with_scorer=False))
    assert predictor.check(ROW, "row")
    with pytest.raises(BundleError, match="read without its scorer"):
        predictor.predict([ROW])


def test_a_versions_application_is_its_own_and_the_endpoints() -> None:
    one, other = application_names("flights", {"1": "/a", "2": "/b"}), application_names("flights", {"1": "/c", "2": "/b"})
    assert len({*one.values(), *other.values()}) == 3, "another bundle under a label is another application"
    assert all(belongs_to(name, "flights") for name in one.values())
    assert belongs_to("flights", "flights")
    assert not belongs_to("flights2", "flights")
    assert not belongs_to("other--1-abcdef00", "flights")
