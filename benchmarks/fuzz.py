"""Try to break an endpoint: cases of schemathesis from its OpenAPI document, bodies that are no request, and requests that break HTTP.

    python benchmarks/fuzz.py --cases 5000 --bodies 3000

Starts Ray and an endpoint of an untrained model with every type of column, behind HAProxy, with keys. Prints counts by operation and
status, and fails when an answer is a 500, does not fit the document, or a replica died.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from raymlp.config.runtime import Runtime
from raymlp.core.records import Version
from raymlp.runtime.session import ray_session
from raymlp.serve.deploy import deploy, status
from tests.serve.bundles import make_bundle, make_config
from tests.serve.fuzzing import broken_requests, by_document, by_hand, example_body, raw
from tests.serve.test_formats import PREDICT

KEY = "fuzz-key"


def slowly(url: str, body: bytes, *, seconds: float) -> int:
    """The status for a body that comes a byte at a time."""
    import socket

    parts = urlsplit(url)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as line:
        line.sendall(head.encode())
        for place in range(len(body)):
            line.sendall(body[place : place + 1])
            time.sleep(seconds / len(body))
        return int(line.recv(4_096)[9:12])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5_000)
    parser.add_argument("--bodies", type=int, default=3_000)
    parser.add_argument("--port", type=int, default=8765)
    asked = parser.parse_args()
    os.environ["RAYMLP_API_KEYS"] = KEY
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(storage=folder, num_cpus=4, object_store_mb=400)
        bundle = make_bundle(Path(folder) / "bundle", seed=1)
        with ray_session(runtime):
            config = make_config(runtime, port=asked.port, max_replicas=1, max_rows_per_request=50, cpus_per_replica=0.1)
            url = deploy(config, Version("1", str(bundle))).url
            before = [report["pid"] for report in status("flights")["replicas"]]
            start = time.monotonic()
            documented = by_document(url, KEY, cases=asked.cases, version="1")
            told(console, f"{sum(documented.values()):,} cases from the document, {time.monotonic() - start:.0f} s", documented)
            told(console, "bodies that are no request", by_hand(url, KEY, asked.bodies))
            good = example_body(url)
            broken = Counter(
                {(what, raw(url, head, body, then_close=hang_up)): 1 for what, head, body, hang_up in broken_requests(PREDICT, KEY, good)}
            )
            broken["a body that takes 5 seconds", slowly(url, good, seconds=5)] += 1
            told(console, "requests that break HTTP (0: no answer)", broken)
            after = [report["pid"] for report in status("flights")["replicas"]]
    if before != after:
        raise SystemExit(f"replicas were {before} and are {after}: one died")
    console.print("no 500, and no replica died")


def told(console: Console, title: str, counts: Counter[tuple[str, int]]) -> None:
    """Print counts. Ends the process for a 500."""
    page = Table("", "status", "count", title=title)
    for (what, code), count in sorted(counts.items()):
        page.add_row(what, str(code), f"{count:,}")
    console.print(page)
    if any(code >= 500 for _, code in counts):
        raise SystemExit("an answer was a 500")


if __name__ == "__main__":
    main()
