"""Training on Ray: the same numbers whatever happens to the workers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.train import WorkerGroupError

from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError, DataError, TrainingError
from raymlp.core.metrics import auc
from raymlp.core.records import Snapshot, TrainedModel
from raymlp.data.snapshot import read_split
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import load_bundle
from raymlp.model.predictor import Predictor
from raymlp.model.scorer import NetScorer
from raymlp.train import feed, room, trainer
from raymlp.train.job import Job
from raymlp.train.loop import alone, fit
from raymlp.train.trainer import fit_in_process, train
from tests.train.planted import config_of, planted, write_snapshot

pytestmark = pytest.mark.ray
Snapshots = Callable[[str], Snapshot]
ZERO2, ZERO3 = ({"kind": "deepspeed", "stage": stage} for stage in (2, 3))


def trained(snapshot: Snapshot, folder: Path, *, kill_at: int | None = None, **settings: Any) -> tuple[TrainedModel, list[float]]:
    """Train, killing one worker process for good once the given epoch was heard; the model and the epochs heard."""
    heard: list[float] = []

    def on_epoch(metrics: dict[str, float]) -> None:
        heard.append(metrics["epoch"])
        if metrics["epoch"] == kill_at:
            os.kill(max(workers()), signal.SIGKILL)

    config = config_of(**settings)
    return train(config, snapshot, run_dir=folder, run_id="run", on_epoch=on_epoch), heard


def workers(kind: str = "RayTrainWorker") -> list[int]:
    """Process ids of the actors of Ray Train that this process (not another one's Ray) has started."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid, name in names.items() if name.startswith(f"ray::{kind}") and is_ours(pid)]


def weights_of(model: TrainedModel) -> dict[str, np.ndarray[Any, Any]]:
    scorer = load_bundle(model.bundle).scorer
    assert isinstance(scorer, NetScorer)
    return {name: value.numpy() for name, value in scorer.weights.items()}


def same(first: TrainedModel, second: TrainedModel) -> bool:
    one, two = weights_of(first), weights_of(second)
    return first.metrics == second.metrics and one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def solo(ray_runtime: Runtime, snapshots: Snapshots, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return trained(snapshots("binary"), tmp_path_factory.mktemp("solo"))[0]


@pytest.fixture(scope="module")
def pair(ray_runtime: Runtime, snapshots: Snapshots, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return trained(snapshots("binary"), tmp_path_factory.mktemp("pair"), num_workers=2)[0]


def test_the_planted_signal_is_found_and_the_bundle_is_complete(solo: TrainedModel, snapshots: Snapshots) -> None:
    """The rule that planted the answers has an AUC near .89 on these rows, with what b hides where it is missing."""
    assert 0.85 < solo.metrics["auc"] < 0.90
    bundle = load_bundle(solo.bundle)
    assert bundle.metrics == pytest.approx(solo.metrics)
    assert set(bundle.profile.columns) == {"a", "b", "kind", "noise", "y"}
    assert bundle.profile.rows == 2_000
    assert list(bundle.contract.columns) == bundle.plan.inputs
    assert bundle.snapshot == snapshots("binary").digest
    rows = read_split(snapshots("binary").path, "valid")
    rows = rows.filter(rows.column("y").is_valid())
    scores = Predictor.load(solo.bundle).predict(rows).scores
    assert auc(rows.column("y").to_numpy(zero_copy_only=False), scores) == pytest.approx(solo.metrics["auc"], abs=1e-5)
    predictions = bundle.predictions.columns["prediction"]
    assert (predictions.rows, predictions.mean) == (rows.num_rows, pytest.approx(scores.mean(), abs=1e-5))


def test_one_ray_worker_gives_exactly_what_one_process_gives(solo: TrainedModel, snapshots: Snapshots) -> None:
    assert fit_in_process(config_of(), snapshots("binary").path, lambda _: None) == solo.metrics


def test_two_workers_give_the_same_model_again_though_one_is_killed(pair: TrainedModel, snapshots: Snapshots, tmp_path: Path) -> None:
    model, heard = trained(snapshots("binary"), tmp_path, num_workers=2, kill_at=1, max_failures=1, checkpoint={"every_epochs": 2})
    assert same(model, pair)
    assert heard == [0, 1, 2, 3, 4]
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert epochs.count(0) == 1, "the second start must not begin anew"
    assert len(list((tmp_path / "checkpoints").glob("checkpoint_2*"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs raymlp[deepspeed]")
def test_zero_3_goes_on_after_a_killed_worker(pair: TrainedModel, snapshots: Snapshots, tmp_path: Path) -> None:
    model, heard = trained(snapshots("binary"), tmp_path, num_workers=2, strategy=ZERO3, kill_at=1, max_failures=1)
    assert heard == [0, 1, 2, 3, 4]
    assert model.metrics["valid_loss"] == pytest.approx(pair.metrics["valid_loss"], rel=1e-3)
    assert {name: value.dtype for name, value in weights_of(model).items()} == dict.fromkeys(weights_of(pair), np.float32)


def test_rows_that_do_not_fit_the_object_store_are_streamed_in_the_same_order_every_epoch(
    snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HOLD_SHARE", 0.0)
    model, _ = trained(snapshots("binary"), tmp_path, epochs=3)
    config, path = config_of(epochs=3), snapshots("binary").path
    plan = load_bundle(model.bundle).plan
    splits = {split: list(feed.local_blocks(path, plan, split)) for split in ("train", "valid")}
    job = Job(config, plan, {split: sum(map(len, blocks)) for split, blocks in splits.items()})
    expected = fit(job, lambda _: iter(splits["train"]), lambda _: iter(splits["valid"]), seat=alone(), report=lambda *_: None)
    assert model.metrics == expected.scored("binary")[2]


def test_a_worker_that_fails_is_explained_by_its_root_cause(
    snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another_plan(config: Config, plan: FeaturePlan, *rest: Any) -> Job:
        return Job(config, plan.model_copy(update={"steps": plan.steps[1:]}), *rest)

    monkeypatch.setattr(trainer, "Job", with_another_plan)
    with pytest.raises(TrainingError, match=r"^ValueError: cannot reshape array .*\(worker 0 on node [\d.]+\)") as caught:
        trained(snapshots("binary"), tmp_path)
    assert isinstance(caught.value.__cause__, WorkerGroupError)
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_file_is_explained_by_its_root_cause(ray_runtime: Runtime, tmp_path: Path) -> None:
    table = planted(200, 1, "binary")
    snapshot = write_snapshot(tmp_path / "snapshot", {"train": table, "valid": table})
    next((snapshot.path / "train").glob("*.parquet")).write_text("no Parquet")
    with pytest.raises(TrainingError, match=r"^ArrowInvalid: Parquet"):
        trained(snapshot, tmp_path / "run")


def test_the_first_worker_to_fail_is_named_rather_than_those_that_lost_it() -> None:
    failures = {0: RuntimeError("[gloo] Connection closed by peer"), 1: KeyError("carrier")}
    message = str(trainer.explained(WorkerGroupError("both", failures), Path()))  # type: ignore[arg-type]
    assert message.startswith("KeyError: 'carrier' (worker 1")


def test_more_workers_than_cpus_are_refused_with_the_sum(snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 workers x 2 CPUs = 16 CPUs; the cluster has 4"):
        trained(snapshots("binary"), tmp_path, num_workers=8, cpus_per_worker=2)
    with pytest.raises(ConfigError, match=r"1 workers x 1 GPU = 1 GPUs; the cluster has 0"):
        trained(snapshots("binary"), tmp_path, gpu=True)


def test_cpus_that_another_holds_are_refused_after_a_wait(
    snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "START_S", 0.0)
    group = ray.util.placement_group([{"CPU": 3}])
    ray.get(group.ready())
    try:
        with pytest.raises(ConfigError, match=r"2 workers x 1 CPUs = 2 CPUs; of the cluster's 4, [01] are free"):
            trained(snapshots("binary"), tmp_path, num_workers=2)
    finally:
        ray.util.remove_placement_group(group)


def test_a_split_without_answers_is_refused(ray_runtime: Runtime, tmp_path: Path) -> None:
    table = planted(200, 1, "binary")
    empty = table.set_column(4, "y", pa.nulls(200, pa.bool_()))
    snapshot = write_snapshot(tmp_path / "snapshot", {"train": table, "valid": empty})
    with pytest.raises(DataError, match="0 usable rows in the split 'valid'"):
        trained(snapshot, tmp_path / "run")
    with pytest.raises(DataError, match="no rows in the split 'train'"):
        trained(replace(snapshot, path=_without_train(snapshot.path)), tmp_path / "run")


def test_a_run_that_has_a_bundle_is_not_trained_again(solo: TrainedModel, snapshots: Snapshots) -> None:
    with pytest.raises(TrainingError, match=r"bundle exists; expected a run without a result"):
        trained(snapshots("binary"), solo.bundle.parent)


def test_deepspeed_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'raymlp\[deepspeed\]'"):
        trainer.check(config_of(strategy=ZERO2))


def _without_train(path: Path) -> Path:
    for file in (path / "train").glob("*.parquet"):
        file.unlink()
    return path
