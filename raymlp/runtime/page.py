"""The look that all reports share: one HTML file with everything in it, readable in light and dark, on paper and by ear.

A report is a Jinja template beside its stage that extends `page.html.j2`. Every value is escaped.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, LINE, MODEL, OTHER, GOOD, BAD = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106", "#010107"
"""Stand-ins for the page's colours: a drawing uses them, and `drawing` turns them into the page's own."""
DASH = "\N{EN DASH}"
VARIABLES = {INK: "--ink", FAINT: "--faint", LINE: "--line", MODEL: "--model", OTHER: "--other", GOOD: "--good", BAD: "--bad"}


def render(template: Path, **values: Any) -> str:
    """The page of a template that lies anywhere and extends `page.html.j2`. A name that is not given is an error."""
    return str(_environment(template.parent).get_template(template.name).render(**values))


@cache
def _environment(folder: Path) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([folder, here]), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, whole=whole, percent=percent)
    return environment


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` decimals, fewer where it is large; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - (len(str(int(abs(value)))) - 1))}f}"


def whole(value: float) -> str:
    """A count with thousands apart."""
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal; a dash for none."""
    return DASH if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def tick(value: float) -> str:
    """A number beside an axis: `0.25`, `-40`, `150k`, `2.5M`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit == "M" and abs(value) >= size):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def axes(*, width: float = 4.4, height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty figure in the page's style, size in inches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(LINE)
    ax.tick_params(colors=FAINT, labelsize=9, length=0)
    ax.grid(True, color=LINE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.locator_params(nbins=6)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    ax.xaxis.label.set_color(FAINT)
    ax.yaxis.label.set_color(FAINT)
    return figure, ax


def plain(text: str) -> str:
    """A text that a drawing shows as it is: a dollar sign opens no formula."""
    return text.replace("$", r"\$")


def drawing(figure: Figure, *, title: str) -> Markup:
    """A figure as inline SVG in the page's colours; `title` is read to those who cannot see it."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's browser has its own fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, name in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({name})")
    svg = re.sub(r"font: ([^;\"]*?)(?:'[^;\"]*|sans-serif)", r"font: \1var(--font)", svg)
    label = Markup("{}").format(title)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg, count=1)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))  # noqa: S704 (matplotlib escapes its texts)
