"""Drawings of the profile page: small inline SVG by plain functions, a few kilobytes a column, in the page's colours.

Every text is escaped. Colours and sizes are classes, whose look the page's template holds. Positions are in pixels of a view box that
is as wide as a card, so that letters keep their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from raymlp.data.association import Answers
from raymlp.runtime.page import number, tick, whole

Floats = NDArray[np.float64]
WIDTH, LEFT, RIGHT = 320.0, 36.0, 8.0
MISSING_WIDTH = 30.0
"""Room at the right end for the rows without a value."""
HISTOGRAM, GAP, ANSWERS = 78.0, 22.0, 62.0
ROW = 19.0
"""Height of one category."""


@dataclass(frozen=True)
class Scale:
    """A straight line from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        width = (self.high - self.low) or 1.0
        share = min(1.0, max(0.0, (value - self.low) / width))
        return round(self.start + share * (self.end - self.start), 1)


@dataclass(frozen=True)
class Bins:
    """A histogram: H + 1 edges and the share of the values in each of its H bins."""

    edges: Floats
    shares: Floats


@dataclass(frozen=True)
class Stretch:
    """The target between two values of a column."""

    low: float
    high: float
    answers: Answers


def numeric_plot(
    title: str,
    bins: Bins,
    moved: Bins | None,
    stretches: Sequence[Stretch],
    missing: Answers | None,
    overall: float | None,
    *,
    clock: bool,
    rate: bool,
) -> Markup:
    """A histogram and, below it on the same axis, the target. `overall` is the mean answer; None draws class shares instead.

    `moved` is the same column in another split, drawn as a line. With `rate` the answers are shares, labelled as percentages.
    """
    right = WIDTH - RIGHT - (MISSING_WIDTH if missing else 0)
    across = Scale(float(bins.edges[0]), float(bins.edges[-1]), LEFT, right)
    highest = max(float(bins.shares.max()), float(moved.shares.max()) if moved else 0.0) or 1.0
    up = Scale(0.0, highest, HISTOGRAM, 8)
    parts = [_line("grid", LEFT, right, up(highest)), _text("y", LEFT - 4, up(highest) + 3, percent_of(highest))]
    parts.append(_bars(bins, across, up))
    if moved:
        parts.append(_outline(moved, across, up))
    parts.append(_line("axis", LEFT, right, HISTOGRAM))
    parts.append(_ticks(across, HISTOGRAM + 13, clock))
    if not stretches:
        return _svg(title, WIDTH, HISTOGRAM + GAP, parts)
    top = HISTOGRAM + GAP
    known = [(stretch.answers, across(stretch.low), across(stretch.high)) for stretch in stretches if across.high >= stretch.low]
    known = [item for item in known if item[2] > item[1]]
    if missing:
        known.append((missing, right + 9, WIDTH - RIGHT))
        parts.append(_text("x", (right + 9 + WIDTH - RIGHT) / 2, HISTOGRAM + 13, "none"))
    parts.append(_class_stacks(known, top) if overall is None else _means(known, overall, top, percent_of if rate else tick_of))
    return _svg(title, WIDTH, top + ANSWERS + 4, parts)


def category_plot(title: str, rows: Sequence[tuple[str, float, float | None, Answers | None]], overall: float | None) -> Markup:
    """A line a category: its name, its share of the rows as a bar (with a mark where another split is), and the target."""
    highest = max([share for _, share, _, _ in rows] + [other or 0.0 for _, _, other, _ in rows]) or 1.0
    across = Scale(0.0, highest, 112, 192)
    answers = [item for *_, item in rows if item]
    beside = _mean_scale(answers, overall or 0.0, 250, WIDTH - RIGHT)
    parts = []
    if overall is not None and answers:
        parts.append(Markup('<line class="overall" x1="{0}" x2="{0}" y1="2" y2="{1}"/>').format(beside(overall), len(rows) * ROW))
    for place, (name, share, other, item) in enumerate(rows):
        parts.append(_category(name, share, other, item, place * ROW, across, beside, overall))
    return _svg(title, WIDTH, len(rows) * ROW + 4, parts)


