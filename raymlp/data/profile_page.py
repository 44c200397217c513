"""The data profile as one HTML file, made from what a snapshot keeps of its rows: profiles, association, manifest. No row is read.

A card a column shows how it is distributed and how the target moves with it; further down stand missing values,
correlations, and drift between the splits. Quarantined rows are counted by their reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from raymlp.config.monitor import Monitor
from raymlp.config.problem import Problem
from raymlp.core.errors import DataError
from raymlp.core.files import Place, Somewhere, write_text
from raymlp.core.records import Finding, Snapshot
from raymlp.data import parquet
from raymlp.data import profile_svg as svg
from raymlp.data.association import Answers, Association
from raymlp.data.contract_batch import REASON
from raymlp.data.distribution import Distribution
from raymlp.data.drift import drift
from raymlp.data.place import manifest_of
from raymlp.data.profile import ColumnProfile, Profile
from raymlp.data.snapshot import load_association, load_profile
from raymlp.data.split import SPLITS
from raymlp.runtime.page import number, percent, render, whole

TEMPLATE = Path(__file__).with_name("profile_page.html.j2")
NUM_BARS = 32
MAX_WHOLE = 40
"""Range of a column of whole numbers up to which each has a bar of its own."""
TAIL = 0.005
"""Share of the values that is left out of a drawing at each end where the ends are far away."""
SHOWN_CATEGORIES, SHOWN_REASONS, SHOWN_PAIRS, SHOWN_CORRELATED = 8, 8, 12, 24
MOSTLY_MISSING, NEARLY_EQUAL = 0.5, 0.98

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What the page is made from. `profiles` by split, training first; `drifts` by held-out split and column."""

    problem: Problem
    manifest: Mapping[str, Any]
    profiles: Mapping[str, Profile]
    association: Association
    drifts: Mapping[str, Mapping[str, Finding]]
    settings: Monitor

    @property
    def train(self) -> Profile:
        return self.profiles["train"]

    def moved(self, name: str) -> tuple[str, Finding] | None:
        """The held-out split in which a column is most unlike training, where that is half the threshold or more."""
        found = [
            (split, items[name]) for split, items in self.drifts.items() if name in items and items[name].value >= items[name].threshold / 2
        ]
        return max(found, key=lambda item: item[1].value, default=None)

    def strength(self, name: str) -> float:
        """How well a column alone tells the target, in [0, 1]; NaN for the target itself."""
        return self.association.strength(name) if name in self.association.tables else float("nan")


def write_page(snapshot: Snapshot, problem: Problem, settings: Monitor, *, folder: Somewhere) -> Somewhere:
    """Write `profile.html` to `folder`; `settings` hold the thresholds of drift. Raises DataError when the snapshot lacks a part."""
    seen = read(snapshot, problem, settings)
    ordered = sorted(seen.train.columns, key=lambda name: (name != problem.answer, -np.nan_to_num(seen.strength(name), nan=-1.0), name))
    page = render(
        TEMPLATE,
        problem=problem,
        snapshot=snapshot,
        manifest=seen.manifest,
        settings=settings,
        remarks=remarks(seen),
        splits=split_rows(seen),
        reasons=quarantine_reasons(snapshot.path),
        missing=missing_share(seen.train),
        columns=[card(name, seen, f"column-{place}") for place, name in enumerate(ordered)],
        measure="" if problem.answer is None else "Cramér's V" if problem.task == "multiclass" else "correlation ratio",
        legend=_legend(seen.association),
        gaps=missing_rows(seen),
        correlation=correlation(seen.association),
        drifts=drift_rows(seen, ordered),
        held_out=list(seen.drifts),
        facts=_facts(seen, snapshot),
    )
    return write_text(folder / "profile.html", page)


def read(snapshot: Snapshot, problem: Problem, settings: Monitor) -> Seen:
    """Everything the page shows, from the files beside the rows."""
    manifest = manifest_of(snapshot.path)
    profiles = {split: load_profile(snapshot.path, split) for split in SPLITS if snapshot.rows.get(split)}
    if "train" not in profiles:
        raise DataError(f"{snapshot.path} has no training rows; expected some. Check the split.")
    drifts = {
        split: {finding.name: finding for finding in drift(profiles["train"], profile, settings)}
        for split, profile in profiles.items()
        if split != "train"
    }
    return Seen(problem, manifest, profiles, load_association(snapshot.path), drifts, settings)


