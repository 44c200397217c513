"""The whole life of a model on two nodes that share nothing but a network: each has a mount namespace with `/tmp` and shared memory of its
own, so that no path of one exists on the other. Results go to a bucket, runs and versions to a tracking server.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pytest

import raymlp
from raymlp import pipeline
from raymlp.config.schema import Config
from raymlp.core.files import Place
from raymlp.data import sources
from raymlp.data.place import snapshot_root
from raymlp.model.predictor import Predictor
from raymlp.runtime.audit import audit_file, entries, verify
from raymlp.runtime.ports import free_port
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import StorePlace
from tests.conftest import ROOT, STORE_CREDENTIALS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two nodes"), pytest.mark.timeout(900)]

NODE = """
mount --bind "$1" /tmp && mount -t tmpfs tmpfs /dev/shm && hostname "$2" && mkdir -p /tmp/home && cd /tmp/home || exit 1
shift 2
exec "$@"
"""
"""A process that sees a folder as `/tmp`, and of the machine's real `/tmp` nothing."""


@dataclass
class Lived:
    """What is left when the job has ended."""

    config: Config
    record: dict[str, Any]
    said: str
    folders: dict[str, Path]


def namespaces() -> bool:
    words = ["unshare", "--mount", "--uts", "--pid", "--fork", "true"]
    return os.getuid() == 0 and shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


def until(true: Callable[[], bool], what: str, *processes: subprocess.Popen[bytes], limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), f"a process died before {what}"
        with contextlib.suppress(OSError, RuntimeError):
            if true():
                return
        time.sleep(0.3)
    raise AssertionError(f"not {what} in {limit_s:g} s")


