"""What cross-validation says: predictions of rows by the models that did not learn from them, and scores over folds.

Early stopping and calibration of a model look at the fold that it is judged on, as `raymlp train` does with its validation
split: scores are a little kinder than those on a test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.core.files import Place, make_folder
from raymlp.core.metrics import score
from raymlp.core.records import CrossValidation, Snapshot, Spread, TrainedModel
from raymlp.data.parquet import Writer, key_of
from raymlp.data.profile import to_text
from raymlp.data.snapshot import read_split
from raymlp.model.predictor import Predictor

VALUE, PROBABILITY = "prediction", "probability"


def judge(config: Config, models: Sequence[TrainedModel], snapshots: Sequence[Snapshot], *, folder: Place, run_id: str) -> CrossValidation:
    """Score the model of each fold on the fold, and leave the predictions in `folder/out-of-fold.parquet`, encrypted as snapshots are."""
    pairs = enumerate(zip(models, snapshots, strict=True))
    table = joined([predictions_of(model.bundle, snapshot, config.problem, fold=fold) for fold, (model, snapshot) in pairs])
    file = Writer(make_folder(folder) / "out-of-fold.parquet", key_of(config.data.privacy))
    file.write(table)
    file.close()
    metrics = spreads([model.metrics for model in models])
    return CrossValidation(tuple(models), metrics, out_of_fold_scores(table, config.problem), folder / "out-of-fold.parquet", run_id)


def predictions_of(bundle: Place, snapshot: Snapshot, problem: Problem, *, fold: int) -> pa.Table:
    """The validation rows of a fold that have an answer: `fold`, the columns that name a row, the answer as it is in the snapshot, and
    `prediction` (regression), `probability` of the positive class, or `probability_CLASS` for each class. Held in memory."""
    predictor = Predictor.load(bundle)
    target = predictor.bundle.plan.target
    table = read_split(snapshot.path, "valid")
    table = table.filter(pa.array(np.isfinite(target.answers(table)[0])))
    scores = predictor.scores(table)
    named = [name for name in table.column_names if name in (*problem.id_columns, problem.time_column)]
    columns = {"fold": pa.array(np.full(len(scores), fold), pa.int8())}
    columns |= {name: table.column(name) for name in dict.fromkeys([*named, *target.columns])}
    if target.task == "multiclass":
        return pa.table(columns | {f"{PROBABILITY}_{name}": scores[:, k] for k, name in enumerate(target.classes)})
    if target.task == "binary":
        answers = target.answers(table)[0]
        return pa.table(columns | {"positive": pa.array(answers > 0), PROBABILITY: scores})
    return pa.table(columns | {VALUE: scores})


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The predictions of all folds, in their order. A class that a fold's training rows did not have gets probability 0 there."""
    whole = pa.concat_tables(tables, promote_options="default")
    for place, name in enumerate(whole.column_names):
        if name.startswith(f"{PROBABILITY}_"):
            whole = whole.set_column(place, name, whole.column(name).fill_null(0.0))
    return whole


def out_of_fold_scores(table: pa.Table, problem: Problem) -> dict[str, float]:
    """Metrics over the rows of all folds at once, from what `joined` gives."""
    if problem.task == "binary":
        y = table.column("positive").to_numpy().astype(np.float64)
        return score("binary", y, table.column(PROBABILITY).to_numpy())
    if problem.task == "regression":
        assert problem.target is not None, "a task with a target"
        return score("regression", table.column(problem.target).to_numpy().astype(np.float64), table.column(VALUE).to_numpy())
    names = [name for name in table.column_names if name.startswith(f"{PROBABILITY}_")]
    classes = np.array([name.removeprefix(f"{PROBABILITY}_") for name in names])
    p = np.stack([table.column(name).to_numpy() for name in names], axis=1)
    answers = to_text(table.column(problem.target)).to_numpy(zero_copy_only=False)
    known = np.isin(answers, classes)
    return score("multiclass", (answers[known, None] == classes).argmax(axis=1).astype(np.float64), p[known])


def spreads(metrics: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and standard deviation (n - 1) over folds of each metric that all folds have."""
    shared = [name for name in metrics[0] if all(name in other for other in metrics)]
    values = {name: np.array([fold[name] for fold in metrics]) for name in shared}
    return {name: Spread(float(found.mean()), float(found.std(ddof=1))) for name, found in values.items()}
