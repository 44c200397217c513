"""What a space draws, in which branch, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raymlp.config.loader import with_overrides
from raymlp.config.tune import Choice, Integer, LogUniform, Tune, Uniform, holds
from raymlp.core.errors import ConfigError
from raymlp.tune.checks import at_a_time, check
from raymlp.tune.space import contexts, fits, grid, is_active, overrides_of, sampled, spread, trial_config
from tests.tune.studies import tuned

BRANCHES: dict[str, Any] = {
    "train.gradient_clip": Uniform(low=0.5, high=1.0, when={"train.loss.kind": "focal", "train.resample": ("none", "oversample")}),
    "train.resample": Choice(values=("none", "oversample", "undersample"), when={"train.loss.kind": "focal"}),
    "train.loss.kind": Choice(values=("cross_entropy", "focal")),
    "train.loss.gamma": Uniform(low=0.0, high=4.0, grid=3, when={"train.loss.kind": "focal"}),
}


@given(seed=st.integers(0, 10_000))
@settings(max_examples=50)
def test_a_draw_has_the_keys_whose_conditions_hold_and_values_of_their_domains(seed: int) -> None:
    space = {**BRANCHES, "train.batch_size": Integer(low=3, high=700, log=True), "train.learning_rate": LogUniform(low=1e-4, high=1e-1)}
    draw = sampled(space, np.random.default_rng(seed))
    assert {key for key in space if is_active(space[key], draw)} == set(draw)
    assert all(holds(space[key], value) for key, value in draw.items())
    assert ("train.loss.gamma" in draw) == (draw["train.loss.kind"] == "focal")
    assert fits(space, draw)
    assert not fits(space, {**draw, "train.epochs": 1})


def test_a_given_value_leaves_the_other_draws_as_they_were() -> None:
    free, held = (
        sampled(BRANCHES, np.random.default_rng(3), given) for given in (None, {"train.loss.gamma": 1.0, "train.loss.kind": "focal"})
    )
    assert held["train.loss.gamma"] == 1.0
    assert free["train.loss.kind"] == "focal"
    assert {key: value for key, value in held.items() if key != "train.loss.gamma"} == {
        key: value for key, value in free.items() if key != "train.loss.gamma"
    }


def test_logarithmic_domains_draw_every_order_of_magnitude_as_often() -> None:
    rng = np.random.default_rng(0)
    space: dict[str, Any] = {
        "a": Integer(low=1, high=1_000, log=True),
        "b": LogUniform(low=1.0, high=1_000.0),
        "c": Integer(low=1, high=1_000),
    }
    draws = [sampled(space, rng) for _ in range(2_000)]
    shares = {key: np.mean([draw[key] <= 31 for draw in draws]) for key in space}
    assert shares == {"a": pytest.approx(0.54, abs=0.04), "b": pytest.approx(0.5, abs=0.04), "c": pytest.approx(0.031, abs=0.02)}


def test_a_grid_has_every_combination_of_every_branch_once() -> None:
    space: dict[str, Any] = {key: BRANCHES[key] for key in ("train.loss.kind", "train.loss.gamma")}
    assert list(grid(space)) == [
        {"train.loss.kind": "cross_entropy"},
        *({"train.loss.kind": "focal", "train.loss.gamma": value} for value in (0.0, 2.0, 4.0)),
    ]
    assert spread(LogUniform(low=1e-4, high=1.0, grid=3)) == [1e-4, pytest.approx(1e-2), 1.0]
    assert spread(Integer(low=1, high=4, grid=9)) == [1, 2, 3, 4]
    assert [len(branch) for branch in contexts(BRANCHES)] == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"train.learning_rat": Uniform(low=0.1, high=0.2)}, r"train.learning_rat is not a setting.*Did you mean 'train.learning_rate'"),
        ({"model.dropout": Uniform(low=0.1, high=1.5)}, r"model.dropout"),
        ({"train.precision": Choice(values=("32", "64"))}, r"train.precision"),
        ({key: BRANCHES[key] for key in ("train.loss.kind",)} | {"train.loss.gamma": Uniform(low=0, high=1)}, r"gamma.*kind=cross_entropy"),
        (BRANCHES | {"train.loss.gamma": Uniform(low=0, high=40, when={"train.loss.kind": "focal"})}, r"gamma is 40.*kind=focal"),
        ({"train.strategy.kind": Choice(values=("ddp", "pipeline"))}, r"train.strategy.kind.*kind=pipeline"),
        ({"features.columns.a.scaling": Choice(values=("robust", "rubust"))}, r"features.columns.a.scaling.*'robust'"),
    ],
)
def test_a_wrong_key_bound_or_branch_is_refused_before_any_trial(space: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(tuned(space))


def test_a_space_with_conditions_passes_where_every_branch_builds() -> None:
    check(tuned(BRANCHES | {"features.columns.a.scaling": Choice(values=("robust", "standard"))}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"space": {"a": Uniform(low=0, high=1, when={"b": 1})}}, "b is not in the space"),
        ({"space": {"a": Uniform(low=0, high=1, when={"b": 1}), "b": Uniform(low=0, high=1)}}, "b is uniform; expected a choice"),
        ({"space": {"a": Uniform(low=0, high=1, when={"b": 3}), "b": Choice(values=(1, 2))}}, r"b is 3, which b never is; expected .*1, 2"),
        ({"space": {"a": Choice(values=(1, 2), when={"b": 1}), "b": Choice(values=(1, 2), when={"a": 1})}}, "expected no circle"),
        ({"space": {"a": Uniform(low=0, high=1)}, "points": ({"a": 2.0},)}, "points.0 has a=2.0"),
        ({"space": {"a": Uniform(low=0, high=1)}, "points": ({"b": 2.0},)}, "points.0 has b, which is not in the space"),
        ({"space": {"a": {"kind": "integer", "low": 0, "high": 9, "log": True}}}, "expected 1 or more"),
        ({"space": {"a": Uniform(low=0, high=1)}, "searcher": {"kind": "pbt"}}, "expected in the space one of"),
        ({"searcher": {"kind": "grid"}, "warm_start": ("x",)}, "grid, which tries everything"),
        ({"auto": True, "points": ({"a": 1},)}, "points.0 has a"),
        ({"study": "../x"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_to_change(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Tune(**settings)


def test_objectives_grid_and_optuna_are_checked_before_any_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"train.batch_size": Choice(values=(1, 2, 3))}
    with pytest.raises(ConfigError, match=r"tune.objectives has 'acuracy'.*Did you mean 'accuracy'"):
        check(tuned(space, objectives=("acuracy",)))
    with pytest.raises(ConfigError, match="num_samples is 2, and the grid has more points"):
        check(tuned(space, searcher={"kind": "grid"}, num_samples=2))
    check(tuned(space, searcher={"kind": "grid"}, num_samples=3, objectives=("auc", "latency_ms")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'raymlp\[tune\]'"):
        check(tuned(space, searcher={"kind": "tpe"}))


def test_the_arithmetic_of_trials_and_workers_is_said_and_refused_when_it_can_never_run() -> None:
    config = tuned({"train.batch_size": Choice(values=(1,))}, max_concurrent=3)
    assert at_a_time(config, {"CPU": 4.0}) == (3, "3 trials x 1 CPUs = 3 of 4")
    wide = with_overrides(config, {"train.num_workers": 2, "train.cpus_per_worker": 1.5, "tune.workers": "as_train"})
    assert at_a_time(wide, {"CPU": 8.0}) == (2, "3 trials x 2 workers x 1.5 CPUs = 9 of 8, so 2 at a time")
    with pytest.raises(
        ConfigError, match=r"a trial needs 2 workers x 1.5 CPUs = 3, and Ray offers 2; expected no more. Set tune.workers=one"
    ):
        at_a_time(wide, {"CPU": 2.0})


def test_overrides_compose_to_the_config_of_the_trial() -> None:
    draw = {"train.learning_rate": 0.0021, "model.hidden": [256, 128], "train.precision": "32", "features.missing_indicators": False}
    assert overrides_of(draw) == [
        "train.learning_rate=0.0021",
        "model.hidden=[256,128]",
        "train.precision='32'",
        "features.missing_indicators=false",
    ]
    config = trial_config(tuned({"train.learning_rate": Choice(values=(1.0,))}), draw)
    assert (config.model.hidden, config.train.learning_rate, config.train.epochs) == ((256, 128), 0.0021, 6)
    assert config.features.missing_indicators is False
    many = with_overrides(config, {"train.num_workers": 2})
    assert trial_config(many, draw).train.num_workers == 1
    assert trial_config(with_overrides(many, {"tune.workers": "as_train"}), draw).train.num_workers == 2


def test_what_a_trial_in_one_process_cannot_have_is_refused_before_any() -> None:
    """Trials of one process are on the CPU, whatever `train` says: half precision is not for them, and no strategy divides anything."""
    base = with_overrides(
        tuned({}), {"train.gpu": True, "train.num_workers": 2, "train.precision": "16", "train.strategy.kind": "deepspeed"}
    )
    one = trial_config(base, {}).train
    assert (one.gpu, one.num_workers, one.precision, one.strategy.kind) == (False, 1, "32", "ddp")
    wide = trial_config(with_overrides(base, {"tune.workers": "as_train"}), {}).train
    assert (wide.gpu, wide.num_workers, wide.precision, wide.strategy.kind) == (True, 2, "16", "deepspeed")
    space = {"train.precision": {"kind": "choice", "values": ["bf16", "16"]}}
    with pytest.raises(ConfigError, match=r"tune.space: .*precision=16 needs gpu=true"):
        check(with_overrides(base, {"tune.space": space}))
    check(with_overrides(base, {"tune.space": space, "tune.workers": "as_train"}))


def test_another_kind_takes_the_settings_of_the_old_one_away() -> None:
    focal = with_overrides(tuned({}), {"train.loss.gamma": 1.0, "train.loss.kind": "focal"})
    assert (focal.train.loss.kind, focal.train.loss.gamma) == ("focal", 1.0)  # type: ignore[union-attr]
    assert with_overrides(focal, {"train.loss.kind": "focal"}).train.loss == focal.train.loss
    assert with_overrides(focal, {"train.loss.kind": "cross_entropy"}).train.loss.kind == "cross_entropy"
