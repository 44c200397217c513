"""The monitoring report: one HTML file with everything in it, and the same numbers as JSON beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raymlp.config.monitor import Monitor
from raymlp.core.files import Place, to_json, write_text
from raymlp.core.records import Finding, MonitorReport, as_plain
from raymlp.data.distribution import Distribution
from raymlp.data.profile import ColumnProfile, Profile
from raymlp.runtime.page import FAINT, INK, MODEL, OTHER, axes, drawing, plain, render

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_PLOTS = 6
"""Columns that are drawn, those with the largest change first."""
MAX_BARS = 12
"""Categories in a drawing."""


@dataclass(frozen=True)
class Window:
    """What the page shows beside the findings."""

    problem: str
    trained_on: int
    requests: int
    facts: Mapping[str, str]
    baseline: Profile
    live: Profile
    settings: Monitor


def write_report(report: MonitorReport, seen: Window, *, folder: Place) -> MonitorReport:
    """Write `monitoring.html` and `monitoring.json` to `folder`; the report that names the page."""
    report = replace(report, report=folder / "monitoring.html")
    page = render(
        TEMPLATE,
        report=report,
        seen=seen,
        quality=[finding for finding in report.findings if finding.kind == "quality"],
        drift=[_bar(finding) for finding in report.findings if finding.kind != "quality"],
        plots=plots(report.findings, seen),
    )
    write_text(folder / "monitoring.html", page)
    write_text(folder / "monitoring.json", to_json(as_plain(report) | {"problem": seen.problem, "facts": dict(seen.facts)}))
    return report


def plots(findings: Sequence[Finding], seen: Window) -> list[dict[str, Any]]:
    """Training beside live for the columns that changed most."""
    moved = [finding for finding in findings if finding.kind == "feature drift" and finding.value >= seen.settings.psi / 2]
    return [_plot(finding, seen.baseline.columns[finding.name], seen.live.columns[finding.name]) for finding in moved[:MAX_PLOTS]]


def _bar(finding: Finding) -> dict[str, Any]:
    """A finding with the places of its value and threshold on a bar that is full at three times the threshold."""
    full = 3 * finding.threshold
    return {"finding": finding, "share": min(1.0, finding.value / full), "mark": finding.threshold / full}


def _plot(finding: Finding, baseline: ColumnProfile, live: ColumnProfile) -> dict[str, Any]:
    figure, ax = axes(width=4.4, height=2.6)
    before, now = baseline.distribution() if baseline.is_number else None, live.distribution() if live.is_number else None
    if before and now:
        _histograms(ax, before, now)
    elif not baseline.is_number:
        _bars(ax, baseline, live)
    ax.set_ylabel("share of rows")
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    svg = drawing(figure, title=f"{finding.name}: training and live")
    return {"title": finding.name, "note": f"PSI {finding.value:.2f}; {finding.note}", "svg": svg}


def _histograms(ax: Any, before: Distribution, now: Distribution) -> None:
    """Shares in 24 bins of equal width over both; the outer hundredths of the two are left out."""
    ends = np.concatenate([side.quantiles(np.array([0.01, 0.99])) for side in (before, now)])
    low, high = float(ends.min()), float(ends.max())
    edges = np.linspace(low, high if high > low else low + 1, 25)
    for distribution, colour, label in ((before, OTHER, "training"), (now, MODEL, "live")):
        reached = distribution.up_to(edges)
        reached[0] = distribution.below(edges[:1])[0]
        ax.stairs(np.diff(reached), edges, color=colour, fill=True, alpha=0.3)
        ax.stairs(np.diff(reached), edges, color=colour, linewidth=1.5, label=label)


def _bars(ax: Any, baseline: ColumnProfile, live: ColumnProfile) -> None:
    before, now = baseline.counts(), live.counts()
    total = {name: before.get(name, 0) / max(baseline.rows, 1) + now.get(name, 0) / max(live.rows, 1) for name in {**before, **now}}
    names = sorted(total, key=lambda name: (-total[name], name))[:MAX_BARS]
    place = np.arange(len(names))
    ax.bar(place - 0.2, [before.get(name, 0) / max(baseline.rows, 1) for name in names], 0.38, color=OTHER, label="training")
    ax.bar(place + 0.2, [now.get(name, 0) / max(live.rows, 1) for name in names], 0.38, color=MODEL, label="live")
    ax.set_xticks(place, [plain(name if len(name) <= 14 else f"{name[:13]}…") for name in names], rotation=40, ha="right", color=FAINT)
    ax.grid(False, axis="x")
