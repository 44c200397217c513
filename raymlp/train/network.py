"""The network of boosted trees beside torch's: workers put their histograms together by the library's own, all else by torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.lightgbm import LightGBMConfig
from ray.train.torch import TorchConfig
from ray.train.xgboost import XGBoostConfig

from raymlp.model.trees import Library


@dataclass
class TreeNetwork(TorchConfig):
    """What sets up the workers of a run of trees."""

    library: Library = "xgboost"

    @property
    def backend_cls(self) -> type[Backend]:
        return _Both

    @property
    def parts(self) -> tuple[BackendConfig, BackendConfig]:
        """Torch's own settings, and those of Ray Train for the library."""
        torch = TorchConfig(backend=self.backend, init_method=self.init_method, timeout_s=self.timeout_s)
        return torch, XGBoostConfig() if self.library == "xgboost" else LightGBMConfig()


class _Both(Backend):
    """One network after the other, anew for each group of workers."""

    def __init__(self) -> None:
        self._parts: list[tuple[Backend, BackendConfig]] = []

    def on_start(self, worker_group: Any, backend_config: TreeNetwork) -> None:
        self._parts = [(config.backend_cls(), config) for config in backend_config.parts]
        for backend, config in self._parts:
            backend.on_start(worker_group, config)

    def on_training_start(self, worker_group: Any, backend_config: TreeNetwork) -> None:
        for backend, config in self._parts:
            backend.on_training_start(worker_group, config)

    def on_shutdown(self, worker_group: Any, backend_config: TreeNetwork) -> None:
        for backend, config in reversed(self._parts):
            backend.on_shutdown(worker_group, config)
