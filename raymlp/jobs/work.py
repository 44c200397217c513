"""What a job does, said so that the same work has the same name: it is found again instead of done again. Pure; no cluster, no Ray."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from raymlp.config.jobs import Jobs
from raymlp.config.loader import has_local, load_config, load_jobs, load_site, with_overrides
from raymlp.config.schema import Config, Site
from raymlp.core.errors import ConfigError
from raymlp.core.files import digest_of
from raymlp.jobs.api import Job
from raymlp.runtime.job import RUN, WORK

RECORDED = ("reproduce", "trace")
"""Verbs whose config is that of a recorded run: overrides say where it is."""
LOADED = ("predict",)
"""Verbs whose config comes from a model, which may lie where the nodes alone reach it."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}")
DIGITS = 10
MACHINE = ("RAYMLP_STORAGE", "RAYMLP_SNAPSHOTS", "RAYMLP_ADDRESS")
"""Variables that the config takes from the machine it is composed on: a node's, not this one's."""


@dataclass(frozen=True)
class Work:
    """A verb, its own arguments, and overrides; the config that they give, on the machine that submits."""

    verb: str
    arguments: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Config | Site
    jobs: Jobs

    @classmethod
    def of(cls, verb: str, arguments: Sequence[str], overrides: Sequence[str]) -> Work:
        """Compose and validate as the job will, without this machine's conf/local and variables. Raises ConfigError as the verb does."""
        kept = tuple(word for word in overrides if not word.lstrip("+").startswith("jobs."))
        config: Config | Site
        with _without(MACHINE):
            if verb in RECORDED:
                config = load_site(kept)
            elif verb in LOADED:
                config = load_site(word for word in kept if word.startswith(("runtime.", "registry.")))
            else:
                config = load_config(overrides=overrides, local=False)
            jobs = load_jobs(overrides) if has_local() or not isinstance(config, Config) else config.jobs
        return cls(verb, tuple(arguments), kept, config, jobs)

    def with_settings(self, **values: str) -> Work:
        """The same work with more settings, by section and key: `runtime_storage` is `runtime.storage`."""
        settings = {key.replace("_", ".", 1): value for key, value in values.items()}
        words = tuple(f"{key}={_quoted(value)}" for key, value in settings.items())
        config = with_overrides(self.config, settings) if isinstance(self.config, Config) else self.config
        return replace(self, overrides=(*self.overrides, *words), config=config)

    @property
    def words(self) -> list[str]:
        return [self.verb, *self.arguments, *self.overrides]

    @property
    def entrypoint(self) -> str:
        """For the shell that Ray starts, with every word quoted."""
        return shlex.join(["python", "-m", "raymlp", *self.words])

    @property
    def title(self) -> str:
        """The verb, and of what problem."""
        return f"{self.verb}-{self.config.problem.name}" if isinstance(self.config, Config) else self.verb

    def digest(self, code: str, image: str | None) -> str:
        """What a job computes follows from: the verb, the resolved config, the code, the image and its environment. Where it is
        submitted to, and how long it may take to stop, are left out."""
        if isinstance(self.config, Config):
            settings: Any = self.config.model_dump(mode="json", exclude={"jobs"})
        else:
            settings = sorted(self.overrides)
        places = [self.jobs.env, self.jobs.runtime_env, self.jobs.driver_cpus]
        return digest_of([self.verb, self.arguments, settings, code, image, places])[:DIGITS]


@dataclass(frozen=True)
class Decision:
    """Which job does the work: one that is there (`attach`), or a new one. `run` is the name under which training goes on."""

    id: str
    attach: bool
    run: str
    reason: str


def decide(work: str, name: str, jobs: Iterable[Job], *, again: bool = False) -> Decision:
    """A job of this name that runs, or has done the work, is taken; one that failed or was stopped is followed by the next attempt,
    which goes on with its run. `work` is the digest. `again` has finished work done once more.

    Raises ConfigError when the name stands for other work.
    """
    attempts = {attempt: job for job in jobs if (attempt := _attempt(job.id, name))}
    if not attempts:
        return Decision(name, False, name, "")
    last = max(attempts)
    job = attempts[last]
    if job.metadata.get(WORK) != work:
        raise ConfigError(f"the job {job.id} does other work (or its code has changed); expected the same. Choose another --name.")
    if not job.has_ended:
        return Decision(job.id, True, "", "is on its way")
    if job.code == 0 and not again:
        return Decision(job.id, True, "", "has done this; --again does it once more")
    following = f"{name}-{last + 1}"
    if job.code == 0:
        return Decision(following, False, following, f"once more, after {job.id}")
    return Decision(following, False, job.metadata.get(RUN, following), f"attempt {last + 1}: {job.id} {job.status.lower()} ({job.code})")


def _attempt(job: str, name: str) -> int | None:
    """Number of the attempt at the work of this name; None for another's job."""
    if job == name:
        return 1
    found = re.fullmatch(re.escape(name) + r"-(\d+)", job)
    return int(found[1]) if found else None


@contextmanager
def _without(names: Iterable[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _quoted(value: str) -> str:
    """A text as Hydra's grammar takes it."""
    if re.fullmatch(r"[\w./-]+", value, re.ASCII):
        return value
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"


def named(name: str) -> str:
    """A name of one's own. Raises ConfigError when it cannot be a job's."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name is '{name}'; expected letters, digits, '.', '_' and '-', 80 at most, the first a letter or digit.")
    return name
