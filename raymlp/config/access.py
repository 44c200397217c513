"""Who may ask the endpoint how much, and what it takes in."""

from __future__ import annotations

import math
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from raymlp.config.section import Section

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Role = Literal["predict", "feedback", "operate"]
ROLES: tuple[Role, ...] = ("predict", "feedback", "operate")
"""`predict` asks for predictions, `feedback` sends true answers, `operate` sees versions, weights and problems."""


class RateLimit(Section):
    """Requests of one caller, over all replicas together."""

    requests_per_s: float = Field(gt=0, allow_inf_nan=False)
    """Requests a second in the long run; more get 429 with Retry-After."""

    burst: int | None = Field(default=None, ge=1)
    """Requests that may come at once after a pause; null takes those of a second. Replicas may let a third more
    through at first, and one request each, which is made up for."""

    @property
    def most(self) -> float:
        """The burst in numbers."""
        return float(self.burst if self.burst is not None else max(1, math.ceil(self.requests_per_s)))


class Jwt(Section):
    """Tokens of an OpenID Connect provider, beside API keys (`pip install raymlp[jwt]`)."""

    issuer: str
    """What a token's `iss` must be; its keys are found through `ISSUER/.well-known/openid-configuration` unless a place is named."""

    audience: str
    """What a token's `aud` must name."""

    algorithms: tuple[Literal["RS256", "ES256", "EdDSA"], ...] = Field(default=("RS256", "ES256"), min_length=1)
    """Signatures that are taken. All are of key pairs: a secret that issuer and endpoint share is never taken."""

    jwks_file: str | None = None
    """A file with the issuer's public keys (JWKS), which all nodes see; null fetches them."""

    jwks_url: str | None = None
    """An https address with the issuer's public keys; null asks the issuer for it."""

    refresh_s: float = Field(default=300, ge=1)
    """Seconds after which the public keys are fetched again; a token with an unknown key has them fetched sooner."""

    leeway_s: float = Field(default=30, ge=0, le=300)
    """Seconds by which the clocks of issuer and endpoint may differ."""

    roles_claim: str = "roles"
    """Claim with a caller's roles: a list, or text with spaces between them as `scope` has. Dots lead into objects."""

    roles: dict[str, Role] = {role: role for role in ROLES}
    """What a value of the claim allows; other values allow nothing."""

    caller_claim: str = "sub"
    """Claim by which callers are told apart where they are counted."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.jwks_file is not None and self.jwks_url is not None:
            raise ValueError("jwks_file and jwks_url are both set; expected one of them, or none")
        if self.jwks_file is None:
            name = "jwks_url" if self.jwks_url is not None else "issuer"
            _check_fetched(name, self.jwks_url or self.issuer)
        return self


class Limits(Section):
    """The largest and slowest request that is taken."""

    body_bytes: int = Field(default=16 << 20, ge=1_024)
    """Bytes of a request's body; more get 413. It is read into memory before anything is checked."""

    header_bytes: int = Field(default=16 << 10, ge=1_024)
    """Bytes of all headers together; more get 431. HAProxy has a limit of its own near 16 KiB."""

    body_s: float = Field(default=10, gt=0)
    """Seconds until the whole body must have come; else 408. Seconds for an answer are Ray Serve's `request_timeout_s`."""


class Access(Section):
    """The part of `serve` that keeps the endpoint safe."""

    guard: Literal["reject", "flag", "off"] = "reject"
    """Unknown fields and values of a wrong type are always refused, with 422. What more is asked of a row: the contract's ranges,
    categories and patterns, and that no number or text is absurd (`absurd_factor`). `reject` refuses a row that falls short with 422;
    `flag` answers it, names the fields as `flags` in the answer and in the prediction log, and counts it in `raymlp_flagged_rows`;
    `off` does not look."""

    absurd_factor: float = Field(default=10, gt=0)
    """A number is absurd when it lies beyond the range of the training rows by more than this many of its widths (at least of 1, and of
    the largest size seen), a text when it has more than this many times the longest one's characters (at least 100). Timestamps go on."""

    rate_limit: RateLimit | None = None
    """Limit for each caller (key or token) without one in the file of keys; null has none."""

    extraction_limit: int | None = Field(default=None, ge=1)
    """Distinct rows a caller may ask for in a clock hour, against copying a model by its answers; beyond it he gets 429 until the
    hour ends. Counted by HyperLogLog over all replicas, with a standard error of 1.6 %; null has none."""

    jwt: Jwt | None = None
    """Tokens that are let in beside keys; null has none."""

    cors_origins: tuple[str, ...] = ()
    """Origins (`https://app.example.org`) whose pages a browser lets ask this endpoint; none by default, and no wildcard."""

    limits: Limits = Limits()
    """The largest and slowest request that is taken."""

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}" or "*" in origin:
                raise ValueError(f"'{origin}' is no origin; expected scheme and host without a path, as https://app.example.org")
        return origins


def _check_fetched(name: str, address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"{name} is '{address}'; expected an https address, since public keys are fetched through it. Or set jwks_file")
