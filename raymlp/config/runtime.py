"""Where Ray runs and where results go."""

from __future__ import annotations

from pydantic import Field

from raymlp.config.section import Section


class Runtime(Section):
    """The machine side of a run."""

    storage: str = "artifacts"
    """Folder of snapshots, runs, bundles, logs and the MLflow database. On a cluster: one that all nodes share."""

    address: str | None = None
    """Address of a running Ray cluster; null starts a local one, unless RAY_ADDRESS is set."""

    num_cpus: int | None = Field(default=None, ge=1)
    """CPUs that a local Ray offers; null takes all cores, and four at least, so that stages can overlap."""

    object_store_mb: int = Field(default=1024, ge=80)
    """Shared memory of a local Ray, in MiB."""

    verbose: bool = False
    """Show the output of Ray, Lightning, DeepSpeed and MLflow."""
