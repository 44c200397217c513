"""How work and memory are divided among the workers: one device, DDP, or DeepSpeed ZeRO, on CPU and GPU.

Only workers import this file: it brings Lightning, and DeepSpeed where a run asks for it.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor, nn

from raymlp.config.train import DeepSpeed, Train


def strategy_of(settings: Train, *, world_size: int, device: torch.device) -> Strategy:
    """The Lightning strategy of a worker in a Ray Train group; DDP with one worker needs no group."""
    from ray.train.lightning import RayDDPStrategy

    if isinstance(settings.strategy, DeepSpeed):
        return _zero(settings, settings.strategy.stage, device)
    if world_size == 1:
        return SingleDeviceStrategy(device)
    ddp: Strategy = RayDDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)
    return ddp


def precision_of(settings: Train) -> Any:
    """Lightning's word for the precision. DeepSpeed holds the weights in it (`true`); otherwise only the arithmetic is (`mixed`)."""
    if settings.precision == "32":
        return "32-true"
    held = "true" if isinstance(settings.strategy, DeepSpeed) else "mixed"
    return f"{settings.precision}-{held}"


def full_weights(net: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a net in float32 on the CPU, gathered from all workers under ZeRO. Every worker must call it."""
    gathered = {name: _full(parameter) for name, parameter in net.named_parameters()}
    state = {name: value.detach() for name, value in net.state_dict().items() if name not in gathered} | gathered
    return {name: _plain(state[name]) for name in net.state_dict()}


def _full(parameter: nn.Parameter) -> Tensor:
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor = safe_get_full_fp32_param(parameter)
        return value
    return parameter.detach()


def _plain(value: Tensor) -> Tensor:
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    return value.clone().contiguous()


def _zero(settings: Train, stage: int, device: torch.device) -> Strategy:
    """ZeRO over Ray Train's workers. On CPU: gloo, and the plain optimizer, since the DeepSpeed one would be compiled."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        _without_compiler()
    options: dict[str, Any] = {"stage": stage, "logging_batch_size_per_gpu": settings.batch_size, "logging_level": logging.ERROR}
    strategy: Strategy
    if on_cpu:
        strategy = _cpu_zero()(process_group_backend="gloo", **options)
    else:
        from ray.train.lightning import RayDeepSpeedStrategy

        strategy = RayDeepSpeedStrategy(**options)
    config: dict[str, Any] = strategy.config
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False
    return strategy


def _without_compiler() -> None:
    """DeepSpeed would compile its shared-memory collectives with gcc, half a minute on first use; gloo has all of them."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _cpu_zero() -> type[Strategy]:
    from lightning.fabric.utilities.seed import reset_seed
    from lightning.pytorch.strategies import DDPStrategy
    from ray.train.lightning import RayDeepSpeedStrategy

    class CpuZeroStrategy(RayDeepSpeedStrategy):
        """ZeRO without a GPU, which Lightning refuses: its check and its device indices are left out."""

        @property
        def root_device(self) -> torch.device:
            return torch.device("cpu", 0)

        def setup_environment(self) -> None:
            super(DDPStrategy, self).setup_environment()
            self.setup_distributed()

        def setup_distributed(self) -> None:
            reset_seed()
            self.set_world_ranks()
            self._init_deepspeed_distributed()

    return CpuZeroStrategy
