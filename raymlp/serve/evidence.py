"""What a rollout rests on, read from the prediction log and the labels that have come.

Errors and latency are those of the traffic each version really answered. Quality is paired: a prediction does not change
the answer, so both versions are scored on every labelled row of the log, whichever of them served it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.core.metrics import losses
from raymlp.core.records import needs_target
from raymlp.model.predictor import Predictor
from raymlp.serve.log import INPUT
from raymlp.serve.rollout import Evidence, Paired, Traffic, misranking


def gather(
    log: pa.Table, labels: pa.Table | None, champion_label: str, challenger_label: str, champion: Predictor, challenger: Predictor
) -> Evidence:
    """Evidence of the rows in the log. `labels` has `prediction_id` and `label`, the raw value of the target column. Without a target
    there are errors and latency alone: a label of anomalies comes for few rows, and says little of a loss."""
    traffic = (_traffic(log, champion_label), _traffic(log, challenger_label))
    if not needs_target(champion.bundle.plan.target.task):
        return Evidence(*traffic, has_answers=False)
    return Evidence(*traffic, *_paired(log, labels, champion, challenger))


def _traffic(log: pa.Table, label: str) -> Traffic:
    own = log.filter(pc.equal(log.column("version"), label))
    requests = len(pc.unique(own.column("prediction_id")))
    if not requests:
        return Traffic()
    failed = own.filter(pc.greater_equal(own.column("status"), 500))
    return Traffic(requests, len(pc.unique(failed.column("prediction_id"))), float(np.percentile(own.column("latency_ms").to_numpy(), 95)))


def _paired(log: pa.Table, labels: pa.Table | None, champion: Predictor, challenger: Predictor) -> tuple[Paired, Paired | None]:
    if labels is None or not log.num_rows:
        return Paired(), None
    good = log.filter(pc.equal(log.column("status"), 200))
    rows = good.append_column("_row", pa.array(np.arange(good.num_rows))).join(labels, "prediction_id", join_type="inner").sort_by("_row")
    inputs = {name.removeprefix(INPUT): rows.column(name) for name in rows.column_names if name.startswith(INPUT)}
    target = champion.bundle.plan.target
    y = target.read(rows.column("label"))
    usable = ~np.isnan(y) & (y >= 0 if target.task == "multiclass" else True)
    table = pa.table(inputs).filter(pa.array(usable))
    if not table.num_rows:
        return Paired(), None
    y, old, new = y[usable], champion.predict(table).scores, challenger.predict(table).scores
    loss = Paired.of(losses(target.task, y, old), losses(target.task, y, new))
    return loss, Paired.of(misranking(y, old), misranking(y, new)) if target.task == "binary" else None
