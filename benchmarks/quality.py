"""How good the models are on public data, beside published figures: the official splits, mean and spread over three seeds.

    python benchmarks/quality.py            every case
    python benchmarks/quality.py adult      one data set, or `adult/tabm` for one case

Data: the folder that RAYMLP_TEST_DATA names (see tests/conftest.py). The test split is looked at once, by the bundle at the end; early
stopping goes by a validation part of the training rows, drawn by the seed. California has no official split: the seed draws its 80/20.
Settings of a case are overrides of the command line. Every case trains in this process, on one CPU.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import raymlp
from raymlp.core.metrics import METRICS
from raymlp.core.records import Snapshot
from raymlp.data.snapshot import load_profile, read_split
from raymlp.model.predictor import Predictor
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import outcome_alone

SEEDS = (0, 1, 2)
VALID = 0.15
"""Share of the training rows that validates."""
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race", "sex",
    "capital_gain", "capital_loss", "hours", "country", "income",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A data set: what its table is, with a column `split`, how it is predicted, and the metrics that are published for it."""

    table: Callable[[Path, int], pa.Table]
    words: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A model on a data set, by overrides, and the figures to reach or beat."""

    data: str
    model: str
    words: tuple[str, ...]
    beside: str


def adult(folder: Path, seed: int) -> pa.Table:
    """The official train and test files; `?` is missing, and test labels end with a full stop."""

    def read(name: str) -> pa.Table:
        options = pacsv.ConvertOptions(strings_can_be_null=True, null_values=["?", " ?"])
        table = pacsv.read_csv(folder / "adult" / name, pacsv.ReadOptions(column_names=ADULT), convert_options=options)
        clean = [pc.utf8_rtrim(pc.utf8_trim_whitespace(c), ".") if pa.types.is_string(c.type) else c for c in table.columns]
        return pa.table(clean, names=ADULT)

    train, test = read("adult-train.csv"), read("adult-test.csv")
    split = np.r_[np.where(np.random.default_rng(seed).random(train.num_rows) < VALID, "valid", "train"), ["test"] * test.num_rows]
    return pa.concat_tables([train, test]).append_column("split", pa.array(split))


def california(folder: Path, seed: int) -> pa.Table:
    """The answer in 100,000 dollars; beside the totals of a district its averages per household, which the data set was published with."""
    table = pacsv.read_csv(folder / "california_housing" / "housing.csv")
    for name in ("total_rooms", "total_bedrooms", "population"):
        average = pc.divide(pc.cast(table.column(name), "float64"), table.column("households"))
        table = table.append_column(f"{name}_per_household", average)
    place = table.schema.get_field_index("median_house_value")
    table = table.set_column(place, "median_house_value", pc.divide(table.column(place), 100_000))
    chance = np.random.default_rng(seed).random(table.num_rows)
    split = np.where(chance < 0.2, "test", np.where(chance < 0.2 + 0.8 * VALID, "valid", "train"))
    return table.append_column("split", pa.array(split))


def california_turned(folder: Path, seed: int) -> pa.Table:
    """The same rows with their place seen from two more sides: a tree cuts along its axes alone, and the coast runs from north-west."""
    table = california(folder, seed)
    north, east = table.column("latitude"), table.column("longitude")
    return table.append_column("north_east", pc.add(north, east)).append_column("north_west", pc.subtract(north, east))


TASKS = {
    "adult": Task(adult, ("problem.task=binary", "problem.target=income", "problem.positive_class='>50K'"), ("accuracy", "auc")),
    "california": Task(california, ("problem.task=regression", "problem.target=median_house_value"), ("rmse",)),
    "california_turned": Task(california_turned, ("problem.task=regression", "problem.target=median_house_value"), ("rmse",)),
}
NUMBERS = ("features.scaling=quantile", "features.quantiles=1000")
BINS = ("model.numbers.kind=piecewise_linear",)
CASES = [
    Case("adult", "linear", (*NUMBERS, "model=linear", "train.epochs=10", "train.learning_rate=0.01"), "logistic .853 / .906"),
    Case(
        "adult", "mlp, bins", (*NUMBERS, *BINS, "train.epochs=8", "train.batch_size=256"), "MLP .852 / .906, FT-Transformer .859 / .914"
    ),
    Case(
        "adult", "tabm",
        (*NUMBERS, "model=tabm", "model.members=16", "model.width=128", "train.epochs=8", "train.batch_size=256",
         "train.learning_rate=0.002", "train.weight_decay=0.0003"),
        "FT-Transformer .859 / .914, CatBoost .874 / .928",
    ),
    Case(
        "adult", "xgboost",
        ("model=xgboost", "train.epochs=40", "model.learning_rate=0.05", "model.max_depth=6", "model.feature_share=0.5",
         "features.min_count=1"),
        "XGBoost .873 / .928, CatBoost .874 / .928",
    ),
    Case(
        "adult", "lightgbm",
        ("model=lightgbm", "train.epochs=40", "model.learning_rate=0.05", "model.num_leaves=31", "model.feature_share=0.5",
         "features.min_count=1"),
        "XGBoost .873 / .928, CatBoost .874 / .928",
    ),
    Case(
        "california", "mlp, bins",
        (*NUMBERS, *BINS, "model.hidden=[384,384]", "model.dropout=0.35", "train.epochs=40",
         "train.stopping.patience=40", "train.batch_size=128",
         "train.learning_rate=0.003", "train.weight_decay=0.001"),
        "MLP .489, FT-Transformer .471, CatBoost .433",
    ),
    Case(
        "california_turned", "xgboost",
        ("model=xgboost", "train.epochs=80", "model.learning_rate=0.04", "model.max_depth=8", "model.max_bins=1024",
         "model.min_child_weight=5", "model.feature_share=0.6"),
        "XGBoost .434, CatBoost .433",
    ),
    Case(
        "california_turned", "lightgbm",
        ("model=lightgbm", "train.epochs=80", "model.learning_rate=0.04", "model.num_leaves=63", "model.max_bins=2048",
         "model.feature_share=0.5", "model.l2=5"),
        "XGBoost .434, CatBoost .433",
    ),
]  # fmt: skip


def run(case: Case, folder: Path, seed: int, place: Path) -> list[float]:
    """The test metrics of one training run."""
    task = TASKS[case.data]
    source = place / f"{case.data}-{seed}.parquet"
    if not source.exists():
        pq.write_table(task.table(folder, seed), source)
    rows = ("data.source.kind=parquet", f"data.source.path={source}", "data.split.kind=column", "data.split.column=split")
    where = (f"problem.name={case.data}", f"runtime.storage={place}", f"train.seed={seed}", "data.checks.outliers=off")
    config = raymlp.load_config(overrides=[*task.words, *rows, *where, "data.checks.label_noise=off", *case.words])
    snapshot: Snapshot = raymlp.prepare(config)
    job, outcome = outcome_alone(config, snapshot.path, lambda _: None)
    bundle, _ = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "quality")
    test = read_split(snapshot.path, "test")
    answer = test.column(config.problem.target)
    truth = pc.equal(answer, config.problem.positive_class) if config.problem.task == "binary" else answer
    scores = Predictor(bundle).predict(test.select(bundle.plan.inputs)).scores
    return [METRICS[config.problem.task][name](truth.to_numpy(zero_copy_only=False).astype(float), scores) for name in task.metrics]


def main(wanted: str = "") -> None:
    folder = Path(os.environ.get("RAYMLP_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; expected the public data. Set RAYMLP_TEST_DATA.")
    page = Table("data", "model", "metric", "mean", "spread", "beside", "seconds a run", "settings")
    with tempfile.TemporaryDirectory() as place, raymlp.ray_session(raymlp.load_config("flights").runtime):
        for case in CASES:
            if not f"{case.data}/{case.model}".startswith(wanted):
                continue
            started = time.perf_counter()
            found = np.array([run(case, folder, seed, Path(place)) for seed in SEEDS])
            seconds = (time.perf_counter() - started) / len(SEEDS)
            for name, values in zip(TASKS[case.data].metrics, found.T, strict=True):
                facts = (case.beside, f"{seconds:.0f}", " ".join(case.words))
                page.add_row(case.data, case.model, name, f"{values.mean():.4f}", f"{values.std(ddof=1):.4f}", *facts)
    Console(width=160).print(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
