"""Fault drills: processes, disks and nodes are really taken away, and what was going on ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from raymlp.config.loader import load_config
from raymlp.config.runtime import Runtime
from raymlp.core.errors import TrainingError
from raymlp.core.records import Snapshot
from raymlp.model.bundle import load_bundle
from raymlp.model.scorer import NetScorer
from raymlp.train import ledger, room
from raymlp.train.follow import CHECKPOINTS
from raymlp.train.job import Progress
from raymlp.train.trainer import fit_in_process, train
from raymlp.train.worker import outcome_alone
from raymlp.tune.draws import draws_of
from tests.train.planted import config_of, planted, write_snapshot
from tests.train.test_trainer import same, trained, workers

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Snapshots = Callable[[str], Snapshot]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
"""Seconds that a drill waits for what it watches."""


def seen(look: Callable[[], Any], what: str, alive: Callable[[], bool] = lambda: True) -> Any:
    """What a look finds, as soon as it finds something."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        assert alive(), f"it ended before {what} was seen"
        time.sleep(0.02)
    raise AssertionError(f"{what} was not seen in {PATIENCE_S:.0f} s")


def saves(run_dir: Path) -> dict[str, Progress]:
    """The checkpoints of a run by name. One that is on its way, or being removed, is left out."""
    found = {}
    for folder in (run_dir / CHECKPOINTS).glob("checkpoint_*"):
        with contextlib.suppress(OSError, ValueError):
            found[folder.name] = Progress.load(folder)
    return found


def epochs_of(run_dir: Path) -> list[int]:
    """Epochs as they were reported, those that were repeated as well."""
    path = run_dir / "epochs.jsonl"
    return [int(json.loads(line)["epoch"]) for line in path.read_text().splitlines()] if path.exists() else []


# A worker


def test_workers_that_die_at_any_step_of_an_epoch_leave_no_trace(snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path) -> None:
    """One ends by SIGTERM, as when its machine is taken away, and one by SIGKILL, each a random while after a save within an epoch."""
    settings: dict[str, Any] = {"num_workers": 2, "epochs": 3, "batch_size": 1, "max_failures": 2}
    expected, _ = trained(snapshots("binary"), tmp_path / "whole", **settings)
    drawn, resumed, ended = random.Random(), [], threading.Event()
    places: set[str] = set()

    def midway() -> str | None:
        return next((name for name, save in saves(tmp_path / "cut").items() if save.batch and name not in places), None)

    def kill() -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            while not (name := midway()):
                if ended.wait(0.02):
                    return
            places.update(saves(tmp_path / "cut"))
            time.sleep(drawn.uniform(0.0, 0.4))
            if group := workers():
                os.kill(drawn.choice(group), sent)
                resumed.append(name)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        model, heard = trained(snapshots("binary"), tmp_path / "cut", **settings, checkpoint={"every_minutes": 0.002})
    finally:
        ended.set()
        thread.join()
    assert len(resumed) == 2, "both were killed while it ran"
    assert heard == [0, 1, 2]
    assert same(model, expected)


