"""Encoders of Hugging Face transformers: a closed list of classes, their settings as plain JSON, and their weights as plain arrays.

Code never comes with a model: the class is chosen here by `model_type`, and settings that it does not know are left out. A folder or the
hub is read on the driver when training starts, and never when a bundle is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from raymlp.config.encoder import ImageEncoder, TextEncoder
from raymlp.config.model import Model
from raymlp.core.errors import BundleError, ConfigError, nearest
from raymlp.features.hub import reaching
from raymlp.features.ids import FIRST
from raymlp.features.plan import FeaturePlan
from raymlp.features.text import Subword

Settings = dict[str, Any]
Weights = Mapping[str, NDArray[Any]]
NOT_OURS = {
    "architectures", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states", "problem_type", "return_dict",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Settings of transformers that say nothing about what the encoder computes, or would change the form of its answer."""
NO_POOLER = {"add_pooling_layer": False}


class Kind(NamedTuple):
    """A type of encoder: names of its classes in transformers, and where its blocks are."""

    config: str
    model: str
    blocks: str
    """Path of the list of blocks inside the model."""
    build: Mapping[str, Any] = {}
    """How the model is made without parts that we do not use: under DDP every weight must take part."""
    counts_from_padding: bool = False
    """Whether positions begin behind the id that fills up, so that this many more of them are needed."""


KINDS: dict[str, Kind] = {
    "albert": Kind("AlbertConfig", "AlbertModel", "encoder.albert_layer_groups", NO_POOLER),
    "bert": Kind("BertConfig", "BertModel", "encoder.layer", NO_POOLER),
    "camembert": Kind("CamembertConfig", "CamembertModel", "encoder.layer", NO_POOLER, True),
    "deberta-v2": Kind("DebertaV2Config", "DebertaV2Model", "encoder.layer"),
    "distilbert": Kind("DistilBertConfig", "DistilBertModel", "transformer.layer"),
    "electra": Kind("ElectraConfig", "ElectraModel", "encoder.layer"),
    "modernbert": Kind("ModernBertConfig", "ModernBertModel", "layers"),
    "mpnet": Kind("MPNetConfig", "MPNetModel", "encoder.layer", NO_POOLER, True),
    "roberta": Kind("RobertaConfig", "RobertaModel", "encoder.layer", NO_POOLER, True),
    "t5": Kind("T5Config", "T5EncoderModel", "encoder.block"),
    "xlm-roberta": Kind("XLMRobertaConfig", "XLMRobertaModel", "encoder.layer", NO_POOLER, True),
    "efficientnet": Kind("EfficientNetConfig", "EfficientNetModel", "encoder.blocks"),
    "mobilenet_v1": Kind("MobileNetV1Config", "MobileNetV1Model", "layer"),
    "mobilenet_v2": Kind("MobileNetV2Config", "MobileNetV2Model", "layer"),
    "resnet": Kind("ResNetConfig", "ResNetModel", "encoder.stages"),
    "vit": Kind("ViTConfig", "ViTModel", "layers", NO_POOLER),
}


@dataclass(frozen=True)
class Start:
    """Where training begins: the section with every setting of its encoder, and the weights of the source, none without one."""

    model: TextEncoder | ImageEncoder
    weights: Weights

    def put_into(self, encoder: nn.Module) -> None:
        """Give an encoder of these settings the weights of the source."""
        import torch

        if self.weights:
            encoder.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})


def encoder_of(architecture: Mapping[str, Any]) -> Any:
    """A freshly initialised encoder from the settings that a bundle holds. Reads nothing else.

    Raises BundleError for a type that is not on the list, ConfigError when transformers is not installed.
    """
    kind = KINDS.get(str(architecture.get("model_type")))
    if kind is None:
        raise BundleError(f"the encoder is of type {architecture.get('model_type')!r}; expected one of {', '.join(KINDS)}.")
    config = _class(kind.config)(**_known(architecture))
    return _class(kind.model)(config, **kind.build)


