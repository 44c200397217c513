"""Does a source keep a contract? Reads and checks every row as `prepare` does, and publishes nothing."""

from __future__ import annotations

import re

import numpy as np

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.core.files import Place
from raymlp.data import parquet, sources
from raymlp.data.contract_batch import REASON
from raymlp.data.place import scratch
from raymlp.data.rules import BrokenRule, broken_as_a_whole, newest, repeat_reasons, repeats
from raymlp.data.staging import shape_of, stage_all, staged_files
from raymlp.data.suppression import Suppressed

SHOWN_CHARACTERS = 120
LINE = re.compile(r"^row ([\d,]+) has")
"""A line that could not be split is named by its number; the rule is the same for all."""


def check_source(problem: Problem, data: Data, folder: Place) -> list[BrokenRule]:
    """Rules of `data.contract` that the source breaks, most rows first; empty when it keeps them all. Needs Ray.

    Rows of people who were forgotten are not looked at. `folder`, that of all snapshots, holds temporary files meanwhile.
    Raises DataError when the source cannot be read.
    """
    with scratch(folder, ".check") as aside:
        parts = dict(enumerate(sources.parts_of(data.source)))
        shape, _ = shape_of(problem, data)
        stage_all(shape, parts, aside, Suppressed.load(folder / problem.name).sieve())
        files = staged_files(aside / "staging", parts)
        rows = sum(parquet.num_rows(file) for file in files)
        repeated = repeats(shape.contract, files)
        broken = _quarantined(aside / "quarantine")
        for place in set(repeated[repeated > 0].tolist()):
            again = np.flatnonzero(repeated == place)
            broken.append(BrokenRule(repeat_reasons(shape.contract)[place], len(again), f"good row {again[0] + 1:,} of {rows:,}"))
        whole = broken_as_a_whole(shape.contract, rows, newest(shape.contract, files))
    return [*sorted(broken, key=lambda item: (-item.rows, item.rule)), *whole]


def _quarantined(folder: Place) -> list[BrokenRule]:
    """Reasons in the quarantine files, with the number of rows and the first value."""
    found: dict[str, BrokenRule] = {}
    for file in sorted(folder.glob("*.parquet")):
        table = parquet.read(file)
        reasons = np.array(table.column(REASON).to_pylist(), dtype=object).astype(str)
        rules = np.array([LINE.sub("a row has", reason) for reason in reasons.tolist()])
        names, first, counts = np.unique(rules, return_index=True, return_counts=True)
        for reason, index, count in zip(names.tolist(), first, counts, strict=True):
            seen = found.get(reason)
            line = LINE.match(str(reasons[index]))
            example = f"row {line[1]}" if line else _example(table.slice(int(index), 1).to_pylist()[0], reason)
            example = seen.first if seen else example
            found[reason] = BrokenRule(reason, int(count) + (seen.rows if seen else 0), example)
    return list(found.values())


def _example(row: dict[str, str | None], reason: str) -> str:
    """The value that the reason speaks of: reasons begin with the column's name."""
    name = max((name for name in row if reason.startswith(f"{name} ")), key=len, default="")
    if not name:
        return ""
    value = row[name]
    text = "null" if value is None else f"'{value}'"
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
