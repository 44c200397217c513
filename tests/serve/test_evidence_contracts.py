"""Quality is compared on the same rows, also on those that one version's contract refuses or does not know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raymlp.config.features import Features
from raymlp.config.model import Mlp
from raymlp.config.problem import Problem
from raymlp.config.rollout import Rollout
from raymlp.core.metrics import losses
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, load_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net, number_edges
from raymlp.model.predictor import Predictor
from raymlp.model.scorer import NetScorer
from raymlp.serve.evidence import Versions, gather
from raymlp.serve.rollout.facts import Paired
from tests.serve.bundles import make_bundle
from tests.serve.test_evidence import Writer, routes

XS = [0.1, None, 0.9, 0.4, None, 0.7] * 10
"""What is asked; an endless supply of what a training window without nulls would refuse."""


def bundle(*names: str, seed: int) -> Bundle:
    """An untrained net on numbers, none of them null in its training."""
    rng = np.random.default_rng(0)
    table = pa.table({**{name: rng.random(200) for name in names}, "y": rng.choice(["no", "yes"], 200)})
    profile = Profile().update(table)
    plan = FeaturePlan.fit(Features(), Problem(name="flights", task="binary", target="y"), profile)
    shape = NetShape.of(Mlp(), plan, number_edges(Mlp(), plan, profile))
    torch.manual_seed(seed)
    scorer = NetScorer(shape, build_net(shape).state_dict())
    contract = Contract(columns={name: ColumnContract(type="float") for name in names})
    return Bundle("flights", f"run{seed}", scorer, plan, contract, Calibration(task="binary"), profile, Profile(), {}, "", "s")


def labelled(folder: Path) -> tuple[pa.Table, pa.Table]:
    writer, by = Writer(), routes(0.3)
    ids = [writer.send(f"k{i}", by) for i in range(len(XS))]
    writer.entries = [entry._replace(inputs={"x": x}) for entry, x in zip(writer.entries, XS, strict=True)]
    return writer.table(folder), pa.table({"prediction_id": ids, "label": ["no", "yes"] * (len(ids) // 2)})


def expected(old: Predictor, new: Predictor, *, extra: bool = False) -> Paired:
    table = pa.table({"x": pa.array(XS, pa.float64())})
    wide = table.append_column("extra", pa.nulls(len(XS), pa.float64())) if extra else table
    y = np.array([0.0, 1.0] * (len(XS) // 2))
    return Paired.of(losses("binary", y, old.scores(table)), losses("binary", y, new.scores(wide)))


@pytest.mark.parametrize("rule", [{"nullable": False}, {"maximum": 0.6}, {"minimum": 0.3, "nullable": False}])
def test_rows_that_the_challengers_contract_refuses_are_scored_by_both(tmp_path: Path, rule: dict[str, object]) -> None:
    made = bundle("x", seed=2)
    strict = Contract(columns={"x": ColumnContract.model_validate({"type": "float", **rule})})
    old, new = Predictor(bundle("x", seed=1)), Predictor(replace(made, contract=strict))
    log, labels = labelled(tmp_path)
    found = gather(log, labels, Versions("v1", "v2", old, new), "s", Rollout()).loss
    assert found == expected(old, new)
    assert found.rows == len(XS)


def test_a_column_that_only_the_challenger_knows_is_null_in_what_the_champion_was_asked(tmp_path: Path) -> None:
    old, new = Predictor(bundle("x", seed=1)), Predictor(bundle("x", "extra", seed=2))
    log, labels = labelled(tmp_path)
    assert gather(log, labels, Versions("v1", "v2", old, new), "s", Rollout()).loss == expected(old, new, extra=True)


def test_images_are_not_logged_so_their_quality_is_unknown(tmp_path: Path) -> None:
    pictures = Predictor(load_bundle(make_bundle(tmp_path / "bundle", seed=1)))
    log, labels = labelled(tmp_path / "log")
    found = gather(log, labels, Versions("v1", "v2", pictures, pictures), "s", Rollout())
    assert (found.loss, found.ranking) == (Paired(), Paired())
    assert found.requests == len(XS)
