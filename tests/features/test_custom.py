"""Steps of a user's own: in both executors, in a bundle's plan, and only where they are trusted."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.config.features import Features
from raymlp.config.loader import build_config, load_config, to_yaml
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.core import trust
from raymlp.core.errors import BundleError, ConfigError
from raymlp.core.trust import TRUSTED
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_row import table_of
from raymlp.data.profile import Profile
from raymlp.features.custom import Custom
from raymlp.features.plan import FeaturePlan

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = Problem(name="p", task="regression", target="y")
RNG = np.random.default_rng(5)
ROWS = 300
TABLE = pa.table(
    {
        "a": pa.array(RNG.normal(size=ROWS), mask=RNG.random(ROWS) < 0.1),
        "n": RNG.integers(0, 9, ROWS),
        "s": pa.array(RNG.choice(["", "u", "ünï"], ROWS), mask=RNG.random(ROWS) < 0.1),
        "y": RNG.normal(size=ROWS),
    }
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No trust from the environment or from an earlier test."""
    monkeypatch.delenv(TRUSTED, raising=False)
    monkeypatch.setattr(trust, "_named", set())
    return


def plan_of(folder: Path, *steps: dict[str, Any], table: pa.Table = TABLE, **features: Any) -> FeaturePlan:
    pq.write_table(table, folder / "part-0.parquet", row_group_size=100)
    return FeaturePlan.fit(Features(steps=steps, **features), PROBLEM, Profile().update(table), files=[str(folder / "part-0.parquet")])


def target(name: str, columns: tuple[str, ...] = ("a", "n"), **settings: Any) -> dict[str, Any]:
    return {"_target_": f"own_steps.{name}", "columns": columns, **settings}


def test_a_step_is_fitted_on_the_sample_and_gives_its_numbers_after_ours(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, target("Ratio", shift=2.0), target("Length", ("s",)), numeric=(), categorical=())
    a, n = TABLE.column("a").to_numpy(zero_copy_only=False), TABLE.column("n").to_numpy()
    ratio = a / (n + 2)
    expected = np.nan_to_num(ratio - np.nanmean(ratio))
    found = plan.transform(TABLE)["numeric"]
    assert found[:, 0] == pytest.approx(expected, abs=1e-6)
    assert found[:, 1].tolist() == [len(text or "") for text in TABLE.column("s").to_pylist()]
    assert [step.names for step in plan.numbers] == [("ratio",), ("length", "there")]
    assert plan.inputs == ["a", "n", "s"]
    assert plan.reasons["own_steps.Ratio(a, n)"] == "a step of your own: ratio"
    assert plan.row_executor()({"a": 6.0, "n": 1, "s": None})["numeric"] == [pytest.approx(2 - np.nanmean(ratio)), 0.0, 0.0]


def test_columns_it_reads_are_features_too_unless_they_are_dropped(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, target("Ratio"), drop=("a",))
    assert [step.names for step in plan.numbers] == [("n",), ("ratio",)]
    assert set(plan.inputs) == {"a", "n", "s"}


odd = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-300, 1e300])
row = st.fixed_dictionaries(
    {"a": odd, "n": st.none() | st.integers(-(2**53), 2**53), "s": st.none() | st.text(st.characters(codec="utf-8"), max_size=4)}
)
OPEN = Contract(columns={"a": ColumnContract(type="float"), "n": ColumnContract(type="int"), "s": ColumnContract(type="string")})
PLANS: list[FeaturePlan] = []


