"""The evaluation report: one HTML file with everything in it, and the same numbers as JSON beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.problem import Problem
from raymlp.core.files import Place, to_json, write_text
from raymlp.core.metrics import HIGHER_IS_BETTER, METRICS, gain
from raymlp.core.records import Evaluation, as_plain
from raymlp.evaluate.curves import confusion
from raymlp.evaluate.plots import plots

Floats = NDArray[np.float64]
TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_CLASSES = 12
"""Classes up to which the confusion table is shown."""


@dataclass(frozen=True)
class Scored:
    """Answers and scores of the evaluated rows, N of them, the baselines' by name."""

    y: Floats
    p: Floats
    baselines: Mapping[str, Floats]
    classes: tuple[str, ...]
    threshold: float = 0.5
    """Score from which on an anomaly is flagged."""


def write_report(
    evaluation: Evaluation, problem: Problem, scored: Scored, *, facts: Mapping[str, str], reasons: Mapping[str, str], folder: Place
) -> Evaluation:
    """Write `evaluation.html` and `evaluation.json` to `folder`; the evaluation that names the page."""
    from raymlp.runtime.page import render

    evaluation = replace(evaluation, report=folder / "evaluation.html")
    page = render(
        TEMPLATE,
        problem=problem,
        evaluation=evaluation,
        metric=problem.main_metric,
        metrics=metric_rows(evaluation, problem),
        plots=plots(problem.task, scored.y, scored.p, scored.baselines, classes=scored.classes, threshold=scored.threshold),
        confusion=_confusion_rows(scored) if problem.task == "multiclass" else [],
        classes=scored.classes,
        slices=slice_tables(evaluation),
        facts=facts,
        reasons=reasons,
    )
    write_text(evaluation.report, page)
    write_text(folder / "evaluation.json", to_json(as_plain(evaluation) | {"problem": problem.name, "facts": dict(facts)}))
    return evaluation


def metric_rows(evaluation: Evaluation, problem: Problem) -> list[dict[str, Any]]:
    """A row a metric that any model has, the main one first: its direction and a cell a model, with the best marked."""
    models = {"model": evaluation.metrics, **evaluation.baselines}
    names = sorted(METRICS[problem.task], key=lambda name: name != problem.main_metric)
    rows = []
    for name in names:
        values = {model: metrics[name] for model, metrics in models.items()}
        finite = {model: value for model, value in values.items() if np.isfinite(value.value)}
        if not finite and name != problem.main_metric:
            continue
        best = max(finite, key=lambda model: gain(name, finite[model].value, 0.0), default=None)
        cells = [{"interval": value, "best": model == best} for model, value in values.items()]
        rows.append({"name": name, "higher": name in HIGHER_IS_BETTER, "main": name == problem.main_metric, "cells": cells})
    return rows


def slice_tables(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A table a column: its rows with the places of estimate and interval on a common scale, and what was left out."""
    tables = []
    for column, group in groupby(evaluation.slices, key=lambda item: item["column"]):
        items = list(group)
        overall = evaluation.metrics[items[0]["metric"]].value
        scale = _scale([item[key] for item in items for key in ("low", "high", "estimate")] + [overall])
        rows = [dict(item) | {"places": {key: scale(item[key]) for key in ("estimate", "low", "high")}} for item in items]
        rates = [item["selection_rate"] for item in items if item["selection_rate"] is not None]
        tables.append({
            "column": column,
            "rows": rows,
            "overall": scale(overall),
            "sensitive": items[0]["sensitive"],
            "selection_gap": max(rates) - min(rates) if len(rates) > 1 else None,
            "left_out": evaluation.rows - sum(item["rows"] for item in items),
        })  # fmt: skip
    return tables


def _scale(values: Sequence[float]) -> Any:
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, width = min(finite), (max(finite) - min(finite)) or 1.0
    return lambda value: (value - low) / width if np.isfinite(value) else None


def _confusion_rows(scored: Scored) -> list[dict[str, Any]]:
    if len(scored.classes) > MAX_CLASSES or not len(scored.y):
        return []
    table = confusion(scored.y, scored.p)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    rows = []
    for i, name in enumerate(scored.classes):
        cells = [{"rows": int(count), "share": float(shares[i, j]), "right": i == j} for j, count in enumerate(table[i])]
        rows.append({"name": name, "cells": cells})
    return rows
