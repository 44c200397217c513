"""Rows without a target, and a bundle that has learned from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.config.unsupervised import IsolationForest, KMeans, Sampled
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle
from raymlp.model.predictor import Predictor
from raymlp.train.blocks import joined, pack, unpack
from raymlp.train.sampled import fitted
from raymlp.train.trainer import prediction_profile


def rows(count: int, seed: int, moved: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    group = (rng.random(count) < 0.5 + moved).astype(int)
    odd = rng.random(count) < 0.1
    return pa.table({"a": group * 6 + rng.normal(size=count), "b": rng.normal(size=count) + odd * 30, "odd": np.where(odd, "yes", "no")})


def bundle_of(task: str) -> Bundle:
    table = rows(2_000, 1)
    label: dict[str, Any] = {"label": "odd", "positive_class": "yes"} if task == "anomaly" else {}
    problem = Problem(name="p", task=task, **label)  # type: ignore[arg-type]
    profile = Profile().update(table)
    plan = FeaturePlan.fit(Features(drop=() if label else ("odd",)), problem, profile)
    model: Sampled = IsolationForest(trees=20) if label else KMeans(clusters=3)
    found = fitted(model, plan, joined(unpack(pack(table, plan), plan)), seed=0)
    contract = Contract.infer(profile).only(plan.inputs)
    bundle = Bundle("p", "r", found.scorer, plan, contract, found.calibration, profile, Profile(), {"auc": 0.97}, "problem: {}\n", "s")
    scores = Predictor(bundle).scores(table)
    return Bundle(**{**vars(bundle), "predictions": prediction_profile(plan.target, scores)})
