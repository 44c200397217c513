"""Small tables with a planted signal, as snapshots on disk, and configs that learn it in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymlp.config.data import Data
from raymlp.config.loader import to_yaml
from raymlp.config.model import Mlp
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.config.sources import ParquetSource
from raymlp.config.split import RandomSplit
from raymlp.config.train import Train
from raymlp.config.tune import Choice, Tune
from raymlp.core.files import to_json
from raymlp.core.records import Snapshot, TrainedModel
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_profile
from raymlp.model.bundle import save_bundle
from raymlp.runtime.tracking import tracked


def write_snapshot(path: Path, splits: dict[str, pa.Table], *, parts: int = 2) -> Snapshot:
    """A snapshot folder as `raymlp.data.snapshot` makes it."""
    for split, table in splits.items():
        (path / split).mkdir(parents=True)
        size = -(-table.num_rows // parts)
        for part in range(parts):
            pq.write_table(table.slice(part * size, size), path / split / f"part-{part:05d}.parquet")
    profile = Profile().update(splits["train"])
    (path / "profile.json").write_text(to_json(profile.to_dict(), indent=None))
    (path / "contract.yaml").write_text(Contract.infer(profile).to_yaml())
    rows = {split: table.num_rows for split, table in splits.items()}
    (path / "manifest.json").write_text(json.dumps({"digest": "0" * 64, "rows": rows, "quarantined": 0}))
    return Snapshot(path, "0" * 64, rows)


def planted(rows: int, seed: int, task: str) -> pa.Table:
    """Two numbers and a category that explain the answer, one number that does not; a few answers are missing.

    Binary: logit = 2 a - b + (2 for 'x'). Regression: 10 + 3 a + b + (2 for 'x') + noise of deviation .5.
    Multiclass: the class is the category, or 'z' where a > 1.
    """
    rng = np.random.default_rng(seed)
    a, b, noise = rng.normal(size=(3, rows))
    kind = rng.choice(["x", "y", "w"], rows)
    if task == "binary":
        answer: Any = rng.random(rows) < 1 / (1 + np.exp(-(2 * a - b + 2 * (kind == "x"))))
    elif task == "regression":
        answer = 10 + 3 * a + b + 2 * (kind == "x") + 0.5 * rng.normal(size=rows)
    else:
        answer = np.where(a > 1, "z", kind)
    return pa.table(
        {
            "a": a,
            "b": pa.array(b, mask=rng.random(rows) < 0.1),
            "kind": kind,
            "noise": noise,
            "y": pa.array(answer, mask=rng.random(rows) < 0.02),
        }
    )


def config_of(task: str = "binary", **train: Any) -> Config:
    settings = {
        "epochs": 5,
        "batch_size": 16,
        "learning_rate": 0.005,
        "shuffle_rows": 700,
        "stopping": {"patience": 9},
        "max_failures": 0,
    } | train
    return Config(
        problem=Problem(name="planted", task=task, target="y"),
        data=Data(source=ParquetSource(path="unused"), split=RandomSplit()),
        model=Mlp(hidden=(16,)),
        train=Train(**settings),
        tune=Tune(space={"train.learning_rate": Choice(values=(0.01,))}),
    )


def trained(config: Config, *, snapshot: Snapshot, shuffle_labels: bool = False, **_: Any) -> TrainedModel:
    """`pipeline.train` in this process, as one worker."""
    from raymlp.train.trainer import bundle_of
    from raymlp.train.worker import outcome_alone

    facts: dict[str, Any] = {"config_yaml": to_yaml(config), "seed": config.train.seed, "snapshot": snapshot.digest}
    with tracked("planted", "train", **facts, registry=config.registry, runtime=config.runtime) as run:
        job, outcome = outcome_alone(config, snapshot.path, lambda _: None, shuffle_labels=shuffle_labels)
        bundle, metrics = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), run.id)
        place = Path(config.runtime.storage) / "runs" / run.id / "bundle"
        place.parent.mkdir(parents=True)
        return TrainedModel(save_bundle(bundle, place), metrics, run.id)
