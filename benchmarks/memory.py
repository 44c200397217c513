"""Bytes that a worker holds by strategy, beside the theory, and tokens a second beside plain PyTorch, on a decoder-only language model.

    python benchmarks/memory.py                                          # two CPU workers on gloo: bytes
    python benchmarks/memory.py --gpu --workers 1 --preset gpu           # one GPU: tokens/s, MFU, distance to plain PyTorch
    python benchmarks/memory.py --gpu --workers 8 --preset gpu           # several: the bytes as well
    python benchmarks/memory.py --preset tiny --rounds 2                 # a dry run of all of it

The net is `model.kind=decoder`, and the steps are those of `raymlp train` (`raymlp.train.loop.steps`) in bf16 with AdamW and clipping by
norm; the texts are random tokens that fill the context. Plain PyTorch is the same net under autocast in a bare loop, with
DistributedDataParallel where there are several workers. All strategies run one after the other in the same processes, and the rounds
alternate; a speed is the median over the rounds, of the second half of the steps of each, between two waits for the device. With one
worker there is nothing to divide: fsdp then runs as ddp does.

Theory: ZeRO (Rajbhandari et al. 2020, section 5) holds 2 bytes a parameter of weights, 2 of gradients and 12 of optimizer state (a copy in
32 bits, two moments); stage 1 divides the last by the workers, 2 the gradients too, 3 the weights too. Under autocast (plain, ddp, fsdp)
weights and gradients are in 32 bits and the optimizer holds two moments: 4 + 4 + 8, all divided under fsdp.

Gradients are told twice: `most` that were there at once in the backward pass, and `kept` for the step. The theory of stage 1, all of
them, is what is there in the backward pass; behind it DeepSpeed keeps a worker's own part alone, as in stage 2. How far stages 2 and 3
come down in the backward pass goes by the size of their buckets (200 million numbers): the gradients of a smaller net wait in one,
whole, until the end. `buckets` are those buffers. Stage 3 leaves weights of fewer than 100,000 numbers whole.
MFU: 6 x parameters + 6 x layers x context x width operations a token (causal attention), over the peak of the device.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from raymlp.config.data import Data
from raymlp.config.features import Features
from raymlp.config.model import Decoder
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.config.sources import ParquetSource
from raymlp.config.split import RandomSplit
from raymlp.config.train import Train
from raymlp.config.tune import Choice, Tune
from raymlp.core.language import LIKELIHOOD, TOKENS
from raymlp.data.target import Target
from raymlp.features.ids import FIRST
from raymlp.features.plan import FeaturePlan
from raymlp.features.text import Subword
from raymlp.train.blocks import Block
from raymlp.train.job import Job

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "zero1": {"kind": "deepspeed", "stage": 1},
    "zero2": {"kind": "deepspeed", "stage": 2},
    "zero3": {"kind": "deepspeed", "stage": 3},
    "fsdp": {"kind": "fsdp"},
}
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 64, "heads": 2, "vocabulary": 512, "context": 32, "batch": 2, "steps": 6},
    "cpu": {"layers": 4, "width": 512, "heads": 8, "vocabulary": 8192, "context": 64, "batch": 2, "steps": 6},
    "gpu": {"layers": 24, "width": 1024, "heads": 16, "vocabulary": 50304, "context": 1024, "batch": 8, "steps": 40},
}
"""`gpu` has the sizes of GPT-2 medium (Radford et al. 2019), 354 million parameters."""
PARTS = ("weights", "most", "kept", "optimizer")
ALLOWED = 0.03
"""How much slower than plain PyTorch a strategy may be; judged on GPUs, since workers on CPUs take the cores from one another."""
MEASURED = 1
"""The step in which bytes are counted: moments are there from the first on."""
RATE, CLIP = 3e-4, 1.0


def job_of(name: str, options: dict[str, Any], workers: int) -> Job:
    """A training run over random tokens, as `raymlp train` would make it of texts."""
    size = options["size"]
    text = Subword(column="text", length=size["context"], tokenizer="", vocabulary=size["vocabulary"] - 1)
    config = Config(
        problem=Problem(name="memory", task="language"),
        data=Data(source=ParquetSource(path="none"), split=RandomSplit()),
        features=Features(text=("text",), text_encoding="subword", text_length=size["context"]),
        model=Decoder(layers=size["layers"], width=size["width"], heads=size["heads"], context=size["context"], dropout=0.0),
        train=Train(
            strategy=STRATEGIES.get(name, STRATEGIES["ddp"]), num_workers=workers, gpu=options["gpu"], precision="bf16", epochs=1,
            batch_size=size["batch"], shuffle_rows=0, learning_rate=RATE, schedule={"kind": "constant", "warm_up": 0}, weight_decay=0.0,
            gradient_clip=CLIP, cpus_per_worker=options["cpus"],
        ),
        tune=Tune(space={"train.learning_rate": Choice(values=(RATE,))}),
    )  # fmt: skip
    plan = FeaturePlan(steps=(text,), target=Target(task="language"))
    return Job(config, plan, {"train": size["steps"] * size["batch"] * workers, "valid": 0})


def texts(options: dict[str, Any], rank: int) -> Iterator[Block]:
    """The texts of a worker, a batch at a time."""
    size, rng = options["size"], np.random.default_rng(rank)
    for _ in range(size["steps"]):
        ids = rng.integers(FIRST, size["vocabulary"] - 1 + FIRST, (size["batch"], size["context"]), dtype=np.int32)
        empty = np.zeros((size["batch"], 0))
        tensors = {"numeric": empty.astype(np.float32), "categorical": empty.astype(np.int32), "text": ids}
        yield Block(tensors, np.full(size["batch"], np.nan, np.float32))


class Clock:
    """The second half of the steps, between two waits for the device."""

    def __init__(self, options: dict[str, Any], device: torch.device) -> None:
        self.first, self.steps, self.device = options["size"]["steps"] // 2, options["size"]["steps"], device
        self.started = self.seconds = 0.0

    def before(self, step: int) -> None:
        if step == self.first:
            self._wait()
            self.started = time.perf_counter()

    def after(self, step: int) -> None:
        if step == self.steps - 1:
            self._wait()
            self.seconds = (time.perf_counter() - self.started) / (self.steps - self.first)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Scales:
    """Counts bytes around one backward pass."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.bytes = net, dict.fromkeys((*PARTS, "buckets"), 0)
        self._hooks: list[Any] = []

    def before_backward(self, optimizer: Any) -> None:
        def look(_: Tensor) -> None:
            self.bytes["most"] = max(self.bytes["most"], size_of(gradients(self.net, optimizer)))
            self.bytes["buckets"] = max(self.bytes["buckets"], size_of(buckets(optimizer)))

        self._hooks = [weight.register_post_accumulate_grad_hook(look) for weight in self.net.parameters()]

    def before_step(self, optimizer: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        kept = size_of(gradients(self.net, optimizer))
        self.bytes |= {
            "weights": size_of(weights(self.net)),
            "most": max(self.bytes["most"], kept),
            "kept": kept,
            "optimizer": size_of(state(optimizer)),
        }


class Watch(pl.Callback):
    """Clock, scales and the last loss of a run of ours."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.loss = clock, torch.zeros(())
        self.scales: Scales | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self.clock.before(batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.loss = loss.detach()
        if trainer.global_step == MEASURED:
            self.scales = Scales(pl_module.net)
            self.scales.before_backward(trainer.strategy.optimizers[0])

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == MEASURED and self.scales is not None:
            self.scales.before_step(trainer.strategy.optimizers[0])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.after(batch_idx)


def ours(name: str, options: dict[str, Any], device: torch.device, rank: int, workers: int) -> dict[str, Any]:
    """The steps of `raymlp train` under a strategy."""
    from raymlp.train.loop import Seat, steps
    from raymlp.train.strategy import strategy_of

    job = job_of(name, options, workers)
    watch = Watch(Clock(options, device))
    strategy = strategy_of(job.config.train, world_size=workers, device=device, own=False)
    steps(job, lambda _: texts(options, rank), seat=Seat(strategy=strategy, rank=rank, world_size=workers), watch=watch)
    assert watch.scales is not None, "too few steps"
    return {"bytes": watch.scales.bytes, "s": watch.clock.seconds, "loss": float(watch.loss)}


def plain(options: dict[str, Any], device: torch.device, rank: int, workers: int) -> dict[str, Any]:
    """The same in a bare loop of PyTorch."""
    from raymlp.train.batches import batch_of

    job = job_of("ddp", options, workers)
    pl.seed_everything(job.config.train.seed, verbose=False)
    net = job.net().to(device).train()
    several = workers > 1
    model = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True) if several else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
    clock, scales = Clock(options, device), Scales(net)
    for step, block in enumerate(texts(options, rank)):
        clock.before(step)
        tensors = {name: part.to(device, non_blocking=True) for name, part in batch_of(block, slice(None)).tensors.items()}
        with torch.autocast(device.type, torch.bfloat16):
            told = model(tensors)
        loss = -told[:, LIKELIHOOD].sum() / told[:, TOKENS].sum()
        if step == MEASURED:
            scales.before_backward(optimizer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        if step == MEASURED:
            scales.before_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        clock.after(step)
    return {"bytes": scales.bytes, "s": clock.seconds, "loss": float(loss.detach())}


# ---------------------------------------------------------------- what is held


def weights(net: nn.Module) -> Iterator[Tensor]:
    """Of a divided weight the part, and the whole where it is there, too."""
    for parameter in net.parameters():
        yield parameter
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor


def gradients(net: nn.Module, optimizer: Any) -> Iterator[Tensor]:
    """Those of the weights, and the parts that DeepSpeed has averaged."""
    held = [found for parameter in net.parameters() for found in (parameter.grad, getattr(parameter, "grad_accum", None))]
    parts = ("all_grad_tensors", "averaged_gradients", "grad_partitions_flat_buffer", "_DeepSpeedZeroOptimizer_Stage3__grad_partitions")
    yield from tensors([held, *(getattr(optimizer, name, None) for name in parts)])


def buckets(optimizer: Any) -> Iterator[Tensor]:
    """Buffers in which gradients travel."""
    for bucket in getattr(optimizer, "ipg_buckets", {}).values():
        yield from tensors(bucket.buffer)


def state(optimizer: Any) -> Iterator[Tensor]:
    """Moments, and copies of the weights in 32 bits."""
    copies = [getattr(optimizer, name, None) for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")]
    yield from tensors([list(getattr(optimizer, "optimizer", optimizer).state.values()), copies])


def tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict | list | tuple):
        for each in found.values() if isinstance(found, dict) else found:
            yield from tensors(each)


def size_of(found: Iterable[Tensor]) -> int:
    """Bytes of tensors. Views of one another count once: of pieces that overlap the rest, what they add."""
    spans = []
    for tensor in found:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if local.numel():
            spans.append((local.data_ptr(), local.data_ptr() + local.numel() * local.element_size()))
    total, reached = 0, 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def theory(name: str, workers: int) -> dict[str, float]:
    """Bytes a parameter."""
    kinds = {"weights": 4.0, "gradients": 4.0, "optimizer": 8.0}
    if name.startswith("zero"):
        kinds = {"weights": 2.0, "gradients": 2.0, "optimizer": 12.0}
    divided = {"zero1": ("optimizer",), "zero2": ("gradients", "optimizer"), "zero3": tuple(kinds), "fsdp": tuple(kinds)}.get(name, ())
    return {kind: size / workers if kind in divided else size for kind, size in kinds.items()}


# ---------------------------------------------------------------- the runs


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """All rounds of all strategies, in a Ray Train worker: what worker 0 saw, by name."""
    import ray.train
    from ray.train.torch import get_device

    from raymlp.train.loop import quiet

    quiet(False)
    context, device = ray.train.get_context(), get_device()
    rank, workers = context.get_world_rank(), context.get_world_size()
    found: dict[str, Any] = {name: [] for name in options["only"]}
    parameters = sum(weight.numel() for weight in job_of("ddp", options, workers).net().parameters())
    for _ in range(options["rounds"]):
        for name in options["only"]:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            run = plain(options, device, rank, workers) if name == "plain" else ours(name, options, device, rank, workers)
            run["peak"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
            found[name].append(run)
            gc.collect()
            if workers > 1:
                torch.distributed.barrier()
    return {"parameters": parameters, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "runs": found}


def rows_of(found: dict[str, Any], options: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for people of each strategy. Parts in bytes a parameter, and the theory in brackets."""
    size, workers, parameters = options["size"], options["workers"], found["parameters"]
    work = 6 * parameters + 6 * size["layers"] * size["context"] * size["width"]
    speeds = {
        name: workers * size["batch"] * size["context"] / statistics.median(run["s"] for run in runs)
        for name, runs in found["runs"].items()
    }
    rows = []
    for name, runs in found["runs"].items():
        expected, held = theory(name, workers), {part: size_ / parameters for part, size_ in runs[0]["bytes"].items()}
        behind = 1 - speeds[name] / speeds["plain"] if "plain" in speeds else None
        rows.append({
            "strategy": name,
            "loss": f"{runs[0]['loss']:.4f}",
            "weights": f"{held['weights']:.2f} ({expected['weights']:.2f})",
            "gradients, most": f"{held['most']:.2f} ({expected['gradients']:.2f})",
            "kept": f"{held['kept']:.2f}",
            "optimizer": f"{held['optimizer']:.2f} ({expected['optimizer']:.2f})",
            "buckets, MB": f"{runs[0]['bytes']['buckets'] / 1e6:.0f}",
            "peak, GB": f"{max(run['peak'] for run in runs) / 1e9:.2f}" if options["gpu"] else "-",
            "tokens/s": f"{speeds[name]:,.0f}",
            "MFU": f"{speeds[name] * work / workers / options['peak_tflops'] / 1e12:.2%}" if options["peak_tflops"] else "-",
            "behind plain": "-" if behind is None or name == "plain" else f"{behind:+.1%}",
            f"within {ALLOWED:.0%}": "-" if behind is None or name == "plain" or not options["gpu"] else ("no", "yes")[behind <= ALLOWED],
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(SIZES), default="cpu", help="sizes of net and batch")
    for name in SIZES["cpu"]:
        parser.add_argument(f"--{name}", type=int, help="in the place of the preset's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1, help="of each worker")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, help="dense bf16 peak of a GPU, for MFU; those of common ones are known")
    parser.add_argument("--only", nargs="*", default=["plain", *STRATEGIES], choices=["plain", *STRATEGIES])
    options = vars(parser.parse_args())
    options["size"] = {name: options.pop(name) or value for name, value in SIZES[options.pop("preset")].items()}
    if options["size"]["steps"] < 4:
        parser.error(f"--steps is {options['size']['steps']}; expected 4 at least: bytes are counted in the first half, time in the second")

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raymlp.config.runtime import Runtime
    from raymlp.runtime.session import ray_session
    from raymlp.train.figures import PEAK_TFLOPS

    with tempfile.TemporaryDirectory() as folder, ray_session(Runtime(storage=folder)):
        trainer = TorchTrainer(
            measure,
            train_loop_config=options,
            torch_config=TorchConfig(backend="nccl" if options["gpu"] else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=options["workers"], use_gpu=options["gpu"],
                resources_per_worker={"CPU": options["cpus"]} | ({"GPU": 1} if options["gpu"] else {}),
            ),
            run_config=RunConfig(name="memory", storage_path=folder),
        )  # fmt: skip
        found: dict[str, Any] = trainer.fit().return_value
    options["peak_tflops"] = options["peak_tflops"] or next(
        (peaks[0] for part, peaks in PEAK_TFLOPS.items() if part in found["device"]), None
    )
    rows = rows_of(found, options)
    print(f"\n{found['parameters'] / 1e6:.2f} million parameters, {options['workers']} x {found['device']}, {json.dumps(options['size'])};")
    print("bytes a parameter on worker 0, in brackets the theory; speeds are those of all workers\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
