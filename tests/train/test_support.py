"""Every kind of model under every strategy, precision and part of the recipe: refused in one line, or trained."""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError
from raymlp.core.records import Snapshot
from raymlp.data.contract import Contract
from raymlp.data.snapshot import load_profile
from raymlp.model.bundle import save_bundle
from raymlp.train import support
from raymlp.train.support import refusals, unused
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import outcome_alone
from tests.train.planted import config_of, planted, write_snapshot

Snapshots = Callable[[str], Snapshot]
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CNN = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
VIT = {**BERT, "model_type": "vit"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("table", {"kind": "mlp", "hidden": [8]}),
    "linear": ("table", {"kind": "linear"}),
    "resnet": ("table", {"kind": "resnet", "width": 8}),
    "ft_transformer": ("table", {"kind": "ft_transformer", "width": 16, "heads": 2, "blocks": 1}),
    "tabm": ("table", {"kind": "tabm", "width": 8, "members": 4, "numbers": {"kind": "none"}}),
    "xgboost": ("table", {"kind": "xgboost", "rounds_per_epoch": 2}),
    "lightgbm": ("table", {"kind": "lightgbm", "rounds_per_epoch": 2}),
    "mlp of text": ("text", {"kind": "mlp", "hidden": [8]}),
    "xgboost of text": ("text", {"kind": "xgboost"}),
    "mlp of image": ("image", {"kind": "mlp", "hidden": [8]}),
    "lightgbm of image": ("image", {"kind": "lightgbm"}),
    "bert": ("text", {"kind": "text_encoder", "architecture": BERT}),
    "bert, adapters": ("text", {"kind": "text_encoder", "architecture": BERT, "transfer": {"lora": {"rank": 2}}}),
    "bert, gradual": ("text", {"kind": "text_encoder", "architecture": BERT, "transfer": {"gradual": True}}),
    "cnn": ("image", {"kind": "image_encoder", "architecture": CNN}),
    "vit": ("image", {"kind": "image_encoder", "architecture": VIT}),
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {"kind": "auto"},
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "zero2": {"kind": "deepspeed", "stage": 2},
    "zero3": {"kind": "deepspeed", "stage": 3},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "undersample": {"resample": "undersample"},
    "smote": {"resample": "smote"},
    "mixup": {"mix": {"kind": "mixup"}},
    "augment": {"augment": {"flip": 0.5}},
    "distil": {"distil": {"teacher": "x"}},
    "private": {"private": {"max_epsilon": 50.0, "noise": 1.0}},
    "fgsm": {"adversarial": {"kind": "fgsm"}},
    "ema": {"average": {"kind": "ema", "decay": 0.5}},
    "swa": {"average": {"kind": "swa", "start": 0.0}},
    "compile": {"compile": True},
    "checkpointing": {"activation_checkpointing": True},
    "elastic": {"elastic": {}},
    "accumulate": {"accumulate": 2},
    "weights": {"class_weights": "balanced"},
    "focal": {"loss": {"kind": "focal"}},
    "smoothing": {"label_smoothing": 0.1},
    "clip by value": {"gradient_clip_by": "value"},
}
PLACES = [("32", False), ("bf16", False), ("16", False), ("32", True), ("bf16", True), ("16", True)]
"""Precision, and whether on GPUs."""
NEEDED = ("xgboost", "lightgbm", "opacus", "deepspeed", "imblearn", "transformers", "peft", "kornia", "rtdl_revisiting_models", "tabm")


def config_for(model: str, **train: Any) -> Config:
    inputs, settings = MODELS[model]
    features: dict[str, Any] = {
        "table": {},
        "text": {"text": ["said"], "text_encoding": "ngrams", "text_hash_size": 64, "text_length": 4},
        "image": {"image": "shot", "image_size": [16, 16]},
    }[inputs]
    plain = config_of().model_dump(mode="json")
    plain |= {"model": settings, "features": features, "train": {"batch_size": 64, "epochs": 1, **train}}
    plain["data"]["images"] = ["shot"] if inputs == "image" else []
    return Config.model_validate(plain)


def due(model: str, strategy: str, precision: str, gpu: bool, switch: str) -> bool:
    """Whether a refusal is due, said independently of the table."""
    inputs, settings = MODELS[model]
    zero, divided = strategy.startswith("zero"), strategy in ("fsdp", "zero2", "zero3")
    if settings["kind"] in ("xgboost", "lightgbm"):
        taken = ("plain", "undersample", "weights", "clip by value")
        return inputs != "table" or divided or gpu or precision != "32" or switch not in taken
    unfit = ("resnet", "ft_transformer", "bert", "bert, gradual", "cnn")
    return (
        (precision == "16" and not gpu)
        or (switch == "smote" and inputs != "table")
        or (switch in ("mixup", "augment") and inputs != "image")
        or (switch == "private" and (strategy != "ddp" or precision != "32" or model in unfit))
        or (switch in ("fgsm", "elastic") and strategy != "ddp")
        or (switch in ("ema", "swa", "clip by value") and zero)
        or (switch == "checkpointing" and settings["kind"] in ("mlp", "linear", "ft_transformer"))
        or (model == "bert, gradual" and divided)
    )


