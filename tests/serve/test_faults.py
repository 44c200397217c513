"""An endpoint of two replicas over TLS, broken in several ways under a steady stream of requests."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from load import Load, Sent, post
from ray import serve
from small import COLUMNS, KEY, NAME, PATH, STEPS, body, make_bundle, make_config

from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.serve import Tls
from raymlp.core.errors import ServingError
from raymlp.core.records import Endpoint, Version
from raymlp.core.trust import TRUSTED
from raymlp.model.predictor import Predictor
from raymlp.runtime.ingress import private_folder
from raymlp.runtime.ports import free_port
from raymlp.serve.apart import application_name
from raymlp.serve.client import replay
from raymlp.serve.controller import serve_client
from raymlp.serve.deploy import deploy, set_versions, status, undeploy
from raymlp.serve.routing import Routes
from tests.certificates import make_certificate

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROW = dict.fromkeys(COLUMNS, 0.5)
LIMIT_S = 90.0


@dataclass
class Place:
    config: Config
    endpoint: Endpoint
    tls: Tls
    bundles: dict[str, Path]

    def give(self, **weights: float) -> None:
        """Versions v1, v2, ...; the champion first."""
        shares = {label.removeprefix("v"): share for label, share in weights.items()}
        set_versions(self.config, NAME, {label: str(self.bundles[label]) for label in shares}, shares)

    def load(self, request: Callable[[int], bytes] | None = None) -> Load:
        trusting = ssl.create_default_context(cafile=self.tls.certificate)
        return Load(self.endpoint.url, request or (lambda n: post(PATH, body(n), KEY)), connections=4, per_second=80, tls=trusting)

    def ask(self, count: int = 1, **keys: Any) -> list[Any]:
        return replay(self.endpoint.url, NAME, [ROW] * count, key=KEY, connections=2, ca=Path(self.tls.certificate), **keys)


@pytest.fixture(scope="module")
def place(ray_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("drills")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMLP_API_KEYS", KEY)
        patch.setenv(TRUSTED, STEPS)
        bundles = {label: make_bundle(folder / label, seed=int(label), poison=label == "3") for label in "123"}
        tls = make_certificate(folder)
        replicas = {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 0.1}
        config = make_config(ray_runtime, port=free_port(), tls=tls, **replicas)
        yield Place(config, deploy(config, Version("1", str(bundles["1"]))), tls, bundles)
        undeploy(NAME)


def pids() -> set[int]:
    return {report["pid"] for report in status(NAME)["replicas"]}


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            if is_so():
                return
        except Exception:  # what a part that is away answers
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ingresses() -> set[int]:
    """HAProxy's processes with a config of this cluster."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"]) and "haproxy" in words[0] and any(str(private_folder()) in word for word in words)
    }


def after(sent: list[Sent], moment: float) -> list[Sent]:
    return [one for one in sent if one.at > moment]


def test_the_endpoint_speaks_tls_to_who_trusts_its_certificate(place: Place) -> None:
    assert place.endpoint.url.startswith("https://")
    answers = place.ask(5)
    assert [answer.status for answer in answers] == [200] * 5
    expected = Predictor.load(place.bundles["1"]).predict([ROW]).rows()[0]["probability"]
    assert answers[0].prediction["probability"] == pytest.approx(expected, abs=1e-6)
    (stranger,) = replay(place.endpoint.url, NAME, [ROW], key=KEY, connections=1)
    assert (stranger.status, "CERTIFICATE_VERIFY_FAILED" in str(stranger.error)) == (0, True)
    (plain,) = replay(place.endpoint.url.replace("https", "http"), NAME, [ROW], key=KEY, connections=1)
    assert plain.status == 0


def test_no_request_fails_when_a_replica_is_killed(place: Place) -> None:
    victim = min(pids())
    with place.load() as load:
        until(lambda: len(load.sent) > 20)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(pids() - {victim}) == 2)
    assert {one.status for one in load.sent} == {200}


def test_a_controller_that_is_killed_costs_no_request_and_weights_can_be_changed_after_it(place: Place) -> None:
    def controller() -> int:
        return int(ray.get(serve_client()._controller.get_pid.remote()))

    victim = controller()
    with place.load() as load:
        os.kill(victim, signal.SIGKILL)
        until(lambda: controller() != victim)
        place.give(v1=0.5, v2=0.5)
    assert {one.status for one in load.sent} == {200}
    assert {report["weights"]["2"] for report in status(NAME)["replicas"]} == {0.5}
    place.give(v1=1.0)


def test_a_killed_ingress_comes_back_and_answers_nothing_wrong_on_the_way(place: Place) -> None:
    with place.load() as load:
        until(lambda: len(load.sent) > 20)
        killed = time.monotonic()
        victims = ingresses()  # the one before a reload may still be ending
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        until(lambda: ingresses() - victims and any(one.status == 200 for one in after(load.sent, killed)))
        until(lambda: len(after(load.sent, killed)) > 40)
    assert {one.status for one in load.sent} <= {200, 0}, "no 404 of an ingress that knows no route yet"
    assert sum(one.status == 0 for one in load.sent) <= 2 * load.connections, "those under way, and none after"


