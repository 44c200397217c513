"""Texts as ids: values worked out by hand, and both executors against one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.config.features import ColumnRules, Features
from raymlp.config.problem import Problem
from raymlp.core.errors import BundleError, ConfigError
from raymlp.data.profile import Profile
from raymlp.features.ids import BETWEEN, FIRST, MISSING, hash_id
from raymlp.features.plan import FeaturePlan
from raymlp.features.text import CHARACTERS, PADDING, Ngrams, Subword, learned_tokenizer, text_step

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes")
WORDS = ["good", "bad", "film", "plot", "The", "ünïcode", "!", "it's"]
RNG = np.random.default_rng(0)
TABLE = pa.table(
    {
        "title": [" ".join(RNG.choice(WORDS, 3)) for _ in range(200)],
        "body": pa.array([" ".join(RNG.choice(WORDS, 12)) for _ in range(200)], mask=RNG.random(200) < 0.1),
        "x": RNG.normal(size=200),
        "y": RNG.choice(["no", "yes"], 200),
    }
)


def ngrams(**changes: Any) -> Ngrams:
    return Ngrams(**{"column": "t", "length": 8, "buckets": 1000, "words": 2, **changes})


def ids_of(step: Ngrams | Subword, text: str | None) -> list[int]:
    return step.batch(pa.table({step.column: pa.array([text], pa.string())}))[0].tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    names = [str(folder / "train" / f"{part}.parquet") for part in range(2)]
    (folder / "train").mkdir()
    for part, name in enumerate(names):
        pq.write_table(TABLE.slice(100 * part, 100), name)
    return names


# ---------------------------------------------------------------------- n-grams


def test_words_and_pairs_come_in_the_order_of_the_text() -> None:
    assert list(ngrams().grams("A good, good film")) == [
        "a", "good", f"a{BETWEEN}good", ",", f"good{BETWEEN},", "good", f",{BETWEEN}good", "film", f"good{BETWEEN}film",
    ]  # fmt: skip
    assert list(ngrams(words=1, lowercase=False).grams("It's OK")) == ["It", "'", "s", "OK"]
    assert list(ngrams(words=3).grams("a b c"))[-1] == BETWEEN.join("abc")


def test_pieces_of_a_word_are_those_of_fasttext() -> None:
    grams = list(ngrams(words=1, chars=(3, 4)).grams("where"))
    assert grams == ["where", *(BETWEEN + piece for piece in ("<wh", "whe", "her", "ere", "re>", "<whe", "wher", "here", "ere>"))]


def test_ids_are_stable_cut_and_filled_up() -> None:
    good = hash_id("good", 1000)
    assert good == int.from_bytes(__import__("hashlib").blake2b(b"good", digest_size=8).digest(), "big") % 1000 + FIRST
    assert ids_of(ngrams(), "Good good") == [good, good, hash_id(f"good{BETWEEN}good", 1000), *[PADDING] * 5]
    assert ids_of(ngrams(length=2), "good bad film") == [good, hash_id("bad", 1000)]
    assert ids_of(ngrams(), None) == [MISSING, *[PADDING] * 7]
    assert ids_of(ngrams(), " \n") == [PADDING] * 8


def test_a_huge_text_costs_what_a_long_one_does() -> None:
    step = ngrams()
    longest = "a " * (CHARACTERS * step.length // 2)
    assert ids_of(step, "x" * 50_000_000) == ids_of(step, "x" * CHARACTERS * step.length)
    assert ids_of(step, longest + "b" * 1000) == ids_of(step, longest)
    assert step.row()({"t": "x" * 50_000_000}) == ids_of(step, "x" * CHARACTERS * step.length)


# ---------------------------------------------------------------------- tokenizers


def test_a_learned_tokenizer_knows_its_words_and_is_the_same_again(files: list[str]) -> None:
    rules = ColumnRules(text_encoding="subword", vocabulary_size=400)
    text = learned_tokenizer(files, "title", rules)
    assert all(learned_tokenizer(files, "title", rules) == text for _ in range(5))
    plan = FeaturePlan.fit(Features(text=("title",), **rules.model_dump(exclude_unset=True)), PROBLEM, Profile().update(TABLE), files=files)
    (step,) = plan.texts
    assert isinstance(step, Subword)
    assert step.tokenizer == text
    whole = ids_of(step, "good film")
    assert len([piece for piece in whole if piece != PADDING]) == 2
    assert whole == ids_of(step, "GOOD FILM")
    assert max(whole) < step.size
    assert ids_of(step, None)[:2] == [MISSING, PADDING]


def test_a_byte_pair_tokenizer_has_pieces_for_a_text_it_never_saw(files: list[str]) -> None:
    step = Subword(column="title", length=40, tokenizer=learned_tokenizer(files, "title", ColumnRules()), vocabulary=10_000)
    assert PADDING not in ids_of(step, "日本語")[:9]


def test_a_given_tokenizer_is_used_without_its_marks_padding_or_cut(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    given = Tokenizer(models.WordLevel({"good": 0, "bad": 1, "[CLS]": 7, "[UNK]": 2}, unk_token="[UNK]"))
    given.pre_tokenizer = pre_tokenizers.Whitespace()
    given.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 7)])
    given.enable_padding(length=5)
    given.enable_truncation(1)
    given.save(str(tmp_path / "tokenizer.json"))
    step = text_step("t", ColumnRules(text_encoding="subword", text_length=4, tokenizer=str(tmp_path / "tokenizer.json")))
    assert ids_of(step, "good bad") == [FIRST, FIRST + 1, PADDING, PADDING]
    assert ids_of(step, "what is bad good good") == [FIRST + 2, FIRST + 2, FIRST + 1, FIRST]
    assert step.size == 8 + FIRST
    with pytest.raises(BundleError, match="has 8 pieces; expected at most 7"):
        step.model_copy(update={"vocabulary": 7}).row()


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"model": {"type": "os.system"}}', "null", '{"version": "1.0", "model": "x"}'])
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json: a tokenizer cannot be read .*Set features\.tokenizer"):
        text_step("t", ColumnRules(text_encoding="subword", tokenizer=str(tmp_path / "t.json")))
    with pytest.raises(ConfigError, match="cannot be read"):
        text_step("t", ColumnRules(text_encoding="subword", tokenizer=str(tmp_path / "none.json")))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'raymlp\[text\]'"):
        Subword(column="t", length=3, tokenizer='{"seen": "never"}', vocabulary=1).row()


def test_a_tokenizer_cannot_be_learned_from_a_profile_alone() -> None:
    with pytest.raises(ConfigError, match="subword learns from training rows"):
        FeaturePlan.fit(Features(text=("title",), text_encoding="subword"), PROBLEM, Profile().update(TABLE))


# ---------------------------------------------------------------------- the plan

SETTINGS: dict[str, dict[str, Any]] = {
    "words": {"text_encoding": "ngrams", "text_length": 9, "word_ngrams": 2},
    "pieces": {"text_encoding": "ngrams", "word_ngrams": 1, "char_ngrams": (2, 4), "lowercase": False, "text_hash_size": 50},
    "bpe": {"text_encoding": "subword", "text_length": 7, "vocabulary_size": 300},
    "both": {"text_encoding": "ngrams", "columns": {"title": {"text_encoding": "length"}}},
}


@pytest.fixture(scope="module")
def plans(files: list[str]) -> dict[str, FeaturePlan]:
    profile = Profile().update(TABLE)
    return {
        name: FeaturePlan.fit(Features(text=("title", "body"), **rules), PROBLEM, profile, files=files) for name, rules in SETTINGS.items()
    }


odd_text = st.none() | st.text(st.characters(codec="utf-8"), max_size=30) | st.lists(st.sampled_from(WORDS), max_size=90).map(" ".join)


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=60)
@given(rows=st.lists(st.fixed_dictionaries({"title": odd_text, "body": odd_text, "x": st.floats(-5, 5)}), min_size=1, max_size=3))
def test_batch_and_single_row_give_the_same_ids(name: str, rows: list[dict[str, Any]], plans: dict[str, FeaturePlan]) -> None:
    plan = FeaturePlan.from_json(plans[name].model_dump_json())
    run = plan.row_executor()
    types = {"title": pa.string(), "body": pa.string(), "x": pa.float64()}
    batch = plan.transform(pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}))
    assert batch["text"].dtype == np.int64
    assert batch["text"].shape == (len(rows), *plan.shapes["text"])
    assert [run(row)["text"] for row in rows] == batch["text"].tolist()
    start = 0
    for step in plan.texts:
        part = batch["text"][:, start : (start := start + step.length)]
        assert (part.min() >= 0) & (part.max() < step.size)
        filled = part != PADDING
        assert (filled[:, :-1] >= filled[:, 1:]).all(), "padding comes last"


def test_each_text_column_has_its_ids_beside_the_other(plans: dict[str, FeaturePlan]) -> None:
    assert [(step.name, step.length) for step in plans["words"].texts] == [("title_ngrams", 9), ("body_ngrams", 9)]
    assert plans["words"].shapes == {"numeric": (1,), "categorical": (0,), "text": (18,)}
    assert plans["words"].inputs == ["x", "title", "body"]
    assert [step.name for step in plans["both"].texts] == ["body_ngrams"]
    assert [name for step in plans["both"].numbers for name in step.names] == ["title_length", "x"]


def test_pieces_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"char_ngrams is \[5, 3\]"):
        Features(char_ngrams=(5, 3))