@pytest.mark.parametrize("model", MODELS)
def test_every_combination_is_refused_in_one_line_each_or_not_at_all(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_missing", lambda _: False)
    monkeypatch.setattr(support, "compiler", lambda: "g++")
    for strategy, (precision, gpu), switch in itertools.product(STRATEGIES, PLACES, SWITCHES):
        try:
            lines = refusals(config_for(model, strategy=STRATEGIES[strategy], precision=precision, gpu=gpu, **SWITCHES[switch]))
        except ValidationError as error:
            lines = [found["msg"] for found in error.errors()]
            assert len(lines) == 1
        assert bool(lines) == due(model, strategy, precision, gpu, switch), (model, strategy, precision, gpu, switch, lines)
        assert all("\n" not in line and any(word in line for word in ("expected", "needs", " use ", "set one")) for line in lines), lines


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, snapshots: Snapshots) -> dict[str, Snapshot]:
    """The planted table, and beside it a text or an image that the first number makes, and with the image alone."""
    made = {"table": snapshots("binary")}
    splits = {split: planted(rows, seed, "binary") for split, rows, seed in (("train", 300, 1), ("valid", 200, 2))}
    rng = np.random.default_rng(0)

    def text(a: float) -> str:
        return "the film was good" if a > 0 else "so dull"

    def image(a: float) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.clip(128 + 60 * a + 20 * rng.normal(size=(16, 16, 3)), 0, 255).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    for name, column, make, kind in (("text", "said", text, pa.string()), ("image", "shot", image, pa.binary())):
        added = {
            split: table.append_column(column, pa.array([make(a) for a in table.column("a").to_pylist()], kind))
            for split, table in splits.items()
        }
        made[name] = write_snapshot(tmp_path_factory.mktemp(name), added)
    place = made["image"].path / "contract.yaml"
    place.write_text(Contract.from_yaml(place.read_text()).with_images(("shot",), 1_000).to_yaml())
    return made


@pytest.fixture(scope="module")
def teacher(folders: dict[str, Snapshot], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the table, whose columns all snapshots have."""
    job, outcome = outcome_alone(config_for("linear"), folders["table"].path, lambda _: None)
    bundle, _ = bundle_of(job, outcome, folders["table"], load_profile(folders["table"].path), "teacher")
    return str(save_bundle(bundle, tmp_path_factory.mktemp("teacher") / "bundle"))


def outputs(config: Config, folders: dict[str, Snapshot], inputs: str) -> Any:
    return outcome_alone(config, folders[inputs].path, lambda _: None)[1].outputs


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {', '.join(NEEDED)}")
@pytest.mark.parametrize(
    ("model", "switches"),
    [
        ("tabm", ("distil", "private", "fgsm", "ema", "focal", "smoothing", "weights", "undersample")),
        ("resnet", ("distil", "fgsm", "swa", "accumulate", "smote")),
        ("ft_transformer", ("distil", "fgsm", "ema")),
        ("linear", ("private", "distil", "ema")),
        ("mlp of text", ("private", "distil", "fgsm", "weights", "undersample")),
        ("mlp of image", ("private", "distil", "augment", "fgsm", "ema")),
        ("vit", ("augment", "distil")),
        ("xgboost", ("undersample", "weights")),
        ("lightgbm", ("undersample", "weights")),
    ],
)
def test_what_is_not_refused_is_trained_and_makes_a_difference(
    model: str, switches: tuple[str, ...], folders: dict[str, Snapshot], teacher: str
) -> None:
    """A few steps: enough to crash, or to find that a switch does nothing."""
    inputs, known = MODELS[model][0], []
    for switch in ("plain", *switches):
        settings = SWITCHES[switch] | ({"distil": {"teacher": teacher}} if switch == "distil" else {})
        config = config_for(model, budget={"steps": 4}, **settings)
        assert refusals(config) == []
        found = outputs(config, folders, inputs)
        assert np.isfinite(found).all()
        assert not any(np.array_equal(found, other) for other in known), f"{switch} does nothing"
        known.append(found)


def test_images_are_mixed_where_they_are_the_only_feature(folders: dict[str, Snapshot]) -> None:
    config = config_for("mlp of image", mix={"kind": "mixup", "alpha": 1.0})
    with pytest.raises(ConfigError, match=r"mixes images and their answers, and the features hold .*a.*Set train.mix.kind=none"):
        outputs(config, folders, "image")
    named = with_overrides(config, {"features.numeric": ["a"]})
    assert any("a would speak for one of the two alone" in line for line in refusals(named))
    alone = with_overrides(config, {"features.drop": ["a", "b", "kind", "noise"]})
    plain = with_overrides(alone, {"train.mix.kind": "none"})
    assert not np.array_equal(outputs(alone, folders, "image"), outputs(plain, folders, "image"))


def test_settings_without_effect_are_told_and_those_with_one_are_not() -> None:
    assert unused(config_for("mlp", learning_rate=0.1, gradient_clip=2.0)) == ""
    assert unused(config_for("xgboost", schedule={"kind": "cosine"})).startswith("train.batch_size, train.schedule: of use to nets alone")
    assert unused(config_for("mlp", gradient_clip=2.0, **SWITCHES["private"])).startswith("train.gradient_clip: train.private.clip is")


def test_a_convolution_whose_activations_are_computed_again_gives_the_same(folders: dict[str, Snapshot]) -> None:
    again = config_for("cnn", activation_checkpointing=True)
    np.testing.assert_array_equal(outputs(again, folders, "image"), outputs(config_for("cnn"), folders, "image"))
