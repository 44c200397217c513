"""Strategies side by side: two Ray Train workers run one after the other through all of them, on the same rows."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from raymlp.config.runtime import Runtime
from raymlp.core.records import Snapshot
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.train.feed import local_blocks
from raymlp.train.job import Job
from tests.train.planted import config_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs raymlp[deepspeed]"),
]
Snapshots = Callable[[str], Snapshot]
ZERO1, ZERO2, ZERO3 = ({"kind": "deepspeed", "stage": stage} for stage in (1, 2, 3))
FSDP = {"kind": "fsdp"}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": FSDP},
    "zero1": {"strategy": ZERO1},
    "zero2": {"strategy": ZERO2},
    "zero3": {"strategy": ZERO3},
    "ddp bf16": {"precision": "bf16"},
    "fsdp bf16": {"precision": "bf16", "strategy": FSDP},
    "zero1 bf16": {"precision": "bf16", "strategy": ZERO1},
    "ddp ema": {"average": {"kind": "ema", "decay": 0.9}},
    "fsdp ema": {"average": {"kind": "ema", "decay": 0.9}, "strategy": FSDP},
    "ddp value": {"gradient_clip": 0.01, "gradient_clip_by": "value", "accumulate": 3},
    "fsdp value": {"gradient_clip": 0.01, "gradient_clip_by": "value", "accumulate": 3, "strategy": FSDP},
    "ddp accumulate": {"accumulate": 3, "gradient_clip": 0.1},
    "fsdp accumulate": {"accumulate": 3, "gradient_clip": 0.1, "strategy": FSDP},
    "zero2 accumulate": {"accumulate": 3, "gradient_clip": 0.1, "strategy": ZERO2},
}


@pytest.fixture(scope="module")
def runs(ray_runtime: Runtime, snapshots: Snapshots, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By name: the losses of each epoch, the weights, and the weights once more, from the checkpoint after the first epoch on."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    snapshot = snapshots("binary")
    folder = tmp_path_factory.mktemp("strategies")
    wanted = os.environ.get("RUNS", "").split(",")
    configs = {name: config_of(epochs=3, **settings) for name, settings in RUNS.items() if wanted == [""] or name in wanted}
    plan = FeaturePlan.fit(configs["ddp"].features, configs["ddp"].problem, load_profile(snapshot.path))
    blocks = {split: list(local_blocks(snapshot.path, plan, split)) for split in ("train", "valid")}
    rows = {split: sum(map(len, parts)) for split, parts in blocks.items()}
    jobs = {name: Job(config, plan, rows) for name, config in configs.items()}

    def worker(settings: dict[str, Any]) -> Any:
        import ray.train
        from ray.train.torch import get_device

        from raymlp.train.feed import clipped
        from raymlp.train.loop import Seat, fit, quiet
        from raymlp.train.strategy import strategy_of
        from raymlp.train.worker import _gather

        quiet(False)
        rank = ray.train.get_context().get_world_rank()
        results = {}
        for name, job in settings["jobs"].items():

            def source(split: str, start: int, stop: int) -> Any:
                return lambda _: clipped(iter(blocks[split]), start, stop)

            size = job.train_rows(2)
            train, valid = source("train", rank * size, (rank + 1) * size), source("valid", *job.valid_range(rank, 2))

            def run(job: Job, report: Any, resume: Path | None = None, train: Any = train, valid: Any = valid) -> Any:
                seat = Seat(strategy_of(job.config.train, world_size=2, device=get_device()), rank, 2, _gather)
                return fit(job, train, valid, seat=seat, report=report, resume=resume)

            def save_first(metrics: dict[str, float], save: Any, place: Path = folder / name) -> None:
                if metrics["epoch"] == 0:
                    place.mkdir(exist_ok=True)
                    save(place)

            print("RUN", name, flush=True)
            first = run(job, save_first)
            ray.train.collective.barrier()
            again = run(job, lambda *_: None, resume=folder / name)
            plain = [{key: value.numpy() for key, value in outcome.weights.items()} for outcome in (first, again)]
            results[name] = {
                "losses": [(epoch["train_loss"], epoch["valid_loss"]) for epoch in first.progress.history],
                "outputs": first.outputs,
                "weights": plain[0],
                "again": plain[1],
            }
        return results

    trainer = TorchTrainer(
        worker,
        train_loop_config={"jobs": jobs},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="strategies", storage_path=str(folder)),
    )
    results: dict[str, dict[str, Any]] = trainer.fit().return_value
    return results


@pytest.mark.parametrize("name", [name for name in RUNS])
def test_look(name: str, runs: dict[str, dict[str, Any]]) -> None:
    print(name, runs[name]["losses"])
    for key, value in runs[name]["weights"].items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, runs[name]["again"][key], err_msg=key)
