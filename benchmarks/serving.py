"""Measure the endpoint beside bare FastAPI + torch, Ray Serve as it comes, LitServe, MLflow's server and BentoML.

    python benchmarks/serving.py [NAME ...] [--seconds 5] [--rounds 3] [--connections 1,16,64]

All answer with the same net (30 numbers, 30 -> 64 -> 64 -> 1 with layer normalisation) from a JSON body of named fields, over loopback, and
must give the same probability before they are measured. raymlp does it behind HAProxy with an API key, the contract checked, every row in
the prediction log, metrics, and a canary of 10 % by a key that each request carries. The others check nothing, but for FastAPI, where
pydantic checks types and ranges. One server runs at a time; rounds alternate; a figure is the median over the rounds.

The load comes from `wrk` where it is installed (apt-get install wrk), else from raymlp's own client, which is slower and is said.
LitServe and BentoML have an environment each under ~/.cache/raymlp/benchmarks, made when it is missing; it shares torch with this one.
`batching` is a part of its own: a costly net, with and without rows of several requests being predicted together.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from raymlp.config.data import Data
from raymlp.config.features import Features
from raymlp.config.model import FtTransformer, Mlp, Model
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.serve import Serve
from raymlp.config.sources import CsvSource
from raymlp.config.split import RandomSplit
from raymlp.config.tune import LogUniform, Tune
from raymlp.core.records import Version
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net
from raymlp.model.predictor import Predictor
from raymlp.model.scorer import NetScorer
from raymlp.runtime.ports import free_port
from raymlp.runtime.session import ray_session
from raymlp.serve.client import replay
from raymlp.serve.deploy import deploy, set_versions, undeploy

FIELDS = [f"x{i}" for i in range(30)]
KEY = "benchmark"
NUM_KEYS = 1_000
START_S = 120.0
PINNED = {"litserve": "litserve==0.2.19", "bentoml": "bentoml==1.4.40"}
"""What is put into an environment of its own."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raymlp" / "benchmarks"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Contender:
    """A server to measure: its path, what a request's rows are called, and for raymlp how it is set."""

    path: str = "/predict"
    rows: str = "instances"
    endpoint: dict[str, Any] = field(default_factory=dict)


RAYMLP = "/v1/models/small:predict"
CONTENDERS = {
    "fastapi": Contender(),
    "raymlp-torch": Contender(RAYMLP, endpoint={"runtime": "torch", "replicas": 1}),
    "raymlp-onnx": Contender(RAYMLP, endpoint={"runtime": "onnx", "replicas": 1}),
    "raymlp-onnx-2": Contender(RAYMLP, endpoint={"runtime": "onnx", "replicas": 2}),
    "ray-serve": Contender("/"),
    "ray-serve-fastapi": Contender(),
    "litserve": Contender(),
    "mlflow": Contender("/invocations", "dataframe_records"),
    "bentoml": Contender(),
}
BATCHING = {
    "costly-off": Contender(RAYMLP, endpoint={"runtime": "torch", "replicas": 1, "batching": "off", "net": "costly"}),
    "costly-auto": Contender(RAYMLP, endpoint={"runtime": "torch", "replicas": 1, "batching": "auto", "net": "costly"}),
    "small-off": Contender(RAYMLP, endpoint={"runtime": "torch", "replicas": 1, "batching": "off"}),
    "small-auto": Contender(RAYMLP, endpoint={"runtime": "torch", "replicas": 1, "batching": "auto"}),
}
NETS: dict[str, Model] = {"small": Mlp(hidden=(64, 64)), "costly": FtTransformer(width=64, heads=4, blocks=2)}


# ---------------------------------------------------------------------- the nets


