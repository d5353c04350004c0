"""`wds-shard`: folders, manifests and shards in, shards with an index out."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_json, progress, read_stdin, run

if TYPE_CHECKING:
    from wdstools.convert.options import Summary
    from wdstools.convert.plan import Plan

    _SizeType = click.ParamType[int]
else:
    _SizeType = click.ParamType

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("", 1000), ("ib", 1024))
}


class _Size(_SizeType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(value).strip())
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None or int(float(match[1]) * unit) < 1:
            self.fail(
                f"{value!r} is no size; write it as 500MB or 1GiB (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)", param, ctx
            )
        return int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)


class _Part(_SizeType):
    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if re.fullmatch(r"[1-9][0-9]*", text):
            return int(text)
        if not re.fullmatch(r"[0-9]*\.[0-9]+", text) or not 0 < float(text) <= 1:
            self.fail(f"{text!r} is neither a number of samples, as 5000, nor a part of them, as 0.1", param, ctx)
        return float(text)


def _splits(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[tuple[str, float], ...]:
    found = []
    for item in (value or "").split(",") if value else []:
        name, _, text = item.strip().partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) or not re.fullmatch(r"[0-9]*\.?[0-9]+", text):
            raise click.BadParameter(f"{item!r} is no split; write them as train=0.9,val=0.1")
        found.append((name, float(text)))
    total = sum(fraction for _, fraction in found)
    if found and abs(total - 1) > 1e-6:
        raise click.BadParameter(f"the splits are {total:g} of the samples in all; they must make 1")
    if len({name for name, _ in found}) < len(found) or any(fraction <= 0 for _, fraction in found):
        raise click.BadParameter("every split needs a name of its own, and more than 0 of the samples")
    return tuple(found)


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for item in value:
        old, equals, new = item.partition("=")
        if not old or (equals and not new) or (param.name == "rename" and not equals):
            raise click.BadParameter(f"{item!r}: write it as {param.metavar}")
        found.append((old, new))
    return tuple(found)


def _list(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip().lstrip(".") for item in value for name in item.split(",") if name.strip())


def _set(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> frozenset[str]:
    return frozenset(_list(ctx, param, value))


@click.command(
    "wds-shard",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  $ wds-shard imagenet/train out/train-%06d.tar
  $ wds-shard photos out --split train=0.9,val=0.1 --by cls --resize 256
  $ wds-shard captions.csv out --files image=jpg --inline caption
  $ wds-shard 'old-{000000..000099}.tar' out/new-%06d.tar --shuffle --drop png
  $ wds-shard train.wdsindex out/hard-%06d.tar --join losses.csv --where 'loss > 2' --sort-by loss --desc
  $ find . -name '*.flac' -print0 | wds-shard -0 - out/audio-%06d.tar""",
)
@click.argument("source")
@click.argument("dest")
@click.option("--maxcount", type=click.IntRange(1), metavar="N", help="Samples in a shard. Default: 10000.")
@click.option("--maxsize", type=_Size(), help="Size of a shard: the whole tar file. Default: 1GB.")
@click.option("--shuffle/--no-shuffle", default=None, help="Shuffle the samples. Default: only class folders.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the shuffle and the split.")
@click.option("--split", "splits", metavar="NAME=PART,...", callback=_splits, help="Split by a hash of the key.")
@click.option("--by", metavar="FIELD", help="Keep the proportions of its values in every split; cls for class folders.")
@click.option("--layout", type=click.Choice(["auto", "classes", "flat"]), default="auto", help="What folders mean.")
@click.option("--keys", type=click.Choice(["path", "number"]), default="path", help="Paths or numbers for keys.")
@click.option("--dotted-fields", "dotted", is_flag=True, help="Take a.0.jpg for the field 0.jpg of a.")
@click.option("-0", "--null", "nul", is_flag=True, help="Paths on stdin end with NUL, as find -print0 writes them.")
@click.option("--files", metavar="COLUMN[=FIELD]", multiple=True, callback=_pairs, help="Manifest: a column of paths.")
@click.option("--inline", metavar="COLUMN,...", multiple=True, callback=_list, help="Tables: columns that are fields.")
@click.option("--key-column", metavar="COLUMN", help="Tables: the column of keys.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, callback=_pairs, help="Rename a field.")
@click.option("--drop", metavar="FIELD,...", multiple=True, callback=_set, help="Leave fields out.")
@click.option("--keep", metavar="FIELD,...", multiple=True, callback=_set, help="Leave all other fields out.")
@click.option("--map", metavar="MODULE:FUNCTION", help="Put every sample through a function, in worker processes.")
@click.option("--where", metavar="SQL", help="Only samples for which a condition over the index or the columns holds.")
@click.option("--join", metavar="TABLE", multiple=True, help="Shards: columns of a .csv or .parquet, by key.")
@click.option("--sort-by", metavar="COLUMN", help="Shards: write the samples in the order of a column.")
@click.option("--desc", "descending", is_flag=True, help="The largest first.")
@click.option("--sample", type=_Part(), metavar="PART", help="Shards: draw so many of them, or 0.1 of them.")
@click.option("--resize", type=click.IntRange(1), metavar="PIXELS", help="Shrink images: the shorter side, as JPEG.")
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of these JPEGs.")
@click.option("--resize-fields", metavar="FIELD,...", multiple=True, callback=_set, help="Shrink only these fields.")
@click.option(
    "--column", "lift", metavar="FIELD,...", multiple=True, callback=_list, help="Index: columns, as cls or json:width."
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Default: the number of cores.")
@click.option(
    "--checksum", type=click.Choice(["none", "shard", "sample"]), default="shard", show_default=True,
    help="Of what the index keeps checksums.",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Read every shard back from the disk, and compare its checksums.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="ray: a task for each shard.")
@click.option("--address", metavar="ADDRESS", help="Of the Ray cluster, or auto. Default: RAY_ADDRESS, or its own.")
@click.option("--on-error", type=click.Choice(["stop", "skip"]), default="stop", help="skip: list it in skipped.jsonl.")
@click.option("--overwrite", is_flag=True, help="Remove the shards that DEST names first.")
@click.option("--sync", is_flag=True, help="Wait for the disk after every shard.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary, or the plan, as JSON.")
def command(source: str, dest: str, dry_run: bool, as_json: bool, lift: tuple[str, ...], **given: Any) -> None:
    """Write SOURCE as WebDataset shards, with an index, to DEST.

    SOURCE: a folder with a folder for each class; a folder of files, where those with one name are one sample; a
    manifest (.csv .tsv .jsonl .parquet); shards (.tar, braces, URLs, .wdsindex); Parquet or Arrow files with the bytes,
    one or a folder of Hugging Face; .tfrecord; a folder of MDS or LitData; a .zip; a tar of tars; or - for paths on
    stdin.
    DEST: a pattern such as out/train-%06d.tar, or a folder.

    The same command again goes on where it was stopped. The same source and options give the same bytes.

    With --map or --resize, --maxcount without --maxsize counts samples of SOURCE, whatever becomes of them: a shard has
    fewer where some are dropped (none at all where all are), more where one becomes several. Otherwise both limits are
    of what is written. --engine ray with --map or --resize needs the former, and always a SOURCE that is listed before
    it is read: no pipe, and no Parquet with the bytes. The module of --map must be there on every machine, in the same
    folder or installed.
    """
    _load_numpy()
    from wdstools.convert.options import Options

    options = Options(**given, lift=lift or None)
    if options.uncountable:
        raise click.UsageError(options.uncountable)
    paths = _paths(options.nul) if source == "-" else []
    if dry_run:
        _show_plan(source, dest, options, paths, as_json)
        return
    bar = _Bar()
    try:
        from wdstools.convert import local

        summary = local.convert(source, dest, options, paths=paths, progress=bar.update, planned=bar.begin)
    except KeyboardInterrupt:
        bar.close()
        click.echo("wds-shard: stopped; the same command again goes on from here", err=True)
        raise
    finally:
        bar.close()
    _tell(summary, dest)
    if as_json:
        emit_json(summary.to_json())


def _load_numpy() -> None:
    """Load numpy, without the threads of its BLAS: they spin for 0.1 s of a core, and nothing here multiplies matrices.
    What this process starts is left as it was."""
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ or "numpy" in sys.modules:
        return
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[name]


def _paths(nul: bool) -> list[str]:
    return [path for path in os.fsdecode(read_stdin()).split("\0" if nul else "\n") if path]


class _Bar:
    """samples/s, MB/s and the time left, on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._nbytes, self._began = 0, time.monotonic()

    def begin(self, plan: Plan) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            return  # and tqdm is not loaded
        self._bar = progress(plan.total, "samples", "writing")
        self._began = time.monotonic()

    def update(self, samples: int, nbytes: int) -> None:
        self._nbytes += nbytes
        seconds = time.monotonic() - self._began
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._nbytes / 1e6 / max(seconds, 1e-3):,.0f} MB/s", refresh=False)
            self._bar.update(samples)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _show_plan(source: str, dest: str, options: Any, paths: list[str], as_json: bool) -> None:
    from wdstools.convert import journal
    from wdstools.convert.plan import estimate, make_plan

    plan = make_plan(source, dest, options, paths)
    found = journal.Job(plan.targets, plan.description, options.overwrite, plan.listing.newest, plan.saved)
    job = found.open(dry=True)
    rows: list[dict[str, Any]] = []
    for i, target in enumerate(plan.targets):
        row: dict[str, Any] = {"split": target.split, "pattern": target.pattern, "samples": len(plan.orders[i])}
        row |= {"samples": None} if plan.total is None else {}
        if plan.shards is not None:
            row |= {"shards": len(plan.shards[i])}
            row |= {} if plan.counted else {"nbytes": sum(shard.nbytes for shard in plan.shards[i])}
        rows.append(row)
    if as_json:
        skipped = [item._asdict() for item in plan.skipped]
        emit_json(
            {"state": job.state, "targets": rows, "skipped": skipped, "shuffle": plan.description["options"]["shuffle"]}
        )
        return
    for row in rows:
        if row["samples"] is None:
            emit([f"{row['pattern']}: as many samples as the stream has"])
        elif plan.counted:
            what = f"{row['samples']:,} samples of the source, as {row['shards']:,} shards"
            emit([f"{row['pattern']}: {what} (all of it is {_human(estimate(plan))} before)"])
        elif "shards" in row:
            emit([f"{row['pattern']}: {row['shards']:,} shards, {row['samples']:,} samples, {_human(row['nbytes'])}"])
        else:
            most = _human(estimate(plan))
            emit([f"{row['pattern']}: {row['samples']:,} samples, images made smaller (all of it is {most} before)"])
    if plan.skipped:
        emit([f"left out: {len(plan.skipped)}"])
    if job.state != "fresh":
        emit(["an unfinished run is there: it would go on" if job.state == "resume" else "all of it is there already"])


def _human(nbytes: int) -> str:
    value, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{nbytes:,} bytes" if units[0] == "bytes" else f"{value:.3g} {units[0]}"


def _tell(summary: Summary, dest: str) -> None:
    what = f"{summary.shards:,} shards, {summary.samples:,} samples, {_human(summary.nbytes)}"
    if summary.complete:
        click.echo(f"wds-shard: {dest} is complete: {what}", err=True)
    else:
        seconds = max(summary.seconds, 1e-3)
        rate = f"{summary.samples / seconds:,.0f} samples/s, {_human(int(summary.nbytes / seconds))}/s"
        kept = f"; {summary.kept:,} shards were there already" if summary.kept else ""
        click.echo(f"wds-shard: {what} in {seconds:.1f} s ({rate}){kept}", err=True)
    if summary.skipped:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in summary.reasons().items())
        click.echo(f"wds-shard: {len(summary.skipped):,} left out (see skipped.jsonl): {reasons}", err=True)


def main() -> None:
    """The entry point."""
    run(command)
