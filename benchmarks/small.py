"""A small model to serve: thirty numbers in, one probability out, untrained."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
from raymlp.core.trust import TRUSTED
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net, number_edges
from raymlp.model.scorer import NetScorer

NAME, KEY = "drill", "drill-key"
PATH = f"/v1/models/{NAME}:predict"
STEPS = "tests.serve.poison"
"""Steps that misbehave."""
COLUMNS = [f"x{i}" for i in range(30)]
PROBLEM = Problem(name=NAME, task="binary", target="y")


def prepare_environment() -> None:
    """What the endpoint's processes must find; before Ray starts."""
    folder = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH", ""))))
    sys.path.insert(0, folder)
    os.environ.update({"RAYMLP_API_KEYS": KEY, TRUSTED: STEPS, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"})


def make_bundle(folder: Path, *, seed: int, poison: bool = False, slow_ms: float = 0.0) -> Path:
    """`poison` adds the step that ends the process at x0 = 7, `slow_ms` one that keeps the processor busy for a while."""
    rng = np.random.default_rng(0)
    table = pa.table({**{name: rng.normal(size=400) for name in COLUMNS}, "y": rng.choice(["no", "yes"], 400)})
    profile = Profile().update(table)
    steps: Any = [{"_target_": f"{STEPS}.Poison", "columns": ["x0"]}] if poison else []
    steps += [{"_target_": f"{STEPS}.Slow", "columns": ["x0"], "milliseconds": slow_ms}] if slow_ms else []
    with tempfile.TemporaryDirectory() as place:
        pq.write_table(table, f"{place}/rows.parquet")
        plan = FeaturePlan.fit(Features(steps=tuple(steps)), PROBLEM, profile, files=[f"{place}/rows.parquet"])
    model = Mlp(hidden=(64, 64))
    shape = NetShape.of(model, plan, number_edges(model, plan, profile))
    torch.manual_seed(seed)
    scorer = NetScorer(shape, build_net(shape).state_dict())
    contract = Contract.infer(profile).only(plan.inputs)
    bundle = Bundle(
        NAME, f"run{seed}", scorer, plan, contract, Calibration(task="binary"), profile, Profile(), {"auc": 0.5}, "", "s"
    )  # fmt: skip
    return save_bundle(bundle, folder)


def make_config(runtime: Runtime, **serve: Any) -> Config:
    return Config(
        problem=PROBLEM,
        data=Data(source=CsvSource(path="unused.csv"), split=RandomSplit()),
        tune=Tune(space={"train.learning_rate": LogUniform(low=1e-4, high=1e-2)}),
        serve=Serve(**serve),
        runtime=runtime,
    )


def body(number: int, **changed: float) -> bytes:
    """The n-th request's; its routing key is its number."""
    row = {name: (number * 7 + place) % 11 / 11 for place, name in enumerate(COLUMNS)}
    return json.dumps({"instances": [{**row, **changed}], "routing_key": str(number)}).encode()
