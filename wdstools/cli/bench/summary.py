"""From results to what a user reads: medians, the best way, the line to paste."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wdstools import urls
from wdstools.cli.bench.journal import Result
from wdstools.cli.bench.sweep import Cell, Variant

CLOSE = 0.95  # of the best rate: as good, where it is simpler
# The simpler first: nothing to install, nothing to start for each shard.
SIMPLE = ("plain", "store", "stream", "cat", "curl", "parts", "dd", "fread", "wds-cat", "mbuffer")
# Of a pattern that needs no quotes: what shlex says, and braces, which are expanded before a shell sees them.
_SAFE = re.compile(r"[\w@%+=:,./{}-]+", re.ASCII)


@dataclass(frozen=True)
class Row:
    """A cell over its rounds. Rates are bytes/s of all workers together; `slowest`: the last worker's time over the
    mean; `cpu`: seconds per GB. `rate` is None where every round failed."""

    cell: Cell
    rate: float | None
    low: float
    high: float
    slowest: float
    cpu: float
    rounds: int
    error: str | None


def rows(results: Iterable[Result]) -> list[Row]:
    """The rows of a table, in the order in which the cells were first measured."""
    groups: dict[Cell, list[Result]] = {}
    for result in results:
        groups.setdefault(result.cell, []).append(result)
    return [_row(cell, group) for cell, group in groups.items()]


def _row(cell: Cell, group: Sequence[Result]) -> Row:
    good = [result for result in group if result.rate is not None]
    error = next((str(result.outcome["error"]) for result in group if result.rate is None), None)
    if not good:
        return Row(cell, None, 0, 0, 0, 0, 0, error)
    rates = [result.rate or 0.0 for result in good]
    return Row(
        cell, statistics.median(rates), min(rates), max(rates),
        statistics.median(result.outcome["slowest"] for result in good),
        statistics.median(1e9 * result.outcome["cpu"] / max(result.outcome["bytes"], 1) for result in good),
        len(good), error,
    )  # fmt: skip


def best(table: Iterable[Row]) -> Row | None:
    """The row to follow: at the most workers, the simplest of those close to the highest median. A way of which any
    round failed is none."""
    table = list(table)
    most = max((row.cell.workers for row in table), default=0)
    sound = [row for row in table if row.cell.workers == most and row.rate is not None and row.error is None]
    usable = [row for row in sound if _url(row.cell.variant, "x") is not None]
    if not usable:
        return None
    top = max(row.rate or 0.0 for row in usable)
    close = [row for row in usable if (row.rate or 0.0) >= CLOSE * top]
    return min(close, key=lambda row: _plainness(row.cell.variant))


def _plainness(variant: Variant) -> tuple[int, int, int]:
    return SIMPLE.index(variant.reader), len(variant.flags), variant.size or 0


def _url(variant: Variant, target: str) -> str | None:
    """The URL by which webdataset, or wdstools' store, reads so; None: there is none."""
    if variant.reader in ("plain", "store", "parts"):
        return target
    command = variant.command(target if _SAFE.fullmatch(target) else shlex.quote(target))
    return None if command is None else f"pipe:{command}"


def line(row: Row, paths: Sequence[str]) -> str:
    """The line to paste into a shell: the buffer, if it matters, and the URL of the shards."""
    patterns = urls.collapse(paths)
    found = [_url(row.cell.variant, pattern) or pattern for pattern in patterns]
    url = "::".join(found)
    variant = row.cell.variant
    buffer = f"export GOPEN_BUFFER={variant.size}; " if variant.reader == "plain" else ""
    note = {
        "store": "  # wdstools.stream(url) or wdstools.open(url)",
        "parts": "  # wdstools.open(url)",
    }.get(variant.reader, "")
    return f"{buffer}url={shlex.quote(url)}{note}"
