"""XGBoost and LightGBM behind one protocol: a round of boosting at a time, on one worker's share of the rows.

The libraries' own networks (Ray Train sets them up) put the workers' histograms together, so all workers hold the same trees.
Legend: N rows of the worker, F features, O outputs, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raymlp.config.trees import LightGBM, Trees, XGBoost
from raymlp.core.records import Task
from raymlp.features.ids import Buckets
from raymlp.features.plan import FeaturePlan
from raymlp.model.trees import OBJECTIVES

Floats = NDArray[np.float32]
Outputs = NDArray[np.float64]
Split = Literal["train", "valid"]


@dataclass(frozen=True)
class Rows:
    """Rows in memory: `x` float32 (N, F), `y` float32 (N,) and their weights float32 (N,)."""

    x: Floats
    y: Floats
    weights: Floats


class Booster(Protocol):
    """Trees in the making."""

    rounds: int
    """Rounds so far."""

    def update(self) -> None:
        """Add a round."""

    def outputs(self, split: Split) -> Outputs:
        """Of this worker's training or validation rows, (N, O): logits, or the standardised value."""

    def text(self, rounds: int) -> str:
        """The first rounds as the library writes them."""


def booster(
    model: Trees, plan: FeaturePlan, train: Rows, valid: Rows, *, seed: int, threads: int, network: dict[str, Any], resume: str
) -> Booster:
    """New trees, or those of a checkpoint. `network` is what LightGBM needs to find the other workers."""
    make = _XGBoost if isinstance(model, XGBoost) else _LightGBM
    return make(model, plan, train, valid, seed=seed, threads=threads, network=network, resume=resume)  # type: ignore[arg-type]


def is_category(plan: FeaturePlan, limit: int) -> list[bool]:
    """For each feature (F,) whether it is a category to the trees. The bin of a number has an order and is none."""
    return [False] * plan.num_numeric + [not isinstance(step, Buckets) and step.size <= limit for step in plan.categories]


class _XGBoost:
    def __init__(
        self, model: XGBoost, plan: FeaturePlan, train: Rows, valid: Rows, *, seed: int, threads: int, network: dict[str, Any], resume: str
    ) -> None:
        import xgboost

        task = plan.target.task
        types = ["c" if category else "q" for category in is_category(plan, model.max_categories)]
        shared = {"feature_types": types, "enable_categorical": True, "nthread": threads, "max_bin": model.max_bins}
        self._train = xgboost.QuantileDMatrix(train.x, train.y, weight=train.weights, **shared)
        self._valid = xgboost.QuantileDMatrix(valid.x, valid.y, weight=valid.weights, ref=self._train, **shared)
        settings = {
            "objective": OBJECTIVES["xgboost"][task],
            "tree_method": "hist",
            "learning_rate": model.learning_rate,
            "max_depth": model.max_depth,
            "min_child_weight": model.min_child_weight,
            "subsample": model.subsample,
            "colsample_bytree": model.feature_share,
            "reg_alpha": model.l1,
            "reg_lambda": model.l2,
            "gamma": model.min_gain,
            "max_bin": model.max_bins,
            "nthread": threads,
            "seed": seed,
            "seed_per_iteration": True,
            "verbosity": 0,
        } | ({"num_class": plan.target.outputs} if task == "multiclass" else {})
        self._booster = xgboost.Booster(settings, [self._train, self._valid])
        if resume:
            self._booster.load_model(bytearray(resume.encode()))
            self._booster.set_param(settings)
        self.rounds = self._booster.num_boosted_rounds() if resume else 0
        self._every = model.rounds_per_epoch

    def update(self) -> None:
        if self.rounds % self._every == 0:
            self._booster.load_config(self._booster.save_config())  # its draws begin anew, so a resumed run draws the same
        self._booster.update(self._train, self.rounds)
        self.rounds += 1

    def outputs(self, split: Split) -> Outputs:
        return _columns(self._booster.predict(self._train if split == "train" else self._valid, output_margin=True))

    def text(self, rounds: int) -> str:
        return bytes(self._booster[:rounds].save_raw("json")).decode()


class _LightGBM:
    def __init__(
        self, model: LightGBM, plan: FeaturePlan, train: Rows, valid: Rows, *, seed: int, threads: int, network: dict[str, Any], resume: str
    ) -> None:
        import lightgbm

        task = plan.target.task
        categories = [place for place, category in enumerate(is_category(plan, model.max_categories)) if category]
        self._settings = {
            "objective": OBJECTIVES["lightgbm"][task],
            "metric": "none",
            "num_class": plan.target.outputs if task == "multiclass" else 1,
            "learning_rate": model.learning_rate,
            "num_leaves": model.num_leaves,
            "max_depth": model.max_depth or -1,
            "min_data_in_leaf": model.min_leaf_rows,
            "bagging_fraction": model.subsample,
            "bagging_freq": int(model.subsample < 1),
            "feature_fraction": model.feature_share,
            "lambda_l1": model.l1,
            "lambda_l2": model.l2,
            "min_gain_to_split": model.min_gain,
            "max_bin": model.max_bins,
            "num_threads": threads,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        } | network
        train_set = lightgbm.Dataset(train.x, train.y, weight=train.weights, categorical_feature=categories, params=self._settings)
        self._valid_set = train_set.create_valid(valid.x, valid.y, weight=valid.weights)
        self._train_set, self._task = train_set, task
        self._resume = lightgbm.Booster(model_str=resume) if resume else None
        self._booster: Any = None
        self.rounds = self._resume.current_iteration() if self._resume else 0
        self._seed, self._share, self._every = seed, model.subsample, model.rounds_per_epoch

    def update(self) -> None:
        if self._booster is None:
            import lightgbm

            self._booster = lightgbm.train(
                self._settings | self._draws(),
                self._train_set,
                1,
                valid_sets=[self._valid_set],
                init_model=self._resume,
                keep_training_booster=True,
            )
        else:
            if self.rounds % self._every == 0:
                self._booster.reset_parameter(self._draws())
            self._booster.update()
        self.rounds += 1

    def _draws(self) -> dict[str, Any]:
        """Seeds of an epoch, from the seed and the epoch alone, so a resumed run draws the same rows and features. LightGBM takes a new
        seed for rows only with a new share, which therefore goes up and down by a billionth."""
        epoch = self.rounds // self._every
        rows, features = (int(drawn) >> 1 for drawn in np.random.SeedSequence([self._seed, epoch]).generate_state(2))
        return {"bagging_seed": rows, "feature_fraction_seed": features, "bagging_fraction": self._share * (1 - 1e-9 * (epoch % 2))}

    def outputs(self, split: Split) -> Outputs:
        found: list[Outputs] = []

        def hear(answers: Any, _: Any) -> tuple[str, float, bool]:
            found.append(_columns(answers))
            return "heard", 0.0, True

        (self._booster.eval_train if split == "train" else self._booster.eval_valid)(hear)
        return _logits(self._task, found[0])

    def text(self, rounds: int) -> str:
        said: str = self._booster.model_to_string(num_iteration=rounds)
        return said


def _columns(values: NDArray[Any]) -> Outputs:
    return values.astype(np.float64).reshape(len(values), -1)


def _logits(task: Task, answers: Outputs) -> Outputs:
    """What LightGBM took its answers from: it tells probabilities."""
    if task == "regression":
        return answers
    answers = np.clip(answers, 1e-15, 1 - 1e-15)
    return np.log(answers) if task == "multiclass" else np.log(answers) - np.log1p(-answers)
