"""Who is let in, and the words for who is not."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from raymlp.serve.keys import KeyRing, Refusal, Role


class Admission:
    """The door of one replica."""

    def __init__(self, keys: KeyRing, *, needs_key: bool) -> None:
        self.keys, self.needs_key = keys, needs_key

    def refused(self, headers: Mapping[bytes, bytes], role: Role) -> Refusal | None:
        """Why a request is not let in; None when it holds a key with the role, or needs none."""
        if self.needs_key:
            try:
                self.keys.let_in(headers.get(b"authorization", b""), role)
            except Refusal as refused:
                return refused
        return None


def refusal(field: str, found: str, expected: str) -> bytes:
    """The body of every 4xx and 5xx that is ours."""
    return orjson.dumps({"error": {"field": field, "found": found, "expected": expected}})
