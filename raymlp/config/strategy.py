"""How work and memory are divided among the workers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section


class Auto(Section):
    """Chosen from the workers, the device and the size of the net, once, before workers start; the log says what and why."""

    kind: Literal["auto"] = "auto"


class Ddp(Section):
    """Replicated weights, averaged gradients (PyTorch DistributedDataParallel); one worker needs no group."""

    kind: Literal["ddp"] = "ddp"


class Fsdp(Section):
    """Weights, gradients and optimizer state are divided among the workers, and a block's weights are gathered while it runs
    (PyTorch `fully_shard`, Zhao et al. 2023). One worker has nothing to divide."""

    kind: Literal["fsdp"] = "fsdp"


class DeepSpeed(Section):
    """ZeRO (Rajbhandari et al. 2020): optimizer state, gradients and weights are divided among the workers, stage by stage."""

    kind: Literal["deepspeed"] = "deepspeed"

    stage: Literal[1, 2, 3] = 2
    """ZeRO stage: 1 divides the optimizer state, 2 the gradients too, 3 the weights too."""

    offload_optimizer: bool = False
    """Optimizer state waits, and its step runs, in the memory of the host instead of the GPU's: room for larger nets, slower steps."""

    offload_parameters: bool = False
    """Weights wait in the memory of the host until their layer runs. Stage 3 alone."""

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"offload_parameters needs stage 3, which divides the weights; stage is {self.stage}. Set stage=3")
        return self


Strategy = Annotated[Auto | Ddp | Fsdp | DeepSpeed, Field(discriminator="kind")]
