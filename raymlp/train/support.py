"""What cannot be trained together: one table from the config to lines that say so. No torch, so that `raymlp plan` is quick."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable

from raymlp.config.average import NoAverage
from raymlp.config.encoder import ImageEncoder, TextEncoder, Transfer
from raymlp.config.mix import NoMix
from raymlp.config.model import Decoder
from raymlp.config.schedule import Plateau
from raymlp.config.schema import Config
from raymlp.config.strategy import Auto, Ddp, DeepSpeed
from raymlp.config.train import Focal, Train
from raymlp.config.trees import Trees
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.records import has_classes, needs_target
from raymlp.train.language import too_long, unfit_features

WITHOUT_BLOCKS = ("mlp", "linear", "ft_transformer")
"""Kinds of model whose net repeats no block."""
NEVER_PRIVATE = ("resnet", "ft_transformer")
"""Kinds of model whose net mixes rows, by batch normalisation, or in which Opacus cannot tell the gradient of each."""
NORMALISED = ("efficientnet", "mobilenet_v1", "mobilenet_v2", "resnet")
"""Image encoders with batch normalisation."""
NETS_ALONE = (
    "batch_size", "shuffle_rows", "learning_rate", "schedule", "optimizer", "weight_decay", "gradient_clip", "gradient_clip_by",
)  # fmt: skip
"""Settings of `train` that what is no net takes no notice of. They stand in many a config, so they are told rather than refused."""

Rule = tuple[Callable[[Config], bool], Callable[[Config], str]]


def refusals(config: Config) -> list[str]:
    """One line for each part of the training settings that cannot be had, or not with another part; empty when all can.

    Each says what was found, what was expected and what to set.
    """
    return [says(config) for applies, says in RULES if applies(config)]


def unused(config: Config) -> str:
    """Settings that were changed and do nothing here, with the reason; empty when all of them count."""
    train, plain = config.train, Train()
    changed = {name for name in NETS_ALONE if getattr(train, name) != getattr(plain, name)}
    if isinstance(config.model, Trees):
        why = f"of use to nets alone; trees have their own under model ({config.model.kind})"
    elif isinstance(config.model, KMeans | IsolationForest):
        why = "of use to nets alone"
    elif train.private is not None:
        changed &= {"gradient_clip", "gradient_clip_by", "shuffle_rows"}
        why = "train.private.clip is the clip, and batches are drawn from all rows"
    else:
        return ""
    return f"{', '.join(f'train.{name}' for name in NETS_ALONE if name in changed)}: {why}" if changed else ""


def unrepeatable(config: Config) -> tuple[str, ...]:
    """Settings that keep a run from being made again bit by bit, each with the reason."""
    train = config.train
    reasons = {
        "train.private draws batches and noise from the operating system, since a seed that is known takes the noise away": train.private,
        "train.budget.minutes ends training by the clock": train.budget.minutes,
        "train.elastic goes by the nodes that were there": train.elastic,
    }
    return tuple(reason for reason, asked in reasons.items() if asked is not None)


def _zero(config: Config) -> bool:
    return isinstance(config.train.strategy, DeepSpeed)


def _offloads(config: Config) -> bool:
    strategy = config.train.strategy
    return isinstance(strategy, DeepSpeed) and (strategy.offload_optimizer or strategy.offload_parameters)


def _transfer(config: Config) -> Transfer | None:
    return getattr(config.model, "transfer", None)


def _adapts(config: Config) -> bool:
    transfer = _transfer(config)
    return transfer is not None and transfer.lora is not None


def _thaws(config: Config) -> bool:
    transfer = _transfer(config)
    return transfer is not None and transfer.gradual


def _extra(config: Config) -> str:
    return "text" if config.model.kind == "text_encoder" else "vision"


def _reads(config: Config) -> list[str]:
    """Inputs that the config names and that are neither numbers nor categories: texts that are read, and an image."""
    features = config.features
    texts = [f"a text ({name})" for name in features.text if features.rules(name).text_encoding != "length"]
    return texts[:1] + ([] if features.image is None else [f"an image ({features.image})"])


def _beside_image(config: Config) -> tuple[str, ...]:
    """Columns that the config names as features beside the image."""
    features = config.features
    dates = tuple(name for name, parts in (features.dates or {}).items() if parts)
    own = tuple(name for target in features.steps for name in target.columns)
    return (*(features.numeric or ()), *(features.categorical or ()), *features.text, *dates, *own)


def _unfit_for_private(config: Config) -> bool:
    model, transfer = config.model, _transfer(config)
    if isinstance(model, ImageEncoder):
        return model.architecture.get("model_type") in NORMALISED
    if isinstance(model, TextEncoder):
        assert transfer is not None
        return transfer.lora is None and transfer.train_blocks is None
    return model.kind in NEVER_PRIVATE


def _missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def compiler() -> str | None:
    """The C++ compiler that `torch.compile` would call, where there is one on this machine."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def _stops_before(config: Config) -> bool:
    schedule = config.train.schedule
    return isinstance(schedule, Plateau) and schedule.epochs >= config.train.stopping.patience


