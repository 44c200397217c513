"""What a rollout rests on, read from the prediction log and the labels that have come.

Errors, latency and predictions are those of the traffic each version really answered, one vote a key (see `rollout.facts`), by the share
the challenger had when it was routed. Quality is paired: a prediction does not change the answer, so both versions are scored on every
labelled row of the rollout, whichever of them served it and whatever its contract would refuse. Inputs of type bytes are not logged, so
models of images have no paired quality.

Legend: N requests of the rollout in the order of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.rollout import Rollout
from raymlp.core.metrics import losses
from raymlp.core.records import needs_target
from raymlp.data.labels import with_values
from raymlp.serve.ledger import Floats, Ledger, Mask, Rows, Versions
from raymlp.serve.log import INPUT
from raymlp.serve.rollout.distribution import CELLS, REFERENCE_ROWS
from raymlp.serve.rollout.facts import Evidence, Histogram, Moments, Pair, Paired, Scores, Step
from raymlp.serve.rollout.latency import REFERENCE_REQUESTS, SETTLES_S
from raymlp.serve.rollout.outlook import Traffic, population_of
from raymlp.serve.rollout.quality import misranking

__all__ = ["Versions", "evidence_of", "gather", "traffic_of"]


@dataclass(frozen=True)
class _Requests:
    """Arrays of N: which share the challenger had, whether it answered, the key as a number, and what came of it."""

    weight: Floats
    theirs: Mask
    key: NDArray[np.int64]
    failed: Mask
    latency_ms: Floats
    cell_of: Floats
    business: Floats

    def first(self, among: Mask) -> Mask:
        """The first request of each key among some."""
        places = np.flatnonzero(among)
        mask = np.zeros(len(among), dtype=bool)
        mask[places[np.unique(self.key[places], return_index=True)[1]]] = True
        return mask

    def by_step(self) -> _Requests:
        """The same with a key of its own for each share under which a key came."""
        shares, at = np.unique(self.weight, return_inverse=True)
        return replace(self, key=self.key * len(shares) + at)

    @cached_property
    def everyone(self) -> Mask:
        """All of them."""
        return np.ones(len(self.weight), dtype=bool)


def gather(log: pa.Table, labels: pa.Table | None, versions: Versions, salt: str, settings: Rollout) -> Evidence:
    """`evidence_of` a log and labels that are in memory, as `serve.log` and `data.labels` read them."""
    ledger = Ledger(versions, salt)
    inputs = [name for name in log.column_names if name.startswith(INPUT)]
    ledger.add("", log, lambda: log.select(inputs))
    if labels is not None:
        ledger.add_labels("", labels)
    return evidence_of(ledger, settings)


def evidence_of(ledger: Ledger, settings: Rollout) -> Evidence:
    """What a rollout's rows and labels say. Labels have `label`, the raw value of the target column, and the business metric's column, in
    the same rows or in rows of their own. Without a target neither predictions nor labels are compared: clusters and scores mean
    something else in each model, and labels come for few rows."""
    rows, versions = ledger.rows(), ledger.versions
    task = versions.champion.bundle.plan.target.task
    has_answers = needs_target(task)
    if not len(rows):
        return Evidence(ranking=Paired() if task == "binary" else None, has_answers=has_answers)
    first = rows.take(np.flatnonzero(rows.row == 0))
    requests = _requests(first, ledger.labels(), versions, settings)
    good = ~requests.failed
    new_keys = requests.first(requests.everyone)
    voted = new_keys & good
    settled = first.time >= first.time[0] + SETTLES_S * 1e6
    latency_voters, latency_reference = _apart(requests.first(settled) & good, requests.theirs, REFERENCE_REQUESTS)
    score_voters, score_reference = _apart(voted & ~np.isnan(requests.cell_of), requests.theirs, REFERENCE_ROWS)
    cells, scores = _cells(requests.cell_of[score_reference], versions)
    failures, paid = requests.first(requests.failed), requests.first(good & ~np.isnan(requests.business))
    trials = requests.by_step().first(requests.everyone)

    def step(weight: float) -> Step:
        here = np.isclose(requests.weight, weight)
        sides = here & ~requests.theirs, here & requests.theirs
        return Step(
            weight,
            requests=Pair(*(int(side.sum()) for side in sides)),
            keys=Pair(*(int((side & new_keys).sum()) for side in sides)),
            errors=Pair(*(int((side & failures).sum()) for side in sides)),
            trials=Pair(*(int((side & trials).sum()) for side in sides)),
            failed=Pair(*(int((side & trials & requests.failed).sum()) for side in sides)),
            latency=_both(lambda side: Histogram.of(requests.latency_ms[side & latency_voters]), sides),
            scores=_both(lambda side: _counts(cells(requests.cell_of[side & score_voters]), len(scores.reference)), sides),
            business=_both(lambda side: Moments.of(requests.business[side & paid]), sides),
        )

    steps = tuple(step(float(weight)) for weight in np.unique(requests.weight))
    loss, ranking = _paired(ledger) if has_answers else (Paired(), None)
    return Evidence(steps, Histogram.of(requests.latency_ms[latency_reference]), scores, loss, ranking, has_answers)


def traffic_of(log: pa.Table, label: str) -> Traffic:
    """How much comes in and how it fares, from a version's rows of the log."""
    own = log.filter(pc.and_(pc.equal(log.column("version"), label), pc.equal(log.column("row"), 0)))
    if own.num_rows < 2:
        return Traffic()
    times = own.column("time").to_numpy().astype("datetime64[us]").astype(np.float64) / 1e6
    good = own.filter(pc.less(own.column("status"), 500)).column("latency_ms").to_numpy()
    logs = np.log(np.maximum(good, 1e-3)) if len(good) else np.zeros(1)
    errors = 1 - len(good) / own.num_rows
    spread = float(np.quantile(logs, 0.841) - np.quantile(logs, 0.159)) / 2
    return Traffic(
        own.num_rows / max(float(times[-1] - times[0]), 1e-6),
        errors,
        float(np.exp(np.median(logs))),
        max(spread, 0.05),
        keys=population_of(own.num_rows, len(own.column("routing_key").unique())),
    )