@settings(max_examples=150)
@given(rows=st.lists(row, min_size=1, max_size=4))
def test_batch_and_row_agree_on_odd_rows(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    if not PLANS:
        PLANS.append(plan_of(tmp_path_factory.mktemp("odd"), target("Ratio"), target("Length", ("s",)), impute="model"))
    batch, run = PLANS[0].transform(table_of(rows, OPEN))["numeric"], PLANS[0].row_executor()
    assert np.isfinite(batch).all()
    for i, values in enumerate(rows):
        assert np.array(run(values)["numeric"], np.float32) == pytest.approx(batch[i], rel=1e-6, abs=1e-6)


# ---------------------------------------------------------------------- trust


def test_a_plan_from_a_file_runs_a_step_only_where_its_module_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, target("Ratio"))
    text = plan.model_dump_json()
    assert FeaturePlan.from_json(text) == plan  # this process trained it
    monkeypatch.setattr(trust, "_named", set())
    words = r"runs the step own_steps.Ratio, whose module is not trusted.*set RAYMLP_TRUSTED_MODULES=own_steps"
    for trusted in ("", "other", "own", "own_step,own_steps_too"):
        monkeypatch.setenv(TRUSTED, trusted)
        with pytest.raises(BundleError, match=words):
            FeaturePlan.from_json(text)
    monkeypatch.setenv(TRUSTED, "other, own_steps")
    back = FeaturePlan.from_json(text)
    assert np.array_equal(back.transform(TABLE)["numeric"], plan.transform(TABLE)["numeric"])


