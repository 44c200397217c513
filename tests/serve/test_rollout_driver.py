"""Rollouts that run by themselves beside a real endpoint: asked for through the storage, through their death, by the registry."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raymlp import pipeline
from raymlp.cli import run_command
from raymlp.config.rollout import Distribution, Rollout
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.records import Endpoint
from raymlp.pipeline.rollouts import RolloutStatus
from raymlp.registry.store import Store
from raymlp.runtime.audit import audit_file, entries, who
from raymlp.runtime.ports import free_port
from raymlp.runtime.tracking import tracked
from raymlp.serve.client import replay
from raymlp.serve.deploy import declared
from raymlp.serve.rollout.course import Course
from tests.serve.bundles import json_rows, make_bundle, make_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "test-key"
SETTINGS = Rollout(
    weights=(0.2, 0.5, 0.9),
    min_requests=20,
    min_step_s=0,
    follow_registry_s=0.1,
    distribution=Distribution(max_gap=None),
)
"""No labels come, which are required: it goes to the last share by itself, and waits there."""
LIMIT_S = 90.0


@dataclass
class Place:
    """An endpoint with requests that never stop, and three versions in a registry."""

    config: Config
    endpoint: Endpoint
    store: Store
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def send(self) -> None:
        rows, number = json_rows(20), 0
        while not self.stop.is_set():
            keys = [f"key {number + i}" for i in range(20)]
            number += 20
            for answer in replay(self.endpoint.url, "flights", rows, key=KEY, connections=2, routing_keys=keys):
                self.answers[answer.status, str(answer.version)] += 1

    @property
    def status(self) -> RolloutStatus:
        return pipeline.rollout_status(self.config)

    @property
    def course(self) -> Course:
        course = self.status.course
        assert course is not None
        return course

    def ask(self, verb: str, **what: object) -> str:
        return pipeline.order_rollout(self.config, verb, **what)  # type: ignore[arg-type]

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, self.status
            time.sleep(0.05)

    def serves(self, **weights: float) -> Callable[[], bool]:
        return lambda: declared("flights")["weights"] == pytest.approx(weights)


@pytest.fixture(scope="module")
def place(ray_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    runtime = ray_runtime.model_copy(update={"storage": str(tmp_path_factory.mktemp("rollouts"))})
    settings = {"port": free_port(), "max_replicas": 1, "cpus_per_replica": 0.1, "rollout": SETTINGS}
    config = make_config(runtime, log={"flush_s": 0.5}, **settings)
    store, facts = Store(config.registry, runtime), {"config_yaml": "", "seed": 0, "snapshot": "s"}
    with tracked("flights", "train", **facts, registry=config.registry, runtime=runtime) as run:  # type: ignore[arg-type]
        for seed in (1, 2, 3):
            store.register("flights", make_bundle(tmp_path_factory.mktemp("bundle") / "b", seed=seed), run=run)
    store.set_aliases("flights", {"champion": "1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMLP_API_KEYS", KEY)
        made = Place(config, pipeline.deploy(config), store)
        made.until(lambda: made.status.is_driven)
        sender = threading.Thread(target=made.send)
        sender.start()
        yield made
        made.stop.set()
        sender.join()
    pipeline.undeploy(config)
    assert set(made.answers) == {(200, "v1"), (200, "v2"), (200, "v3")}, "no request failed, and every version had its turn"


def test_it_goes_on_by_itself_and_obeys_from_anywhere(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ServingError, match=r"no rollout of flights is open, there was none so far; expected one\. Start it"):
        place.ask("pause")
    assert place.ask("start", challenger="2") == "the rollout of v2 is started; shares: v1 0.8, v2 0.2"
    with pytest.raises(ServingError, match="a rollout of v2 is running already"):
        place.ask("start", challenger="3")
    place.until(lambda: place.course.weight >= 0.5)

    before, history = place.status.driver, place.course.history
    os.kill(int(place.status.look["pid"]), signal.SIGKILL)
    place.until(lambda: place.status.driver != before)
    place.until(lambda: place.course.weight == 0.9)
    assert place.course.history[: len(history)] == history
    assert [event.what for event in place.course.history] == ["start", "advance", "advance"]

    assert place.ask("pause", reason="lunch") == "the rollout of v2 is paused; shares: v1 0.1, v2 0.9"
    with pytest.raises(ServingError, match="the rollout of v2 is paused, so it cannot pause"):
        place.ask("pause")
    place.ask("set", share=0.3)
    assert place.serves(v1=0.7, v2=0.3)()
    place.ask("resume")
    with pytest.raises(ServingError, match=r"the share is 0\.95 and the plan ends at 0\.9"):
        place.ask("set", share=0.95)
    place.ask("promote", reason="urgent")
    place.until(lambda: place.course.settled)
    assert place.serves(v2=1.0)()
    assert place.store.aliases("flights") == {"champion": "2", "previous": "1"}

    assert run_command(["rollout", "status", "experiment=flights", f"runtime.storage={place.config.runtime.storage}"]) == 0
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("v2 beside v1: promoted", "lunch", "urgent"))
    found = [(entry["what"], entry["details"].get("by")) for entry in entries(audit_file(place.config.runtime))]
    assert ("rollout pause", who()) in found
    assert ("promote", who()) in found
    assert ("rollout advance", "policy") in found


def test_the_aliases_of_the_registry_are_followed_and_its_own_changes_ask_for_nothing(place: Place) -> None:
    rollouts = len(list((Path(place.config.runtime.storage) / "rollouts" / "flights").glob("[0-9]*.json")))
    place.store.set_aliases("flights", {"challenger": "3"})
    place.until(lambda: (place.course.challenger, place.course.state) == ("v3", "running"))
    assert place.course.history[0].by == "the registry"
    place.until(lambda: place.answers[200, "v3"] > 0)
    place.store.set_aliases("flights", {"challenger": None})
    place.until(lambda: place.course.settled)
    assert (place.course.state, place.course.history[-1].reason) == ("aborted", "the alias challenger was removed")
    assert place.serves(v2=1.0)()

    place.store.set_aliases("flights", {"champion": "1"})
    place.until(place.serves(v1=1.0))
    place.until(lambda: place.store.aliases("flights") == {"champion": "1", "previous": "2"})

    place.store.set_aliases("flights", {"challenger": "3"})
    place.until(lambda: place.course.state == "running")
    place.store.set_aliases("flights", {"champion": "3"})
    place.until(lambda: place.course.settled)
    assert place.course.state == "promoted"
    assert place.store.aliases("flights") == {"champion": "3", "previous": "1"}
    assert place.serves(v3=1.0)()
    with pytest.raises(ServingError, match="no rollout of flights is open, the last one, of v3, is promoted"):
        place.ask("resume")  # answered after another look at the aliases
    assert len(list((Path(place.config.runtime.storage) / "rollouts" / "flights").glob("[0-9]*.json"))) == rollouts + 2
