"""Nets: what they give for known weights and beside their authors' own classes, and how they treat what the plan holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rtdl_num_embeddings
import rtdl_revisiting_models
import tabm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raymlp.config.features import Features
from raymlp.config.loader import load_config
from raymlp.config.model import FtTransformer, Linear, Mlp, Periodic, PiecewiseLinear, Resnet, Tabm
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.encoders import in_pieces
from raymlp.model.nets import NetShape, build_net, number_edges
from raymlp.model.numbers import embedded
from raymlp.model.tabm import averaged

EDGES = ((-1.0, 0.0, 2.0), (0.0, 1.0))
PROBLEM = Problem(name="p", task="regression", target="y")
ROOT = Path(__file__).resolve().parents[2]


def shape_of(model: Any, **facts: Any) -> NetShape:
    bins = {"edges": EDGES} if isinstance(getattr(model, "numbers", None), PiecewiseLinear) else {}
    return NetShape(**{"model": model, "num_numeric": 3, "cardinalities": (4, 3), "outputs": 1, "embedded": (0, 2)} | bins | facts)


def rows_of(count: int, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"numeric": torch.randn(count, 3), "categorical": torch.randint(0, 3, (count, 2))}


def load_into(net: Any, found: dict[str, Tensor], names: dict[str, str]) -> None:
    """Weights of ours under the names that the authors have."""
    net.load_state_dict(
        {next(new + name[len(old) :] for old, new in names.items() if name.startswith(old)): value for name, value in found.items()}
    )


# ---------------------------------------------------------------------- against known numbers


def test_the_linear_model_is_a_sum_of_weights() -> None:
    """By hand: 2 * 1 - 3 from numbers, 5 from the category, half of each word's weight, and the red of a white pixel."""
    shape = NetShape(model=Linear(), num_numeric=2, cardinalities=(3,), outputs=1, texts=((9, 4),), image=(1, 1))
    net = build_net(shape)
    weights = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    weights["head.weight"][0] = torch.tensor([1.0, -1, 7, 0, 0])
    weights["categories.0.weight"][2] = 5
    weights["texts.0.embedding.weight"][[4, 6], 0] = torch.tensor([8.0, 2])
    net.load_state_dict(weights)
    tensors = {
        "numeric": torch.tensor([[2.0, 3]]),
        "categorical": torch.tensor([[2]]),
        "text": torch.tensor([[4, 6, 0, 0]]),
        "image": torch.full((1, 3, 1, 1), 255, dtype=torch.uint8),
    }
    assert net(tensors).item() == 2 - 3 + 5 + (8 + 2) / 2 + 7


def test_ft_transformer_is_that_of_its_authors() -> None:
    shape = shape_of(FtTransformer(width=16, heads=2, blocks=2), embedded=(0, 1, 2), outputs=3)
    net = build_net(shape).eval()
    theirs = rtdl_revisiting_models.FTTransformer(
        n_cont_features=3,
        cat_cardinalities=[4, 3],
        d_out=3,
        d_block=16,
        n_blocks=2,
        attention_n_heads=2,
        attention_dropout=0.2,
        ffn_d_hidden_multiplier=4 / 3,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    ).eval()
    names = {"numbers.layer": "cont_embeddings", "categories": "cat_embeddings", "body": "backbone", "gather": "cls_embedding.weight"}
    load_into(theirs, {name: value.squeeze(0) if name == "gather" else value for name, value in net.state_dict().items()}, names)
    rows = rows_of(5)
    assert torch.allclose(net(rows), theirs(rows["numeric"], rows["categorical"]), atol=1e-6)


@pytest.mark.parametrize("sharing", ["tabm", "tabm-mini", "tabm-packed"])
@pytest.mark.parametrize("numbers", [PiecewiseLinear(), Periodic(width=6)])
def test_tabm_is_that_of_its_authors(sharing: Any, numbers: Any) -> None:
    model = Tabm(members=4, width=8, sharing=sharing, numbers=numbers)
    shape = shape_of(model, num_numeric=2, embedded=(0, 1), outputs=3, task="multiclass")
    net = build_net(shape)
    layer = (
        rtdl_num_embeddings.PeriodicEmbeddings(2, 6, lite=False)
        if isinstance(numbers, Periodic)
        else rtdl_num_embeddings.PiecewiseLinearEmbeddings([torch.tensor(row) for row in EDGES], 16, activation=False, version="B")
    )
    theirs = tabm.TabM.make(
        n_num_features=2, cat_cardinalities=[4, 3], d_out=3, num_embeddings=layer, k=4, d_block=8, n_blocks=2, arch_type=sharing
    )
    load_into(theirs, dict(net.state_dict()), {"numbers.layer": "num_module", "body": "backbone", "head": "output"})
    rows = {**rows_of(5), "numeric": torch.randn(5, 2)}
    each = theirs.eval()(rows["numeric"], rows["categorical"])
    assert each.shape == (5, 4, 3)
    assert torch.allclose(net.eval()(rows).softmax(-1), each.softmax(-1).mean(dim=1), atol=1e-6)
    net.train().body.apply(lambda layer: setattr(layer, "p", 0.0))
    assert torch.allclose(net(rows), each, atol=1e-6)


