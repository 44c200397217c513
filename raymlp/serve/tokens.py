"""Tokens of an OpenID Connect provider in place of API keys: signed, for this endpoint, and still valid.

The issuer's public keys are read in the background and kept; a request never waits for them. A token that was found good is remembered by
its digest until its end or until the keys change, so that a caller's next request costs a hash. No Ray, no web framework.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from raymlp.config.access import LOOPBACK, Jwt, RateLimit, Role
from raymlp.core.errors import ServingError
from raymlp.serve.keys import Refusal

MAX_TOKEN_BYTES = 8 << 10
MAX_DOCUMENT_BYTES = 1 << 20
KNOWN_TOKENS = 4_096
"""Tokens that are remembered; beyond it the oldest is checked again."""
FETCH_S = 5.0
"""An issuer that has not answered by then is asked again later."""
RETRY_S = 10.0
"""Least seconds between two fetches, however many tokens have unknown keys."""
STALE_S = 24 * 3_600.0
"""How long keys stay valid while the issuer cannot be reached."""
LEAST_RSA_BITS = 2_048
EXPECTED = "a valid token of the endpoint's issuer"
log = logging.getLogger("ray.serve")


class Caller(NamedTuple):
    """Who asks: by what name he is counted, and his own limit."""

    name: str
    limit: RateLimit | None = None


class _Known(NamedTuple):
    caller: Caller
    roles: frozenset[Role]
    end: float


def is_token(credential: bytes) -> bool:
    """Whether what follows `Bearer` looks like a JWT: three parts, the first of which is a JSON object in base64."""
    return credential.startswith(b"eyJ") and credential.count(b".") == 2


def require_library() -> None:
    """Raises ServingError when PyJWT is missing."""
    try:
        import jwt  # noqa: F401
    except ImportError:
        raise ServingError("serve.jwt is set and PyJWT is missing; expected it on all nodes. pip install 'raymlp[jwt]'.") from None


class Tokens:
    """The tokens of one issuer."""

    def __init__(self, settings: Jwt, *, read: Callable[[Jwt], Mapping[str, Any]] | None = None, clock: Callable[[], float] = time.time):
        self.settings, self._read, self._clock = settings, read or read_jwks, clock
        self._keys: dict[str, Any] = {}
        self._known: dict[bytes, _Known] = {}
        self._content: Any = None
        self._tried = self._fetched = float("-inf")
        self._is_wanted = True

    @property
    def is_due(self) -> bool:
        """Whether `refresh` should be called, in a thread."""
        since = self._clock() - self._tried
        return since >= self.settings.refresh_s or ((self._is_wanted or self._fetched < self._tried) and since >= RETRY_S)

    def refresh(self) -> None:
        """Read the issuer's public keys. What cannot be read leaves those of before, for a day; both are logged."""
        now = self._tried = self._clock()
        self._is_wanted = False
        try:
            content = self._read(self.settings)
            if content != self._content:
                self._keys, self._content, self._known = public_keys(content, self.settings.algorithms), content, {}
            self._fetched = now
        except (OSError, ValueError) as error:
            log.error("public keys of %s cannot be read: %s: %s", self.settings.issuer, type(error).__name__, error)
            if now - self._fetched > STALE_S:
                self._keys, self._content, self._known = {}, None, {}

    def let_in(self, token: bytes, role: Role) -> Caller:
        """Raises Refusal for a token that is not good or does not allow the role."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Refusal(401, f"a token of {len(token):,} bytes", f"at most {MAX_TOKEN_BYTES:,} bytes")
        digest, now = sha256(token).digest(), self._clock()
        known = self._known.get(digest)
        if known is None:
            known = self._verified(token)
            if len(self._known) >= KNOWN_TOKENS:
                del self._known[next(iter(self._known))]
            self._known[digest] = known
        if now >= known.end:
            self._known.pop(digest, None)
            raise Refusal(401, "a token that expired", EXPECTED)
        if role not in known.roles:
            raise Refusal(403, f"a token for {' and '.join(sorted(known.roles)) or 'nothing'}", f"a token with the role {role}")
        return known.caller

    def _verified(self, token: bytes) -> _Known:
        import jwt

        settings = self.settings
        try:
            head = jwt.get_unverified_header(token)
            key = self._key(head)
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Refusal(401, "a token that expired", EXPECTED) from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Refusal(401, f"a token that is not valid ({type(error).__name__})", EXPECTED) from None
        name = claims.get(settings.caller_claim)
        if not isinstance(name, str) or not 0 < len(name) <= 256:
            raise Refusal(401, f"a token without {settings.caller_claim}", EXPECTED)
        roles = frozenset(settings.roles[value] for value in _values(claims, settings.roles_claim) if value in settings.roles)
        return _Known(Caller(f"token:{name}"), roles, float(claims["exp"]) + settings.leeway_s)

    def _key(self, head: Mapping[str, Any]) -> Any:
        """The issuer's key that the token names, if it is for the token's algorithm. The algorithm is the key's, not the token's word."""
        if "crit" in head:
            raise ValueError("a critical header that is not known")
        kid = head.get("kid")
        key = (
            self._keys.get(kid)
            if isinstance(kid, str)
            else next(iter(self._keys.values()))
            if kid is None and len(self._keys) == 1
            else None
        )
        if key is None:
            self._is_wanted = True
            raise Refusal(401, "a token of an unknown key", EXPECTED)
        if head.get("alg") != key.algorithm_name:
            raise Refusal(401, "a token with an algorithm that is not its key's", EXPECTED)
        return key


def public_keys(content: Mapping[str, Any], algorithms: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a JWKS that sign with one of the algorithms, by id. Raises ValueError when it is none or has no such key."""
    import jwt

    listed = content.get("keys") if isinstance(content, Mapping) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JWKS: an object with a list of keys")
    found = {}
    for place, plain in enumerate(listed):
        if not isinstance(plain, Mapping) or plain.get("kty") not in ("RSA", "EC", "OKP") or plain.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK.from_dict(dict(plain))
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if key.algorithm_name in algorithms and getattr(key.key, "key_size", LEAST_RSA_BITS) >= _least_bits(key.algorithm_name):
            found[str(plain.get("kid", place))] = key
    if not found:
        raise ValueError(f"it has no public key for {' or '.join(algorithms)}")
    return found


