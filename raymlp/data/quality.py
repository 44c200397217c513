"""Quality checks on a snapshot before it is published: what would make a model learn the wrong thing, or look better than it is.

Cheap checks rest on the profile, on row hashes and on single columns; the costly ones (leakage, outliers, label noise) look at
evenly spaced training rows. Legend: S rows of the sample, F columns, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.problem import Problem
from raymlp.config.quality import Checks
from raymlp.config.split import Split, TimeSplit
from raymlp.core.errors import DataError
from raymlp.core.records import has_classes, needs_target
from raymlp.data import parquet
from raymlp.data.leakage import single_column_score
from raymlp.data.profile import Profile, column_type, to_float, to_text
from raymlp.data.rowhash import Hashes
from raymlp.data.target import Target

MAX_HASHES = 5_000_000
"""Rows whose hashes are compared; of more, those with the smallest hashes stand for all."""
ANOMALY = 0.65
"""Isolation forest's score from which on a row is far from all others. Ordinary rows have .4 to .5, the limit is 1."""
MAX_CLASSES = 20
"""Label noise is not looked for with more classes."""
MIN_ROWS = 500
"""Sample below which outliers and label noise are not looked for."""
NOISE_FOLDS = 3
NOISE_SHARE = 0.5
"""Error among the surest tenth, over the error of all, from which on labels are noisy. Clean data had at most .4, 10 % flips .5."""
MIN_SKILL = 0.05
"""Brier skill below which the columns say too little to judge labels by."""


@dataclass(frozen=True)
class Finding:
    """What a check found: the value that passed the threshold, and the training rows concerned."""

    check: str
    severity: str
    column: str | None
    value: float
    threshold: float
    rows: int
    words: str

    def __str__(self) -> str:
        return f"{self.check}: {self.words}"


@dataclass(frozen=True)
class Evidence:
    """What the checks look at: the files and row hashes of each split, profile and columns of the training rows, the key to read with."""

    problem: Problem
    split: Split
    profile: Profile
    columns: Sequence[str]
    files: Mapping[str, Sequence[str]]
    hashes: Mapping[str, Hashes] = field(default_factory=dict)
    seal: parquet.SnapshotKey | None = None


def inspect(evidence: Evidence, checks: Checks) -> list[Finding]:
    """All findings, in the order of the settings. Raises DataError that lists those whose severity is `stop`."""
    return upheld([*counted(evidence, checks), *sampled(evidence, checks)])


def counted(evidence: Evidence, checks: Checks) -> list[Finding]:
    """Findings of the cheap checks."""
    return [finding for check in _CHECKS for finding in check(evidence, checks)]


def sampled(evidence: Evidence, checks: Checks) -> list[Finding]:
    """Findings of the costly checks, which need no row hashes and of the files only the training ones."""
    asked = [check for name, check in _SAMPLED.items() if getattr(checks, name) != "off"]
    if not asked:
        return []
    sample, y = _answered(evidence, parquet.sample(evidence.files["train"], checks.sample_rows, key=evidence.seal))
    return [finding for check in asked for finding in check(evidence, checks, sample, y)]


def upheld(found: Sequence[Finding]) -> list[Finding]:
    """Findings that are not switched off. Raises DataError that lists those whose severity is `stop`."""
    kept = [finding for finding in found if finding.severity != "off"]
    stops = [finding for finding in kept if finding.severity == "stop"]
    if stops:
        words = "\n".join(f"  {finding}" for finding in stops)
        raise DataError(f"{len(stops)} quality checks stop the run:\n{words}\nMend the data, or set data.checks.{stops[0].check}=warn.")
    return kept


def unfit_columns(evidence: Evidence, train: pa.Table, checks: Checks) -> list[Finding]:
    """Columns that `inspect` would name, by training rows in memory: constant, id-like, or leaking the target. Needs no files."""
    sample, y = _answered(evidence, train.take(pa.array(parquet.spread(train.num_rows, checks.sample_rows))))
    return [*_constant(evidence, checks), *_id_like(evidence, checks), *_leakage(evidence, checks, sample, y)]


# ---------------------------------------------------------------------- rows


