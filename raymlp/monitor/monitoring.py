"""One window of live traffic beside training: drift of inputs and predictions, quality once labels have come, a report.

Legend: N logged rows that were answered, L of them labelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from raymlp.config.monitor import Monitor
from raymlp.core.files import Place
from raymlp.core.metrics import DEFAULT_METRIC
from raymlp.core.records import Finding, MonitorReport
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import check_table
from raymlp.data.drift import drift
from raymlp.data.labels import row_ids, with_values
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.model.bundle import Bundle, load_bundle
from raymlp.monitor.quality import Labels, base_rate_shift, calibration_gap, metric_drop
from raymlp.monitor.report import Window, write_report

Floats = NDArray[np.float64]
INPUT = "in."
"""Prefix of the log's columns that hold a request's values."""
ANSWERED = 200


def monitor(
    bundle: Bundle | Place, log: pa.Table, labels: pa.Table | None, settings: Monitor, *, window: str, report_dir: Place
) -> MonitorReport:
    """Findings of one window, written to `report_dir` as `monitoring.html` and `monitoring.json`.

    `log` is the prediction log: `prediction_id`, `row`, `time`, `version`, `prediction`, `status`, `latency_ms` and the
    inputs as `in.<column>`; only answered rows count. `labels` holds `prediction_id` and `label`, the raw value of the
    target column, and may hold `row` for requests of several rows; without it a label belongs to a request's first row.
    Nothing is sent: see `alerts.notify`. Raises BundleError when `bundle` is a folder that is not whole.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    answered = log.filter(pc.equal(log.column("status"), ANSWERED))
    live = Profile().update(live_inputs(answered, bundle.contract))
    predicted = Profile().update(live_predictions(answered, bundle))
    known = _known_labels(answered, labels, bundle.plan.target)
    findings = (
        *drift(bundle.predictions, predicted, settings, kind="prediction drift"),
        *drift(bundle.profile, live, settings),
        *quality_findings(bundle, known, settings),
    )
    report = MonitorReport(window, answered.num_rows, len(known.y), findings)
    seen = Window(
        problem=bundle.name, trained_on=bundle.profile.rows, requests=log.num_rows, facts=_facts(bundle, log, answered),
        baseline=bundle.profile, live=live, settings=settings,
    )  # fmt: skip
    return write_report(report, seen, folder=report_dir)


@dataclass(frozen=True)
class Known:
    """Labelled rows: answers `y`, float64 (L,), and logged predictions `p`, float64 (L,), both as `Target.read` has them."""

    y: Floats
    p: Floats


def live_inputs(answered: pa.Table, contract: Contract) -> pa.Table:
    """The logged inputs in the contract's types, N rows; columns that the log lacks are left out.

    A value that cannot be read in its type becomes null, so that it shows as missing.
    """
    columns = {}
    for name, rule in contract.columns.items():
        if INPUT + name in answered.column_names:
            alone = Contract(columns={name: ColumnContract(type=rule.type)})
            columns[name] = _typed(answered.column(INPUT + name), alone, name)
    return pa.table(columns)


def live_predictions(answered: pa.Table, bundle: Bundle) -> pa.Table:
    """The logged predictions under the name and in the form of the bundle's own, N rows: numbers, class labels, or clusters."""
    name, column = next(iter(bundle.predictions.columns.items()), ("prediction", None))
    values = answered.column("prediction")
    if column is None or column.is_number or pa.types.is_string(values.type):
        return pa.table({name: values})
    places = pc.cast(values, pa.int64()).combine_chunks()
    classes = bundle.plan.target.classes
    return pa.table({name: pa.array(classes, pa.string()).take(places) if classes else pc.cast(places, pa.string())})


def quality_findings(bundle: Bundle, known: Known, settings: Monitor) -> tuple[Finding, ...]:
    """Metric, base rate and calibration on labelled rows; none without any. Several classes have no calibration finding:
    the log holds the most likely class only, so accuracy stands for a metric that needs probabilities. Nor have scores of anomalies."""
    target = bundle.plan.target
    if not len(known.y):
        return ()
    found = []
    metric = _metric(bundle)
    p = np.eye(len(target.classes))[known.p.astype(int)] if target.task == "multiclass" else known.p
    reference = bundle.metrics.get(metric)
    if reference is not None and np.isfinite(reference):
        found.append(metric_drop(target.task, known.y, p, metric=metric, reference=reference, settings=settings))
    column = bundle.profile.columns.get(str(target.column))
    training = Labels.of(target, column) if column else None
    if training:
        found.append(base_rate_shift(target.task, known.y, training, settings))
        if target.task in ("binary", "regression"):
            found.append(calibration_gap(target.task, known.y, known.p, training, settings))
    return tuple(found)


def _metric(bundle: Bundle) -> str:
    """The problem's main metric, or one that can be computed from the log."""
    task = bundle.plan.target.task
    config = yaml.safe_load(bundle.config_yaml)
    problem = config.get("problem") if isinstance(config, Mapping) else None
    metric = (problem.get("metric") if isinstance(problem, Mapping) else None) or DEFAULT_METRIC[task]
    if task == "anomaly":
        return "auc" if metric == "shuffled_auc" else str(metric)
    return "accuracy" if task == "multiclass" and metric == "log_loss" else str(metric)


def _known_labels(answered: pa.Table, labels: pa.Table | None, target: Target) -> Known:
    """Logged rows whose answer has come, of a known class."""
    labels = with_values(labels, "label")
    if target.column is None or labels is None or not answered.num_rows:
        return Known(np.zeros(0), np.zeros(0))
    place = pc.index_in(row_ids(answered), value_set=row_ids(labels).combine_chunks())
    found = place.is_valid()
    y = target.read(labels.column("label").take(place.drop_null()))
    p = pc.cast(answered.column("prediction").filter(found), pa.float64()).to_numpy(zero_copy_only=False)
    usable = np.isfinite(y) & np.isfinite(p) & ((y >= 0) | (target.task == "regression"))
    return Known(y[usable], p[usable])


def _typed(column: pa.ChunkedArray, contract: Contract, name: str) -> pa.ChunkedArray:
    typed, unreadable = check_table(contract, pa.table({name: column}), where="the prediction log")
    lost = pa.chunked_array([pa.nulls(unreadable.num_rows, typed.column(name).type)])
    return pa.chunked_array([*typed.column(name).chunks, *lost.chunks], typed.column(name).type)


def _facts(bundle: Bundle, log: pa.Table, answered: pa.Table) -> dict[str, str]:
    """What the report says of the window and the model."""
    facts: dict[str, str] = {}
    if log.num_rows:
        span = pc.min_max(log.column("time")).as_py()
        facts["time"] = f"{span['min']:%Y-%m-%d %H:%M} to {span['max']:%Y-%m-%d %H:%M} UTC"
        facts["requests"] = f"{log.num_rows:,} rows, {answered.num_rows:,} answered"
    if answered.num_rows:
        versions: list[dict[str, Any]] = pc.value_counts(answered.column("version")).to_pylist()
        facts["versions"] = ", ".join(f"{item['values']}: {item['counts']:,} rows" for item in versions)
        p50, p99 = pc.quantile(answered.column("latency_ms"), [0.5, 0.99]).to_pylist()
        if p50 is not None:
            facts["latency"] = f"{p50:.1f} ms median, {p99:.1f} ms at 99 %"
    facts["bundle"] = f"{bundle.name}, run {bundle.run_id}, digest {bundle.digest[:16]}"
    facts["trained on"] = f"{bundle.profile.rows:,} rows, snapshot {bundle.snapshot[:16]}"
    return facts