numbers = st.floats(-30, 30, width=32)


@settings(max_examples=50)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_members_are_averaged_by_their_probabilities(values: list[tuple[float, float]]) -> None:
    outputs = torch.tensor([values])
    two = averaged(outputs, "multiclass")
    assert torch.allclose(two.softmax(-1), outputs.softmax(-1).mean(dim=1), atol=1e-6)
    one = averaged(outputs[:, :, :1], "binary")
    assert torch.allclose(one.sigmoid(), outputs[:, :, :1].sigmoid().mean(dim=1), atol=1e-6)
    assert averaged(outputs, "regression")[0, 0].item() == pytest.approx(np.mean([a for a, _ in values]), abs=1e-4)
    if len(values) == 1:
        assert torch.allclose(one, outputs[:, 0, :1], atol=1e-3), "one member is its own average"


def test_unsure_and_far_members_stay_finite() -> None:
    assert averaged(torch.tensor([[[200.0], [200.0]], [[-200.0], [-200.0]]]), "binary").flatten().tolist() == [200, -200]


# ---------------------------------------------------------------------- numbers


def test_bins_have_equal_shares_as_the_authors_compute_them() -> None:
    values = np.random.default_rng(0).normal(size=2_000)
    table = pa.table({"x": values, "y": values})
    plan = FeaturePlan.fit(Features(numeric=("x",), scaling="none"), PROBLEM, Profile().update(table))
    found = number_edges(Mlp(numbers=PiecewiseLinear(bins=8)), plan, Profile().update(table))
    (theirs,) = rtdl_num_embeddings.compute_bins(torch.tensor(values)[:, None], n_bins=8)
    assert np.array(found[0]) == pytest.approx(theirs.numpy(), abs=0.01)


def test_a_value_that_many_rows_share_takes_one_edge_and_the_rest_are_spread() -> None:
    """1,000 rows of 0 and 300 from 1 to 300: quantiles alone would leave three bins of four to the zeros."""
    values = np.r_[np.zeros(1_000), np.arange(1, 301)]
    table = pa.table({"x": values, "flag": values > 0, "one": np.ones(1_300), "y": values})
    profile = Profile().update(table)
    plan = FeaturePlan.fit(Features(numeric=("x", "flag", "one"), scaling="minmax"), PROBLEM, profile)
    found = dict(zip(("x", "flag", "one"), number_edges(Tabm(numbers=PiecewiseLinear(bins=4)), plan, profile), strict=True))
    assert np.array(found["x"]) * 300 == pytest.approx([0, 1, 100.5, 200.5, 300], abs=0.6)
    assert found["flag"] == (0, 1)
    assert found["one"][1] - found["one"][0] == 1


def test_bins_lie_where_the_plan_puts_its_numbers() -> None:
    """Dates and lengths in their own unit, values that are cut, any scaling; no bins for what is not a plain number."""
    rng = np.random.default_rng(0)
    rows = 600
    days = rng.integers(0, 1_000, rows)
    table = pa.table(
        {
            "x": pa.array(rng.lognormal(size=rows), mask=rng.random(rows) < 0.1),
            "p": rng.normal(size=rows),
            "k": rng.choice(["u", "v"], rows),
            "s": ["w" * length for length in rng.integers(1, 50, rows)],
            "when": pa.array(days * 86_400_000_000, pa.timestamp("us", tz="UTC")),
            "y": rng.normal(size=rows),
        }
    )
    profile = Profile().update(table)
    features = Features(
        text=("s",),
        dates={"when": ("epoch_days", "dayofyear", "hour")},
        date_encoding="cyclic",
        scaling="yeo_johnson",
        columns={"x": {"clip": (0.1, 0.9)}, "p": {"scaling": "piecewise", "bins": 3}, "k": {"encoding": "onehot"}},
    )
    plan = FeaturePlan.fit(features, PROBLEM, profile)
    places = embedded(plan)
    assert {step.names[0] for step in places.values()} == {"x", "s_length", "when_epoch_days"}
    numeric = plan.transform(table)["numeric"]
    edges = number_edges(Mlp(numbers=PiecewiseLinear(bins=5)), plan, profile)
    for place, row in zip(places, edges, strict=True):
        inside = np.searchsorted(row, numeric[:, place], side="right")
        assert np.bincount(inside, minlength=7)[1:6].sum() > 0.7 * rows
        assert np.ptp(np.bincount(np.clip(inside, 1, 5))[1:]) < 0.25 * rows, "bins of about equal shares"


