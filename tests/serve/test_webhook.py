"""Messages of the registry: signed as MLflow signs them, of the last minutes, about this model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.webhooks.delivery import _generate_hmac_signature

from raymlp.config.registry import Registry
from raymlp.config.rollout import Rollout
from raymlp.config.runtime import Runtime
from raymlp.core.errors import ConfigError, RegistryError
from raymlp.pipeline.serving import webhook_secret
from raymlp.registry.store import Store
from raymlp.runtime.ports import free_port
from raymlp.serve.keys import Refusal
from raymlp.serve.webhook import HEADERS, OLD_S, SHARED, check_signature, concerns
from tests.serve.bundles import make_bundle, make_config, replica_settings
from tests.serve.replica import replica

NOW = 1_760_000_000


def message(model: str = "flights", entity: str = "model_version_alias") -> bytes:
    return json.dumps({"entity": entity, "action": "created", "data": {"name": model, "alias": "champion", "version": "2"}}).encode()


def headers(body: bytes, *, secret: str = "s3cret", moment: int = NOW) -> dict[bytes, bytes]:
    signature = _generate_hmac_signature(secret, "id-1", str(moment), body.decode())
    return {name.lower().encode(): value.encode() for name, value in zip(HEADERS, ("id-1", str(moment), signature), strict=True)}


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED, "s3cret")


def test_a_message_signed_as_mlflow_signs_is_taken() -> None:
    check_signature(headers(message()), message(), now=NOW + OLD_S)
    check_signature(headers(message()), message(), now=NOW - OLD_S)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"secret": "other"}, "missing or wrong"),
        ({"moment": NOW - 301}, "too old"),
        ({"moment": NOW + 301}, "too old"),
    ],
)
def test_another_secret_and_another_time_are_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(Refusal, match=found) as refused:
        check_signature(headers(message(), **change), message(), now=NOW)
    assert refused.value.status == 401


@given(place=st.integers(0, len(message()) - 1), name=st.sampled_from(HEADERS))
def test_a_change_of_any_byte_and_any_missing_header_are_refused(place: int, name: str) -> None:
    os.environ[SHARED] = "s3cret"
    changed = bytearray(message())
    changed[place] ^= 1
    with pytest.raises(Refusal, match="missing or wrong"):
        check_signature(headers(message()), bytes(changed), now=NOW)
    with pytest.raises(Refusal, match="missing or wrong"):
        check_signature({key: value for key, value in headers(message()).items() if key != name.lower().encode()}, message(), now=NOW)


def test_without_a_secret_in_the_environment_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED)
    with pytest.raises(Refusal, match="no RAYMLP_WEBHOOK_SECRET"):
        check_signature(headers(message(), secret=""), message(), now=NOW)


def test_only_aliases_of_the_model_concern_it() -> None:
    assert concerns(message(), "flights")
    assert not concerns(message("trains"), "flights")
    assert not concerns(message(entity="model_version_tag"), "flights")
    assert not any(concerns(body, "flights") for body in (b"", b"{", b"[]", b"7", b'{"data": 1}', b'{"data": null}'))


def test_the_route_takes_what_is_signed_and_says_when_nothing_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    path, others = "/v1/models/flights:registry", message("trains")

    def tell(model: str) -> bool:
        told.append(model)
        return len(told) == 1

    monkeypatch.setattr("raymlp.serve.pages.tell_driver", tell)

    async def ask() -> None:
        async with replica(replica_settings(tmp_path), make_bundle(tmp_path / "bundle", seed=0)) as one:
            for body, status in ((others, 202), (message(), 202), (message(), 503)):
                signed = {name.decode().replace("-", "_"): value.decode() for name, value in headers(body, moment=int(time.time())).items()}
                assert (await one.ask("POST", path, body, **signed)).status == status
            assert (await one.ask("POST", path, others, **{**signed, "x_mlflow_timestamp": "0"})).status == 401
            assert (await one.ask("POST", path.replace("flights", "trains"), others, **signed)).status == 404

    asyncio.run(ask())
    assert told == ["flights", "flights"]


# ---------------------------------------------------------------------- a real server that sends


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[str, Queue[tuple[dict[bytes, bytes], bytes]]]]:
    """An address, and what comes there."""
    came: Queue[tuple[dict[bytes, bytes], bytes]] = Queue()

    class Hear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.put(({name.lower().encode(): value.encode() for name, value in self.headers.items()}, body))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hear)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models/flights:registry", came
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server that may send to this machine."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    sends = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment = {**os.environ, **sends, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    words = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1", f"--backend-store-uri=sqlite:///{folder}/m.db"]
    with (folder / "log").open("w") as out:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def until_it_answers(url: str, limit_s: float = 120) -> None:
    from urllib.request import urlopen

    deadline = time.monotonic() + limit_s
    while True:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_what_a_real_server_sends_is_taken_until_it_is_told_to_stop(
    tracking: str, listener: tuple[str, Queue[Any]], tmp_path: Path
) -> None:
    url, came = listener
    until_it_answers(tracking)
    store = Store(Registry(tracking_uri=tracking), Runtime(storage=str(tmp_path)))
    client = store._client
    client.create_registered_model("flights")
    run = client.create_run("0").info
    client.create_model_version("flights", f"{run.artifact_uri}/model", run_id=run.run_id)
    store.tell_of_aliases("flights", url, "s3cret")
    store.tell_of_aliases("flights", url, "s3cret")
    assert [webhook.name for webhook in client.list_webhooks()] == ["raymlp-flights"]
    store.set_aliases("flights", {"challenger": "1"})
    given, body = came.get(timeout=60)
    check_signature(given, body)
    assert concerns(body, "flights")
    store.set_aliases("flights", {"challenger": None})
    given, body = came.get(timeout=60)
    check_signature(given, body)
    assert json.loads(body)["action"] == "deleted"
    store.tell_no_more("flights")
    assert list(client.list_webhooks()) == []
    with pytest.raises(RegistryError, match=r"takes no webhook for ftp://x: .*Set serve\.rollout\.webhook to null"):
        store.tell_of_aliases("flights", "ftp://x", "s3cret")


def test_settings_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="follow_registry_s is null; expected both"):
        Rollout(webhook="https://models.example.com")
    with pytest.raises(ValueError, match="expected an address that begins with https://"):
        Rollout(webhook="models.example.com", follow_registry_s=60)
    rollout = Rollout(webhook="https://models.example.com", follow_registry_s=60)
    config = make_config(Runtime(storage=str(tmp_path)), rollout=rollout)
    with pytest.raises(ConfigError, match="expected an MLflow server"):
        webhook_secret(config)
    served = config.model_copy(update={"registry": Registry(tracking_uri="https://mlflow.example.com")})
    assert webhook_secret(served) == "s3cret"
    monkeypatch.delenv(SHARED)
    with pytest.raises(ConfigError, match="RAYMLP_WEBHOOK_SECRET is not"):
        webhook_secret(served)
