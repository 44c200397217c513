"""Baselines of language, worked by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raymlp.data.target import Target
from raymlp.evaluate.baselines import scores_of
from raymlp.features.plan import FeaturePlan
from raymlp.features.text import Subword

tokenizers = pytest.importorskip("tokenizers")


def plan_of(length: int = 4) -> FeaturePlan:
    """Pieces a, b and c, so four tokens with the mark."""
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="c"))
    found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    step = Subword(column="said", length=length, tokenizer=found.to_str(), vocabulary=3)
    return FeaturePlan(steps=(step,), target=Target(task="language"))


TRAIN = pa.table({"said": ["a b", "a b", "a a", None]})
"""Behind the mark comes a, 3 times; behind a comes b twice, a once, the end once; behind b the end twice. Nine tokens in all."""


def test_the_unigram_model_goes_by_shares() -> None:
    """Counts and one: the end 4, a 5, b 3, c 1 of 13. There are 4 as, 2 bs and 3 ends."""
    found = scores_of(("rule",), plan_of(), TRAIN, pa.table({"said": ["a c", "", None]}))["rule"]
    assert found[0].tolist() == pytest.approx([np.log(5 / 13 * 1 / 13 * 4 / 13), 3, 1])
    assert found[1].tolist() == pytest.approx([np.log(4 / 13), 1, 0])
    assert found[2].tolist() == [0, 0, 0]


def test_the_bigram_model_looks_at_the_token_before() -> None:
    found = scores_of(("linear",), plan_of(), TRAIN, pa.table({"said": ["a b", "c"]}))["linear"]
    a = (3 + 1 * 5 / 13) / (3 + 1)
    b = (2 + 3 * 3 / 13) / (4 + 3)
    end = (2 + 1 * 4 / 13) / (2 + 1)
    assert found[0].tolist() == pytest.approx([np.log(a * b * end), 3, 3])
    assert found[1].tolist() == pytest.approx([np.log((0 + 1 / 13) / 4 * 4 / 13), 2, 0]), "behind c, which was never seen, by shares"


def test_probabilities_sum_to_one() -> None:
    """Over all texts of up to two pieces, where a longer one is cut off."""
    texts = ["", *"abc", *(f"{one} {two}" for one in "abc" for two in "abc")]
    for name, found in scores_of(("rule", "linear"), plan_of(length=2), TRAIN, pa.table({"said": texts})).items():
        assert np.exp(found[:, 0]).sum() == pytest.approx(1), name


def test_boosting_is_for_tasks_with_a_target() -> None:
    assert list(scores_of(("rule", "gradient_boosting"), plan_of(), TRAIN, TRAIN)) == ["rule"]
