"""What a process knows of the Ray job that it is the driver of: one started by `raymlp submit` or by `ray job submit`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raymlp import __version__
from raymlp.config.runtime import Runtime
from raymlp.core.errors import ConfigError, RaymlpError

VERSION, COMMIT, WORK, CODE, VERB, RUN = (f"raymlp_{name}" for name in ("version", "commit", "work", "code", "verb", "run"))
"""Keys of a job's metadata that `raymlp submit` writes: who checked the config, the code, what the job does, the run's name."""


@dataclass(frozen=True)
class RayJob:
    """The job of this process. `metadata` is what it was submitted with."""

    id: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def ray_job() -> RayJob | None:
    """The job that this process is the driver of; None for any other process. Ray tells its drivers by a variable."""
    text = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    metadata = json.loads(text).get("metadata", {}) if text else {}
    name = metadata.get("job_submission_id")
    return RayJob(str(name), metadata) if name else None


def require_job_can_run(runtime: Runtime) -> None:
    """Raise, in a job, when its results would be lost or its config was checked by another raymlp. Elsewhere nothing happens.

    A job works in the folder where Ray unpacked its code: every job with the same code shares it, and Ray deletes it.
    """
    job = ray_job()
    if job is None:
        return
    checked = job.metadata.get(VERSION, __version__)
    if checked != __version__:
        raise RaymlpError(
            f"the config was checked by raymlp {checked}, and the cluster runs {__version__}; expected the same. "
            "Submit from a folder with raymlp's code, or bring one of them to the other's version."
        )
    if "://" not in runtime.storage and not Path(runtime.storage).expanduser().is_absolute():
        raise ConfigError(
            f"runtime.storage is {runtime.storage}, a folder inside the job's unpacked code, which other jobs share and Ray deletes; "
            "expected an absolute one that all nodes see. Set runtime.storage, or RAYMLP_STORAGE on the nodes."
        )
