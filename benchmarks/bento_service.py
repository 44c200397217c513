"""The service that `bentoml serve` imports in `benchmarks/servers.py`."""

from __future__ import annotations

import os
from typing import Any

import bentoml
from servers import Net


@bentoml.service(traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Model:
    def __init__(self) -> None:
        self.net = Net(os.environ["NET_FOLDER"])

    @bentoml.api
    def predict(self, instances: list[dict[str, Any]]) -> dict[str, Any]:
        return {"predictions": self.net(instances)}
