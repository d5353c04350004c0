"""Shards -> entries: local ones by their index, any others as a stream."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from wdstools import urls
from wdstools.convert.entries import Entry
from wdstools.convert.options import Options
from wdstools.convert.sources import Faults, Fields, Listing, check_field, finish
from wdstools.errors import NotFoundError, SourceError

if TYPE_CHECKING:
    from wdstools.dataset import Dataset

_BESIDE = (".tar", ".wdsindex", ".json", ".jsonl", ".idx", ".sqlite", ".txt", ".md")
_PLAIN = ".tar"
JOB = ".wdsjob"
"""Of the file that says what a job is to do, until it is done: see journal.py."""


def is_shards(source: str) -> bool:
    """Say whether a SOURCE that is no manifest names shards."""
    if os.path.isdir(source):
        with os.scandir(source) as found:
            items = [item for item in found if item.name[0] != "."]
        tars = any(item.name.endswith(_PLAIN) for item in items)
        return tars and all(item.name.endswith(_BESIDE) and not item.is_dir() for item in items)
    if os.path.exists(source):
        return not source.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
    return urls.scheme(source) != "file" or any(c in source for c in "{:") or ".tar" in source.lower()


def list_shards(source: str, options: Options, faults: Faults) -> Listing:
    """List shards. Those that cannot be read in any order are streamed, and so cannot be shuffled or split."""
    if source.endswith(".wdsindex") or os.path.isdir(source):
        return _list_local(source, options, faults)
    names = urls.expand(source)
    if all(_is_plain(name) for name in names):
        return _list_local(source, options, faults)
    wanted = [
        text
        for text, given in (
            ("--shuffle", options.shuffle), ("--split", options.splits), ("--by", options.by),
            ("--where, --join, --sort-by or --sample", options.selects()),
        )
        if given
    ]  # fmt: skip
    if wanted:
        raise SourceError(f"{source}: {wanted[0]} needs shards that can be read in any order: uncompressed local files")
    pick = picker(options)

    def stream() -> Iterator[tuple[str, Fields]]:
        from wdstools import reader

        for sample in reader.stream(names):
            key = sample["__key__"]
            fields: Fields = {}
            for name, value in sample.items():
                new = None if name[:2] == "__" else pick(name)
                if new in fields:
                    raise SourceError(f"sample {key!r} of {sample['__url__']}: two fields would be called {new!r}")
                if new is not None:
                    if wrong := check_field(new):
                        raise SourceError(f"sample {key!r} of {sample['__url__']}: {': '.join(wrong)}")
                    fields[new] = value
            if not fields:
                raise SourceError(f"sample {key!r} of {sample['__url__']}: no field is left")
            yield key, fields

    listing = Listing("stream", stream=stream, identity="\n".join(names))
    _note_times(listing, names)
    return listing


def _is_plain(name: str) -> bool:
    """Whether a shard can be read in any order: a local tar, and no FIFO."""
    path = urls.local_path(name)
    return path is not None and path.lower().endswith(_PLAIN) and (os.path.isfile(path) or not os.path.exists(path))


def _check_finished(source: str, shards: Iterable[str]) -> None:
    """Raises SourceError where wds-shard has not finished the shards: some would be missing, and nobody would know."""
    if source.endswith(".wdsindex"):
        return  # it is written when they are finished
    folder, stem = source, ""
    if not os.path.isdir(source):
        folder, name = os.path.split(urls.index_name([urls.escape(url) for url in shards]))
        stem = name.removesuffix(".wdsindex")
    for name in os.listdir(folder or "."):
        if name.startswith(".") and name.endswith(JOB) and (not stem or stem in name[1 : -len(JOB)].split("+")):
            path = os.path.join(folder, name)
            raise SourceError(f"{path}: these shards are not finished: run the command that writes them again first")


def _note_times(listing: Listing, names: Iterable[str]) -> None:
    for name in names:
        path = urls.local_path(name)
        if path is not None:
            with contextlib.suppress(OSError):  # whoever opens it will say it better
                listing.saw(os.stat(path), path)


def picker(options: Options) -> Callable[[str], str | None]:
    """A function of the name of a field: its new name, or None to leave it out."""
    renamed = dict(options.rename)

    def pick(name: str) -> str | None:
        if name in options.drop or (options.keep and name not in options.keep):
            return None
        return renamed.get(name, name).lower()  # readers give it so

    return pick


def _list_local(source: str, options: Options, faults: Faults) -> Listing:
    from wdstools.dataset import Dataset, open_dataset

    try:
        data = open_dataset(source, views=True)
    except NotFoundError as error:
        raise SourceError(str(error)) from error
    _check_finished(source, data.index.shards.url)
    pick = picker(options)
    groups = _groups(data, options.by) if options.by else None
    changed = bool(
        options.rename or options.drop or options.keep or options.resize or options.map or options.keys == "number"
    )
    if options.selects():
        data = _select(data, options, source)
    whole = data if isinstance(data.rows, range) else Dataset(data.index, views=True)  # a row is its number there
    listing = Listing("shards", folder=source if os.path.isdir(source) else "")
    _note_times(listing, data.index.shards.url)
    listing.local_shards = [os.path.realpath(urls.local_path(url) or url) for url in data.index.shards.url]
    listing.identity = "\n".join(
        f"{os.path.basename(url)} {nbytes}"
        for url, nbytes in zip(data.index.shards.url, data.index.shards.nbytes, strict=True)
    )
    for table in options.join:
        listing.saw(os.stat(table), table)
    if options.selects() and not changed:
        from wdstools.convert import subset

        subset.list_spans(listing, data, options, faults, groups)
        return listing
    seen_at_all: dict[str, None] = {}
    entries: dict[int, Entry] = {}
    for row, found in _fields(data):
        key = data.index.key(row)
        parts: list[Any] = []
        seen: dict[str, str] = {}
        for name, nbytes in found:
            seen_at_all[name] = None
            new = pick(name)
            if new is None:
                continue
            if new in seen:
                detail = f"{seen[new]!r} and {name!r} would both be called {new!r}"
                faults.add(key, f"sample {key}", "two files for one field", detail)
                parts = []
                break
            seen[new] = name
            parts += (new, row, nbytes)
        if parts:
            group = None if groups is None else groups[row]
            entry = Entry(key, group, tuple(parts))
            if options.selects():
                entries[row] = entry
            else:
                listing.entries.append(entry)
        elif not seen:
            faults.add(key, f"sample {key}", "no field is left", f"it has {', '.join(n for n, _ in found)}")

    check_lacking(options, seen_at_all, source)

    def read(entry: Entry) -> Fields:
        fields: Fields = {}
        for name, value in whole[entry.parts[1]].items():
            new = None if name[:2] == "__" else pick(name)
            if new is not None:
                fields[new] = value
        return fields

    listing.read = read
    listing.entries.extend(entries[row] for row in map(int, data.rows) if row in entries)
    return finish(listing, options, faults, source, ordered=options.selects())


def _select(data: Dataset, options: Options, source: str) -> Dataset:
    from wdstools.convert import subset  # with Arrow's functions

    return subset.select(data, options, source)


def check_lacking(options: Options, seen: Iterable[str], source: str = "") -> None:
    """Raises SourceError where a field is to be changed that no sample has. `seen`: those that they have."""
    known = dict.fromkeys(seen)
    if lacking := {*options.drop, *options.keep, *(old for old, _ in options.rename)} - known.keys():
        where = f"{source}: " if source else ""
        raise SourceError(f"{where}no sample has a field {min(lacking)!r}; they have {', '.join(known)}")


def _fields(data: Any) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """Yield (row, [(field, nbytes), ...]) of every sample."""
    from wdstools import columns

    data.index.validate()
    rows = None if isinstance(data.rows, range) else {int(row) for row in data.rows}
    for chunk in columns.take_fields(data.index.table):
        names = [chunk.exts[code] for code in chunk.codes.tolist()]
        numbers = chunk.places[2].tolist()
        start = 0
        for row, end in enumerate(chunk.ends.tolist(), chunk.first):
            if rows is None or row in rows:
                yield row, list(zip(names[start:end], numbers[start:end], strict=True))
            start = end


def _groups(data: Any, by: str) -> list[str]:
    """The value of a column or field, for every row."""
    index = data.index
    if by in index.columns():
        return [str(value) for value in index.table.column(by).to_pylist()]
    values = [""] * len(index)
    for row, sample in zip(data.rows, data, strict=True):
        if by not in sample:
            raise SourceError(
                f"--by {by}: sample {index.key(int(row))!r} has no such field, and the index no such column"
            )
        values[int(row)] = bytes(sample[by]).decode("utf-8", "replace").strip()
    return values
