"""What all tests share: real data files where they are present, small planted tables, a store that speaks the S3 protocol, and one Ray
for all that need it.

`make test` runs two processes. What trains shares one Ray, what serves the other, and tests without Ray fill the gaps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from raymlp.config.runtime import Runtime
from tests.heads import Head, started

ROOT = Path(__file__).resolve().parents[1]
STORE_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
settings.register_profile("raymlp", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # nothing here is a matter of time
settings.load_profile("raymlp")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores: threads that wait for one another cost minutes


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray go to one process; those that start one of their own name a group of their own."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        room = item.path.relative_to(ROOT / "tests").parts[0]
        needs = item.fixturenames  # type: ignore[attr-defined]
        if "head" in needs:
            item.add_marker(pytest.mark.xdist_group("jobs"))
        elif item.get_closest_marker("ray") or "ray_runtime" in needs:
            item.add_marker(pytest.mark.xdist_group("serving" if room == "serve" or room.startswith("test_") else "training"))


@pytest.fixture(scope="session")
def ray_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One local Ray, started the way raymlp starts it, with results in a temporary folder."""
    from raymlp.runtime.session import ray_session

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.update(STORE_CREDENTIALS)  # tasks have the environment that Ray was started in
    runtime = Runtime(storage=str(tmp_path_factory.mktemp("storage")), num_cpus=4, object_store_mb=400)
    with ray_session(runtime):
        yield runtime


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A Ray head with a token, in processes of its own."""
    with started() as running:
        yield running


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RAYMLP_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder}; set RAYMLP_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket on a server that speaks the S3 protocol, and the query part of its addresses."""
    import pyarrow.fs as pafs

    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in STORE_CREDENTIALS.items():
        patch.setenv(name, value)
    store = pafs.S3FileSystem(endpoint_override=f"http://{host}:{port}", region="us-east-1", allow_bucket_creation=True)
    store.create_dir("lake")
    yield store, f"endpoint_override=http://{host}:{port}&region=us-east-1"
    patch.undo()
    server.stop()