def test_bins_travel_with_the_weights() -> None:
    shape = shape_of(Mlp(hidden=(4,), numbers=PiecewiseLinear()))
    net, other = build_net(shape), build_net(shape.model_copy(update={"edges": ((-5.0, 3.0, 4.0), (1.0, 2.0))}))
    torch.nn.init.normal_(net.numbers.layer.linear.weight)  # the authors begin with 0
    rows = rows_of(6)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(rows), other.eval()(rows))
    with pytest.raises(ValueError, match=r"edges has 0 rows; expected one for each of 2 embedded numbers"):
        shape_of(Mlp(numbers=PiecewiseLinear()), edges=())


def test_numbers_that_are_not_embedded_go_in_as_they_are() -> None:
    numeric = torch.tensor([[1.0, 2, 3]])
    net = build_net(shape_of(Resnet(numbers=PiecewiseLinear(width=2))))
    inside, others = net.numbers(numeric)
    assert (inside.shape, others.tolist()) == ((1, 2, 2), [[2.0]])
    assert net.widths == [2, 2, 1, 3, 3]
    assert build_net(shape_of(Resnet())).numbers(numeric)[0] is None


# ---------------------------------------------------------------------- batches


def test_rows_in_pieces_give_what_they_give_at_once() -> None:
    net = build_net(shape_of(Tabm(members=2, width=4), task="binary")).eval()
    rows = rows_of(2_500)
    whole = averaged(net._outputs(rows), "binary")
    assert torch.allclose(net(rows), whole, atol=1e-6)
    assert in_pieces(net._outputs, {name: part[:0] for name, part in rows.items()}, 10).shape == (0, 2, 1)


def test_a_last_batch_of_one_row_trains_a_net_with_batch_normalisation() -> None:
    net = build_net(shape_of(Resnet(width=4)))
    before = net.body.blocks[0].normalization.running_mean.clone()
    net(rows_of(1)).sum().backward()
    assert torch.equal(net.body.blocks[0].normalization.running_mean, before)
    net(rows_of(2))
    assert not torch.equal(net.body.blocks[0].normalization.running_mean, before)


def test_a_category_with_many_ids_is_embedded_and_one_with_few_is_one_hot() -> None:
    net = build_net(shape_of(Tabm(members=2, width=4, max_onehot=3), task="binary"))
    assert [layer.num_embeddings for layer in net.embeddings] == [4]
    vector = net.vector({"numeric": torch.zeros(1, 3), "categorical": torch.tensor([[1, 2]])}, torch.float32)
    assert vector[0, -3:].tolist() == [0, 0, 1]
    assert vector.shape == (1, sum(net.widths))


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize("kind", [Mlp, Linear, Resnet, FtTransformer, Tabm])
def test_a_model_is_chosen_by_its_kind_and_its_yaml_holds_the_defaults(kind: Any) -> None:
    chosen = f"model={kind.model_fields['kind'].default}"
    assert load_config("flights", [chosen]).model == kind()
    if kind is not Linear:
        assert load_config("flights", [chosen, "model.numbers.kind=periodic"]).model == kind(numbers=Periodic())


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["model.kind=mpl"], r"model\.kind is 'mpl'; expected one of 'mlp', 'linear'"),
        (["model=linear", "model.hidden=[3]"], r"model\.hidden is not a setting"),
        (["model=ft_transformer", "model.width=100"], r"width is 100 with 8 heads; expected a multiple"),
        (["model=ft_transformer", "model.numbers.width=8"], r"numbers\.width is 8; expected null"),
        (["model=ft_transformer", "model.numbers.kind=none"], r"model\.numbers\.kind is 'none'; expected one of 'linear'"),
        (["model.numbers.kind=piecewise"], r"model\.numbers\.kind is 'piecewise'"),
    ],
)
def test_settings_that_do_not_fit_are_explained(words: list[str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        load_config("flights", words)


@pytest.mark.parametrize(
    ("model", "package", "words"),
    [
        (Resnet(), "rtdl_revisiting_models", r"model.kind is resnet, which needs the package rtdl_revisiting_models"),
        (FtTransformer(), "rtdl_revisiting_models", r"model.kind is ft_transformer"),
        (Tabm(), "tabm", r"model.kind is tabm, which needs the package tabm. Run: pip install 'raymlp\[tabular\]'"),
        (Mlp(numbers=Periodic()), "rtdl_num_embeddings", r"model.numbers.kind is periodic, which needs the package rtdl_num_embeddings"),
    ],
)
def test_a_package_that_is_missing_is_named(model: Any, package: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest))
    with pytest.raises(ConfigError, match=words):
        build_net(shape_of(model))