def quarantine_reasons(path: Place) -> list[tuple[str, int]]:
    """Reasons of the quarantined rows and how many rows each has, most first; only that column is read."""
    counts: Counter[str] = Counter()
    for file in sorted((path / "quarantine").glob("*.parquet")):
        for table in parquet.batches(file, [REASON]):
            for item in table.column(0).value_counts().to_pylist():
                counts[str(item["values"])] += item["counts"]
    shown = counts.most_common(SHOWN_REASONS)
    rest = counts.total() - sum(count for _, count in shown)
    return [*shown, ("other reasons", rest)] if rest else shown


def missing_share(profile: Profile) -> float:
    """Share of all cells that have no value, in [0, 1]."""
    cells = sum(column.rows for column in profile.columns.values())
    return sum(column.nulls for column in profile.columns.values()) / cells if cells else 0.0


def remarks(seen: Seen) -> list[str]:
    """What a careful reader would point at, the gravest first."""
    found = [str(warning) for warning in seen.manifest["warnings"]]
    columns = seen.train.columns
    empty = [name for name, column in columns.items() if not column.values]
    same = [name for name, column in columns.items() if column.values and column.num_distinct <= 1]
    gaps = [name for name, column in columns.items() if column.values and column.nulls / column.rows > MOSTLY_MISSING]
    found += [_named("has no value in training", "have no value in training", empty)]
    found += [_named("holds one value only", "hold one value only", same)]
    found += [_named("is missing in more than half of the rows", "are missing in more than half of the rows", gaps)]
    for split, items in seen.drifts.items():
        alerts = [finding.name for finding in items.values() if finding.alert]
        found.append(
            _named(f"is distributed otherwise in {split} than in train", f"are distributed otherwise in {split} than in train", alerts)
        )
    names, r, _ = seen.association.correlations()
    twins = [f"{a} and {b}" for a, b, value, _ in _pairs(names, r, r) if abs(value) >= NEARLY_EQUAL]
    found.append(_named("say nearly the same", "say nearly the same", twins))
    return [line for line in found if line]


def split_rows(seen: Seen) -> list[dict[str, Any]]:
    """A row a split: its rows, their share, and the answers in it."""
    total = sum(profile.rows for profile in seen.profiles.values())
    return [
        {"name": split, "rows": profile.rows, "share": profile.rows / total, "answers": _answers_of(seen, profile)}
        for split, profile in seen.profiles.items()
    ]


def card(name: str, seen: Seen, anchor: str) -> dict[str, Any]:
    """One column: facts, a drawing, and where it stands."""
    column = seen.train.columns[name]
    moved = seen.moved(name)
    return {
        "name": name,
        "anchor": anchor,
        "type": column.type,
        "target": name == seen.problem.answer,
        "missing": column.nulls / column.rows if column.rows else 0.0,
        "distinct": min(column.num_distinct, column.values),
        "strength": None if math.isnan(seen.strength(name)) else seen.strength(name),
        "bar": svg.share_bar(np.nan_to_num(seen.strength(name)), f"association of {name}"),
        "facts": facts_of(column),
        "moved": {"split": moved[0], "psi": moved[1].value, "alert": moved[1].alert} if moved else None,
        "drawing": draw(name, column, seen, moved[0] if moved else None),
    }


def facts_of(column: ColumnProfile) -> list[tuple[str, str]]:
    """Names and values of a column's numbers, or its most frequent values with their shares."""
    if not column.values:
        return []
    if column.type == "timestamp":
        return [("first", svg.day_of(column.minimum)), ("median", svg.day_of(column.quantile(0.5))), ("last", svg.day_of(column.maximum))]
    if column.is_number:
        zero = np.zeros(1)
        distribution = column.distribution()
        assert distribution is not None, "a column with values"
        at_zero = float(distribution.up_to(zero)[0] - distribution.below(zero)[0])
        ends = [("mean", column.mean), ("std", column.std), ("min", column.minimum), ("max", column.maximum)]
        shares = (5, 25, 50, 75, 95)
        values = distribution.quantiles(np.array(shares) / 100)
        quantiles = [(f"{share} %", float(value)) for share, value in zip(shares, values, strict=True)]
        first, second = ([(name, short(value)) for name, value in items] for items in (ends, quantiles))
        return [*first, ("zero", percent(at_zero or None)), *second]
    return []


def short(value: float) -> str:
    """A number of about four digits."""
    if not math.isfinite(value) or abs(value) >= 1e7 or 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    return whole(value) if value == round(value) else number(value, 3)