def _beside_private(config: Config) -> str:
    """Parts of the recipe that DP-SGD cannot be had with: what uses a batch as one, or a row more than once."""
    train = config.train
    parts = {
        "accumulate": train.accumulate > 1,
        "mix": not isinstance(train.mix, NoMix),
        "compile": train.compile,
        "activation_checkpointing": train.activation_checkpointing,
    }
    return ", ".join(f"train.{name}" for name, asked in parts.items() if asked)


WITHOUT_NET = {
    "xgboost": "boosted trees",
    "lightgbm": "boosted trees",
    "kmeans": "clusters that scikit-learn finds in a sample",
    "isolation_forest": "trees that scikit-learn grows on a sample",
}
"""Kinds of model that are no net, in words."""


def _beside_no_net(config: Config) -> str:
    """Settings that a model without a net has no use for, and that change what a net learns or how it is divided."""
    train, features = config.train, config.features
    parts = {
        "features.image": features.image is not None,
        "features.text": any(features.rules(name).text_encoding != "length" for name in features.text),
        "train.strategy": not isinstance(train.strategy, Ddp | Auto),
        "train.gpu": train.gpu,
        "train.elastic": train.elastic is not None,
        "train.precision": train.precision != "32",
        "train.accumulate": train.accumulate > 1,
        "train.average": not isinstance(train.average, NoAverage),
        "train.activation_checkpointing": train.activation_checkpointing,
        "train.compile": train.compile,
        "train.loss": isinstance(train.loss, Focal),
        "train.augment": train.augment.is_on,
        "train.label_smoothing": train.label_smoothing > 0,
        "train.mix": not isinstance(train.mix, NoMix),
        f"train.resample={train.resample}": train.resample == "smote" or (train.resample != "none" and not isinstance(config.model, Trees)),
        "train.distil": train.distil is not None,
        "train.private": train.private is not None,
        "train.adversarial": train.adversarial is not None,
    }
    return ", ".join(name for name, asked in parts.items() if asked)


def _encodes_target(config: Config) -> bool:
    features = config.features
    return features.encoding == "target" or any(rules.encoding == "target" for rules in features.columns.values())


