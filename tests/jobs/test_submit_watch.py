"""A job that is watched: its state decides, its log is shown once, Ctrl-C asks. A scripted cluster stands in for faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymlp.cli import jobs as door
from raymlp.core.errors import ConfigError, JobError
from raymlp.jobs import watch as watching
from raymlp.jobs.access import Access
from raymlp.jobs.api import Api, Job, NoSuchJob
from raymlp.jobs.submission import Submission
from raymlp.jobs.watch import result_of, watch

LOG = "first\nsecond ü\nresult: auc 0.75\n"


class Scripted:
    """A cluster whose answers are written down: states, or errors, one a look; the last one stays. The stream breaks after a piece."""

    def __init__(self, *looks: Any, pieces: tuple[str, ...] = ()) -> None:
        self.access = SimpleNamespace(address="http://head:8265")
        self.looks, self.pieces, self.stopped = list(looks), pieces, list[str]()

    def job(self, name: str) -> Job:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, BaseException):
            raise look
        status, code = look if isinstance(look, tuple) else (look, None)
        return Job(name, status, "", code)

    def jobs(self) -> list[Job]:
        return [self.job("n")]

    def log(self, name: str) -> str:
        return LOG

    def stop(self, name: str) -> bool:
        self.stopped.append(name)
        return True

    async def tail(self, name: str) -> AsyncIterator[str]:
        for piece in self.pieces:
            yield piece
        raise RuntimeError("the stream broke off")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_S", "SLOWEST_S", "AGAIN_S"):
        monkeypatch.setattr(watching, name, 0.001)
    monkeypatch.setattr("raymlp.jobs.submission.POLL_S", 0.001)


def seen(api: Any, **more: Any) -> tuple[Job, str]:
    said: list[str] = []
    job = watch(api, "n", said.append, **more)
    return job, "".join(said)


@pytest.mark.parametrize("pieces", [(), ("first\n",), ("first\n", "second ü\n"), (LOG,)])
def test_a_log_that_breaks_off_is_shown_once_and_decides_nothing(pieces: tuple[str, ...]) -> None:
    api = Scripted("PENDING", *["RUNNING"] * 30, ("FAILED", 7), pieces=pieces)
    job, said = seen(api)
    assert (job.status, job.code, said) == ("FAILED", 7, LOG)


def test_a_job_that_had_ended_is_told_at_once() -> None:
    assert seen(Scripted(("SUCCEEDED", 0)))[1] == LOG


def test_a_cluster_that_is_away_for_a_while_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    away = JobError("away")
    assert watch(Scripted("RUNNING", away, away, "RUNNING", away, ("STOPPED", 143)), "n").code == 143  # type: ignore[arg-type]
    monkeypatch.setattr(watching, "PATIENCE_S", 0.01)
    with pytest.raises(JobError, match=r"what became of the job n is not known.*raymlp jobs wait n"):
        watch(Scripted("RUNNING", away), "n")  # type: ignore[arg-type]


def test_ctrl_c_leaves_the_job_or_waits_for_its_stop() -> None:
    asked: list[str] = []

    def answer(waits: bool) -> bool:
        asked.append("asked")
        return waits

    looks = ("RUNNING", KeyboardInterrupt(), "RUNNING", ("STOPPED", 143))
    job, said = seen(Scripted(*looks), on_interrupt=lambda: answer(True))
    assert (job.code, said, asked) == (143, LOG, ["asked"])
    for leave in (None, lambda: answer(False)):
        with pytest.raises(KeyboardInterrupt):
            watch(Scripted(*looks), "n", on_interrupt=leave)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ["stop", "s", "leave", "", None])
def test_who_leaves_is_told_how_to_come_back(
    answer: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api: Any = Scripted("RUNNING", KeyboardInterrupt(), "RUNNING", "RUNNING", ("STOPPED", 143))
    stops = answer is not None and answer.startswith("s")
    monkeypatch.setattr(door, "_at_a_terminal", lambda: answer is not None)
    monkeypatch.setattr("typer.prompt", lambda *_, **__: answer)
    with pytest.raises(KeyboardInterrupt) if not stops else nullcontext(), door._told_when_left(api, ["n"]) as stop:
        assert watch(api, "n", on_interrupt=stop).code == 143
    said = capsys.readouterr().err
    assert api.stopped == (["n"] if stops else [])
    assert ("raymlp jobs stop n" in said) is not stops


def test_the_result_is_the_last_line_that_says_so() -> None:
    assert result_of(LOG) == ("auc", 0.75)
    assert result_of("result: auc 0.5\nresult: rmse 1e-05\ndone") == ("rmse", 1e-05)
    assert result_of("no result: auc 0.5\nresult: of what") is None


def test_the_token_is_never_among_a_jobs_settings() -> None:
    api = Api(Access("http://head:8265", "2.60.0", {"Authorization": "Bearer s3cret-token"}))
    for part in (
        {"entrypoint": "echo s3cret-token"},
        {"metadata": {"a": "s3cret-token"}},
        {"runtime_env": {"env_vars": {"A": "s3cret-token"}}},
    ):
        with pytest.raises(JobError, match="Nothing was sent") as refused:
            api.submit("n", **{"entrypoint": "true", "metadata": {}, "runtime_env": {}, "cpus": 0, **part})  # type: ignore[arg-type]
        assert "s3cret" not in str(refused.value)


def test_the_verbs_own_words_and_its_overrides_are_told_apart() -> None:
    assert door.divided("find", ["learning-rate", "experiment=flights", "--verbose"]) == (
        ["learning-rate", "--verbose"],
        ["experiment=flights"],
    )
    assert door.divided("forget", ["--key", "email=a@b.org", "experiment=flights"]) == (["--key", "email=a@b.org"], ["experiment=flights"])
    assert door.divided("rollout", ["start", "--reason", "why not", "a=b"]) == (["start", "--reason", "why not"], ["a=b"])
    assert door.divided("train", []) == ([], [])
    for verb, said in {"plan": "stays on this machine", "trian": "is no verb.*Did you mean 'train'"}.items():
        with pytest.raises(ConfigError, match=said):
            door.divided(verb, [])


@pytest.mark.parametrize(
    ("words", "said"), [(["find", "x"], "learning-rate"), (["train", "--epoch"], "No such option"), (["find"], "Missing")]
)
def test_an_error_of_usage_is_the_verbs_own(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from raymlp.cli import run_command

    assert run_command(["submit", *words]) == 2
    assert said in capsys.readouterr().err


class Racing(Scripted):
    """Jobs that end, two looks after their start, with the number in their name as exit code."""

    def __init__(self) -> None:
        super().__init__("RUNNING")
        self.ages: dict[str, int] = {}
        self.most = 0

    def jobs(self) -> list[Job]:
        self.looks.append("RUNNING")
        if len(self.looks) % 3 == 0:
            raise JobError("away for a moment")
        self.most = max(self.most, sum(age < 2 for age in self.ages.values()))
        self.ages = {name: age + 1 for name, age in self.ages.items()}
        return [Job(name, "FAILED" if age > 2 else "RUNNING", "", int(name) if age > 2 else None) for name, age in self.ages.items()]


def race(at_once: int, count: int) -> tuple[Racing, list[tuple[str, int]]]:
    from raymlp.config.jobs import Jobs
    from raymlp.config.schema import Site
    from raymlp.jobs.package import Package
    from raymlp.jobs.submission import Point
    from raymlp.jobs.work import Decision, Work

    api: Any = Racing()
    points = tuple(Point(Work("train", (), (), Site(), Jobs()), "", Decision(str(i), True, "", "")) for i in range(count))
    submission = Submission(api, Jobs(at_once=at_once), Package(Path(), ()), None, points, (), ())
    results = [(result.id, result.code) for _, result in submission.race(lambda _, decision: api.ages.setdefault(decision.id, 0))]
    return api, results


def test_a_sweep_runs_so_many_at_once_and_each_to_its_end() -> None:
    api, results = race(2, 5)
    assert sorted(results) == [(str(i), i) for i in range(5)]
    assert api.most == 2


class Taking:
    """A cluster that takes every job, and remembers with what."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def submit(self, name: str, **what: Any) -> None:
        self.taken.append(what)


