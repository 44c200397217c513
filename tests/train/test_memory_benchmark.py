"""The benchmark of memory and speed: it runs, does the work of plain PyTorch, and counts bytes once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

spec = importlib.util.spec_from_file_location("memory", Path(__file__).parents[2] / "benchmarks" / "memory.py")
assert spec is not None
assert spec.loader is not None
memory: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)

OPTIONS: dict[str, Any] = {
    "gpu": False,
    "cpus": 1,
    "size": memory.SIZES["tiny"] | {"steps": 4, "width": 16},
    "workers": 1,
    "peak_tflops": None,
}


def test_our_steps_give_the_loss_of_plain_pytorch_and_hold_as_many_bytes() -> None:
    device = torch.device("cpu")
    ours, plain = memory.ours("ddp", OPTIONS, device, 0, 1), memory.plain(OPTIONS, device, 0, 1)
    assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    parameters = sum(weight.numel() for weight in memory.job_of("ddp", OPTIONS, 1).net().parameters())
    for run in (ours, plain):
        held = {part: size / parameters for part, size in run["bytes"].items()}
        assert held == pytest.approx({"weights": 4, "most": 4, "kept": 4, "optimizer": 8, "buckets": 0}, rel=0.02)
        assert run["s"] > 0
    found = {"parameters": parameters, "runs": {"plain": [plain | {"peak": 0, "s": 0.2}], "ddp": [ours | {"peak": 0, "s": 0.25}]}}
    row = memory.rows_of(found, OPTIONS | {"gpu": True})[1]
    assert (row["behind plain"], row["within 3%"], row["tokens/s"]) == ("+20.0%", "no", f"{2 * 32 / 0.25:,.0f}")


def test_the_theory_is_that_of_the_paper() -> None:
    """ZeRO, figure 1: 7.5 billion parameters and 64 workers hold 120, 31.4, 16.6 and 1.9 GB."""
    whole = sum(memory.theory("zero1", 1).values())
    held = [whole, *(sum(memory.theory(f"zero{stage}", 64).values()) for stage in (1, 2, 3))]
    assert [round(7.5 * size, 1) for size in held] == [120, 31.4, 16.6, 1.9]


def test_views_of_a_tensor_count_once() -> None:
    whole = torch.zeros(10)
    assert memory.size_of([whole, whole[2:5], whole.view(5, 2), torch.zeros(3, dtype=torch.bfloat16)]) == 40 + 6
    assert memory.size_of([whole[:4], whole[2:6]]) == 24
