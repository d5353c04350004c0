"""The report of a comparison: its table, and its page with charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.train import page
from bench.train.matrix import NOWHERE, Matrix, Row, ratio

OURS = ("indexed", "stream")
HEAD = (
    "loader", "source", "training, samples/s (spread)", "of synthetic", "of webdataset", "data wait",
    "loader alone, samples/s (spread)", "of webdataset",
)  # fmt: skip


def table_rows(table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: one for every loader and source, without what is left out."""
    gpu = any(row.gpu is not None for row in table)
    head = [*HEAD[:6], *(["GPU busy"] if gpu else []), *HEAD[6:]]
    alone = {(row.cell.loader, row.cell.source): row for row in table if row.cell.mode == "load"}
    lines = []
    for row in table:
        if row.cell.mode != "train" or row.left_out:
            continue
        other = alone.get((row.cell.loader, row.cell.source))
        wait = f"{row.share:.1%}" if row.rate else ""
        cells = [row.cell.loader, row.cell.source, _rate(row), _ratio(table, row, "synthetic")]
        cells += [_ratio(table, row, "webdataset"), wait]
        if gpu:
            cells.append("" if row.gpu is None else f"{row.gpu:.0%}")
        cells += ["", ""] if other is None or other.left_out else [_rate(other), _ratio(table, other, "webdataset")]
        lines.append(cells)
    return head, lines


def left_out(table: Sequence[Row]) -> list[str]:
    """What is not measured, and why: a line for every reason."""
    sources: dict[tuple[str, str], dict[str, None]] = {}
    for row in table:
        if row.left_out:
            sources.setdefault((row.cell.loader, row.reason), {})[row.cell.source] = None
    loaders: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (loader, reason), names in sources.items():
        loaders.setdefault((tuple(names), reason), []).append(loader)
    return [f"{', '.join(which)} from {', '.join(names)}: {reason}" for (names, reason), which in loaders.items()]


def failed(table: Sequence[Row]) -> list[str]:
    """What failed, in all rounds or in some, and why at first."""
    told = [row for row in table if not row.left_out and (row.failed or row.rate is None)]
    return [f"{row.cell.label}, {row.failed} of {row.failed + row.rounds} rounds: {row.reason}" for row in told]


def markdown(table: Sequence[Row]) -> str:
    """The table, and what is left out, for a README."""
    text = page.markdown(*table_rows(table))
    for title, lines in (("Failed", failed(table)), ("Left out", left_out(table))):
        if lines:
            text += f"\n\n{title}:\n\n" + "\n".join(f"* {page.one_line(line)}" for line in lines)
    return f"{text}\n"


def _rate(row: Row) -> str:
    if row.rate is None:
        return "failed"
    failed = f"; {row.failed} rounds failed" if row.failed else ""
    return f"{row.rate:,.0f} ({row.low:,.0f} to {row.high:,.0f}){failed}"


def _ratio(table: Sequence[Row], row: Row, loader: str) -> str:
    found = ratio(table, row, loader)
    return "" if found is None else f"{found:.2f} x"


def html(task: Matrix, table: Sequence[Row], told: Mapping[str, Any]) -> str:
    """The page."""
    settings, where = told["settings"], told["record"]
    gpus = ", ".join(told["gpus"]) or "no GPU"
    machine = f"{where['cpu']}, {where['cores']} cores, {gpus}, {where['kernel']}, {where['date']}"
    what = (
        f"{settings['model']} on pictures of {settings['data']['size']} pixels, batches of {settings['batch_size']}, "
        f"{settings['workers']} workers, decoded by {settings['decoder']}, precision {settings['precision']}. Medians "
        f"of {task.rounds} rounds; each cell at least {task.batches} batches and {task.seconds:g} s a round, in a "
        f"process of its own, every cell in every round, in an order that is rotated."
    )
    body = [page.paragraph(machine), page.paragraph(what)]
    if task.quick:
        body.append(page.paragraph("A quick run, for trying out: no measurement.", "warning"))
    body += [page.heading("Table"), page.table(*table_rows(table))]
    for title, lines in (("Failed:", failed(table)), ("Left out:", left_out(table))):
        if lines:
            body += [page.paragraph(title), page.listing(lines)]
    if {"s3", "gcs"} & set(task.sources):
        text = "The servers behind s3 and gcs are made for tests: their rates are not those of a store."
        body.append(page.paragraph(text))
    for title, mode in (
        ("Training: samples/s with the model", "train"),
        ("The loader alone: samples/s", "load"),
    ):
        chart = page.bars(title, _groups([row for row in table if row.cell.mode == mode], _rate_bar))
        body += [page.heading(title), page.figure(chart, "Medians; the line is from the slowest to the fastest round.")]
    title = "Share of the time in which the training waited for data"
    chart = page.bars(title, _groups([row for row in table if row.cell.mode == "train"], _wait_bar))
    body += [page.heading(title), page.figure(chart, "Lower is better. Medians; in brackets the wait of a step.")]
    rest = {name: told[name] for name in ("matrix", "settings", "versions", "gpus", "git", "left_out", "seconds")}
    return page.document("Feeding a training loop: loaders side by side", body, {**rest, "record": where})


def _groups(table: Sequence[Row], bar: Callable[[Row, int], page.Bar]) -> dict[str, list[page.Bar]]:
    """The bars by source, the fastest first; what failed stands last, with the reason."""
    names = {row.cell.source: f"from {row.cell.source}" for row in table} | {NOWHERE: "the model alone"}
    here = [row for row in table if not row.left_out]
    groups: dict[str, list[page.Bar]] = {names[row.cell.source]: [] for row in here}
    for row in sorted(here, key=lambda row: -(row.rate or 0.0)):
        loader = row.cell.loader
        kind = 2 if loader == "synthetic" else int(loader in OURS)
        drawn = page.Bar(loader, None, f"failed: {row.reason}") if row.rate is None else bar(row, kind)
        groups[names[row.cell.source]].append(drawn)
    return groups


def _rate_bar(row: Row, kind: int) -> page.Bar:
    return page.Bar(row.cell.loader, row.rate, f"{row.rate:,.0f}", row.low, row.high, kind)


def _wait_bar(row: Row, kind: int) -> page.Bar:
    text = f"{row.share:.1%} (a step {1e3 * row.wait:.1f} ms, p99 {1e3 * row.p99:.1f})"
    return page.Bar(row.cell.loader, row.share, text, kind=kind)
