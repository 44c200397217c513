"""Try a bundle where a crash harms nobody: in a worker process that answers one question and ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from raymlp.core.errors import RaymlpError, ServingError, VersionRefused
from raymlp.core.records import Version
from raymlp.core.trust import TRUSTED
from raymlp.data.contract import Contract
from raymlp.data.contract_row import Row
from raymlp.runtime.memory import peak
from raymlp.runtime.store import place_of

if TYPE_CHECKING:
    from raymlp.model.predictor import Predictor

Found = TypeVar("Found")
PROBE_S = 120.0
"""A bundle that has not answered by then is refused."""

BLACK_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYGAAAAAEAAHI6uv5AAAAAElFTkSuQmCC"
"""A PNG image of one pixel."""
STAND_INS: dict[str, Any] = {
    "bool": False, "int": 0, "float": 0.0, "string": "", "timestamp": "2000-01-01T00:00:00Z", "bytes": BLACK_PIXEL,
}  # fmt: skip


def example_row(contract: Contract) -> Row:
    """A row that the contract accepts: its examples, null where there is none and null is allowed, else a plain value in range."""
    row: Row = {}
    for name, rule in contract.columns.items():
        value: Any = rule.example
        if value is None and not rule.nullable:
            value = rule.categories[0] if rule.categories else STAND_INS[rule.type]
            if rule.type in ("int", "float"):
                low, high = rule.minimum, rule.maximum
                value = max(value, low if low is not None else value)
                value = min(value, high if high is not None else value)
        row[name] = value
    return row


class Probed(NamedTuple):
    """A bundle that answered a sample, and the memory that its process grew by."""

    digest: str
    grown_bytes: int


def measured(bundle: str, loading: Mapping[str, Any]) -> Probed:
    """`answers_a_sample`, with the growth of this process's peak memory from before the bundle was loaded, libraries left out. The graph
    that the runtime needs is made, and counted. Raises ServingError for a net that the runtime cannot run."""
    from raymlp.serve.runtime import prepare

    before = peak()
    predictor = _loaded(bundle)
    grown_bytes = peak() - before
    if loading:
        grown_bytes += prepare(predictor, loading["runtime"], place_of(loading["graphs"]), device=loading["device"])
    return Probed(predictor.bundle.digest, grown_bytes)


def answers_a_sample(bundle: str) -> str:
    """Load a bundle and predict its example row; gives back the bundle's digest. Raises BundleError, or ServingError for an
    answer that is no number."""
    return _loaded(bundle).bundle.digest


def _loaded(bundle: str) -> Predictor:
    import numpy as np

    from raymlp.model.predictor import Predictor

    predictor = Predictor.load(bundle)
    scores = predictor.predict([example_row(predictor.bundle.contract)]).scores
    if not np.isfinite(scores).all():
        raise ServingError(f"the bundle {bundle} predicts {scores.tolist()} for its example row; expected finite numbers.")
    return predictor


def code() -> dict[str, Any]:
    """The code of this job, as the part of a runtime environment for what outlives it."""
    import ray

    job = ray.get_runtime_context().runtime_env
    return {part: job[part] for part in ("working_dir", "py_modules") if job.get(part)}


def trust() -> dict[str, str]:
    """What this process trusts of bundles with steps of a user's own, as environment variables for one that serves them."""
    return {TRUSTED: os.environ[TRUSTED]} if os.environ.get(TRUSTED) else {}


def probe(version: Version, loading: Mapping[str, Any] | None = None) -> Probed:
    """What the bundle is, and how much memory it takes. `loading`, as replicas have it, says what its net is to run in. Raises
    VersionRefused when the bundle cannot be loaded, crashes, hangs, gives no number or cannot be run there; nothing else changes."""
    return start_probe(version, loading)()


def start_probe(version: Version, loading: Mapping[str, Any] | None = None) -> Callable[[], Probed]:
    """`probe` begun: call what comes back for its end."""
    return in_own_process(measured, version.bundle, dict(loading or {}), what=f"version {version.label} ({version.bundle})")


def in_own_process(function: Callable[..., Found], *arguments: Any, what: str, timeout_s: float = PROBE_S) -> Callable[[], Found]:
    """Start a function in a worker process that ends with it; call what comes back for the result.

    That call raises VersionRefused for an error, a crash or a hang.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    environment = {"runtime_env": {"env_vars": trust()}} if trust() else {}
    answer = ray.remote(num_cpus=0, max_retries=0, max_calls=1, **environment)(function).remote(*arguments)

    def result() -> Found:
        try:
            return cast("Found", ray.get(answer, timeout=timeout_s))
        except GetTimeoutError:
            ray.cancel(answer, force=True)
            raise VersionRefused(f"{what} gave no answer within {timeout_s:g} s; expected a prediction. Nothing was changed.") from None
        except RayTaskError as error:
            cause = error.cause
            reason = str(cause) if isinstance(cause, RaymlpError) else f"{type(cause).__name__}: {cause}"
            raise VersionRefused(f"{what} was refused: {reason} Nothing was changed.") from None
        except RayError as error:
            first = str(error).strip().splitlines()[0]
            raise VersionRefused(f"{what} crashed its process: {first} Nothing was changed.") from None

    return result
