"""Small real bundles for the endpoint's tests."""

from __future__ import annotations

import io
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from raymlp.config.data import Data
from raymlp.config.features import Features
from raymlp.config.model import Mlp, Model
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.serve import Log, Serve
from raymlp.config.sources import CsvSource
from raymlp.config.split import RandomSplit
from raymlp.config.tune import LogUniform, Tune
from raymlp.core.files import Somewhere
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net, number_edges
from raymlp.model.scorer import NetScorer

NUM_ROWS = 500


def png(shade: int) -> bytes:
    """A small image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (12, 9), (shade, 0, 255 - shade)).save(out, "PNG")
    return out.getvalue()


SHOTS = [png(shade) for shade in range(0, 250, 25)]


def source_table() -> pa.Table:
    """Rows with every column type, nulls in `hours`."""
    rng = np.random.default_rng(0)
    start = datetime(2013, 1, 1, tzinfo=UTC)
    return pa.table(
        {
            "delay": rng.normal(size=NUM_ROWS),
            "hours": pa.array(rng.integers(0, 50, NUM_ROWS), mask=rng.random(NUM_ROWS) < 0.1),
            "carrier": rng.choice(["x", "y", "z"], NUM_ROWS),
            "note": pa.array(rng.choice(["late again", "on time", "Crew missing!"], NUM_ROWS), mask=rng.random(NUM_ROWS) < 0.1),
            "shot": pa.array([SHOTS[i % 10] if i % 7 else None for i in range(NUM_ROWS)], pa.binary()),
            "held": rng.random(NUM_ROWS) < 0.5,
            "at": pa.array([start + timedelta(hours=int(h)) for h in rng.integers(0, 9000, NUM_ROWS)], pa.timestamp("us", tz="UTC")),
            "late": rng.choice(["no", "yes"], NUM_ROWS),
        }
    )


def make_bundle(folder: Somewhere, *, seed: int, model: Model | None = None) -> Somewhere:
    """An untrained binary net, a perceptron if none is named; another seed is another model."""
    table = source_table()
    profile = Profile().update(table)
    problem = Problem(name="flights", task="binary", target="late")
    features = Features(dates={"at": ("weekday", "hour")}, text=("note",), text_encoding="ngrams", image="shot", image_size=(8, 8))
    plan = FeaturePlan.fit(features, problem, profile)
    model = model or Mlp()
    shape = NetShape.of(model, plan, number_edges(model, plan, profile))
    torch.manual_seed(seed)
    scorer = NetScorer(shape, build_net(shape).state_dict())
    contract = Contract.infer(profile).only(plan.inputs).with_images(("shot",), 10_000)
    calibration = Calibration(task="binary")
    bundle = Bundle("flights", f"run{seed}", scorer, plan, contract, calibration, profile, Profile(), {"auc": 0.5}, "", "s")
    return save_bundle(bundle, folder)


def json_rows(num: int) -> list[dict[str, Any]]:
    """The first rows as a client would send them."""
    rows = source_table().slice(0, num).drop(["late"]).to_pylist()
    return [{**row, "at": row["at"].isoformat(), "shot": row["shot"] and b64encode(row["shot"]).decode()} for row in rows]


def replica_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a replica of `flights` is built with, as `application_of` makes it; its files are in `folder`."""
    plain: dict[str, Any] = {
        "name": "flights", "max_rows": 9, "needs_key": False, "keys": [], "keys_file": None, "log_folder": folder / "log",
        "log": Log().model_dump(), "label_folder": folder / "labels", "label_rule": None, "access": {}, "max_replicas": 1,
        "fallback": None, "protocols": [], "shadow_folder": folder / "shadows",
    }  # fmt: skip
    return {**plain, **changes}


def make_config(runtime: Runtime, /, **serve: Any) -> Config:
    """A config whose endpoint is called `flights`."""
    return Config(
        problem=Problem(name="flights", task="binary", target="late"),
        data=Data(source=CsvSource(path="unused.csv"), split=RandomSplit()),
        tune=Tune(space={"train.learning_rate": LogUniform(low=1e-4, high=1e-2)}),
        serve=Serve(**serve),
        runtime=runtime,
    )
