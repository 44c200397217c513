"""What a language model takes, by the config alone. No torch, as in `raymlp.train.support`."""

from __future__ import annotations

from raymlp.config.model import Decoder
from raymlp.config.schema import Config


def unfit_features(config: Config) -> str:
    """What a language model would not find among the features, or would not look at; empty when all is right."""
    features = config.features
    others = {
        "numeric": features.numeric,
        "categorical": features.categorical,
        "dates": features.dates,
        "image": features.image,
        "crosses": features.crosses,
        "steps": features.steps,
    }
    if named := [f"features.{name}" for name, given in others.items() if given]:
        return f"{', '.join(named)} beside the text; expected none of them, since it reads one text alone. Leave that out."
    if len(features.text) != 1:
        found = "no text" if not features.text else f"{len(features.text)} texts"
        return f"{found} in features.text; expected the name of one column. Set features.text=[NAME] and features.text_encoding=subword."
    encoding = features.rules(features.text[0]).text_encoding
    if encoding != "subword":
        return f"features.text_encoding={encoding}; expected the pieces of a tokenizer. Set features.text_encoding=subword."
    return ""


def too_long(config: Config) -> int:
    """Pieces of the text where they are more than the context of a decoder; else 0."""
    if not isinstance(config.model, Decoder) or len(config.features.text) != 1:
        return 0
    length = config.features.rules(config.features.text[0]).text_length
    return length if length > config.model.context else 0
