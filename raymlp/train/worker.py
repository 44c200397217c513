"""What runs in a Ray Train worker, and the same work inside one process for tuning trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import ray.util
import torch
from numpy.typing import NDArray

from raymlp.config.distil import Distil
from raymlp.config.schema import Config
from raymlp.config.trees import Trees
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.errors import DataError
from raymlp.core.files import Place
from raymlp.data.place import split_files
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.huggingface import start_of
from raymlp.model.nets import number_edges
from raymlp.train.blocks import Block, Source
from raymlp.train.feed import Part, held_source, local_blocks, shared_source, streamed_source
from raymlp.train.follow import STOP
from raymlp.train.imbalance import class_counts_of
from raymlp.train.job import Job, Outcome
from raymlp.train.loop import Seat, alone, fit, quiet
from raymlp.train.pulse import Notice
from raymlp.train.rounds import fit_trees
from raymlp.train.sampled import fit_sampled
from raymlp.train.strategy import strategy_of
from raymlp.train.team import Report, Save, Stopped, Team
from raymlp.train.upload import Uploads

Splits = Mapping[str, Sequence[Block]]
"""Transformed rows in memory, by split."""


def run(job: Job, run_dir: Place, held: Mapping[str, Sequence[Part]], *, watch_nodes: bool) -> Outcome | None:
    """Train as one worker of a Ray Train group; rank 0 gives the outcome back, unless the run was saved and stopped.

    `held` are the rows of the job by split where it holds them; others come as shards of Ray Train. `watch_nodes` asks now and then
    whether a node is about to be taken away. What the worker raises names its node in a note.
    """
    quiet(job.config.runtime.verbose)
    context, uploads = ray.train.get_context(), Uploads()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if job.has_net else torch.device("cpu")

    def agree(values: list[float]) -> list[float]:
        return _agree(values, device)

    def hear() -> Notice:
        leaving = watch_nodes and ray.train.get_preemption_info() is not None
        return Notice.STOP if rank == 0 and (run_dir / STOP).exists() else Notice.SAVE if leaving else Notice.NONE

    team = Team(rank, world_size, hear=hear, uploading=uploads.pending)
    if world_size > 1:
        team = replace(team, gather=_gather, total=_total, agree=agree)
    checkpoint = ray.train.get_checkpoint()
    try:
        train, valid = _sources(job, held, rank, world_size)
        with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
            resume = Path(folder) if folder else None
            if isinstance(job.config.model, KMeans | IsolationForest):
                outcome = fit_sampled(job, train, valid, team, report=uploads.report)
            elif isinstance(job.config.model, Trees):
                outcome = fit_trees(job, train, valid, team, report=uploads.report, resume=resume)
            else:
                own = job.config.model.kind == "own"
                strategy = strategy_of(job.config.train, world_size=world_size, device=device, own=own)
                outcome = fit(job, train, valid, seat=Seat(strategy=strategy, **vars(team)), report=uploads.report, resume=resume)
    except Stopped:
        return None
    except Exception as error:
        error.add_note(f"node {ray.util.get_node_ip_address()}")
        raise
    return outcome if rank == 0 else None


def _sources(job: Job, held: Mapping[str, Sequence[Part]], rank: int, world_size: int) -> tuple[Source, Source]:
    """Training rows in equal parts, less up to `world_size - 1`, and validation rows, all of them."""
    each, (first, last) = job.train_rows(world_size), job.valid_range(rank, world_size)
    if job.hold:
        train = shared_source(held["train"], job.plan, start=each * rank, stop=each * (rank + 1))
        return train, shared_source(held["valid"], job.plan, start=first, stop=last)
    train = streamed_source(ray.train.get_dataset_shard("train"), job.plan, start=0, stop=each)
    return train, streamed_source(ray.train.get_dataset_shard("valid"), job.plan, start=first, stop=last)


def outcome_alone(
    config: Config, snapshot_path: Place, report: Callable[[dict[str, float]], None], *, shuffle_labels: bool = False
) -> tuple[Job, Outcome]:
    """Train in this process, as one worker on the CPU without checkpoints.

    Any strategy runs as one plain device. The splits are held in memory, also for the next call on the same rows and features.
    """
    job, splits = job_alone(config, snapshot_path, shuffle_labels=shuffle_labels)
    return job, fit_alone(job, splits, lambda metrics, _: report(metrics))


def job_alone(config: Config, snapshot_path: Place, *, shuffle_labels: bool = False) -> tuple[Job, Splits]:
    """The job of one worker without Ray, and its blocks by split, in memory. Raises DataError when a split is empty."""
    profile = load_profile(snapshot_path)
    plan = FeaturePlan.fit(
        config.features, config.problem, profile, files=split_files(snapshot_path, "train"), keeps_missing=isinstance(config.model, Trees)
    )
    splits = _splits(snapshot_path, plan.model_dump_json(), config.train.distil)
    return job_of(config, plan, splits, profile, shuffle_labels=shuffle_labels), splits


def job_of(config: Config, plan: FeaturePlan, splits: Splits, profile: Profile, *, shuffle_labels: bool = False) -> Job:
    """The job of a process that holds all rows. Raises DataError when a split has none."""
    rows = {split: sum(map(len, blocks)) for split, blocks in splits.items()}
    for split, count in rows.items():
        if not count:
            raise DataError(f"the split '{split}' has no usable rows; expected some. Check the split and the target.")
    counts, edges = class_counts_of(plan.target, profile), number_edges(config.model, plan, profile)
    return Job(config, plan, rows, shuffle_labels=shuffle_labels, class_counts=counts, edges=edges, start=start_of(config.model, plan))


def fit_alone(job: Job, splits: Splits, report: Report, *, resume: Path | None = None) -> Outcome:
    """Train in this process on rows in memory, from a checkpoint where one is given. `report` hears whole epochs alone."""
    quiet(job.config.runtime.verbose)
    train, valid = held_source(splits["train"]), held_source(splits["valid"])

    def of_epochs(metrics: dict[str, float], save: Save | None) -> bool | None:
        return report(metrics, save) if "epoch" in metrics else None

    if isinstance(job.config.model, KMeans | IsolationForest):
        return fit_sampled(job, train, valid, Team(), report=report)
    if isinstance(job.config.model, Trees):
        return fit_trees(job, train, valid, Team(), report=report, resume=resume)
    return fit(job, train, valid, seat=alone(), report=of_epochs, resume=resume)


@lru_cache(maxsize=1)
def _splits(path: Place, plan: str, distil: Distil | None) -> Splits:
    """Transformed rows by split, kept for the next trial of this process with an equal plan."""
    return {split: list(local_blocks(path, FeaturePlan.from_json(plan), split, distil)) for split in ("train", "valid")}


def _agree(values: list[float], device: torch.device) -> list[float]:
    together = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    agreed: list[float] = together.tolist()
    return agreed


def _total(numbers: NDArray[Any]) -> NDArray[Any]:
    together = torch.tensor(numbers, dtype=torch.float64)
    torch.distributed.all_reduce(together)
    return together.numpy()


def _gather(rows: NDArray[Any]) -> NDArray[Any]:
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, rows)
    return np.concatenate(parts)
