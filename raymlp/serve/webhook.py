"""The registry tells the endpoint that an alias was moved, so that what drives its rollouts looks at once and not at its next turn.

MLflow signs what it sends (headers as it has them since 3.3, signatures as in Standard Webhooks, https://www.standardwebhooks.com): the
HMAC-SHA256 of `id.timestamp.body` by a secret that both hold. Nothing of the body is acted upon; it only causes a look at the registry.
"""

from __future__ import annotations

import hmac
import os
import time
from base64 import b64encode
from collections.abc import Mapping

import orjson

from raymlp.serve.keys import Refusal

SHARED = "RAYMLP_WEBHOOK_SECRET"
OLD_S = 300.0
"""A message that is older, or as far ahead, is refused: it may be one that was sent before."""

HEADERS = ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")


def driver_name(model: str) -> str:
    """Name of the actor that drives a model's rollouts."""
    return f"raymlp rollouts of {model}"


def check_signature(headers: Mapping[bytes, bytes], body: bytes, *, now: float | None = None) -> None:
    """Raises Refusal unless the message was signed with the secret of the environment in the last minutes."""
    secret = os.environ.get(SHARED, "")
    if not secret:
        raise Refusal(401, f"a message of the registry, and no {SHARED} in the endpoint's environment", "the registry's secret there")
    number, moment, signature = (headers.get(name.lower().encode(), b"") for name in HEADERS)
    digest = hmac.digest(secret.encode(), b".".join((number, moment, body)), "sha256")
    if not hmac.compare_digest(signature, b"v1," + b64encode(digest)):
        raise Refusal(401, "a signature that is missing or wrong", f"{HEADERS[2]} by the secret in {SHARED}")
    if not (moment.isdigit() and abs((time.time() if now is None else now) - int(moment)) <= OLD_S):
        raise Refusal(401, "a message that is too old", f"{HEADERS[1]} of the last {OLD_S:g} s")


def concerns(body: bytes, model: str) -> bool:
    """Whether a message is about an alias of the model. One webhook of MLflow hears of all models."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    data = content.get("data") if isinstance(content, dict) else None
    return isinstance(data, dict) and content.get("entity") == "model_version_alias" and data.get("name") == model


def tell_driver(model: str) -> bool:
    """Have the process that drives the model's rollouts look at the registry. False where there is none."""
    import ray

    from raymlp.serve.counts import NAMESPACE

    try:
        ray.get_actor(driver_name(model), namespace=NAMESPACE).registry_moved.remote()
    except ValueError:
        return False
    return True
