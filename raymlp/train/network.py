"""The network of boosted trees beside torch's: workers put their histograms together by the library's own, all else by torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.lightgbm import LightGBMConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.xgboost import XGBoostConfig

from raymlp.model.trees import Library


@dataclass
class TreeNetwork(TorchConfig):
    """What sets up the workers of a run of trees."""

    library: Library = "xgboost"

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


class _Backend(_TorchBackend):
    """Torch's, and that of Ray Train for the library. One is made for each start of the workers."""

    def on_training_start(self, worker_group: Any, backend_config: TreeNetwork) -> None:
        super().on_training_start(worker_group, backend_config)
        self._config = XGBoostConfig() if backend_config.library == "xgboost" else LightGBMConfig()
        self._network = self._config.backend_cls()
        self._network.on_training_start(worker_group, self._config)

    def on_shutdown(self, worker_group: Any, backend_config: TreeNetwork) -> None:
        if hasattr(self, "_network"):
            self._network.on_shutdown(worker_group, self._config)
        super().on_shutdown(worker_group, backend_config)