def blocks_of(architecture: Mapping[str, Any]) -> str:
    """Path of the list of blocks inside the encoder."""
    return KINDS[architecture["model_type"]].blocks


def start_of(model: Model, plan: FeaturePlan) -> Start | None:
    """Settings and weights to start from, read from `model.source` where there is one; None for a model that is no such encoder.

    Raises ConfigError when the source cannot be read, is of a type that is not on the list, has settings that the plan does not fit,
    or lacks weights.
    """
    if not isinstance(model, TextEncoder | ImageEncoder):
        return None
    given = _source_settings(model.source) if model.source else {}
    kind = str(model.architecture.get("model_type", given.get("model_type")))
    if kind not in model.types:
        raise ConfigError(f"model.source is '{model.source}', of type {kind}; expected one of {', '.join(model.types)}. Set model.source.")
    if given.get("model_type", kind) != kind:
        raise ConfigError(f"model.architecture.model_type is {kind}, and {model.source} is of type {given['model_type']}. Leave it out.")
    known = _class(KINDS[kind].config)().to_dict()
    for name in model.architecture:
        if name not in known or name in NOT_OURS:
            raise ConfigError(f"model.architecture.{name} is no setting of {kind}.{nearest(name, known)} Set model.architecture.")
    fitted = _fitted_to_text if isinstance(model, TextEncoder) else _fitted_to_image
    asked = {**given, **fitted(model, plan, kind), **model.architecture, "model_type": kind}
    try:
        config = _class(KINDS[kind].config).from_dict({name: value for name, value in asked.items() if name in known or name in given})
    except Exception as error:  # transformers checks its settings with errors of its own
        raise ConfigError(f"model.architecture is refused by transformers ({error}). Set model.architecture.") from error
    if isinstance(model, ImageEncoder) and model.transfer.lora is not None and kind != "vit":
        raise ConfigError(f"model.transfer.lora is set for a {kind}, which is made of convolutions; expected a vit. Set model.transfer.")
    complete = {"model_type": kind, **_known(config.to_dict())}
    if isinstance(model, TextEncoder):
        _check_room(complete, plan)
        resolved: TextEncoder | ImageEncoder = model.model_copy(update={"architecture": complete})
    else:
        mean, deviation = _colours(model)
        resolved = model.model_copy(update={"architecture": complete, "pixel_mean": mean, "pixel_deviation": deviation})
    return Start(resolved, _source_weights(model.source, complete) if model.source else {})


