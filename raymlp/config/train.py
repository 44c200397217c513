"""How the net is trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.adversarial import Adversarial
from raymlp.config.augment import Augment
from raymlp.config.average import Average, NoAverage
from raymlp.config.budget import Budget, Stopping
from raymlp.config.distil import Distil
from raymlp.config.finder import Finder
from raymlp.config.mix import Mix, NoMix
from raymlp.config.optimizer import AdamW, Optimizer
from raymlp.config.private import Private
from raymlp.config.recovery import Checkpoint, Elastic
from raymlp.config.schedule import OneCycle, Schedule
from raymlp.config.section import AsText, Section, Text
from raymlp.config.strategy import Ddp, Strategy


class CrossEntropy(Section):
    """Negative log likelihood of the true class."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class Focal(Section):
    """Cross entropy times (1 - p) to the power gamma, p being the probability of the true class: rows that are easy count
    less (Lin et al. 2017). Binary and multiclass."""

    kind: Literal["focal"] = "focal"

    gamma: float = Field(default=2.0, ge=0, le=10)
    """Power: 0 is cross entropy, and more looks harder at rows that the net gets wrong."""


Loss = Annotated[CrossEntropy | Focal, Field(discriminator="kind")]
Resample = Literal["none", "undersample", "oversample", "smote"]


