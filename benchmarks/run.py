"""Measure raymlp beside what people use instead, on the flights of 2013, in alternating rounds of one run.

    make bench                      all of it
    python benchmarks/run.py row    one part: features, row

`features`: fit and transform 160,590 training rows (16 numbers, 7 categories) against Ray Data's own preprocessors and
scikit-learn's ColumnTransformer. `row`: one row through the single-row executor against the same two. Medians; the ratio
is what to read, since machines differ.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from raymlp.config.loader import load_config
from raymlp.data.profile import Profile
from raymlp.data.snapshot import prepare, read_split, split_files
from raymlp.features.plan import FeaturePlan
from raymlp.runtime.session import ray_session

ROUNDS = 3
ROW_CALLS = 200


class Subject:
    """The same columns for everybody."""

    def __init__(self, folder: Path) -> None:
        self.config = load_config("flights", [f"runtime.storage={folder}"])
        self.path = prepare(self.config.problem, self.config.data, folder).path
        table = read_split(self.path, "train")
        plan = FeaturePlan.fit(self.config.features, self.config.problem, Profile().update(table))
        self.numbers = [step.column for step in plan.numbers if step.part is None]
        self.categories = [step.column for step in plan.categories if step.part is None]
        self.table = table.select([*self.numbers, *self.categories, self.config.problem.target])
        self.frame = self.table.drop_columns([self.config.problem.target]).to_pandas()
        self.features = self.config.features.model_copy(update={"dates": {}, "categorical": tuple(self.categories)})
        self.problem = self.config.problem.model_copy(update={"known_after": (), "id_columns": ()})

    def plan(self, table: pa.Table) -> FeaturePlan:
        return FeaturePlan.fit(self.features, self.problem, Profile().update(table))

    def ours(self) -> None:
        self.plan(self.table).transform(self.table)

    def ours_on_ray(self) -> None:
        import ray

        files = split_files(self.path, "train")
        data = ray.data.read_parquet(files).select_columns(self.table.column_names)
        plan = self.plan(pa.concat_tables(list(data.iter_batches(batch_size=65_536, batch_format="pyarrow"))))
        done = data.map_batches(plan.transform, batch_format="pyarrow", batch_size=65_536)
        done.materialize()

    def scikit_learn(self) -> Any:
        from sklearn.compose import ColumnTransformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OrdinalEncoder, StandardScaler

        codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
        steps = ColumnTransformer(
            [("n", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), self.numbers), ("c", codes, self.categories)]
        )
        steps.fit_transform(self.frame)
        return steps

    def ray_chain(self) -> Any:
        import ray
        from ray.data.preprocessors import Chain, Concatenator, OrdinalEncoder, SimpleImputer, StandardScaler

        data = ray.data.read_parquet(split_files(self.path, "train")).select_columns([*self.numbers, *self.categories])
        chain = Chain(
            SimpleImputer(columns=self.numbers, strategy="mean"),
            SimpleImputer(columns=self.categories, strategy="most_frequent"),
            StandardScaler(columns=self.numbers),
            OrdinalEncoder(columns=self.categories),
            Concatenator(columns=[*self.numbers, *self.categories], output_column_name="x"),
        )
        chain.fit_transform(data).materialize()
        return chain


def measure(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, seconds: dict[str, float], unit: str, factor: float) -> None:
    base = next(iter(seconds.values()))
    table = Table(title=title, title_justify="left")
    for name in ("contender", unit, "ratio to raymlp"):
        table.add_column(name, justify="left" if name == "contender" else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value * factor:,.2f}", f"{value / base:,.1f}")
    Console().print(table)


def features(subject: Subject) -> None:
    contenders = {
        "raymlp, Arrow in memory": subject.ours,
        "raymlp, Ray Data": subject.ours_on_ray,
        "scikit-learn ColumnTransformer": subject.scikit_learn,
        "Ray Data preprocessors": subject.ray_chain,
    }
    show(f"fit + transform, {subject.table.num_rows:,} rows", measure(contenders, ROUNDS), "s", 1.0)


def row(subject: Subject) -> None:
    run = subject.plan(subject.table).row_executor()
    one = subject.table.slice(0, 1).to_pylist()[0]
    frame = subject.frame.head(1)
    steps, chain = subject.scikit_learn(), subject.ray_chain()

    def repeat(call: Callable[[], Any], times: int) -> Callable[[], None]:
        return lambda: [call() for _ in range(times)] and None

    calls = {"raymlp": ROW_CALLS * 50, "scikit-learn ColumnTransformer": ROW_CALLS, "Ray Data preprocessors": ROW_CALLS // 10}
    work = {
        "raymlp": lambda: run(one),
        "scikit-learn ColumnTransformer": lambda: steps.transform(frame),
        "Ray Data preprocessors": lambda: chain.transform_batch(frame),
    }
    seconds = measure({name: repeat(call, calls[name]) for name, call in work.items()}, ROUNDS)
    show("one row", {name: value / calls[name] for name, value in seconds.items()}, "microseconds", 1e6)


PARTS = {"features": features, "row": row}


def main() -> None:
    chosen = sys.argv[1:] or list(PARTS)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("flights", [f"runtime.storage={folder}"])
        with ray_session(config.runtime):
            subject = Subject(Path(folder))
            for part in chosen:
                PARTS[part](subject)


if __name__ == "__main__":
    main()
