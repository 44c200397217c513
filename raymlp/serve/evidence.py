"""What a rollout rests on, read from the prediction log and the labels that have come.

Errors, latency and predictions are those of the traffic each version really answered, one vote a key (see `rollout.facts`), by the share
the challenger had when it was routed. Quality is paired: a prediction does not change the answer, so both versions are scored on every
labelled row of the rollout, whichever of them served it and whatever its contract would refuse. Inputs of type bytes are not logged, so
models of images have no paired quality.

Legend: N requests of the rollout in the order of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.rollout import Rollout
from raymlp.core.metrics import losses
from raymlp.core.records import needs_target
from raymlp.data.casting import ARROW
from raymlp.data.labels import row_ids, with_values
from raymlp.data.target import Target
from raymlp.model.predictor import Predictor
from raymlp.serve.log import INPUT
from raymlp.serve.rollout.distribution import CELLS, REFERENCE_ROWS
from raymlp.serve.rollout.facts import Evidence, Histogram, Moments, Pair, Paired, Scores, Step
from raymlp.serve.rollout.latency import REFERENCE_REQUESTS
from raymlp.serve.rollout.outlook import Traffic, population_of
from raymlp.serve.rollout.quality import misranking
from raymlp.serve.routing import Routes

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Versions:
    """The two versions of a rollout: labels as in the log, and their predictors."""

    champion_label: str
    challenger_label: str
    champion: Predictor
    challenger: Predictor


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


def gather(log: pa.Table, labels: pa.Table | None, versions: Versions, salt: str, settings: Rollout) -> Evidence:
    """Evidence of the rollout with this salt. `labels` are as `data.labels` reads them: `label`, the raw value of the target column,
    and the business metric's column, in the same rows or in rows of their own. Without a target
    neither predictions nor labels are compared: clusters and scores mean something else in each model, and labels come for few rows."""
    rows, task = _of_rollout(log, salt, versions.challenger_label), versions.champion.bundle.plan.target.task
    has_answers = needs_target(task)
    if not rows.num_rows:
        return Evidence(ranking=Paired() if task == "binary" else None, has_answers=has_answers)
    requests = _requests(rows.filter(pc.equal(rows.column("row"), 0)), labels, versions, settings)
    good = ~requests.failed
    voted = requests.first(np.ones(len(good), dtype=bool)) & good
    latency_voters, latency_reference = _apart(voted, requests.theirs, REFERENCE_REQUESTS)
    score_voters, score_reference = _apart(voted & ~np.isnan(requests.cell_of), requests.theirs, REFERENCE_ROWS)
    cells, scores = _cells(requests.cell_of[score_reference], versions)
    failures, paid = requests.first(requests.failed), requests.first(good & ~np.isnan(requests.business))
    new_keys = requests.first(np.ones(len(good), dtype=bool))
    trials = requests.by_step().first(np.ones(len(good), dtype=bool))

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
    loss, ranking = _paired(rows, labels, versions) if has_answers else (Paired(), None)
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


def _of_rollout(log: pa.Table, salt: str, challenger: str) -> pa.Table:
    """Rows that the routes of this rollout divided, oldest first, with the challenger's share as `_weight`."""
    texts = pc.fill_null(log.column("routes"), "").combine_chunks().dictionary_encode()
    shares = []
    for text in texts.dictionary.to_pylist():
        routes = Routes.parse(text) if text else None
        shares.append(routes.share(challenger) if routes and routes.salt == salt and challenger in routes.labels else None)
    weight = pa.array(shares, pa.float64()).take(texts.indices)
    return log.append_column("_weight", weight).filter(weight.is_valid())


def _requests(first: pa.Table, labels: pa.Table | None, versions: Versions, settings: Rollout) -> _Requests:
    failed = np.asarray(pc.greater_equal(first.column("status"), 500))
    theirs = np.asarray(pc.equal(first.column("version"), versions.challenger_label))
    prediction = pc.cast(first.column("prediction"), pa.float64()).to_numpy().astype(np.float64)
    if versions.champion.bundle.plan.target.task == "multiclass":
        prediction = np.where(theirs, _champions_class(versions)(prediction), prediction)
    business = np.full(first.num_rows, np.nan)
    if settings.business is not None and (paid := with_values(labels, settings.business.column)) is not None:
        place = pc.index_in(first.column("prediction_id"), value_set=pc.cast(paid.column("prediction_id"), pa.string()).combine_chunks())
        business = pc.cast(paid.column(settings.business.column).take(place), pa.float64()).to_numpy().astype(np.float64)
    return _Requests(
        weight=first.column("_weight").to_numpy(),
        theirs=theirs,
        key=first.column("routing_key").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64),
        failed=failed,
        latency_ms=first.column("latency_ms").to_numpy(),
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


def _paired(rows: pa.Table, labels: pa.Table | None, versions: Versions) -> tuple[Paired, Paired | None]:
    target = versions.champion.bundle.plan.target
    good, y = labelled_rows(rows, labels, target)
    found = scores_of(good, (versions.champion, versions.challenger)) if len(y) else None
    if found is None:
        return Paired(), Paired() if target.task == "binary" else None
    old, new = found
    loss = Paired.of(losses(target.task, y, old), losses(target.task, y, new))
    return loss, Paired.of(misranking(y, old), misranking(y, new)) if target.task == "binary" else None


def labelled_rows(rows: pa.Table, labels: pa.Table | None, target: Target) -> tuple[pa.Table, Floats]:
    """Answered rows of a log whose label has come and can be read, and the labels, float64 (N,)."""
    good = rows.filter(pc.equal(rows.column("status"), 200))
    labels = with_values(labels, "label")
    if labels is None or not good.num_rows:
        return good.slice(0, 0), np.zeros(0)
    place = pc.index_in(row_ids(good), value_set=row_ids(labels).combine_chunks())
    good = good.filter(place.is_valid())
    y = target.read(labels.column("label").take(place.drop_null()))
    usable = ~np.isnan(y) & (y >= 0 if target.task == "multiclass" else True)
    return good.filter(pa.array(usable)), y[usable]


def scores_of(rows: pa.Table, predictors: Sequence[Predictor]) -> list[Floats] | None:
    """Each predictor's scores of logged rows; None where one needs an input that the log leaves out."""
    table = pa.table({name.removeprefix(INPUT): rows.column(name) for name in rows.column_names if name.startswith(INPUT)})
    tables = [_complete(table, predictor) for predictor in predictors]
    if any(complete is None for complete in tables):
        return None
    return [predictor.scores(complete) for predictor, complete in zip(predictors, tables, strict=True)]


def _complete(table: pa.Table, predictor: Predictor) -> pa.Table | None:
    """Logged inputs with nulls for those that only the other version knew; None without bytes, which the log leaves out."""
    for name, rule in predictor.bundle.contract.columns.items():
        if name not in table.column_names:
            if rule.type == "bytes":
                return None
            table = table.append_column(name, pa.nulls(table.num_rows, ARROW[rule.type]))
    return table
