"""DP-SGD: the accountant's numbers, the draws, one step by hand, and the run that stops at its budget."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional

from raymlp.config.loader import with_overrides
from raymlp.config.model import Linear, Mlp, PlainNumbers, Tabm
from raymlp.config.private import Private
from raymlp.config.train import Train
from raymlp.core.errors import ConfigError
from raymlp.core.records import Snapshot
from raymlp.data.snapshot import load_profile
from raymlp.features.text import PADDING
from raymlp.model.bundle import card
from raymlp.model.nets import NetShape, build_net
from raymlp.train import trainer
from raymlp.train.blocks import Block
from raymlp.train.feed import held_source
from raymlp.train.private import Budget, PoissonBatches, budget_of, empty_step, private_optimizer, refuse_unfit, try_rows
from raymlp.train.trainer import bundle_of, fit_in_process
from raymlp.train.worker import outcome_alone
from tests.train.planted import config_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("opacus") is None, reason="needs raymlp[privacy]")
Snapshots = Callable[[str], Snapshot]


def budget(**facts: Any) -> Budget:
    settings = {"rows": 1_000, "batch_rows": 100, "noise": 1.0, "clip": 1.0, "delta": 1e-5, "max_epsilon": 8.0, "asked_epochs": 10}
    return Budget(**(settings | facts))


def test_one_step_over_all_rows_costs_at_least_what_the_gaussian_mechanism_exactly_does() -> None:
    """Balle and Wang 2018, theorem 8: delta of the Gaussian mechanism at epsilon, which the accountant bounds from above."""
    sigma = 2.0
    found = budget(rows=100, noise=sigma).epsilon(1)
    exact_delta = norm.cdf(1 / (2 * sigma) - found * sigma) - math.exp(found) * norm.cdf(-1 / (2 * sigma) - found * sigma)
    assert exact_delta < 1e-5
    closer = found * 0.8
    assert norm.cdf(1 / (2 * sigma) - closer * sigma) - math.exp(closer) * norm.cdf(-1 / (2 * sigma) - closer * sigma) > 1e-6, (
        "not far above"
    )


def test_epsilon_grows_with_epochs_and_shrinks_with_noise_and_sampling() -> None:
    assert budget().epsilon(0) == 0.0
    assert budget().epsilon(1) < budget().epsilon(2) < budget().epsilon(10)
    assert budget(noise=2.0).epsilon(2) < budget().epsilon(2)
    assert budget(batch_rows=10, rows=1_000).epsilon(1) < budget().epsilon(1)


def test_a_budget_allows_the_last_epoch_that_does_not_exceed_it() -> None:
    capped = budget(max_epsilon=budget().epsilon(4) + 1e-6)
    assert capped.epochs == 4
    assert budget(max_epsilon=1e3).epochs == 10
    with pytest.raises(ConfigError, match=r"an epoch of 10 steps spends an epsilon of .* max_epsilon is 0.01"):
        _ = budget(max_epsilon=0.01).epochs


def test_noise_that_is_not_given_spends_the_budget_in_the_epochs_asked_for() -> None:
    found = budget_of(Train(batch_size=100, epochs=7, private=Private(max_epsilon=3.0)), 5_000)
    assert found is not None
    assert (found.epochs, found.delta) == (7, 0.1 / 5_000)
    assert 2.9 < found.epsilon(7) <= 3.0
    with pytest.raises(ConfigError, match=r"steps spend more than an epsilon of 0.001"):
        budget_of(Train(batch_size=100, private=Private(max_epsilon=0.001)), 200)
    with pytest.raises(ConfigError, match=r"train.batch_size is 512 of 300 rows"):
        budget_of(Train(private=Private(max_epsilon=3.0)), 300)


def test_every_row_is_in_a_batch_with_the_same_chance_whatever_became_of_the_others() -> None:
    """Sizes are binomial; two rows meet as often as chance has it. 2,000 batches, bounds of five deviations."""
    block = Block({"numeric": np.arange(40.0, dtype=np.float32)[:, None]}, np.arange(40, dtype=np.float32))
    batches = PoissonBatches(held_source([block]), budget(rows=40, batch_rows=10))
    hits = np.zeros((2_000, 40))
    given = (batch for _ in range(500) for batch in batches)
    for draw, batch in enumerate(given):
        assert len(set(batch.target.tolist())) == len(batch)
        assert torch.equal(batch.tensors["numeric"][:, 0], batch.target)
        hits[draw, batch.target.long().numpy()] = 1
    assert len(batches) == 4
    sizes = hits.sum(axis=1)
    assert abs(sizes.mean() - 10) < 5 * math.sqrt(7.5 / 2_000)
    assert 6.2 < sizes.var() < 8.9, "40 x 1/4 x 3/4 = 7.5"
    assert np.abs(hits.mean(axis=0) - 0.25).max() < 5 * math.sqrt(0.1875 / 2_000)
    assert abs(np.mean(hits[:, 0] * hits[:, 1]) - 1 / 16) < 5 * math.sqrt(0.0586 / 2_000)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_step_clips_each_row_and_adds_noise_of_the_right_size() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.tensor([1.0, 0.0] * 4)

    def step(noise: float, net: nn.Linear, rows: int = 8) -> torch.Tensor:
        before = net.weight.detach().clone()
        settings = budget(rows=100, batch_rows=8, noise=noise, clip=0.1)
        optimizer = private_optimizer(net, torch.optim.SGD(net.parameters(), lr=1.0), settings)
        loss = functional.binary_cross_entropy_with_logits(net(x[:rows])[:, 0], y[:rows], reduction="sum") / max(rows, 1)
        loss.backward()
        optimizer.step()
        return before - net.weight.detach()

    net = nn.Linear(3, 1)
    residual = (torch.sigmoid(net(x))[:, 0] - y).detach()
    each = torch.cat([residual[:, None] * x, residual[:, None]], dim=1)
    clipped = each * (0.1 / each.norm(dim=1)).clamp(max=1.0)[:, None]
    assert torch.allclose(step(1e-9, net), clipped[:, :3].sum(dim=0)[None] / 8, atol=1e-6)
    wide = nn.Linear(3, 4_000)
    x_before, x[:] = x.clone(), 0.0
    moved = step(2.0, wide, rows=0)
    x[:] = x_before
    assert float(moved.std()) == pytest.approx(2.0 * 0.1 / 8, rel=0.05), "an empty batch is a step of noise alone"


def test_a_run_stops_within_its_budget_and_the_bundle_says_what_it_spent(snapshots: Snapshots) -> None:
    snapshot = snapshots("binary")
    config = with_overrides(
        config_of(batch_size=64, epochs=30, stopping={"patience": 30}), {"train.private": {"max_epsilon": 3.0, "noise": 1.0}}
    )
    heard: list[dict[str, float]] = []
    job, outcome = outcome_alone(config, snapshot.path, heard.append)
    bundle, metrics = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "run")
    assert 1 <= job.epochs == len(heard) < 30
    assert metrics["epsilon"] == heard[-1]["epsilon"] <= 3.0 < job.spent(len(heard) + 1)["epsilon"]
    assert metrics["delta"] == pytest.approx(0.1 / job.rows["train"])
    assert metrics["auc"] > 0.8, "the rule is simple enough to be learned in private"
    assert f"({metrics['epsilon']:.3g}, {metrics['delta']:.2g})-differentially private" in card(bundle)
    assert not any("_module" in name for name in bundle.scorer.weights)  # type: ignore[attr-defined]
    again, _ = outcome_alone(config, snapshot.path, lambda _: None)
    assert again.epochs == job.epochs


def test_noise_is_not_drawn_from_the_seed_that_is_written_in_the_run(snapshots: Snapshots) -> None:
    config = with_overrides(config_of(batch_size=64, epochs=1), {"train.private": {"max_epsilon": 8.0}})
    first, second = (fit_in_process(config, snapshots("binary").path, lambda _: None) for _ in range(2))
    assert first["log_loss"] != second["log_loss"]


def shape(**parts: Any) -> NetShape:
    return NetShape(**{"model": Mlp(hidden=(4,)), "num_numeric": 2, "cardinalities": (3,), "outputs": 1, "task": "binary", **parts})


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize(
    "given",
    [
        shape(),
        shape(model=Linear(), image=(9, 8)),
        shape(model=Tabm(numbers=PlainNumbers(), width=4)),
        shape(texts=((40, 5), (30, 3)), image=(16, 12)),
    ],
    ids=["mlp", "linear", "tabm", "text and image"],
)
def test_the_gradients_of_rows_have_that_of_the_batch_as_their_mean(given: NetShape) -> None:
    """Opacus mixes the rows of a convolution whose channels come last, as those of our nets do."""
    torch.manual_seed(0)
    try_rows(build_net(given), given)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_weight_that_no_row_can_be_told_of_is_refused_by_name() -> None:
    class Shared(nn.Module):
        """Adds one embedding of the place to all rows, as BERT does."""

        def __init__(self) -> None:
            super().__init__()
            self.places, self.out = nn.Embedding(1, 2), nn.Linear(2, 1)

        def forward(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.out(tensors["numeric"] + self.places(torch.zeros(1, dtype=torch.int64)))

    with pytest.raises(ConfigError, match=r"Opacus cannot tell each row's gradient of places.weight"):
        try_rows(Shared(), shape())


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_padding_stays_what_it_was_and_an_empty_batch_is_a_step_of_noise() -> None:
    torch.manual_seed(0)
    given = shape(texts=((40, 5),))
    net = build_net(given)
    optimizer = private_optimizer(net, torch.optim.SGD(net.parameters(), lr=0.1), budget())
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    tensors = {
        "numeric": torch.randn(6, 2), "categorical": torch.zeros(6, 1, dtype=torch.int64), "text": torch.tensor([[3, 4, 0, 0, 0]] * 6),
    }  # fmt: skip
    for loss in (lambda: net(tensors).square().mean(), lambda: empty_step(net)):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        moved = [name for name, weight in net.named_parameters() if not torch.equal(weight, before[name])]
        assert len(moved) == len(before)
        before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
        padding = before["texts.0.embedding.weight"]
        assert not padding[PADDING].any()
        assert padding[PADDING + 1 :].all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.num_workers": 2}, "private does not go with num_workers=2"),
        ({"train.strategy": {"kind": "deepspeed"}}, "private does not go with strategy.kind=deepspeed"),
        ({"train.precision": "bf16"}, "private does not go with precision=bf16"),
        ({"train.resample": "oversample"}, "private does not go with resample=oversample"),
        ({"train.distil": {"teacher": "x"}}, "private does not go with distil"),
    ],
)
def test_what_does_not_go_with_privacy_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_overrides(config_of(), {"train.private": {"max_epsilon": 1.0}, **changes})


def test_a_net_that_mixes_rows_is_refused_by_name() -> None:
    refuse_unfit(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.Embedding(3, 2)), "mlp")
    with pytest.raises(ConfigError, match=r"does not go with model.kind=own: .*BatchNorm"):
        refuse_unfit(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "own")


def test_opacus_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'raymlp\[privacy\]'"):
        trainer.check(with_overrides(config_of(), {"train.private": {"max_epsilon": 1.0}}))
