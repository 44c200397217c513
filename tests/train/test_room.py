"""Room for workers: who waits for it, how long, and what is said; full disks; lists of checkpoints that were cut off."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import ControllerError
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
)

from raymlp.core.errors import ConfigError, TrainingError
from raymlp.runtime import growth
from raymlp.train import ledger, room
from raymlp.train.cause import explained
from raymlp.train.disk import writing
from raymlp.train.follow import STOP
from raymlp.train.room import Patience, needs_of
from tests.train.planted import config_of

FAILED = ControllerError(TimeoutError("no room"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, and a cluster of four CPUs of which one is free."""
    now = [100.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(room.time, "sleep", lambda _: None)
    monkeypatch.setattr(growth, "autoscales", lambda: False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    return now


def patience(folder: Path, **train: Any) -> Patience:
    return Patience(folder, needs_of(config_of(**train).train, streams=True), start_s=30, again_s=600, look_s=None)


def test_the_fewest_workers_and_the_reader_are_counted() -> None:
    assert needs_of(config_of(num_workers=3, cpus_per_worker=2).train, streams=False) == {"CPU": (6, "3 workers x 2 CPUs = 6 CPUs")}
    elastic = config_of(num_workers=3, elastic={"min_workers": 2}).train
    assert needs_of(elastic, streams=True) == {"CPU": (3, "2 workers x 1 CPUs + 1 CPU to read = 3 CPUs")}
    assert needs_of(config_of(gpu=True, num_workers=2).train, streams=False)["GPU"] == (2.0, "2 workers x 1 GPU = 2 GPUs")


def test_a_run_that_cannot_begin_is_refused_after_its_wait(tmp_path: Path, clock: list[float]) -> None:
    """What was free when it was let in is another's when its workers start."""
    watch, waiting = patience(tmp_path, num_workers=2), ReschedulingState(FAILED)
    watch.after_controller_state_update(InitializingState(), SchedulingState(Any))  # type: ignore[arg-type]
    clock[0] += 29
    watch.after_controller_state_update(SchedulingState(Any), waiting)  # type: ignore[arg-type]
    clock[0] += 2
    watch.after_controller_state_update(waiting, SchedulingState(Any))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"2 workers x 1 CPUs \+ 1 CPU to read = 3 CPUs; of the cluster's 4, 1 are free"):
        watch.after_controller_state_update(SchedulingState(Any), waiting)  # type: ignore[arg-type]


def test_a_cluster_that_grows_is_asked_and_given_time(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    large = config_of(num_workers=3, cpus_per_worker=2).train
    with pytest.raises(ConfigError, match=r"needs 3 workers x 2 CPUs = 6 CPUs; the cluster has 4\. Set"):
        room.wait_for_room(large, streams=False)
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(growth, "autoscales", lambda: True)
    monkeypatch.setattr(growth, "may_bring", lambda bundles: asked.append(bundles) or len(bundles) == 4)
    with pytest.raises(ConfigError, match=r"the cluster has 4, and its autoscaler has no nodes for that\. Set"):
        room.wait_for_room(large, streams=False)
    assert room.wait_for_room(large, streams=True) == room.AGAIN_S
    assert asked == [[{"CPU": 2.0}] * 3, [{"CPU": 2.0}] * 3 + [{"CPU": 1.0}]]
    gpus = config_of(gpu=True, num_workers=3, elastic={"min_workers": 2}).train
    assert room.bundles_of(gpus, streams=False) == [{"CPU": 1.0, "GPU": 1.0}] * 2
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0})
    assert room.wait_for_room(config_of(num_workers=2).train, streams=False) == room.START_S, "all is there"
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 4)
    with pytest.raises(ConfigError, match="a worker needs 2 CPUs; the largest node of the cluster has 1"):
        room.wait_for_room(config_of(cpus_per_worker=2).train, streams=False)
    assert asked[-1] == [{"CPU": 2.0}], "the sums fit, and no node does"