def answers(url: str) -> bool:
    import urllib.request

    with urllib.request.urlopen(url, timeout=3) as answer:
        return bool(answer.status == 200)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    if not namespaces():
        pytest.skip("needs root and unshare, for a mount namespace a node")
    if any(place.is_relative_to("/tmp") for place in (ROOT, Path(sys.executable))):
        pytest.skip("the code lies in /tmp, which no node has")
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    base = tmp_path_factory.mktemp("apart")
    folders = {name: base / name for name in ("bucket", "tracking", "head", "worker", "laptop")}
    for folder in folders.values():
        folder.mkdir()
    patch, running = pytest.MonkeyPatch(), list[subprocess.Popen[bytes]]()
    for name, value in {**STORE_CREDENTIALS, "HOME": str(folders["laptop"])}.items():
        patch.setenv(name, value)
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    for name in ("RAY_ADDRESS", "RAYMLP_API_KEYS", "TMPDIR", "XDG_CACHE_HOME"):
        environment.pop(name, None)

    def start(name: str, *words: str, home: str = "") -> subprocess.Popen[bytes]:
        with (base / f"{name}.log").open("wb") as log:
            mine = {**environment, "HOME": home or str(folders[name])}
            running.append(subprocess.Popen(words, cwd=folders[name], env=mine, stdout=log, stderr=log, start_new_session=True))
        return running[-1]

    def node(name: str, *words: str) -> subprocess.Popen[bytes]:
        apart = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        shell = ["bash", "-c", NODE, name, str(folders[name]), name]
        options = ["--block", "--disable-usage-stats", "--object-store-memory=300000000"]
        return start(name, *apart, *shell, "ray", "start", *words, *options, home="/tmp/home")

    try:
        s3, mlflow, gcs, dashboard = (free_port() for _ in range(4))
        bucket = start("bucket", sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3))
        database = f"sqlite:///{folders['tracking'] / 'mlflow.db'}"
        server = ["mlflow", "server", "--host=127.0.0.1", f"--port={mlflow}", f"--backend-store-uri={database}", "--workers=1"]
        tracking = start("tracking", *server, f"--artifacts-destination={folders['tracking'] / 'artifacts'}")
        ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
        head = node("head", "--head", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2", *ports)
        until(lambda: answers(f"http://127.0.0.1:{s3}/"), "the object store answered", bucket)
        until(lambda: "Ray runtime started" in (base / "head.log").read_text(), "the head started", head)
        until(lambda: answers(f"http://127.0.0.1:{dashboard}/api/version"), "the head answered", head)
        agent = f"--dashboard-agent-listen-port={free_port()}"
        worker = node("worker", f"--address=127.0.0.1:{gcs}", "--node-ip-address=127.0.0.2", "--num-cpus=4", agent)
        until(lambda: answers(f"http://127.0.0.1:{mlflow}/health"), "the tracking server answered", tracking)

        store = pafs.S3FileSystem(endpoint_override=f"http://127.0.0.1:{s3}", region="us-east-1", allow_bucket_creation=True)
        store.create_dir("lake")
        with store.open_output_stream("lake/raw/flights.csv") as out:
            pacsv.write_csv(every_eighth(sources.read_all(raymlp.load_config("flights").data.source)), out)
        query = f"endpoint_override=http://127.0.0.1:{s3}&region=us-east-1"
        settings = [
            "experiment=flights",
            f"runtime.storage='s3://lake/results?{query}'",
            f"registry.tracking_uri=http://127.0.0.1:{mlflow}",
            f"data.source.path='s3://lake/raw/flights.csv?{query}'",
            "data.split.valid_start=2013-09-01",
            "data.split.valid_end=2013-10-01",
            f"serve.port={free_port()}",
            "serve.log.flush_s=0.2",
            "serve.min_replicas=3",
            "serve.max_replicas=3",
            "train.num_workers=2",
            "train.epochs=3",
            "train.batch_size=256",
            "evaluate.baselines=[rule]",
            "replay.rows_per_window=1200",
            "replay.max_retrains=1",
            "replay.drill=false",
            "evaluate.gate.tolerance=0.02",
            "serve.rollout.min_requests=50",
        ]
        record, said = submitted(f"http://127.0.0.1:{dashboard}", folders["laptop"], settings, head, worker)
        config = raymlp.load_config(overrides=[*settings])
        yield Lived(config, record, said, folders)
    finally:
        for process in reversed(running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        patch.undo()


def every_eighth(table: pa.Table) -> pa.Table:
    """Every eighth flight, so that the seasons stay."""
    table = table.take(pa.array(range(0, table.num_rows, 8)))
    moments = pc.strftime(table.column("time_hour"), format="%Y-%m-%dT%H:%M:%SZ")
    return table.set_column(table.schema.get_field_index("time_hour"), "time_hour", moments)


def submitted(address: str, laptop: Path, settings: list[str], *nodes: subprocess.Popen[bytes]) -> tuple[dict[str, Any], str]:
    """The record and the output of `raymlp run`, submitted through the jobs API from a folder that holds a script alone."""
    from ray.job_submission import JobSubmissionClient

    (laptop / "project").mkdir()
    shutil.copy(ROOT / "jobs" / "run.py", laptop / "project" / "run.py")
    client = JobSubmissionClient(address)
    until(lambda: client.list_jobs() == [], "the jobs API answered", *nodes)
    name = client.submit_job(
        entrypoint=shlex.join(["python", "run.py", *settings]), runtime_env={"working_dir": str(laptop / "project")}, submission_id="life"
    )
    until(lambda: client.get_job_status(name).is_terminal(), "the job ended", *nodes, limit_s=780.0)
    found = client.get_job_info(name)
    return {"status": str(found.status.value), "exit": found.driver_exit_code}, str(client.get_job_logs(name))


def names_in(place: Place) -> set[str]:
    assert isinstance(place, StorePlace)
    return {str(file.relative_to(place)) for file in place.files()}


def test_the_whole_life_of_a_model_happens_on_nodes_that_cannot_read_each_others_disks(lived: Lived) -> None:
    assert lived.record == {"status": "SUCCEEDED", "exit": 0}, lived.said[-4000:]
    steps = [line.split()[1] for line in lived.said.splitlines() if line.startswith("ok ")]
    assert steps[:5] == ["prepare", "train", "evaluate", "register", "deploy"]
    assert {"live", "monitor", "retrain", "compare", "rollout"} <= set(steps)


def test_all_that_others_read_is_in_the_bucket(lived: Lived) -> None:
    names = names_in(storage_root(lived.config.runtime))
    tops = {name.split("/")[0] for name in names}
    assert {"audit", "bundles", "labels", "metrics", "monitor", "predictions", "retrain", "rollouts", "runs", "snapshots"} <= tops
    runs = {name.split("/")[1] for name in names if name.startswith("runs/")}
    assert all({f"runs/{run}/run.json", f"runs/{run}/bundle/manifest.json"} <= names for run in runs)
    assert any(name.startswith("runs/") and "/checkpoints/checkpoint_" in name for name in names)
    assert names_in(snapshot_root(lived.config.runtime))


def test_both_nodes_had_the_bundles_and_no_results_on_their_own_disks(lived: Lived) -> None:
    for name in ("head", "worker"):
        cache = lived.folders[name] / "home" / ".cache" / "raymlp"
        copied = {json.loads(file.read_text())["digest"] for file in (cache / "copies").glob("*/manifest.json")}
        assert copied, name
        left = [file for file in lived.folders[name].rglob("*.parquet") if "session_" not in str(file)]
        assert left == [], name
    assert not (lived.folders["laptop"] / "project" / "artifacts").exists()


def test_the_laptop_reads_the_same_story(lived: Lived) -> None:
    chain = verify(audit_file(lived.config.runtime))
    acts = [entry["what"] for entry in entries(audit_file(lived.config.runtime))]
    assert chain.entries == len(acts)
    assert acts[:2] == ["register", "deploy"]
    assert acts[-1] == "undeploy"
    log, store = pipeline.prediction_log(lived.config), pipeline.store_of(lived.config)
    assert set(log.column("status").to_pylist()) == {200}
    predictor = Predictor.load(store.get("flights/1").bundle)
    rows = log.filter(pc.equal(log.column("version"), "v1"))
    inputs = pa.table({name.removeprefix("in."): rows.column(name) for name in rows.column_names if name.startswith("in.")})
    assert rows.column("prediction").to_numpy() == pytest.approx(predictor.predict(inputs).scores, abs=1e-6)
    labels = pipeline.labels(lived.config)
    assert labels is not None
    assert set(labels.column("prediction_id").to_pylist()) == set(log.column("prediction_id").to_pylist())
