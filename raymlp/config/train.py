"""How the net is trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import AsText, Section


class Ddp(Section):
    """Replicated weights, averaged gradients (PyTorch DistributedDataParallel); one worker needs no group."""

    kind: Literal["ddp"] = "ddp"


class DeepSpeed(Section):
    """ZeRO: optimizer state, gradients and (stage 3) weights are divided among the workers."""

    kind: Literal["deepspeed"] = "deepspeed"

    stage: Literal[2, 3] = 2
    """ZeRO stage: 2 divides optimizer state and gradients, 3 divides the weights too."""


Strategy = Annotated[Ddp | DeepSpeed, Field(discriminator="kind")]


class Train(Section):
    """One training run."""

    strategy: Strategy = Ddp()
    """How work and memory are divided among the workers."""

    num_workers: int = Field(default=1, ge=1)
    """Training processes."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved for each worker."""

    gpu: bool = False
    """One GPU for each worker."""

    precision: Annotated[Literal["32", "bf16", "16"], AsText] = "32"
    """Arithmetic of the forward and backward pass. Under deepspeed `bf16` and `16` hold the weights in it, too."""

    epochs: int = Field(default=20, ge=1)
    """Most passes over the training split."""

    batch_size: int = Field(default=512, ge=1)
    """Rows a step on each worker."""

    shuffle_rows: int = Field(default=100_000, ge=0)
    """Rows in the buffer that each worker draws its batches from; 0 keeps the order of the snapshot."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest AdamW step size; it follows a one-cycle cosine with 10 % warm-up."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW weight decay."""

    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 does not clip."""

    patience: int = Field(default=3, ge=1)
    """Epochs without a better validation loss before training stops."""

    checkpoint_every_epochs: int = Field(default=1, ge=1)
    """Epochs between two checkpoints; the best and the last are kept."""

    max_failures: int = Field(default=2, ge=0)
    """Worker deaths survived by starting again from the last checkpoint."""

    seed: int = 0
    """Seed of weights, order and dropout. Same seed, snapshot and settings give the same metrics on CPU."""

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.precision == "16" and not self.gpu:
            raise ValueError("precision=16 needs gpu=true; on CPU use bf16 or 32")
        return self
