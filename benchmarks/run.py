"""Measure raymlp beside what people use instead, on the flights of 2013, in alternating rounds of one run.

    make bench                          all of it
    python benchmarks/run.py row        one part: features, row, scale, workers

`features`: read 3.4 million rows (flights ten times, 8 numbers and 4 categories) from Parquet, fit and transform, against
Ray Data's own preprocessors, scikit-learn's ColumnTransformer and Polars, each after an untimed run over a file for each CPU.
`row`: one row of 20 + 5 and of 200 + 5 columns. `scale`: snapshot, profile and tensors of flights ten and a hundred times, with
the peak memory of all processes. `workers`: the same work by one worker and by two, after an untimed run. Medians; the ratio is
what to read, since machines differ.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.table import Table

from raymlp.config.features import Features
from raymlp.config.loader import build_config, load_config
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.data import sources
from raymlp.data.place import split_files
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_profile, prepare
from raymlp.features.on_ray import hold_files, profile_files, stream_files, transform_files
from raymlp.features.plan import FeaturePlan
from raymlp.runtime.session import ray_session
from raymlp.train.blocks import packed_files
from raymlp.train.feed import may_hold

ROUNDS = 3
ROW_CALLS = 200
NUMBERS = ["hour", "minute", "sched_dep_time", "sched_arr_time", "distance", "dep_time", "air_time", "dep_delay"]
CATEGORIES = ["carrier", "origin", "dest", "tailnum"]
TARGET = "arr_delay"
PROBLEM = Problem(name="flights", task="regression", target=TARGET)
FEATURES = Features(categorical=tuple(CATEGORIES), max_categories=10_000, min_count=1)


def flights(folder: Path, times: int) -> list[str]:
    """Parquet files of all flights of the year, one file for each time they are repeated. No category is missing: Ray's
    preprocessors stop there."""
    table = sources.read_all(load_config("flights").data.source).select([*NUMBERS, *CATEGORIES, TARGET])
    place = table.schema.get_field_index("tailnum")
    table = table.set_column(place, "tailnum", pc.fill_null(table.column("tailnum"), ""))
    files = [str(folder / f"flights-{i:03}.parquet") for i in range(times)]
    for file in files:
        pq.write_table(table, file, row_group_size=65_536)
    return files


# ---------------------------------------------------------------------- fit and transform


def in_memory(files: list[str]) -> None:
    profile = Profile()
    tables = [pq.read_table(file, columns=[*NUMBERS, *CATEGORIES, TARGET]) for file in files]
    batches = [pa.Table.from_batches([batch]) for table in tables for batch in table.to_batches(max_chunksize=65_536)]
    for batch in batches:
        profile.update(batch)
    plan = FeaturePlan.fit(FEATURES, PROBLEM, profile)
    _ = [plan.transform(batch) for batch in batches]


def on_ray(files: list[str]) -> None:
    plan = FeaturePlan.fit(FEATURES, PROBLEM, profile_files(files, [*NUMBERS, *CATEGORIES, TARGET]))
    transform_files(files, plan).materialize()


def scikit_learn(files: list[str]) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    steps = ColumnTransformer([("n", numbers, NUMBERS), ("c", codes, CATEGORIES)])
    steps.fit_transform(pq.ParquetDataset(files).read(columns=[*NUMBERS, *CATEGORIES]).to_pandas())
    return steps


def ray_chain(files: list[str]) -> Any:
    from ray.data.preprocessors import Chain, Concatenator, OrdinalEncoder, SimpleImputer, StandardScaler

    data = ray.data.read_parquet(files, columns=[*NUMBERS, *CATEGORIES])
    chain = Chain(
        SimpleImputer(columns=NUMBERS, strategy="mean"),
        StandardScaler(columns=NUMBERS),
        OrdinalEncoder(columns=CATEGORIES),
        Concatenator(columns=[*NUMBERS, *CATEGORIES], output_column_name="x"),
    )
    chain.fit_transform(data).materialize()
    return chain


def polars(files: list[str]) -> None:
    """The same arithmetic, written by hand: medians, means, deviations and vocabularies, then one select."""
    import polars as pl

    frame = pl.read_parquet(files, columns=[*NUMBERS, *CATEGORIES])
    facts = frame.select(
        *(pl.col(name).median().alias(f"{name}.median") for name in NUMBERS),
        *(pl.col(name).mean().alias(f"{name}.mean") for name in NUMBERS),
        *(pl.col(name).std().alias(f"{name}.std") for name in NUMBERS),
    ).row(0, named=True)
    words = {name: frame[name].drop_nulls().value_counts(sort=True)[name] for name in CATEGORIES}
    frame.select(
        *(
            ((pl.col(name).cast(pl.Float64).fill_null(facts[f"{name}.median"]) - facts[f"{name}.mean"]) / facts[f"{name}.std"])
            .cast(pl.Float32)
            .alias(name)
            for name in NUMBERS
        ),
        *(pl.col(name).is_null().cast(pl.Float32).alias(f"{name}.missing") for name in NUMBERS),
        *(
            pl.col(name).replace_strict(words[name], pl.int_range(2, len(words[name]) + 2, eager=True), default=0).cast(pl.Int64)
            for name in CATEGORIES
        ),
    )


def features(folder: Path) -> None:
    files = flights(folder, 10)
    contenders: dict[str, Callable[[list[str]], Any]] = {
        "raymlp, Arrow in memory": in_memory,
        "raymlp on Ray": on_ray,
        "Polars in memory, by hand": polars,
        "scikit-learn ColumnTransformer": scikit_learn,
        "Ray Data preprocessors": ray_chain,
    }
    with ray_session(load_config("flights").runtime):
        cpus = int(ray.cluster_resources()["CPU"])
        seconds = measure(
            {name: lambda run=run: run(files) for name, run in contenders.items()},
            ROUNDS,
            {name: lambda run=run: run(files[:cpus]) for name, run in contenders.items()},
        )
    show("read + fit + transform, 3,367,760 rows", seconds, "s", 1.0)


# ---------------------------------------------------------------------- one row


def row(folder: Path) -> None:
    for wide in (20, 200):
        one_row(wide)


def one_row(wide: int) -> None:
    """`wide` numbers, a tenth of them missing, and 5 categories."""
    rng = np.random.default_rng(0)
    numbers = [f"x{i}" for i in range(wide)]
    categories = [f"k{i}" for i in range(5)]
    columns: dict[str, Any] = {name: pa.array(rng.normal(size=2_000), mask=rng.random(2_000) < 0.1) for name in numbers}
    columns |= {name: rng.choice(list("abcdefgh"), 2_000) for name in categories}
    table = pa.table({**columns, "y": rng.normal(size=2_000)})
    plan = FeaturePlan.fit(Features(), Problem(name="row", task="regression", target="y"), Profile().update(table))
    run, one, frame = plan.row_executor(), table.slice(3, 1).to_pylist()[0], table.to_pandas()
    steps = columns_of_scikit_learn(frame, numbers, categories)
    chain = chain_of_ray(frame, numbers, categories)
    head = frame.head(1)
    work = {
        "raymlp": (lambda: run(one), ROW_CALLS * 50),
        "scikit-learn ColumnTransformer": (lambda: steps.transform(head), ROW_CALLS),
        "Ray Data preprocessors": (lambda: chain.transform_batch(head), ROW_CALLS // 10),
    }
    contenders = {name: repeated(call, times) for name, (call, times) in work.items()}
    seconds = measure(contenders, ROUNDS)
    show(f"one row, {wide} numbers + 5 categories", {name: value / work[name][1] for name, value in seconds.items()}, "microseconds", 1e6)


def repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def columns_of_scikit_learn(frame: Any, numbers: list[str], categories: list[str]) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    scaled = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return ColumnTransformer([("n", scaled, numbers), ("c", OrdinalEncoder(), categories)]).fit(frame)


def chain_of_ray(frame: Any, numbers: list[str], categories: list[str]) -> Any:
    from ray.data.preprocessors import Chain, Concatenator, OrdinalEncoder, SimpleImputer, StandardScaler

    chain = Chain(
        SimpleImputer(columns=numbers, strategy="mean"),
        StandardScaler(columns=numbers),
        OrdinalEncoder(columns=categories),
        Concatenator(columns=[*numbers, *categories], output_column_name="x"),
    )
    with ray_session(load_config("flights").runtime):
        chain.fit(ray.data.from_pandas(frame))
    return chain


# ---------------------------------------------------------------------- how it grows


def scale(folder: Path) -> None:
    files = flights(folder, 100)
    table = Table(title="snapshot + profile + tensors", title_justify="left")
    for name in ("rows", "s", "s / million rows", "peak memory of all processes, GB"):
        table.add_column(name, justify="right")
    for times in (10, 100):
        rows, seconds, peak = apart(files[:times], folder, cpus=2, cores=2)
        table.add_row(f"{rows:,}", f"{seconds:,.1f}", f"{seconds / rows * 1e6:,.2f}", f"{peak / 1e9:,.2f}")
    Console().print(table)


def workers(folder: Path) -> None:
    """A worker alone on two cores borrows the second: Arrow decodes and joins in threads of its own."""
    files = flights(folder, 10)
    ways = {"2 workers on 2 cores": (2, 2), "1 worker on 1 core": (1, 1), "1 worker on 2 cores": (1, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (cpus, cores) in ways.items():
            seconds[name].append(apart(files, folder, cpus=cpus, cores=cores)[1])
    show("snapshot + profile + tensors, 3,367,760 rows", {name: statistics.median(found) for name, found in seconds.items()}, "s", 1.0)


def apart(files: Sequence[str], folder: Path, *, cpus: int, cores: int) -> tuple[int, float, int]:
    """Rows, seconds of the work without Ray's start, and peak bytes of a process of its own, with all its children on so many cores."""
    storage = tempfile.mkdtemp(dir=folder)
    words = [sys.executable, __file__, "--work", storage, str(cpus), *files]
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, allowed))
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(proportional_bytes(pid) for pid in family(process.pid)))
            time.sleep(0.5)

    thread = threading.Thread(target=watch)
    thread.start()
    said = process.communicate()[0].split()
    thread.join()
    if process.returncode:
        raise SystemExit(f"the work failed with exit code {process.returncode}")
    return int(said[-2]), float(said[-1]), peak


