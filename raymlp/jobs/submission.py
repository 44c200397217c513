"""From a verb and its overrides to jobs: everything that can be checked here and now is checked, then they start."""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import raymlp
from raymlp.config.jobs import Jobs
from raymlp.config.loader import load_site
from raymlp.config.schema import Config
from raymlp.config.sweep import points
from raymlp.core.errors import ConfigError, JobError
from raymlp.jobs.access import opened
from raymlp.jobs.api import Api, Job, NoSuchJob
from raymlp.jobs.cluster import TRAINS, Cluster, is_lasting, raymlp_version, require_room, require_versions, storage_notes
from raymlp.jobs.package import MB, Package, package_of
from raymlp.jobs.watch import PATIENCE_S, POLL_S, OnLog, result_of, watch
from raymlp.jobs.work import Decision, Work, decide, named
from raymlp.runtime.job import CODE, COMMIT, RUN, VERB, VERSION, WORK
from raymlp.runtime.session import storage_root
from raymlp.runtime.tracking import code_version

WIDTH = "140"
"""Columns of what a job prints: its log is no terminal."""


@dataclass(frozen=True)
class Ended:
    """A job that has ended: its exit code, 143 when it was stopped, the metric that it ended with, and what it said last where it failed.
    `problem` is what the cluster says of a job that never came to run."""

    id: str
    status: str
    code: int
    seconds: float
    metric: tuple[str, float] | None
    last: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Point:
    """One job to be: its work, and what was decided about it. `swept` are the overrides that tell it from its neighbours."""

    work: Work
    digest: str
    decision: Decision
    swept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """Jobs that may start. `facts` and `notes` are for people."""

    api: Api
    jobs: Jobs
    package: Package
    image: str | None
    points: tuple[Point, ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def start(self, point: Point) -> Decision:
        """Start the job, or take the one that is there. Of two that start the same job at once, one takes the other's."""
        work, decision = point.work, point.decision
        if decision.attach:
            return decision
        metadata = {VERB: work.verb, WORK: point.digest, CODE: self.package.digest, RUN: decision.run, VERSION: raymlp.__version__}
        if commit := code_version().get("raymlp.commit"):
            metadata[COMMIT] = commit
        self.package.require_unchanged()
        with tempfile.TemporaryDirectory() as folder:
            archive = self.package.write(Path(folder) / "code.zip")
            try:
                self.api.submit(
                    decision.id,
                    entrypoint=work.entrypoint,
                    metadata=metadata,
                    runtime_env=_runtime_env(archive, work.jobs, self.image),
                    cpus=work.jobs.driver_cpus,
                )
            except JobError:
                other = next((job for job in self.api.jobs() if job.id == decision.id), None)
                if other is None or other.metadata.get(WORK) != point.digest:
                    raise
                return replace(decision, attach=True, reason="was started by somebody else just now")
        return decision

    def wait(self, name: str, on_log: OnLog | None = None, on_interrupt: Callable[[], bool] | None = None) -> Ended:
        """What became of a job. At Ctrl-C as `watch`."""
        return ended(self.api, watch(self.api, name, on_log, on_interrupt))

    def race(
        self, on_start: Callable[[Point, Decision], None], on_interrupt: Callable[[], bool] | None = None
    ) -> Iterator[tuple[Point, Ended]]:
        """Start all jobs, `jobs.at_once` side by side, and give each as it ends. When `on_interrupt` has answered Ctrl-C by stopping them,
        no others start."""
        waiting, running, answered = list(self.points), dict[str, list[Point]](), time.monotonic()
        while waiting or running:
            while waiting and len(running) < self.jobs.at_once:
                point = waiting.pop(0)
                decision = self.start(point)
                on_start(point, decision)
                running.setdefault(decision.id, []).append(point)
            try:
                time.sleep(POLL_S)
                known = {job.id: job for job in self.api.jobs()}
                over = [known[name] for name in running if name in known and known[name].has_ended]
                if all(name in known for name in running):
                    answered = time.monotonic()
                elif time.monotonic() - answered > PATIENCE_S:
                    gone = ", ".join(name for name in running if name not in known)
                    raise NoSuchJob(f"{self.api.access.address} no longer knows {gone}; expected its jobs. Was its head started anew?")
            except NoSuchJob:
                raise
            except JobError:
                over = []
                if time.monotonic() - answered > PATIENCE_S:
                    raise
            except KeyboardInterrupt:
                if on_interrupt is None or not on_interrupt():
                    raise
                waiting, over = [], []
            for job in over:
                yield from ((point, ended(self.api, job)) for point in running.pop(job.id))


def ended(api: Api, job: Job) -> Ended:
    """What became of a job that has ended."""
    assert job.code is not None
    try:
        log = api.log(job.id)
    except JobError:
        log = ""
    words = [line for line in log.splitlines() if line.strip()]
    last = words[-1].strip() if words and job.status == "FAILED" else ""
    return Ended(job.id, job.status, job.code, job.seconds, result_of(log) if job.code == 0 else None, last, job.problem)


def submit(
    verb: str,
    overrides: Sequence[str] = (),
    *,
    arguments: Sequence[str] = (),
    name: str | None = None,
    image: str | None = None,
    again: bool = False,
) -> list[Ended]:
    """Run a verb as a job on a cluster, one a point where the overrides sweep, and give what became of each.

    `arguments` are the verb's own, before the overrides. The same work is not done twice: a job that does it, or has done it, is taken,
    unless `again`. Raises ConfigError as the verb itself does, and when the cluster may not be talked to or has no room; JobError when it
    does not answer.

        raymlp.submit("train", ["experiment=flights", "model=mlp,tabm"])
    """
    submission = prepared(verb, overrides, arguments=arguments, name=name, image=image, again=again)
    order = {id(point): place for place, point in enumerate(submission.points)}
    results = sorted(submission.race(lambda *_: None), key=lambda pair: order[id(pair[0])])
    return [result for _, result in results]


def prepared(
    verb: str,
    overrides: Sequence[str] = (),
    *,
    arguments: Sequence[str] = (),
    name: str | None = None,
    image: str | None = None,
    again: bool = False,
) -> Submission:
    """Everything that can be checked before a job starts. Raises as `submit`; nothing was sent but questions."""
    if name is not None:
        named(name)
    swept = points(overrides)
    works = [Work.of(verb, arguments, point) for point in swept]
    notes = [note for work in works for note in _training_notes(work)]
    jobs, runtime = works[0].jobs, works[0].config.runtime
    results = storage_root(runtime)
    package = package_of(Path.cwd(), jobs.excludes, results=results if isinstance(results, Path) else None)
    package.require_at_most(jobs.max_upload_mb)
    package.require_overlays(overrides)
    own = _own_raymlp(package)
    access = opened(jobs.address)
    cluster = Cluster.of(access)
    works = [_with_storage(work, cluster) for work in works]
    notes += [*access.notes, *require_versions(cluster, ray_version=importlib.metadata.version("ray"), image=image)]
    for work in works:
        notes += [*require_room(verb, work.config, cluster), *storage_notes(work.config, cluster)]
    facts = (
        ("cluster", f"{access.address}: {cluster.summary}"),
        ("uploads", f"{len(package.files):,} files, {package.size / MB:,.1f} MB of {package.root}, code {package.digest[:10]}"),
        ("raymlp", f"{own}, which uploads" if own else f"the cluster's own; it has to be {raymlp.__version__}"),
    )
    api, decided = Api(access), []
    known = api.jobs()
    for work, point in zip(works, swept, strict=True):
        digest = work.digest(package.digest, image)
        title = name if name and len(swept) == 1 else f"{name or work.title}-{digest}"
        decision = decide(digest, title, known, again=again)
        told_apart = tuple(word for word in point if word not in overrides)
        decided.append(Point(_with_name(work, decision), digest, decision, told_apart))
    return Submission(api, jobs, package, image, tuple(decided), facts, tuple(dict.fromkeys(notes)))


def _own_raymlp(package: Package) -> str | None:
    """Version of the raymlp that uploads, if one does. Raises ConfigError when it is another one than this, which checks the config."""
    own = raymlp_version(package.root, [file.name for file in package.files])
    if own not in (None, raymlp.__version__):
        raise ConfigError(
            f"{package.root} holds raymlp {own}, and this is {raymlp.__version__} of {Path(raymlp.__file__).parent}; expected the same, "
            "since this one checks what that one runs. Run the folder's own: python -m raymlp submit ..."
        )
    return own


def _with_storage(work: Work, cluster: Cluster) -> Work:
    """On a cluster of this machine alone, results go where the verb itself would leave them here."""
    if not cluster.is_this_machine or is_lasting(work.config.runtime):
        return work
    here = load_site(word for word in work.overrides if word.startswith("runtime.")).runtime
    return work.with_settings(runtime_storage=str(storage_root(here)))


def _with_name(work: Work, decision: Decision) -> Work:
    """A training that can be found again by the next attempt."""
    if decision.attach or work.verb != "train" or not isinstance(work.config, Config) or work.config.train.name is not None:
        return work
    return work.with_settings(train_name=decision.run)


def _training_notes(work: Work) -> list[str]:
    """What this machine lacks for training, which the nodes have to have. Raises ConfigError for what cannot be trained together."""
    from raymlp.train.support import refusals

    if work.verb not in TRAINS or not isinstance(work.config, Config):
        return []
    lines = refusals(work.config)
    missing = [line for line in lines if "pip install" in line or "compiler" in line]
    if found := [line for line in lines if line not in missing]:
        raise ConfigError("\n".join(found))
    return [f"here, and so perhaps on the nodes: {line}" for line in missing]


def _runtime_env(archive: Path, jobs: Jobs, image: str | None) -> dict[str, Any]:
    variables = {"COLUMNS": WIDTH, **jobs.env, "RAY_JOB_STOP_WAIT_TIME_S": str(jobs.stop_wait_s)}
    return {"working_dir": str(archive), "env_vars": variables, **jobs.runtime_env, **({"image_uri": image} if image else {})}