def test_each_point_has_its_own_settings_and_code_that_has_changed_is_not_sent(tmp_path: Path) -> None:
    from raymlp.config.jobs import Jobs
    from raymlp.config.schema import Site
    from raymlp.jobs.package import package_of
    from raymlp.jobs.submission import Point, Submission
    from raymlp.jobs.work import Decision, Work

    (tmp_path / "train.py").write_text("1")
    package, api = package_of(tmp_path), Taking()
    settings = [Jobs(driver_cpus=2, env={"A": "1"}), Jobs(driver_cpus=3, env={"A": "2"})]
    points = tuple(Point(Work("train", (), (), Site(), one), "", Decision("a", False, "", "")) for one in settings)
    submission = Submission(api, settings[0], package, None, points, (("code", package.digest),), ())  # type: ignore[arg-type]
    for point in points:
        submission.start(point)
    assert [(what["cpus"], what["runtime_env"]["env_vars"]["A"]) for what in api.taken] == [(2, "1"), (3, "2")]
    (tmp_path / "train.py").write_text("2")
    with pytest.raises(ConfigError, match="has changed since this began"):
        submission.start(points[0])
    (tmp_path / "train.py").unlink()
    with pytest.raises(ConfigError, match="has changed since this began"):
        submission.start(points[0])
    assert len(api.taken) == 2


def test_a_job_that_the_cluster_no_longer_knows_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from raymlp.jobs import submission

    monkeypatch.setattr(submission, "PATIENCE_S", 0.0)
    monkeypatch.setattr(Racing, "jobs", lambda self: [])
    with pytest.raises(NoSuchJob, match="no longer knows 0"):
        race(1, 1)
