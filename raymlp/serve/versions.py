"""The versions that a replica holds, and how one set of them follows another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raymlp.core.errors import ServingError
from raymlp.runtime.store import place_of
from raymlp.serve.batching import Batcher, Batching, pace_of
from raymlp.serve.guard import Guard
from raymlp.serve.probe import example_row
from raymlp.serve.routing import Routes
from raymlp.serve.runtime import Runtime, with_runtime
from raymlp.serve.shadow import Shadowed

LOADING = ("device", "runtime", "graphs", "batching")
"""What `Loaded.load` may be given."""
logger = logging.getLogger("ray.serve")

if TYPE_CHECKING:
    from raymlp.model.predictor import Predictor


@dataclass(frozen=True)
class Loaded:
    """A version in memory."""

    label: str
    path: str
    predictor: Predictor
    runtime: str = "torch"
    batcher: Batcher | None = None
    """Predicts rows of single requests here; none for a version that stands apart."""

    @classmethod
    def load(
        cls, label: str, path: str, *, device: str = "cpu", runtime: Runtime = "torch", graphs: str = "", batching: Batching = "off"
    ) -> Loaded:
        """Load, and answer a sample, so that the first request finds a warm net. Raises BundleError, ServingError for a net that the
        runtime cannot run, and what a broken net raises."""
        import torch

        from raymlp.model.bundle import load_bundle
        from raymlp.model.predictor import Predictor

        torch.set_num_threads(1)
        predictor = Predictor.load(path) if device == "cpu" else Predictor.of(load_bundle(path), device=device, key=None)
        predictor, ran = with_runtime(predictor, runtime, place_of(graphs), device=device)
        row = predictor.check(example_row(predictor.bundle.contract), "example")
        predictor.predict_typed(row)
        return cls(label, path, predictor, ran, Batcher(predictor, pace_of(predictor, row, together=batching == "auto")))

    @classmethod
    def apart(cls, label: str, path: str, application: str, timeout_s: float) -> Loaded:
        """A version whose weights are in a Serve application of its own, once that has answered a sample."""
        from raymlp.serve.apart import Apart

        predictor = Apart(path, application, timeout_s)
        predictor.answers_a_sample(predictor.check(example_row(predictor.bundle.contract), "example"))
        return cls(label, path, predictor, "apart")

    @property
    def facts(self) -> dict[str, str]:
        """What identifies the bundle, what its net runs in, and whether rows of several requests are predicted together."""
        bundle, batching = self.predictor.bundle, "on" if self.batcher and self.batcher.pace.gains else "off"
        return {"digest": bundle.digest, "run_id": bundle.run_id, "runtime": self.runtime, "batching": batching}


@dataclass(frozen=True)
class State:
    """What a replica serves now; replaced as a whole, never changed."""

    champion: str
    loaded: Mapping[str, Loaded]
    routes: Routes
    weights: Mapping[str, float]
    revision: str
    problems: Mapping[str, str]
    shadow: Shadowed | None = None

    @cached_property
    def routed(self) -> str:
        """The routes as the log has them."""
        return str(self.routes)

    def hide(self, key: str) -> str:
        """A routing key as it is logged: hashed where a version has privacy rules with a key. The version is chosen by what is logged,
        so that the log shows why."""
        for loaded in self.loaded.values():
            key = loaded.predictor.hide_routing_key(key)
        return key


def next_state(current: State | None, wanted: Mapping[str, Any], guard: Guard) -> State:
    """What a replica serves once it was given `wanted`: versions, weights, champion, salt, apart, revision, timeout_s, shadow, `LOADING`.
    What cannot be loaded is reported, and never replaces what works. Raises ServingError when there is nothing to serve at all."""
    versions, weights, shadow = dict(wanted["versions"]), dict(wanted["weights"]), wanted.get("shadow")
    if shadow is not None:
        versions.setdefault(shadow["label"], shadow["path"])  # without a weight: no request is its own
    champion, revision = wanted["champion"], wanted["revision"]
    problems: dict[str, str] = {}
    loaded: dict[str, Loaded] = {}
    apart = wanted.get("apart", {})
    beside = len(versions) > 1 and not apart
    suspect = beside and guard.is_suspect(revision)
    if beside and not suspect:
        guard.hold(revision)
    for label, path in versions.items():
        if label != champion and suspect:
            problems[label] = "a replica died while it held this version; it was left out. Send the versions again to retry."
            continue
        known = current.loaded.get(label) if current else None
        try:
            if known and known.path == path:
                loaded[label] = known
            elif apart:
                loaded[label] = Loaded.apart(label, path, apart[label], wanted["timeout_s"])
            else:
                loaded[label] = Loaded.load(label, path, **{name: wanted[name] for name in LOADING if name in wanted})
        except Exception as error:
            problems[label] = f"{type(error).__name__}: {error}"
            logger.error("version %s cannot be loaded from %s: %s", label, path, problems[label])
    try:
        shares = weights if not set(problems) & set(weights) else _shares_of(champion, weights, loaded)
        routes = Routes.of(champion, shares, salt=wanted["salt"])
        if champion not in loaded:
            raise ServingError(f"the champion {champion} cannot be loaded: {problems.get(champion, 'it is not among the versions')}")
    except (ServingError, KeyError) as error:
        if current is None:
            raise ServingError(f"nothing to serve: {error}") from None
        return replace(current, revision=revision, problems=problems or {champion: str(error)})
    if len(loaded) == 1:
        guard.release()
    follows = Shadowed(loaded[shadow["label"]], shadow["share"], shadow["max_waiting"]) if shadow and shadow["label"] in loaded else None
    return State(champion, loaded, routes, shares, revision, problems, follows)


def _shares_of(champion: str, weights: Mapping[str, float], loaded: Mapping[str, Loaded]) -> dict[str, float]:
    """The weights of what could be loaded; the champion takes over the rest."""
    others = {label: share for label, share in weights.items() if label in loaded and label != champion}
    return {champion: 1 - sum(others.values()), **others}
