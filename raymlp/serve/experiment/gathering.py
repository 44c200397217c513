"""Observations of an experiment, taken from the prediction log and the labels that have come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.experiment import Business, Quality
from raymlp.data.labels import row_ids, with_values
from raymlp.data.target import Target
from raymlp.model.predictor import Predictor
from raymlp.serve.experiment.expected import Known
from raymlp.serve.experiment.intervals import Floats, Mask
from raymlp.serve.experiment.observations import Labelled, Observations, Places, Seen
from raymlp.serve.experiment.record import Record
from raymlp.serve.ledger import complete_inputs
from raymlp.serve.log import INPUT
from raymlp.serve.routing import Routes


def observe(log: pa.Table, labels: pa.Table | None, predictors: Sequence[Predictor], record: Record) -> Observations:
    """What the log says of the experiment with this salt. `predictors` in the order of its arms; they may be left out where no metric is of
    kind `quality`."""
    rows, shares = _of_experiment(log, record)
    first = rows.filter(pc.equal(rows.column("row"), 0))
    arm, key, stretch, time = _arms(first, record.arms), _keys(first), first.column("_stretch").to_numpy(), _seconds(first)
    start = _first(key, np.ones(len(key), dtype=bool))
    home = dict(zip(key[start].tolist(), zip(arm[start].tolist(), stretch[start].tolist(), strict=True), strict=True))
    at_home = np.array([home[k][0] == a for k, a in zip(key.tolist(), arm.tolist(), strict=True)], dtype=bool)
    came = np.array([home[k][1] for k in key.tolist()], dtype=np.int64)

    def seen(value: Floats, some: Mask) -> Seen:
        places = _first(key, some & at_home & ~np.isnan(value))
        return Seen(value[places], arm[places], came[places], time[places])

    failed = np.asarray(pc.greater_equal(first.column("status"), 500), dtype=bool)
    business = {
        metric.column: seen(_values(first, labels, metric.column), ~failed)
        for metric in record.settings.metrics
        if isinstance(metric, Business)
    }
    asks_quality = any(isinstance(metric, Quality) for metric in record.settings.metrics)
    return Observations(
        shares=shares,
        requests=tuple(np.bincount(arm, minlength=len(record.arms)).tolist()),
        failed=seen(failed.astype(np.float64), np.ones(len(key), dtype=bool)),
        latency_ms=seen(first.column("latency_ms").to_numpy().astype(np.float64), ~failed),
        business=business,
        labelled=_labelled(rows, labels, predictors) if asks_quality else Labelled(),
    )


def known_of(log: pa.Table, labels: pa.Table | None, predictors: Sequence[Predictor], record: Record) -> dict[str, Known]:
    """What earlier traffic says of business and quality metrics, by name, where labels have come for it."""
    found: dict[str, Known] = {}
    first = log.filter(pc.equal(log.column("row"), 0))
    keys = _keys(first)
    for metric in record.settings.metrics:
        if isinstance(metric, Business):
            values = _values(first, labels, metric.column)
            values = values[_first(keys, ~np.isnan(values))]
            if len(values) > 1:
                share = len(values) / max(len(np.unique(keys)), 1)
                found[metric.name] = Known(float(values.mean()), float(values.std(ddof=1)), share)
        if isinstance(metric, Quality):
            labelled = _labelled(log, labels, predictors)
            measured = [labelled.measured(metric.measure, arm) for arm in range(len(labelled.scores))]
            if measured and len(measured[0]) > 1:
                control = measured[0]
                widest = max(float((values - control).std(ddof=1)) for values in measured[1:])
                found[metric.name] = Known(float(control.mean()), widest, min(len(labelled.y) / max(len(np.unique(keys)), 1), 1.0))
    return found


def _of_experiment(log: pa.Table, record: Record) -> tuple[pa.Table, Floats]:
    """Rows that the routes of this experiment divided, oldest first, with the number of their stretch, and the shares by stretch."""
    texts = pc.fill_null(log.column("routes"), "").combine_chunks().dictionary_encode()
    number, shares = list[int | None](), list[list[float]]()
    for text in texts.dictionary.to_pylist():
        routes = Routes.parse(text) if text else None
        ours = routes is not None and routes.salt == record.salt and any(routes.share(arm) > 0 for arm in record.arms[1:])
        number.append(len(shares) if ours else None)
        if routes is not None and ours:
            shares.append([routes.share(arm) for arm in record.arms])
    stretch = pa.array(number, pa.int64()).take(texts.indices)
    rows = log.append_column("_stretch", stretch).filter(stretch.is_valid())
    known = pc.is_in(rows.column("version"), value_set=pa.array(record.arms))
    return rows.filter(known), np.array(shares).reshape(-1, len(record.arms))


def _labelled(rows: pa.Table, labels: pa.Table | None, predictors: Sequence[Predictor]) -> Labelled:
    if not predictors or not rows.num_rows:
        return Labelled()
    target = predictors[0].bundle.plan.target
    good, y = labelled_rows(rows, labels, target)
    some = _first(_keys(good), np.ones(len(y), dtype=bool))
    good, y = good.take(pa.array(some)), y[some]
    scores = scores_of(good, predictors) if len(y) else None
    return Labelled(target.task, y, tuple(scores), _seconds(good)) if scores is not None else Labelled()


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
    tables = [complete_inputs(table, predictor) for predictor in predictors]
    if any(complete is None for complete in tables):
        return None
    return [predictor.scores(complete) for predictor, complete in zip(predictors, tables, strict=True)]


def _values(first: pa.Table, labels: pa.Table | None, column: str) -> Floats:
    """A business column's value of each request, NaN where none has come."""
    paid = with_values(labels, column)
    if paid is None:
        return np.full(first.num_rows, np.nan)
    place = pc.index_in(first.column("prediction_id"), value_set=pc.cast(paid.column("prediction_id"), pa.string()).combine_chunks())
    return np.asarray(pc.cast(paid.column(column).take(place), pa.float64()).to_numpy(), dtype=np.float64)


def _arms(table: pa.Table, arms: Sequence[str]) -> Places:
    return np.asarray(pc.index_in(table.column("version"), value_set=pa.array(arms)).to_numpy(), dtype=np.int64)


def _keys(table: pa.Table) -> Places:
    codes = table.column("routing_key").combine_chunks().dictionary_encode().indices
    return np.asarray(codes.to_numpy(zero_copy_only=False), dtype=np.int64)


def _seconds(table: pa.Table) -> Floats:
    return np.asarray(table.column("time").to_numpy().astype("datetime64[us]").astype(np.float64) / 1e6)


def _first(key: Places, among: Mask) -> Places:
    """Places of the first of each key among some, ascending."""
    places = np.flatnonzero(among)
    return np.asarray(np.sort(places[np.unique(key[places], return_index=True)[1]]), dtype=np.int64)
