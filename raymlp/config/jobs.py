"""How `raymlp submit` runs verbs as jobs on a cluster. Read on the machine that submits, and of no weight for what a job computes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from raymlp.config.section import Section, Text
from raymlp.core.errors import nearest

RUNTIME_ENV = ("pip", "uv", "conda", "py_modules", "py_executable", "java_jars", "worker_process_setup_hook", "config")
"""Keys of Ray's `runtime_env` that are a user's. Ray takes any other key in silence."""
ELSEWHERE = {
    "env_vars": "jobs.env",
    "excludes": "jobs.excludes",
    "image_uri": "--image",
    "container": "--image",
    "working_dir": "the folder in which raymlp submit is started",
}
SECRET = re.compile(
    r"(^|_)(TOKEN|SECRETS?|PWD|CREDENTIALS?|APIKEYS?|KEYS?|ACCESS_KEY_ID|CONNECTION_STRING)$|(PASSWORD|PASSWD|PASSPHRASE)$|(^|_)SECRET_",
    re.IGNORECASE,
)


def _without_secrets(env: dict[str, str]) -> dict[str, str]:
    for name in env:
        if SECRET.search(name):
            raise ValueError(
                f"env holds {name}, which looks like a secret; expected none, since everybody who reaches the jobs API reads a job's "
                "variables. Give it in the environment of the nodes, or as a file whose path you set"
            )
    return env


def _known(keys: dict[str, Any]) -> dict[str, Any]:
    for key in keys:
        if key in ELSEWHERE:
            raise ValueError(f"runtime_env holds {key}; expected it elsewhere. Use {ELSEWHERE[key]}")
        if key not in RUNTIME_ENV:
            hint = nearest(key, [*RUNTIME_ENV, *ELSEWHERE]).strip()
            raise ValueError(
                f"runtime_env holds {key}{f' ({hint})' if hint else ''}, which Ray does not know and would leave out in silence; expected "
                f"one of {', '.join(RUNTIME_ENV)}"
            )
    return keys


class Jobs(Section):
    """Jobs on a cluster: where, with what, and how they are stopped."""

    address: str | None = None
    """Address of the cluster's dashboard, `http://127.0.0.1:8265`; null takes RAY_API_SERVER_ADDRESS, and that of this machine without
    one. The token comes from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or `~/.ray/auth_token`, never from here."""

    excludes: tuple[str, ...] = ()
    """What is not uploaded, besides what .gitignore and .rayignore name, as lines of a .gitignore; `!name` uploads it after all."""

    max_upload_mb: int = Field(default=100, ge=1, le=500)
    """The most that is uploaded, in megabytes of files. Every node unpacks it; data belongs on storage. Ray's own limit is 512 MiB."""

    env: Annotated[dict[str, Text], AfterValidator(_without_secrets)] = {}
    """Environment variables of the job and its workers. Everybody who reaches the jobs API reads them."""

    runtime_env: Annotated[dict[str, Any], AfterValidator(_known)] = {}
    """Other keys of Ray's `runtime_env`, as `{pip: [humanize]}`. An image that holds the packages starts 20 s sooner."""

    driver_cpus: float = Field(default=0.0, ge=0)
    """CPUs that the job's own process takes from the cluster, besides its workers. 0 starts all jobs on the head, where they pile up."""

    autoscaled: bool = False
    """Whether the cluster brings nodes when work waits for them. Otherwise a job that asks for more than its nodes have is refused."""

    stop_wait_s: int = Field(default=120, ge=1)
    """Seconds that a stopped job has for its checkpoint before it is killed (RAY_JOB_STOP_WAIT_TIME_S). Ray's own default is 3."""

    at_once: int = Field(default=4, ge=1)
    """Jobs of a sweep that run side by side while `raymlp submit` waits for them. With --no-wait all of them start at once."""
