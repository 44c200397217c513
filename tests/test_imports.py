"""Importing does nothing, and light rooms stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = {
    "raymlp": {"ray", "torch", "pyarrow", "mlflow", "hydra", "pydantic"},
    "raymlp.cli": {"ray", "torch", "pyarrow", "mlflow", "hydra"},
    "raymlp.config.loader": {"ray", "torch", "pyarrow", "pandas", "mlflow"},
    "raymlp.jobs.submission": {"ray", "torch", "pyarrow", "pandas", "mlflow"},
    "raymlp.core.metrics": {"ray", "torch", "pyarrow", "pandas"},
    "raymlp.pipeline": {"ray", "torch", "mlflow", "lightning"},
    "raymlp.evaluate.gate": {"ray", "torch", "mlflow"},
    "raymlp.serve.rollout": {"ray", "torch", "mlflow"},
    "raymlp.serve.routing": {"ray", "torch", "mlflow"},
    "raymlp.data.drift": {"ray", "torch", "mlflow"},
    "raymlp.monitor.quality": {"ray", "torch", "mlflow"},
    "raymlp.retrain.policy": {"ray", "torch", "mlflow"},
    "raymlp.registry.promotion": {"ray", "torch", "mlflow"},
    "raymlp.model.predictor": {"ray", "mlflow", "lightning", "deepspeed"},
}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_does_not_load_the_heavy_ones(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & LIGHT[module]


def test_the_sdk_is_the_list_that_was_promised() -> None:
    import raymlp

    promised = {
        "load_config",
        "plan",
        "prepare",
        "profile",
        "train",
        "tune",
        "evaluate",
        "register",
        "deploy",
        "monitor",
        "retrain",
        "run",
        "load_predictor",
    }
    assert promised <= set(raymlp.__all__)
    assert all(callable(getattr(raymlp, name)) for name in raymlp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = raymlp.trian


def test_a_submodule_does_not_hide_the_function_of_the_same_name() -> None:
    code = "import raymlp, raymlp.monitor.quality, raymlp.train; print(raymlp.monitor.__module__, raymlp.train.__module__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["raymlp.pipeline.upkeep", "raymlp.pipeline.training"]


def test_importing_leaves_no_file_behind(tmp_path: object) -> None:
    code = "import raymlp, raymlp.pipeline, raymlp.life, raymlp.config.loader; raymlp.train"
    subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), check=True)
    from pathlib import Path

    assert list(Path(str(tmp_path)).iterdir()) == []
