"""A report as one HTML file that fetches nothing: tables, and charts of inline SVG that are files of their own as well.

Every function takes text as it is, and escapes it; what returns markup says so.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH = 900  # of a chart, in pixels
BAR, LABEL = 24, 210  # of a bar chart: a row's height, room for labels
HEIGHT, LEFT, RIGHT, BOTTOM, LEGEND = 320, 70, 20, 48, 20  # of a line chart
SHORT = 34  # characters of a table's cell that are not broken into lines
DIGIT = 7.3  # pixels that a character takes, about: charts are laid out without a browser

CHART_STYLE = """
.chart { color: #1b1b1b; } .chart text { font: 13px system-ui, sans-serif; fill: currentColor; }
.chart .group { font-weight: 600; } .chart .quiet { fill: #5c5c5c; }
.chart .grid { stroke: #d9d9d6; } .chart .spread { stroke: #1b1b1b; stroke-width: 1.5; }
.chart .line { fill: none; stroke-width: 2; } .chart .dashed { stroke-dasharray: 6 4; }
.f0 { fill: #7d9cb8; } .f1 { fill: #d98032; } .f2 { fill: #8a8a86; }
.s0 { stroke: #d9701a; } .s1 { stroke: #2a78c2; } .s2 { stroke: #2c9a5b; } .s3 { stroke: #a34fb5; }
.s4 { stroke: #c43d4b; } .s5 { stroke: #0e9aa7; } .s6 { stroke: #86761b; } .s7 { stroke: #777; }
@media (prefers-color-scheme: dark) {
  .chart { color: #e8e8e6; } .chart .grid { stroke: #3a3d40; } .chart .spread { stroke: #e8e8e6; }
  .chart .quiet { fill: #a9aaa8; }
  .f0 { fill: #5f7f9c; } .s1 { stroke: #62a4e3; } .s2 { stroke: #53bf80; } .s3 { stroke: #c98ad6; }
  .s4 { stroke: #e87380; } .s5 { stroke: #3fc2ce; } .s6 { stroke: #c2b04a; } .s7 { stroke: #aaa; }
}
"""
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66em; margin: 2em auto; padding: 0 1em; color: #1b1b1b;
  background: #fff; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25em .7em; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } td.line { white-space: nowrap; } summary { font-size: 1.3em; font-weight: 600; }
pre { background: #f3f3f0; padding: .8em; overflow-x: auto; font-size: 13px; }
figure { margin: 1.2em 0; } figcaption { color: #5c5c5c; font-size: 14px; }
svg, .shot { width: 100%; height: auto; } .shot { border: 1px solid #ddd; }
.warning { border-left: 4px solid #d98032; padding: .3em .8em; background: #d9803222; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: .8em; }
.pictures img { width: 100%; aspect-ratio: 1; object-fit: cover; }
.pictures div { font-size: 12px; line-height: 1.35; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  body { background: #16181a; color: #e8e8e6; } pre { background: #24272a; }
  th, td, .shot { border-color: #3a3d40; } figcaption { color: #a9aaa8; } a { color: #8ab8e8; }
}
"""


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: the bar ends at `value`, a line goes from `low` to `high`, `text` stands behind it. Without
    a value the text stands alone. `kind`: 0, 1 (ours) or 2 (a bound)."""

    label: str
    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    kind: int = 0


@dataclass(frozen=True)
class Line:
    """A line of a chart: points in order of x. `dashed`: a bound, nothing measured."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    dashed: bool = False


def document(title: str, body: Iterable[str], record: Mapping[str, Any]) -> str:
    """The whole page: markup of its sections, and the record of the run below them."""
    text = escape(json.dumps(record, indent=2, ensure_ascii=False, default=str))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{CHART_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{"".join(body)}
<details><summary>Record of the run</summary>
<pre>{text}</pre>
</details>
</body>
</html>
"""


def heading(text: str) -> str:
    """Markup of a section's heading."""
    return f"<h2>{escape(text)}</h2>\n"


def paragraph(text: str, kind: str = "") -> str:
    """Markup of a paragraph; `kind`: "" or "warning"."""
    return f'<p class="{kind}">{escape(text)}</p>\n' if kind else f"<p>{escape(text)}</p>\n"


def code(text: str) -> str:
    """Markup of lines to paste."""
    return f"<pre>{escape(text)}</pre>\n"


def figure(svg: str, caption: str) -> str:
    """Markup of a chart, which is markup, with a line below it."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n"


def image(png: bytes, caption: str) -> str:
    """Markup of a screenshot, which is in the page itself."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img class="shot" alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def card(url: str, text: str) -> str:
    """Markup of a small picture with lines of text below it."""
    lines = "<br>".join(escape(line) for line in text.splitlines())
    return f'<div><img alt="" src="{escape(url)}">{lines}</div>'


def listing(lines: Iterable[str]) -> str:
    """Markup of a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markup of a table."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(_cell(str(cell)) for cell in row) for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table></div>\n"


def _cell(text: str) -> str:
    return f"<td{' class=line' if len(text) < SHORT else ''}>{escape(text)}</td>"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table, for a README."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)


def one_line(text: str) -> str:
    """Text without line ends, nor several blanks in a row."""
    return " ".join(text.split())


def standalone(svg: str) -> str:
    """A chart as an .svg file."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{CHART_STYLE}</style>", 1
    )


def bars(title: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """An <svg> of horizontal bars under the names of their groups, all on one scale that begins at 0."""
    rows = [row for group in groups.values() for row in group]
    top = max((max(row.value or 0.0, row.high or 0.0) for row in rows), default=0.0) or 1.0
    widest = max((len(row.text) for row in rows if row.value is not None), default=0)
    inner = max(100.0, WIDTH - LABEL - DIGIT * widest - 16)
    parts, y = [], 4
    for name, group in groups.items():
        if name:
            parts.append(f'<text class="group" x="0" y="{y + 17}">{escape(name)}</text>')
            y += BAR
        for row in group:
            parts += _bar(row, y, inner / top)
            y += BAR
        y += 6
    return _svg(title, y, parts)


def _bar(row: Bar, y: int, scale: float) -> list[str]:
    room = int(LABEL / DIGIT)
    label = row.label if len(row.label) <= room else row.label[: room - 1] + "…"
    parts = [f'<text x="{LABEL - 8}" y="{y + 16}" text-anchor="end">{escape(label)}</text>']
    if row.value is None:
        room = int((WIDTH - LABEL) / DIGIT)
        text = row.text if len(row.text) <= room else row.text[: room - 1] + "…"
        return [*parts, f'<text class="quiet" x="{LABEL}" y="{y + 16}">{escape(text)}</text>']
    parts.append(
        f'<rect class="f{row.kind}" x="{LABEL}" y="{y + 2}" width="{row.value * scale:.1f}" height="{BAR - 6}"/>'
    )
    end = row.value
    if row.low is not None and row.high is not None:
        low, end = LABEL + row.low * scale, max(end, row.high)
        parts.append(
            f'<line class="spread" x1="{low:.1f}" x2="{LABEL + row.high * scale:.1f}" y1="{y + 11}" y2="{y + 11}"/>'
        )
    parts.append(f'<text x="{LABEL + end * scale + 8:.1f}" y="{y + 16}">{escape(row.text)}</text>')
    return parts


def lines(title: str, x_label: str, y_label: str, series: Sequence[Line]) -> str:
    """An <svg> of lines over a common x, both axes from 0, with a legend above."""
    x_top = max((max(line.xs, default=0.0) for line in series), default=0.0) or 1.0
    marks = ticks(max((max(line.ys, default=0.0) for line in series), default=0.0) or 1.0)
    places, rows = _legend([line.label for line in series])
    top = LEGEND * rows + 34
    high, wide = HEIGHT - 40, WIDTH - LEFT - RIGHT

    def x_of(x: float) -> float:
        return LEFT + wide * x / x_top

    def y_of(y: float) -> float:
        return top + high * (1 - y / marks[-1])

    parts = [f'<text class="quiet" x="0" y="{top - 14}">{escape(y_label)}</text>']
    for number, (line, (x, row)) in enumerate(zip(series, places, strict=True)):
        y, kind = 14 + row * LEGEND, _kind(line, number)
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{escape(line.label)}</text>')
    for mark in marks:
        y_at = y_of(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at:.1f}" y2="{y_at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y_at + 4:.1f}" text-anchor="end">{mark:,g}</text>')
    for mark in (mark for mark in ticks(x_top) if mark <= x_top):
        parts.append(f'<text x="{x_of(mark):.1f}" y="{top + high + 20}" text-anchor="middle">{mark:,g}</text>')
    parts.append(
        f'<text class="quiet" x="{WIDTH - RIGHT}" y="{top + high + 40}" text-anchor="end">{escape(x_label)}</text>'
    )
    for number, line in enumerate(series):
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        parts.append(f'<polyline class="{_kind(line, number)}" points="{points}"/>')
    return _svg(title, top + high + BOTTOM, parts)


def _kind(line: Line, number: int) -> str:
    return f"line s{7 if line.dashed else number % 7}{' dashed' if line.dashed else ''}"


def _legend(labels: Sequence[str]) -> tuple[list[tuple[float, int]], int]:
    """Where each entry stands, as (x, row), and how many rows there are."""
    places, x, row = [], float(LEFT), 0
    for label in labels:
        width = 28 + DIGIT * len(label) + 24
        if x + width > WIDTH and x > LEFT:
            x, row = float(LEFT), row + 1
        places.append((round(x, 1), row))
        x += width
    return places, row + 1


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to the first that is not below `top`, four to seven of them."""
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if top / (power * factor) <= 6)
    return [round(step * i, 12) for i in range(math.ceil(top / step - 1e-9) + 1)]


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
