"""What a shadow costs the champion: requests/s and latency at the client without one, with 10 %, with all, and with a slow one, in turn.

    python benchmarks/shadow.py                 5 rounds of 3 s, 16 connections (needs wrk)
    python benchmarks/shadow.py --connections 1 --rounds 3

A net of 30 -> 64 -> 64 -> 1 on one replica, JSON rows, keys and log on; the shadow is another of the same, the slow one a net of
three layers of 6,000, which takes some 50 ms a row. Set-ups alternate within a round, and a figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import torch

from raymlp.config.data import Data
from raymlp.config.features import Features
from raymlp.config.model import Mlp
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
from raymlp.model.nets import NetShape, build_net, number_edges
from raymlp.model.scorer import NetScorer
from raymlp.runtime.ports import port_is_free
from raymlp.runtime.session import ray_session
from raymlp.serve.deploy import deploy, status, undeploy
from raymlp.serve.shadowing import set_shadow, shadow_of

NAMES = [f"x{number}" for number in range(30)]
KEY = "benchmark"
SETTLES_S = 3.0
"""Seconds of load before a set-up is measured: the process that probed its version ends, and Ray starts another one for the next."""
PORT = next(port for port in range(18_000, 18_100) if port_is_free("127.0.0.1", port))


def bundle(folder: Path, hidden: tuple[int, ...], seed: int) -> str:
    """An untrained binary net on 30 numbers."""
    rng = np.random.default_rng(0)
    table = pa.table({**{name: rng.normal(size=500) for name in NAMES}, "y": rng.choice(["no", "yes"], 500)})
    profile, problem, model = Profile().update(table), Problem(name="shadowed", task="binary", target="y"), Mlp(hidden=hidden)
    plan = FeaturePlan.fit(Features(), problem, profile)
    shape = NetShape.of(model, plan, number_edges(model, plan, profile))
    torch.manual_seed(seed)
    scorer = NetScorer(shape, build_net(shape).state_dict())
    contract = Contract.infer(profile).only(plan.inputs)
    made = Bundle("shadowed", f"run{seed}", scorer, plan, contract, Calibration(task="binary"), profile, Profile(), {"auc": 0.5}, "", "s")
    return str(save_bundle(made, folder / f"v{seed}"))


def wrk(script: Path, connections: int, seconds: float) -> tuple[float, float, float]:
    """Requests/s, p50 and p99 in ms."""
    url = f"http://127.0.0.1:{PORT}/v1/models/shadowed:predict"
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(script), url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in out:
        raise SystemExit(out)
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", out)[0]), _ms(out, "50%"), _ms(out, "99%")


def _ms(out: str, name: str) -> float:
    value, unit = re.findall(rf"{name}\s+([\d.]+)(us|ms|s)", out)[0]
    return float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=16)
    asked = parser.parse_args()
    os.environ["RAYMLP_API_KEYS"] = KEY
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        champion, shadow = bundle(folder, (64, 64), 1), bundle(folder, (64, 64), 2)
        slow = bundle(folder, (6_000, 6_000, 6_000), 3)
        config = Config(
            problem=Problem(name="shadowed", task="binary", target="y"),
            data=Data(source=CsvSource(path="unused.csv"), split=RandomSplit()),
            tune=Tune(space={"train.learning_rate": LogUniform(low=1e-4, high=1e-2)}),
            serve=Serve(port=PORT, max_replicas=1),
            runtime=Runtime(storage=str(folder / "storage"), num_cpus=4, object_store_mb=200),
        )
        row = dict(zip(NAMES, np.random.default_rng(1).normal(size=30).round(4).tolist(), strict=True))
        body = orjson.dumps({"instances": [row]}).decode()
        script = folder / "post.lua"
        script.write_text(
            f"wrk.method = 'POST'\nwrk.body = '{body}'\n"
            f"wrk.headers['Authorization'] = 'Bearer {KEY}'\nwrk.headers['Content-Type'] = 'application/json'\n"
        )
        setups = {
            "no shadow": None,
            "10 %": shadow_of(Version("v2", shadow), 0.1, max_waiting=256),
            "100 %": shadow_of(Version("v2", shadow), 1.0, max_waiting=256),
            "slow, 100 %": shadow_of(Version("v3", slow), 1.0, max_waiting=256),
        }
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in setups}
        told: dict[str, dict[str, int]] = {}
        with ray_session(config.runtime):
            deploy(config, Version("v1", champion))
            wrk(script, asked.connections, 2)
            for _ in range(asked.rounds):
                for name, setup in setups.items():
                    set_shadow("shadowed", setup)
                    wrk(script, asked.connections, SETTLES_S)
                    before = _shadow()
                    found[name].append(wrk(script, asked.connections, asked.seconds))
                    after = _shadow()
                    told[name] = {part: told.get(name, {}).get(part, 0) + after[part] - before[part] for part in after}
            undeploy("shadowed")
    table = Table("shadow", "requests/s", "to none", "p50 ms", "p99 ms", "answered by the shadow", "dropped")
    none = statistics.median(rate for rate, _, _ in found["no shadow"])
    for name, rounds in found.items():
        rate, p50, p99 = (statistics.median(values) for values in zip(*rounds, strict=True))
        counts = told[name]
        shown = f"{counts.get('answered', 0):,}", f"{counts.get('dropped', 0):,}"
        table.add_row(name, f"{rate:,.0f}", f"{rate / none:.2f}", f"{p50:.2f}", f"{p99:.1f}", *shown)
    Console(width=120).print(table)


def _shadow() -> dict[str, int]:
    """What the replica's shadow has done so far."""
    (replica,) = status("shadowed")["replicas"]
    shadow = replica["shadow"] or {}
    return {part: shadow[part] for part in ("answered", "failed", "dropped") if part in shadow}


if __name__ == "__main__":
    main()