def test_a_redeploy_with_other_settings_fails_no_request(place: Place) -> None:
    before = pids()
    changed = place.config.model_copy(update={"serve": place.config.serve.model_copy(update={"max_rows_per_request": 7})})
    with place.load() as load:
        deploy(changed, Version("1", str(place.bundles["1"])))
        until(lambda: not pids() & before)
    assert {one.status for one in load.sent} == {200}


def test_a_challenger_that_kills_its_process_takes_no_request_of_others_with_it(place: Place) -> None:
    before, routes = pids(), Routes.of("1", {"1": 0.5, "3": 0.5})
    deadly = next(n for n in range(100, 200) if routes.choose(str(n)) == "3")
    place.give(v1=0.5, v3=0.5)
    with place.load(lambda n: post(PATH, body(n, **({"x0": 7.0} if n == deadly else {})), KEY)) as load:
        until(lambda: len(load.sent) > deadly + 1)
        until(lambda: bool(pids()) and not pids() & before)
        until(lambda: len(pids()) == 2)
    failed = [one for one in load.sent if one.status != 200]
    assert len(failed) <= 1, failed
    for report in status(NAME)["replicas"]:
        assert report["weights"] == {"1": 1.0}
        assert "a replica died" in report["problems"]["3"]
    place.give(v1=1.0)


# ---------------------------------------------------------------------- versions apart; from here on the endpoint is another one


@pytest.fixture(scope="module")
def apart(place: Place) -> Place:
    settings = {"placement": "apart", "stand_in": "champion", "min_replicas": 1, "max_replicas": 1, "version_timeout_s": 5.0}
    config = place.config.model_copy(update={"serve": place.config.serve.model_copy(update=settings)})
    return Place(config, deploy(config, Version("1", str(place.bundles["1"]))), place.tls, place.bundles)


def version_pid(place: Place, label: str) -> int:
    handle = serve.get_app_handle(application_name(NAME, label, str(place.bundles[label])))
    return int(handle.report.remote().result(timeout_s=60)["pid"])


def test_versions_apart_answer_as_together_and_weights_change_live(apart: Place) -> None:
    (before,) = pids()
    with apart.load() as load:
        apart.give(v1=0.5, v2=0.5)
    assert {one.status for one in load.sent} == {200}
    answers = apart.ask(60, routing_keys=[str(n) for n in range(60)])
    assert {answer.version for answer in answers} == {"1", "2"}
    for label in ("1", "2"):
        expected = Predictor.load(apart.bundles[label]).predict([ROW]).rows()[0]["probability"]
        found = [answer.prediction["probability"] for answer in answers if answer.version == label]
        assert found == pytest.approx([expected] * len(found), abs=1e-6)
    assert pids() == {before}, "the endpoint's replica was not restarted"
    assert len({before, version_pid(apart, "1"), version_pid(apart, "2")}) == 3


def test_the_champion_stands_in_for_a_version_that_is_away_and_is_named(apart: Place) -> None:
    keys = [str(n) for n in range(40)]
    mine = [key for key, answer in zip(keys, apart.ask(40, routing_keys=keys), strict=True) if answer.version == "2"]
    client, application = serve_client(), application_name(NAME, "2", str(apart.bundles["2"]))
    declared = ray.get(client._controller.get_app_configs.remote())
    client.deploy_apps(_without(declared, application))
    until(lambda: application not in {app.name for app in client.list_serve_statuses()})
    answers = apart.ask(3, routing_keys=mine[:3])
    assert [(answer.status, answer.version) for answer in answers] == [(200, "1")] * 3
    answers = apart.ask(3, routing_keys=[key for key in keys if key not in mine][:3])
    assert [(answer.status, answer.version) for answer in answers] == [(200, "1")] * 3
    apart.give(v1=1.0)


def test_a_version_that_goes_leaves_no_deployment_and_the_end_leaves_none(apart: Place) -> None:
    apart.give(v1=0.5, v2=0.5)
    apart.give(v2=1.0)
    names = {app.name for app in serve_client().list_serve_statuses()}
    until(
        lambda: {app.name for app in serve_client().list_serve_statuses()} == {NAME, application_name(NAME, "2", str(apart.bundles["2"]))}
    )
    assert apart.ask()[0].version == "2"
    assert NAME in names
    broken = apart.bundles["1"].parent / "broken"
    make_bundle(broken, seed=9).joinpath("plan.json").write_text("{}")
    with pytest.raises(ServingError, match=r"plan\.json was changed"):
        set_versions(apart.config, NAME, {"2": str(apart.bundles["2"]), "9": str(broken)}, {"2": 0.5, "9": 0.5})
    assert apart.ask()[0].status == 200
    undeploy(NAME)
    assert status(NAME)["state"] == "NOT_STARTED"


def _without(declared: dict[str, Any], gone: str) -> Any:
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema(applications=[config for name, config in declared.items() if name != gone])
