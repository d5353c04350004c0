"""`wds-bench io`: the options, the table, the files that it writes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_json, progress, split_commas, talk
from wdstools.errors import NotFoundError, UrlError

if TYPE_CHECKING:
    from wdstools.cli.bench.journal import Journal, Result
    from wdstools.cli.bench.sweep import Cell, Sweep

HEAD = ("reader", "workers", "MB/s", "from", "to", "last/mean", "CPU s/GB")


def _numbers(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[int, ...]:
    words = split_commas(context, option, value)
    if not all(word.isdecimal() and 0 < int(word) <= 1024 for word in words):
        raise click.BadParameter("numbers from 1 to 1024, with commas")
    return tuple(int(word) for word in words)


def _sizes(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> dict[str, list[str]]:
    from wdstools.cli.bench.sweep import SIZES, parse_size

    found: dict[str, list[str]] = {}
    for word in value:
        reader, equals, sizes = word.partition("=")
        try:
            if not equals or reader not in SIZES:
                raise ValueError(f"READER=SIZE,... of {', '.join(SIZES)}")
            found[reader] = [part for part in sizes.split(",") if parse_size(part)]
        except ValueError as error:
            raise click.BadParameter(f"{word!r}: {error}") from None
    return found


@click.command(
    epilog="""\b
Examples:
  $ wds-bench io /data/imagenet
  $ wds-bench io --quick --workers 1,8 --html report.html '/data/train-{000000..000146}.tar'
  $ wds-bench io --reader plain,fread --size plain=8K,1M --size fread=16M,32M,64M --json io.json /data/imagenet
  $ wds-bench io --config sweep.yaml --notify 'mailx me < "$WDS_BENCH_HTML"' --html io.html
  $ wds-bench io https://example.org/val-{00..07}.tar"""
)
@click.argument("shards", nargs=-1, metavar="[PATH|URL]...")
@click.option(
    "--reader",
    "readers",
    multiple=True,
    callback=split_commas,
    help="Only these: plain (open and read with a buffer, as GOPEN_BUFFER does), cat, dd, mbuffer, fread, stream "
    "(wdstools.stream); of URLs store, parts (both wdstools'), curl, wds-cat, stream.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="READER=SIZE,...",
    callback=_sizes,
    help="The sizes of a reader's buffer, block, chunk or part: fread=16M,32M.",
)
@click.option(
    "--workers",
    multiple=True,
    metavar="N,...",
    callback=_numbers,
    help="Readers at once, each with shards of its own. Default: 1,2,4,8.",
)
@click.option("--seconds", type=click.FloatRange(0.01), help="What a cell of the table takes, about. Default: 3.")
@click.option("--rounds", type=click.IntRange(1), help="How often a cell is measured, in turn with others. Default: 3.")
@click.option("--quick", is_flag=True, default=None, help="Fewer readers, sizes and seconds, workers 1 and 8.")
@click.option(
    "--warm",
    is_flag=True,
    default=None,
    help="Leave the page cache as it is. Default: the shards are dropped from it before each cell.",
)
@click.option(
    "--config",
    type=click.File("r"),
    help="A YAML file: paths, readers, sizes, workers, seconds, rounds, quick, warm, sweeps. Options win.",
)
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write a report with charts.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False),
    help="Write results and the record of the run; -: to stdout in place of the table.",
)
@click.option(
    "--resume",
    "journal_path",
    type=click.Path(dir_okay=False),
    help="Keep a journal here, and go on with the sweep in it. Default: FILE.journal beside --json FILE.",
)
@click.option(
    "--notify", metavar="CMD",
    help="Run a shell command at the end, with WDS_BENCH_JSON, WDS_BENCH_HTML and WDS_BENCH_LINE in its environment.",
)  # fmt: skip
def io(
    shards: tuple[str, ...], json_path: str | None, html_path: str | None, journal_path: str | None,
    notify: str | None, config: Any, **options: Any,
) -> int:  # fmt: skip
    """Find out how shards are best read here: which reader, which buffer, how many workers.

    SHARDS are your own: a folder, brace patterns, files or URLs. Each way to read is timed with each number of workers,
    cold where it can be, in rounds that take turns; the table has medians. The last line on stdout is to paste: it
    sets GOPEN_BUFFER, and `url` to what WebDataset(url) should get.

    Ctrl-C prints what there is; the same command goes on later, if it had --json FILE or --resume FILE.
    """
    from wdstools.cli.bench.journal import Journal

    sweep = _sweep(shards, None if config is None else config.read(), options)
    on_disk = json_path is not None and json_path != "-"
    journal = Journal(sweep, journal_path or (f"{json_path}.journal" if on_disk else None))
    if journal.resumed:
        left = len(sweep.cells()) * sweep.rounds - len(journal.results)
        talk(f"{journal.path}: goes on with {left} of {len(sweep.cells()) * sweep.rounds} measurements")
    try:
        _measure(sweep, journal)
    except KeyboardInterrupt:
        _report(sweep, journal, None, None, as_json=False)
        how = f"the same command goes on, from {journal.path}" if journal.path else "--json FILE would let it go on"
        talk(f"interrupted after {len(journal.results)} measurements; {how}")
        raise
    line = _report(sweep, journal, json_path, html_path, as_json=json_path == "-")
    if journal_path is None:
        journal.remove()
    failed = sorted({f"{r.cell.name}: {r.outcome['error']}" for r in journal.results if r.rate is None})
    for failure in failed:
        talk(failure)
    code = 1 if failed or line is None else 0
    return _notify(notify, json_path if on_disk else None, html_path, line) or code


