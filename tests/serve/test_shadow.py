"""The shadow's queue and thread, a replica's state with one, and the comparison."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.serve import Log
from raymlp.core.errors import RequestError
from raymlp.data.target import Target
from raymlp.model.predictor import Predictor
from raymlp.serve.admission import Admission
from raymlp.serve.answering import Answering
from raymlp.serve.application import user_config_of
from raymlp.serve.batching import TRIED_ROWS, Pace
from raymlp.serve.comparison import compare
from raymlp.serve.guard import Guard
from raymlp.serve.keys import KeyRing
from raymlp.serve.log import Entry, PredictionLog, read_log
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.routing import bucket
from raymlp.serve.shadow import SALT, Copy, Shadow, Shadowed
from raymlp.serve.versions import State, next_state
from tests.serve.bundles import json_rows, make_bundle

SLOW, QUICK = Pace(1.0, 1.0), Pace(alone_s=1e-3, together_s=1e-4)


@dataclass
class Scorer:
    """Answers with what the row says, refuses `bad`, breaks on `broken`, and waits while it is held."""

    held: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.held.set()

    def check(self, row: Any, place: str) -> Any:
        if row == "bad":
            raise RequestError(place, "bad", "good")
        return row

    sizes: list[int] = field(default_factory=list)

    def predict_together(self, rows: Any) -> Any:
        self.sizes.append(len(rows))
        if "broken" in rows:
            raise RuntimeError("one of them is out of order")
        return SimpleNamespace(alone=lambda place: SimpleNamespace(summary=np.array([rows[place]])))

    def predict_typed(self, row: Any) -> Any:
        self.begun.set()
        assert self.held.wait(10)
        if row == "broken":
            raise RuntimeError("out of order")
        return SimpleNamespace(summary=np.array([row]))


def shadowed(scorer: Scorer, share: float = 1.0, max_waiting: int = 3, pace: Pace = SLOW) -> Shadowed:
    loaded = SimpleNamespace(label="v2", predictor=scorer, batcher=SimpleNamespace(pace=pace))
    return Shadowed(cast(Any, loaded), share, max_waiting)


def offered(shadow: Shadow, to: Shadowed, rows: list[Any]) -> None:
    """Each row as a request, from an event loop as in a replica."""

    async def offer() -> None:
        for number, row in enumerate(rows):
            shadow.offer(to, f"p{number}", f"k{number}", [row])
        await asyncio.sleep(0)

    asyncio.run(offer())


def test_what_is_answered_refused_and_broken_is_logged_beside_its_prediction(tmp_path: Path) -> None:
    shadow = Shadow(PredictionLog(tmp_path, Log()))
    offered(shadow, shadowed(Scorer()), [0.5, "bad", "broken"])
    assert shadow.drain() == 3
    shadow.log.flush()
    rows = read_log(tmp_path).to_pylist()
    assert [(row["prediction_id"], row["status"], row["prediction"]) for row in rows] == [
        ("p0", 200, 0.5),
        ("p1", 422, None),
        ("p2", 500, None),
    ]
    assert {row["version"] for row in rows} == {"v2"}
    assert shadow.report() == {"answered": 1, "failed": 2, "dropped": 0, "waiting": 0}


def test_a_slow_shadow_drops_what_its_queue_does_not_hold_and_the_caller_never_waits(tmp_path: Path) -> None:
    shadow, scorer = Shadow(PredictionLog(tmp_path, Log())), Scorer()
    to = shadowed(scorer)
    shadow.set(to)
    scorer.held.clear()
    offered(shadow, to, [0.1])
    assert scorer.begun.wait(10)
    offered(shadow, to, [0.2] * 10)
    assert shadow.report() == {"answered": 0, "failed": 0, "dropped": 7, "waiting": 3}
    scorer.held.set()
    shadow.close()
    assert shadow.report()["waiting"] == 0
    assert shadow.report()["answered"] >= 1, "what it was at is finished"
    assert not any(thread.name == "shadow" for thread in threading.enumerate())


def test_a_quick_shadow_answers_in_the_event_loop_what_a_turn_brought(tmp_path: Path) -> None:
    """Each copy with its own end, and no more at a time than requests may wait for; a request of several rows is the thread's."""
    shadow, scorer = Shadow(PredictionLog(tmp_path, Log())), Scorer()
    to = shadowed(scorer, max_waiting=100, pace=QUICK)
    offered(shadow, to, [0.5, "bad", "broken", 0.25])
    assert (scorer.sizes, shadow.report()) == ([3], {"answered": 2, "failed": 2, "dropped": 0, "waiting": 0})
    shadow.log.flush()
    assert [(row["prediction_id"], row["status"], row["prediction"]) for row in read_log(tmp_path).to_pylist()] == [
        ("p0", 200, 0.5),
        ("p1", 422, None),
        ("p2", 500, None),
        ("p3", 200, 0.25),
    ]
    offered(shadow, to, [0.5] * (TRIED_ROWS + 2))
    assert (scorer.sizes, shadow.report()["waiting"]) == ([3, TRIED_ROWS, 2], 0)
    shadow._waiting.append(Copy(to, "p", "k", [0.5, 0.5]))
    shadow._turn(cast(Any, None))
    assert shadow._work.is_set()
    assert shadow.report()["waiting"] == 1


