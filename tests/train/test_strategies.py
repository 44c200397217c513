"""Strategies side by side: two Ray Train workers run one after the other through all of them, on the same rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.encoder import Lora, TextEncoder, Transfer
from raymlp.config.features import Features
from raymlp.config.model import Decoder
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.core.records import Snapshot
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.huggingface import start_of
from raymlp.train.feed import local_blocks
from raymlp.train.job import Job
from tests.train.planted import config_of, write_snapshot

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs raymlp[deepspeed]"),
]
Snapshots = Callable[[str], Snapshot]
ZERO1, ZERO2, ZERO3 = ({"kind": "deepspeed", "stage": stage} for stage in (1, 2, 3))
FSDP = {"kind": "fsdp"}
ENCODER = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LORA, FROZEN = (
    TextEncoder(architecture=ENCODER | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}, dropout=0, transfer=transfer)
    for transfer in (Transfer(lora=Lora(rank=2)), Transfer(train_blocks=1))
)
EMA = {"average": {"kind": "ema", "decay": 0.9}, "gradient_clip": 0.01, "gradient_clip_by": "value"}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": FSDP},
    "zero1": {"strategy": ZERO1},
    "zero2": {"strategy": ZERO2},
    "zero3": {"strategy": ZERO3},
    "ddp bf16": {"precision": "bf16"},
    "fsdp bf16": {"precision": "bf16", "strategy": FSDP},
    "ddp average": EMA,
    "fsdp average": EMA | {"strategy": FSDP},
    "ddp lora": {},
    "fsdp lora": {"strategy": FSDP},
    "zero2 lora": {"strategy": ZERO2},
    "zero3 lora": {"strategy": ZERO3},
    "ddp frozen": {},
    "fsdp frozen": {"strategy": FSDP},
    "zero3 frozen": {"strategy": ZERO3},
    "ddp language": {},
    "fsdp language": {"strategy": FSDP},
    "zero2 language": {"strategy": ZERO2},
    "zero3 language": {"strategy": ZERO3},
}
DECODER = Decoder(layers=2, width=8, heads=2, context=12, dropout=0)
MODELS = {"lora": LORA, "frozen": FROZEN, "language": DECODER}
"""Of the runs that look at texts, by the last part of their name; the others have a perceptron and numbers."""


TEXTS = Features(text=("said",), text_encoding="subword", text_length=12, vocabulary_size=300)


def sentences(rows: int, seed: int) -> pa.Table:
    """A film is good or dull."""
    rng = np.random.default_rng(seed)
    answers = rng.integers(0, 2, rows)
    return pa.table({"said": [f"film {rng.integers(9)} was {'good' if y else 'dull'}" for y in answers], "y": answers.astype(bool)})


@pytest.fixture(scope="module")
def runs(ray_runtime: Runtime, snapshots: Snapshots, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By name: the losses of each epoch, the weights, and the weights once more, from the checkpoint after the first epoch on."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = tmp_path_factory.mktemp("strategies")
    said = write_snapshot(folder / "said", {"train": sentences(192, 1), "valid": sentences(41, 2)})
    common = {"epochs": 2, "batch_size": 32, "accumulate": 2, "gradient_clip": 0.3, "average": {"kind": "none"}}
    jobs, blocks = {}, {}
    for name, settings in RUNS.items():
        config, snapshot = config_of(**(common | settings)), snapshots("binary")
        if model := MODELS.get(name.split()[-1]):
            config, snapshot = config.model_copy(update={"features": TEXTS, "model": model}), said
        if model is DECODER:
            config = config.model_copy(update={"problem": Problem(name="said", task="language")})
        plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot.path), files=split_files(snapshot.path, "train"))
        blocks[name] = {split: list(local_blocks(snapshot.path, plan, split)) for split in ("train", "valid")}
        rows = {split: sum(map(len, parts)) for split, parts in blocks[name].items()}
        jobs[name] = Job(config, plan, rows, start=start_of(config.model, plan))

    def worker(settings: dict[str, Any]) -> Any:
        import ray.train
        from ray.train.torch import get_device

        from raymlp.train.feed import clipped
        from raymlp.train.loop import Seat, fit, quiet
        from raymlp.train.strategy import strategy_of
        from raymlp.train.worker import _gather

        quiet(False)
        rank = ray.train.get_context().get_world_rank()
        results = {}
        for name, job in settings["jobs"].items():

            def source(split: str, start: int, stop: int, blocks: Any = blocks[name]) -> Any:
                return lambda _: clipped(iter(blocks[split]), start, stop)

            size = job.train_rows(2)
            train, valid = source("train", rank * size, (rank + 1) * size), source("valid", *job.valid_range(rank, 2))

            def run(job: Job, report: Any, resume: Path | None = None, train: Any = train, valid: Any = valid) -> Any:
                strategy = strategy_of(job.config.train, world_size=2, device=get_device(), own=False)
                seat = Seat(strategy=strategy, rank=rank, world_size=2, gather=_gather)
                return fit(job, train, valid, seat=seat, report=report, resume=resume)

            def save_first(metrics: dict[str, float], save: Any, place: Path = folder / name) -> None:
                if metrics["epoch"] == 0:
                    place.mkdir(exist_ok=True)
                    save(place)

            first = run(job, save_first)
            ray.train.collective.barrier()
            again = run(job, lambda *_: None, resume=folder / name)
            plain = [{key: value.numpy() for key, value in outcome.scorer.weights.items()} for outcome in (first, again)]
            results[name] = {
                "losses": [(epoch["train_loss"], epoch["valid_loss"]) for epoch in first.progress.history],
                "outputs": first.outputs,
                "weights": plain[0],
                "again": plain[1],
            }
        return results

    trainer = TorchTrainer(
        worker,
        train_loop_config={"jobs": jobs},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="strategies", storage_path=str(folder)),
    )
    results: dict[str, dict[str, Any]] = trainer.fit().return_value
    return results


def of_ddp(name: str) -> str:
    return " ".join(["ddp", *name.split()[1:]])


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("ddp")])
def test_every_strategy_comes_to_the_losses_of_ddp(name: str, runs: dict[str, dict[str, Any]]) -> None:
    """Also with accumulated and clipped gradients, in reduced precision, with averaged weights, and with weights that do not learn."""
    expected = runs[of_ddp(name)]
    tolerance = 2e-2 if name.endswith("bf16") else 1e-4
    np.testing.assert_allclose(runs[name]["losses"], expected["losses"], rtol=tolerance)
    np.testing.assert_allclose(runs[name]["outputs"], expected["outputs"], rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", list(RUNS))
def test_a_checkpoint_goes_on_to_the_same_whole_weights(name: str, runs: dict[str, dict[str, Any]]) -> None:
    weights, again = runs[name]["weights"], runs[name]["again"]
    expected = runs[of_ddp(name)]["weights"]
    assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in expected.items()}
    for key, value in weights.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, again[key], err_msg=key)


@pytest.mark.parametrize("name", ["fsdp frozen", "zero3 frozen"])
def test_weights_that_do_not_learn_come_back_as_they_were(name: str, runs: dict[str, dict[str, Any]]) -> None:
    found, expected = runs[name]["weights"], runs[of_ddp(name)]["weights"]
    frozen = [key for key in expected if "layer.0." in key or "embeddings" in key]
    assert frozen
    for key in frozen:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def test_accumulated_steps_and_averages_were_really_taken(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["ddp average"]["losses"][0] != runs["ddp"]["losses"][0]
    assert runs["ddp bf16"]["losses"] != runs["ddp"]["losses"]
