"""Bytes a worker holds by strategy, beside the theory, and tokens a second, on a small decoder-only language model.

    python benchmarks/memory.py                            # bytes, two CPU workers on gloo
    python benchmarks/memory.py --gpu --workers 2          # bytes and speed on GPUs, also with one worker
    python benchmarks/memory.py --layers 2 --steps 4       # a dry run

Theory: ZeRO (Rajbhandari et al. 2020, section 5) holds 2 bytes a parameter of weights, 2 of gradients and 12 of optimizer state (a copy in
32 bits, two moments); stage 1 divides the last by the workers, 2 the gradients too, 3 the weights too. Under autocast (ddp, fsdp)
weights and gradients are in 32 bits and the optimizer holds two moments: 4 + 4 + 8, all divided under fsdp.
MFU: 6 x parameters + 6 x layers x context x width operations a token (causal attention), over the peak that is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from raymlp.config.train import Train

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "zero1": {"kind": "deepspeed", "stage": 1},
    "zero2": {"kind": "deepspeed", "stage": 2},
    "zero3": {"kind": "deepspeed", "stage": 3},
}
PARTS = ("weights", "gradients", "optimizer")


class Block(nn.Module):
    """Causal self-attention and a feed-forward part, each behind a normalisation and added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, T, width) to the same."""
        rows, length, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.narrow(functional.gelu(self.widen(self.before_forward(x))))


class Decoder(nn.Module):
    """A decoder-only language model; the output layer is the embedding of the tokens."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 (B, T) to logits (B, T, vocabulary)."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def loss_of(net: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross entropy of each next token of (B, T + 1)."""
    logits = net(ids[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


class LanguageModule(pl.LightningModule):
    """The language model under our parameter groups and optimizer; measures bytes once and the time of each step."""

    def __init__(self, net: Decoder, settings: Train) -> None:
        super().__init__()
        self.net, self.settings = net, settings
        self.bytes: dict[str, int] = {}
        self.ends: list[float] = []
        self.loss = 0.0

    def training_step(self, ids: Tensor, _: int) -> Tensor:
        loss = loss_of(self.net, ids)
        self.loss = float(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        from raymlp.train.groups import parameter_groups
        from raymlp.train.optimizer import optimizer_of

        return optimizer_of(parameter_groups(self.net, self.settings), self.settings, fused=False)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if len(self.ends) == 2:  # moments exist from the first step on
            self.bytes = held(self.net, self.trainer.strategy.optimizers[0])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def held(net: nn.Module, optimizer: Any) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer state that this worker holds."""
    inner = getattr(optimizer, "optimizer", optimizer)
    weights = [getattr(parameter, "ds_tensor", parameter) for parameter in net.parameters()]
    gradients = [parameter.grad for parameter in net.parameters()]
    gradients += list(tensors(getattr(optimizer, "averaged_gradients", None)))
    gradients += list(tensors(getattr(optimizer, "grad_partitions_flat_buffer", None)))
    copies = [getattr(optimizer, name, None) for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")]
    state = [*tensors(list(inner.state.values())), *tensors(copies)]
    return dict(zip(PARTS, (size(part) for part in (weights, gradients, state)), strict=True))


def tensors(found: Any) -> Iterable[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict | list | tuple):
        for each in found.values() if isinstance(found, dict) else found:
            yield from tensors(each)


def size(found: Iterable[Tensor | None]) -> int:
    """Bytes of tensors, each piece of memory once."""
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in found if tensor is not None]
    return sum({(tensor.data_ptr(), tensor.numel()): tensor.numel() * tensor.element_size() for tensor in local}.values())


def theory(name: str, parameters: int, workers: int) -> dict[str, float]:
    weights, gradients, state = (4, 4, 8) if name in ("ddp", "fsdp", "plain") else (2, 2, 12)
    divided = {"ddp": (1, 1, 1), "plain": (1, 1, 1), "zero1": (1, 1, workers), "zero2": (1, workers, workers)}.get(name, (workers,) * 3)
    return dict(zip(PARTS, (parameters * b / d for b, d in zip((weights, gradients, state), divided, strict=True)), strict=True))


def batches(options: dict[str, Any]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (options["batch"], options["context"] + 1)
    return [torch.randint(options["vocabulary"], shape, generator=generator) for _ in range(options["steps"])]


def fit(options: dict[str, Any]) -> dict[str, Any]:
    """Train with one strategy in a Ray Train worker."""
    import ray.train
    from ray.train.lightning import RayLightningEnvironment
    from ray.train.torch import get_device

    from raymlp.train.loop import quiet
    from raymlp.train.strategy import precision_of, strategy_of

    quiet(False)
    context, device = ray.train.get_context(), get_device()
    torch.manual_seed(0)
    net = Decoder(options["vocabulary"], options["context"], options["width"], options["heads"], options["layers"])
    parameters = sum(parameter.numel() for parameter in net.parameters())
    if options["name"] == "plain":
        return {"parameters": parameters, **plain(net.to(device), options, device)}
    settings = Train(
        strategy=STRATEGIES[options["name"]], num_workers=context.get_world_size(), precision="bf16", gpu=options["gpu"],
        batch_size=options["batch"], learning_rate=3e-4, weight_decay=0.1,
    )  # fmt: skip
    strategy = strategy_of(settings, world_size=context.get_world_size(), device=device)
    single = type(strategy).__name__ == "SingleDeviceStrategy"
    module = LanguageModule(net, settings)
    trainer = pl.Trainer(
        accelerator="gpu" if options["gpu"] else "cpu", devices=1 if single else "auto", strategy=strategy,
        plugins=[] if single else [RayLightningEnvironment()], **precision_of(settings, strategy), max_epochs=1,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches(options), batch_size=None))
    peak = torch.cuda.max_memory_allocated() if options["gpu"] else 0
    return {"parameters": parameters, "bytes": module.bytes, "s": seconds(module.ends), "loss": module.loss, "peak": peak}


def plain(net: nn.Module, options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same in a bare loop of PyTorch, on one worker."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=0.1)
    ends: list[float] = []
    for ids in batches(options):
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            loss = loss_of(net, ids.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        sizes = held(net, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    return {"bytes": sizes, "s": seconds(ends), "loss": value, "peak": torch.cuda.max_memory_allocated() if options["gpu"] else 0}


def seconds(ends: list[float]) -> float:
    """Median time of a step in the second half."""
    steps = [after - before for before, after in pairwise(ends)]
    return sorted(steps[len(steps) // 2 :])[len(steps[len(steps) // 2 :]) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "workers": 2,
        "layers": 4,
        "width": 256,
        "heads": 4,
        "vocabulary": 4096,
        "context": 64,
        "batch": 4,
        "steps": 6,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of a GPU, for MFU; an H100 SXM has 989")
    parser.add_argument("--only", nargs="*", default=["plain", *STRATEGIES])
    options = vars(parser.parse_args())

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from raymlp.config.runtime import Runtime
    from raymlp.runtime.session import ray_session

    workers, rows = options["workers"], []
    with tempfile.TemporaryDirectory() as folder, ray_session(Runtime(storage=folder)):
        for name in options["only"]:
            count = 1 if name == "plain" else workers
            trainer = TorchTrainer(
                fit,
                train_loop_config={**options, "name": name},
                torch_config=TorchConfig(backend="nccl" if options["gpu"] else "gloo"),
                scaling_config=ScalingConfig(num_workers=count, use_gpu=options["gpu"]),
                run_config=RunConfig(name=name, storage_path=folder),
            )
            found = trainer.fit().return_value
            expected = theory(name, found["parameters"], count)
            tokens = count * options["batch"] * options["context"] / found["s"]
            work = 6 * found["parameters"] + 6 * options["layers"] * options["context"] * options["width"]
            row = {"strategy": name, "workers": count, "loss": round(found["loss"], 4), "tokens_per_s": round(tokens)}
            row |= {
                part: f"{found['bytes'][part] / found['parameters']:.2f} ({expected[part] / found['parameters']:.2f})" for part in PARTS
            }
            if options["gpu"]:
                row |= {"mfu": round(tokens * work / count / options["peak_tflops"] / 1e12, 4), "peak_gb": round(found["peak"] / 1e9, 2)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(f"\n{found['parameters'] / 1e6:.2f} million parameters; bytes a parameter on worker 0, and in brackets the theory\n")
    names = list(rows[-1])
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")


if __name__ == "__main__":
    main()