def heat_map(names: Sequence[str], r: Floats, rows: Floats) -> Markup:
    """Correlations as a square of coloured cells, P by P, with their value where it is large enough to matter."""
    cell, left, top = 30.0, 128.0, 96.0
    parts = []
    for i, name in enumerate(names):
        parts.append(_text("row", left - 6, top + i * cell + cell / 2 + 3.5, shorten(name, 20)))
        x = left + i * cell + cell / 2 + 3
        parts.append(
            Markup('<text class="column" transform="translate({} {}) rotate(-50)">{}</text>').format(
                round(x, 1), top - 6, shorten(name, 17)
            )
        )
        for j, other in enumerate(names):
            parts.append(_cell(name, other, float(r[i, j]), float(rows[i, j]), left + j * cell, top + i * cell, cell))
    size = len(names) * cell
    return _svg("Correlation of the numeric columns", left + size + 60, top + size + 4, parts, fixed=True)


def share_bar(share: float, label: str) -> Markup:
    """A share in [0, 1] as a bar inside a table."""
    inside = Markup('<rect class="track" width="100" height="8" rx="4"/><rect class="fill" width="{}" height="8" rx="4"/>')
    return Markup('<svg class="share" viewBox="0 0 100 8" role="img" aria-label="{}">{}</svg>').format(
        label, inside.format(round(100 * min(1.0, max(0.0, share)), 1))
    )


