"""The whole platform, one function a job, each a straight line of calls to the stages.

Every function takes a Config, returns a small frozen record, and raises RaymlpError. `story` shows the steps to a person.
The life of an endpoint over time (`run`) is told in `life.py`.
"""

from __future__ import annotations

from raymlp.pipeline.data import check_contract, infer_contract, plan, prepare, profile
from raymlp.pipeline.driver import label_folder
from raymlp.pipeline.driver_actor import start_driver, stop_driver
from raymlp.pipeline.models import as_version, config_of, evaluate, load_predictor, predict, register, require, resolve, store_of
from raymlp.pipeline.rollouts import RolloutStatus, order_rollout, rollout, rollout_outlook, rollout_status
from raymlp.pipeline.serving import deploy, labels, prediction_log, undeploy
from raymlp.pipeline.training import crossvalidate, find, reproduce, trace, train, tune, with_teacher
from raymlp.pipeline.upkeep import forget, monitor, newest_moment, retrain, with_newer_data

__all__ = [
    "RolloutStatus",
    "as_version",
    "check_contract",
    "config_of",
    "crossvalidate",
    "deploy",
    "evaluate",
    "find",
    "forget",
    "infer_contract",
    "label_folder",
    "labels",
    "load_predictor",
    "monitor",
    "newest_moment",
    "order_rollout",
    "plan",
    "predict",
    "prediction_log",
    "prepare",
    "profile",
    "register",
    "reproduce",
    "require",
    "resolve",
    "retrain",
    "rollout",
    "rollout_outlook",
    "rollout_status",
    "start_driver",
    "stop_driver",
    "store_of",
    "trace",
    "train",
    "tune",
    "undeploy",
    "with_newer_data",
    "with_teacher",
]