def draw(name: str, column: ColumnProfile, seen: Seen, moved: str | None) -> Markup | None:
    """The drawing of a column; `moved` names the split that is drawn beside training. None without values."""
    if not column.values:
        return None
    answers = seen.association.answers(name) if name in seen.association.tables else []
    other = seen.profiles[moved].columns.get(name) if moved else None
    overall = None if seen.problem.answer is None or seen.problem.task == "multiclass" else _mean_answer(seen)
    if not column.is_number:
        return svg.category_plot(
            f"{name}: most frequent values{' and the target' if answers else ''}", category_rows(column, other, answers), overall
        )
    distribution = column.distribution()
    assert distribution is not None, "a column with values"
    edges = histogram_edges(column, distribution)
    beside = other.distribution() if other else None
    missing = next((item for item in answers if item.of == "missing"), None)
    known = [item for item in answers if item.of == "values"]
    return svg.numeric_plot(
        f"{name}: histogram{' and the target' if answers else ''}",
        svg.Bins(edges, shares(distribution, edges)),
        svg.Bins(edges, shares(beside, edges)) if beside else None,
        stretches(known, column, distribution, seen.association.outline.edges.get(name, ())),
        missing,
        overall,
        clock=column.type == "timestamp",
        rate=seen.problem.task in ("binary", "anomaly"),
    )


def histogram_edges(column: ColumnProfile, distribution: Distribution) -> Floats:
    """Edges of equal bins: one a whole number where those are few; the ends are cut off where they are far away."""
    low, high = column.minimum, column.maximum
    if column.type == "int" and high - low <= MAX_WHOLE:
        return np.arange(math.floor(low), math.floor(high) + 2, dtype=np.float64) - 0.5
    inner_low, inner_high = (float(value) for value in distribution.quantiles(np.array([TAIL, 1 - TAIL])))
    spread = inner_high - inner_low
    if spread > 0:
        low, high = max(low, inner_low - spread / 2), min(high, inner_high + spread / 2)
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, NUM_BARS + 1)


def shares(distribution: Distribution, edges: Floats) -> Floats:
    """Share of the values in each bin, both ends of the first included."""
    reached = distribution.up_to(edges)
    reached[0] = distribution.below(edges[:1])[0]
    return np.asarray(np.diff(reached))


def stretches(known: Sequence[Answers], column: ColumnProfile, distribution: Distribution, edges: Sequence[float]) -> list[svg.Stretch]:
    """Where the bins with answers begin and end. Bins that hold one value each are drawn around it."""
    values = distribution.x
    ends = [min(float(item.bin), column.maximum) for item in known]
    if len(edges) == len(values) - 1 and np.array_equal(values[:-1], edges):
        half = float(np.diff(values).min()) / 2 if len(values) > 1 else 0.5
        return [svg.Stretch(end - half, end + half, item) for end, item in zip(ends, known, strict=True)]
    starts = [column.minimum, *edges]
    return [svg.Stretch(starts[int(np.searchsorted(edges, float(item.bin)))], end, item) for end, item in zip(ends, known, strict=True)]


def category_rows(
    column: ColumnProfile, other: ColumnProfile | None, answers: Sequence[Answers]
) -> list[tuple[str, float, float | None, Answers | None]]:
    """The most frequent values, all others together, and missing ones: name, share of the rows, share in the other split, target."""
    counts = column.counts()
    beside = other.counts() if other else {}
    by_value = {item.bin: item for item in answers if item.of == "values"}
    rows: list[tuple[str, float, float | None, Answers | None]] = []
    shown = list(counts)[: SHOWN_CATEGORIES if len(counts) > SHOWN_CATEGORIES + 1 else SHOWN_CATEGORIES + 1]
    for value in shown:
        share = beside.get(value, 0) / other.rows if other and other.rows else None
        rows.append((value or "(empty)", counts[value] / column.rows, share, by_value.get(value)))
    rest = column.values - sum(counts[value] for value in shown)
    if len(counts) > len(shown):
        rows.append((f"{max(column.num_distinct - len(shown), 1):,} others", max(rest, 0) / column.rows, None, None))
    if column.nulls:
        rows.append(("no value", column.nulls / column.rows, None, next((item for item in answers if item.of == "missing"), None)))
    return rows


def missing_rows(seen: Seen) -> list[dict[str, Any]]:
    """A row a column with missing values in any split: their share by split, most first."""
    rows = []
    for name in seen.train.columns:
        parts = [profile.columns.get(name) for profile in seen.profiles.values()]
        found = [part.nulls / part.rows if part and part.rows else 0.0 for part in parts]
        if any(found):
            cells = [
                {"share": share, "bar": svg.share_bar(share, f"{name}, {split}")} for split, share in zip(seen.profiles, found, strict=True)
            ]
            rows.append({"name": name, "cells": cells, "most": max(found)})
    return sorted(rows, key=lambda row: -row["most"])


