"""`raymlp submit` and `raymlp jobs` on a real head that asks for a token."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import raymlp
from raymlp.cli import run_command
from raymlp.core.errors import ConfigError, JobError
from raymlp.jobs.access import opened
from raymlp.jobs.api import Api
from raymlp.jobs.watch import watch
from tests.heads import Head
from tests.jobs.test_submit_work import CORPUS

pytestmark = pytest.mark.ray
STOP_S = 30
SAVES = """
import pathlib, select, signal, sys
def save(*_):
    select.select([], [], [], 4.0)  # longer than the 3 s that Ray gives by itself
    pathlib.Path(sys.argv[1]).write_text("saved")
    raise SystemExit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def api(head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Api:
    """As a person in a small project's folder."""
    for name, value in head.environment.items():
        if name.startswith("RAY_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return Api(opened())


def start(api: Api, name: str, *words: str, **env: str) -> str:
    api.submit(name, entrypoint=shlex.join(words), metadata={}, runtime_env={"env_vars": env} if env else {}, cpus=0)
    return name


def test_jobs_end_as_they_ended_and_words_arrive_as_they_were_written(
    head: Head, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(api, "saves", "python", "-c", SAVES, str(tmp_path / "saved"), RAY_JOB_STOP_WAIT_TIME_S=str(STOP_S))
    start(api, "seven", "sh", "-c", "echo so far; exit 7")
    start(api, "words", "python", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *CORPUS)
    with pytest.raises(JobError, match="does not take the job seven"):
        start(api, "seven", "true")
    said: list[str] = []
    assert watch(api, "seven", said.append).code == 7
    assert "so far\n" in "".join(said)
    assert watch(api, "words").code == 0
    assert json.loads(api.log("words").splitlines()[-1]) == CORPUS
    head.until("saves", "ready")
    assert run_command(["jobs", "stop", "saves"]) == 0
    assert (tmp_path / "saved").read_text() == "saved"
    assert "saves was stopped after" in capsys.readouterr().err
    assert run_command(["jobs", "wait", "words", "seven", "saves"]) == 7
    shown = capsys.readouterr().out
    assert [line.split()[:3] for line in shown.splitlines() if "0" in line or "7" in line or "143" in line] == [
        ["words", "SUCCEEDED", "0"], ["seven", "FAILED", "7"], ["saves", "STOPPED", "143"],
    ]  # fmt: skip
    secret = head.environment["RAY_AUTH_TOKEN"]
    assert secret not in json.dumps(head.asked("/api/jobs/"))
    assert not any(secret in api.log(name) for name in ("seven", "words", "saves"))
    with pytest.raises(JobError, match=r"has no job 'sevenn'\. Did you mean 'seven'"):
        api.job("sevenn")


def test_the_same_work_is_done_once(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "rollout", "status", "experiment=flights"]
    assert run_command(words) == 0
    first = capsys.readouterr()
    assert "There was no rollout so far." in first.out
    name = first.out.splitlines()[0]
    assert name.startswith("rollout-flights-")
    assert run_command([*words, "jobs.stop_wait_s=9"]) == 0
    second = capsys.readouterr()
    assert (second.out.splitlines()[0], "has done this" in second.err) == (name, True)
    assert run_command(["submit", "--no-wait", *words[1:], "train.seed=1,2"]) == 0
    swept = capsys.readouterr().out.split()
    assert run_command(["submit", *words[1:], "train.seed=1,2"]) == 0
    table = capsys.readouterr().out
    assert all(table.count(job) == 2 for job in swept)  # its id, and a row of the table


def test_work_that_failed_is_tried_again_under_the_next_number(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "--name", "pause", "rollout", "pause", "experiment=flights", "runtime.verbose=true"]
    assert run_command(words) == 1
    assert "no process drives the rollouts of flights" in capsys.readouterr().out
    assert run_command(words) == 1
    again = capsys.readouterr()
    assert again.out.splitlines()[0] == "pause-2"
    assert "attempt 2: pause failed (1)" in again.err
    with pytest.raises(ConfigError, match="the job pause-2 does other work"):
        raymlp.submit("rollout", ["experiment=flights"], arguments=["abort"], name="pause")


def test_what_cannot_run_is_refused_before_anything_is_sent(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [job.id for job in api.jobs()]
    with Path("big.bin").open("wb") as file:
        file.truncate(3_000_000)

    def refused(code: int, *words: str) -> str:
        assert run_command(["submit", *words, "experiment=flights"]) == code
        return " ".join(capsys.readouterr().err.split())

    assert "3.0 MB big.bin" in refused(2, "train", "jobs.max_upload_mb=1")
    assert "64 workers x 1 CPUs = 64 CPUs; all nodes have 4." in refused(2, "train", "train.num_workers=64")
    assert "training needs 1 workers x 1 GPU = 1 GPUs; all nodes have 0." in refused(2, "train", "train.gpu=true")
    assert "the driver needs 9 CPUs; the largest node has 4." in refused(2, "prepare", "jobs.driver_cpus=9")
    assert "Did you mean 'train.epochs'" in refused(2, "train", "train.epoch=1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "refuses the token of RAY_AUTH_TOKEN" in refused(2, "train")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("HOME", str(Path.cwd() / "empty"))
    assert "asks for a token, and there is none" in refused(2, "train")
    assert [job.id for job in api.jobs()] == before
