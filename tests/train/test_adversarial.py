"""Rows moved against the net: the steps by hand, the bounds for any rows, and a net that withstands them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymlp.config.adversarial import Fgsm, Pgd
from raymlp.config.features import Features
from raymlp.config.loader import with_overrides
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError
from raymlp.core.records import Snapshot
from raymlp.data.profile import Profile
from raymlp.features.image import Picture
from raymlp.features.plan import FeaturePlan
from raymlp.train.adversarial import Attacker
from raymlp.train.batches import Batch
from raymlp.train.trainer import fit_in_process
from tests.train.planted import config_of, planted

Snapshots = Callable[[str], Snapshot]
TABLE = planted(300, 1, "binary")
PLAN = FeaturePlan.fit(Features(min_count=1), Problem(name="p", task="binary", target="y"), Profile().update(TABLE))
PICTURES = PLAN.model_copy(update={"steps": (*PLAN.steps, Picture(column="photo", height=2, width=2, fit="stretch"))})
NAMES = [name for step in PLAN.numbers for name in step.names]


def batch(rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(rows)
    numeric = torch.randn(rows, PLAN.num_numeric, generator=generator)
    image = torch.randint(0, 256, (rows, 3, 2, 2), dtype=torch.uint8, generator=generator)
    return Batch({"numeric": numeric, "categorical": torch.zeros(rows, 1, dtype=torch.int64), "image": image}, torch.ones(rows))


def slope(given: Batch) -> Tensor:
    """A loss that rises with the first number of a row, falls with the last, and rises with every pixel."""
    numeric, image = given.tensors["numeric"], given.tensors["image"]
    return (3 * numeric[:, 0] - 2 * numeric[:, -1]).sum() + image.float().sum()


def test_fgsm_is_one_step_of_epsilon_along_the_sign_of_the_slope() -> None:
    before = batch()
    after = Attacker(Fgsm(epsilon=0.25, image_epsilon=3), PICTURES).moved(before, slope).tensors
    change = after["numeric"] - before.tensors["numeric"]
    signs = np.zeros(PLAN.num_numeric)
    signs[0], signs[-1] = 1, -1
    assert torch.allclose(change, torch.tensor(0.25 * signs, dtype=torch.float32).expand(4, -1), atol=1e-6)
    assert torch.equal(after["image"], (before.tensors["image"].float() + 3).clamp(max=255))
    assert torch.equal(after["categorical"], before.tensors["categorical"])


def test_what_says_that_a_value_was_missing_and_what_nobody_can_change_stays() -> None:
    before = Batch({"numeric": torch.zeros(2, PLAN.num_numeric)}, torch.ones(2))
    after = Attacker(Fgsm(immutable=("noise",)), PLAN).moved(before, lambda given: given.tensors["numeric"].sum()).tensors["numeric"][0]
    assert {name for name, value in zip(NAMES, after, strict=True) if value} == {"a", "b"}
    assert "b_missing" in NAMES


@settings(max_examples=25)
@given(st.integers(1, 6), st.floats(0.01, 2), st.integers(1, 40), st.integers(1, 5), st.floats(0.05, 1))
def test_pgd_stays_within_its_bounds_whatever_the_rows(rows: int, epsilon: float, pixels: int, steps: int, share: float) -> None:
    before = batch(rows)
    attacker = Attacker(Pgd(epsilon=epsilon, image_epsilon=pixels, steps=steps, step_share=share), PICTURES)
    after = attacker.moved(before, lambda given: (given.tensors["numeric"] ** 2).sum() + (given.tensors["image"] ** 2).sum()).tensors
    assert (after["numeric"] - before.tensors["numeric"]).abs().max() <= epsilon * (1 + 1e-5)
    assert (after["image"] - before.tensors["image"].float()).abs().max() <= pixels
    assert after["image"].min() >= 0
    assert after["image"].max() <= 255
    assert torch.equal(after["image"], after["image"].round())


def test_pgd_with_enough_steps_ends_at_the_corner_that_one_step_reaches() -> None:
    before = batch()
    corner = Attacker(Fgsm(epsilon=0.5), PICTURES).moved(before, slope).tensors["numeric"]
    found = Attacker(Pgd(epsilon=0.5, steps=9, step_share=0.25), PICTURES).moved(before, slope).tensors["numeric"]
    assert torch.allclose(found[:, [0, -1]], corner[:, [0, -1]], atol=1e-6)


@pytest.mark.parametrize("attack", [{"kind": "fgsm"}, {"kind": "pgd", "steps": 3}])
def test_a_net_that_learned_from_moved_rows_withstands_them_better(attack: dict[str, Any], snapshots: Snapshots) -> None:
    """`noise` says nothing, so a net that leans on it is misled by it. Weak training (a share of almost 0) is what it is compared with."""
    settings = [{**attack, "epsilon": 0.5, "share": share} for share in (1e-6, 1.0)]
    config = config_of(epochs=8, batch_size=32, stopping={"patience": 9})
    plain, robust = (
        fit_in_process(with_overrides(config, {"train.adversarial": given}), snapshots("binary").path, lambda _: None) for given in settings
    )
    assert robust["robust_accuracy"] > plain["robust_accuracy"] + 0.005
    assert robust["robust_accuracy"] < robust["accuracy"]
    assert plain["accuracy"] > 0.75


def test_the_same_seed_gives_the_same_net_and_regression_tells_its_error(snapshots: Snapshots) -> None:
    config = with_overrides(config_of("regression", epochs=2), {"train.adversarial": {"kind": "pgd", "steps": 2}})
    first, second = (fit_in_process(config, snapshots("regression").path, lambda _: None) for _ in range(2))
    assert first == second
    assert first["robust_rmse"] > first["rmse"]


def test_what_cannot_be_moved_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"immutable names 'nois', which is no input. Did you mean 'noise'"):
        Attacker(Fgsm(immutable=("nois",)), PLAN)
    with pytest.raises(ConfigError, match="has nothing to move"):
        Attacker(Fgsm(immutable=("a", "b", "noise")), PLAN)
    words = {"adversarial does not go with strategy.kind=deepspeed": {"train.strategy": {"kind": "deepspeed"}}}
    words["private does not go with adversarial"] = {"train.private": {"max_epsilon": 1.0}}
    for message, changes in words.items():
        with pytest.raises(ConfigError, match=message):
            with_overrides(config_of(), {"train.adversarial": {"kind": "fgsm"}, **changes})
    with pytest.raises(ConfigError, match="epsilon and image_epsilon are both 0"):
        with_overrides(config_of(), {"train.adversarial": {"kind": "fgsm", "epsilon": 0, "image_epsilon": 0}})
