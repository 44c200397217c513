"""Requests nobody would send: from the OpenAPI document by schemathesis, and by hand over plain sockets."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.test_formats import ARROW, INFER, PREDICT, stream, table

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, negative_data_rejection]
"""All that hold. Rows that fit the document may be refused: JSON Schema cannot say that text is an image in base64."""

Statuses = Counter[tuple[str, int]]


def by_document(url: str, key: str, *, cases: int, version: str, seed: int = 0) -> Statuses:
    """Ask every operation of the endpoint's document, at least `cases` times in all, half with data that fits it and half with data that
    does not; where a path has a version, what fits is one that is loaded. Counts by operation and status. Raises schemathesis' failures."""
    import requests
    from hypothesis import seed as seeded

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    heavy = [operation for operation in operations if operation.method == "post"]
    light = [operation for operation in operations if operation.method != "post"]
    counts: Statuses = Counter()
    with requests.Session() as session:
        for operation in operations:
            few = max(1, cases // 20 // len(light))
            wanted = few if operation in light else -(-cases // len(heavy))
            modes = [GenerationMode.POSITIVE] + ([GenerationMode.NEGATIVE] if operation in heavy else [])

            def ask(case: Any) -> None:
                answer = case.call(base_url=url, session=session, headers={"Authorization": f"Bearer {key}"}, timeout=60)
                counts[case.operation.label, answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            given_version = {"path_parameters": {"version": version}} if "{version}" in operation.path else {}
            strategies = [operation.as_strategy(generation_mode=mode, **given_version) for mode in modes]
            limits = settings(
                max_examples=wanted, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
            )
            seeded(seed)(limits(given(case=st.one_of(strategies))(ask)))()
    return counts


def bodies(good: bytes, count: int, *, seed: int = 0) -> list[bytes]:
    """Bodies that are no request: random bytes, a good one cut and changed, deep nesting, numbers beyond all bounds, text that is none."""
    dice = random.Random(seed)
    made = [
        b"", b"\x00", b"\xff\xfe" * 50, b'{"instances": [{"delay": "\xc3\x28"}]}', b"[" * 200_000, b'{"a":' * 50_000,
        b'{"instances":[' * 5_000, b'{"instances": [{"delay": 1e400}]}', b'{"instances": [{"delay": ' + b"9" * 100_000 + b"}]}",
        b'{"instances": [{"delay": -0.0e-999}]}', b'{"instances": [{"hours": 9223372036854775808}]}',
        b'{"inputs": [{"name": "delay", "shape": [9223372036854775807], "datatype": "FP64"}]}',
    ]  # fmt: skip
    while len(made) < count:
        if dice.random() < 0.3:
            made.append(dice.randbytes(dice.randrange(1, 400)))
            continue
        body = bytearray(good[: dice.randrange(1, len(good) + 1)] if dice.random() < 0.5 else good)
        for _ in range(dice.choice((1, 3, 20))):
            body[dice.randrange(len(body))] = dice.randrange(256)
        made.append(bytes(body))
    return made


def by_hand(url: str, key: str, count: int) -> Statuses:
    """Send bodies that are no request, in each format, on connections that are kept; counts by format and status, 0 for no answer."""
    counts: Statuses = Counter()
    good = example_body(url)
    kinds = (
        ("rows", PREDICT, "application/json", good),
        ("tensors", INFER, "application/json", good),
        ("Arrow", PREDICT, ARROW, stream(table(2))),
    )
    for kind, path, content_type, body in kinds:
        connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        for junk in bodies(body, count // len(kinds)):
            try:
                connection.request("POST", path, junk, {"Authorization": f"Bearer {key}", "Content-Type": content_type})
                answer = connection.getresponse()
                answer.read()
                counts[kind, answer.status] += 1
            except (HTTPException, OSError):
                counts[kind, 0] += 1
                connection.close()
    return counts


def raw(url: str, head: str, body: bytes, *, then_close: bool = False, timeout_s: float = 10.0) -> int:
    """The status that comes back for bytes on a socket; 0 when none does."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=timeout_s) as line:
        line.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n" + body)
        if then_close:
            return 0
        try:
            answer = line.recv(4_096)
        except (TimeoutError, ConnectionError):
            return 0
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0


def broken_requests(path: str, key: str, good: bytes) -> list[tuple[str, str, bytes, bool]]:
    """What is wrong, head, body, and whether the client hangs up: requests that break HTTP itself."""
    start = f"POST {path} HTTP/1.1\nHost: x\nAuthorization: Bearer {key}\nContent-Type: application/json\n"
    half = len(good) // 2
    return [
        ("a length that is too short", f"{start}Content-Length: {half}\nConnection: close\n", good, False),
        ("hung up in the middle", f"{start}Content-Length: {len(good)}\n", good[:half], True),
        ("a length that is negative", f"{start}Content-Length: -1\n", good, False),
        ("a length that is none", f"{start}Content-Length: many\n", good, False),
        ("two lengths", f"{start}Content-Length: 3\nContent-Length: {len(good)}\n", good, False),
        ("a chunk of no size", f"{start}Transfer-Encoding: chunked\n", b"zz\r\n" + good + b"\r\n0\r\n\r\n", False),
        ("a header without end", f"{start}X: {'y' * 100_000}\n", good, False),
        ("no HTTP", "\x00\x01\x02\n", good, False),
    ]


def example_body(url: str) -> bytes:
    """The request that the document gives as an example."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        paths = json.load(answer)["paths"]
    predict = next(item for path, item in paths.items() if path.endswith(":predict"))
    return json.dumps(predict["post"]["requestBody"]["content"]["application/json"]["example"]).encode()