def rows_of(count: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table({**{name: rng.normal(i, 1 + i / 10, count) for i, name in enumerate(FIELDS)}, "y": rng.choice(["no", "yes"], count)})


def make_nets(folder: Path) -> dict[str, float]:
    """Bundles of every net, two versions each, and the small one as the others load it; gives back the one request's row."""
    table = rows_of(2_000)
    profile = Profile().update(table)
    plan = FeaturePlan.fit(Features(), Problem(name="small", task="binary", target="y", positive_class="yes"), profile)
    contract = Contract.infer(profile).only(plan.inputs)
    for name, model in NETS.items():
        shape = NetShape.of(model, plan)
        for seed in (1, 2):
            torch.manual_seed(seed)
            scorer = NetScorer(shape, build_net(shape).state_dict())
            parts = (contract, Calibration(task="binary"), profile, Profile(), {}, "", "")
            save_bundle(Bundle("small", f"run{seed}", scorer, plan, *parts), folder / f"{name}-{seed}")
    weights = dict(Predictor.load(folder / "small-1").bundle.scorer.net.state_dict())  # type: ignore[attr-defined]
    steps = {step.column: step.scaler for step in plan.numbers}  # type: ignore[union-attr]
    scales = torch.tensor([[steps[name].mean, steps[name].scale] for name in FIELDS], dtype=torch.float64)  # type: ignore[union-attr]
    order = [plan.inputs.index(name) for name in FIELDS]
    first = weights["body.0.weight"].double()[:, order] / scales[:, 1]
    weights |= {"body.0.weight": first.float(), "body.0.bias": (weights["body.0.bias"].double() - first @ scales[:, 0]).float()}
    names = {"body.0": "0", "body.1": "1", "body.4": "3", "body.5": "4", "head": "6"}
    save_file(
        {f"{new}.{part}": weights[f"{old}.{part}"].contiguous() for old, new in names.items() for part in ("weight", "bias")},
        folder / "net.safetensors",
    )
    (folder / "ranges.json").write_text(json.dumps({n: [contract.columns[n].minimum, contract.columns[n].maximum] for n in FIELDS}))
    return {name: round(table.column(name)[0].as_py(), 4) for name in FIELDS}


# ---------------------------------------------------------------------- running a server


def endpoint(port: int, folder: Path, *, runtime: str, replicas: int, batching: str = "auto", net: str = "small") -> None:
    """Run by `running`: deploy both versions, 90 to 10, and stay."""
    os.environ["RAYMLP_API_KEYS"] = f"other,{KEY}"
    settings = {"runtime": runtime, "batching": batching, "min_replicas": replicas, "max_replicas": replicas, "cpus_per_replica": 0.5}
    config = Config(
        problem=Problem(name="small", task="binary", target="y", positive_class="yes"),
        data=Data(source=CsvSource(path="unused.csv"), split=RandomSplit()),
        tune=Tune(space={"train.learning_rate": LogUniform(low=1e-4, high=1e-2)}),
        serve=Serve(port=port, **settings),
        runtime=Runtime(storage=str(folder / "storage"), num_cpus=2),
    )
    versions = {"1": str(folder / f"{net}-1"), "2": str(folder / f"{net}-2")}
    with ray_session(config.runtime):
        try:
            deploy(config, Version("1", versions["1"]))
            set_versions(config, "small", versions, {"1": 0.9, "2": 0.1}, salt="benchmark")
            (folder / f"ready-{port}").touch()
            threading.Event().wait()
        finally:
            undeploy("small")


@contextmanager
def running(name: str, contender: Contender, folder: Path, port: int) -> Iterator[None]:
    """The server, from when it answers."""
    if contender.endpoint:
        command = [sys.executable, __file__, "--endpoint", str(port), str(folder), json.dumps(contender.endpoint)]
    else:
        command = [str(python_of(name)), str(HERE / "servers.py"), name, str(port), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(HERE.parent)}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=folder)
        try:
            deadline = time.monotonic() + START_S
            while not (folder / f"ready-{port}").exists() if contender.endpoint else not is_open(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not start: {last_line(folder / f'{name}.log')}")
                time.sleep(0.2)
            yield
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 40), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    time.sleep(1)


def python_of(name: str) -> Path:
    """The interpreter of a server: this one's, or that of its own environment, which is made when it is missing. What it does not
    install itself, torch above all, it takes from here."""
    if name not in PINNED:
        return Path(sys.executable)
    home = CACHE / PINNED[name].replace("==", "-")
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        (site,) = (home / "lib").glob("python*/site-packages")
        (site / "shared.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", PINNED[name]], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{PINNED[name]} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        (home / "complete").touch()
    return python


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def last_line(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word of why"


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Load:
    """What a load generator saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


def ask(port: int, contender: Contender, row: dict[str, float]) -> float:
    """One request's probability. Raises RuntimeError for anything but an answer."""
    body = json.dumps({contender.rows: [row]})
    deadline = time.monotonic() + START_S
    while True:  # a port may be open before its server is ready
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", contender.path, body, HEADERS | {"X-Routing-Key": champions_key()})
            answer = connection.getresponse()
            status, content = answer.status, json.loads(answer.read() or b"null")
            if status == 200:
                found = content["predictions"][0]
                return float(found["probability"] if isinstance(found, dict) else found)
        except (OSError, ValueError, http.client.HTTPException) as error:
            status, content = 0, str(error)
        finally:
            connection.close()
        if 400 <= status < 500 or time.monotonic() > deadline:
            raise RuntimeError(f"it answers {status}: {content}")
        time.sleep(0.5)


HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}


def champions_key() -> str:
    from raymlp.serve.routing import Routes

    routes = Routes.of("1", {"1": 0.9, "2": 0.1}, salt="benchmark")
    return next(key for key in (f"user-{i}" for i in range(NUM_KEYS)) if routes.choose(key) == "1")