def _class(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError("the model is a Hugging Face encoder, which needs transformers. Run: pip install 'raymlp[text]'") from None
    return getattr(transformers, name)


def _known(settings: Mapping[str, Any]) -> Settings:
    """What the class of this type knows, and is ours to set: nothing else of a file reaches it."""
    names = _class(KINDS[settings["model_type"]].config)().to_dict().keys() - NOT_OURS - {"model_type"}
    return {name: value for name, value in settings.items() if name in names and not name.startswith("_")}


def _source_settings(source: str) -> Settings:
    with reaching(source, "model.source") as (name, revision):
        found, _ = _class("PretrainedConfig").get_config_dict(name, revision=revision)
    return {key: value for key, value in found.items() if key not in NOT_OURS and key not in ("auto_map", "quantization_config")}


def _source_weights(source: str, architecture: Mapping[str, Any]) -> Weights:
    import torch

    kind = KINDS[architecture["model_type"]]
    config = _class(kind.config)(**_known(architecture))
    with reaching(source, "model.source") as (name, revision):
        net, report = _class(kind.model).from_pretrained(
            name, revision=revision or "main", config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **kind.build,
        )  # fmt: skip
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise ConfigError(
            f"model.source is '{source}', which lacks {len(report['missing_keys'])} weights of a {architecture['model_type']}, as {first}; "
            "expected all of them. Set model.source."
        )
    return {key: np.asarray(value) for key, value in net.state_dict().items()}


def _fitted_to_text(model: TextEncoder | ImageEncoder, plan: FeaturePlan, kind: str) -> Settings:
    """What the plan says about a fresh encoder."""
    steps = plan.texts
    if plan.image or not steps or not all(isinstance(step, Subword) for step in steps):
        found = "an image" if plan.image else "no text" if not steps else "a text by its n-grams"
        raise ConfigError(
            f"model.kind is text_encoder, and the features hold {found}; expected texts as pieces of one tokenizer beside numbers and "
            "categories. Set features.text and features.text_encoding=pretrained, or model=mlp."
        )
    tokenizers = {step.tokenizer for step in steps if isinstance(step, Subword)}
    if len(tokenizers) > 1:
        raise ConfigError(
            f"model.kind is text_encoder, which reads {len(steps)} texts by {len(tokenizers)} tokenizers; expected one for all. "
            "Set features.tokenizer."
        )
    if model.source:
        if not all(step.marks for step in steps if isinstance(step, Subword)):
            raise ConfigError(
                f"model.source is '{model.source}', and the texts come as pieces of another tokenizer; expected its own. "
                "Set features.text_encoding=pretrained and features.tokenizer to the same."
            )
        return {}
    defaults = _class(KINDS[kind].config)().to_dict()
    fitted: Settings = {"vocab_size": max(step.size for step in steps) - FIRST}
    if (defaults.get("pad_token_id") or 0) >= fitted["vocab_size"]:
        fitted["pad_token_id"] = 0
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "decoder_start_token_id"):
        if name in defaults:
            fitted[name] = None
    return fitted


def _fitted_to_image(model: TextEncoder | ImageEncoder, plan: FeaturePlan, kind: str) -> Settings:
    if plan.texts or plan.image is None:
        raise ConfigError(
            f"model.kind is image_encoder, and the features hold {'a text' if plan.texts else 'no image'}; expected an image beside "
            "numbers and categories. Set features.image, or model=mlp."
        )
    return {"image_size": [plan.image.height, plan.image.width]} if kind == "vit" and not model.source else {}


def _check_room(architecture: Mapping[str, Any], plan: FeaturePlan) -> None:
    """Raises ConfigError when a text has more pieces, or other ones, than the encoder has embeddings for."""
    pieces, length = max(step.size for step in plan.texts) - FIRST, max(step.length for step in plan.texts)
    if pieces > architecture["vocab_size"]:
        raise ConfigError(
            f"the tokenizer has {pieces:,} pieces, and the encoder knows {architecture['vocab_size']:,}; expected no more. "
            "Set features.tokenizer to that of model.source."
        )
    kind = KINDS[architecture["model_type"]]
    behind = (architecture.get("pad_token_id") or 0) + 1 if kind.counts_from_padding else 0
    room = architecture.get("max_position_embeddings", length + behind) - behind
    if length > room:
        raise ConfigError(
            f"features.text_length is {length}, and the encoder reads {room} pieces; expected no more. Set features.text_length."
        )


def _colours(model: ImageEncoder) -> tuple[Any, Any]:
    """Mean and deviation of each colour."""
    plain = (0.5, 0.5, 0.5)
    if model.pixel_mean and model.pixel_deviation:
        return model.pixel_mean, model.pixel_deviation
    if model.source is None:
        return model.pixel_mean or plain, model.pixel_deviation or plain
    with reaching(model.source, "model.source") as (name, revision):
        from transformers.utils import cached_file

        found = cached_file(name, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
        settings = json.loads(Path(found).read_text()) if found else {}
    if "image_mean" not in settings or "image_std" not in settings:
        raise ConfigError(
            f"model.source is '{model.source}', which does not say how it takes pixels (image_mean and image_std of "
            "preprocessor_config.json). Set model.pixel_mean and model.pixel_deviation."
        )
    return model.pixel_mean or tuple(settings["image_mean"]), model.pixel_deviation or tuple(settings["image_std"])
