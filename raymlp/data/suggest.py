"""`raymlp init`: look at a data file and write the experiment that a careful person would have written for it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from raymlp.config.problem import Problem
from raymlp.config.quality import Checks
from raymlp.config.sources import CsvSource, JsonSource, ParquetSource, Source
from raymlp.config.split import RandomSplit, StratifiedSplit
from raymlp.core.errors import ConfigError, DataError, nearest
from raymlp.core.files import write_text
from raymlp.core.records import Task, has_classes
from raymlp.data import pii, sources
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import check_table
from raymlp.data.division import keys_of
from raymlp.data.profile import ColumnProfile, Profile, column_type
from raymlp.data.quality import Evidence, Finding, unfit_columns
from raymlp.data.split import SPLITS, assign

SAMPLE_ROWS = 200_000
SMALL = 50_000
"""Rows below which the suggested training uses small batches."""
FEW_CLASSES = 20
MODELS = {"clustering": "kmeans", "anomaly": "isolation_forest"}
"""The model of each task that needs no target."""


@dataclass
class Written:
    """The experiment file, and what was noticed while it was made."""

    path: Path
    remarks: list[str] = field(default_factory=list)


def write_experiment(
    data_file: Path, target: str | None, *, task: str | None = None, name: str, folder: Path, force: bool = False
) -> Written:
    """Write `folder/NAME.yaml` for a CSV or Parquet file. Without a `target` the `task` is one that needs none, a key of `MODELS`; with one
    it is seen in the column. Raises DataError or ConfigError."""
    if (target is None) == (task is None):
        found = f"a target and the task {task}" if target else "neither a target nor a task"
        raise ConfigError(
            f"init got {found}; expected one of them. Set --target, or --task {' or '.join(MODELS)} to learn from the rows alone."
        )
    if task is not None and task not in MODELS:
        raise ConfigError(f"the task is '{task}'; expected {' or '.join(MODELS)}, or a target. Set --task or --target.")
    name = name or re.sub(r"[^a-z0-9]+", "-", data_file.stem.lower()).strip("-")
    if not re.match(r"^[a-z][a-z0-9_-]{0,62}$", name):
        raise ConfigError(f"the experiment's name is '{name}'; expected a lower-case letter, then letters, digits, - or _. Set --name.")
    path = folder / f"{name}.yaml"
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; expected a new file. Choose another --name, or overwrite it with --force.")
    if not data_file.is_file():
        raise DataError(f"{data_file} is not a file; expected a CSV or Parquet file.")
    source = _source(data_file)
    table = _sample(source)
    names = table.column_names
    if target is None:
        problem, why = Problem(name=name, task=cast(Task, task)), "learns from the rows alone"
    elif target in names:
        table = table.filter(pc.is_valid(table.column(target)))
        guess, positive, why = guess_task(Profile().update(table.select([target])).columns[target])
        problem = Problem(name=name, task=guess, target=target, positive_class=positive)
    else:
        raise ConfigError(f"{data_file} has no column '{target}'; found {', '.join(names)}.{nearest(target, names)} Set --target.")
    split = StratifiedSplit() if has_classes(problem.task) else RandomSplit()
    keys = np.zeros(table.num_rows) if target is None else keys_of(split, problem, table.select([target]))
    train = table.filter(pa.array(assign(split, keys) == SPLITS.index("train")))
    profile = Profile().update(train)
    texts = [column for column, facts in profile.columns.items() if target is not None and column != target and facts.is_prose]
    unfit = left_out(train, profile, problem, split)
    personal = pii.scan(table, known=() if target is None else (target,))
    text = _experiment(problem, source, split, unfit, texts, why, data_file, table.num_rows, personal)
    remarks = [
        f"{target or 'no target'}: {problem.task}, {why}",
        *(f"{column} left out: {_reason(finding)}" for column, finding in unfit.items()),
    ]
    remarks += [f"{column} is text: read as n-grams" for column in texts]
    remarks += [f"{found.column} looks like {found.words}: see data.privacy in the file" for found in personal]
    times = [field.name for field in table.schema if column_type(field.type) == "timestamp"]
    if times:
        remarks.append(f"rows have a time ({times[0]}): if the future is to be predicted, use data.split.kind=time")
    return Written(write_text(path, text), remarks)


def guess_task(column: ColumnProfile) -> tuple[Task, str | None, str]:
    """Task, positive class and reason, from the target's profile. Raises DataError for a constant target."""
    if column.num_distinct < 2:
        raise DataError("the target has fewer than two distinct values; expected something to predict. Set --target.")
    if column.type == "float" or (column.type == "int" and column.num_distinct > FEW_CLASSES):
        return "regression", None, f"{column.num_distinct} distinct numbers"
    if column.type == "timestamp":
        raise DataError("the target holds timestamps; expected classes or numbers. Set --target.")
    counts = column.counts()
    if len(counts) == 2:
        obvious: list[str] = [label for label in ("true", "1", "yes", "Yes", "Y") if label in counts]
        positive = obvious[0] if obvious else min(counts, key=lambda label: counts[label])
        return "binary", positive, f"two classes; '{positive}' taken as the positive one ({counts[positive]} of {column.values} rows)"
    return "multiclass", None, f"{len(counts)} classes"


