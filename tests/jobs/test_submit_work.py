"""The same work has the same name, and words arrive as they were written."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.config.jobs import Jobs
from raymlp.config.loader import load_config, load_site
from raymlp.config.schema import Site
from raymlp.config.sweep import points
from raymlp.core.errors import ConfigError
from raymlp.jobs.api import Job, exit_code_of
from raymlp.jobs.work import Decision, Work, decide, named

SMALL = ("experiment=flights", "train.epochs=2")
CORPUS = [
    "name=hello, world $HOME `id` $(id)", "+a.b={x:1,y:[2,3]}", "cols=[a,b c]", "+q=it's", 'd="quoted"', "back\\slash", "a=b;true", "*",
    "~x", "new\nline", "tab\there", "", "ünï cödé", "!history", "a&b|c>d<e", "# no comment", "%s{}",
]  # fmt: skip
"""Words that a shell would change."""


@pytest.fixture(scope="module")
def work() -> Work:
    return Work.of("train", (), SMALL)


def test_the_same_work_has_the_same_digest_however_it_is_written(work: Work) -> None:
    assert Work.of("train", (), [*reversed(SMALL), "model=mlp", "jobs.address=http://elsewhere:8265", "jobs.at_once=9"]).digest(
        "c", None
    ) == work.digest("c", None)
    others = [
        work.with_settings(train_seed="7"), work.with_settings(runtime_storage="/elsewhere"), replace(work, verb="tune"),
        replace(work, arguments=("--verbose",)), replace(work, jobs=Jobs(env={"A": "b"})),
        replace(work, jobs=Jobs(runtime_env={"pip": ["a"]})),
    ]  # fmt: skip
    digests = [*(other.digest("c", None) for other in others), work.digest("d", None), work.digest("c", "raymlp:2")]
    assert len({work.digest("c", None), *digests}) == len(digests) + 1


def test_this_machines_own_settings_are_not_the_jobs(work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conf" / "local").mkdir(parents=True)
    (tmp_path / "conf" / "local" / "default.yaml").write_text(
        "# @package _global_\ntrain: {epochs: 77}\njobs: {address: 'http://head:8265'}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYMLP_STORAGE", "/this/machine")
    here = Work.of("train", (), SMALL)
    assert here.digest("c", None) == work.digest("c", None)
    assert here.jobs.address == "http://head:8265"
    assert here.config.runtime.storage == "artifacts"
    assert load_config(overrides=["experiment=flights"]).train.epochs == 77
    assert load_config(overrides=["experiment=flights"], local=False).train.epochs != 77


def test_settings_of_the_submission_do_not_go_along(work: Work) -> None:
    again = Work.of("reproduce", ("flights@champion",), ("runtime.storage=/s", "jobs.env={A: b}"))
    assert again.words == ["reproduce", "flights@champion", "runtime.storage=/s"]
    assert again.jobs.env == {"A": "b"}
    assert Work.of("predict", ("flights@champion",), ("data.source.path=new.csv",)).title == "predict"
    assert work.title == "train-flights"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("experiment=flights", "train.epoch=3"), "Did you mean 'train.epochs'"),
        (("experiment=nothing",), "experiment is 'nothing'"),
        (("experiment=flights", "jobs.env={MLFLOW_TRACKING_PASSWORD: x}"), "MLFLOW_TRACKING_PASSWORD, which looks like a secret"),
        (
            ("experiment=flights", "jobs.runtime_env={env_var: {A: b}}"),
            r"runtime_env holds env_var \(Did you mean 'env_vars'\?\), which Ray does not",
        ),
        (("experiment=flights", "jobs.runtime_env={pipp: [a]}"), r"runtime_env holds pipp.*Did you mean 'pip'"),
        (("experiment=flights", "jobs.runtime_env={env_vars: {A: b}}"), "Use jobs.env"),
        (("experiment=flights", "jobs.max_upload_mb=9000"), "jobs.max_upload_mb is 9000"),
    ],
)
def test_a_mistake_is_an_error_here(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Work.of("train", (), words)


def test_the_keys_that_are_known_are_rays() -> None:
    from ray.runtime_env import RuntimeEnv

    from raymlp.config.jobs import ELSEWHERE, RUNTIME_ENV

    assert set(RUNTIME_ENV) | set(ELSEWHERE) == {name for name in RuntimeEnv.known_fields if not name.startswith("_")}


@pytest.mark.parametrize(("name", "is_secret"), [
    ("HF_TOKEN", True), ("AWS_SECRET_ACCESS_KEY", True), ("AWS_ACCESS_KEY_ID", True), ("DB_PASSWORD", True), ("api_key", True),
    ("PGPASSWORD", True), ("RAYMLP_API_KEYS", True), ("GOOGLE_CREDENTIALS", True), ("TOKENIZERS_PARALLELISM", False),
    ("RAY_AUTH_TOKEN_PATH", False),     ("MAX_TOKENS", False), ("MONKEY", False), ("HTTP_PROXY", False),
    ("OMP_NUM_THREADS", False), ("KEYBOARD", False),
])  # fmt: skip
def test_names_that_look_like_secrets(name: str, is_secret: bool) -> None:
    from raymlp.config.jobs import SECRET

    assert bool(SECRET.search(name)) is is_secret


def shell(words: list[str]) -> list[str]:
    """What arrives when a shell runs an entrypoint, as Ray lets it."""
    work = Work("train", tuple(words), (), Site(), Jobs())
    entry = work.entrypoint.replace("python -m raymlp", "printf '%s\\0'", 1)
    out = subprocess.run(entry, shell=True, capture_output=True, check=True).stdout
    return [word.decode() for word in out.split(b"\0")[1:-1]]


def test_words_that_a_shell_would_change_arrive_as_they_are() -> None:
    assert shell(CORPUS) == CORPUS


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12), max_size=4))
def test_any_words_arrive_as_they_are(words: list[str]) -> None:
    assert shell(words) == words


@pytest.mark.parametrize("value", ["/a/b", "/My Docs/x", "/a,b", "/it's", '/"q"', "/a=b", "/{x}", "/ü", "/$HOME"])
def test_a_setting_that_is_added_arrives_as_it_is(work: Work, value: str) -> None:
    words = work.with_settings(runtime_storage=value).overrides
    assert points(words[-1:]) == [list(words[-1:])]
    assert load_site(words[-1:]).runtime.storage == value


def job(name: str, status: str, code: int | None = None, work: str = "w", run: str = "") -> Job:
    metadata = {"raymlp_work": work, **({"raymlp_run": run} if run else {})}
    return Job(name, status, "", exit_code_of(status, code), metadata=metadata)


def test_work_is_found_again_and_only_what_did_not_succeed_is_tried_again() -> None:
    assert decide("w", "n", []) == Decision("n", False, "n", "")
    for status in ("PENDING", "RUNNING"):
        assert decide("w", "n", [job("n", status)], again=True) == Decision("n", True, "", "is on its way")
    assert decide("w", "n", [job("n", "SUCCEEDED", 0)]).attach
    assert decide("w", "n", [job("n", "SUCCEEDED", 0, run="n")], again=True) == Decision("n-2", False, "n-2", "once more, after n")
    assert decide("w", "n", [job("n", "STOPPED", run="n")]) == Decision("n-2", False, "n", "attempt 2: n stopped (143)")
    third = decide(
        "w", "n", [job("n-2", "FAILED", 7, run="n"), job("n", "STOPPED", run="n"), job("n-x", "RUNNING"), job("nn-3", "RUNNING")]
    )
    assert third == Decision("n-3", False, "n", "attempt 3: n-2 failed (7)")
    assert decide("w", "n", [job("n", "FAILED", 1), job("n-2", "SUCCEEDED", 0)]).id == "n-2"


def test_a_name_stands_for_one_work() -> None:
    with pytest.raises(ConfigError, match="n does other work"):
        decide("w", "n", [job("n", "SUCCEEDED", 0, work="v")])
    assert named("night.1_a-b") == "night.1_a-b"
    for wrong in ("", "-a", "a b", "a/b", "a" * 81):
        with pytest.raises(ConfigError, match="--name is"):
            named(wrong)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 7, 7), ("FAILED", None, 1), ("FAILED", -9, 137), ("FAILED", 143, 143), ("STOPPED", None, 143),
     ("STOPPED", 0, 143), ("RUNNING", None, None), ("PENDING", None, None)],
)  # fmt: skip
def test_the_exit_code_tells_what_became_of_a_job(status: str, driver: int | None, code: int | None) -> None:
    assert exit_code_of(status, driver) == code


def test_a_sweep_has_a_point_for_each_choice_of_each() -> None:
    assert points(["model=mlp,tabm", "a=b", "train.seed=1,2"]) == [
        [f"model={model}", "a=b", f"train.seed={seed}"] for model in ("mlp", "tabm") for seed in (1, 2)
    ]
    assert points(["features.drop=[a,b]", "x={a:1,b:2}", "y='1,2'"]) == [["features.drop=[a,b]", "x={a:1,b:2}", "y='1,2'"]]
    assert points(["a=range(1,4)", "overlay=a,b.yaml"]) == [[f"a={value}", "overlay=a,b.yaml"] for value in (1, 2, 3)]
    assert points([]) == [[]]
    with pytest.raises(ConfigError, match="is not an override"):
        points(["model"])