def _requests(first: Rows, labels: pa.Table | None, versions: Versions, settings: Rollout) -> _Requests:
    prediction = first.prediction
    if versions.champion.bundle.plan.target.task == "multiclass":
        prediction = np.where(first.theirs, _champions_class(versions)(prediction), prediction)
    business = np.full(len(first), np.nan)
    if settings.business is not None and (paid := with_values(labels, settings.business.column)) is not None:
        ids = pc.cast(paid.column("prediction_id"), pa.string()).combine_chunks()
        place = pc.index_in(first.ids.column("prediction_id"), value_set=ids)
        business = pc.cast(paid.column(settings.business.column).take(place), pa.float64()).to_numpy().astype(np.float64)
    return _Requests(
        weight=first.weight,
        theirs=first.theirs,
        key=np.unique(first.key, return_inverse=True)[1],
        failed=first.status >= 500,
        latency_ms=first.latency_ms,
        cell_of=prediction,
        business=business,
    )


def _champions_class(versions: Versions) -> Callable[[Floats], Floats]:
    """From the challenger's class numbers to the champion's; a class it does not have is one more."""
    known = list(versions.champion.bundle.plan.target.classes)
    table = [known.index(name) if name in known else len(known) for name in versions.challenger.bundle.plan.target.classes]

    def convert(numbers: Floats) -> Floats:
        return np.array([np.nan if np.isnan(number) else float(table[int(number)]) for number in numbers])

    return convert


def _apart(voters: Mask, theirs: Mask, wanted: int) -> tuple[Mask, Mask]:
    """Voters after the champion's first `wanted` ones, and those; the challenger's of the same time count for neither."""
    reference = voters & ~theirs
    reference &= np.cumsum(reference) <= wanted
    if reference.sum() < wanted:
        return np.zeros_like(voters), reference
    last = int(np.flatnonzero(reference)[-1])
    return voters & (np.arange(len(voters)) > last), reference


def _cells(reference: Floats, versions: Versions) -> tuple[Callable[[Floats], NDArray[np.int64]], Scores]:
    """How a prediction gets its cell, and the reference in cells. A number that the champion often gives has a cell of its own."""
    classes = len(versions.champion.bundle.plan.target.classes)
    if versions.champion.bundle.plan.target.task == "multiclass":
        return lambda values: values.astype(np.int64), Scores(_counts(reference.astype(np.int64), classes + 1), ordered=False)
    if len(reference) < REFERENCE_ROWS or not needs_target(versions.champion.bundle.plan.target.task):
        return lambda values: np.zeros(len(values), dtype=np.int64), Scores()
    cuts, times = np.unique(np.quantile(reference, np.arange(1, CELLS) / CELLS, method="inverted_cdf"), return_counts=True)
    edges = np.unique(np.concatenate([cuts, np.nextafter(cuts[times > 1], np.inf)]))

    def cell(values: Floats) -> NDArray[np.int64]:
        return np.searchsorted(edges, values, side="right")

    return cell, Scores(_counts(cell(reference), len(edges) + 1))


def _counts(cells: NDArray[np.int64], number: int) -> tuple[int, ...]:
    return tuple(np.bincount(cells, minlength=number)[:number].tolist()) if number else ()


def _both(part: Callable[[Mask], Any], sides: tuple[Mask, Mask]) -> tuple[Any, Any]:
    return part(sides[0]), part(sides[1])


def _paired(ledger: Ledger) -> tuple[Paired, Paired | None]:
    task, found = ledger.versions.champion.bundle.plan.target.task, ledger.labelled()
    if found is None:
        return Paired(), Paired() if task == "binary" else None
    y, old, new = found
    loss = Paired.of(losses(task, y, old), losses(task, y, new))
    return loss, Paired.of(misranking(y, old), misranking(y, new)) if task == "binary" else None