class Train(Section):
    """One training run."""

    name: Text | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Name of the run, by which it is found again: `raymlp train train.name=night1`, cut off and started again, goes on."""

    resume: Literal["auto", "never", "must"] = "auto"
    """What happens to an earlier run of this name: `auto` goes on with it where there is one, `must` refuses to begin anew, `never`
    begins anew. Without a name every run is a new one."""

    strategy: Strategy = Ddp()
    """How work and memory are divided among the workers."""

    num_workers: int = Field(default=1, ge=1)
    """Training processes; with `elastic`, the most."""

    elastic: Elastic | None = None
    """Go on with fewer workers, or with more; null always takes `num_workers`."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved for each worker."""

    gpu: bool = False
    """One GPU for each worker."""

    precision: Annotated[Literal["32", "bf16", "16"], AsText] = "32"
    """Arithmetic of the forward and backward pass. Under ddp and fsdp `bf16` and `16` are autocast: weights stay in 32 bits, and what
    loses in 16 is computed in 32. Under deepspeed both are pure: weights and gradients are in 16 bits beside a copy in 32 for the
    optimizer, and `16` scales the loss."""

    epochs: int = Field(default=20, ge=1)
    """Most passes over the training split."""

    batch_size: int = Field(default=512, ge=1)
    """Rows that each worker takes at once."""

    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added before a step: rows a step are `batch_size` x `accumulate` x `num_workers`. What is left of an
    epoch, fewer batches than that, is left out of it."""

    shuffle_rows: int = Field(default=100_000, ge=0)
    """Rows in the buffer that each worker draws its batches from; 0 keeps the order of the snapshot."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest step size of the optimizer."""

    schedule: Schedule = OneCycle()
    """How the step size changes over the run."""

    optimizer: Optimizer = AdamW()
    """How a gradient becomes a step."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Pull of weights towards 0, as a share of the step size. Biases, normalisations and embeddings are left alone."""

    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest gradient; 0 does not clip."""

    gradient_clip_by: Literal["norm", "value"] = "norm"
    """`norm` shortens the whole gradient to that length, `value` cuts each of its numbers."""

    average: Average = NoAverage()
    """Whether the weights that are validated and kept are an average over steps."""

    activation_checkpointing: bool = False
    """Keep only what goes into each block of the net, and compute the rest again in the backward pass: less memory, a third more work
    (Chen et al. 2016). For nets with blocks."""

    compile: bool = False
    """Compile the net for its shapes (`torch.compile`): slow at first, then quicker. Needs a C++ compiler on every worker."""

    budget: Budget = Budget()
    """Limits of steps and time."""

    stopping: Stopping = Stopping()
    """When training stops before its limit."""

    checkpoint: Checkpoint = Checkpoint()
    """When the run is saved."""

    loss: Loss = CrossEntropy()
    """What is minimised for classes; regression always takes the squared error."""

    augment: Augment = Augment()
    """Random changes to the images of training batches."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each training answer that is spread evenly over all classes (Szegedy et al. 2016), with cross entropy."""

    mix: Mix = NoMix()
    """Whether training images are mixed in pairs."""

    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs a row by rows / (classes x rows of its class) in the loss, so that all classes weigh the same. Probabilities
    are calibrated back to the true shares on the validation split."""

    resample: Resample = "none"
    """Rows that a training epoch sees, of the training split alone: `undersample` takes as many of each class as the rarest has,
    `oversample` repeats rows up to the most frequent, `smote` makes new ones between neighbours (needs raymlp[imbalance]) among
    8,192 to 16,383 rows at a time, which knows no neighbour outside them and takes a second or two for each such part and epoch. Nets
    draw anew in each epoch, boosted trees once for all rounds, and not by `smote`."""

    distil: Distil | None = None
    """A teacher that the net listens to beside the answers; null has none."""

    private: Private | None = None
    """Differential privacy of each training row; null gives none. One worker, rows in memory (needs raymlp[privacy])."""

    adversarial: Adversarial | None = None
    """Whether training rows are moved against the net; null leaves them. Validation then tells the robust accuracy (or RMSE), too."""

    finder: Finder = Finder()
    """How `raymlp find` looks for a learning rate and a batch size; training itself takes no notice."""

    max_failures: int = Field(default=2, ge=0)
    """Worker deaths survived by starting again from the last checkpoint."""

    peak_tflops: float | None = Field(default=None, gt=0)
    """Peak of one worker's device in this precision, in 1e12 floating-point operations a second, that the reported utilisation is a
    share of; null knows those of common NVIDIA GPUs, and reports none elsewhere."""

    seed: int = 0
    """Seed of weights, order and dropout. Same seed, snapshot and settings give the same metrics on CPU."""

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.precision == "16" and not self.gpu:
            raise ValueError("precision=16 needs gpu=true; on CPU use bf16 or 32")
        if self.resume == "must" and self.name is None:
            raise ValueError("resume is must without a name; expected the name of the run to go on with. Set name")
        if self.elastic and self.strategy.kind != "ddp":
            raise ValueError(
                f"elastic with strategy.kind={self.strategy.kind}, whose checkpoints fit one number of workers alone; expected ddp. "
                "Set strategy.kind=ddp, or elastic=null"
            )
        if self.elastic and self.elastic.min_workers > self.num_workers:
            raise ValueError(f"elastic.min_workers is {self.elastic.min_workers}; expected at most num_workers, {self.num_workers}")
        if self.class_weights != "none" and self.resample != "none":
            raise ValueError(
                f"class_weights={self.class_weights} with resample={self.resample} would make up for rare classes twice; set one of them"
            )
        if self.distil and (self.class_weights != "none" or self.resample != "none"):
            raise ValueError("distil with class_weights or resample: the teacher speaks of the true shares of the classes; set one of them")
        if self.adversarial and self.strategy.kind != "ddp":
            raise ValueError(f"adversarial does not go with strategy.kind={self.strategy.kind}, which hides the slope; expected ddp")
        for name, plain in self._beside_private().items():
            if self.private and not plain:
                raise ValueError(
                    f"private does not go with {name}; expected one worker under ddp in precision 32, and the rows as they are"
                )
        return self

    def _beside_private(self) -> dict[str, bool]:
        """Settings that DP-SGD cannot be combined with, and whether each is left alone."""
        return {
            f"strategy.kind={self.strategy.kind}": self.strategy.kind == "ddp",
            f"num_workers={self.num_workers}": self.num_workers == 1,
            f"precision={self.precision}": self.precision == "32",
            f"resample={self.resample}": self.resample == "none",
            "adversarial": self.adversarial is None,
            "distil, whose teacher has seen rows without noise": self.distil is None,
        }