def _copies(evidence: Evidence, checks: Checks) -> Iterator[Finding]:
    """Training rows that repeat others, and held-out rows that are also in training."""
    train, rate = _compared(evidence.hashes["train"], evidence)
    train = np.sort(train)
    copies = int(np.sum(train[1:] == train[:-1]))
    share = copies / max(len(train), 1)
    if share > checks.max_duplicate_share:
        rows = round(copies / rate)
        words = f"{rows:,} training rows ({share:.1%}) are copies of others; expected at most {checks.max_duplicate_share:.1%}"
        yield Finding("duplicates", checks.duplicates, None, share, checks.max_duplicate_share, rows, words)
    for name in ("valid", "test"):
        held_out, rate = _compared(evidence.hashes.get(name, np.array([], np.uint64)), evidence)
        shared = int(np.sum(train[np.searchsorted(train, held_out).clip(max=len(train) - 1)] == held_out)) if len(train) else 0
        share = shared / max(len(held_out), 1)
        if share > checks.max_shared_share:
            rows = round(shared / rate)
            words = f"{rows:,} rows of {name} ({share:.1%}) are also in training; expected at most {checks.max_shared_share:.1%}"
            yield Finding("shared_rows", checks.shared_rows, None, share, checks.max_shared_share, rows, words)


def _compared(hashes: Hashes, evidence: Evidence) -> tuple[Hashes, float]:
    """The hashes that are looked at, and their share: chosen by the hash itself, so that copies stay together."""
    rate = min(1.0, MAX_HASHES / max(sum(map(len, evidence.hashes.values())), 1))
    return (hashes, rate) if rate == 1 else (hashes[hashes < np.uint64(rate * 2**64)], rate)


# ---------------------------------------------------------------------- columns


def _features(evidence: Evidence) -> list[str]:
    """Columns that may become features."""
    named = {evidence.problem.answer, *evidence.problem.id_columns}
    return [name for name in evidence.columns if name not in named and name in evidence.profile.columns]


def _constant(evidence: Evidence, checks: Checks) -> Iterator[Finding]:
    for name in _features(evidence):
        column = evidence.profile.columns[name]
        if column.is_constant:
            words = f"'{name}' has {'one value' if column.values else 'no value'} in training. Leave it out with data.drop"
            yield Finding("constant", checks.constant, name, column.num_distinct, 1, column.rows, words)


def _id_like(evidence: Evidence, checks: Checks) -> Iterator[Finding]:
    for name in _features(evidence):
        column = evidence.profile.columns[name]
        if column.is_id_like(checks.id_share):
            share = min(1.0, column.num_distinct / column.values)
            words = f"'{name}' differs in {share:.0%} of the training rows. Name it in problem.id_columns, or leave it out with data.drop"
            yield Finding("id_like", checks.id_like, name, share, checks.id_share, column.values, words)


def _known_after(evidence: Evidence, checks: Checks) -> Iterator[Finding]:
    for name in evidence.problem.known_after:
        if name in evidence.columns and name != evidence.problem.answer:
            words = f"'{name}' is known only after the answer and is still a column. Remove it from the contract"
            yield Finding("known_after", checks.known_after, name, 1, 0, evidence.profile.rows, words)


# ---------------------------------------------------------------------- time


def _time_travel(evidence: Evidence, checks: Checks) -> Iterator[Finding]:
    if checks.time_travel == "off":
        return
    if isinstance(evidence.split, TimeSplit):
        yield from _moments_of_validation(evidence, checks, evidence.split)
    elif evidence.problem.time_column in evidence.profile.columns:
        name = str(evidence.problem.time_column)
        start = _oldest(evidence.files["valid"], name)
        later = 1 - evidence.profile.columns[name].share_up_to(start) if start is not None else 0.0
        rows = round(later * evidence.profile.columns[name].values)
        if rows:
            words = (
                f"{rows:,} training rows ({later:.0%}) are newer than the first validation row by '{name}'. "
                "If the future is to be predicted, use data.split.kind=time"
            )
            yield Finding("time_travel", checks.time_travel, name, later, 0, rows, words)


