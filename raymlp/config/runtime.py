"""Where Ray runs and where results go."""

from __future__ import annotations

from typing import Self
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, model_validator

from raymlp.config.section import Section

CONDITIONAL = ("s3", "gs", "gcs", "abfs", "abfss", "file")
"""Stores that write a file on condition that it is as it was: what claims and the audit log rest on."""
STORES = (*CONDITIONAL, "hdfs", "viewfs")
SECRETS = {"sig", "client_secret"}
"""Parts of an address that open a store to whoever reads it."""


class Runtime(Section):
    """The machine side of a run."""

    storage: str = "artifacts"
    """Folder of runs, bundles, logs, records and, without `snapshots`, snapshots, and of the MLflow database. On a cluster: one that all
    nodes share, or an address in an object store: `s3://`, `gs://`, `abfs://`, as for `snapshots`; then set registry.tracking_uri."""

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
        for name, place, known in (("storage", self.storage, CONDITIONAL), ("snapshots", self.snapshots, STORES)):
            if place is None or "://" not in place:
                continue
            address = urlsplit(place)
            if address.scheme not in known:
                schemes = ", ".join(f"{scheme}://" for scheme in known)
                raise ValueError(f"{name} begins with {address.scheme}://; expected a folder or {schemes}")
            if address.password is not None or SECRETS & set(parse_qs(address.query)):
                raise ValueError(f"{name} holds a key or a signature; expected an address alone. Give credentials in the environment")
        return self

    @property
    def is_in_store(self) -> bool:
        """Whether results go to an object store."""
        return "://" in self.storage and not self.storage.startswith("file://")
