"""The answer when no version can: the same for every row, declared before, and marked as what it is.

It is fixed when the endpoint is deployed, from the champion's bundle, and travels with the application, so that it is there when the
bundle is not.
"""

from __future__ import annotations

import json
from typing import Any, Self

import numpy as np

from raymlp.config.fallback import Constant, Rule
from raymlp.core.errors import ServingError
from raymlp.core.records import Task
from raymlp.data.contract import Contract
from raymlp.data.contract_row import row_checker
from raymlp.data.privacy import routing_key_hider
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import local, verify
from raymlp.model.predictor import Prediction

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


class Fallback:
    """`scores`: the probability of the positive class or the value alone, or one for each class."""

    def __init__(self, task: Task, classes: tuple[str, ...], scores: tuple[float, ...], contract: Contract) -> None:
        """Raises ConfigError when the contract's privacy rules need a key that is not there."""
        self.task, self.classes, self.scores, self.contract = task, classes, scores, contract
        self.key = contract.key()
        self.check = row_checker(contract, key=self.key)
        self.hide_routing_key = routing_key_hider(self.key)

    def answer(self, rows: int) -> Prediction:
        """The answer for a number of rows."""
        scores = np.array(self.scores)
        return Prediction(self.task, self.classes, np.tile(scores, (rows, 1)) if len(scores) > 1 else np.full(rows, scores[0]))

    def facts(self) -> dict[str, Any]:
        """What `read` makes it of again."""
        return {"task": self.task, "classes": self.classes, "scores": self.scores, "contract": self.contract.to_yaml()}

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Self:
        contract = Contract.from_yaml(facts["contract"], source="the fallback's contract")
        return cls(facts["task"], tuple(facts["classes"]), tuple(facts["scores"]), contract)

    @classmethod
    def of(cls, settings: Rule | Constant, bundle: str) -> Self:
        """The declared fallback for the problem of a bundle. Raises ServingError when it has none of that kind, BundleError when the
        bundle is not whole."""
        folder = local(bundle)
        verify(folder)
        target = FeaturePlan.from_json((folder / "plan.json").read_text()).target
        profile = Profile.from_dict(json.loads((folder / "profile.json").read_text())["columns"])
        contract = Contract.from_yaml((folder / "contract.yaml").read_text(), source=str(folder / "contract.yaml"))
        scores = _rule(target, profile) if isinstance(settings, Rule) else _constant(target, settings.value)
        return cls(target.task, target.classes, scores, contract)


def _rule(target: Target, profile: Profile) -> tuple[float, ...]:
    if target.task not in TASKS or target.column is None:
        raise ServingError(f"serve.fallback is rule for task={target.task}, which has no rule; expected null. Set serve.fallback=null.")
    if target.task == "regression":
        return (target.mean,)
    shares = target.class_shares(profile.columns[target.column])
    return shares if target.task == "multiclass" else shares[1:]


def _constant(target: Target, value: float) -> tuple[float, ...]:
    if target.task not in ("binary", "regression"):
        raise ServingError(
            f"serve.fallback is constant for task={target.task}; expected a task of one number. Set serve.fallback.kind=rule."
        )
    if target.task == "binary" and not 0 <= value <= 1:
        raise ServingError(f"serve.fallback.value is {value:g}; expected a probability from 0 to 1. Set serve.fallback.value.")
    return (value,)