def family(pid: int) -> list[int]:
    """A process and everything it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found


def proportional_bytes(pid: int) -> int:
    """Memory of a process; what it shares with others is divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def work(storage: str, cpus: str, *files: str) -> None:
    """Run by `apart`: the work itself; prints rows and seconds. Every worker process has done it once, on a file each, before the clock
    starts: what it imports belongs to Ray's start."""
    with ray_session(scale_config(storage, int(cpus), files).runtime):
        tensors_of(scale_config(f"{storage}/warm", int(cpus), files[: int(cpus)]))
        started = time.perf_counter()
        tensors_of(scale_config(storage, int(cpus), files))
        print(len(files) * 336_776, time.perf_counter() - started)


def tensors_of(config: Config) -> None:
    """Snapshot, profile and tensors; these are held or made as they are read, as for training."""
    snapshot = prepare(config.problem, config.data, Path(config.runtime.storage))
    plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot.path))
    spread = hold_files if may_hold(sum(snapshot.rows.values()), plan) else stream_files
    tensors = spread(split_files(snapshot.path, "train"), packed_files, plan=plan, training=True)
    rows = sum(batch.num_rows for batch in tensors.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert rows == snapshot.rows["train"]


def scale_config(storage: str, cpus: int, files: Sequence[str]) -> Config:
    return build_config(
        load_config("flights").model_dump(mode="json")
        | {
            "problem": PROBLEM.model_dump(mode="json"),
            "data": {"source": {"kind": "parquet", "path": list(files)}, "split": {"kind": "random", "valid": 0.1, "test": 0.0}},
            "features": FEATURES.model_dump(mode="json"),
            "runtime": {"storage": storage, "num_cpus": cpus},
        }
    )


# ---------------------------------------------------------------------- measuring


def measure(
    contenders: dict[str, Callable[[], Any]], rounds: int, warm_ups: dict[str, Callable[[], Any]] | None = None
) -> dict[str, float]:
    """Median seconds of each, in alternating rounds. A warm-up, untimed, comes right before: actors of one contender end the worker
    processes that another has imported its code in."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            if warm_ups:
                warm_ups[name]()
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(title: str, seconds: dict[str, float], unit: str, factor: float) -> None:
    base = next(iter(seconds.values()))
    table = Table(title=title, title_justify="left")
    for name in ("contender", unit, "ratio to the first"):
        table.add_column(name, justify="left" if name == "contender" else "right")
    for name, value in seconds.items():
        table.add_row(name, f"{value * factor:,.2f}", f"{value / base:,.2f}")
    Console().print(table)


PARTS = {"features": features, "row": row, "scale": scale, "workers": workers}


def main() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in sys.argv[1:] or list(PARTS):
            home = Path(folder) / part
            home.mkdir()
            PARTS[part](home)


if __name__ == "__main__":
    main()