SCRIPT = """
local requests = {}
function init(args)
  for i = 1, %(keys)d do
    wrk.headers["X-Routing-Key"] = "user-" .. i
    requests[i] = wrk.format("POST", "%(path)s")
  end
end
local place = 0
function request()
  place = place %% %(keys)d + 1
  return requests[place]
end
function done(summary, latency, requests)
  local e = summary.errors
  print(string.format('RESULT {"requests": %%d, "us": %%d, "p50": %%f, "p99": %%f, "failed": %%d}', summary.requests, summary.duration,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def load(port: int, contender: Contender, row: dict[str, float], connections: int, seconds: float) -> Load:
    """Requests for some seconds over so many connections."""
    if shutil.which("wrk") is None:
        return load_by_client(port, row, connections, seconds)
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in HEADERS.items())
    body = f"wrk.body = {json.dumps(json.dumps({contender.rows: [row]}))}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join([headers, body, SCRIPT % {"path": contender.path, "keys": NUM_KEYS}]))
        script.flush()
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", script.name, f"http://127.0.0.1:{port}"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = json.loads(next(line for line in said.splitlines() if line.startswith("RESULT"))[7:])
    return Load(found["requests"] / found["us"] * 1e6, found["p50"], found["p99"], found["failed"])


def load_by_client(port: int, row: dict[str, float], connections: int, seconds: float) -> Load:
    """The same by raymlp's own client, which asks raymlp only."""
    answers, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        keys = [f"user-{i}" for i in range(NUM_KEYS)]
        rows = [row] * NUM_KEYS
        answers += replay(f"http://127.0.0.1:{port}", "small", rows, key=KEY, connections=connections, routing_keys=keys)
    took = time.perf_counter() - start
    p50, p99 = np.percentile([answer.latency_ms for answer in answers], [50, 99])
    return Load(len(answers) / took, float(p50), float(p99), sum(not answer.is_good for answer in answers))


def measure(contenders: dict[str, Contender], folder: Path, connections: list[int], seconds: float, rounds: int) -> None:
    console, row = Console(), make_nets(folder)
    expected = {net: Predictor.load(folder / f"{net}-1").predict([row]).scores[0] for net in NETS}
    found: dict[tuple[str, int], list[Load]] = {}
    skipped: dict[str, str] = {}
    busy = [os.getloadavg()[0]]
    try:
        for _ in range(rounds):
            for name in [name for name in contenders if name not in skipped]:
                try:
                    run(name, contenders[name], folder, row, expected, connections, seconds, found)
                except RuntimeError as problem:
                    skipped[name] = str(problem)
            busy.append(os.getloadavg()[0])
    finally:  # also of a run that is cut off
        for count in connections:
            show(console, count, {name: found[name, count] for name in contenders if (name, count) in found})
        for name, reason in skipped.items():
            console.print(f"{name} is left out: {reason}")
        tool = "wrk" if shutil.which("wrk") else "raymlp's own client"
        loads = ", ".join(f"{value:.1f}" for value in busy)
        console.print(
            f"{rounds} rounds of {seconds:g} s by {tool}; {os.cpu_count()} cores; load average before and after each round: {loads}"
        )


def run(
    name: str, contender: Contender, folder: Path, row: dict[str, float], expected: dict[str, float], connections: list[int],
    seconds: float, found: dict[tuple[str, int], list[Load]],
) -> None:  # fmt: skip
    """A round of one server. Raises RuntimeError when it does not start, or does not answer as expected."""
    port = free_port()
    with running(name, contender, folder, port):
        answer, wanted = ask(port, contender, row), expected[contender.endpoint.get("net", "small")]
        if abs(answer - wanted) > 1e-4:
            raise RuntimeError(f"it answers {answer}; expected {wanted}")
        load(port, contender, row, 4, 1)  # warm
        for count in connections:
            found.setdefault((name, count), []).append(load(port, contender, row, count, seconds))


def show(console: Console, connections: int, loads: dict[str, list[Load]]) -> None:
    table = Table(title=f"{connections} connections", title_justify="left")
    for name in ("server", "requests/s", "ratio to the first", "p50 ms", "p99 ms", "failed"):
        table.add_column(name, justify="left" if name == "server" else "right")
    base = 0.0
    for name, each in loads.items():
        per_s, p50, p99 = (statistics.median(getattr(one, part) for one in each) for part in ("per_s", "p50_ms", "p99_ms"))
        base = base or per_s
        table.add_row(name, f"{per_s:,.0f}", f"{per_s / base:.3f}", f"{p50:.2f}", f"{p99:.2f}", f"{sum(one.failed for one in each):,}")
    console.print(table)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    if sys.argv[1:2] == ["--endpoint"]:
        endpoint(int(sys.argv[2]), Path(sys.argv[3]), **json.loads(sys.argv[4]))
        return
    known = CONTENDERS | BATCHING
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(known)}, or batching for the last four")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", default="1,16,64")
    options = parser.parse_args()
    names = [name for word in options.names or CONTENDERS for name in (BATCHING if word == "batching" else [word])]
    unknown = next((name for name in names if name not in known), None)
    if unknown:
        parser.error(f"{unknown} is no server; expected some of {', '.join(known)}")
    connections = [int(count) for count in options.connections.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        measure({name: known[name] for name in names}, Path(folder), connections, options.seconds, options.rounds)


if __name__ == "__main__":
    main()
