from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raymlp.config.loader import choices, conf_folders, load_config, to_yaml, with_overrides
from raymlp.config.model import TASKS
from raymlp.config.sweep import points
from raymlp.core.errors import ConfigError

GROUPS = [
    (folder.name, file.stem) for folder in sorted(conf_folders()[-1].iterdir()) if folder.is_dir() for file in sorted(folder.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "name"), GROUPS)
def test_every_yaml_composes_and_validates(group: str, name: str) -> None:
    overrides = [] if group == "experiment" else [f"{group}={name}"]
    if group == "model" and name in TASKS:
        overrides += [f"problem.task={TASKS[name][0]}", "problem.target=null", "problem.positive_above=null", "replay.drill=false"]
    config = load_config(name if group == "experiment" else "flights", overrides)
    assert config.problem.name


def test_the_main_experiment_says_what_it_should() -> None:
    config = load_config("flights")
    assert (config.problem.task, config.problem.positive_above, config.data.split.kind) == ("binary", 15, "time")
    assert "dep_delay" in config.problem.known_after


def test_an_override_reaches_a_key_that_no_yaml_mentions() -> None:
    assert load_config("flights", ["serve.rollout.alpha=0.01"]).serve.rollout.alpha == 0.01


def test_an_address_with_a_query_needs_no_quotes() -> None:
    address = "s3://lake/a?endpoint_override=http://127.0.0.1:9000&region=eu-west-1"
    for word in (f"runtime.storage={address}", f"runtime.storage='{address}'", f'runtime.storage="{address}"'):
        assert load_config("flights", [word, "registry.tracking_uri=http://mlflow:5000"]).runtime.storage == address
        assert points([word, "train.seed=1,2"]) == [[word, "train.seed=1"], [word, "train.seed=2"]]


def test_a_resolved_config_is_yaml_that_gives_the_same_config() -> None:
    from raymlp.config.loader import build_config

    config = load_config("flights", ["train.epochs=3", "train=zero2"])
    assert build_config(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["train.epoch is not a setting", "'train.epochs'"]),
        ("trian.epochs=3", ["trian is not a setting", "'train'"]),
        ("train.epochs=many", ["train.epochs is 'many'", "integer"]),
        ("train.epochs=0", ["train.epochs is 0", "greater than or equal to 1"]),
        ("model=mpl", ["model is 'mpl'", "Did you mean 'mlp'"]),
        ("train.strategy.kind=zero", ["train.strategy.kind is 'zero'", "'auto', 'ddp', 'fsdp', 'deepspeed'"]),
        ("data.source.pth=x", ["data.source.pth is not a setting", "'data.source.path'"]),
        ("problem.task=binry", ["problem.task is 'binry'", "Did you mean 'binary'"]),
        ("problem.metric=f1", ["metric 'f1' is not one of"]),
        ("train.epochs", ["is not an override", "KEY=VALUE"]),
        ("data.split.valid_end=2012-01-01", ["data.split", "must follow each other"]),
        ("serve.host=0.0.0.0 serve.auth=none", ["auth=none", "needs auth=key"]),
        ("serve.port=70000", ["serve.port is 70000", "65535"]),
        ("train.precision=16", ["precision=16 needs gpu=true"]),
        ("runtime.storage=hdfs://lake/x", ["storage begins with hdfs://", "s3://"]),
        ("runtime.storage='s3://lake/x?sig=secret'", ["storage holds a key or a signature"]),
        ("runtime.storage=s3://lake/x", ["runtime.storage is s3://lake/x", "cannot hold the MLflow database", "Set registry.tracking_uri"]),
        ("runtime.snapshots=http://lake/x", ["snapshots begins with http://", "s3://"]),
        ("runtime.snapshots='abfs://lake@a.dfs.core.windows.net/x?sig=secret'", ["snapshots holds a key or a signature"]),
        ("registry.tracking_uri=http://user:secret@host", ["registry.tracking_uri holds a user name and password"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_found_and_expected(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("flights", override.split())
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "secret" not in str(error.value)
    assert error.value.exit_code == 2


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"experiment is 'flight'; expected one of .*Did you mean 'flights'"):
        load_config("flight")


def test_without_an_experiment_the_known_ones_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"problem is missing.*flights"):
        load_config()


def test_a_users_own_conf_folder_is_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "model").mkdir()
    own = "# @package _global_\nproblem: {name: own, task: regression, target: y}\n"
    own += "data: {source: {kind: csv, path: a.csv}, split: {kind: random}}\n"
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(own)
    (tmp_path / "conf" / "model" / "mlp.yaml").write_text("kind: mlp\nhidden: [7]\n")
    monkeypatch.chdir(tmp_path)
    assert choices("experiment") == ["flights", "own"]
    assert load_config("own").model.hidden == (7,)
    assert load_config("flights").problem.name == "flights"


def test_with_overrides_changes_by_full_key_and_validates() -> None:
    config = with_overrides(load_config("flights"), {"train.learning_rate": 0.5, "model.hidden": [3]})
    assert (config.train.learning_rate, config.model.hidden) == (0.5, (3,))
    with pytest.raises(ConfigError, match=r"train\.epoch is not a setting"):
        with_overrides(config, {"train.epoch": 1})
    with pytest.raises(ConfigError, match="trian is no section"):
        with_overrides(config, {"trian.epochs": 1})


def test_config_never_changes_once_built() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("flights").train.epochs = 3  # type: ignore[misc]


def test_every_setting_has_a_docstring() -> None:
    from raymlp.config.schema import Config
    from raymlp.config.section import Section

    def walk(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            assert field.description or name == "kind", f"{section.__name__}.{name} has no docstring"

    for section in [Config, *Section.__subclasses__()]:
        if section.__module__.startswith("raymlp.config"):
            walk(section)