def left_out(train: pa.Table, profile: Profile, problem: Problem, split: RandomSplit) -> dict[str, Finding]:
    """Columns that should be no features, with the finding: what `prepare` would warn about, by the training rows and their profile."""
    evidence = Evidence(problem, split, profile, train.column_names, {}, {})
    found = {finding.column: finding for finding in reversed(unfit_columns(evidence, train, Checks()))}
    return {name: found[name] for name in train.column_names if name in found}


def _reason(finding: Finding) -> str:
    if finding.check == "constant":
        return "constant"
    if finding.check == "id_like":
        return f"id-like, differs in {finding.value:.0%} of the training rows"
    return f"leaks the target: alone it scores {finding.value:.3f}"


def _source(data_file: Path) -> Source:
    path = str(data_file.resolve())
    if data_file.suffix in (".parquet", ".pq"):
        return ParquetSource(path=path)
    if data_file.suffix in (".json", ".jsonl", ".ndjson"):
        return JsonSource(path=path)
    part = sources.parts_of(CsvSource(path=path))[0]
    with io.TextIOWrapper(sources.open_stream(part), encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = [line for line, _ in zip(file, range(20), strict=False)]
    try:
        delimiter = csv.Sniffer().sniff("".join(lines), delimiters=",;\t|").delimiter
    except csv.Error:
        delimiter = ","
    first = next(csv.reader(lines, delimiter=delimiter))
    columns = tuple(f"column_{i}" for i in range(len(first))) if any(_is_number(cell) for cell in first) else ()
    return CsvSource(path=path, delimiter=delimiter, columns=columns)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _sample(source: Source) -> pa.Table:
    types = sources.schema_of(source)
    contract = Contract(columns={name: ColumnContract(type=kind) for name, kind in types.items()})
    tables, rows = [], 0
    for part in sources.parts_of(source):
        for table in sources.read(source, part, types, batch_rows=65_536, bad=sources.BadRows()):
            tables.append(check_table(contract, table, where=part.path)[0])
            rows += tables[-1].num_rows
            if rows >= SAMPLE_ROWS:
                return pa.concat_tables(tables)
    if not rows:
        raise DataError(f"{source.name} has no rows; expected some.")
    return pa.concat_tables(tables)


def _experiment(
    problem: Problem,
    source: Source,
    split: RandomSplit,
    unfit: dict[str, Finding],
    texts: Sequence[str],
    why: str,
    data_file: Path,
    rows: int,
    personal: Sequence[pii.Finding],
) -> str:
    settings: dict[str, Any] = source.model_dump(mode="json", exclude_defaults=True)
    lines = [
        "# @package _global_",
        f"# Written by `raymlp init` from {data_file.name}. Every key and its meaning: raymlp/config/.",
        *(["defaults:", f"  - override /model: {MODELS[problem.task]}"] if problem.task in MODELS else []),
        "",
        "problem:",
        f"  name: {_flow(problem.name)}",
        f"  task: {problem.task}  # {why}",
        *([f"  target: {_flow(problem.target)}"] if problem.target is not None else []),
    ]
    if problem.task == "anomaly":
        lines += ["  # label: COLUMN  # known anomalies, for evaluation alone; positive_class or positive_above says which value"]
    if problem.positive_class is not None:
        lines.append(f"  positive_class: {_flow(problem.positive_class)}")
    ids = {column: finding for column, finding in unfit.items() if finding.check == "id_like"}
    lines += _named("id_columns", ids)
    lines += ["", "data:", "  source:", f"    kind: {source.kind}"]
    lines += [f"    {key}: {_flow(value)}" for key, value in settings.items() if key != "kind"]
    lines += _named("drop", {column: finding for column, finding in unfit.items() if column not in ids})
    lines += ["  split:", f"    kind: {split.kind}  # random | {'stratified | ' if has_classes(problem.task) else ''}group | time"]
    lines += [f"    valid: {split.valid:g}", f"    test: {split.test:g}"]
    if personal:
        lines += ["  # privacy:  # columns that look personal, and what could be done before a row reaches any file", "  #   columns:"]
        lines += [f"  #     {_flow(found.column)}: {_flow(found.proposal)}  # {found.words}" for found in personal]
    if texts or problem.task == "regression":
        lines += ["", "features:"]
    if texts:
        lines += [f"  text: {_flow(list(texts))}", "  text_encoding: ngrams  # length | ngrams | subword"]
    if problem.task == "regression":
        lines += ["  scaling: quantile  # nets fit smooth values best when each input is spread evenly"]
    if rows < SMALL and problem.target is not None:
        lines += ["", f"train:  # for {rows:,} rows: small batches, and for smooth values more passes", "  batch_size: 128"]
        lines += (
            ["  epochs: 40", "  stopping: {patience: 8}", "  learning_rate: 0.002"] if problem.task == "regression" else ["  epochs: 10"]
        )
    if problem.task == "regression":
        lines += ["", "evaluate:", "  gate:", "    max_gap_to_baseline: 0.1  # share that the net may be behind gradient boosting"]
    return "\n".join(lines) + "\n"


def _named(key: str, columns: dict[str, Finding]) -> list[str]:
    """A list of columns with the reason for each, one level below the section; nothing without columns."""
    return [f"  {key}:", *(f"    - {_flow(column)}  # {_reason(finding)}" for column, finding in columns.items())] if columns else []


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip().removesuffix("\n...").strip()
