"""A request's bytes as typed values, or the RequestError that says what is wrong with them. No Ray, no web framework."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from raymlp.core.errors import RequestError

MAX_KEY_CHARACTERS = 1_024
FIELDS = ("instances", "routing_key")


class Request(NamedTuple):
    """`instances` are as they came, still to be checked against a version's contract: rows, or a table."""

    instances: list[Any] | pa.Table
    routing_key: str | None


def parse(body: bytes, *, max_rows: int) -> Request:
    """Raises RequestError for anything but `{"instances": [1 to max_rows], "routing_key": text or absent}`."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("body", f"no JSON ({error})", 'JSON in UTF-8: {"instances": [{...}]}') from None
    if type(content) is not dict:
        raise RequestError("body", f"a JSON {kind_of(content)}", 'an object: {"instances": [{...}]}')
    instances, key = content.get("instances"), content.get("routing_key")
    if type(instances) is not list:
        found = f"a JSON {kind_of(instances)}" if "instances" in content else "missing"
        raise RequestError("instances", found, "a list of rows")
    if not 1 <= len(instances) <= max_rows:
        raise RequestError("instances", f"a list of {len(instances):,} rows", f"1 to {max_rows:,} rows")
    key = routing_key_of(key)
    if len(content) > 1 + ("routing_key" in content):
        extra = next(name for name in content if name not in FIELDS)
        raise RequestError(extra[:60], "not a field", "only " + " and ".join(FIELDS))
    return Request(instances, key)


def routing_key_of(key: Any) -> str | None:
    """A routing key of a request; None for none. Raises RequestError for what is no text, or a long one."""
    if key is not None and (type(key) is not str or len(key) > MAX_KEY_CHARACTERS):
        raise RequestError("routing_key", f"a JSON {kind_of(key)}", f"text of at most {MAX_KEY_CHARACTERS:,} characters")
    return key or None


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")