def _moments_of_validation(evidence: Evidence, checks: Checks, split: TimeSplit) -> Iterator[Finding]:
    """Other timestamps of training rows that lie in the time of validation were written later than the row."""
    start = _oldest(evidence.files["valid"], split.column)
    for name in _features(evidence):
        column = evidence.profile.columns[name]
        if start is None or name == split.column or column.type != "timestamp" or not column.values or column.maximum < start:
            continue
        share = max(1 - column.share_up_to(start), 1 / column.values)
        rows = round(share * column.values)
        words = (
            f"'{name}' holds moments from {datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} on, the time of validation, "
            f"in about {rows:,} training rows. If it is written after the answer, name it in problem.known_after"
        )
        yield Finding("time_travel", checks.time_travel, name, share, 0, rows, words)


def _oldest(files: Sequence[str], name: str) -> float | None:
    """First moment of a timestamp column, in seconds since 1970."""
    moments = [pc.min(parquet.read(file, [name]).column(0)).as_py() for file in files]
    known = [moment.timestamp() for moment in moments if isinstance(moment, datetime)]
    return min(known, default=None)


# ---------------------------------------------------------------------- classes


def _small_classes(evidence: Evidence, checks: Checks) -> Iterator[Finding]:
    target = Target.fit(evidence.problem, evidence.profile)
    if not has_classes(target.task) or target.column is None or checks.small_classes == "off":
        return
    train, valid = (_class_rows(target, evidence.files[name]) for name in ("train", "valid"))
    for label, rows, held_out in zip(target.classes, train.tolist(), valid.tolist(), strict=True):
        if rows < checks.min_class_rows:
            words = f"class '{label}' has {rows:,} training rows; expected {checks.min_class_rows:,} or more"
            yield Finding("small_classes", checks.small_classes, target.column, rows, checks.min_class_rows, rows, words)
        elif not held_out:
            words = f"class '{label}' has no row in validation; expected some. Look at data.split"
            yield Finding("small_classes", checks.small_classes, target.column, 0, 1, rows, words)


def _class_rows(target: Target, files: Sequence[str]) -> NDArray[np.int64]:
    """Rows of each class, int64 (C,); values unseen in training are left out."""
    counts = np.zeros(len(target.classes), np.int64)
    for file in files:
        y = target.answers(parquet.read(file, target.columns))[0]
        counts += np.bincount(y[y >= 0].astype(np.int64), minlength=len(counts))
    return counts


# ---------------------------------------------------------------------- on a sample


def _answered(evidence: Evidence, sample: pa.Table) -> tuple[pa.Table, NDArray[np.float64]]:
    """The rows that have an answer, or all where the task needs none, and the answers, float64 (S,)."""
    y, _ = Target.fit(evidence.problem, evidence.profile).answers(sample)
    known = ~np.isnan(y) | (not needs_target(evidence.problem.task))
    return sample.filter(pa.array(known)), y[known]


def _leakage(evidence: Evidence, checks: Checks, sample: pa.Table, y: NDArray[np.float64]) -> Iterator[Finding]:
    """A column alone, or whether it is missing, against the target. Without one there is nothing to leak."""
    if not needs_target(evidence.problem.task):
        return
    for name in _features(evidence):
        column = sample.column(name)
        empty = pa.chunked_array([pc.is_null(column, nan_is_null=True).combine_chunks()])
        for what, alone in ((f"that '{name}' is missing", empty), (f"'{name}'", column)):
            score = single_column_score(alone, y, evidence.problem.task) if what[0] == "'" or pc.any(empty).as_py() else 0.0
            if score >= checks.leak_score:
                words = f"{what} predicts the target almost alone (score {score:.3f}). Is it known before the answer? Else data.drop"
                yield Finding("leakage", checks.leakage, name, score, checks.leak_score, evidence.profile.rows, words)
                break


def _outliers(evidence: Evidence, checks: Checks, sample: pa.Table, y: NDArray[np.float64]) -> Iterator[Finding]:
    """Isolation forest (Liu, Ting, Zhou 2008) with the score of the paper, in (0, 1)."""
    from sklearn.ensemble import IsolationForest

    x = _matrix(sample.select(_features(evidence)))
    if len(x) < MIN_ROWS or not x.shape[1]:
        return
    forest = IsolationForest(n_estimators=50, random_state=0).fit(x)
    share = float(np.mean(-forest.score_samples(x) > ANOMALY))
    if share > checks.max_outlier_share:
        rows = round(share * evidence.profile.rows)
        words = f"about {rows:,} training rows ({share:.1%}) are far from all others; expected at most {checks.max_outlier_share:.1%}"
        yield Finding("outliers", checks.outliers, None, share, checks.max_outlier_share, rows, words)


