"""Tokens of an identity provider: good ones, all the bad ones, keys that change, and a provider that is away."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import ValidationError

from raymlp.config.access import Jwt
from raymlp.serve.keys import Refusal
from raymlp.serve.tokens import KNOWN_TOKENS, MAX_TOKEN_BYTES, STALE_S, Tokens, fetched, is_token, public_keys, read_jwks
from tests.serve.bundles import json_rows, make_bundle, replica_settings
from tests.serve.replica import replica

ISSUER = "https://id.example.org"
RSA_KEY, OTHER_RSA = rsa.generate_private_key(65_537, 2_048), rsa.generate_private_key(65_537, 2_048)
EC_KEY, ED_KEY = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
NOW = 1_800_000_000.0


def public(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    kinds: dict[type, Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }
    algorithm = next(found for kind, found in kinds.items() if isinstance(key, kind))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **more}


JWKS = {"keys": [public(RSA_KEY, "r"), public(EC_KEY, "e"), public(ED_KEY, "d")]}


def settings(**changes: Any) -> Jwt:
    plain = {"issuer": ISSUER, "audience": "flights", "algorithms": ("RS256", "ES256", "EdDSA"), "jwks_file": "unused", "leeway_s": 30}
    return Jwt.model_validate({**plain, **changes})


def claims(**changes: Any) -> dict[str, Any]:
    plain = {"iss": ISSUER, "aud": "flights", "sub": "ann", "exp": time.time() + 86_400, "roles": ["predict"]}
    return {name: value for name, value in {**plain, **changes}.items() if value is not None}


def token(key: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "r", **changes: Any) -> bytes:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid} if kid else {}).encode()


def tokens(content: Mapping[str, Any] = JWKS, **changes: Any) -> Tokens:
    found = Tokens(settings(**changes), read=lambda _: content)
    found.refresh()
    return found


DOOR = tokens()


def refused(door: Tokens, given: bytes, role: Any = "predict") -> tuple[int, str]:
    with pytest.raises(Refusal) as found:
        door.let_in(given, role)
    return found.value.status, found.value.found


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA_KEY, "RS256", "r"), (EC_KEY, "ES256", "e"), (ED_KEY, "EdDSA", "d")])
def test_a_good_token_is_let_in_by_its_roles(key: Any, algorithm: str, kid: str) -> None:
    door, good = tokens(), token(key, algorithm, kid)
    assert is_token(good)
    assert [door.let_in(good, "predict").name for _ in range(2)] == ["token:ann"] * 2
    assert refused(door, good, "operate") == (403, "a token for predict")


def unsigned(**changes: Any) -> bytes:
    return jwt.encode(claims(**changes), None, "none", headers={"kid": "r"}).encode()


def with_public_key_as_secret() -> bytes:
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "HS256", "kid": "r"}, claims()))
    import hashlib
    import hmac

    return b".".join([head, body, base64.urlsafe_b64encode(hmac.digest(pem, head + b"." + body, hashlib.sha256)).rstrip(b"=")])


BAD: dict[str, tuple[bytes, str]] = {
    "no signature at all": (unsigned(), "an algorithm that is not its key's"),
    "the public key as a secret": (with_public_key_as_secret(), "an algorithm that is not its key's"),
    "another algorithm of the same kind of key": (token(algorithm="RS384"), "an algorithm that is not its key's"),
    "signed by someone else": (token(OTHER_RSA), "InvalidSignatureError"),
    "an unknown key": (token(kid="x"), "an unknown key"),
    "a key of another kind": (token(EC_KEY, "ES256", "r"), "an algorithm that is not its key's"),
    "no key named, of several": (token(kid=None), "an unknown key"),
    "expired": (token(exp=time.time() - 31), "expired"),
    "without an end": (token(exp=None), "MissingRequiredClaimError"),
    "not yet valid": (token(nbf=time.time() + 86_000), "ImmatureSignatureError"),
    "for someone else": (token(aud="hotels"), "InvalidAudienceError"),
    "for nobody": (token(aud=None), "MissingRequiredClaimError"),
    "of another issuer": (token(iss="https://evil.example.org"), "InvalidIssuerError"),
    "without a name": (token(sub=None), "a token without sub"),
    "too long": (token(roles=["x" * MAX_TOKEN_BYTES]), "bytes"),
    "cut short": (token()[:-5], "is not valid"),
    "nested without end": (b".".join([base64.urlsafe_b64encode(b'{"a":' + b"[" * 5_000), b"eyJ9", b"x"]), "is not valid"),
    "no JSON": (b"eyJ.eyJ.x", "DecodeError"),
    "an end that is no number": (token(exp="tomorrow"), "DecodeError"),
    "critical words": (jwt.encode(claims(), RSA_KEY, "RS256", headers={"kid": "r", "crit": ["b64"], "b64": False}).encode(), ""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_token_is_kept_out(case: str) -> None:
    given, words = BAD[case]
    status, found = refused(tokens(), given)
    assert status == 401
    assert words in found
    assert given.decode()[-20:] not in found


@given(st.binary(max_size=300), st.integers(0, 2))
def test_whatever_comes_as_a_token_is_let_in_or_refused(junk: bytes, place: int) -> None:
    parts = token().split(b".")
    parts[place] = junk
    status, _ = refused(DOOR, b".".join(parts))
    assert status == 401


def test_clocks_may_differ_by_the_leeway() -> None:
    assert tokens().let_in(token(exp=time.time() - 20), "predict")
    assert refused(tokens(leeway_s=5), token(exp=time.time() - 20)) == (401, "a token that expired")


def test_a_remembered_token_ends_when_it_says_and_when_its_key_goes() -> None:
    now, content = [time.time()], [JWKS]
    door = Tokens(settings(leeway_s=0), read=lambda _: content[0], clock=lambda: now[0])
    door.refresh()
    short, long = token(exp=now[0] + 60), token(exp=now[0] + 10_000)
    assert door.let_in(short, "predict")
    assert door.let_in(long, "predict")
    now[0] += 61
    assert refused(door, short)[1] == "a token that expired"
    assert door.let_in(long, "predict")
    content[0] = {"keys": [public(OTHER_RSA, "new")]}
    door.refresh()
    assert refused(door, long)[1] == "a token of an unknown key"
    assert door.let_in(token(OTHER_RSA, kid="new"), "predict")
    assert door.let_in(token(OTHER_RSA, kid=None), "predict"), "one key needs no name"


def test_an_unknown_key_has_the_keys_read_sooner_but_not_at_every_request() -> None:
    now = [NOW]
    door = Tokens(settings(refresh_s=300), read=lambda _: JWKS, clock=lambda: now[0])
    assert door.is_due
    door.refresh()
    assert not door.is_due
    refused(door, token(kid="x"))
    assert not door.is_due
    now[0] += 11
    assert door.is_due
    door.refresh()
    now[0] += 299
    assert not door.is_due
    now[0] += 2
    assert door.is_due


def test_an_issuer_that_is_away_leaves_its_keys_valid_for_a_day() -> None:
    now, is_away = [time.time()], [False]

    def read(_: Jwt) -> Mapping[str, Any]:
        if is_away[0]:
            raise OSError("no route")
        return JWKS

    door = Tokens(settings(), read=read, clock=lambda: now[0])
    door.refresh()
    is_away[0] = True
    now[0] += STALE_S - 10
    door.refresh()
    good = token(exp=now[0] + 100_000)
    assert door.let_in(good, "predict")
    now[0] += 20
    door.refresh()
    assert refused(door, good)[1] == "a token of an unknown key"


def test_remembered_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymlp.serve.tokens.KNOWN_TOKENS", 2)
    assert KNOWN_TOKENS > 2
    door = tokens()
    for name in "abc":
        door.let_in(token(sub=name), "predict")
    assert len(door._known) == 2


@pytest.mark.parametrize(
    ("claim", "value", "roles"),
    [
        ("roles", ["predict", "operate", "else"], {"predict", "operate"}),
        ("scope", "openid feedback", {"feedback"}),
        ("realm_access.roles", {"roles": ["predict"]}, {"predict"}),
        ("roles", {"predict": True}, set()),
        ("roles", [["predict"], 1], set()),
    ],
)
def test_roles_come_from_the_claim_that_is_set(claim: str, value: Any, roles: set[str]) -> None:
    door = tokens(roles_claim=claim)
    given = token(**{"roles": None, claim.split(".")[0]: value})
    for role in ("predict", "feedback", "operate"):
        if role in roles:
            assert door.let_in(given, role)
        else:
            assert refused(door, given, role)[0] == 403


def test_roles_may_have_other_names_at_the_issuer() -> None:
    door = tokens(roles={"flights-users": "predict"})
    assert door.let_in(token(roles=["flights-users"]), "predict")
    assert refused(door, token(roles=["predict"])) == (403, "a token for nothing")


def test_secrets_short_keys_and_keys_for_something_else_are_no_public_keys() -> None:
    short = public(rsa.generate_private_key(65_537, 1_024), "short")
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"}
    found = public_keys(
        {"keys": [short, secret, public(RSA_KEY, "enc", use="enc"), {"kty": "RSA"}, 7, public(EC_KEY, "e")]}, ("RS256", "ES256")
    )
    assert list(found) == ["e"]
    for content in ({}, {"keys": []}, {"keys": [secret]}, {"keys": [public(ED_KEY, "d")]}):
        with pytest.raises(ValueError, match=r"no JWKS|no public key for RS256"):
            public_keys(content, ("RS256",))


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": ("HS256",)}, {"algorithms": ("none",)}, {"algorithms": ()}, {"jwks_url": "https://id.example.org/keys"},
        {"jwks_file": None, "jwks_url": "http://id.example.org/keys"}, {"jwks_file": None, "issuer": "http://id.example.org"},
        {"roles": {"x": "admin"}},
    ],
)  # fmt: skip
def test_settings_that_would_not_be_safe_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)


@pytest.fixture
def issuer() -> Iterator[str]:
    """A provider on this machine: its discovery document, its keys, and a redirect."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = f"http://127.0.0.1:{self.server.server_address[1]}"
            pages = {
                "/.well-known/openid-configuration": {"issuer": host, "jwks_uri": f"{host}/keys"},
                "/keys": JWKS,
                "/other/.well-known/openid-configuration": {"issuer": host, "jwks_uri": f"{host}/keys"},
                "/plain/.well-known/openid-configuration": {"issuer": f"{host}/plain", "jwks_uri": "http://id.example.org/keys"},
                "/big": {"keys": ["x" * (2 << 20)]},
            }
            self.send_response(302 if self.path == "/away" else 200 if self.path in pages else 404)
            self.send_header("location", "/keys")
            self.end_headers()
            self.wfile.write(json.dumps(pages.get(self.path, {})).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_public_keys_are_found_through_the_issuer(issuer: str, tmp_path: Path) -> None:
    assert read_jwks(settings(jwks_file=None, issuer=issuer)) == JWKS
    assert read_jwks(settings(jwks_file=None, jwks_url=f"{issuer}/keys")) == JWKS
    (tmp_path / "jwks.json").write_text(json.dumps(JWKS))
    assert read_jwks(settings(jwks_file=str(tmp_path / "jwks.json"))) == JWKS
    for name, words in (("other", "calls itself"), ("plain", "expected https")):
        with pytest.raises(ValueError, match=words):
            read_jwks(settings(jwks_file=None, issuer=f"{issuer}/{name}"))
    with pytest.raises(ValueError, match="more than 1,048,576 bytes"):
        fetched(f"{issuer}/big")
    with pytest.raises(OSError, match="302"):
        fetched(f"{issuer}/away")
    with pytest.raises(ValueError, match="expected https"):
        fetched("file:///etc/passwd")


def test_keys_and_tokens_open_one_endpoint_and_each_caller_has_a_limit(issuer: str, tmp_path: Path) -> None:
    access = {
        "jwt": {"issuer": issuer, "audience": "flights"},
        "rate_limit": {"requests_per_s": 0.001, "burst": 1},
    }

    async def ask() -> None:
        settings = replica_settings(tmp_path, needs_key=True, access=access)
        async with replica(settings, make_bundle(tmp_path / "bundle", seed=0)) as one:
            body = {"instances": json_rows(1)}
            for name in ("ann", "bob"):
                bearer = f"Bearer {token(iss=issuer, sub=name).decode()}"
                answers = [await one.ask("POST", "/v1/models/flights:predict", body, authorization=bearer) for _ in range(2)]
                assert [answer.status for answer in answers] == [200, 429]
                assert int(answers[1].headers["retry-after"]) > 900
                assert answers[1].json["error"]["found"] == "over 0.001 requests a second"
            bad = await one.ask("POST", "/v1/models/flights:predict", body, authorization=f"Bearer {token(iss=issuer)[:-9].decode()}")
            assert (bad.status, bad.headers["www-authenticate"]) == (401, "Bearer")

    asyncio.run(ask())
