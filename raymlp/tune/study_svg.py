"""Drawings of the study page: inline SVG by plain functions, in the page's colours. Every text is escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raymlp.config.tune import Choice, Space
from raymlp.runtime.page import number
from raymlp.tune.importance import place
from raymlp.tune.trials import Trial, lower_is_better, ranked

WIDTH, TOP, BOTTOM, GAP = 1040.0, 58.0, 300.0, 24.0
"""Pixels of the view box; GAP lies between an axis and the mark of trials that did not draw its setting."""
STEP = 112.0
"""Least pixels between two axes: with many settings the drawing grows wider, and its frame is scrolled."""
SHOWN_BEST = 3
"""Trials that are drawn in the strong colour."""
SIDE = 70.0


def parallel_coordinates(trials: Sequence[Trial], space: Space, objective: str) -> Markup:
    """A line a trial through an axis a setting, to the objective at the right: better is further up."""
    order = ranked(trials, objective)
    names = [*space, objective]
    width = max(WIDTH, 2 * SIDE + STEP * (len(names) - 1))
    step = (width - 2 * SIDE) / max(1, len(names) - 1)
    across = {name: SIDE + step * index for index, name in enumerate(names)}
    values = [trial.values[objective] for trial in order]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    parts = []
    for rank, trial in reversed(list(enumerate(order))):
        heights = {key: _height(space[key], trial.draw[key]) if key in trial.draw else BOTTOM + GAP for key in space}
        share = (trial.values[objective] - low) / ((high - low) or 1.0)
        heights[objective] = TOP + (share if lower_is_better(objective) else 1 - share) * (BOTTOM - TOP)
        points = " ".join(f"{across[name]:.1f},{heights[name]:.1f}" for name in names)
        kind = "best" if rank < SHOWN_BEST else trial.state
        words = f"trial {trial.number}: {objective} {number(trial.values[objective])}, {trial.epochs} epochs"
        parts.append(Markup('<polyline class="trial {}" points="{}"><title>{}</title></polyline>').format(kind, points, words))
    for index, name in enumerate(names):
        parts.append(_axis(name, across[name], _ends(name, space, low, high), 14 if index % 2 else 30))
        if name in space and space[name].when:
            parts.append(_text("x", across[name], BOTTOM + GAP + 14, "not drawn"))
    size = Markup('viewBox="0 0 {w} {}" style="min-width: {}px"').format(int(BOTTOM + GAP + 22), int(0.85 * width), w=int(width))
    words = f"Settings of {len(order)} trials and their {objective}"
    return Markup('<svg class="plot coordinates" {} role="img" aria-label="{}">{}</svg>').format(size, words, Markup("").join(parts))


def trade_off(trials: Sequence[Trial], objectives: Sequence[str], front: Collection[int]) -> Markup:
    """A point a trial by its first two objectives, the first upwards, where better is further up, and the second to the right. Those of
    `front` (numbers of trials) are marked and, where there are no more objectives, joined by a line."""
    upwards, across = objectives[:2]
    known = [trial for trial in trials if all(math.isfinite(trial.values.get(name, math.nan)) for name in (upwards, across))]
    left, right = SIDE + 20, WIDTH - SIDE
    ends = {name: (min(trial.values[name] for trial in known), max(trial.values[name] for trial in known)) for name in (upwards, across)}

    def share(trial: Trial, name: str) -> float:
        low, high = ends[name]
        return (trial.values[name] - low) / ((high - low) or 1.0)

    def place(trial: Trial) -> tuple[float, float]:
        height = share(trial, upwards)
        return left + share(trial, across) * (right - left), TOP + (height if lower_is_better(upwards) else 1 - height) * (BOTTOM - TOP)

    best = sorted(place(trial) for trial in known if trial.number in front)
    parts = [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(left, right, y=BOTTOM + GAP / 2),
        Markup('<line class="axis" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(TOP, BOTTOM, x=left - GAP / 2),
    ]
    if len(objectives) == 2:
        parts.append(Markup('<polyline class="trial best" points="{}"/>').format(" ".join(f"{x:.1f},{y:.1f}" for x, y in best)))
    for trial in known:
        x, y = place(trial)
        words = f"trial {trial.number}: " + ", ".join(f"{name} {number(trial.values[name])}" for name in (upwards, across))
        kind = "front" if trial.number in front else ""
        parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}</title></circle>').format(kind, x, y, words))
    top, bottom = ends[upwards] if lower_is_better(upwards) else ends[upwards][::-1]
    parts += [
        _text("y", left - GAP, TOP + 4, number(top)),
        _text("y", left - GAP, BOTTOM + 4, number(bottom)),
        _text("x", left, BOTTOM + GAP + 8, number(ends[across][0])),
        _text("x", right, BOTTOM + GAP + 8, number(ends[across][1])),
        _text("name", left - GAP / 2, TOP - 18, f"{upwards}, better upwards"),
        _text("x name", (left + right) / 2, BOTTOM + GAP + 8, f"{across}, better to the {'left' if lower_is_better(across) else 'right'}"),
    ]
    return Markup('<svg class="plot" viewBox="0 24 {} {}" role="img" aria-label="{}">{}</svg>').format(
        int(WIDTH), int(BOTTOM + GAP - 4), f"{upwards} and {across} of {len(known)} trials", Markup("").join(parts)
    )


def importance_bars(shares: Mapping[str, float]) -> Markup:
    """A bar a setting."""
    parts = []
    largest = max(shares.values())
    for index, (name, share) in enumerate(shares.items()):
        y = 24.0 * index
        parts.append(_text("name", 0, y + 15, name))
        parts.append(_bar("track", y + 5, 700.0))
        parts.append(_bar("fill", y + 5, 700 * share / largest))
        parts.append(_text("y", WIDTH - 60, y + 15, f"{100 * share:.0f} %"))
    return Markup('<svg class="plot importance" viewBox="0 0 {} {}" role="img" aria-label="Importance of the settings">{}</svg>').format(
        int(WIDTH), int(24 * len(shares) + 4), Markup("").join(parts)
    )


def _bar(kind: str, y: float, width: float) -> Markup:
    return Markup('<rect class="{}" x="230" y="{}" width="{}" height="12" rx="6"/>').format(kind, y, round(width, 1))


def _height(domain: Any, value: Any) -> float:
    if isinstance(domain, Choice):
        texts = _texts(domain)
        share = texts.index(json.dumps(value)) / max(1, len(texts) - 1) if json.dumps(value) in texts else 0.5
    else:
        share = place(domain, value)
    return BOTTOM - share * (BOTTOM - TOP)


def _texts(domain: Choice) -> list[str]:
    """The choices from the foot of the axis up: numbers by size, others as they were given."""
    values = list(domain.values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        values.sort()
    return [json.dumps(list(value) if isinstance(value, tuple) else value) for value in values]


def _ends(name: str, space: Space, low: float, high: float) -> list[tuple[float, str]]:
    """Labels of an axis by height."""
    if name not in space:
        best, worst = (low, high) if lower_is_better(name) else (high, low)
        return [(TOP, number(best)), (BOTTOM, number(worst))]
    domain = space[name]
    if isinstance(domain, Choice):
        texts = _texts(domain)
        each = (BOTTOM - TOP) / max(1, len(texts) - 1)
        return [(BOTTOM - each * index, text.strip('"')) for index, text in enumerate(texts)]
    return [(BOTTOM, _short(domain.low)), (TOP, _short(domain.high))]


def _short(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e") if value and abs(math.log10(abs(value))) >= 3 else f"{value:g}"


def _axis(name: str, x: float, labels: Sequence[tuple[float, str]], y: float) -> Markup:
    parts = [
        Markup('<line class="axis" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(TOP, BOTTOM, x=round(x, 1)),
        _text("x name", x, y, name),
    ]
    parts += [_text("label", x + 5, height + (11 if height < BOTTOM else -4), words) for height, words in labels]
    return Markup("").join(parts)


def _text(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, round(x, 1), round(y, 1), words)