def test_a_run_that_lost_workers_waits_longer_and_anew_each_time(tmp_path: Path, clock: list[float]) -> None:
    watch, again = patience(tmp_path, num_workers=2), RestartingState(FAILED)
    for _ in range(2):
        watch.after_controller_state_update(SchedulingState(Any), RunningState())  # type: ignore[arg-type]
        clock[0] += 9_999
        watch.after_controller_state_update(RunningState(), again)
        clock[0] += 599
        watch.after_controller_state_update(again, again)
    clock[0] += 2
    with pytest.raises(TrainingError, match=r"waited 601 s for room to go on: it needs 2 workers .* start the run again under its name"):
        watch.after_controller_state_update(again, again)


def test_a_caller_that_gives_up_ends_the_wait(tmp_path: Path, clock: list[float]) -> None:
    watch, waiting = patience(tmp_path), ReschedulingState(FAILED)
    watch.after_controller_state_update(SchedulingState(Any), waiting)  # type: ignore[arg-type]
    (tmp_path / STOP).touch()
    with pytest.raises(TrainingError, match="stopped by its caller while it waited for room"):
        watch.after_controller_state_update(SchedulingState(Any), waiting)  # type: ignore[arg-type]


def test_a_full_disk_is_told_with_its_folder_and_sums_and_other_errors_as_they_are(tmp_path: Path) -> None:
    cleared: list[str] = []
    where = rf"^a checkpoint could not be written to {tmp_path}/c on node [\d.]+: No space left on device "
    with (
        pytest.raises(TrainingError, match=where + r"\(it takes 2.50 MB, and [\d,.]+ MB are free\)"),
        writing(tmp_path / "c", "a checkpoint", size=2_500_000, clear=lambda: cleared.append("c")),
    ):
        Path("/dev/full").write_text("x")
    with pytest.raises(TrainingError, match="No space left on device"), writing("bucket/c", "a checkpoint"):
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3: file write failed")
    with pytest.raises(OSError, match="the store does not answer"), writing(tmp_path, "a checkpoint", clear=lambda: cleared.append("d")):
        raise OSError("the store does not answer")
    assert cleared == ["c", "d"]
    told = explained(ControllerError(OSError(errno.ENOSPC, "Error writing bytes to file")), tmp_path)
    assert str(told).startswith(f"the list of checkpoints could not be written to {tmp_path} on node")


def test_a_list_that_is_cut_off_gives_way_to_its_copy_and_what_was_never_whole_goes(tmp_path: Path) -> None:
    for name in ("checkpoint_1", "checkpoint_2"):
        (tmp_path / name).mkdir()
    (tmp_path / ledger.LIST).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}))
    ledger.keep(tmp_path)
    ledger.mend(tmp_path)
    assert not (tmp_path / "checkpoint_2").exists()
    (tmp_path / ledger.LIST).write_text("")
    ledger.mend(tmp_path)
    assert json.loads((tmp_path / ledger.LIST).read_text())["checkpoint_results"] == [{"checkpoint_dir_name": "checkpoint_1"}]
    (tmp_path / "checkpoint_1").rmdir()
    with pytest.raises(TrainingError, match=r"was cut off when it was written, and has no copy.*train.resume=never"):
        ledger.mend(tmp_path)


def test_a_worker_that_fits_no_node_is_refused_at_once(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0})
    assert room.wait_for_room(config_of(cpus_per_worker=2).train, streams=False) == room.START_S
    with pytest.raises(ConfigError, match="a worker needs 4 CPUs; the largest node of the cluster has 2"):
        room.wait_for_room(config_of(cpus_per_worker=4).train, streams=False)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits of a process are read from /proc")
def test_weights_that_do_not_fit_are_a_full_disk_too(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, torch; from safetensors.torch import save_file; from raymlp.train.disk import writing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with writing(sys.argv[1], 'the best weights'): save_file({'w': torch.zeros(4096)}, sys.argv[1] + '/w.safetensors')"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert re.search(r"TrainingError: the best weights could not be written to \S+ on node [\d.]+: File too large", found.stderr), (
        found.stderr
    )


def test_a_folder_that_may_not_be_written_is_to_be_made_writable(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"Read-only file system\. .*make it writable"), writing(tmp_path, "a checkpoint"):
        raise OSError(errno.EROFS, "Read-only file system")
