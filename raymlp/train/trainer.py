"""Training, seen from the driver: plan, feed, Ray Train, bundle. Lightning is imported by the workers alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from raymlp.config.loader import to_yaml
from raymlp.config.schema import Config
from raymlp.config.strategy import Auto
from raymlp.config.train import Train
from raymlp.config.trees import Trees
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.errors import ConfigError, RaymlpError, TrainingError
from raymlp.core.files import Place, make_folder
from raymlp.core.language import losses
from raymlp.core.records import Found, Snapshot, TrainedModel
from raymlp.data.place import split_files
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_contract, load_profile
from raymlp.data.target import Target
from raymlp.features.on_ray import count_files
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, load_bundle, save_bundle
from raymlp.model.huggingface import start_of
from raymlp.model.nets import NetShape, number_edges, parameters_of, require
from raymlp.runtime.session import stays
from raymlp.runtime.store import MANIFEST, place_of, ray_storage
from raymlp.train import room
from raymlp.train.cause import explained, root
from raymlp.train.choice import choose
from raymlp.train.disk import writing
from raymlp.train.distil import teacher_of
from raymlp.train.feed import HOLD_SHARE, Feed, may_hold
from raymlp.train.follow import CHECKPOINTS, POLL_S, EpochLog, OnEpoch, follow
from raymlp.train.identity import identity, require_same
from raymlp.train.imbalance import class_counts_of
from raymlp.train.job import Job, Outcome
from raymlp.train.ledger import mend
from raymlp.train.support import refusals

log = logging.getLogger(__name__)


def train(
    config: Config, snapshot: Snapshot, *, run_dir: Place, run_id: str, on_epoch: OnEpoch | None = None, shuffle_labels: bool = False
) -> TrainedModel:
    """Train a model on a snapshot and leave its bundle in `run_dir/bundle`. Needs Ray.

    `on_epoch` hears, in the caller's thread, each epoch's `epoch` (from 0), `train_loss`, `valid_loss`, `valid_<metric>`, `workers`,
    `rows_per_s` (over all workers), of a language model `tokens_per_s` too, the figures of `raymlp.train.figures.epoch_figures` and,
    where the peak of the device is known, `mfu` (in [0, 1]). A run that was cut off goes on from its last checkpoint when it is started
    again with the same `run_dir`; what interrupts the caller's thread, a signal above all, has the run saved first. `shuffle_labels`
    trains on permuted answers: a model that must not pass the gate.

    Raises ConfigError when the cluster cannot hold the workers, DataError when a split is empty, TrainingError with the root
    cause when a worker fails more often than `train.max_failures`, or at once when the loss is no number, a disk is full, or the run
    in `run_dir` was begun with other settings.
    """
    check(config)
    require(config.model)
    same = identity(config, snapshot.digest, shuffle_labels=shuffle_labels)
    if (run_dir / "bundle" / MANIFEST).exists():
        raise TrainingError(f"{run_dir / 'bundle'} exists; expected a run without a result. Choose another run_dir.")
    profile = load_profile(snapshot.path)
    files, trees = split_files(snapshot.path, "train"), isinstance(config.model, Trees)
    plan = FeaturePlan.fit(config.features, config.problem, profile, files=files, count=count_files, keeps_missing=trees)
    teacher_of(config.train.distil, plan.target)
    hold = may_hold(snapshot.rows["train"] + snapshot.rows["valid"], plan, taught=config.train.distil is not None)
    start = start_of(config.model, plan)
    if config.train.private and not hold:
        raise ConfigError("train.private draws each batch from all rows, which do not fit the object store. Set runtime.object_store_mb.")
    wait_s = room.wait_for_room(config.train, streams=not hold)
    edges = number_edges(config.model, plan, profile)
    model = start.model if start else config.model
    if not isinstance(model, Trees | KMeans | IsolationForest):
        config = settled(config, NetShape.of(model, plan, edges))
    require_same(make_folder(run_dir), same)
    try:
        feed = Feed.open(snapshot.path, plan, num_workers=config.train.num_workers, hold=hold, distil=config.train.distil)
        job = Job(config, plan, feed.rows, hold, shuffle_labels, class_counts_of(plan.target, profile), edges, start)
        outcome = follow(lambda: _run_workers(job, feed, run_dir, wait_s), run_dir, on_epoch or (lambda _: None))
    except (TrainingFailedError, RayError) as error:
        raise explained(error, run_dir) from error
    bundle, metrics = bundle_of(job, outcome, snapshot, profile, run_id)
    with writing(run_dir, "the bundle"):
        return TrainedModel(save_bundle(bundle, run_dir / "bundle"), metrics, run_id)


def finished(config: Config, snapshot: Snapshot, *, run_dir: Place) -> TrainedModel | None:
    """The model of a run that came to its end, or None. Raises TrainingError when it was begun with other settings or data."""
    if not (run_dir / "bundle" / MANIFEST).exists():
        return None
    require_same(run_dir, identity(config, snapshot.digest))
    bundle = load_bundle(run_dir / "bundle")
    return TrainedModel(run_dir / "bundle", bundle.metrics, bundle.run_id)


def fit_in_process(config: Config, snapshot_path: Place, report: OnEpoch) -> dict[str, float]:
    """Train in this process, as one worker on the CPU without Ray Train, checkpoints or bundle: for tuning trials.

    `report` hears what `on_epoch` hears in `train`. Gives the metrics on the validation split.
    """
    from raymlp.train.worker import outcome_alone

    job, outcome = outcome_alone(config, snapshot_path, report)
    return outcome.scored(job.plan.target.task, job.class_weights)[2]


def find(config: Config, snapshot: Snapshot, what: str, *, folder: Place) -> Found:
    """Look for a `learning-rate` or a `batch-size` in a Ray task with the CPUs, or the GPU, of a worker. Needs Ray.

    Leaves the curve in `folder`. Raises as `raymlp.train.finder` does.
    """
    check(config)
    if isinstance(config.model, Trees | KMeans | IsolationForest):
        raise ConfigError(
            f"model.kind is {config.model.kind}, whose step size and batch nobody looks for; expected a net. Choose model=mlp."
        )
    settings = config.train
    work = ray.remote(num_cpus=settings.cpus_per_worker, num_gpus=int(settings.gpu), max_calls=1)(_found)
    try:
        result: Found = ray.get(work.remote(config, snapshot.path, what, make_folder(folder)))
    except RayError as error:
        cause = root(error)
        raise cause if isinstance(cause, RaymlpError) else explained(error, folder) from error
    return result


def _found(config: Config, snapshot: Any, what: str, folder: Place) -> Found:
    from raymlp.train import finder

    return finder.learning_rate(config, snapshot, folder) if what == "learning-rate" else finder.batch_size(config, snapshot, folder)


def check(config: Config) -> None:
    """Raise ConfigError when parts that the settings ask for are not installed, or cannot be had together."""
    if lines := refusals(config):
        raise ConfigError("\n".join(lines))


def settled(config: Config, shape: NetShape) -> Config:
    """The config with the strategy that `auto` stands for; others as they are. May ask a GPU of the cluster for its size."""
    if not isinstance(config.train.strategy, Auto):
        return config
    if config.train.gpu and config.train.num_workers > 1:
        choice = choose(config.train, parameters=parameters_of(shape), gpu_bytes=ray.get(_gpu_bytes.remote()))
    else:
        choice = choose(config.train)
    log.info("train.strategy auto is %s: %s", choice.strategy.kind, choice.reason)
    return config.model_copy(update={"train": config.train.model_copy(update={"strategy": choice.strategy})})


@ray.remote(num_gpus=1, num_cpus=0)
def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def at_once(settings: Train) -> int:
    """How many runs of these settings the cluster holds side by side, 1 at least. Each may hold its rows in the object store."""
    needed = {"CPU": settings.num_workers * settings.cpus_per_worker, "GPU": float(settings.num_workers if settings.gpu else 0)}
    rooms = [int(ray.cluster_resources().get(kind, 0.0) / amount) for kind, amount in needed.items() if amount]
    return max(1, min(*rooms, int(1 / HOLD_SHARE)))


def _worker(settings: dict[str, Any]) -> Any:
    from raymlp.train.worker import run

    job: Job = ray.get(settings["job"])
    return run(job, place_of(settings["run_dir"]), settings["held"], watch_nodes=settings["watch_nodes"])


def _run_workers(job: Job, feed: Feed, run_dir: Place, wait_s: float) -> Outcome:
    settings, verbose = job.config.train, job.config.runtime.verbose
    resources: dict[str, float] = {"CPU": settings.cpus_per_worker} | ({"GPU": 1.0} if settings.gpu else {})
    scaling: dict[str, Any] = {"num_workers": settings.num_workers}
    if settings.elastic:
        workers = (settings.elastic.min_workers, settings.num_workers)
        scaling = {"num_workers": workers, "elastic_resize_monitor_interval_s": settings.elastic.look_every_s}
    run_dir, watch_nodes = run_dir.resolve() if isinstance(run_dir, Path) else run_dir, _may_lose_nodes(job.config)
    mend(run_dir / CHECKPOINTS)
    patience = room.Patience(
        run_dir,
        room.needs_of(settings, streams=not job.hold),
        start_s=wait_s,
        again_s=room.AGAIN_S,
        look_s=settings.elastic.look_every_s if settings.elastic else None,
    )
    trainer = Trainer(
        _worker,
        train_loop_config={"job": ray.put(job), "held": feed.held, "run_dir": str(run_dir), "watch_nodes": watch_nodes},
        torch_config=_network(job),
        scaling_config=ray.train.ScalingConfig(**scaling, use_gpu=settings.gpu, resources_per_worker=resources),
        datasets=dict(feed.datasets),
        dataset_config=feed.shards,
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            **ray_storage(run_dir),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[EpochLog(run_dir), patience, room.Held(run_dir)],
            logging_config=ray.train.LoggingConfig(log_level="INFO" if verbose else "ERROR"),
        ),
    )
    try:
        with _ray_train_settings(watch_nodes):
            result = trainer.fit()
    finally:
        room.give_back(run_dir)
    if result.return_value is None:
        raise TrainingError("training was saved and stopped by its caller.")
    assert isinstance(result.return_value, Outcome)
    return result.return_value


class Trainer(TorchTrainer):
    """Ray Train's without its detached actor, whose work `room.give_back` does."""

    def _create_default_callbacks(self) -> list[Any]:
        return [found for found in super()._create_default_callbacks() if not isinstance(found, PlacementGroupCleanerCallback)]


