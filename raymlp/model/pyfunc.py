"""Lets MLflow's own tools load a bundle: `loader_module="raymlp.model.pyfunc"`. Knows nothing of MLflow."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raymlp.model.predictor import Predictor


class PyfuncModel:
    """What `mlflow.pyfunc` calls: data frame or list of rows in, list of answers out."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        rows = pa.Table.from_pandas(data, preserve_index=False) if hasattr(data, "columns") else data
        return self._predictor.predict(rows).rows()


def _load_pyfunc(path: str) -> PyfuncModel:
    return PyfuncModel(Predictor.load(path))
