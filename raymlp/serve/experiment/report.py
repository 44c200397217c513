"""The report of an experiment: one HTML file with everything in it, and the same numbers as JSON beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from raymlp.core.files import Somewhere, make_folder, to_json, write_text
from raymlp.runtime.page import BAD, FAINT, GOOD, INK, MODEL, OTHER, axes, drawing, plain, render
from raymlp.serve.experiment.analysis import Ratio, Reading, check_ratio, readings
from raymlp.serve.experiment.observations import Observations, moments
from raymlp.serve.experiment.record import Record
from raymlp.serve.experiment.verdict import Outcome, judge

TEMPLATE = Path(__file__).with_name("report.html.j2")
POINTS = 30
"""Moments at which the intervals are drawn."""
COLOURS = (MODEL, BAD, GOOD, INK, OTHER)
"""Of the arms beside the control, in turn."""
STYLES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)), "-")


@dataclass(frozen=True)
class Analysis:
    """All that is said of an experiment at one moment."""

    record: Record
    seen: Observations
    readings: list[list[Reading]]
    ratio: Ratio
    outcome: Outcome

    @classmethod
    def of(cls, record: Record, seen: Observations) -> Analysis:
        """From what was seen."""
        found, ratio = readings(seen, record.settings), check_ratio(seen)
        return cls(record, seen, found, ratio, judge(found, ratio, record.settings, record.arms))


def write_report(analysis: Analysis, *, folder: Somewhere) -> Somewhere:
    """Write `experiment.html` and `experiment.json` to `folder`; the page."""
    record, seen = analysis.record, analysis.seen
    page = render(
        TEMPLATE,
        record=record,
        settings=record.settings,
        analysis=analysis,
        verdicts=[{"arm": record.arms[verdict.arm], "verdict": verdict} for verdict in analysis.outcome.verdicts],
        choice=None if analysis.outcome.choice is None else record.arms[analysis.outcome.choice],
        arms=[
            {"name": arm, "share": share, "requests": requests, "num_keys": keys, "expected": wanted}
            for arm, share, requests, keys, wanted in zip(
                record.arms,
                record.history[-1 if record.is_open else -2].weights,
                seen.requests,
                seen.keys,
                analysis.ratio.expected,
                strict=True,
            )
        ],
        plots=plots(record, seen),
        shares=_shares(record, seen),
        history=[{"time": _moment(event.time), "event": event} for event in record.history],
        adaptive=record.settings.bandit is not None,
        alphas=[record.settings.alpha_of(place) for place in range(len(record.settings.metrics))],
        now=_moment(datetime.now(UTC).timestamp()),
    )
    make_folder(folder)
    write_text(folder / "experiment.html", page)
    write_text(folder / "experiment.json", to_json(as_plain(analysis)))
    return folder / "experiment.html"


def as_plain(analysis: Analysis) -> dict[str, Any]:
    """The numbers of the report as plain values."""
    record = analysis.record
    return {
        "name": record.name,
        "salt": record.salt,
        "state": record.state,
        "arms": list(record.arms),
        "weights": [list(event.weights) for event in record.history],
        "requests": list(analysis.seen.requests),
        "ratio": asdict(analysis.ratio),
        "readings": [asdict(reading) | {"finding": reading.finding} for row in analysis.readings for reading in row],
        "verdicts": [asdict(verdict) | {"version": record.arms[verdict.arm]} for verdict in analysis.outcome.verdicts],
        "choice": None if analysis.outcome.choice is None else record.arms[analysis.outcome.choice],
        "reason": analysis.outcome.reason,
        "settings": record.settings.model_dump(mode="json"),
    }


def plots(record: Record, seen: Observations) -> list[dict[str, Any]]:
    """For each metric the difference of every arm with its interval, over time."""
    times = moments(seen.failed.time, POINTS)
    found = [readings(seen.until(time), record.settings) for time in times]
    unit, size = _unit(times[-1] - record.started if times else 0.0)
    x = np.array([(time - record.started) / size for time in times])
    return [_plot(record, [look[place] for look in found], x, unit) for place in range(len(record.settings.metrics))]


def _plot(record: Record, looks: Sequence[Sequence[Reading]], x: Any, unit: str) -> dict[str, Any]:
    figure, ax = axes(width=6.4, height=3.2)
    ax.axhline(0, color=FAINT, linewidth=1)
    title, kind, note = "", "", "Nothing is known yet."
    reach = [0.0]
    for place in range(len(looks[-1]) if looks else 0):
        last = looks[-1][place]
        title, kind = last.metric, "higher is better" if last.sign > 0 else "lower is better"
        known = [i for i, look in enumerate(looks) if look[place].effect.is_known]
        colour, label = COLOURS[place % len(COLOURS)], plain(record.arms[place + 1])
        if known:
            low, middle, high = (np.array([getattr(looks[i][place].effect, name) for i in known]) for name in ("low", "difference", "high"))
            ax.fill_between(x[known], low, high, color=colour, alpha=0.16, linewidth=0)
            ax.plot(x[known], middle, color=colour, linewidth=1.8, linestyle=STYLES[place % len(STYLES)], label=label)
            for edge in (low, high):
                ax.plot(x[known], edge, color=colour, linewidth=0.8, alpha=0.7)
            reach += [abs(float(low[-1])), abs(float(high[-1]))]
            note = f"Arm minus {record.arms[0]} ({last.effect.control:.4g}); {kind}. The band holds at every moment at once."
        if math.isfinite(last.margin):
            reach.append(1.2 * last.margin)
    margin = looks[-1][0].margin if looks else math.nan
    if math.isfinite(margin):
        ax.axhspan(-margin, margin, color=OTHER, alpha=0.13, linewidth=0)
    if max(reach) > 0:
        ax.set_ylim(-1.8 * max(reach), 1.8 * max(reach))
    ax.set_xlim(0, float(x[-1]) if len(x) else 1)
    ax.set_xlabel(unit)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=3, loc="upper right")
    return {"title": title, "note": note, "svg": drawing(figure, title=f"{title}: difference from the control over time")}


def _shares(record: Record, seen: Observations) -> Any:
    """Shares of traffic by the weights, and shares of the keys that have come."""
    times = moments(seen.failed.time, POINTS)
    end = times[-1] if times else record.started + 1
    unit, size = _unit(end - record.started)
    figure, ax = axes(width=6.4, height=2.8)
    changes = [event for event in record.history if event.what != "stop"]
    edges = np.array([(event.time - record.started) / size for event in changes] + [(end - record.started) / size])
    weights = np.array([event.weights for event in changes])
    tops = np.cumsum(np.concatenate([weights, weights[-1:]]), axis=1)
    counted = np.array([np.cumsum(np.bincount(seen.failed.until(time).arm, minlength=len(record.arms))) for time in times[1:]])
    for arm, name in enumerate(record.arms):
        colour = OTHER if arm == 0 else COLOURS[(arm - 1) % len(COLOURS)]
        bottom = tops[:, arm - 1] if arm else np.zeros(len(tops))
        ax.fill_between(edges, bottom, tops[:, arm], step="post", color=colour, alpha=0.45, linewidth=0, label=plain(name))
        if len(counted) and arm < len(record.arms) - 1:
            moment = [(time - record.started) / size for time in times[1:]]
            ax.plot(moment, counted[:, arm] / counted[:, -1], color=INK, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_ylim(0, 1)
    ax.set_xlim(0, float(edges[-1]) or 1.0)
    ax.set_xlabel(unit)
    ax.set_ylabel("share")
    ax.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=4, loc="upper right")
    return drawing(figure, title="Share of traffic of each arm over time")


def _unit(seconds: float) -> tuple[str, float]:
    for name, size in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{name} since the start", size
    return "seconds since the start", 1.0


def _moment(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"
