"""The report of a sweep as one HTML file: charts are inline SVG, nothing is fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from wdstools.cli.bench.summary import Row
from wdstools.cli.common import human

WIDTH, BAR, LABEL, NUMBER = 900, 22, 300, 150  # of a chart, in pixels

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1b1b1b; }
table { border-collapse: collapse; width: 100%; margin: 1em 0; }
th, td { text-align: right; padding: .25em .6em; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
pre { background: #f3f3f0; padding: .8em; overflow-x: auto; }
.best { font-weight: 600; }
svg { width: 100%; height: auto; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.bar { fill: #7d9cb8; } .chosen { fill: #d98032; } .spread { stroke: #1b1b1b; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  body { background: #16181a; color: #e8e8e6; } pre { background: #24272a; } th, td { border-color: #3a3d40; }
  .spread { stroke: #e8e8e6; }
}
"""


def page(table: Sequence[Row], chosen: Row | None, line: str | None, record: Mapping[str, Any]) -> str:
    """The whole document."""
    workers = sorted({row.cell.workers for row in table})
    charts = "".join(_chart(count, [row for row in table if row.cell.workers == count], chosen) for count in workers)
    device = record.get("device") or {}
    where = ", ".join(str(device[key]) for key in ("model", "name", "file_system") if device.get(key))
    advice = "No way to read worked." if line is None else f"<p>Paste this:</p><pre>{escape(line)}</pre>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>wds-bench io</title>
<style>{STYLE}</style>
</head>
<body>
<h1>wds-bench io</h1>
<p>{escape(str(record.get("date", "")))}; {escape(where or "no local device")}</p>
{advice}
<h2>Bytes a second, all workers together</h2>
<p>Bars are medians; the line is from the slowest to the fastest round.</p>
{charts}
<h2>Table</h2>
{_table(table, chosen)}
<h2>Record of the run</h2>
<pre>{escape(json.dumps(record, indent=2, ensure_ascii=False))}</pre>
</body>
</html>
"""


def _chart(workers: int, table: Sequence[Row], chosen: Row | None) -> str:
    top = max((row.high for row in table), default=0.0) or 1.0
    height = BAR * len(table) + 10
    inner = WIDTH - LABEL - NUMBER
    parts = []
    for i, row in enumerate(sorted(table, key=lambda row: -(row.rate or 0.0))):
        y = i * BAR + 5
        parts.append(f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(row.cell.variant.label)}</text>')
        if row.rate is None:
            parts.append(f'<text x="{LABEL}" y="{y + 15}">failed</text>')
            continue
        kind = "chosen" if chosen is not None and row.cell == chosen.cell else "bar"
        low, middle, high = (LABEL + inner * value / top for value in (row.low, row.rate, row.high))
        parts.append(f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{middle - LABEL:.1f}" height="{BAR - 5}"/>')
        parts.append(f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 8.5}" y2="{y + 8.5}"/>')
        parts.append(f'<text x="{high + 8:.1f}" y="{y + 15}">{human(row.rate)}/s</text>')
    title = f"{workers} worker{'s' if workers > 1 else ''}"
    return (
        f'<h3>{title}</h3><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="rates with {title}">'
        f"{''.join(parts)}</svg>"
    )


def _table(table: Sequence[Row], chosen: Row | None) -> str:
    head = ("reader", "workers", "median", "slowest round", "fastest round", "last worker / mean", "CPU s/GB", "rounds")
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    for row in table:
        cells = [escape(row.cell.variant.label), str(row.cell.workers)]
        if row.rate is None:
            cells += [f"failed: {escape(row.error or '')}", *[""] * 5]
        else:
            cells += [f"{human(value)}/s" for value in (row.rate, row.low, row.high)]
            cells += [f"{row.slowest:.2f}", f"{row.cpu:.2f}", str(row.rounds)]
        kind = ' class="best"' if chosen is not None and row.cell == chosen.cell else ""
        lines.append(f"<td{kind}>" + "</td><td>".join(cells) + "</td>")
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