def read_jwks(settings: Jwt) -> Mapping[str, Any]:
    """The issuer's public keys: from the file, the address, or the address that the issuer names. Raises OSError or ValueError."""
    if settings.jwks_file is not None:
        return _object(Path(settings.jwks_file).read_bytes())
    address = settings.jwks_url
    if address is None:
        found = fetched(f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != settings.issuer:
            raise ValueError(f"the issuer calls itself {str(found.get('issuer'))[:200]!r}; expected {settings.issuer!r}")
        address = str(found.get("jwks_uri"))
    return fetched(address)


class _Straight(urllib.request.HTTPRedirectHandler):
    """No redirect is followed: the keys come from the named place or not at all."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetched(address: str) -> Mapping[str, Any]:
    """A JSON object from an https address (http on this machine). Raises OSError or ValueError."""
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"the address is {address[:200]!r}; expected https")
    with urllib.request.build_opener(_Straight).open(address, timeout=FETCH_S) as answer:
        return _object(answer.read(MAX_DOCUMENT_BYTES + 1))


def _object(content: bytes) -> Mapping[str, Any]:
    if len(content) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it has more than {MAX_DOCUMENT_BYTES:,} bytes")
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _least_bits(algorithm: str) -> int:
    return LEAST_RSA_BITS if algorithm.startswith("RS") else 0


def _values(claims: Mapping[str, Any], path: str) -> list[str]:
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    values = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return [value for value in values if isinstance(value, str)]
