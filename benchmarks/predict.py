"""Rows a second of batch prediction, beside a bare Ray Data pipeline with the same net and beside a plain loop in one process.

    python benchmarks/predict.py                 # flights four times: 1.3 million rows in four Parquet files
    python benchmarks/predict.py --times 1 --rounds 1

The net is the default perceptron over 8 numbers and 4 categories, untrained. `bare Ray Data` is what its documentation shows:
`read_parquet`, `map_batches` with an actor that holds the net and makes the same features, `write_parquet`; no contract, no quarantine,
nothing to go on from. `plain loop` reads, checks, predicts and writes in this process, on one thread. All write Parquet. Rounds
alternate after an untimed one; medians. Besides the seconds on the clock, those of CPUs in all processes: on a busy machine only these
compare. A worker is an own process with one thread each; what their start takes is told by a run over one small file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from raymlp import pipeline
from raymlp.config.features import Features
from raymlp.config.loader import load_config, with_overrides
from raymlp.config.model import Mlp
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.data import sources
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net, number_edges
from raymlp.model.predictor import Predictor
from raymlp.model.scorer import NetScorer
from raymlp.predict.answers import columns_of
from raymlp.runtime.session import ray_session

NUMBERS = ["hour", "minute", "sched_dep_time", "sched_arr_time", "distance", "dep_time", "air_time", "dep_delay"]
CATEGORIES = ["carrier", "origin", "dest", "tailnum"]
WORKERS, BATCH = 2, 8_192


class Cpu:
    """CPU seconds of this process and all below it, while the block runs; those of a process that ended are as last seen."""

    def __enter__(self) -> Cpu:
        self.seen: dict[tuple[int, float], float] = {}
        self.before = dict(self._look())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.seen |= self._look()
        self.seconds = sum(value - self.before.get(key, 0.0) for key, value in self.seen.items())

    def _watch(self) -> None:
        while not self.ended.wait(0.2):
            self.seen |= self._look()

    def _look(self) -> dict[tuple[int, float], float]:
        found = {}
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                found[process.pid, process.create_time()] = times.user + times.system
        return found


def flights(folder: Path, times: int) -> tuple[pa.Table, Path]:
    """The flights of the year without a null in `tailnum`, and a folder of `times` files of them."""
    table = sources.read_all(load_config("flights").data.source).select([*NUMBERS, *CATEGORIES, "arr_delay"])
    place = table.schema.get_field_index("tailnum")
    table = table.set_column(place, "tailnum", pc.fill_null(table.column("tailnum"), ""))
    table = table.append_column("row", pa.array(range(table.num_rows)))
    (folder / "in").mkdir()
    for i in range(times):
        pq.write_table(table.drop(["arr_delay"]), folder / "in" / f"{i:03}.parquet", row_group_size=65_536)
    return table, folder / "in"


def bundle_of(table: pa.Table, folder: Path) -> Path:
    problem = Problem(name="flights", task="regression", target="arr_delay", id_columns=("row",))
    profile = Profile().update(table)
    plan = FeaturePlan.fit(Features(categorical=tuple(CATEGORIES), max_categories=10_000, min_count=1), problem, profile)
    shape = NetShape.of(Mlp(), plan, number_edges(Mlp(), plan, profile))
    torch.manual_seed(0)
    scorer = NetScorer(shape, build_net(shape).state_dict())
    contract, calibration = Contract.infer(profile).only(plan.inputs), Calibration(task="regression")
    return save_bundle(Bundle("flights", "run", scorer, plan, contract, calibration, profile, Profile(), {}, "", "s"), folder / "bundle")


def ours(config: Config, bundle: Path, out: Path) -> None:
    pipeline.predict(with_overrides(config, {"predict.output": str(out)}), bundle)


class Bare:
    """The actor of a bare pipeline: features and net."""

    def __init__(self, bundle: str) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.load(bundle)

    def __call__(self, batch: pa.Table) -> pa.Table:
        with torch.inference_mode():
            tensors = self.predictor.bundle.plan.transform(batch)
            scores = self.predictor.bundle.scorer.net({name: torch.from_numpy(values) for name, values in tensors.items()})  # type: ignore[attr-defined]
        return pa.table({"row": batch.column("row"), "score": scores[:, 0].double().numpy()})


def bare(source: Path, bundle: Path, out: Path) -> None:
    import ray.data

    pool = ray.data.ActorPoolStrategy(size=WORKERS)
    rows = ray.data.read_parquet(str(source), override_num_blocks=8)  # small blocks are joined all the same
    rows.map_batches(
        Bare, fn_constructor_args=[str(bundle)], compute=pool, batch_size=BATCH, batch_format="pyarrow", num_cpus=1
    ).write_parquet(str(out))


def loop(source: Path, bundle: Path, out: Path) -> None:
    torch.set_num_threads(1)
    predictor = Predictor.load(bundle)
    out.mkdir()
    for file in sorted(source.glob("*.parquet")):
        writer: Any = None
        for batch in pq.ParquetFile(file).iter_batches(batch_size=65_536):
            table = pa.Table.from_batches([batch])
            answers = columns_of(predictor.predict(table), "", "v1", predictor.bundle.digest)
            answers = answers.add_column(0, "row", table.column("row"))
            writer = writer or pq.ParquetWriter(out / file.name, answers.schema, compression="zstd")
            writer.write_table(answers)
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table, source = flights(folder, asked.times)
        bundle = bundle_of(table, folder)
        settings = {"data.source": {"kind": "parquet", "path": str(source)}, "data.joins": [], "problem.id_columns": ["row"]}
        settings |= {"runtime.storage": str(folder), "runtime.num_cpus": 4, "predict.num_workers": WORKERS}
        config = with_overrides(load_config("flights"), settings)
        contenders: dict[str, Callable[[Path], None]] = {
            f"raymlp predict, {WORKERS} workers": lambda out: ours(config, bundle, out),
            "raymlp predict, 1 worker": lambda out: ours(with_overrides(config, {"predict.num_workers": 1}), bundle, out),
            f"bare Ray Data, {WORKERS} actors": lambda out: bare(source, bundle, out),
            "plain loop, 1 process": lambda out: loop(source, bundle, out),
        }
        found: dict[str, list[tuple[float, float]]] = {title: [] for title in contenders}
        with ray_session(config.runtime):
            for number in range(asked.rounds + 1):
                for place, (title, run) in enumerate(contenders.items()):
                    started = time.perf_counter()
                    with Cpu() as cpu:
                        run(folder / f"out-{number}-{place}")
                    if number:
                        found[title].append((time.perf_counter() - started, cpu.seconds))
        rows = table.num_rows * asked.times
        same(folder, asked.rounds, rows)
    show(found, rows)


def same(folder: Path, number: int, rows: int) -> None:
    """All contenders give the same scores."""
    tables = [pq.read_table(folder / f"out-{number}-{place}", columns=["row", "score"]).sort_by("row") for place in range(4)]
    assert all(table.num_rows == rows for table in tables)
    plain = tables[-1].column("score").to_numpy()
    for table in tables[:2]:
        assert abs(table.column("score").to_numpy() - plain).max() < 1e-3


def show(found: dict[str, list[tuple[float, float]]], rows: int) -> None:
    table = Table(title=f"{rows:,} rows", title_justify="left")
    for title in ("contender", "seconds", "rows/s", "CPU seconds", "rows per CPU second"):
        table.add_column(title, justify="left" if title == "contender" else "right")
    for title, values in found.items():
        wall, cpu = (statistics.median(item[place] for item in values) for place in (0, 1))
        table.add_row(title, f"{wall:.1f}", f"{rows / wall:,.0f}", f"{cpu:.1f}", f"{rows / cpu:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
