"""What a run leaves in MLflow: one run a job, written by the driver alone."""

from __future__ import annotations

import fcntl
import importlib.metadata
import logging
import os
import platform
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from raymlp import __version__
from raymlp.config.registry import Registry
from raymlp.config.runtime import Runtime
from raymlp.core.errors import RegistryError
from raymlp.core.files import Place, make_folder
from raymlp.runtime.copies import own_folder
from raymlp.runtime.job import COMMIT, ray_job
from raymlp.runtime.session import storage_root

log = logging.getLogger(__name__)
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(registry: Registry, runtime: Runtime) -> str:
    """Address of the tracking store: what is set, or a SQLite file under the storage folder."""
    return registry.tracking_uri or f"sqlite:///{storage_root(runtime) / 'mlflow.db'}"


def client(registry: Registry, runtime: Runtime) -> Any:
    """An MLflow client. Raises RegistryError when the store cannot be reached."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(registry, runtime)
    try:
        with _one_at_a_time(own_folder(storage_root(runtime))) if uri.startswith("sqlite:") else nullcontext():
            found = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found.get_experiment_by_name("Default")  # makes the tables where there are none
            return found
    except MlflowException as error:
        raise RegistryError(f"the tracking store {uri} cannot be used: {error.message}. Set registry.tracking_uri.") from None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several processes that open a new database at once, one makes its tables: MLflow breaks when two do."""
    make_folder(folder)
    with (folder / "mlflow.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Run:
    """An open run: metrics by step, files, and tags."""

    def __init__(self, mlflow: Any, run_id: str) -> None:
        self._mlflow, self.id = mlflow, run_id

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers; what is not finite is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = {name: float(value) for name, value in values.items() if value == value and abs(value) != float("inf")}
        with whole():
            self._mlflow.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in finite.items()])

    def text(self, text: str, name: str) -> None:
        """Keep a small text as an artifact."""
        self._mlflow.log_text(self.id, text, name)

    def file(self, path: Place) -> None:
        """Keep a file as an artifact; in a store, one of text."""
        if isinstance(path, Path):
            self._mlflow.log_artifact(self.id, str(path))
        else:
            self.text(path.read_text(), path.name)

    def tag(self, name: str, value: str) -> None:
        with whole():
            self._mlflow.set_tag(self.id, name, value)

    def last_step(self, metric: str) -> int:
        """The last step that a metric was logged at; -1 when it never was."""
        return max((point.step for point in self._mlflow.get_metric_history(self.id, metric)), default=-1)

    def reopen(self) -> None:
        """Mark the run as running again."""
        with whole():
            self._mlflow.update_run(self.id, status="RUNNING")

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        with whole():
            self._mlflow.set_terminated(self.id, status)


@contextmanager
def whole() -> Iterator[None]:
    """A signal that comes inside is delivered at the end: a write that is broken off in the middle leaves its database locked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda late, _: came.append(late))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


@contextmanager
def tracked(
    name: str, job: str, *, config_yaml: str, seed: int, snapshot: str, registry: Registry, runtime: Runtime, run_id: str | None = None
) -> Iterator[Run]:
    """A new run in the experiment `name`, or the one with this id again; marked finished, failed or killed at the end.

    Holds the resolved config, snapshot digest, code version, seed and environment from the start.
    Raises RegistryError when there is no run with this id.
    """
    if run_id is not None:
        run = existing(run_id, registry=registry, runtime=runtime)
        run.reopen()
        with _ended(run):
            yield run
        return
    mlflow = client(registry, runtime)
    tags = {"raymlp.job": job, "raymlp.snapshot": snapshot, "raymlp.seed": str(seed), **code_version()}
    record = mlflow.create_run(_experiment(mlflow, name, registry, runtime), run_name=f"{job}-{time.strftime('%Y%m%d-%H%M%S')}", tags=tags)
    run = Run(mlflow, record.info.run_id)
    run.text(config_yaml, "config.yaml")
    run.text(environment(), "environment.txt")
    with _ended(run):
        yield run


@contextmanager
def _ended(run: Run) -> Iterator[None]:
    try:
        yield
    except Exception:
        run.end("FAILED")
        raise
    except BaseException:
        try:
            run.end("KILLED")
        except Exception as error:
            log.warning("run %s was stopped and could not be marked as killed: %s", run.id, error)
        raise
    run.end("FINISHED")


def existing(run_id: str, *, registry: Registry, runtime: Runtime) -> Run:
    """The run that made a bundle, for its evaluation and registration to be written to. Raises RegistryError."""
    from mlflow.exceptions import MlflowException

    mlflow = client(registry, runtime)
    try:
        mlflow.get_run(run_id)
    except MlflowException as error:
        raise RegistryError(
            f"run {run_id} is not in {tracking_uri(registry, runtime)}: {error.message}. Set registry.tracking_uri."
        ) from None
    return Run(mlflow, run_id)


@dataclass(frozen=True)
class Recorded:
    """What the tracking store holds of a run. `config_yaml` is empty where the artifact is gone."""

    id: str
    status: str
    started: datetime
    tags: Mapping[str, str]
    config_yaml: str


def recorded(run_id: str, *, registry: Registry, runtime: Runtime) -> Recorded:
    """A run as it was recorded. Raises RegistryError when the store does not have it."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    existing(run_id, registry=registry, runtime=runtime)
    found = client(registry, runtime).get_run(run_id)
    try:
        with tempfile.TemporaryDirectory() as folder:
            where = {"dst_path": folder, "tracking_uri": tracking_uri(registry, runtime)}
            text = Path(download_artifacts(artifact_uri=f"{found.info.artifact_uri}/config.yaml", **where)).read_text()
    except (MlflowException, OSError):
        text = ""
    return Recorded(run_id, found.info.status, datetime.fromtimestamp(found.info.start_time / 1000, UTC), dict(found.data.tags), text)


def _experiment(mlflow: Any, name: str, registry: Registry, runtime: Runtime) -> str:
    found = mlflow.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    root = storage_root(runtime)
    place = (root / "mlartifacts" / name).as_uri() if isinstance(root, Path) and not registry.tracking_uri else None
    return str(mlflow.create_experiment(name, artifact_location=place))


def code_version() -> dict[str, str]:
    """Version of raymlp, and the commit of the working folder where it is a git checkout; in a job that of the folder that was uploaded,
    beside the job's id."""
    tags = {"raymlp.version": __version__, "raymlp.python": platform.python_version()}
    if job := ray_job():
        commit = job.metadata.get(COMMIT)
        return {**tags, "raymlp.submission": job.id, **({"raymlp.commit": commit} if commit else {})}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return tags
    return {**tags, "raymlp.commit": commit + ("+changes" if dirty else "")}


def environment() -> str:
    """Installed distributions, one `name==version` a line."""
    names = {f"{item.metadata['Name']}=={item.version}" for item in importlib.metadata.distributions()}
    return "\n".join(sorted(names, key=str.lower)) + "\n"
