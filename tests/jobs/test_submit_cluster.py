"""What a cluster has is held against what a job asks for; and what a job makes of itself, once it runs."""

from __future__ import annotations

import json
import platform
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from raymlp import __version__
from raymlp.config.loader import load_config, with_overrides
from raymlp.config.registry import Registry
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config, Site
from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.jobs.cluster import Cluster, raymlp_version, require_room, require_versions, storage_notes
from raymlp.runtime.job import COMMIT, VERSION, ray_job, require_job_can_run
from raymlp.runtime.tracking import code_version

PYTHON = platform.python_version()
ELSEWHERE = Cluster("2.60.0", PYTHON, (("192.0.2.77", {"CPU": 4.0}), ("192.0.2.78", {"CPU": 8.0, "GPU": 2.0})))
HERE = Cluster("2.60.0", PYTHON, (("127.0.0.1", {"CPU": 4.0}),), (socket.gethostname(),))


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("flights")


def test_a_cluster_is_summed_up() -> None:
    assert ELSEWHERE.summary == f"2 nodes, 12 CPUs, 2 GPUs; Ray 2.60.0, Python {PYTHON}"
    assert (ELSEWHERE.total("CPU"), ELSEWHERE.most("CPU"), ELSEWHERE.total("TPU"), Cluster("", "", ()).most("CPU")) == (12, 8, 0, 0)
    assert not replace(HERE, hosts=("another-machine",)).is_this_machine, "its loopback, through a tunnel"
    assert (HERE.is_this_machine, ELSEWHERE.is_this_machine, Cluster("", "", ()).is_this_machine) == (True, False, False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.num_workers": 12}, None),
        ({"train.num_workers": 13}, "training needs 13 workers x 1 CPUs = 13 CPUs; all nodes have 12. Set train.num_workers"),
        ({"train.num_workers": 13, "train.elastic": {"min_workers": 2}}, None),
        ({"train.cpus_per_worker": 9}, "a worker needs 9 CPUs; the largest node has 8. Set train.cpus_per_worker"),
        ({"train.num_workers": 3, "train.gpu": True}, "training needs 3 workers x 1 GPU = 3 GPUs; all nodes have 2"),
        ({"jobs.driver_cpus": 9}, "the driver needs 9 CPUs; the largest node has 8. Set jobs.driver_cpus"),
    ],
)
def test_room_is_asked_for_with_the_arithmetic(config: Config, settings: dict[str, object], said: str | None) -> None:
    asked = with_overrides(config, settings)
    if said is None:
        assert require_room("train", asked, ELSEWHERE) == []
        return
    with pytest.raises(ConfigError) as refused:
        require_room("train", asked, ELSEWHERE)
    assert said in str(refused.value)
    (note,) = require_room("train", with_overrides(asked, {"jobs.autoscaled": True}), ELSEWHERE)
    assert "the job waits for the cluster to grow" in note


def test_a_verb_that_trains_nothing_needs_no_workers(config: Config) -> None:
    assert require_room("monitor", with_overrides(config, {"train.num_workers": 99}), ELSEWHERE) == []
    assert require_room("reproduce", Site(), ELSEWHERE) == []


def test_another_release_of_ray_is_refused_and_another_python_told() -> None:
    assert require_versions(ELSEWHERE, ray_version="2.60.1", image=None) == []
    with pytest.raises(ConfigError, match=r"runs Ray 2\.60\.0, and raymlp .* needs 2\.61"):
        require_versions(ELSEWHERE, ray_version="2.61.0", image="i")
    other = Cluster("2.60.0", "3.99.1", ELSEWHERE.nodes)
    assert require_versions(other, ray_version="2.60.0", image=None) == [
        f"the cluster runs Python 3.99, and this machine {'.'.join(PYTHON.split('.')[:2])}"
    ]
    assert require_versions(other, ray_version="2.60.0", image="raymlp:2") == []


def test_the_version_that_uploads_is_read_from_its_file(tmp_path: Path) -> None:
    assert raymlp_version(tmp_path, ["own.py"]) is None
    (tmp_path / "raymlp").mkdir()
    (tmp_path / "raymlp" / "__init__.py").write_text('import x\n__version__ = "9.9"\n')
    assert raymlp_version(tmp_path, ["raymlp/__init__.py"]) == "9.9"


def test_services_that_the_nodes_cannot_mean_are_refused_and_those_that_do_not_answer_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        local = Site(registry=Registry(tracking_uri=f"http://127.0.0.1:{port}"), runtime=Runtime(storage="/s"))
        with pytest.raises(ConfigError, match="on the cluster's nodes is the node itself"):
            storage_notes(local, ELSEWHERE)
        assert storage_notes(local, HERE) == [
            f"registry.tracking_uri: 127.0.0.1:{port} does not answer this machine; the nodes have to reach it"
        ]
        free.listen()
        assert storage_notes(local, HERE) == []
        store = Site(runtime=Runtime(storage="/s", snapshots=f"s3://lake/s?endpoint_override=http://localhost:{port}"))
        assert storage_notes(store, HERE) == []
        with pytest.raises(ConfigError, match=r"runtime\.snapshots is s3://lake"):
            storage_notes(store, ELSEWHERE)
    assert storage_notes(Site(registry=Registry(tracking_uri="sqlite:////s/mlflow.db"), runtime=Runtime(storage="/s")), ELSEWHERE) == []
    (note,) = storage_notes(Site(), ELSEWHERE)
    assert "runtime.storage is the relative folder artifacts: the job takes RAYMLP_STORAGE of its node" in note


def in_a_job(patch: pytest.MonkeyPatch, **metadata: str) -> None:
    patch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "n-2", **metadata}}))


def test_a_process_knows_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert ray_job() is None
    assert "raymlp.submission" not in code_version()
    in_a_job(monkeypatch, **{COMMIT: "abc+changes"})
    job = ray_job()
    assert job is not None
    assert job.id == "n-2"
    assert {"raymlp.submission": "n-2", "raymlp.commit": "abc+changes"}.items() <= code_version().items()


def test_a_job_refuses_results_that_would_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    require_job_can_run(Runtime(storage="artifacts"))
    in_a_job(monkeypatch, **{VERSION: __version__})
    require_job_can_run(Runtime(storage="/storage"))
    require_job_can_run(Runtime(storage="~/storage"))
    with pytest.raises(ConfigError, match=r"runtime\.storage is artifacts, a folder inside the job's unpacked code"):
        require_job_can_run(Runtime(storage="artifacts"))


def test_a_job_refuses_another_raymlp_than_the_one_that_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_job(monkeypatch, **{VERSION: "0.0.9"})
    with pytest.raises(RaymlpError, match=rf"checked by raymlp 0\.0\.9, and the cluster runs {__version__}"):
        require_job_can_run(Runtime(storage="/storage"))


def test_a_result_is_printed_in_a_job_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from raymlp.cli.screens import show_result
    from raymlp.jobs.watch import result_of

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    show_result("auc", 0.5)
    assert capsys.readouterr().out == ""
    in_a_job(monkeypatch)
    for value in (0.1 + 0.2, 1e-09, -3.0, 12345678.9):
        show_result("auc", value)
        assert result_of(capsys.readouterr().out) == ("auc", value)
