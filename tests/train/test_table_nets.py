"""Nets for tables, trained for an epoch or two in this process: their bundles, a net of the user's own, members' losses."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional

from raymlp.config.distil import Distil
from raymlp.config.features import Features
from raymlp.config.loader import build_config, load_config, to_yaml
from raymlp.config.model import FtTransformer, Linear, Mlp, Own, Periodic, PiecewiseLinear, Resnet, Tabm
from raymlp.config.optimizer import Sgd
from raymlp.config.private import Private
from raymlp.config.train import Train
from raymlp.core import trust
from raymlp.core.errors import BundleError, ConfigError, TrainingError
from raymlp.core.metrics import auc
from raymlp.core.trust import TRUSTED
from raymlp.data.contract import Contract
from raymlp.data.snapshot import load_profile
from raymlp.model.bundle import save_bundle
from raymlp.model.nets import NetShape
from raymlp.model.predictor import Predictor
from raymlp.preflight import preflight
from raymlp.serve.probe import answers_a_sample
from raymlp.train.module import loss_sum
from raymlp.train.own import check
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import outcome_alone
from tests.train.planted import config_of, planted, write_snapshot

PAGE = Path(__file__).resolve().parents[2] / "docs" / "custom-nets.md"


def picture(bright: bool, rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(120 * bright, 120 + 120 * bright, (8, 8, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


Epochs = list[dict[str, float]]


def mixed(rows: int, seed: int, task: str) -> pa.Table:
    """The planted table with a text and an image beside it."""
    rng = np.random.default_rng(seed)
    table = planted(rows, seed, task)
    table = table.append_column("words", pa.array([" ".join(rng.choice(["one", "two", "three"], 2)) for _ in range(rows)]))
    return table.append_column("shot", pa.array([picture(bool(i % 2), rng) for i in range(rows)]))


def trained(folder: Path, model: Any, task: str, *, plain: bool = False, rows: int = 321, **train: Any) -> tuple[Predictor, Epochs]:
    """The predictor of a saved bundle, and the epochs."""
    make = planted if plain else mixed
    tables = {"train": make(rows, 0, task), "valid": make(160, 1, task)}
    snapshot = write_snapshot(folder / "snapshot", tables)
    config = config_of(task, **{"batch_size": 64, "epochs": 1, **train}).model_copy(update={"model": model})
    if not plain:
        features = Features(text=("words",), text_encoding="ngrams", text_hash_size=64, text_length=4, image="shot", image_size=(8, 8))
        config = config.model_copy(update={"features": features, "data": config.data.model_copy(update={"images": ("shot",)})})
        contract = Contract.from_yaml((snapshot.path / "contract.yaml").read_text()).with_images(("shot",), config.data.max_image_pixels)
        (snapshot.path / "contract.yaml").write_text(contract.to_yaml())
    epochs: Epochs = []
    job, outcome = outcome_alone(config, snapshot.path, epochs.append)
    bundle, _ = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "run")
    return Predictor.load(save_bundle(bundle, folder / "bundle")), epochs


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (Linear(), "multiclass"),
        (Mlp(hidden=(8,), numbers=PiecewiseLinear()), "binary"),
        (Resnet(width=8, numbers=Periodic()), "multiclass"),
        (FtTransformer(width=8, heads=2, blocks=2), "regression"),
        (FtTransformer(width=8, heads=2, blocks=1, numbers=PiecewiseLinear()), "binary"),
        (Tabm(width=8, members=3), "multiclass"),
        (Tabm(width=8, members=3), "binary"),
        (Tabm(width=8, members=3), "regression"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_bundle_of_every_net_loads_and_answers_rows_as_it_answers_a_batch(model: Any, task: str, tmp_path: Path) -> None:
    predictor, epochs = trained(tmp_path, model, task)
    assert np.isfinite(epochs[-1]["valid_loss"])
    table = mixed(30, 2, task)
    whole = predictor.predict(table)
    typed = table.select(predictor.bundle.plan.inputs).to_pylist()
    single = np.concatenate([predictor.predict_typed(row).scores for row in typed])
    assert single == pytest.approx(whole.scores, rel=1e-4, abs=1e-5)
    assert len(np.unique(whole.scores)) > 20
    assert answers_a_sample(str(tmp_path / "bundle")) == predictor.bundle.digest


@pytest.mark.parametrize("model", [Tabm(width=16, members=4), FtTransformer(width=16, heads=2, blocks=1)], ids=lambda model: model.kind)
def test_a_planted_signal_is_found(model: Any, tmp_path: Path) -> None:
    predictor, _ = trained(tmp_path, model, "binary", plain=True, rows=900, epochs=4, batch_size=32)
    table = planted(2_000, 3, "binary")
    table = table.filter(table.column("y").is_valid())
    answers = table.column("y").to_numpy(zero_copy_only=False).astype(float)
    assert auc(answers, predictor.predict(table).scores) > 0.84, "the planted rule itself has .87"


def test_the_loss_of_members_is_the_mean_of_their_losses() -> None:
    torch.manual_seed(0)
    target, outputs = torch.tensor([0.0, 2, 1]), torch.randn(3, 4, 3)
    each = [functional.cross_entropy(outputs[:, i], target.long(), reduction="sum") for i in range(4)]
    assert loss_sum("multiclass", outputs, target).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    weighted = [loss_sum("binary", outputs[:, i, :1], target.clamp_max(1), weights=(1.0, 3.0), gamma=2.0) for i in range(4)]
    together = loss_sum("binary", outputs[:, :, :1], target.clamp_max(1), weights=(1.0, 3.0), gamma=2.0)
    assert together.item() == pytest.approx(torch.stack(weighted).mean().item(), rel=1e-5)
    assert loss_sum("regression", torch.tensor([[[1.0], [3.0]]]), torch.tensor([0.0])).item() == 5


# ---------------------------------------------------------------------- a net of the user's own


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The blocks of the documentation by language; its module can be imported, and nothing is trusted."""
    blocks: dict[str, list[str]] = {}
    for language, text in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        blocks.setdefault(language, []).append(text)
    (tmp_path / "mypackage").mkdir()
    broken = (
        "class Flat(Wide):\n    def forward(self, tensors):\n        return super().forward(tensors)[:, 0]\n\n\n"
        "class Silent(Robust):\n    def training_step(self, batch, index):\n        return None\n\n\n"
        "class Watcher(Robust):\n    def on_train_epoch_start(self):\n        pass\n"
    )
    (tmp_path / "mypackage" / "nets.py").write_text("\n\n".join([*blocks["python"], broken]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "mypackage.nets", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "mypackage", raising=False)
    monkeypatch.delenv(TRUSTED, raising=False)
    monkeypatch.setattr(trust, "_named", set())
    return blocks


def test_the_net_of_the_documentation_trains_and_is_loaded_only_where_it_is_trusted(
    page: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = yaml.safe_load(page["yaml"][0])
    predictor, _ = trained(tmp_path, Own.model_validate(plain), "binary", plain=True)
    table = planted(20, 2, "binary")
    answers = predictor.predict(table).scores
    typed = table.select(predictor.bundle.plan.inputs).to_pylist()
    assert np.concatenate([predictor.predict_typed(row).scores for row in typed]) == pytest.approx(answers, rel=1e-5)
    monkeypatch.setattr(trust, "_named", set())
    with pytest.raises(
        BundleError, match=r"runs the net mypackage.nets.Wide, whose module is not trusted.*set RAYMLP_TRUSTED_MODULES=mypackage"
    ):
        Predictor.load(tmp_path / "bundle")
    monkeypatch.setenv(TRUSTED, re.search(rf"{TRUSTED}=(\w+)", page["bash"][0])[1])  # type: ignore[index]
    assert np.array_equal(Predictor.load(tmp_path / "bundle").predict(table).scores, answers)


def test_the_lightning_module_of_the_documentation_trains_by_its_own_step(page: dict[str, list[str]], tmp_path: Path) -> None:
    own = Own.model_validate({"_target_": "mypackage.nets.Robust", "rate": 0.02})
    predictor, epochs = trained(tmp_path, own, "regression", plain=True, epochs=3)
    assert epochs[-1]["absolute_error"] < 0.7 * epochs[0]["absolute_error"]
    assert epochs[-1]["train_loss"] == pytest.approx(epochs[-1]["absolute_error"], rel=1e-4)
    assert len(predictor.predict(planted(5, 2, "regression"))) == 5


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("Wdie", ConfigError, r"mypackage.nets.Wdie does not exist; expected a subclass of torch.nn.Module. Did you mean 'Wide'"),
        ("Flat", ConfigError, r"mypackage.nets.Flat\) gives a tensor of shape \(2,\) for 2 rows; expected \(2, 1\)"),
        ("Silent", TrainingError, r"training_step of Silent gives NoneType; expected the loss"),
        (
            "Watcher",
            ConfigError,
            r"\(Watcher\) has on_train_epoch_start, which would not be called; expected no hooks but training_step and",
        ),
    ],
)
def test_a_net_that_is_not_sound_is_explained(name: str, error: Any, words: str, page: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        trained(tmp_path, Own.model_validate({"_target_": f"mypackage.nets.{name}"}), "regression", plain=True)


def test_a_net_without_blocks_is_told_before_workers_start(page: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing is true, and Wide has no repeated blocks"):
        trained(tmp_path, Own.model_validate({"_target_": "mypackage.nets.Wide"}), "regression", plain=True, activation_checkpointing=True)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"optimizer": Sgd()}, r"\(Robust\) has a configure_optimizers of its own, where train.optimizer does nothing"),
        ({"distil": Distil(teacher="nowhere")}, r"\(Robust\) has a training_step of its own, where train.distil does nothing"),
        ({"private": Private(max_epsilon=3)}, r"\(Robust\) has a training_step of its own, where train.private does nothing"),
    ],
)
def test_a_setting_that_its_hooks_would_pass_over_is_refused(setting: dict[str, Any], words: str, page: dict[str, list[str]]) -> None:
    """A private run under the net's own optimizer would report an epsilon that it does not keep."""
    net = trust.class_of("mypackage.nets.Robust", torch.nn.Module, noun="net", expected="one")(
        NetShape(model=Linear(), num_numeric=3, cardinalities=(4,), outputs=1)
    )
    with pytest.raises(ConfigError, match=words):
        check(net, Train(**setting))
    check(net, Train(learning_rate=0.3))


def test_a_config_keeps_the_settings_of_a_net_and_preflight_looks_for_it(
    page: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "wide.yaml").write_text(page["yaml"][0])
    monkeypatch.chdir(tmp_path)
    config = load_config("flights", ["model=wide"])
    assert isinstance(config.model, Own)
    assert config.model.settings == {"units": 32}
    assert build_config(yaml.safe_load(to_yaml(config))) == config
    words = "model._target_ is mypackage.nets.Wide, which the endpoint would refuse"
    assert any(words in problem for problem in preflight(config).problems)
    monkeypatch.setenv(TRUSTED, "mypackage")
    assert not any("mypackage" in problem for problem in preflight(config).problems)
    own_steps = load_config("flights", ["model=wide", "model._target_=mypackage.nets.Robust", "train.label_smoothing=.1"])
    assert any("where train.label_smoothing does nothing" in problem for problem in preflight(own_steps).problems)
    gone = load_config("flights", ["model=wide", "model._target_=mypackage.nets.Gone"])
    assert any("model._target_: mypackage.nets.Gone does not exist" in problem for problem in preflight(gone).problems)
