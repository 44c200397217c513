"""`jobs/*.py` under plain `ray job submit`, from a small project of somebody's own."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from raymlp.jobs.watch import result_of
from tests.heads import ROOT, Head, waiting

pytestmark = pytest.mark.ray
EXPERIMENT = """# @package _global_
problem: {{name: small, task: binary, target: label, positive_class: 'yes'}}
data: {{source: {{kind: csv, path: {path}}}, split: {{kind: stratified, valid: 0.2, test: 0.2}}}}
model: {{hidden: [8]}}
train: {{batch_size: 64, epochs: 1}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an experiment and the job scripts; raymlp itself is installed on the head."""
    root, rng = tmp_path_factory.mktemp("project"), random.Random(1)
    rows = (f"{x:.3f},{'yes' if x > 0.4 else 'no'}" for x in (rng.random() for _ in range(600)))
    (root / "small.csv").write_text("\n".join(["x,label", *rows]) + "\n")
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "conf" / "experiment" / "small.yaml").write_text(EXPERIMENT.format(path=root / "small.csv"))
    shutil.copytree(ROOT / "jobs", root / "jobs")
    return root


def submit(head: Head, project: Path, name: str, *words: str) -> None:
    waits = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ["--submission-id", name, "--no-wait", "--working-dir", ".", "--runtime-env-json", waits]
    command = ["ray", "job", "submit", *options, "--", "python", *words]
    result = subprocess.run(command, cwd=project, env=dict(head.environment), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def actors_of(head: Head) -> set[str]:
    """Classes of the actors that are alive."""
    found = head.asked("/api/v0/actors?detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")
    return {actor["class_name"] for actor in found["data"]["result"]["result"]}


def test_jobs_of_the_same_code_have_runs_of_their_own_and_one_that_is_stopped_saves_itself(
    head: Head, project: Path, tmp_path: Path
) -> None:
    settings = ["jobs/train.py", "experiment=small", f"runtime.storage={tmp_path}"]
    submit(head, project, "long", *settings, "train.epochs=100000", "train.stopping.patience=100000", "train.name=long")
    submit(head, project, "good", *settings)
    submit(head, project, "wrong", "jobs/train.py", "experiment=small", "train.epoch=1")
    submit(head, project, "nowhere", "jobs/train.py", "experiment=small")
    name, runs = tmp_path / "runs" / "names" / "small" / "long", tmp_path / "runs"
    for _ in waiting():
        if name.exists() and list((runs / name.read_text().strip()).glob("checkpoints/checkpoint_*")):
            break
    head.asked("/api/jobs/long/stop", method="POST")
    assert head.until("long")["status"] == "STOPPED"
    assert "Terminated." in head.log("long")
    stopped = runs / name.read_text().strip()
    assert not (stopped / "bundle").exists()

    for job, said in {"wrong": "train.epoch is not a setting", "nowhere": "a folder inside the job's unpacked code"}.items():
        record = head.until(job)
        assert (record["status"], record["driver_exit_code"]) == ("FAILED", 2)
        assert said in head.log(job)
    assert head.until("good")["status"] == "SUCCEEDED", head.log("good")[-3000:]
    assert result_of(head.log("good"))
    assert {place.parent for place in runs.glob("*/bundle")} | {stopped} == set(runs.glob("[0-9a-f]*[0-9a-f]"))

    for _ in waiting():
        if actors_of(head) <= {"_AutoscalingCoordinatorActor"}:  # Ray Data's own, one a cluster
            break
    else:
        raise AssertionError(f"actors are left: {actors_of(head)}")
    packages = [
        place.parents[2] for place in head.folder.glob("session_latest/runtime_resources/working_dir_files/*/conf/experiment/small.yaml")
    ]
    assert packages
    for package in packages:
        assert {place.name for place in package.iterdir()} == {"conf", "jobs", "small.csv"}
