"""The replica of a version that stands apart: its weights, and one method that the endpoint's replicas call. No HTTP.

Ray Serve imports this module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ray import serve

from raymlp.serve.answering import answers
from raymlp.serve.application import VERSION_DEPLOYMENT
from raymlp.serve.versions import Loaded

if TYPE_CHECKING:
    import pyarrow as pa

    from raymlp.data.contract_row import Row
    from raymlp.model.predictor import Prediction


class VersionServer:
    """Loads a version and answers a sample before it is ready. `settings` are what `Loaded.load` is given; raises what that raises."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.loaded = Loaded.load(**settings)

    async def predict(self, typed: list[Row] | pa.Table) -> Prediction:
        """Rows in the types of the contract, privacy rules applied."""
        return await answers(self.loaded, typed)

    def report(self) -> dict[str, Any]:
        """Who answers."""
        return {"label": self.loaded.label, "pid": os.getpid(), **self.loaded.facts}


def application(args: dict[str, Any]) -> serve.Application:
    """What Ray Serve imports and builds."""
    return serve.deployment(VersionServer, name=VERSION_DEPLOYMENT).bind(args)
