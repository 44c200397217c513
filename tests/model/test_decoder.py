"""The language model: a case worked by hand, GPT-2 of transformers as a reference, and what must hold for any text."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from raymlp.config.model import Decoder
from raymlp.model.decoder import UNCOUNTED, DecoderNet, shifted
from raymlp.model.nets import NetShape, build_net, parameters_of

PIECES = 9
"""Ids are 2 to 10, tokens 1 to 9 behind the mark 0."""


def shape_of(*, pieces: int = PIECES, length: int = 8, **model: int | float) -> NetShape:
    settings = {"layers": 2, "width": 8, "heads": 2, "context": 16, "dropout": 0.0} | model
    return NetShape(model=Decoder(**settings), num_numeric=0, cardinalities=(), outputs=3, texts=((pieces + 2, length),), task=None)


def net_of(seed: int = 0, **model: int | float) -> DecoderNet:
    torch.manual_seed(seed)
    net = build_net(shape_of(**model))
    assert isinstance(net, DecoderNet)
    return net.eval()


def told(net: DecoderNet, ids: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return net({"text": torch.tensor(ids)})


def test_tokens_are_wanted_up_to_the_end_of_a_text() -> None:
    ids = torch.tensor([[2, 5, 0, 0], [2, 5, 3, 4], [0, 0, 0, 0], [1, 0, 0, 0]])
    tokens, wanted = shifted(ids)
    no = UNCOUNTED
    assert tokens.tolist() == [[0, 1, 4, 0], [0, 1, 4, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert wanted.tolist() == [
        [1, 4, 0, no],  # two pieces and the end
        [1, 4, 2, 3],  # cut off, so nobody knows whether it ends there
        [0, no, no, no],  # an empty text ends at once
        [no, no, no, no],  # no text
    ]


def test_a_case_worked_by_hand() -> None:
    """Blocks that add nothing: what comes next depends on the last token alone. A normalised pair is (1, -1) or (-1, 1), so the logits of
    the tokens (2, 0), (0, 1) and (1, 1) are (2, -1, 0) behind the first, and (-2, 1, 0) behind the second."""
    net = net_of(pieces=2, width=2, heads=1, layers=1)
    with torch.no_grad():
        for weight in net.blocks.parameters():
            weight.zero_()
        net.places.weight.zero_()
        net.tokens.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    behind_mark = math.log(math.exp(2) + math.exp(-1) + 1)
    behind_first = math.log(math.exp(-2) + math.exp(1) + 1)
    found = told(net, [[2, 0, 0], [2, 2, 2]])
    # the piece 2 is token 1: behind the mark it has -1, behind itself 1, and the end has -2 behind it
    expected = (-1 - behind_mark) + (-2 - behind_first)
    assert found[0].tolist() == pytest.approx([expected, 2, 0], abs=1e-4)
    assert found[1].tolist() == pytest.approx([(-1 - behind_mark) + 2 * (1 - behind_first), 3, 2], abs=1e-4)


def test_a_net_that_knows_nothing_loses_the_logarithm_of_its_vocabulary() -> None:
    net = net_of()
    with torch.no_grad():
        net.tokens.weight.zero_()
    found = told(net, [[4, 5, 6, 0]])
    assert found[0, 0].item() / found[0, 1].item() == pytest.approx(-math.log(PIECES + 1), rel=1e-6)


def test_a_fresh_net_is_close_to_that() -> None:
    found = told(net_of(width=64, heads=4), [[4, 5, 6, 0]])
    assert found[0, 0].item() / found[0, 1].item() == pytest.approx(-math.log(PIECES + 1), rel=0.05)


def test_equal_weights_give_the_logits_of_gpt_2() -> None:
    transformers = pytest.importorskip("transformers")
    net = net_of(seed=3)
    config = transformers.GPT2Config(
        vocab_size=PIECES + 1, n_positions=16, n_embd=8, n_layer=2, n_head=2, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    reference = transformers.GPT2LMHeadModel(config).eval()
    names = {
        "before_attention": "ln_1", "before_forward": "ln_2", "qkv": "attn.c_attn", "attended": "attn.c_proj", "widen": "mlp.c_fc",
        "narrow": "mlp.c_proj",
    }  # fmt: skip
    theirs = {"transformer.wte.weight": net.tokens.weight, "transformer.wpe.weight": net.places.weight, "lm_head.weight": net.tokens.weight}
    theirs |= {f"transformer.ln_f.{kind}": getattr(net.norm, kind) for kind in ("weight", "bias")}
    for name, weight in net.blocks.named_parameters():
        number, part, kind = name.split(".")
        is_matrix = weight.ndim == 2
        theirs[f"transformer.h.{number}.{names[part]}.{kind}"] = weight.T if is_matrix else weight
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn_like(weight))  # far from 0, so that every part counts
    reference.load_state_dict({name: value.detach().clone() for name, value in theirs.items()})
    tokens = torch.tensor([[0, 3, 9, 1, 1], [0, 2, 2, 5, 7]])
    with torch.no_grad():
        torch.testing.assert_close(net.logits(tokens), reference(tokens).logits, rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(st.lists(st.integers(2, PIECES + 1), max_size=6), st.integers(0, 8), st.lists(st.integers(2, PIECES + 1), max_size=8))
def test_neither_padding_nor_other_rows_change_a_text(text: list[int], filled: int, other: list[int]) -> None:
    net = net_of()
    alone = told(net, [text + [0] * (7 - len(text))])
    width = 8 + filled
    beside = told(net, [row + [0] * (width - len(row)) for row in (text, other)])
    torch.testing.assert_close(beside[0], alone[0])
    assert alone[0, 1] == len(text) + 1


def test_a_token_says_nothing_about_those_before_it() -> None:
    net = net_of()
    with torch.no_grad():
        one, two = (net.logits(torch.tensor([[0, 1, 2, last]])) for last in (3, 4))
    assert torch.equal(one[:, :3], two[:, :3])
    assert not torch.equal(one[:, 3], two[:, 3])


def test_missing_texts_and_no_rows_tell_nothing() -> None:
    net = net_of()
    assert told(net, [[1, 0, 0]]).tolist() == [[0, 0, 0]]
    assert net({"text": torch.zeros((0, 4), dtype=torch.int64)}).shape == (0, 3)


def test_fresh_weights_have_the_deviations_of_gpt_2() -> None:
    net = net_of(width=128, heads=4, layers=8, pieces=500)
    deviations = {name: weight.std().item() for name, weight in net.named_parameters() if weight.ndim == 2}
    for name, found in deviations.items():
        adds = name.endswith(("attended.weight", "narrow.weight"))
        assert found == pytest.approx(0.02 / math.sqrt(16) if adds else 0.02, rel=0.1), name
    assert all(not weight.any() for name, weight in net.named_parameters() if name.endswith("bias"))


def test_the_output_layer_is_the_embedding() -> None:
    """12 W^2 + 13 W numbers a block, V W + context W + 2 W beside them."""
    width, layers = 8, 2
    assert parameters_of(shape_of()) == layers * (12 * width**2 + 13 * width) + (PIECES + 1 + 16 + 2) * width


def test_dropout_acts_in_training_alone() -> None:
    net = net_of(dropout=0.5)
    text = [[2, 3, 4, 5, 0]]
    assert torch.equal(told(net, text), told(net, text))
    net.train()
    assert not torch.equal(told(net, text), told(net, text))


def test_rows_at_once_keep_the_logits_small() -> None:
    assert shape_of(pieces=7_998, length=64).rows_at_once(8_192) == (1 << 25) // (8_000 * 64)
    assert shape_of().rows_at_once(100) == 100


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(ValidationError, match=r"width is 10 with 4 heads; expected a multiple of them"):
        Decoder(width=10, heads=4)
