"""Time a training step of raymlp beside a bare PyTorch loop: the same net, rows, batch and optimizer, two workers on the CPU.

    python benchmarks/overhead.py

Flights of January to July 2013, the default net. The bare loop holds its half of the rows as tensors and does what every such loop does:
draw an order, index, forward, loss, backward under DistributedDataParallel, clip, AdamW, one-cycle schedule. It runs twice: as PyTorch
sends the buffers of a net to all workers before each step, which the net here, whose buffers are constants, does not need, and without.
Rounds alternate; a figure is the median over the epochs of all rounds, without the first epoch of each, since a fresh process is slow
there. What comes before the first step and after the last is told apart.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from raymlp.config.loader import load_config
from raymlp.config.schema import Config
from raymlp.core.records import Snapshot
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile, prepare
from raymlp.features.on_ray import count_files
from raymlp.features.plan import FeaturePlan
from raymlp.model.nets import NetShape, build_net
from raymlp.runtime.session import ray_session
from raymlp.train.blocks import joined
from raymlp.train.feed import local_blocks
from raymlp.train.trainer import train

ROUNDS, EPOCHS, WORKERS = 3, 4, 2
NO_BUFFERS = "bare, buffers not sent"


def ours(config: Config, snapshot: Snapshot, folder: Path) -> dict[str, list[float]]:
    """Seconds a step and the share of time waiting for data by epoch, and the seconds that were no training."""
    steps, waits, rows = [], [], snapshot.rows["train"] // WORKERS * WORKERS
    started, trained = time.perf_counter(), 0.0

    def on_epoch(metrics: dict[str, float]) -> None:
        nonlocal trained
        seconds = rows / metrics["rows_per_s"]
        trained += seconds
        steps.append(seconds / -(-rows // WORKERS // config.train.batch_size))
        waits.append(metrics["data_wait_share"])

    train(config, snapshot, run_dir=folder, run_id="overhead", on_epoch=on_epoch)
    return {"step": steps[1:], "wait": waits[1:], "rest": [time.perf_counter() - started - trained]}


def bare(config: Config, plan: FeaturePlan, tensors: str, *, buffers: bool) -> dict[str, list[float]]:
    """The same figures of the bare loop, where buffers are sent before each step or not."""
    started = time.perf_counter()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_worker, args=(rank, address, config, plan, tensors, queue, buffers)) for rank in range(WORKERS)]
    for process in processes:
        process.start()
    found: dict[str, list[float]] = queue.get()
    for process in processes:
        process.join()
    return {"step": found["step"][1:], "wait": found["wait"][1:], "rest": [time.perf_counter() - started - found["trained"][0]]}


def _worker(rank: int, address: str, config: Config, plan: FeaturePlan, path: str, queue: Any, buffers: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=WORKERS)
    settings = config.train
    with np.load(path) as whole:
        each = len(whole["target"]) // WORKERS
        data = {name: torch.from_numpy(values[each * rank : each * (rank + 1)]) for name, values in whole.items()}
    torch.manual_seed(settings.seed)
    net = nn.parallel.DistributedDataParallel(
        build_net(NetShape.of(config.model, plan)), gradient_as_bucket_view=True, forward_sync_buffers=buffers
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    size = settings.batch_size
    num_steps = -(-each // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, num_steps * EPOCHS, pct_start=0.1, cycle_momentum=False
    )
    steps, waits, trained = [], [], 0.0
    for _ in range(EPOCHS):
        begun, waited = time.perf_counter(), 0.0
        order = torch.randperm(each)
        for start in range(0, each, size):
            asked = time.perf_counter()
            batch = {name: values[order[start : start + size]] for name, values in data.items()}
            target = batch.pop("target")
            waited += time.perf_counter() - asked
            outputs = net({name: values.long() if values.dtype == torch.int32 else values for name, values in batch.items()})
            loss = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), settings.gradient_clip)
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - begun
        trained += seconds
        steps.append(seconds / num_steps)
        waits.append(waited / seconds)
    if rank == 0:
        queue.put({"step": steps, "wait": waits, "trained": [trained]})
    torch.distributed.destroy_process_group()


def main() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = [f"train.num_workers={WORKERS}", f"train.epochs={EPOCHS}", f"train.stopping.patience={EPOCHS}", f"runtime.storage={folder}"]
        config = load_config("flights", words)
        found: dict[str, dict[str, list[float]]] = {
            name: {"step": [], "wait": [], "rest": []} for name in ("raymlp", "bare PyTorch", NO_BUFFERS)
        }
        with ray_session(config.runtime):
            snapshot = prepare(config.problem, config.data, folder / "snapshots")
            files = split_files(snapshot.path, "train")
            plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot.path), files=files, count=count_files)
            rows = joined(local_blocks(snapshot.path, plan, "train"))
            np.savez(folder / "rows.npz", target=rows.target, **rows.tensors)
            for i in range(ROUNDS):
                runs = {
                    "raymlp": ours(config, snapshot, folder / f"run-{i}"),
                    "bare PyTorch": bare(config, plan, str(folder / "rows.npz"), buffers=True),
                    NO_BUFFERS: bare(config, plan, str(folder / "rows.npz"), buffers=False),
                }
                for name, figures in runs.items():
                    for figure, values in figures.items():
                        found[name][figure] += values
    show({name: {figure: statistics.median(values) for figure, values in figures.items()} for name, figures in found.items()})


def show(medians: dict[str, dict[str, float]]) -> None:
    table = Table(title=f"one step of {WORKERS} workers", title_justify="left")
    for name in ("loop", "ms a step", "ratio", "waiting for data", "s before and after"):
        table.add_column(name, justify="left" if name == "loop" else "right")
    base = medians["bare PyTorch"]["step"]
    for name, figures in medians.items():
        step = figures["step"]
        table.add_row(name, f"{step * 1e3:.3f}", f"{step / base:.3f}", f"{figures['wait']:.1%}", f"{figures['rest']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
