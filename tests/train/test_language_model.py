"""A language model, from Parquet to answers: what it learns, and that training, batches and single rows agree."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp import pipeline
from raymlp.config.data import Data
from raymlp.config.features import Features
from raymlp.config.model import Decoder
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.config.sources import ParquetSource
from raymlp.config.split import RandomSplit
from raymlp.config.train import Train
from raymlp.config.tune import Choice, Tune
from raymlp.core.errors import ConfigError
from raymlp.core.metrics import score
from raymlp.data.snapshot import load_profile
from raymlp.evaluate.evaluation import compare_models, evaluate
from raymlp.model.bundle import save_bundle
from raymlp.model.predictor import Predictor
from raymlp.serve.openapi import openapi
from raymlp.serve.probe import answers_a_sample
from raymlp.train.support import refusals
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import outcome_alone
from raymlp.tune.checks import check
from tests.train.planted import write_snapshot

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="needs raymlp[text]")
WORDS = ("amber", "birch", "cedar", "dusk", "ember", "fern", "grove", "heath")
TINY = Decoder(layers=2, width=32, heads=4, context=16, dropout=0.0)


def config_of(features: dict[str, Any] | None = None, model: Any = TINY, task: str = "language", **train: Any) -> Config:
    given = {"text": ("said",), "text_encoding": "subword", "text_length": 12, "vocabulary_size": 400}
    return Config(
        problem=Problem(name="said", task=task, target=None if task == "language" else "mood"),
        data=Data(source=ParquetSource(path="unused"), split=RandomSplit()),
        features=Features(**given | (features or {})),
        model=model,
        train=Train(**{"batch_size": 32, "learning_rate": 0.01, "epochs": 8, "stopping": {"patience": 9}, **train}),
        tune=Tune(space={"train.learning_rate": Choice(values=(0.01,))}),
    )


def echoes(rows: int, seed: int) -> pa.Table:
    """The last word is the first one, which only a look back over two others tells. One text in twenty is missing."""
    rng = np.random.default_rng(seed)
    first = rng.choice(WORDS, rows)
    texts = [f"{word} and {rng.choice(WORDS)} then {word}" for word in first]
    return pa.table({"said": pa.array(texts, mask=rng.random(rows) < 0.05), "mood": rng.integers(0, 9, rows)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Any, Predictor, dict[str, float], pa.Table]:
    folder = tmp_path_factory.mktemp("language")
    valid, config = echoes(120, 2), config_of()
    snapshot = write_snapshot(folder / "snapshot", {"train": echoes(600, 1), "valid": valid})
    job, outcome = outcome_alone(config, snapshot.path, lambda _: None)
    bundle, metrics = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "run")
    return config, snapshot, Predictor.load(save_bundle(bundle, folder / "bundle")), metrics, valid


def test_only_the_text_is_read_and_nothing_is_predicted_of_a_column(trained: Any) -> None:
    plan = trained[2].bundle.plan
    assert plan.inputs == ["said"]
    assert plan.reasons["mood"] == "left out: a language model reads its text alone"
    assert plan.target.columns == ()


def test_validation_is_what_the_predictor_says_of_the_same_texts(trained: Any) -> None:
    _, _, predictor, metrics, valid = trained
    scores = predictor.scores(valid)
    found = score("language", np.full(len(scores), np.nan), scores)
    assert found["token_loss"] == pytest.approx(metrics["valid_loss"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-5)
    assert found["token_accuracy"] == pytest.approx(metrics["token_accuracy"])
    missing = np.array([text is None for text in valid.column("said").to_pylist()])
    assert missing.any()
    assert not scores[missing].any()


def test_single_rows_and_batches_agree_and_can_be_json(trained: Any) -> None:
    _, _, predictor, _, valid = trained
    rows = [{"said": text} for text in [*valid.column("said").to_pylist()[:10], "", "ember " * 40, "ünseen  żebra 😀", None]]
    whole = predictor.predict(rows)
    single = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in rows]
    np.testing.assert_allclose(np.array(single), whole.scores, atol=1e-4)
    answers = whole.rows()
    assert answers[0]["perplexity"] == pytest.approx(np.exp(answers[0]["token_loss"]))
    assert answers[0]["token_loss"] == pytest.approx(-answers[0]["log_likelihood"] / answers[0]["tokens"])
    assert answers[-1] == {"log_likelihood": 0.0, "tokens": 0, "token_loss": None, "perplexity": None}
    assert answers[10]["tokens"] == 1, "an empty text ends at once"
    assert answers[11]["tokens"] == 12, "a long one is cut off"
    assert whole.summary[0] == pytest.approx(answers[0]["token_loss"])


def test_it_beats_the_counts_of_tokens_and_pairs(trained: Any, tmp_path: Path) -> None:
    config, snapshot, predictor, _, _ = trained
    found = evaluate(config, snapshot, predictor.bundle.path, report_dir=tmp_path)
    model, unigram, bigram = (at["perplexity"].value for at in (found.metrics, found.baselines["rule"], found.baselines["linear"]))
    assert model < bigram / 1.2 < unigram
    assert found.gate.action == "pass", found.gate.reason
    assert "Loss of the texts" in found.report.read_text()


def test_one_sentence_is_learned_by_heart(tmp_path: Path) -> None:
    table = pa.table({"said": ["grove and heath then fern"] * 64})
    snapshot = write_snapshot(tmp_path, {"train": table, "valid": table.slice(0, 2)})
    config = config_of(epochs=15, learning_rate=0.02, batch_size=16)
    _, outcome = outcome_alone(config, snapshot.path, lambda _: None)
    metrics = outcome.scored("language")[2]
    assert 1 <= metrics["perplexity"] < 1.05
    assert metrics["token_accuracy"] == 1


def test_losses_are_means_over_tokens_and_batches_agree_with_them(tmp_path: Path) -> None:
    """A long text counts as much as it has tokens: without a step, two texts in one batch give the loss of all their tokens."""
    table = pa.table({"said": ["fern", "fern and grove and heath and dusk and ember and fern"] * 8})
    snapshot = write_snapshot(tmp_path, {"train": table, "valid": table})
    config = config_of(epochs=1, batch_size=16, learning_rate=1e-12)
    _, outcome = outcome_alone(config, snapshot.path, lambda _: None)
    epoch = outcome.progress.history[0]
    tokens = outcome.outputs[:, 1]
    assert epoch["train_loss"] == pytest.approx(epoch["valid_loss"], rel=1e-4)
    assert epoch["valid_loss"] == pytest.approx(-outcome.outputs[:, 0].sum() / tokens.sum(), rel=1e-5)
    assert epoch["tokens_per_s"] / epoch["rows_per_s"] == pytest.approx(tokens.mean())


def test_the_endpoint_can_try_and_document_it(trained: Any) -> None:
    bundle = trained[2].bundle
    assert answers_a_sample(str(bundle.path)) == bundle.digest
    page = openapi("said", bundle.contract, "language", max_rows=9, needs_key=False)
    assert "perplexity" in str(page)
    card = (bundle.path / "card.md").read_text()
    assert "Tells how likely a text is, token by token." in card


def test_a_batch_can_be_predicted_by_the_bundle_alone(trained: Any) -> None:
    found = pipeline.config_of(trained[2].bundle.path, ["predict.output=scores"])
    assert (found.problem.task, found.model.kind) == ("language", "decoder")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"features": {"text": ()}}, r"task is language with no text in features\.text; expected the name of one column"),
        ({"features": {"text": ("said", "mood")}}, r"language with 2 texts in features\.text; expected the name of one column"),
        ({"features": {"text_encoding": "ngrams"}}, r"features\.text_encoding=ngrams; expected the pieces of a tokenizer"),
        ({"features": {"numeric": ("mood",)}}, r"features\.numeric beside the text; expected none of them"),
        ({"features": {"text_length": 17}}, r"features\.text_length is 17, and model\.context is 16"),
        ({"mix": {"kind": "mixup"}}, r"train\.mix\.kind is mixup, which mixes images"),
        ({"label_smoothing": 0.1}, r"train\.label_smoothing is 0\.1 with problem\.task=language"),
        ({"adversarial": {"kind": "fgsm"}}, r"train\.adversarial moves numbers and pixels"),
        ({"private": {"max_epsilon": 3}}, r"train\.private does not go with model\.kind=decoder"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line(changed: dict[str, Any], expected: str) -> None:
    lines = refusals(config_of(**changed))
    assert any(re.search(expected, line) for line in lines), lines
    assert not refusals(config_of())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"class_weights": "balanced"}, r"train\.class_weights is balanced with problem\.task=language, which has no classes"),
        ({"task": "multiclass"}, r"model\.kind is decoder with problem\.task=multiclass"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_door(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        config_of(**changed)


def test_a_trial_that_outgrows_the_context_is_refused(tmp_path: Path) -> None:
    table = echoes(40, 1)
    snapshot = write_snapshot(tmp_path, {"train": table, "valid": table})
    with pytest.raises(ConfigError, match=r"hold a text of 20 pieces; expected one text within it"):
        outcome_alone(config_of({"text_length": 20}), snapshot.path, lambda _: None)


def test_models_with_other_tokenizers_are_compared_by_whole_texts(trained: Any, tmp_path: Path) -> None:
    """The same net behind the same pieces, of which it reads more: nothing is gained."""
    config, _, predictor, _, valid = trained
    bundle = predictor.bundle
    step = bundle.plan.texts[0]
    longer = replace(
        bundle,
        plan=bundle.plan.model_copy(update={"steps": (step.model_copy(update={"length": 16}),)}),
        scorer=replace(bundle.scorer, shape=bundle.scorer.shape.model_copy(update={"texts": ((step.size, 16),)})),
    )
    decision, gained = compare_models(config, bundle.path, save_bundle(longer, tmp_path / "longer"), valid)
    assert gained.value == pytest.approx(0, abs=1e-4)
    assert decision.action == "pass"


def test_a_study_that_changes_the_tokens_is_refused() -> None:
    config = config_of().model_copy(update={"tune": Tune(space={"features.vocabulary_size": Choice(values=(300, 400))})})
    with pytest.raises(ConfigError, match=r"tune\.space has features\.vocabulary_size with problem\.task=language"):
        check(config)