def test_what_is_not_trusted_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    text = plan_of(tmp_path, target("Ratio")).model_dump_json().replace("own_steps.Ratio", "loud.Ratio")
    with pytest.raises(BundleError, match=r"loud.Ratio, whose module is not trusted"):
        FeaturePlan.from_json(text)
    assert "loud" not in sys.modules


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("own_steps.NoStep", r"own_steps.NoStep is no step; expected a subclass of raymlp.CustomStep"),
        ("own_steps.os.system", r"own_steps.os cannot be imported"),
        ("own_steps.Gone", r"own_steps.Gone does not exist"),
    ],
)
def test_a_trusted_module_gives_nothing_but_steps(path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = plan_of(tmp_path, target("Ratio")).model_dump_json().replace("own_steps.Ratio", path)
    monkeypatch.setenv(TRUSTED, "own_steps")
    with pytest.raises(BundleError, match=words):
        FeaturePlan.from_json(text)


def test_settings_that_were_tampered_with_are_refused(tmp_path: Path) -> None:
    text = plan_of(tmp_path, target("Ratio")).model_dump_json()
    with pytest.raises(BundleError, match=r"own_steps.Ratio of the feature plan cannot be made: shift"):
        FeaturePlan.from_json(text.replace('"shift":1.0', '"shift":"x"'))
    with pytest.raises(BundleError, match=r"cannot be read: .*no import path"):
        FeaturePlan.from_json(text.replace('"path":"own_steps.Ratio"', '"path":7'))


def test_a_worker_of_the_job_needs_no_variable(tmp_path: Path) -> None:
    """A plan travels to workers as a live object, which names the class."""
    plan = plan_of(tmp_path, target("Ratio"))
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    code = (
        "import pickle, sys; import pyarrow.parquet as pq; plan = pickle.load(open(sys.argv[1], 'rb'));"
        "print(float(plan.transform(pq.read_table(sys.argv[2]))['numeric'][:, -1].sum()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    words = [sys.executable, "-c", code, str(tmp_path / "plan"), str(tmp_path / "part-0.parquet")]
    out = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    assert float(out) == pytest.approx(float(plan.transform(TABLE)["numeric"][:, -1].sum()), abs=1e-5)


@pytest.mark.ray
def test_it_runs_in_a_ray_worker(ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.syspath_prepend(ROOT)
    plan = plan_of(tmp_path, {**target("Ratio"), "_target_": "tests.features.own_steps.Ratio"})

    def work(plan: FeaturePlan, table: pa.Table) -> Any:
        return plan.transform(table)["numeric"]

    assert np.array_equal(ray.get(ray.remote(work).remote(plan, TABLE)), plan.transform(TABLE)["numeric"])


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"_target_": "nowhere.steps.Ratio", "columns": ["a"]}, r"features.steps.0._target_: nowhere.steps cannot be imported.*PYTHONPATH"),
        (target("Ratoi"), r"own_steps.Ratoi does not exist; expected a subclass of raymlp.CustomStep. Did you mean 'Ratio'"),
        (target("NoStep"), r"own_steps.NoStep is no step"),
        (target("Unfinished"), r"own_steps.Unfinished is not finished: .*abstract"),
        (target("Ratio", ("aa", "n")), r"features.steps names 'aa', which the data does not have. Did you mean 'a'"),
        (target("Ratio", ("y", "n")), r"features.steps reads 'y', which is known only with the answer"),
        (target("Ratio", shfit=1), r"features.steps.0: shfit: Extra inputs.*own_steps.Ratio: columns, shift, mean"),
        (target("Ratio", shift="x"), r"features.steps.0: shift: Input should be a valid number"),
        (target("Disagrees"), r"features.steps.0 \(own_steps.Disagrees\): 'ratio' of a training row is .* from batch and 0.5 from row"),
        (target("TooMany"), r"own_steps.TooMany\): batch gives arrays of shapes .* expected one \(B,\) for each of ratio"),
        (target("Undeclared", ("a",)), r"own_steps.Undeclared\): KeyError.*n"),
        (target("NotPlain"), r"own_steps.NotPlain\)"),
        (target("Ratio", ("s", "n")), r"own_steps.Ratio\): ArrowInvalid"),
    ],
)
def test_a_step_that_is_not_sound_is_explained(step: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        plan_of(tmp_path, step)


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features.steps.1 .*names an output 'ratio'.*is there already"):
        plan_of(tmp_path, target("Ratio"), target("Ratio", shift=3.0))


def test_a_profile_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features.steps reads the training rows"):
        FeaturePlan.fit(Features(steps=(target("Ratio"),)), PROBLEM, Profile().update(TABLE))


def test_a_config_keeps_the_settings_of_a_step() -> None:
    config = load_config("flights", ["features.steps=[{_target_: own_steps.Ratio, columns: [temp, dewp], shift: 2}]"])
    assert config.features.steps[0].settings == {"columns": ("temp", "dewp"), "shift": 2}
    assert build_config(yaml.safe_load(to_yaml(config))) == config
    with pytest.raises(ConfigError, match=r"features.steps.0._target_: 'Ratio' is no import path; expected a module and a class"):
        load_config("flights", ["features.steps=[{_target_: Ratio, columns: [temp]}]"])


def test_preflight_says_that_the_endpoint_would_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from raymlp.preflight import preflight

    config = load_config("flights", ["features.steps=[{_target_: own_steps.Ratio, columns: [temp, dewp]}]"])
    words = "features.steps.0 runs own_steps.Ratio, which the endpoint would refuse"
    assert any(words in problem for problem in preflight(config).problems)
    monkeypatch.setenv(TRUSTED, "own_steps")
    assert not any("own_steps" in problem for problem in preflight(config).problems)


# ---------------------------------------------------------------------- the page that shows it


def test_the_example_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "custom-steps.md").read_text()
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "steps.py").write_text(blocks["python"])
    monkeypatch.syspath_prepend(tmp_path)
    rows = 200
    distance, hour = RNG.integers(1, 3_000, rows), RNG.integers(0, 24, rows)
    table = pa.table({"distance": pa.array(distance, mask=RNG.random(rows) < 0.1), "hour": hour, "y": RNG.normal(size=rows)})
    plan = plan_of(tmp_path, *yaml.safe_load(blocks["yaml"])["features"]["steps"], table=table, numeric=())
    assert isinstance(plan.numbers[0], Custom)
    found = plan.transform(table)["numeric"][:, 0]
    known = table.column("distance").is_valid().to_numpy() & (hour > 0)
    logs = np.log(distance[known] / hour[known])
    assert found[known] == pytest.approx((logs - logs.mean()) / logs.std(), abs=1e-5)
    assert set(found[~known]) == {0.0}
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.setenv(TRUSTED, re.search(rf"{TRUSTED}=(\w+)", blocks["bash"])[1])  # type: ignore[index]
    assert FeaturePlan.from_json(plan.model_dump_json()) == plan