def test_a_run_whose_cpus_are_taken_says_so_and_goes_on_when_they_are_free(
    snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another waits for three of the four CPUs, and gets them when a worker dies and its group lets go of two."""
    monkeypatch.setattr(room, "AGAIN_S", 1.0)
    monkeypatch.setattr(room, "GROUP_S", 1.0)
    config = config_of(num_workers=2, epochs=12, max_failures=1)
    other: list[Any] = []

    class Holder:
        """Asks a node for its CPUs, which gives them to the next in line before a new group is asked for."""

    def on_epoch(metrics: dict[str, float]) -> None:
        if not other:
            other.append(ray.remote(num_cpus=3)(Holder).remote())
            os.kill(max(workers()), signal.SIGKILL)

    try:
        with pytest.raises(
            TrainingError, match=r"waited \d+ s for room to go on: it needs 2 workers x 1 CPUs = 2 CPUs; of the cluster's 4, "
        ):
            train(config, snapshots("binary"), run_dir=tmp_path / "run", run_id="run", on_epoch=on_epoch)
    finally:
        ray.kill(other[0])
    assert not workers()
    model = train(config, snapshots("binary"), run_dir=tmp_path / "run", run_id="run")
    assert same(model, trained(snapshots("binary"), tmp_path / "whole", num_workers=2, epochs=12)[0])


def test_a_run_whose_controller_dies_gives_back_its_cpus(snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path) -> None:
    """Ray Train would start a detached actor for it, which can outlive the run."""
    cleaners: list[list[int]] = []

    def on_epoch(metrics: dict[str, float]) -> None:
        if not cleaners:
            cleaners.append(workers("PlacementGroupCleaner"))
            (controller,) = workers("TrainController")
            os.kill(controller, signal.SIGKILL)

    with pytest.raises(TrainingError):
        train(config_of(num_workers=2, epochs=4000), snapshots("binary"), run_dir=tmp_path / "run", run_id="run", on_epoch=on_epoch)
    assert cleaners == [[]]
    seen(lambda: ray.available_resources().get("CPU") == 4.0, "the CPUs of the dead run")


# A disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system in memory of so many bytes; called again, it has another size."""
    place = tmp_path / "small"
    place.mkdir()

    def sized(size: int) -> Path:
        again = "remount," if os.path.ismount(place) else ""
        words = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "tmpfs", str(place)]
        if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("this process may not mount a file system")
        return place

    yield sized
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def whole_checkpoint(run_dir: Path) -> Progress:
    """The only checkpoint, which the list of checkpoints names."""
    (name, save), *more = saves(run_dir).items()
    assert not more
    assert ledger._named(run_dir / CHECKPOINTS / ledger.LIST) == {name}
    return save


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_the_run_goes_on(
    snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """Only one checkpoint has room, and a new one is written before the one before it is removed."""
    model, _ = trained(snapshots("binary"), tmp_path / "whole")
    folder = tmp_path / "whole" / CHECKPOINTS / next(iter(saves(tmp_path / "whole")))
    pages = sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
    run_dir = small_disk((pages + pages // 2 + 5) * 4096) / "run"
    with pytest.raises(
        TrainingError, match=rf"^a checkpoint could not be written to {run_dir}/\S+ on node [\d.]+: No space left on device"
    ) as told:
        trained(snapshots("binary"), run_dir)
    assert "MB are free)" in str(told.value)
    assert "(it takes 0.0" in str(told.value)
    assert "make room there, and start the run again under its name" in str(told.value)
    assert whole_checkpoint(run_dir).epochs == 1
    small_disk(64 << 20)
    again, heard = trained(snapshots("binary"), run_dir)
    assert same(again, model)
    assert epochs_of(run_dir) == heard == [0, 1, 2, 3, 4]


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before_and_the_run_goes_on(
    snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path
) -> None:
    """From the first epoch on, the system lets the worker write no file of more than two kilobytes."""
    settings: dict[str, Any] = {"epochs": 12}
    limited: list[int] = []

    def on_epoch(metrics: dict[str, float]) -> None:
        if not limited:
            limited.extend(workers())
            for pid in limited:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (2_048, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))

    with pytest.raises(TrainingError, match=r"^a checkpoint could not be written to \S+ on node [\d.]+: File too large"):
        train(config_of(**settings), snapshots("binary"), run_dir=tmp_path, run_id="run", on_epoch=on_epoch)
    epochs = whole_checkpoint(tmp_path).epochs
    assert 1 <= epochs < 12
    model, _ = trained(snapshots("binary"), tmp_path, **settings)
    assert model.metrics == fit_in_process(config_of(**settings), snapshots("binary").path, lambda _: None)
    assert epochs_of(tmp_path) == list(range(12))


def test_a_list_of_checkpoints_that_was_cut_off_is_mended(snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path) -> None:
    """As when the machine goes down while it is written; of a checkpoint that was on its way, a part is left."""

    class Enough(Exception):
        pass

    def on_epoch(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise Enough

    config, folder = config_of(epochs=6), tmp_path / CHECKPOINTS
    with pytest.raises(Enough):
        train(config, snapshots("binary"), run_dir=tmp_path, run_id="run", on_epoch=on_epoch)
    before = whole_checkpoint(tmp_path).epochs
    (folder / ledger.LIST).write_text((folder / ledger.LIST).read_text()[:70])
    (folder / "checkpoint_half").mkdir()
    model = train(config, snapshots("binary"), run_dir=tmp_path, run_id="run")
    assert before >= 3
    assert epochs_of(tmp_path) == list(range(6)), "it went on from the checkpoint"
    assert not (folder / "checkpoint_half").exists()
    assert model.metrics == fit_in_process(config, snapshots("binary").path, lambda _: None)


# The driver


class Command:
    """`raymlp` in a process of its own, on the planted table of a folder; what it started can be found by its mark."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.mark = f"{folder.name}-{random.Random().getrandbits(64):x}"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "RAY_AUTH_MODE": "disabled",
            "RAYMLP_DRILL": self.mark,
            "PYTHONPATH": str(ROOT),
        }
        self.out = folder / "out.txt"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raymlp", *words], cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9 of the driver alone."""
        self.process.kill()
        self.process.wait()

    def ended(self) -> str:
        """What it said. It must have come to its end without an error."""
        self.process.wait(PATIENCE_S)
        assert self.process.returncode == 0, self.out.read_text()
        return self.out.read_text()

    def left(self) -> list[int]:
        """Processes that are left of it."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"RAYMLP_DRILL={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def clear(self) -> None:
        """End all that it started."""
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


EXPERIMENT = """\
# @package _global_
problem: {{name: planted, task: binary, target: y}}
data:
  source: {{kind: parquet, path: {rows}}}
  split: {{kind: random}}
model: {{kind: mlp, hidden: [16]}}
train: {{epochs: 25, batch_size: 16, learning_rate: 0.005, stopping: {{patience: 30}}}}
tune:
  space:
    train.learning_rate: {{kind: loguniform, low: 0.001, high: 0.1}}
runtime: {{num_cpus: 4, object_store_mb: 200}}
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment on a planted table, as a user has it."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    pq.write_table(planted(3_000, 1, "binary"), tmp_path / "rows.parquet")
    experiment = EXPERIMENT.format(rows=tmp_path / "rows.parquet")
    (tmp_path / "conf" / "experiment" / "planted.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.xdist_group("drills")
def test_a_driver_that_is_killed_goes_on_under_its_name_to_the_same_bits(desk: Path) -> None:
    words = ("train", "experiment=planted", "train.name=night", "train.num_workers=1")
    runs = desk / "artifacts" / "runs"
    first = Command(desk, *words)
    second = None
    try:
        seen(lambda: [run for run in runs.glob("*") if len(epochs_of(run)) >= 3 and saves(run)], "the third epoch", first.alive)
        first.kill()
        (run_dir,) = (run for run in runs.glob("*") if run.name != "names")
        done = min(save.epochs for save in saves(run_dir).values())
        assert not (run_dir / "bundle").exists()
        second = Command(desk, *words)
        said = second.ended()
        seen(lambda: not first.left(), "the end of the local Ray of the killed driver")
    finally:
        for command in (first, second):
            if command:
                command.clear()
    epochs = epochs_of(run_dir)
    assert run_dir.name in said
    assert done >= 1
    assert [epochs.count(epoch) for epoch in range(done)] == [1] * done, "what was saved was not done again"
    assert sorted(set(epochs)) == list(range(25))
    scorer = load_bundle(run_dir / "bundle").scorer
    config = load_config("planted", ["train.name=night"])
    (snapshot,) = (path.parent for path in (desk / "artifacts").rglob("profile.json") if path.parent.name != "bundle")
    _, outcome = outcome_alone(config, snapshot, lambda _: None)
    assert isinstance(outcome.scorer, NetScorer)
    assert isinstance(scorer, NetScorer)
    expected = outcome.scorer.weights
    assert scorer.weights.keys() == expected.keys()
    assert all(np.array_equal(scorer.weights[name], expected[name]) for name in expected)


@pytest.mark.xdist_group("drills")
def test_a_study_whose_driver_is_killed_goes_on_to_its_end(desk: Path) -> None:
    words = ("tune", "experiment=planted", "tune.study=s", "tune.num_samples=4", "tune.epochs=4", "tune.max_concurrent=1")
    folder = desk / "artifacts" / "tune" / "s"

    def trials() -> list[str]:
        path = folder / "trials.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    first = Command(desk, *words)
    second = None
    try:
        seen(trials, "the first trial", first.alive)
        first.kill()
        before = trials()
        assert len(before) < 4
        second = Command(desk, *words)
        second.ended()
        seen(lambda: not first.left(), "the end of the local Ray of the killed driver")
    finally:
        for command in (first, second):
            if command:
                command.clear()
    assert trials()[: len(before)] == before
    found = {trial["number"]: trial for trial in map(json.loads, trials())}
    draws = draws_of(load_config("planted", list(words[2:])).tune, seen=())
    assert {number: trial["draw"] for number, trial in found.items()} == {number: draws.draw(number) for number in range(4)}
    assert {trial["state"] for trial in found.values()} <= {"finished", "stopped"}
    assert (folder / "best.yaml").exists()


# A node


@pytest.mark.xdist_group("drills")
def test_an_elastic_run_saves_when_a_node_is_announced_to_leave_and_goes_on_with_fewer_and_with_more(tmp_path: Path) -> None:
    """In a cluster of its own with two raylets, whose files lie where no other Ray looks."""
    write_snapshot(tmp_path / "snapshot", {"train": planted(2_000, 1, "binary"), "valid": planted(1_000, 2, "binary")})
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as short:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            "RAY_TMPDIR": short,
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
        }
        words = [sys.executable, "-m", "tests.train.nodes_drill", str(tmp_path)]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["workers"] == [2, 1, 2]
    assert found["saved"]["epochs"] >= 2
    epochs = epochs_of(tmp_path / "run")
    heard = found["epochs"] + found["rest"]
    assert epochs.count(0) == epochs.count(1) == 1, "what was saved at the notice was not done again"
    assert sorted(set(heard)) == list(range(max(epochs) + 1)), "no epoch is missing"
    model = load_bundle(tmp_path / "run" / "bundle")
    assert model.metrics["epochs"] == max(epochs) + 1
    assert 0.85 < model.metrics["auc"] < 0.9