RULES: tuple[Rule, ...] = (
    (
        lambda c: c.problem.task == "language" and bool(unfit_features(c)),
        lambda c: f"problem.task is language with {unfit_features(c)}",
    ),
    (
        lambda c: too_long(c) > 0,
        lambda c: (
            f"features.text_length is {too_long(c)}, and model.context is {getattr(c.model, 'context', 0)}; expected no longer texts than "
            "the net has places for. Set model.context or features.text_length."
        ),
    ),
    (
        lambda c: isinstance(c.model, Decoder) and c.train.private is not None,
        lambda c: (
            "train.private does not go with model.kind=decoder, whose embedding is its output layer, too, so that the gradient of one row "
            "cannot be told; expected null. Set train.private=null."
        ),
    ),
    (
        lambda c: isinstance(c.model, Decoder) and c.train.adversarial is not None,
        lambda c: (
            "train.adversarial moves numbers and pixels, and model.kind=decoder reads text; expected null. Set train.adversarial=null."
        ),
    ),
    (
        lambda c: not needs_target(c.problem.task) and _encodes_target(c),
        lambda c: (
            f"features.encoding is target with problem.task={c.problem.task}, which has none; expected another encoding. "
            "Set features.encoding=auto."
        ),
    ),
    (
        lambda c: not needs_target(c.problem.task) and c.train.distil is not None,
        lambda c: (
            f"train.distil has a teacher of answers, and problem.task={c.problem.task} has none; expected null. Set train.distil=null."
        ),
    ),
    (
        lambda c: isinstance(c.model, Trees) and _missing(c.model.kind),
        lambda c: f"model.kind is {c.model.kind}, which is not installed. Run: pip install 'raymlp[gbdt]'.",
    ),
    (
        lambda c: c.model.kind in WITHOUT_NET and bool(_beside_no_net(c)),
        lambda c: (
            f"model.kind is {c.model.kind}, and {WITHOUT_NET[c.model.kind]} do not go with {_beside_no_net(c)}; expected numbers, "
            "categories, CPUs, and no part of a net's recipe"
            + (
                " (for rare classes there are train.class_weights and train.resample=oversample). Leave that out, or choose a net, "
                "such as model=mlp."
                if isinstance(c.model, Trees)
                else ". Leave that out."
            )
        ),
    ),
    (
        lambda c: isinstance(c.model, KMeans | IsolationForest) and c.train.num_workers > 1,
        lambda c: (
            f"train.num_workers is {c.train.num_workers}, and scikit-learn fits model.kind={c.model.kind} in one process, on "
            f"model.sample_rows rows; expected 1. Set train.num_workers=1."
        ),
    ),
    (
        lambda c: c.train.private is not None and _missing("opacus"),
        lambda c: "train.private needs opacus, which is not installed. Run: pip install 'raymlp[privacy]'.",
    ),
    (
        lambda c: c.train.private is not None and bool(_beside_private(c)),
        lambda c: f"train.private does not go with {_beside_private(c)}; expected plain rows and weights. Leave one of them out.",
    ),
    (
        lambda c: c.train.private is not None and _unfit_for_private(c),
        lambda c: (
            f"train.private does not go with model.kind={c.model.kind} as it is set: its net mixes rows, or hides the gradient of each; "
            "expected mlp, linear or tabm, a text encoder with model.transfer.lora or a few model.transfer.train_blocks, or a vit. "
            "Set model.kind, or train.private=null."
        ),
    ),
    (
        lambda c: c.train.distil is not None and not isinstance(c.train.mix, NoMix),
        lambda c: f"train.mix.kind is {c.train.mix.kind}, and the teacher of train.distil has not seen mixed images; expected none.",
    ),
    (
        lambda c: c.train.adversarial is not None and not isinstance(c.train.mix, NoMix),
        lambda c: f"train.mix.kind is {c.train.mix.kind}, and train.adversarial moves whole images; expected none.",
    ),
    (
        lambda c: _zero(c) and _missing("deepspeed"),
        lambda c: "train.strategy.kind is deepspeed, which is not installed. Run: pip install 'raymlp[deepspeed]'.",
    ),
    (
        lambda c: c.train.resample == "smote" and _missing("imblearn"),
        lambda c: "train.resample is smote, which needs imbalanced-learn. Run: pip install 'raymlp[imbalance]'.",
    ),
    (
        lambda c: c.train.resample == "smote" and not isinstance(c.model, Trees) and bool(_reads(c)),
        lambda c: (
            f"train.resample is smote, and the features hold {' and '.join(_reads(c))}; expected numbers and categories alone. "
            "Set train.resample=oversample or undersample."
        ),
    ),
    (
        lambda c: c.train.augment.is_on and c.features.image is None and not isinstance(c.model, Trees),
        lambda c: (
            "train.augment changes images, and features.image names none; expected one. Set features.image, or leave train.augment out."
        ),
    ),
    (
        lambda c: not isinstance(c.train.mix, NoMix) and c.features.image is not None and bool(_beside_image(c)),
        lambda c: (
            f"train.mix.kind is {c.train.mix.kind}, which mixes images and their answers, and {', '.join(_beside_image(c))} would speak "
            "for one of the two alone; expected the image as the only feature. Set train.mix.kind=none, or features.drop."
        ),
    ),
    (
        lambda c: _transfer(c) is not None and _missing("transformers"),
        lambda c: f"model.kind is {c.model.kind}, which needs transformers. Run: pip install 'raymlp[{_extra(c)}]'.",
    ),
    (
        lambda c: _adapts(c) and _missing("peft"),
        lambda c: f"model.transfer.lora is set, which needs peft. Run: pip install 'raymlp[{_extra(c)}]'.",
    ),
    (
        lambda c: c.train.augment.is_on and _missing("kornia"),
        lambda c: "train.augment changes images, which needs kornia. Run: pip install 'raymlp[vision]'.",
    ),
    (
        lambda c: _thaws(c) and not isinstance(c.train.strategy, Ddp | Auto),
        lambda c: (
            f"model.transfer.gradual is true with train.strategy.kind={c.train.strategy.kind}, which divides the weights that learn once, "
            "at the start; expected ddp. Set train.strategy.kind=ddp or model.transfer.gradual=false."
        ),
    ),
    (
        lambda c: _offloads(c) and not c.train.gpu,
        lambda c: (
            "train.strategy offloads to the host, and train.gpu is false: on CPUs all is in the host's memory already; expected "
            "no offloading. Set train.strategy.offload_optimizer=false and train.strategy.offload_parameters=false."
        ),
    ),
    (
        lambda c: _zero(c) and c.train.gradient_clip_by == "value" and c.train.gradient_clip > 0,
        lambda c: (
            "train.gradient_clip_by is value, and deepspeed clips by norm alone; expected norm. Set train.gradient_clip_by=norm, "
            "or train.strategy.kind=fsdp."
        ),
    ),
    (
        lambda c: _zero(c) and not isinstance(c.train.average, NoAverage),
        lambda c: (
            f"train.average.kind is {c.train.average.kind}, and deepspeed keeps the weights it steps to itself; expected none. "
            "Set train.average.kind=none, or train.strategy.kind=fsdp."
        ),
    ),
    (
        lambda c: c.train.activation_checkpointing and c.model.kind in WITHOUT_BLOCKS,
        lambda c: (
            f"train.activation_checkpointing is true, and the net of model.kind={c.model.kind} repeats no block; expected false. "
            "Set train.activation_checkpointing=false."
        ),
    ),
    (
        lambda c: c.train.compile and compiler() is None,
        lambda c: (
            "train.compile is true, and no C++ compiler (g++ or clang++, or what CXX names) is on the path; expected one. "
            "Install one, or set train.compile=false."
        ),
    ),
    (
        lambda c: c.train.label_smoothing > 0 and not has_classes(c.problem.task),
        lambda c: (
            f"train.label_smoothing is {c.train.label_smoothing:g} with problem.task={c.problem.task}, which has no classes; "
            "expected 0. Set train.label_smoothing=0."
        ),
    ),
    (
        lambda c: c.train.label_smoothing > 0 and isinstance(c.train.loss, Focal),
        lambda c: (
            f"train.label_smoothing is {c.train.label_smoothing:g} with train.loss.kind=focal, which looks at the probability of "
            "the one true class; expected 0. Set train.label_smoothing=0 or train.loss.kind=cross_entropy."
        ),
    ),
    (
        lambda c: not isinstance(c.train.mix, NoMix) and c.features.image is None,
        lambda c: (
            f"train.mix.kind is {c.train.mix.kind}, which mixes images, and features.image names none; expected none. "
            "Set train.mix.kind=none."
        ),
    ),
    (
        _stops_before,
        lambda c: (
            f"train.schedule.epochs is {getattr(c.train.schedule, 'epochs', 0)} and train.stopping.patience {c.train.stopping.patience}: "
            "training stops before the step size shrinks; expected a larger patience. Set train.stopping.patience or train.schedule.epochs."
        ),
    ),
)
