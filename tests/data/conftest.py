"""What tests of sources and snapshots share: a store that speaks the S3 protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs
import pytest

from tests.conftest import STORE_CREDENTIALS


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A bucket on a server that speaks the S3 protocol, and the query part of its addresses."""
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
