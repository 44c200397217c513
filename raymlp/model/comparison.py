"""Two bundles of the same run beside each other: are they equal to the last bit, and if not, what may explain it."""

from __future__ import annotations

import json

from raymlp.core.files import Place
from raymlp.core.records import Compared
from raymlp.model.bundle import ENVIRONMENT, environment_of, local, verify

OF_ITS_OWN = {"card.md", "config.yaml", ENVIRONMENT, "metrics.json"}
"""Files that name their run or its place, or are compared value by value."""
NONE = "none"


def compare(recorded: Place, again: Place) -> tuple[Compared, ...]:
    """Digests of the files (weights, plan, calibration, ...) and the metrics, exactly. Raises BundleError for one that is not whole."""
    both = [local(bundle) for bundle in (recorded, again)]
    files = [verify(folder)["files"] for folder in both]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in both]
    names = sorted(set().union(*files) - OF_ITS_OWN)
    digests = [Compared(name, *(side.get(name, {}).get("sha256", NONE)[:16] for side in files)) for name in names]
    values = [Compared(name, *(_exact(side.get(name)) for side in metrics)) for name in sorted(set().union(*metrics))]
    return (*digests, *values)


def environments(recorded: Place, again: Place) -> tuple[Compared, ...]:
    """What is known of where the two were trained; empty when the first says nothing."""
    first, second = environment_of(local(recorded)), environment_of(local(again))
    return tuple(Compared(name, first.get(name, NONE), second.get(name, NONE)) for name in {**first, **second}) if first else ()


def _exact(value: float | None) -> str:
    return NONE if value is None else repr(float(value))
