"""How soon a short job's end is told: `raymlp submit`'s own way beside `ray job submit`, alternating, on a head that is up.

    RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 python benchmarks/submit.py

Medians of seconds. `told` is from the start of a job, `echo done`, to its exit code and its whole log; `ray job submit` is its process from
beginning to end, and `start of its process` the part of it in which Python and Ray are loaded, by `ray --version`.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from raymlp.jobs.access import opened
from raymlp.jobs.api import Api
from raymlp.jobs.watch import watch

ROUNDS = 3


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    api, prefix = Api(opened()), f"bench-{time.time():.0f}"

    def told(number: int) -> None:
        name = f"{prefix}-{number}"
        api.submit(name, entrypoint="echo done", metadata={}, runtime_env={}, cpus=0)
        said: list[str] = []
        assert watch(api, name, said.append).code == 0
        assert "done\n" in "".join(said)

    told(-1)  # imports Ray's client
    times: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        times.setdefault("told", []).append(seconds(lambda number=number: told(number)))
        times.setdefault("ray job submit", []).append(
            seconds(lambda: subprocess.run(["ray", "job", "submit", "--", "echo", "done"], check=True, capture_output=True) and None)
        )
        times.setdefault("start of its process", []).append(
            seconds(lambda: subprocess.run(["ray", "--version"], check=True, capture_output=True) and None)
        )
        Console(stderr=True).print({name: round(values[-1], 2) for name, values in times.items()})
    table = Table("", "median s", "least", "most")
    for name, values in times.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(values), min(values), max(values))))
    Console().print(table)


if __name__ == "__main__":
    main()