def shorten(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def percent_of(share: float) -> str:
    """A short percentage beside an axis: `12 %`, `3.4 %`, `0.05 %`."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 0.95 else f"{value:.2g} %"


def day_of(seconds: float) -> str:
    """The day of a moment in seconds since 1970, UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return tick(seconds)


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, both included where they are round."""
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


# ---------------------------------------------------------------------- pieces


def _svg(title: str, width: float, height: float, parts: Sequence[Markup], *, fixed: bool = False) -> Markup:
    size = Markup(' style="width:{}px"').format(round(width)) if fixed else Markup("")
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}"{}>{}</svg>').format(
        round(width), round(height), title, size, Markup("").join(parts)
    )


def _text(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, round(x, 1), round(y, 1), words)


def _line(kind: str, x1: float, x2: float, y: float) -> Markup:
    return Markup('<line class="{}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(kind, x1, x2, y=y)


def _path(kind: str, points: Sequence[str]) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(points))


def _bars(bins: Bins, across: Scale, up: Scale) -> Markup:
    points = []
    for start, end, share in zip(bins.edges[:-1], bins.edges[1:], bins.shares, strict=True):
        if share > 0:
            x, y = across(start), min(up(share), HISTOGRAM - 0.7)
            width = max(across(end) - x - 0.8, 0.8)
            points.append(f"M{x:g} {HISTOGRAM:g}V{y:g}h{width:.1f}V{HISTOGRAM:g}z")
    return _path("bars", points)


def _outline(bins: Bins, across: Scale, up: Scale) -> Markup:
    points = [f"M{across(bins.edges[0]):g} {HISTOGRAM:g}"]
    for end, share in zip(bins.edges[1:], bins.shares, strict=True):
        points.append(f"V{up(share):g}H{across(end):g}")
    return _path("moved", [*points, f"V{HISTOGRAM:g}"])


def _ticks(across: Scale, y: float, clock: bool) -> Markup:
    if clock:
        ends = (("start", across.low, across.start), ("end", across.high, across.end))
        return Markup("").join(_text(f"x {kind}", x, y, day_of(value)) for kind, value, x in ends)
    last = across.end - (14 if across.end < WIDTH - RIGHT else 0)
    return Markup("").join(
        _text("x", across(value), y, tick(value)) for value in round_ticks(across.low, across.high) if across(value) <= last
    )


def _mean_scale(items: Sequence[Answers], overall: float, start: float, end: float) -> Scale:
    """Room for all means and, where it is not too wide, for their intervals."""
    means = [item.mean for item in items] + [overall]
    low, high = min(means), max(means)
    spare = 0.35 * (high - low) or abs(high) or 1.0
    low = max([min([item.low for item in items] + [low]), low - spare])
    high = min([max([item.high for item in items] + [high]), high + spare])
    return Scale(low, high, start, end) if high > low else Scale(low - spare, high + spare, start, end)


def _means(known: Sequence[tuple[Answers, float, float]], overall: float, top: float, label_of: Callable[[float], str]) -> Markup:
    if not known:
        return Markup("")
    up = _mean_scale([item for item, _, _ in known], overall, top + ANSWERS, top)
    parts = [
        _text("y", LEFT - 4, up(up.high) + 6, label_of(up.high)),
        _text("y", LEFT - 4, up(up.low), label_of(up.low)),
        _line("overall", LEFT, WIDTH - RIGHT, up(overall)),
    ]
    for item, x1, x2 in known:
        high, low, y = up(item.high), up(item.low), up(item.mean)
        label = f"{number(item.mean)} ({whole(item.rows)} rows)"
        parts.append(
            Markup(
                '<g><title>{}</title><rect class="band" x="{}" y="{}" width="{}" height="{}"/>'
                '<line class="mean" x1="{}" x2="{}" y1="{y}" y2="{y}"/></g>'
            ).format(label, x1, high, round(x2 - x1, 1), round(max(low - high, 0.5), 1), x1, x2, y=y)
        )
    return Markup("").join(parts)


def tick_of(value: float) -> str:
    """A number of about three digits."""
    return tick(float(f"{value:.2g}"))


def _class_stacks(known: Sequence[tuple[Answers, float, float]], top: float) -> Markup:
    parts = [_stack(item, x1, top, x2 - x1, ANSWERS, upright=True) for item, x1, x2 in known]
    return Markup("").join([_text("y", LEFT - 4, top + 8, "100 %"), _text("y", LEFT - 4, top + ANSWERS, "0 %"), *parts])


def _stack(item: Answers, x: float, y: float, width: float, height: float, *, upright: bool) -> Markup:
    """The classes' shares of one bin as pieces of a bar, from the bottom up or from left to right."""
    pieces = []
    at = 0.0
    for place, share in enumerate(item.shares):
        if share > 0:
            box = (x, y + height * (1 - at - share), width, height * share) if upright else (x + width * at, y, width * share, height)
            values = [round(value, 1) for value in box]
            pieces.append(Markup('<rect class="c{}" x="{}" y="{}" width="{}" height="{}"/>').format(place, *values))
        at += share
    return Markup("<g><title>{} rows</title>{}</g>").format(whole(item.rows), Markup("").join(pieces))


def _category(
    name: str, share: float, other: float | None, item: Answers | None, y: float, across: Scale, beside: Scale, overall: float | None
) -> Markup:
    middle = y + 11
    parts = [
        Markup('<text class="name" x="0" y="{}">{}<title>{}</title></text>').format(middle + 3.5, shorten(name, 14), name),
        Markup('<rect class="bars" x="112" y="{}" width="{}" height="10"/>').format(middle - 5, round(max(across(share) - 112, 0.8), 1)),
        _text("y value", 234, middle + 3.5, percent_of(share)),
    ]
    if other is not None:
        parts.append(Markup('<path class="moved" d="M{} {}v14"/>').format(across(other), middle - 7))
    if item and overall is None:
        parts.append(_stack(item, 246, middle - 5, WIDTH - RIGHT - 246, 10, upright=False))
    elif item:
        label = f"{number(item.mean)} ({whole(item.rows)} rows)"
        parts.append(
            Markup(
                '<g><title>{}</title><line class="interval" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                '<circle class="dot" cx="{}" cy="{y}" r="3"/></g>'
            ).format(label, beside(item.low), beside(item.high), beside(item.mean), y=middle)
        )
    return Markup("").join(parts)


def _cell(name: str, other: str, r: float, rows: float, x: float, y: float, size: float) -> Markup:
    if not math.isfinite(r):
        return Markup('<rect class="empty" x="{}" y="{}" width="{s}" height="{s}"/>').format(x, y, s=size - 1)
    kind = "plus" if r >= 0 else "minus"
    words = f"{r:.2f}".replace("0.", ".") if abs(r) < 0.995 else f"{r:.0f}"
    shown = Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        "cell strong" if abs(r) >= 0.6 else "cell", x + (size - 1) / 2, y + size / 2 + 3, words
    )
    return Markup(
        '<g><title>{} and {}: {:.3f} ({} rows)</title><rect class="{}" x="{}" y="{}" width="{s}" height="{s}" fill-opacity="{}"/>{}</g>'
    ).format(name, other, r, whole(rows), kind, x, y, round(abs(r), 2), shown if abs(r) >= 0.095 else "", s=size - 1)


def class_legend(names: Sequence[str]) -> Markup:
    """The colours of the classes, in order."""
    item = Markup('<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="c{}" width="10" height="10" rx="2"/></svg>{}</li>')
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(item.format(place, name) for place, name in enumerate(names)))
