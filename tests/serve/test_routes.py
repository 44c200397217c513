"""Every route of a replica: who may ask, and what protects each answer."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.serve import Serve
from raymlp.serve.headers import complete
from raymlp.serve.keys import add_key
from raymlp.serve.pages import pages
from tests.serve.bundles import json_rows, make_bundle, replica_settings
from tests.serve.replica import replica

PREDICT, FEEDBACK = "/v1/models/flights:predict", "/v1/models/flights:feedback"
ONE = "/v2/models/{name}/versions/{version}"
ROLES: dict[tuple[str, str], str | None] = {
    ("POST", "/v1/models/{name}:predict"): "predict",
    ("POST", "/v2/models/{name}/infer"): "predict",
    ("POST", f"{ONE}/infer"): "operate",
    ("POST", "/v1/models/{name}:feedback"): "feedback",
    ("GET", "/v1/models/{name}"): "operate",
    ("GET", "/v2/models/{name}"): "predict",
    ("GET", ONE): "predict",
    ("GET", "/v2/models/{name}/ready"): None,
    ("GET", f"{ONE}/ready"): None,
    ("POST", "/v1/models/{name}:registry"): "the registry",
    ("GET", "/v2"): None,
    ("GET", "/v2/health/live"): None,
    ("GET", "/v2/health/ready"): None,
    ("GET", "/"): None,
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): None,
    ("GET", "/openapi.json"): None,
}
"""Role that each route asks for; None is open. A new route belongs here."""


def routes(server: Any) -> Iterator[tuple[str, str]]:
    """What FastAPI answers, and what the OpenAPI document tells of, predictions among it."""
    app = pages(server)
    for route in app.routes:
        for method in sorted(getattr(route, "methods", None) or {"?"}):
            if method != "HEAD":
                yield method, str(getattr(route, "path", route))
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("/flights", "/{name}")


def test_every_route_asks_for_its_role(tmp_path: Path) -> None:
    keys = {role: add_key(tmp_path / "keys.json", role, [role]) for role in ("predict", "feedback", "operate")}

    async def ask() -> None:
        settings = replica_settings(tmp_path, needs_key=True, keys_file=str(tmp_path / "keys.json"))
        async with replica(settings, make_bundle(tmp_path / "bundle", seed=0)) as one:
            assert set(routes(one.server)) == set(ROLES), "a route is not in the table of this test, or is gone"
            for (method, path), role in ROLES.items():
                path = path.format(name="flights", version="v1")
                bare = await one.ask(method, path)
                wrong = await one.ask(method, path, authorization="Bearer rml_wrong")
                if role == "the registry":  # which signs with a secret of its own
                    assert {(await one.ask(method, path, authorization=f"Bearer {key}")).status for key in keys.values()} == {401}
                    assert bare.status == 401
                    continue
                if role is None:
                    assert bare.status == wrong.status == 200, path
                    continue
                for refused in (bare, wrong):
                    assert refused.status == 401, path
                    assert b"Authorization" in refused.body
                    assert refused.headers["www-authenticate"] == "Bearer"
                for other, key in keys.items():
                    status = (await one.ask(method, path, authorization=f"Bearer {key}")).status
                    assert (status == 403) == (other != role), (path, other)
                    assert status != 401

    asyncio.run(ask())


def test_every_answer_has_the_headers_that_keep_browsers_safe(tmp_path: Path) -> None:
    async def ask() -> None:
        async with replica(replica_settings(tmp_path), make_bundle(tmp_path / "bundle", seed=0)) as one:
            asked = [(method, path.format(name="flights", version="v1"), b"") for method, path in ROLES]
            asked += [("GET", "/nothing", b""), ("PUT", PREDICT, b""), ("POST", PREDICT, b"{"), ("OPTIONS", PREDICT, b"")]
            for method, path, body in asked:
                answer = await one.ask(method, path, body, origin="https://evil.example.org")
                assert answer.headers["x-content-type-options"] == "nosniff", path
                assert answer.headers["cache-control"] == "no-store"
                assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
                assert "script-src" not in answer.headers["content-security-policy"] or path == "/"
                assert not [name for name in answer.headers if name.startswith("access-control")], "CORS is off"

    asyncio.run(ask())


def test_a_page_keeps_the_policy_that_it_sets_itself() -> None:
    own = (b"content-security-policy", b"script-src 'self'")
    headers = complete([own], 200)
    assert headers[0] == own
    assert [name for name, _ in headers].count(b"content-security-policy") == 1
    assert (b"retry-after", b"1") in contextvars.Context().run(complete, [], 503), "as in a request of its own"
    assert (b"retry-after", b"7") in complete([(b"retry-after", b"7")], 503)


def test_pages_of_named_origins_may_ask_and_no_others(tmp_path: Path) -> None:
    shop = "https://shop.example.org"

    async def ask() -> None:
        settings = replica_settings(tmp_path, access={"cors_origins": [shop]})
        async with replica(settings, make_bundle(tmp_path / "bundle", seed=0)) as one:
            wanted = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}
            before = await one.ask("OPTIONS", PREDICT, origin=shop, **wanted)
            assert (before.status, before.headers["access-control-allow-origin"]) == (200, shop)
            assert (await one.ask("OPTIONS", PREDICT, origin="https://evil.example.org", **wanted)).status == 400
            good = await one.ask("POST", PREDICT, {"instances": json_rows(1)}, origin=shop)
            assert (good.status, good.headers["access-control-allow-origin"]) == (200, shop)
            assert "access-control-allow-credentials" not in good.headers
            other = await one.ask("POST", PREDICT, {"instances": json_rows(1)}, origin="https://evil.example.org")
            assert "access-control-allow-origin" not in other.headers

    asyncio.run(ask())


@pytest.mark.parametrize("origin", ["*", "https://*.example.org", "shop.example.org", "https://shop.example.org/", "null"])
def test_only_whole_origins_can_be_named(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Serve(cors_origins=(origin,))


def test_requests_that_are_too_large_or_too_slow_are_refused(tmp_path: Path) -> None:
    limits = {"body_bytes": 2_000, "header_bytes": 1_024, "body_s": 0.05}

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    pieces = iter([{"type": "http.request", "body": b"x" * 1_500, "more_body": True}] * 9)

    async def long() -> dict[str, Any]:
        return next(pieces)

    async def ask() -> None:
        settings = replica_settings(tmp_path, access={"limits": limits})
        async with replica(settings, make_bundle(tmp_path / "bundle", seed=0)) as one:
            for path in (PREDICT, FEEDBACK):
                assert (await one.ask("POST", path, b"x" * 2_001)).status == 413
                assert (await one.ask("POST", path, receive=never, content_length="2001")).status == 413, "told, so not read"
                slow = await one.ask("POST", path, receive=never)
                assert (slow.status, slow.json["error"]["found"]) == (408, "not there after 0.05 s")
                assert (await one.ask("POST", path, receive=gone)).status == 408
                many = await one.ask("POST", path, x_much="y" * 1_024)
                assert (many.status, many.headers["x-content-type-options"]) == (431, "nosniff")
            assert (await one.ask("POST", PREDICT, receive=long)).status == 413

    asyncio.run(ask())


def test_who_copies_the_model_is_told_to_wait_for_the_hour_to_end(tmp_path: Path) -> None:
    async def ask() -> None:
        settings = replica_settings(tmp_path, access={"extraction_limit": 5})
        async with replica(settings, make_bundle(tmp_path / "bundle", seed=0)) as one:
            assert (await one.ask("POST", PREDICT, {"instances": json_rows(5)})).status == 200
            refused = await one.ask("POST", PREDICT, {"instances": json_rows(1)})
            assert (refused.status, refused.json["error"]["found"]) == (429, "over 5 distinct rows in this hour")
            assert 1 <= int(refused.headers["retry-after"]) <= 3_600

    asyncio.run(ask())