def _label_noise(evidence: Evidence, checks: Checks, sample: pa.Table, y: NDArray[np.float64]) -> Iterator[Finding]:
    """Errors of a target where a cross-validated model is surest, and what confident learning counts as wrong (Northcutt et al. 2021)."""
    if not needs_target(evidence.problem.task):
        return
    labels = (y > np.median(y)).astype(int) if evidence.problem.task == "regression" else y.astype(int)
    _, labels, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    enough = (sizes >= NOISE_FOLDS)[labels]
    _, labels = np.unique(labels[enough], return_inverse=True)
    features = _features(evidence)
    if len(labels) < MIN_ROWS or not features or not 2 <= labels.max() + 1 <= MAX_CLASSES:
        return
    p = _cross_validated(_matrix(sample.select(features))[enough], labels)
    surest, overall, skill = _certainty(p, labels)
    if skill < MIN_SKILL or surest <= checks.max_label_noise or surest < NOISE_SHARE * overall:
        return
    rows = round(float(np.mean(_suspects(p, labels))) * evidence.profile.rows)
    words = (
        f"where a cross-validated model is surest, {surest:.0%} of the labels disagree; expected at most {checks.max_label_noise:.0%}. "
        f"About {rows:,} training rows look mislabelled"
    )
    yield Finding("label_noise", checks.label_noise, evidence.problem.target, surest, checks.max_label_noise, rows, words)


def _cross_validated(x: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Out-of-fold probabilities, float64 (S, C)."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    trees = max(10, 80 // (int(labels.max()) + 1))
    model = HistGradientBoostingClassifier(max_iter=trees, learning_rate=0.15, max_leaf_nodes=15, early_stopping=False, random_state=0)
    folds = StratifiedKFold(NOISE_FOLDS, shuffle=True, random_state=0)
    with threadpool_limits(limits=1):  # on a busy machine OpenMP threads wait for one another: a hundred times slower
        return np.asarray(cross_val_predict(model, x, labels, cv=folds, method="predict_proba"))


def _certainty(p: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float, float]:
    """Error among the surest tenth of rows, error of all, and Brier skill (1 is perfect, 0 as good as the base rates)."""
    wrong = p.argmax(axis=1) != labels
    surest = np.argsort(-p.max(axis=1), kind="stable")[: len(labels) // 10]
    hot = np.eye(p.shape[1])[labels]
    skill = 1 - float(((p - hot) ** 2).sum() / ((hot.mean(axis=0) - hot) ** 2).sum())
    return float(wrong[surest].mean()), float(wrong.mean()), skill


def _suspects(p: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows whose likeliest class is another one, and as likely as that class is on average where it is the label."""
    usual = np.array([p[labels == label, label].mean() for label in range(p.shape[1])])
    likeliest = p.argmax(axis=1)
    return np.asarray((likeliest != labels) & (p.max(axis=1) >= usual[likeliest]))


def _matrix(table: pa.Table) -> NDArray[np.float64]:
    """Numbers for trees, float64 (S, F): values with the median for none, and for text how common it is."""
    return np.column_stack([_column(column) for column in table.columns]) if table.num_columns else np.zeros((table.num_rows, 0))


def _column(column: pa.ChunkedArray) -> NDArray[np.float64]:
    if column_type(column.type) in ("int", "float", "timestamp"):
        values = to_float(column)
        known = values[~np.isnan(values)]
        return np.asarray(np.clip(np.nan_to_num(values, nan=float(np.median(known)) if len(known) else 0.0), -1e30, 1e30))
    codes = pc.dictionary_encode(to_text(column), null_encoding="encode").combine_chunks().indices.to_numpy(zero_copy_only=False)
    counts = np.bincount(codes)
    order = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    return np.asarray(np.log(counts[codes]) - order[codes] * 1e-3)


_CHECKS = (_copies, _constant, _id_like, _known_after, _time_travel, _small_classes)
_SAMPLED = {"leakage": _leakage, "outliers": _outliers, "label_noise": _label_noise}