def test_the_share_is_chosen_by_the_predictions_id(tmp_path: Path) -> None:
    shadow = Shadow(PredictionLog(tmp_path, Log()))
    offered(shadow, shadowed(Scorer(), share=0.3, max_waiting=1_000), [0.5] * 500)
    shadow.drain()
    shadow.log.flush()
    chosen = set(read_log(tmp_path).column("prediction_id").to_pylist())
    assert chosen == {f"p{number}" for number in range(500) if bucket(f"p{number}", SALT) < 0.3}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    return {f"v{seed}": str(make_bundle(folder / f"v{seed}", seed=seed)) for seed in (1, 2)}


def wanted(bundles: dict[str, str], path: str = "") -> dict[str, Any]:
    shadow = {"label": "v2", "path": path or bundles["v2"], "share": 1.0, "max_waiting": 10}
    return {**user_config_of({"v1": bundles["v1"]}, {"v1": 1.0}, shadow=shadow), "device": "cpu"}


def test_a_state_holds_its_shadow_without_a_share_of_the_traffic(bundles: dict[str, str], tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    state = next_state(None, wanted(bundles), guard)
    assert state.shadow is not None
    assert (state.shadow.loaded.label, set(state.loaded)) == ("v2", {"v1", "v2"})
    assert state.weights == {"v1": 1.0}
    assert {state.routes.choose(f"k{number}") for number in range(100)} == {"v1"}
    assert len(list(tmp_path.glob("*.held"))) == 1, "a death of this process counts against the shadow"
    without = next_state(state, {**user_config_of({"v1": bundles["v1"]}, {"v1": 1.0}), "device": "cpu"}, guard)
    assert without.shadow is None
    assert not list(tmp_path.glob("*.held"))


def test_a_shadow_that_cannot_load_or_killed_its_process_is_left_out_and_told(bundles: dict[str, str], tmp_path: Path) -> None:
    state = next_state(None, wanted(bundles, path="/nowhere"), Guard(tmp_path))
    assert (state.shadow, set(state.problems), state.weights) == (None, {"v2"}, {"v1": 1.0})
    config = wanted(bundles)
    (tmp_path / f"{config['revision']}.dead.held").touch()
    state = next_state(None, config, Guard(tmp_path))
    assert state.shadow is None
    assert "a replica died while it held this version" in state.problems["v2"]


def test_the_champion_is_no_shadow_of_itself(bundles: dict[str, str]) -> None:
    shadow = {"label": "v2", "path": bundles["v2"], "share": 1.0, "max_waiting": 10}
    assert user_config_of({"v2": bundles["v2"]}, {"v2": 1.0}, "", shadow=shadow)["shadow"] is None


async def asked(state: State, shadow: Shadow, folder: Path, instances: list[Any]) -> tuple[int, bytes]:
    """A request to a replica with this state and shadow."""

    async def receive() -> Any:
        return {"body": json.dumps({"instances": instances}).encode(), "more_body": False}

    log = PredictionLog(folder, Log())
    answering = Answering(Admission(KeyRing([], None), needs_key=False), log, ReplicaMetrics("m", "r"), max_rows=10, shadow=shadow)
    for loaded in state.loaded.values():
        answering.know(loaded.label, loaded.predictor)
    answer = await answering.answer(state, [], receive)
    log.flush()
    return answer


def test_copies_of_answered_requests_only_reach_the_shadow_and_its_answers_are_the_models(bundles: dict[str, str], tmp_path: Path) -> None:
    state, rows = next_state(None, wanted(bundles), Guard(tmp_path)), json_rows(3)
    shadow = Shadow(PredictionLog(tmp_path / "shadow", Log()))
    requests = (rows[:1], rows[1:3], [{"delay": "late"}])
    assert [asyncio.run(asked(state, shadow, tmp_path / "log", some))[0] for some in requests] == [200, 200, 422]
    shadow.drain()
    shadow.log.flush()
    beside, answers = read_log(tmp_path / "log"), read_log(tmp_path / "shadow")
    assert beside.column("version").unique().to_pylist() == ["v1"]
    assert sorted(answers.column("prediction_id").to_pylist()) == sorted(beside.column("prediction_id").to_pylist())
    assert sorted(answers.column("prediction").to_pylist()) == pytest.approx(sorted(Predictor.load(bundles["v2"]).predict(rows).scores))


def test_what_the_challenger_answered_is_not_copied(bundles: dict[str, str], tmp_path: Path) -> None:
    shadow = {"label": "v2", "path": bundles["v2"], "share": 1.0, "max_waiting": 100}
    config = user_config_of(bundles, {"v1": 0.5, "v2": 0.5}, shadow=shadow)
    state = next_state(None, {**config, "device": "cpu"}, Guard(tmp_path))
    own = Shadow(PredictionLog(tmp_path / "shadow", Log()))
    answered = [asyncio.run(asked(state, own, tmp_path, json_rows(1))) for _ in range(30)]
    versions = [json.loads(body)["model_version"] for _, body in answered]
    assert set(versions) == {"v1", "v2"}
    assert own.report()["answered"] == versions.count("v1")


def logs(old: list[float], new: list[float | None], folder: Path) -> tuple[pa.Table, pa.Table]:
    """A prediction log and a shadow's, a row a request; one more prediction had no shadow."""
    found = []
    for name, version, values in (("log", "v1", [*old, 0.9]), ("shadow", "v2", new)):
        log = PredictionLog(folder / name, Log())
        for number, value in enumerate(values):
            log.add(Entry(f"p{number}", 0, 1e9 + number, version, "k", 200 if value is not None else 500, value, 4.0, None))
        log.flush()
        found.append(read_log(folder / name))
    return found[0], found[1]


def test_answers_are_compared_row_by_row(tmp_path: Path) -> None:
    target = Target(column="y", task="binary", positive_above=0.5, classes=("no", "yes"))
    log, shadows = logs([0.4, 0.6, 0.1, 0.2], [0.6, 0.7, 0.1, None], tmp_path)
    (report,) = compare(log, shadows, target, target)
    assert (report.champion, report.shadow, report.rows, report.failed) == ("v1", "v2", 4, 1)
    assert report.mean == pytest.approx(0.1)
    assert report.quantiles[0.5] == pytest.approx(0.1)
    assert report.changed == pytest.approx(1 / 3)
    assert report.shadow_ms[0.5] == 4.0


def test_classes_are_compared_by_name(tmp_path: Path) -> None:
    old = Target(column="y", task="multiclass", classes=("a", "b", "c"))
    new = Target(column="y", task="multiclass", classes=("b", "a", "c"))
    log, shadows = logs([0.0, 1.0, 2.0], [1.0, 1.0, 2.0], tmp_path)
    (report,) = compare(log, shadows, old, new)
    assert report.changed == pytest.approx(1 / 3)
    assert np.isnan(report.mean)
    assert compare(log, shadows.slice(0, 0), old, new) == []