def _network(job: Job) -> TorchConfig:
    """How the workers find each other: trees have the network of their library beside torch's."""
    if isinstance(job.config.model, Trees) and job.config.train.num_workers > 1:
        from raymlp.train.network import TreeNetwork

        return TreeNetwork(backend="gloo", library=job.config.model.kind)
    return TorchConfig(backend="nccl" if job.config.train.gpu else "gloo")


@contextmanager
def _ray_train_settings(watch_nodes: bool) -> Iterator[None]:
    """Ray Train's controller looks at its workers every 2 s by default, which short epochs would wait for. It also keeps a process
    that watches for nodes about to be taken away; one node alone is never."""
    wanted = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_S), "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(room.GROUP_S)}
    wanted |= {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"} if watch_nodes else {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)  # folds are trained in threads


def _may_lose_nodes(config: Config) -> bool:
    return len(ray.nodes()) > 1 or config.train.elastic is not None or stays(config.runtime)


def bundle_of(job: Job, outcome: Outcome, snapshot: Snapshot, profile: Profile, run_id: str) -> tuple[Bundle, dict[str, float]]:
    """The bundle of a trained net and its metrics on the validation split."""
    plan, config = job.plan.sealed, job.config
    calibration, scores, metrics = outcome.scored(plan.target.task, job.class_weights)
    if job.shuffle_labels:
        metrics["labels_shuffled"] = 1.0
    columns = {name: profile.columns[name] for name in dict.fromkeys([*plan.inputs, *plan.target.columns])}
    bundle = Bundle(
        name=config.problem.name,
        run_id=run_id,
        scorer=outcome.scorer,
        plan=plan,
        contract=load_contract(snapshot.path).only(plan.inputs),
        calibration=calibration,
        profile=Profile(profile.rows, columns),
        predictions=prediction_profile(plan.target, scores),
        metrics=metrics,
        config_yaml=to_yaml(config),
        snapshot=snapshot.digest,
        environment={**outcome.environment, "training rows": "held in memory" if job.hold else "streamed"},
    )
    return bundle, metrics


def prediction_profile(target: Target, scores: NDArray[np.float64]) -> Profile:
    """Profile of the validation predictions: probability of the positive class, value, score, label, cluster, or loss a token."""
    if target.task == "language":
        column = pa.array(losses(scores), from_pandas=True)
    elif target.task == "clustering":
        column = pa.array([str(place) for place in scores.argmin(axis=1)], pa.string())
    elif target.task == "multiclass":
        column = pa.array([target.classes[index] for index in scores.argmax(axis=1)], pa.string())
    else:
        column = pa.array(scores, pa.float64())
    return Profile().update(pa.table({"prediction": column}))
