"""The table of `shardsum -l`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from wdstools.cli.common import emit, emit_json, human, progress, say, talk

if TYPE_CHECKING:
    from wdstools.summary import Summary

HEAD = ("shards", "samples", "members", "bytes", "fields", "missing", "index", "names")
NUMBERS = 4  # the first columns are to the right


def show(names: Iterable[str], as_json: bool) -> int:
    """Print what is in the shards that names stand for. Returns the exit status."""
    from wdstools import sets
    from wdstools.summary import summarise

    found = sets.shard_sets(sets.list_shards(names))
    with progress(sum(len(one.shards) for one in found), "shards", "count") as bar:
        summaries = [summarise(one, progress=lambda nbytes: bar.update(1)) for one in found]
    for summary in summaries:
        if summary.error:
            talk(say(summary.error))
        elif summary.counted != "index":
            talk(f"{summary.patterns[0]}: counted from headers; `wds-index build` writes an index that is up to date")
    if as_json:
        emit_json({"sets": [summary.to_json() for summary in summaries]})
    else:
        emit(_aligned([HEAD, *(row for summary in summaries for row in _rows(summary))]))
    return 1 if any(summary.error for summary in summaries) else 0


def _rows(summary: Summary) -> list[tuple[str, ...]]:
    """The row of a set, and rows for what has no room in it: more fields, missing numbers, names."""
    counts = summary.counts
    first: list[str] = ["?"] * NUMBERS
    fields = ["broken"]
    if counts is not None:
        first = [f"{n:,}" for n in (counts.shards, counts.samples, counts.members)] + [human(counts.nbytes)]
        fields = [f"{name} {human(field.mean)}" for name, field in counts.fields.items()]
    columns = [*([cell] for cell in first), fields, summary.missing or ["-"], [str(summary.state)], summary.patterns]
    depth = max(map(len, columns))
    return list(zip(*(column + [""] * (depth - len(column)) for column in columns), strict=True))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i < NUMBERS else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
