"""raymlp: from raw table to a served, canaried, monitored model that retrains itself, on Ray.

    import raymlp

    cfg = raymlp.load_config("flights", ["train.epochs=3"])
    model = raymlp.train(cfg)
    raymlp.load_predictor(model.bundle).predict([{...}]).rows()

Importing this package does nothing; each name loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymlp.config.loader import load_config
    from raymlp.config.schema import Config
    from raymlp.features.custom import CustomStep
    from raymlp.jobs.submission import submit
    from raymlp.life import run
    from raymlp.pipeline import (
        config_of,
        crossvalidate,
        deploy,
        evaluate,
        find,
        forget,
        load_predictor,
        monitor,
        plan,
        predict,
        prepare,
        profile,
        register,
        reproduce,
        retrain,
        rollout,
        trace,
        train,
        tune,
        undeploy,
    )
    from raymlp.runtime.session import ray_session

__version__ = "0.1.0"

_HOMES = {
    "Config": "raymlp.config.schema",
    "CustomStep": "raymlp.features.custom",
    "load_config": "raymlp.config.loader",
    "ray_session": "raymlp.runtime.session",
    "run": "raymlp.life",
    "submit": "raymlp.jobs.submission",
    **dict.fromkeys(
        (
            "config_of",
            "crossvalidate",
            "deploy",
            "evaluate",
            "find",
            "forget",
            "load_predictor",
            "monitor",
            "plan",
            "predict",
            "prepare",
            "profile",
            "register",
            "reproduce",
            "retrain",
            "rollout",
            "trace",
            "train",
            "tune",
            "undeploy",
        ),
        "raymlp.pipeline",
    ),
}

__all__ = [
    "Config",
    "CustomStep",
    "config_of",
    "crossvalidate",
    "deploy",
    "evaluate",
    "find",
    "forget",
    "load_config",
    "load_predictor",
    "monitor",
    "plan",
    "predict",
    "prepare",
    "profile",
    "ray_session",
    "register",
    "reproduce",
    "retrain",
    "rollout",
    "run",
    "submit",
    "trace",
    "train",
    "tune",
    "undeploy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raymlp' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Sdk(ModuleType):
    """`raymlp.train` is the function, also after `raymlp.train.trainer` was imported: the import system's habit of
    setting a submodule as an attribute of its package is declined for the names of the SDK."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Sdk
