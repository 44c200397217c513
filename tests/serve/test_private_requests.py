"""A request meets the same privacy rules as the training rows did, and the prediction log holds only what comes out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from raymlp.config.privacy import Generalise, Hash, Rule
from raymlp.core.errors import ConfigError, ServingError
from raymlp.core.records import Version
from raymlp.data.privacy import PrivacyKey
from raymlp.model.bundle import load_bundle, save_bundle
from raymlp.model.predictor import Predictor
from raymlp.serve.app import ModelServer
from raymlp.serve.log import read_log
from raymlp.serve.openapi import openapi
from raymlp.serve.probe import example_row, probe
from tests.serve.bundles import make_bundle, replica_settings

SECRET = "a secret of the tests that is long enough"
RULES: dict[str, Rule] = {"carrier": Hash(length=16), "hours": Generalise(width=10)}


@pytest.fixture
def private_bundle(tmp_path: Path) -> Path:
    plain = load_bundle(make_bundle(tmp_path / "plain", seed=0))
    return save_bundle(replace(plain, contract=plain.contract.with_privacy(RULES, PrivacyKey(SECRET))), tmp_path / "private")


def requests_of(bundle: Path) -> list[dict[str, Any]]:
    row = example_row(load_bundle(bundle).contract)
    return [{**row, "carrier": "Ann Example", "hours": 37}, {**row, "carrier": 4711471147, "hours": 12}]


def test_the_log_of_an_endpoint_holds_transformed_values_only(
    private_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="r")))

    async def receive() -> dict[str, Any]:
        return {"body": orjson.dumps({"instances": requests_of(private_bundle), "routing_key": "ann@example.org"})}

    async def ask() -> int:
        server = ModelServer(replica_settings(tmp_path))
        user_config = {"versions": {"v1": str(private_bundle)}, "weights": {"v1": 1.0}, "champion": "v1", "salt": "", "revision": "a"}
        await server.reconfigure(user_config)
        status, _ = await server.answering.answer(server.state, [], receive)
        server.log.flush()
        assert server._background is not None
        server._background.cancel()
        return status

    assert asyncio.run(ask()) == 200
    log = read_log(tmp_path / "log")
    key = PrivacyKey(SECRET)
    assert log.column("in.carrier").to_pylist() == [key.hashed(text, column="carrier", length=16) for text in ("Ann Example", "4711471147")]
    assert log.column("in.hours").to_pylist() == [30, 10]
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()) + str(log.to_pylist()).encode()
    assert not any(secret in written for secret in (b"Ann Example", b"ann@example", b"4711471147", SECRET.encode()))


def test_a_raw_row_and_its_transformed_row_get_the_same_answer(private_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    predictor = Predictor.load(private_bundle)
    raw = requests_of(private_bundle)
    once = [predictor.check(row, "row") for row in raw]
    assert predictor.predict(raw).scores.tolist() == predictor.predict(once).scores.tolist()


def test_a_bundle_that_needs_a_key_is_not_loaded_without_one(private_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY", raising=False)
    with pytest.raises(ConfigError, match="RAYMLP_PRIVACY_KEY is not set, and the column 'carrier' is to be hashed"):
        Predictor.load(private_bundle)


@pytest.mark.ray
def test_the_probe_before_a_deploy_refuses_a_bundle_whose_key_is_missing(private_bundle: Path, ray_runtime: Any) -> None:
    with pytest.raises(ServingError, match=r"RAYMLP_PRIVACY_KEY is (not set|another key)"):
        probe(Version("v1", str(private_bundle)))


def test_the_endpoints_page_offers_text_and_whole_numbers_for_a_hashed_column(private_bundle: Path) -> None:
    contract = load_bundle(private_bundle).contract
    page = openapi("flights", contract, "binary", max_rows=9, needs_key=False)
    column = page["components"]["schemas"]["Row"]["properties"]["carrier"]
    assert column["type"][:2] == ["string", "integer"]
    assert "examples" not in column
