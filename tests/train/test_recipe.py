"""The training recipe in one process: schedules, groups, averages, mixed images, smoothed answers, and what is refused."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from raymlp.config.average import Ema, Swa
from raymlp.config.encoder import ImageEncoder, TextEncoder
from raymlp.config.mix import Cutmix, Mixup
from raymlp.config.model import Decoder, Net, Own, PlainNumbers, Resnet, Tabm
from raymlp.config.schedule import Constant, Cosine, Linear, OneCycle
from raymlp.config.strategy import DeepSpeed
from raymlp.config.train import Train
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.core.records import Snapshot
from raymlp.model.nets import NetShape, build_net
from raymlp.train import support
from raymlp.train.average import AveragedNet
from raymlp.train.batches import Batch
from raymlp.train.choice import choose, foretold
from raymlp.train.groups import parameter_groups
from raymlp.train.layers import blocks_of, prepare
from raymlp.train.mixing import mixed
from raymlp.train.module import loss_sum
from raymlp.train.schedule import planned, reductions, shares
from raymlp.train.support import refusals
from raymlp.train.trainer import check, fit_in_process
from tests.train.planted import config_of

Snapshots = Callable[[str], Snapshot]


def test_a_cycle_is_that_of_pytorch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, 100, pct_start=0.1, anneal_strategy="cos", cycle_momentum=False)
    for step in range(100):
        assert planned(OneCycle(), step, 100) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < 99:
            theirs.step()


def test_lines_and_cosines_rise_and_fall_to_their_end() -> None:
    assert [planned(Linear(warm_up=0.2, end=0.5), step, 11) for step in (0, 1, 2)] == pytest.approx([1 / 2.2, 2 / 2.2, 1.0])
    assert planned(Linear(warm_up=0.0, end=0.5), 5, 11) == pytest.approx(0.75)
    assert planned(Cosine(warm_up=0.0, end=0.2), 5, 11) == pytest.approx(0.6)
    assert [planned(kind, 10, 11) for kind in (Linear(end=0.5), Cosine(end=0.2), Constant())] == pytest.approx([0.5, 0.2, 1.0])


def test_a_plateau_shrinks_the_step_when_pytorch_would() -> None:
    losses = [3.0, 2.0, 2.1, 2.2, 2.3, 1.9, 1.9, 1.9, 1.9, 2.5]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=0.0)
    for epoch, loss in enumerate(losses):
        theirs.step(loss)
        assert optimizer.param_groups[0]["lr"] == 0.5 ** reductions(losses[: epoch + 1], epochs=2)


def test_stochastic_averaging_holds_the_step_from_its_start() -> None:
    share = shares(Train(epochs=4, average=Swa(start=0.5, rate=0.3), schedule=Constant()), epoch_steps=5, losses=list)
    assert [share(step) for step in (9, 10, 19)] == [1.0, 0.3, 0.3]


def test_only_matrices_decay() -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "norm": nn.LayerNorm(3), "body": nn.Linear(3, 2), "frozen": nn.Linear(2, 2)})
    net["frozen"].requires_grad_(False)
    decays = {id(p): group["weight_decay"] for group in parameter_groups(net, Train(weight_decay=0.1)) for p in group["params"]}
    found = {name: decays.get(id(parameter)) for name, parameter in net.named_parameters()}
    assert found == {
        "embedding.weight": 0.0, "norm.weight": 0.0, "norm.bias": 0.0, "body.weight": 0.1, "body.bias": 0.0,
        "frozen.weight": None, "frozen.bias": None,
    }  # fmt: skip


def test_averages_are_those_worked_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema, swa = AveragedNet(net, Ema(decay=0.5), epochs=4), AveragedNet(net, Swa(start=0.5), epochs=4)
    seen = []
    for epoch, value in enumerate((8.0, 1.0, 3.0, 5.0)):
        nn.init.constant_(net.weight, value)
        ema.after_step(net)
        swa.after_epoch(net, epoch)
        seen.append((ema.net.weight.item(), swa.net.weight.item()))
    # The decay is (1 + n) / (10 + n) up to .5: 1/10, 2/11, 3/12, 4/13.
    after = [7.2, 7.2 * 2 / 11 + 1 * 9 / 11]
    after.append(after[1] / 4 + 3 * 3 / 4)
    after.append(after[2] * 4 / 13 + 5 * 9 / 13)
    assert [pair[0] for pair in seen] == pytest.approx(after)
    assert [pair[1] for pair in seen] == pytest.approx([8.0, 1.0, 3.0, 4.0])


def test_smoothed_answers_are_spread_over_the_classes() -> None:
    outputs, target = torch.randn(6, 3), torch.tensor([0.0, 1, 2, 0, 1, 2])
    soft = functional.one_hot(target.long(), 3) * 0.9 + 0.1 / 3
    expected = -(soft * outputs.log_softmax(dim=1)).sum()
    assert loss_sum("multiclass", outputs, target, smoothing=0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    pair = torch.cat([torch.zeros(6, 1), outputs[:, :1]], dim=1)
    binary = loss_sum("binary", outputs[:, :1], (target > 0).float(), smoothing=0.2)
    assert binary.item() == pytest.approx(loss_sum("multiclass", pair, (target > 0).float(), smoothing=0.2).item(), rel=1e-5)


@pytest.mark.parametrize("mix", [Mixup(alpha=1.0), Cutmix(alpha=1.0)])
def test_images_are_mixed_in_the_shares_of_their_answers(mix: Mixup | Cutmix) -> None:
    torch.manual_seed(3)
    levels = torch.arange(8, dtype=torch.uint8) * 30
    batch = Batch({"image": levels[:, None, None, None].expand(8, 3, 20, 20).contiguous()}, levels.float())
    for _ in range(5):
        result, answers = mixed(batch, mix)
        assert sum(share for _, share in answers) == pytest.approx(1.0)
        expected = sum(share * target for target, share in answers)
        assert result.tensors["image"].dtype == torch.uint8
        torch.testing.assert_close(result.tensors["image"].float().mean(dim=(1, 2, 3)), expected, atol=0.51, rtol=0)
    assert batch.tensors["image"].float().mean(dim=(1, 2, 3)).tolist() == levels.tolist(), "the batch itself must stay as it was"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.layer(x).relu()


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_checkpointed_blocks_run_twice_and_give_the_same_gradients() -> None:
    plain = Blocks()
    net = copy.deepcopy(plain)
    assert blocks_of(net) == list(net.blocks)
    prepare(net, Train(activation_checkpointing=True))
    x = torch.randn(5, 4)
    for each in (plain, net):
        each(x).square().sum().backward()
    assert [block.calls for block in net.blocks] == [2, 2, 2]
    assert net.state_dict().keys() == plain.state_dict().keys()
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Linear has no repeated blocks.*Set train.activation_checkpointing=false"):
        prepare(nn.Linear(2, 2), Train(activation_checkpointing=True))


def test_statistics_of_a_batch_count_once_though_a_block_runs_twice() -> None:
    torch.manual_seed(0)
    shape = NetShape(model=Resnet(width=4, blocks=2), num_numeric=3, cardinalities=(4,), outputs=1, task="binary")
    plain = build_net(shape)
    net = copy.deepcopy(plain)
    prepare(net, Train(activation_checkpointing=True))
    tensors = {"numeric": torch.randn(8, 3), "categorical": torch.zeros(8, 1, dtype=torch.int64)}
    for each in (plain, net):
        torch.manual_seed(1)
        for _ in range(2):
            each(tensors).square().sum().backward()
    for (name, mine), theirs in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


RECIPES: tuple[dict[str, Any], ...] = (
    {"average": {"kind": "ema", "decay": 0.9}},
    {"average": {"kind": "swa", "start": 0.5}},
    {"optimizer": {"kind": "sgd"}, "learning_rate": 0.05},
    {"optimizer": {"kind": "adam"}, "schedule": {"kind": "cosine"}},
    {"accumulate": 3, "gradient_clip_by": "value", "gradient_clip": 0.1, "label_smoothing": 0.05, "schedule": {"kind": "plateau"}},
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns_what_was_planted(recipe: dict[str, Any], snapshots: Snapshots) -> None:
    settings = {"epochs": 3, "batch_size": 64, "learning_rate": 0.02} | recipe
    assert fit_in_process(config_of(**settings), snapshots("binary").path, lambda _: None)["auc"] > 0.85


def test_gradients_of_several_batches_are_one_step(snapshots: Snapshots) -> None:
    """Dropout apart, four batches of 16 are a batch of 64: a whole epoch of them comes to nearly the same loss."""
    path = snapshots("binary").path
    heard: list[float] = []
    for sizes in ({"batch_size": 16, "accumulate": 4}, {"batch_size": 64}):
        config = config_of(epochs=1, shuffle_rows=0, gradient_clip=0.0, **sizes)
        config = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.0})})
        heard.append(fit_in_process(config, path, lambda _: None)["valid_loss"])
    assert heard[0] == pytest.approx(heard[1], rel=0.01)
    with pytest.raises(TrainingError, match=r"train.accumulate is 900; expected no more"):
        fit_in_process(config_of(accumulate=900), path, lambda _: None)


def test_auto_says_what_it_takes_and_why() -> None:
    pair = Train(strategy={"kind": "auto"}, num_workers=2)
    gpus = pair.model_copy(update={"gpu": True})
    assert choose(Train()).strategy.kind == "ddp"
    assert choose(pair).strategy.kind == "ddp"
    assert choose(gpus, parameters=10**9, gpu_bytes=80 * 10**9)[0].kind == "ddp"
    large = choose(gpus, parameters=3 * 10**9, gpu_bytes=80 * 10**9)
    assert (large.strategy.kind, "48.0 GB, more than half of a GPU's 80.0 GB" in large.reason) == ("fsdp", True)
    assert foretold(pair).startswith("ddp: workers on CPUs")
    assert "settled once the net is known" in foretold(gpus)


def unsupported(strategy: dict[str, Any], gpu: bool, clip_by: str, average: str, checkpointing: bool) -> int:
    """How many refusals are due, said independently of the table."""
    zero = strategy["kind"] == "deepspeed"
    return sum(
        (
            zero and strategy.get("offload_optimizer", False) and not gpu,
            zero and clip_by == "value",
            zero and average != "none",
            checkpointing,
        )
    )


def test_the_whole_product_is_refused_or_not_as_it_should_be() -> None:
    """An MLP: a line for each thing that cannot be had, each one line that names what to set."""
    strategies = [
        *({"kind": kind} for kind in ("auto", "ddp", "fsdp")),
        *({"kind": "deepspeed", "stage": stage, "offload_optimizer": off} for stage in (1, 2, 3) for off in (False, True)),
    ]
    product = itertools.product(strategies, ("32", "bf16", "16"), (False, True), ("norm", "value"), ("none", "ema", "swa"), (False, True))
    seen = 0
    for strategy, precision, gpu, clip_by, average, checkpointing in product:
        settings = {
            "strategy": strategy, "precision": precision, "gpu": gpu, "gradient_clip_by": clip_by,
            "average": {"kind": average}, "activation_checkpointing": checkpointing,
        }  # fmt: skip
        if precision == "16" and not gpu:
            with pytest.raises(ValidationError, match="precision=16 needs gpu=true"):
                config_of(**settings)
            continue
        lines = refusals(config_of(**settings))
        assert len(lines) == unsupported(strategy, gpu, clip_by, average, checkpointing), settings
        assert all("Set train." in line and "\n" not in line for line in lines)
        seen += 1
    assert seen == 9 * 5 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"label_smoothing": 0.1, "loss": {"kind": "focal"}}, r"train.label_smoothing is 0.1 with train.loss.kind=focal"),
        ({"mix": {"kind": "cutmix"}}, r"train.mix.kind is cutmix.*features.image names none"),
        (
            {"schedule": {"kind": "plateau", "epochs": 4}, "stopping": {"patience": 4}},
            r"train.schedule.epochs is 4 and train.stopping.patience 4",
        ),
    ],
)
def test_what_cannot_be_had_together_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check(config_of(**settings))


def test_smoothing_needs_classes_and_compiling_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusals(config_of("regression", label_smoothing=0.1))[0].startswith("train.label_smoothing is 0.1 with problem.task=regression")
    monkeypatch.setattr(support, "compiler", lambda: None)
    assert refusals(config_of(compile=True))[0].startswith("train.compile is true, and no C++ compiler")


def test_parameters_are_offloaded_by_stage_3_alone() -> None:
    with pytest.raises(ValidationError, match="offload_parameters needs stage 3"):
        DeepSpeed(stage=2, offload_parameters=True)


def test_the_table_knows_which_nets_repeat_blocks() -> None:
    """A new kind of model fails here until it stands in the table as its net is."""
    kinds = [kind for kind in get_args(get_args(Net)[0]) if not issubclass(kind, TextEncoder | ImageEncoder | Own)]
    for kind in kinds:
        model = Tabm(numbers=PlainNumbers()) if kind is Tabm else kind()
        inputs: dict[str, Any] = {"num_numeric": 3, "cardinalities": (4, 5), "outputs": 1, "task": "binary"}
        if kind is Decoder:
            inputs |= {"num_numeric": 0, "cardinalities": (), "texts": ((40, 8),), "outputs": 40}
        net = build_net(NetShape(model=model, **inputs))
        assert bool(blocks_of(net)) == (kind.model_fields["kind"].default not in support.WITHOUT_BLOCKS), kind
