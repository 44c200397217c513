"""`raymlp init`: look at a data file and write the experiment that a careful person would have written for it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from raymlp.config.problem import Problem
from raymlp.config.sources import CsvSource, JsonSource, ParquetSource, Source
from raymlp.core.errors import ConfigError, DataError, nearest
from raymlp.core.files import write_text
from raymlp.core.records import Task
from raymlp.data import pii, sources
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.leakage import LEAK, single_column_score
from raymlp.data.profile import ColumnProfile, Profile
from raymlp.data.target import Target

SAMPLE_ROWS = 200_000
SMALL = 50_000
"""Rows below which the suggested training uses small batches."""
FEW_CLASSES = 20
ID_LIKE = 0.95
PROSE = 0.5
"""Share of distinct values from which a column of several words a value is text to read, rather than a category."""
PROSE_WORDS = 5.0
"""Mean number of words of such a column."""


@dataclass
class Written:
    """The experiment file, and what was noticed while it was made."""

    path: Path
    remarks: list[str] = field(default_factory=list)


def write_experiment(data_file: Path, target: str, *, name: str, folder: Path, force: bool = False) -> Written:
    """Write `folder/NAME.yaml` for a CSV or Parquet file. Raises DataError or ConfigError."""
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
    profile = Profile().update(table)
    if target not in profile.columns:
        raise ConfigError(
            f"{data_file} has no column '{target}'; found {', '.join(profile.columns)}.{nearest(target, profile.columns)} Set --target."
        )
    task, positive, why = guess_task(profile.columns[target])
    problem = Problem(name=name, task=task, target=target, positive_class=positive)
    texts = prose(table, profile, problem)
    dropped = left_out(table.drop(texts), Profile(profile.rows, {n: c for n, c in profile.columns.items() if n not in texts}), problem)
    personal = pii.scan(table, known=(target,))
    text = _experiment(problem, source, dropped, texts, why, data_file, table.num_rows, personal)
    remarks = [f"{target}: {task}, {why}", *(f"{column} left out: {reason}" for column, reason in dropped.items())]
    remarks += [f"{column} is text: read as n-grams" for column in texts]
    remarks += [f"{found.column} looks like {found.words}: see data.privacy in the file" for found in personal]
    times = [column for column, facts in profile.columns.items() if facts.type == "timestamp"]
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


def prose(table: pa.Table, profile: Profile, problem: Problem) -> list[str]:
    """Columns that hold free text: most values differ and have several words."""
    found = []
    for name, column in profile.columns.items():
        if column.type == "string" and name != problem.target and column.num_distinct > PROSE * column.values:
            words = pc.mean(pc.count_substring_regex(table.column(name), r"\S+")).as_py()
            found += [name] if words is not None and words >= PROSE_WORDS else []
    return found


def left_out(table: pa.Table, profile: Profile, problem: Problem) -> dict[str, str]:
    """Columns that should not be features, with the reason: constant, id-like, or leaking the target."""
    target = Target.fit(problem, profile)
    y = target.read(table.column(problem.target))
    known = ~np.isnan(y)
    out = {}
    for name, column in profile.columns.items():
        if name == problem.target:
            continue
        if column.num_distinct <= 1 and not (column.nulls and column.values):
            out[name] = "constant"
        elif column.type in ("string", "int") and column.values > 100 and column.num_distinct > ID_LIKE * column.values:
            out[name] = f"id-like, {column.num_distinct} distinct values in {column.values} rows"
        else:
            score = single_column_score(table.column(name).filter(pa.array(known)), y[known], problem.task)
            if score >= LEAK[problem.task]:
                out[name] = f"leaks the target: alone it scores {score:.3f}"
    return out


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
            tables.append(contract.check_table(table, where=part.path)[0])
            rows += tables[-1].num_rows
            if rows >= SAMPLE_ROWS:
                return pa.concat_tables(tables)
    if not rows:
        raise DataError(f"{source.name} has no rows; expected some.")
    return pa.concat_tables(tables)


def _experiment(
    problem: Problem,
    source: Source,
    dropped: dict[str, str],
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
        "",
        "problem:",
        f"  name: {_flow(problem.name)}",
        f"  task: {problem.task}  # {why}",
        f"  target: {_flow(problem.target)}",
    ]
    if problem.positive_class is not None:
        lines.append(f"  positive_class: {_flow(problem.positive_class)}")
    lines += ["", "data:", "  source:", f"    kind: {source.kind}"]
    lines += [f"    {key}: {_flow(value)}" for key, value in settings.items() if key != "kind"]
    kind = "random" if problem.task == "regression" else "stratified"
    lines += ["  split:", f"    kind: {kind}  # random | stratified | group | time", "    valid: 0.15", "    test: 0.15"]
    if personal:
        lines += ["  # privacy:  # columns that look personal, and what could be done before a row reaches any file", "  #   columns:"]
        lines += [f"  #     {_flow(found.column)}: {_flow(found.proposal)}  # {found.words}" for found in personal]
    if dropped or texts or problem.task == "regression":
        lines += ["", "features:"]
    if texts:
        lines += [f"  text: {_flow(list(texts))}", "  text_encoding: ngrams  # length | ngrams | subword"]
    if problem.task == "regression":
        lines.append("  scaling: quantile  # nets fit smooth values best when each input is spread evenly")
    if dropped:
        lines.append("  drop:")
        lines += [f"    - {_flow(column)}  # {reason}" for column, reason in dropped.items()]
    if rows < SMALL:
        lines += ["", f"train:  # for {rows:,} rows: small batches, and for smooth values more passes", "  batch_size: 128"]
        lines += ["  epochs: 40", "  patience: 8", "  learning_rate: 0.002"] if problem.task == "regression" else ["  epochs: 10"]
    if problem.task == "regression":
        lines += ["", "evaluate:", "  gate:", "    max_gap_to_baseline: 0.1  # share that the net may be behind gradient boosting"]
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip().removesuffix("\n...").strip()
