"""What a format of requests and answers has to give, and the one the endpoint speaks by default: JSON rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import orjson

from raymlp.config.access import Role
from raymlp.serve.admission import refusal
from raymlp.serve.request import Request, parse

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction

Headers = Sequence[tuple[bytes, bytes]]
Flags = Sequence[tuple[str, ...]]
FALLBACK = "fallback"
"""Label, in answers and in the log, of what no version answered."""


class Wire(Protocol):
    """A format. One that keeps something of its request has an instance for each."""

    headers: Headers
    """Headers of the answer, without its length."""
    role: Role
    """What a key must allow."""
    version: str | None
    """The version that is asked for by name, past the shares of traffic; None takes the one that the routing key gives."""

    def read(self, content: bytes, *, max_rows: int) -> Request:
        """The rows of a request's body. Raises RequestError."""

    def write(self, answer: Prediction, *, label: str, digest: str, prediction_id: str, flags: Flags) -> bytes:
        """The body of an answer. `flags` names the fields of each row that are out of place; a format without a place for them leaves them
        to the log."""

    def refuse(self, field: str, found: str, expected: str) -> bytes:
        """The body of a refusal."""


class JsonRows:
    """`{"instances": [{...}]}` and `{"predictions": [...], "model_version": ..., "prediction_id": ...}`."""

    headers: Headers = ((b"content-type", b"application/json"),)
    role: Role = "predict"
    version: str | None = None

    def read(self, content: bytes, *, max_rows: int) -> Request:
        return parse(content, max_rows=max_rows)

    def write(self, answer: Prediction, *, label: str, digest: str, prediction_id: str, flags: Flags) -> bytes:
        told = {"predictions": answer.rows(), "model_version": label, "prediction_id": prediction_id}
        if any(flags):
            told["flags"] = flags
        return orjson.dumps(told | {"fallback": True} if label == FALLBACK else told)

    def refuse(self, field: str, found: str, expected: str) -> bytes:
        return refusal(field, found, expected)


JSON_ROWS = JsonRows()
