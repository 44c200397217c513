"""Where runs and versions are recorded."""

from __future__ import annotations

from raymlp.config.section import Section


class Registry(Section):
    """MLflow tracking and model registry."""

    tracking_uri: str | None = None
    """Address of an MLflow server or database; null keeps a SQLite file and artifacts under runtime.storage.
    User name and password come from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, never from here."""
