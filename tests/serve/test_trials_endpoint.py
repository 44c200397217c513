"""A shadow and an experiment on a running endpoint."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymlp import pipeline
from raymlp.config.experiment import ErrorRate, Experiment
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.records import Registration, Version
from raymlp.model.bundle import load_bundle
from raymlp.pipeline.serving import prediction_log
from raymlp.runtime.ports import free_port
from raymlp.serve.application import shadow_folder
from raymlp.serve.client import replay
from raymlp.serve.comparison import compare
from raymlp.serve.deploy import declared, deploy, problems, set_versions, status, undeploy
from raymlp.serve.log import read_log
from raymlp.serve.routing import misrouted
from raymlp.serve.shadowing import set_shadow, shadow_of
from tests.serve.bundles import json_rows, make_bundle, make_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "a-key"
ROWS = json_rows(60)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    return {f"v{seed}": str(make_bundle(folder / f"v{seed}", seed=seed)) for seed in (1, 2, 3)}


@pytest.fixture(scope="module")
def place(ray_runtime: Runtime, bundles: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    runtime = ray_runtime.model_copy(update={"storage": str(tmp_path_factory.mktemp("trials"))})
    experiment = Experiment(versions=("2", "3"), primary=ErrorRate(), guard_rails=())
    config = make_config(runtime, port=free_port(), max_replicas=1, cpus_per_replica=0.1, experiment=experiment, log={"flush_s": 0.1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMLP_API_KEYS", KEY)
        deploy(config, Version("v1", bundles["v1"]))
        yield config
    undeploy("flights")


def ask(config: Config) -> Counter[tuple[int, str | None]]:
    url = f"http://127.0.0.1:{config.serve.port}"
    return Counter((answer.status, answer.version) for answer in replay(url, "flights", ROWS, key=KEY, connections=2))


def until(found: Callable[[], Any], limit_s: float = 60) -> Any:
    """What a look gives once it gives something."""
    deadline = time.monotonic() + limit_s
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return value


def reports(config: Config, bundles: dict[str, str]) -> Any:
    targets = [load_bundle(bundles[label]).plan.target for label in ("v1", "v2")]
    return compare(prediction_log(config), read_log(shadow_folder(config, "flights")), *targets)


def test_a_shadow_answers_unseen_survives_other_changes_and_goes(place: Config, bundles: dict[str, str]) -> None:
    set_shadow("flights", shadow_of(Version("v2", bundles["v2"]), 1.0, max_waiting=1_000))
    (replica,) = status("flights")["replicas"]
    assert replica["weights"] == {"v1": 1.0}
    assert replica["shadow"]["version"] == "v2"
    assert ask(place) == {(200, "v1"): 60}
    answered = until(lambda: table if (table := read_log(shadow_folder(place, "flights"))).num_rows == 60 else None)
    served = until(lambda: table if (table := prediction_log(place)).num_rows == 60 else None)
    assert served.column("version").unique().to_pylist() == ["v1"]
    assert set(answered.column("prediction_id").to_pylist()) == set(served.column("prediction_id").to_pylist())
    (report,) = reports(place, bundles)
    assert (report.champion, report.shadow, report.rows, report.failed) == ("v1", "v2", 60, 0)

    set_versions(place, "flights", {"v1": bundles["v1"], "v3": bundles["v3"]}, {"v1": 0.5, "v3": 0.5}, salt="s")
    (replica,) = status("flights")["replicas"]
    assert replica["shadow"]["version"] == "v2", "weights change, the shadow stays"
    set_versions(place, "flights", {"v1": bundles["v1"]}, {"v1": 1.0})
    os.kill(replica["pid"], signal.SIGKILL)
    after = until(lambda: next((one for one in status("flights")["replicas"] if one["pid"] != replica["pid"]), None))
    assert after["shadow"] is None
    assert "a replica died" in problems("flights")["v2"]
    assert ask(place) == {(200, "v1"): 60}
    set_shadow("flights", None)
    assert declared("flights")["shadow"] is None
    assert problems("flights") == {}


def test_an_experiment_divides_the_traffic_until_it_is_stopped(
    place: Config, bundles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store:
        def get(self, reference: str) -> Registration:
            version = reference.rpartition("/")[2]
            return Registration("flights", version, Path(bundles[f"v{version}"]))

    monkeypatch.setattr("raymlp.pipeline.experiments.store_of", lambda _: Store())
    record = pipeline.start_experiment(place)
    assert set(ask(place)) == {(200, label) for label in ("v1", "v2", "v3")}
    analysis = until(lambda: found if sum((found := pipeline.experiment(place)).seen.requests) == 60 else None)
    assert analysis.record == record
    log = prediction_log(place)
    assert misrouted(*(log.column(name).to_pylist() for name in ("routing_key", "version", "routes"))) == []
    pipeline.stop_experiment(place)
    assert ask(place) == {(200, "v1"): 60}
