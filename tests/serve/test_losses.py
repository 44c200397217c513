"""What a process that is killed takes along, and what a session leaves in files: real replicas, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raymlp.config.loader import with_overrides
from raymlp.config.runtime import Runtime
from raymlp.core.records import Endpoint, Version
from raymlp.data.labels import read_labels
from raymlp.runtime.audit import record
from raymlp.runtime.ingress import private_folder
from raymlp.runtime.ports import free_port
from raymlp.serve.client import replay
from raymlp.serve.counts import NAMESPACE
from raymlp.serve.deploy import deploy, status, undeploy
from raymlp.serve.keys import add_key
from raymlp.serve.log import read_log
from tests.serve.bundles import json_rows, make_bundle, make_config
from tests.serve.test_endpoint import Place

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WRITE_S = 2.0
"""For a look every .2 s and one write, on a machine that is busy."""
SECRETS = ("rml-environment-secret-1", "rml-environment-secret-2")


@pytest.fixture(scope="module")
def place(ray_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str, Path]]:
    """An endpoint of two replicas with keys of the environment and of a file, and a limit that nobody meets."""
    folder = tmp_path_factory.mktemp("losses")
    bundle, file = make_bundle(folder / "bundle", seed=1), folder / "keys.json"
    key = add_key(file, "shop", ["predict", "feedback", "operate"])
    limits = {"rate_limit": {"requests_per_s": 10_000}, "extraction_limit": 1_000_000}
    config = make_config(ray_runtime, port=free_port(), min_replicas=2, max_replicas=2, cpus_per_replica=0.1, keys_file=str(file), **limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMLP_API_KEYS", ",".join(SECRETS))
        yield Place(config, deploy(config, Version("1", str(bundle))), bundle, bundle), key, folder
    undeploy("flights")


def test_a_replica_that_is_killed_loses_no_more_of_the_log_than_is_declared(place: tuple[Place, str, Path]) -> None:
    running, key, _ = place
    log, answers = running.config.serve.log, list[tuple[float, float, str, int]]()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            start = time.monotonic()
            got = replay(running.endpoint.url, "flights", json_rows(4), key=key, connections=4)
            end = time.monotonic()
            answers.extend((start, end, answer.prediction_id or "", answer.status) for answer in got)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: len(answers) > 600)
    os.kill(status("flights")["replicas"][0]["pid"], signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: answers[-1][0] > killed + 1)
    stop.set()
    asking.join()
    assert {code for *_, code in answers} == {200}, "no request fails with it"
    later = {prediction for start, _, prediction, _ in answers if start > killed}
    until(lambda: later <= logged(running.endpoint), limit_s=30)
    known = logged(running.endpoint)
    lost = [end for _, end, prediction, _ in answers if prediction not in known]
    assert all(end > killed - log.flush_s - WRITE_S for end in lost), "older rows were written"


def test_no_key_is_in_any_file_that_a_session_leaves(place: tuple[Place, str, Path], ray_runtime: Runtime) -> None:
    running, key, folder = place
    url, secrets = running.endpoint.url, (*SECRETS, key, "rml_a-wrong-key-that-was-tried")
    for secret in secrets:
        replay(url, "flights", json_rows(2), key=secret, connections=1)
        running.call("GET", "/v1/models/flights", Authorization=f"Bearer {secret}")
        running.call("POST", "/v1/models/flights:predict", b"{", Authorization=f"Bearer {secret}")
    code, answer, _ = running.call(
        "POST", "/v1/models/flights:feedback", b'{"feedback": [{"prediction_id": "a", "label": "yes"}]}', Authorization=f"Bearer {key}"
    )
    assert (code, answer) == (202, {"accepted": 1})
    with_overrides(running.config, {"serve.rate_limit.requests_per_s": 7.0})
    record(ray_runtime, "deploy", model="flights", version="1", url=url)
    until(lambda: read_labels(Path(ray_runtime.storage) / "labels" / "flights") is not None)

    from ray._private.worker import _global_node

    session = Path(_global_node.get_session_dir_path())  # what Ray itself writes: logs and settings of all its processes
    places = [*map(str, (session, folder, private_folder())), ray_runtime.storage]
    assert "flights" in "".join(file.read_text(errors="replace") for file in session.rglob("*.log") if file.is_file()), "it is the session"
    found = subprocess.run(
        ["grep", "-rlaFs", "-Dskip", *(f"-e{secret}" for secret in secrets), *places], capture_output=True, text=True, check=False
    )
    assert found.stdout == "", "files with keys"


def test_a_counting_process_that_is_killed_costs_no_request_and_comes_back(place: tuple[Place, str, Path]) -> None:
    running, key, _ = place
    import ray

    def ask() -> set[int]:
        return {answer.status for answer in replay(running.endpoint.url, "flights", json_rows(40), key=key, connections=4)}

    assert ask() == {200}
    until(lambda: counts() != "")
    old = counts()
    ray.kill(ray.get_actor("counts-flights", namespace=NAMESPACE))
    assert ask() == {200}
    until(lambda: ask() == {200} and counts() not in ("", old))


def counts() -> str:
    """Which counting process there is, empty for none."""
    import ray

    try:
        return str(ray.get_actor("counts-flights", namespace=NAMESPACE)._actor_id)
    except ValueError:
        return ""


def logged(endpoint: Endpoint) -> set[str]:
    return set(read_log(endpoint.log)["prediction_id"].to_pylist())


def until(is_so: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
