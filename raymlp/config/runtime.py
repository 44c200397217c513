"""Where Ray runs and where results go."""

from __future__ import annotations

from typing import Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, model_validator

from raymlp.config.section import Section

STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
SECRETS = {"sig", "client_secret"}
"""Parts of an address that open a store to whoever reads it."""


class Runtime(Section):
    """The machine side of a run."""

    storage: str = "artifacts"
    """Folder of runs, bundles, logs, the MLflow database and, without `snapshots`, snapshots. On a cluster: one that all nodes share."""

    snapshots: str | None = None
    """Folder of snapshots, or an address in an object store: `s3://`, `gs://`, `abfs://`, `hdfs://`; null is `snapshots` under
    `storage`. Options of the address stand behind a `?`: `s3://lake/snapshots?region=eu-west-1`. Credentials come from the environment
    of every node, never from here; README.md says which."""

    address: str | None = None
    """Address of a running Ray cluster; null starts a local one, unless RAY_ADDRESS is set."""

    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs that a local Ray offers; null takes all cores, and four at least, so that stages can overlap."""

    object_store_mb: int = Field(default=1024, ge=80)
    """Shared memory of a local Ray, in MiB."""

    verbose: bool = False
    """Show the output of Ray, Lightning, DeepSpeed and MLflow."""

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        if "://" in self.storage:
            raise ValueError(f"storage is {self.storage}; expected a folder. Snapshots alone go to an object store: set snapshots")
        if self.snapshots is None or "://" not in self.snapshots:
            return self
        address = urlsplit(self.snapshots)
        if address.scheme not in STORES:
            raise ValueError(
                f"snapshots begins with {address.scheme}://; expected a folder or {', '.join(f'{name}://' for name in STORES)}"
            )
        if address.password is not None or SECRETS & set(parse_qs(address.query)):
            raise ValueError("snapshots holds a key or a signature; expected an address alone. Give credentials in the environment")
        return self
