"""How work and memory are divided among the workers: one device, DDP, FSDP, or DeepSpeed ZeRO, on CPU and GPU.

Only workers import this file: it brings Lightning, and DeepSpeed where a run asks for it.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from raymlp.config.strategy import Auto, DeepSpeed, Fsdp
from raymlp.config.train import Train
from raymlp.train.layers import blocks_of


def strategy_of(settings: Train, *, world_size: int, device: torch.device, own: bool) -> Strategy:
    """The Lightning strategy of a worker in a Ray Train group; DDP and FSDP with one worker need no group. `own`: a net of the user's."""
    kind = settings.strategy
    assert not isinstance(kind, Auto), "settled on the driver"
    if isinstance(kind, DeepSpeed):
        return _zero(settings, kind, device)
    if world_size == 1:
        return SingleDeviceStrategy(device)
    if isinstance(kind, Fsdp):
        return _fsdp()(device, world_size)
    return _ddp()(own)


def precision_of(settings: Train, strategy: Strategy) -> dict[str, Any]:
    """What the Lightning trainer is told of the precision: DeepSpeed holds the weights in it (`true`), others compute in it (`mixed`),
    and so does a single device, which keeps no copy in 32 for the optimizer, whatever the settings say.

    Lightning refuses 16 under its ModelParallelStrategy by name, and takes the same plugin from outside: the gradient scaler of PyTorch
    agrees on overflows among divided gradients.
    """
    if settings.precision == "32":
        return {"precision": "32-true"}
    alone = isinstance(strategy, SingleDeviceStrategy)
    if settings.precision == "16" and isinstance(settings.strategy, Fsdp) and not alone:
        return {"plugins": [MixedPrecision("16-mixed", strategy.root_device.type)]}
    held = "true" if isinstance(settings.strategy, DeepSpeed) and not alone else "mixed"
    return {"precision": f"{settings.precision}-{held}"}


def share_statistics(net: nn.Module, strategy: Strategy) -> None:
    """Give all workers the mean of their batch normalisation statistics, which each collects from its own rows: they all look at one
    net in validation, and that net is saved."""
    for layer in net.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            for statistic in (layer.running_mean, layer.running_var):
                statistic.copy_(strategy.reduce(statistic.clone(), reduce_op="mean"))


def full_weights(net: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a net in float32 on the CPU, gathered from all workers that hold parts. Every worker must call it."""
    gathered = {name: _full(parameter) for name, parameter in net.named_parameters(remove_duplicate=False)}
    state = {name: value.detach() for name, value in net.state_dict().items() if name not in gathered} | gathered
    return {name: _plain(state[name]) for name in net.state_dict()}


def _full(parameter: nn.Parameter) -> Tensor:
    if hasattr(parameter, "ds_id") and not parameter.requires_grad:  # divided, and without a copy in 32 bits
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        value: Tensor = safe_get_full_fp32_param(parameter)
        return value
    held = parameter.detach()
    return held.full_tensor() if isinstance(held, DTensor) else held


def _plain(value: Tensor) -> Tensor:
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    return value.clone().contiguous()


def _ddp() -> type[Strategy]:
    from ray.train.lightning import RayDDPStrategy

    class DdpStrategy(RayDDPStrategy):
        """DDP over Ray Train's workers. The buffers go from rank 0 to the others before a step only where steps may change them; those of
        our own nets but for batch normalisation are constants, and every worker has them."""

        def __init__(self, own: bool) -> None:
            super().__init__(find_unused_parameters=False, gradient_as_bucket_view=True)
            self._own = own

        def _setup_model(self, model: nn.Module) -> nn.Module:
            self._ddp_kwargs["forward_sync_buffers"] = self._own or any(isinstance(layer, _BatchNorm) for layer in model.modules())
            wrapped: nn.Module = super()._setup_model(model)
            return wrapped

    return DdpStrategy


def _fsdp() -> type[Strategy]:
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import FSDPModule, fully_shard

    class FsdpStrategy(ModelParallelStrategy):
        """FSDP over Ray Train's workers. Each net of the module is divided by blocks; Lightning leaves that to its user.

        Checkpoints are one file of whole tensors: the sharded kind has an index that is read by unpickling.
        """

        def __init__(self, device: torch.device, world_size: int) -> None:
            super().__init__(data_parallel_size=world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)
            self._device = device

        @property
        def root_device(self) -> torch.device:
            return self._device

        def setup(self, trainer: pl.Trainer) -> None:
            mesh = self.device_mesh["data_parallel"]
            self.accelerator.setup(trainer)
            for net in self.model.children():
                if any(True for _ in net.parameters()):
                    for part in [*blocks_of(net), net]:
                        fully_shard(part, mesh=mesh)
            self.model_to_device()
            self.barrier()
            self.setup_optimizers(trainer)
            self.setup_precision_plugin()

        def on_validation_end(self) -> None:
            """A net keeps what it gathered last until a backward pass, which does not come here, and then there is nothing to save."""
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    return FsdpStrategy


def _zero(settings: Train, kind: DeepSpeed, device: torch.device) -> Strategy:
    """ZeRO over Ray Train's workers. On CPU: gloo, and the plain optimizer, since the DeepSpeed one would be compiled."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        _without_compiler()
    options: dict[str, Any] = kind.model_dump(exclude={"kind"})
    options |= {"logging_batch_size_per_gpu": settings.batch_size, "logging_level": logging.ERROR}
    strategy: Strategy = _cpu_zero()(process_group_backend="gloo", **options) if on_cpu else _gpu_zero()(**options)
    config: dict[str, Any] = strategy.config
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False
    return strategy


def _without_compiler() -> None:
    """DeepSpeed would compile its shared-memory collectives with gcc, half a minute on first use; gloo has all of them."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _gpu_zero() -> type[Strategy]:
    from ray.train.lightning import RayDeepSpeedStrategy

    class ZeroStrategy(RayDeepSpeedStrategy):
        """ZeRO over Ray Train's workers. Lightning and DeepSpeed would both divide a loss by the batches that are accumulated."""

        def backward(self, closure_loss: Tensor, optimizer: Any, *arguments: Any, **named: Any) -> Tensor:
            loss: Tensor = super().backward(closure_loss, optimizer, *arguments, scale_wrt_gas=False, **named)
            return loss

    return ZeroStrategy


def _cpu_zero() -> type[Strategy]:
    from lightning.fabric.utilities.seed import reset_seed
    from lightning.pytorch.strategies import DDPStrategy

    class CpuZeroStrategy(_gpu_zero()):  # type: ignore[misc]
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
