"""Small planted problems, as a snapshot on disk and a bundle that has learned them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raymlp.config.features import Features
from raymlp.config.loader import build_config
from raymlp.config.model import Mlp
from raymlp.config.schema import Config
from raymlp.core.metrics import score
from raymlp.core.records import Snapshot, Task
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net
from raymlp.model.scorer import NetScorer


@dataclass(frozen=True)
class Case:
    """What `evaluate` takes."""

    config: Config
    snapshot: Snapshot
    bundle: Path
    tables: dict[str, pa.Table]


def planted(rows: int, seed: int, task: Task) -> pa.Table:
    """`a` and `kind` explain the answer, `group` does not. Binary: logit = 2 a + 2 for 'x' - 1. A few answers are missing."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows)
    kind = rng.choice(["x", "y", "z"], rows)
    answers: dict[Task, Any] = {
        "binary": np.where(rng.random(rows) < 1 / (1 + np.exp(-(2 * a + 2 * (kind == "x") - 1))), "yes", "no"),
        "multiclass": np.where(a > 1, "high", kind),
        "regression": 1_000 * (10 + 3 * a + 2 * (kind == "x") + 0.5 * rng.normal(size=rows)),
    }
    group = rng.choice(["one", "two", "rare"], rows, p=[0.6, 0.395, 0.005])
    return pa.table({
        "a": pa.array(a, mask=rng.random(rows) < 0.05), "kind": kind, "group": group,
        "answer": pa.array(answers[task], mask=rng.random(rows) < 0.02),
    })  # fmt: skip


def config_of(task: Task, **sections: Any) -> Config:
    problem: dict[str, Any] = {"name": "planted", "task": task, "target": "answer", "sensitive": ["group"], "slices": ["kind", "a"]}
    if task == "binary":
        problem["positive_class"] = "yes"
    data = {"source": {"kind": "csv", "path": "none.csv"}, "split": {"kind": "random"}}
    space = {"train.lr": {"kind": "choice", "values": [0.1]}}
    values: dict[str, Any] = {
        "problem": problem,
        "data": data,
        "tune": {"space": space},
        "evaluate": {"bootstrap_samples": 50, "min_slice_rows": 50},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    return build_config(values)


def write_bundle(config: Config, train: pa.Table, folder: Path, *, steps: int = 150) -> Path:
    """A bundle after some steps of full-batch training; 0 steps leave it ignorant."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    profile = Profile().update(train)
    plan = FeaturePlan.fit(Features(), config.problem, profile)
    shape = NetShape.of(Mlp(hidden=(16,), dropout=0), plan)
    net = build_net(shape)
    y = plan.target.read(train.column("answer"))
    known = ~np.isnan(y)
    tensors = plan.transform(train)
    inputs = {name: torch.from_numpy(values[known]) for name, values in tensors.items()}
    answers = torch.from_numpy(plan.target.scaled(y)[known])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        out = net(inputs)
        loss = _loss(plan.target.task, out, answers)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        out = net.eval()(inputs).numpy().astype(np.float64)
    outputs = out if plan.target.task == "multiclass" else out[:, 0] * plan.target.scale + plan.target.mean
    calibration = Calibration.fit(plan.target.task, outputs, y[known])
    bundle = Bundle(
        name=config.problem.name, run_id="run-7", scorer=NetScorer(shape, net.state_dict()), plan=plan,
        contract=Contract.infer(profile).only(plan.inputs), calibration=calibration, profile=profile, predictions=Profile(),
        metrics=score(plan.target.task, y[known], calibration.apply(outputs)), config_yaml="x: 1\n", snapshot="5" * 64,
    )  # fmt: skip
    return save_bundle(bundle, folder)


def _loss(task: Task, out: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    if task == "binary":
        return torch.nn.functional.binary_cross_entropy_with_logits(out[:, 0], answers)
    if task == "multiclass":
        return torch.nn.functional.cross_entropy(out, answers.long())
    return torch.nn.functional.mse_loss(out[:, 0], answers)
