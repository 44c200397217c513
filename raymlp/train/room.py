"""Room in the cluster for the workers of a run: asked for before it begins, waited for, not without end, when it has to begin again, and
given back by whoever asked when the controller is dead.

Kept small: Ray Train's controller loads this file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raymlp.core.errors import ConfigError, RaymlpError, TrainingError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.runtime import growth
from raymlp.runtime.copies import own_folder
from raymlp.train.follow import POLL_S, STOP

if TYPE_CHECKING:
    from raymlp.config.train import Train

START_S = 30.0
"""Seconds that a run waits for what others hold before it begins."""
AGAIN_S = 600.0
"""Seconds that a run which has lost workers waits for room to go on, and any run for nodes that the cluster may bring."""
GROUP_S = 10.0
"""Seconds until Ray Train looks anew at what the cluster has when the workers find no room."""
LOOK_S = 5.0
"""Seconds in which a look at the cluster has to be over."""
WORKING = ("RunningState", "PreemptingState")
WAITING = ("InitializingState", "RestartingState")
GROUP = "placement_group"
"""File with the id of what the workers of a run hold."""
Needs = Mapping[str, tuple[float, str]]
"""CPUs and GPUs, each with its sum in words."""


def needs_of(settings: Train, *, streams: bool) -> Needs:
    """What the fewest workers take, and the one that reads where rows are streamed."""
    workers = settings.elastic.min_workers if settings.elastic else settings.num_workers
    cpus = workers * settings.cpus_per_worker + (1 if streams else 0)
    sums = f"{workers} workers x {settings.cpus_per_worker:g} CPUs" + (" + 1 CPU to read" if streams else "")
    needs = {"CPU": (cpus, f"{sums} = {cpus:g} CPUs")}
    return needs | ({"GPU": (float(workers), f"{workers} workers x 1 GPU = {workers:g} GPUs")} if settings.gpu else {})


def bundles_of(settings: Train, *, streams: bool) -> list[dict[str, float]]:
    """The same by process."""
    workers = settings.elastic.min_workers if settings.elastic else settings.num_workers
    worker = {"CPU": float(settings.cpus_per_worker)} | ({"GPU": 1.0} if settings.gpu else {})
    return [worker] * workers + ([{"CPU": 1.0}] if streams else [])


def wait_for_room(settings: Train, *, streams: bool) -> float:
    """Seconds that the run may wait for its workers once it is let in: more where the cluster brings nodes for them. Raises
    ConfigError with the arithmetic when they do not fit the cluster, at once or after others had time to finish."""
    needs, totals = needs_of(settings, streams=streams), ray.cluster_resources()
    lacking = {kind: sums for kind, (amount, sums) in needs.items() if amount > totals.get(kind, 0.0)}
    largest = max((float(node["Resources"].get("CPU", 0.0)) for node in ray.nodes() if node["Alive"]), default=0.0)
    fits_a_node = settings.cpus_per_worker <= largest
    if (lacking or not fits_a_node) and growth.may_bring(bundles_of(settings, streams=streams)):
        return AGAIN_S
    if not fits_a_node:
        raise ConfigError(
            f"a worker needs {settings.cpus_per_worker:g} CPUs; the largest node of the cluster has {largest:g}. Set train.cpus_per_worker."
        )
    for kind, sums in lacking.items():
        has = f"has {totals.get(kind, 0.0):g}" + (", and its autoscaler has no nodes for that" if growth.autoscales() else "")
        raise ConfigError(f"training needs {sums}; the cluster {has}. Set train.num_workers or train.cpus_per_worker.")
    for kind, (amount, _) in needs.items():
        deadline = time.monotonic() + START_S
        while amount > ray.available_resources().get(kind, 0.0):
            if time.monotonic() > deadline:
                raise no_room(needs, begun=False, waited_s=START_S)
            time.sleep(POLL_S)
    return START_S


def no_room(needs: Needs, *, begun: bool, waited_s: float) -> RaymlpError:
    """Why a run cannot begin, or cannot go on, with the arithmetic of what is missing most."""
    free, totals = ray.available_resources(), ray.cluster_resources()
    kind = max(needs, key=lambda kind: needs[kind][0] - free.get(kind, 0.0))
    sums = f"{needs[kind][1]}; of the cluster's {totals.get(kind, 0.0):g}, {free.get(kind, 0.0):g} are free"
    if needs[kind][0] <= free.get(kind, 0.0):
        sums += ", but not where a worker fits"
    if not begun:
        return ConfigError(f"training needs {sums}. Stop what holds the rest, or set train.num_workers.")
    return TrainingError(
        f"training lost workers and waited {waited_s:.0f} s for room to go on: it needs {sums}. Add a node or stop what holds the rest, "
        "and start the run again under its name to go on from its last checkpoint; with train.elastic it goes on with fewer workers."
    )


class Patience(ControllerCallback):
    """Runs in the controller: ends a run that has no room for its workers when it has waited long enough, or when its caller gives up.

    Ray Train by itself asks for room without end. What was free when the run was let in may be another's when its workers start.
    """

    def __init__(self, run_dir: Place, needs: Needs, *, start_s: float, again_s: float, look_s: float | None) -> None:
        """An elastic run looks every `look_s` for nodes that came or went; None for one whose number of workers is fixed."""
        self._run_dir, self._needs, self._start_s, self._again_s, self._look_s = run_dir, needs, start_s, again_s, look_s
        self._since: float | None = None
        self._begun = False
        self._looked = 0.0

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Without room a fixed group is rescheduled, and an elastic one stays in the state in which it waits."""
        now, state = time.monotonic(), type(current_state).__name__
        works = state in WORKING
        if self._look_s is not None and now - self._looked > (self._look_s if works else POLL_S):
            self._looked = now
            _look(wait_s=0.0 if works else LOOK_S)
        if works:
            self._since, self._begun = None, True
            return
        self._since = now if self._since is None else self._since
        stays = state in WAITING and type(previous_state) is type(current_state)
        if not stays and state != "ReschedulingState":
            return
        if (self._run_dir / STOP).exists():
            raise TrainingError("training was stopped by its caller while it waited for room.")
        if now - self._since > (self._again_s if self._begun else self._start_s):
            raise no_room(self._needs, begun=self._begun, waited_s=now - self._since)
        if stays:
            time.sleep(POLL_S)  # Ray Train would ask again at once, without end


class Held(WorkerGroupCallback):
    """Runs in the controller: writes down what it holds for the workers, on the disk of its node."""

    def __init__(self, run_dir: Place) -> None:
        self._folder = own_folder(run_dir)

    def after_worker_group_start(self, worker_group: Any) -> None:
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        write_text(make_folder(self._folder) / GROUP, group.id.hex())


def give_back(run_dir: Place) -> None:
    """Free what the workers of a run held, which nobody does when its controller died alone; what is free already stays so.

    Ray Train's own way is a detached actor a run. It does not end when the controller dies before it was told to, since
    `ray.actor.exit_actor` has no effect in the thread that sees it: its process would stay in the cluster after a job was stopped.
    """
    held = own_folder(run_dir) / GROUP
    if held.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(held.read_text()))))
        held.unlink()


def _look(*, wait_s: float) -> None:
    """Let Ray see which nodes there are: what it gives to an elastic run follows a picture of the cluster that may be 20 s old."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

    looking = get_or_create_autoscaling_coordinator().get_reserved_resources.remote("", recompute=True)
    ray.wait([looking], timeout=wait_s)