def correlation(association: Association) -> dict[str, Any]:
    """The heat map of the columns that are most correlated, in an order that puts similar ones side by side, and the strongest pairs."""
    names, r, rows = association.correlations()
    if len(names) < 2:
        return {"map": None, "pairs": [], "left_out": 0}
    pairs = _pairs(names, r, rows)
    chosen = list(dict.fromkeys(name for a, b, *_ in pairs for name in (a, b)))[:SHOWN_CORRELATED]
    if len(chosen) < 2:
        return {"map": None, "pairs": [], "left_out": len(names)}
    places = _side_by_side([names.index(name) for name in chosen], r)
    block = np.ix_(places, places)
    shown = [{"a": a, "b": b, "r": value, "rows": count} for a, b, value, count in pairs[:SHOWN_PAIRS] if abs(value) >= 0.1]
    return {"map": svg.heat_map([names[i] for i in places], r[block], rows[block]), "pairs": shown, "left_out": len(names) - len(places)}


def drift_rows(seen: Seen, ordered: Sequence[str]) -> list[dict[str, Any]]:
    """A row a column: the index in each held-out split, largest first, with the note of the largest."""
    rows = []
    for name in ordered:
        findings = [items.get(name) for items in seen.drifts.values()]
        worst = max((item for item in findings if item), key=lambda item: item.value, default=None)
        if worst:
            rows.append(
                {
                    "name": name,
                    "findings": findings,
                    "note": worst.note,
                    "alert": any(item.alert for item in findings if item),
                    "most": worst.value,
                }
            )
    return sorted(rows, key=lambda row: (-row["alert"], -row["most"]))  # fmt: skip


# ---------------------------------------------------------------------- pieces


def _named(one: str, several: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"{listed} {one if len(names) == 1 else several}."


def _mean_answer(seen: Seen) -> float:
    """Mean of the target in training, or its positive rate."""
    column, target = seen.train.columns[str(seen.problem.answer)], seen.association.outline.target
    return column.mean if target.task == "regression" else target.class_shares(column)[1]


def _answers_of(seen: Seen, profile: Profile) -> str:
    target = seen.association.outline.target
    if target.column is None:
        return ""
    column = profile.columns.get(target.column)
    if column is None or not column.values:
        return "no answers"
    if target.task == "regression":
        return f"mean {short(column.mean)}, std {short(column.std)}"
    found = target.class_shares(column)
    if target.task != "multiclass":
        positive = f"{target.column} {target.classes[1]}" if target.positive_above is not None else target.classes[1]
        return f"{positive} in {percent(found[1])}"
    ordered = sorted(zip(target.classes, found, strict=True), key=lambda item: -item[1])
    return ", ".join(f"{name} {percent(share)}" for name, share in ordered[:3]) + (", ..." if len(ordered) > 3 else "")


def _legend(association: Association) -> Markup | None:
    outline = association.outline
    if outline.target.task != "multiclass":
        return None
    names = [outline.target.classes[index] for index in outline.classes]
    return svg.class_legend([*names, "others"] if len(outline.target.classes) > len(names) else names)


def _pairs(names: Sequence[str], r: Floats, rows: Floats) -> list[tuple[str, str, float, float]]:
    """Pairs of columns with a correlation, strongest first."""
    first, second = np.triu_indices(len(names), 1)
    values = r[first, second]
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(-np.abs(values[known]), kind="stable")]
    return [(names[first[k]], names[second[k]], float(values[k]), float(rows[first[k], second[k]])) for k in order]


def _side_by_side(places: list[int], r: Floats) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = 1 - np.abs(np.nan_to_num(r[np.ix_(places, places)]))
    np.fill_diagonal(distance, 0.0)
    order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))
    return [places[i] for i in order]


def _facts(seen: Seen, snapshot: Snapshot) -> dict[str, str]:
    manifest = seen.manifest
    rule = " ".join(f"{key}={value}" for key, value in manifest["split"].items() if value is not None)
    source = manifest["source"] if isinstance(manifest["source"], list) else [manifest["source"]]
    files = [str(item.get("file", item)) if isinstance(item, dict) else str(item) for item in source]
    return {
        "snapshot": str(snapshot.path),
        "digest": snapshot.digest,
        "made": str(manifest["created"]),
        "source": ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else ""),
        "split rule": rule,
        "rows without an answer": whole(manifest["unlabelled"]),
        "quarantined": whole(snapshot.quarantined),
    }
