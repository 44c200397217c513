"""The look of reports: numbers for people, and drawings that take the page's colours."""

from __future__ import annotations

import pytest

from raymlp.runtime.page import MODEL, axes, drawing, number, percent, plain, tick, whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "\N{EN DASH}"),
        (number(float("nan")), "\N{EN DASH}"),
        (number(0.72134), "0.7213"),
        (number(57.71234), "57.712"),
        (number(-1_234.5), "-1,234"),
        (number(0.5, 2), "0.50"),
        (percent(0.1234), "12.3 %"),
        (percent(None), "\N{EN DASH}"),
        (whole(1_234_567), "1,234,567"),
        (tick(0.25), "0.25"),
        (tick(150_000), "150k"),
        (tick(-2_500_000), "-2.5M"),
        (plain("$5 to $10"), r"\$5 to \$10"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_a_drawing_is_one_svg_in_the_pages_colours_and_has_a_title() -> None:
    figure, ax = axes()
    ax.plot([0, 1], [0, 1], color=MODEL, label=plain("<b>$x$</b>"))
    ax.legend()
    svg = drawing(figure, title='a "title" <here>')
    assert svg.startswith("<svg ")
    assert 'aria-label="a &#34;title&#34; &lt;here&gt;"' in svg
    assert "var(--model)" in svg
    assert MODEL not in svg
    assert "&lt;b&gt;$x$&lt;/b&gt;" in svg


def test_the_same_drawing_gives_the_same_bytes() -> None:
    def draw() -> str:
        figure, ax = axes()
        ax.plot([0, 1], [0, 1], color=MODEL)
        return drawing(figure, title="line")

    assert draw() == draw()
