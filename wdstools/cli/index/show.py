"""`wds-index ls`, `get` and `info`: what reads indexes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_bytes, emit_json, human, split_commas
from wdstools.errors import KeyMissingError

if TYPE_CHECKING:
    from wdstools.dataset import Dataset

CHUNK = 4096  # rows that are text at one time
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


@click.command(
    epilog="""\b
Examples:
  $ wds-index ls out --where "cls = 3 and nbytes > 100_000" --limit 10
  $ wds-index ls out --where "key like 'n015%'" --columns key | wc -l
  $ wds-index ls out --json --columns key,cls | jq -r .key
  $ wds-index ls out --where "not list_contains([f.ext for f in fields], 'txt')" """
)
@click.argument("target")
@click.option("--where", metavar="SQL", help="A condition in DuckDB's SQL over the columns.")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="Print at most N rows.")
@click.option(
    "--columns", metavar="NAME,...", multiple=True, callback=split_commas,
    help="Which, in this order. Default: key, file, nbytes, fields, and those that were lifted.",
)  # fmt: skip
@click.option("--header/--no-header", default=None, help="A first line with the names. Default: on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: one object a row, values as they are.")
def ls(
    target: str, where: str | None, limit: int | None, columns: tuple[str, ...], header: bool | None, as_json: bool
) -> None:
    """List the samples of TARGET, one a line, in the order of the shards, columns separated by tabs.

    The columns are key, shard, start, end, fields; row (the number in the index), nbytes (of the sample in its shard),
    url and file (of the shard); and those that were lifted: cls, json:width, which is width too. Tabs and newlines in
    values are printed as \\t and \\n; --json has them as they are.
    """
    from wdstools.dataset import open_dataset

    dataset = open_dataset(target)
    index = dataset.index
    view = index.view()
    for name in columns:
        if name not in view.column_names:
            raise click.BadParameter(f"no column {name!r}; there are {', '.join(view.column_names)}")
    names = list(columns) or ["key", "file", "nbytes", "fields", *index.lifted()]
    rows = _chosen(dataset, where)[:limit]
    text = _json if as_json else _line
    if header or (header is None and not as_json and sys.stdout is not None and sys.stdout.isatty()):
        emit(["\t".join(names)])
    for begin in range(0, len(rows), CHUNK):
        some = view.select(names).take(rows[begin : begin + CHUNK]).to_pylist()
        emit(map(text, some))


def _chosen(dataset: Dataset, where: str | None) -> Any:
    import numpy as np

    rows = np.asarray(dataset.rows, dtype=np.int64)
    return rows if where is None else rows[np.isin(rows, dataset.index.where(where))]


def _json(value: Any) -> str:
    import json  # what help need not load

    return json.dumps(value, ensure_ascii=False, default=str)


def _line(row: dict[str, Any]) -> str:
    return "\t".join(_cell(name, value) for name, value in row.items())


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "fields":
        value = ",".join(field["ext"] for field in value)
    elif isinstance(value, dict | list):
        value = _json(value)
    return str(value).translate(_ESCAPES)


@click.command(
    epilog="""\b
Examples:
  $ wds-index get out n01514668/n01514668_123 jpg > picture.jpg
  $ wds-index get out 17 -o samples
  $ wds-index get out --key 17 cls
  $ wds-index get out -- -1 json | jq ."""
)
@click.argument("target")
@click.argument("which", metavar="KEY|NUMBER")
@click.argument("field", required=False)
@click.option("-o", "--output", default=".", show_default=True, metavar="DIR", help="Where a whole sample goes.")
@click.option("--key", "what", flag_value="key", help="Take KEY|NUMBER for a key.")
@click.option("--number", "what", flag_value="number", help="Take KEY|NUMBER for a number.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def get(target: str, which: str, field: str | None, output: str, what: str | None, overwrite: bool) -> None:
    """Get one sample of TARGET: one FIELD on stdout, or all of them as files KEY.FIELD in DIR, whose paths are printed.

    KEY|NUMBER is a key if a sample has it, and else, if it is a plain number (17, -1, but not 017), that of a sample,
    from 0, negative from the end. What is the key of one sample and the number of another is refused: say which.
    """
    from wdstools.dataset import open_dataset
    from wdstools.extract import NOT_FIELDS, extract

    dataset = open_dataset(target)
    number = _number(dataset, which, what)
    sample = dataset[number]
    if field is None:
        emit(extract(sample, output, overwrite=overwrite))
        return
    field = field.lower()  # as all fields are
    if field not in sample or field in NOT_FIELDS:
        there = ", ".join(name for name in sample if name not in NOT_FIELDS)
        raise KeyMissingError(f"sample {sample['__key__']!r} has no field {field!r}; it has {there}")
    emit_bytes(sample[field])


def _number(dataset: Dataset, which: str, what: str | None) -> int:
    """Which sample is meant. Raises KeyMissingError."""
    plain = re.fullmatch(r"-?(?:0|[1-9][0-9]*)", which) is not None
    if what == "number" and not plain:
        raise click.UsageError(f"{which!r} is not a number")
    as_key = None if what == "number" else _position(dataset, which)
    if what == "key" or not plain:
        if as_key is None:
            dataset[which]  # its error names keys that are near
        return as_key or 0
    n, count = int(which), len(dataset)
    as_number = (n + count if n < 0 else n) if -count <= n < count else None
    if as_key is None and as_number is None:
        raise KeyMissingError(f"no sample has the key or the number {which}; there are {count:,}")
    if as_key is not None and as_number is not None and as_key != as_number:
        raise click.UsageError(f"{which} is the key of sample {as_key} and a number: say --key or --number")
    return as_number if as_key is None else as_key  # type: ignore[return-value]


def _position(dataset: Dataset, key: str) -> int | None:
    """The number of the first sample with a key."""
    import numpy as np

    found = np.flatnonzero(np.isin(np.asarray(dataset.rows), dataset.index.find(key)))
    return int(found[0]) if len(found) else None


@click.command(
    epilog="""\b
Examples:
  $ wds-index info out
  $ wds-index info out/train.wdsindex --json | jq .samples"""
)
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(target: str, as_json: bool) -> None:
    """Tell what is in TARGET: shards, samples, members, bytes, fields, columns, keys that come more than once."""
    from wdstools.dataset import open_dataset
    from wdstools.summary import describe

    dataset = open_dataset(target)
    found = describe(dataset.index, dataset.rows)
    if as_json:
        emit_json(found)
        return
    emit(_described(found))


def _described(found: dict[str, Any]) -> Iterator[str]:
    yield f"index       {found['path'] or 'none, counted from headers'} (format {found['version']}), {found['state']}"
    for name in ("shards", "samples", "members"):
        yield f"{name:11} {found[name]:,}"
    yield f"bytes       {human(found['nbytes'])} ({found['nbytes']:,})"
    for i, (name, field) in enumerate(found["fields"].items()):
        yield f"{'' if i else 'fields':11} {name}: {field['samples']:,} samples, {human(field['mean'])} each"
    for i, (name, kind) in enumerate(found["columns"].items()):
        yield f"{'' if i else 'columns':11} {name}: {kind}"
    some = ", ".join(list(found["duplicates"])[:3])
    count = len(found["duplicates"])
    yield f"duplicates  {f'{count:,} keys, such as {some}' if count else 'none'}"