def _sweep(shards: tuple[str, ...], config: str | None, options: dict[str, Any]) -> Sweep:
    """The sweep that the options and the YAML file ask for. Raises click.UsageError, UrlError, NotFoundError."""
    from wdstools.cli.bench import sweep as plan
    from wdstools.cli.bench.runner import remote
    from wdstools.sets import list_shards

    given = {**options, "paths": shards}
    if config is not None:
        try:
            given = {**dict.fromkeys(given), **plan.from_config(config, given)}
        except ValueError as error:
            raise click.UsageError(f"--config: {error}") from None
    names = [given["paths"]] if isinstance(given["paths"], str) else list(given["paths"] or ())
    if not names:
        raise click.UsageError("shards to read are missing: a folder, a brace pattern, files or URLs")
    paths = list_shards(names)
    missing = [path for path in paths if not remote(path) and not os.path.isfile(path)]
    if missing:
        raise NotFoundError(f"{missing[0]}: no such file")
    kinds = {remote(path) for path in paths}
    if len(kinds) > 1 or any(path.startswith("pipe:") for path in paths):
        raise UrlError("files and URLs are measured one kind at a time, and pipe: URLs not at all")
    known, quick = plan.known(kinds.pop()), bool(given["quick"])
    try:
        variants = plan.config_variants(given["sweeps"]) if given.get("sweeps") else []
        if given["readers"] or not variants:
            variants += plan.variants(given["readers"] or known, given["sizes"] or {}, quick)
        strange = [variant.reader for variant in variants if variant.reader not in known]
        if strange:
            raise ValueError(f"{strange[0]} is no reader of these; there are {', '.join(known)}")
        workers = tuple(dict.fromkeys(int(n) for n in given["workers"] or ((1, 8) if quick else (1, 2, 4, 8))))
        seconds, rounds = float(given["seconds"] or (1 if quick else 3)), int(given["rounds"] or 3)
        if min(workers) < 1 or seconds <= 0 or rounds < 1:
            raise ValueError("workers, seconds and rounds are above 0")
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    found, programs = plan.available(variants)
    if programs:
        talk(f"not installed, and left out: {', '.join(programs)}")
    enough = tuple(n for n in workers if n <= len(paths)) or (len(paths),)
    if enough != workers:
        talk(f"{len(paths)} shards are for as many workers: measured with {', '.join(map(str, enough))}")
    if not found:
        raise NotFoundError("none of the readers asked for is installed")
    return plan.Sweep(tuple(paths), tuple(found), enough, seconds, rounds, bool(given["warm"]))


def _measure(sweep: Sweep, journal: Journal) -> list[Result]:
    from wdstools.cli.bench.runner import cool, remote, run

    kept = [] if sweep.warm or remote(sweep.paths[0]) else cool(sweep.paths)
    if kept:
        talk(f"{len(kept)} of {len(sweep.paths)} shards stay in memory (such as {kept[0]}): what is measured is memory")
    total = len(sweep.cells()) * sweep.rounds
    with progress(total, "cells", "io") as bar:
        bar.update(len(journal.results))

        def tell(cell: Cell, number: int, outcome: dict[str, Any]) -> None:
            bar.set_postfix_str(cell.name)
            bar.update(1)

        return run(sweep, journal, tell)


def _report(sweep: Sweep, journal: Journal, json_path: str | None, html_path: str | None, as_json: bool) -> str | None:
    """Print and write what was found. Returns the line to paste."""
    import json

    from wdstools.cli.bench import summary
    from wdstools.cli.bench.html import page
    from wdstools.cli.bench.record import record

    table = summary.rows(journal.results)
    chosen = summary.best(table)
    line = None if chosen is None else summary.line(chosen, sweep.paths)
    run = record(sweep.paths) if json_path or html_path else {}
    if json_path is not None:
        found = {
            "sweep": sweep.to_json(),
            "one_reader": journal.rate,
            "results": [result.to_json() for result in journal.results],
            "best": None if chosen is None else {"reader": chosen.cell.variant.label, "rate": chosen.rate},
            "line": line,
            "record": run,
        }
        if as_json:
            emit_json(found)
        else:
            _write(json_path, json.dumps(found, indent=2) + "\n")
    if html_path is not None:
        _write(html_path, page(table, chosen, line, run))
    if not as_json:
        emit(_aligned([HEAD, *_cells(table)]))
        if line is not None:
            emit(["", line])
    return line


def _write(path: str, text: str) -> None:
    """The whole file or none: a report that was there stays until the new one is complete."""
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.replace(part, path)


def _cells(table: Sequence[Any]) -> list[tuple[str, ...]]:
    return [
        (
            row.cell.variant.label, str(row.cell.workers),
            *([f"{value / 1e6:,.1f}" for value in (row.rate, row.low, row.high)] if row.rate else ["failed", "", ""]),
            *((f"{row.slowest:.2f}", f"{row.cpu:.2f}") if row.rate else ("", "")),
        )
        for row in table
    ]  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True)).rstrip()
        for row in rows
    ]


def _notify(command: str | None, json_path: str | None, html_path: str | None, line: str | None) -> int:
    """Run the command of --notify. Returns 1 if it failed."""
    if command is None:
        return 0
    told = {"WDS_BENCH_JSON": json_path, "WDS_BENCH_HTML": html_path, "WDS_BENCH_LINE": line}
    absolute = {name: os.path.abspath(value) if value and "LINE" not in name else value for name, value in told.items()}
    environment = {**os.environ, **{name: value for name, value in absolute.items() if value}}
    status = subprocess.run(command, shell=True, env=environment, stdout=2, check=False).returncode
    if status:
        talk(f"--notify: {command}: exit {status}")
    return int(bool(status))
