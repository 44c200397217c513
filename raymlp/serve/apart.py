"""Versions in deployments of their own (`serve.placement=apart`): what a replica of the endpoint knows of one, and how it is asked.

The endpoint's replica checks rows against the version's contract and chooses the version as ever; the version's own replica has the
weights. A call between them costs milliseconds. Each version is a Serve application without a route, so that it comes, scales
and goes without touching the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from raymlp.core.errors import VersionAway
from raymlp.data.contract_row import Row
from raymlp.model.bundle import load_bundle
from raymlp.model.predictor import Predictor

if TYPE_CHECKING:
    import pyarrow as pa

    from raymlp.model.predictor import Prediction

MARK = "--"
"""Between the endpoint's name and the version's in the name of its application."""


def application_name(name: str, label: str, path: str) -> str:
    """The application of a version: another bundle under the same label is another one."""
    return f"{name}{MARK}{label}-{sha256(path.encode()).hexdigest()[:8]}"


def application_names(name: str, versions: dict[str, str]) -> dict[str, str]:
    """Of each version, by label."""
    return {label: application_name(name, label, path) for label, path in versions.items()}


def belongs_to(application: str, name: str) -> bool:
    """Whether an application is the endpoint itself or one of its versions."""
    return application == name or application.startswith(f"{name}{MARK}")


class Apart(Predictor):
    """A version as the endpoint's replica knows it: all of the bundle but the weights, and whom to ask."""

    def __init__(self, path: str, application: str, timeout_s: float) -> None:
        super().__init__(load_bundle(path, with_scorer=False))
        from ray import serve

        self._application, self._timeout_s = application, timeout_s
        self._handle = serve.get_app_handle(application)

    async def ask(self, typed: Sequence[Row] | pa.Table) -> Prediction:
        """The version's answer to rows that `check` has passed. Raises VersionAway when there is none in time, twice when its replica dies
        under the request."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._handle.predict.remote(typed)  # type: ignore[no-any-return]
                except RayActorError:
                    return await self._handle.predict.remote(typed)  # type: ignore[no-any-return]
        except (RayActorError, RayServeException, TimeoutError) as error:
            raise VersionAway(f"{self._application} does not answer: {type(error).__name__}") from None

    def answers_a_sample(self, row: Row) -> None:
        """Ask and wait, from a thread without a loop."""
        self._handle.predict.remote([row]).result(timeout_s=self._timeout_s)
