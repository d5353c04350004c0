"""Energon's prepared folder: `.nv-meta/` with the shard table, splits, dataset and SQLite sample index, and a
`.tar.idx` beside every shard. Layout of megatron-energon 7.4."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from wdstools import urls
from wdstools.errors import DestinationError, UnsupportedError, UrlError
from wdstools.index import Index
from wdstools.interop import energon, foreign
from wdstools.interop.claims import Claim, Field, Source
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, stale, wrong
from wdstools.interop.members import Rows, each, exact_names, first_rows, read_members, rows_of

FOLDER = ".nv-meta"
INFO, INDEX, UUID, SPLIT, DATASET = ".info.json", "index.sqlite", "index.uuid", "split.yaml", "dataset.yaml"
VERSION = "7.4.1"  # of megatron-energon, whose layout this is
DATASET_TEXT = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"

TABLE_NAMES = ("samples", "sample_parts")
TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
                      byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER,
                           content_byte_size INTEGER);
"""
INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""


@dataclass
class _Part:
    """What the files have of one shard."""

    offsets: bytes
    samples: list[tuple[Any, ...]]
    parts: list[tuple[Any, ...]]


def export(index: Index, options: Options) -> Written:
    """Write the folder, which is that of the shards, or `options.output`, and the index beside every shard.

    The split and the dataset are yours to edit, so those that are there stay. Raises UnsupportedError for keys that
    come twice and shards without samples, StaleIndexError, DestinationError.
    """
    root = options.output or os.path.dirname(urls.index_name([urls.escape(url) for url in index.shards.url]))
    names = _names(index, root)
    _check_keys(index)
    paths = [energon.index_path(foreign.local_path(url, "Energon")) for url in index.shards.url]
    meta = os.path.join(root, FOLDER)
    for path, url in zip(paths, index.shards.url, strict=True):
        claim_file(path, "energon", options.overwrite, url)
    claim_file(os.path.join(meta, INFO), "energon-info", options.overwrite)
    claim_file(os.path.join(meta, INDEX), "energon-sqlite", options.overwrite)
    written = Written([os.path.join(meta, INDEX), *paths])
    texts = {INFO: json.dumps(_info(index, names), indent=2), UUID: str(uuid.uuid4())}
    for name, text in ((SPLIT, _split(names)), (DATASET, DATASET_TEXT)):
        if os.path.lexists(os.path.join(meta, name)):
            written.notes.append(f"{os.path.join(meta, name)}: was there, and stays as it is")
        else:
            texts[name] = text
    with foreign.Batch() as batch:
        first = first_rows(index)
        parts = each(index, lambda number: _part(index, number, first), options.workers, options.progress)
        for path, data in zip(paths, _write_samples(batch.path(os.path.join(meta, INDEX)), parts), strict=True):
            batch.put(path, data)
        for name, text in texts.items():
            batch.put(os.path.join(meta, name), text.encode())
    written.paths += [os.path.join(meta, name) for name in texts]
    return written


def _names(index: Index, root: str) -> list[str]:
    """The shards as paths below the folder. Raises DestinationError."""
    found = []
    for url in index.shards.url:
        path = os.path.abspath(foreign.local_path(url, "Energon"))
        name = os.path.relpath(path, os.path.abspath(root or "."))
        if name.startswith("../") or not name.endswith(".tar"):
            raise DestinationError(f"{url}: Energon wants shards named .tar below the folder {root or '.'}")
        found.append(name)
    return found


def _check_keys(index: Index) -> None:
    for key, rows in index.duplicates().items():
        shards = [index.shards.url[index.locate(row)[1]] for row in rows[:2]]
        why = f"the key {key!r} is in {shards[1]} too, and Energon takes every key once"
        raise UnsupportedError(f"{why}; wds-index repair or wds-shard give them other names", shards[0])
    for url, count in zip(index.shards.url, index.shards.nsamples, strict=True):
        if not count:
            raise UnsupportedError("no samples, and Energon takes no shard without", url)


def _part(index: Index, number: int, first: list[int]) -> _Part:
    rows = rows_of(index, number, first)
    members = read_members(rows.url)
    _, exts = exact_names(index, rows, members)
    sizes = np.diff(rows.start, append=np.uint64(members.end))
    keys = rows.keys.to_pylist()
    samples = zip([number] * len(rows), keys, range(len(rows)), rows.start.tolist(), sizes.tolist(), strict=True)
    return _Part(energon.encode(rows.start, members.end), list(samples), list(_parts(rows, exts.to_pylist())))


def _parts(rows: Rows, exts: list[str]) -> Iterator[tuple[Any, ...]]:
    sample = np.repeat(np.arange(len(rows)), np.diff(rows.ends, prepend=0)).tolist()
    places = zip(sample, exts, rows.offset.tolist(), rows.nbytes.tolist(), strict=True)
    return ((rows.number, *place) for place in places)


def _write_samples(path: str, parts: Iterator[_Part]) -> list[bytes]:
    """Write the SQLite file. Returns what goes beside each shard."""
    offsets = []
    database = sqlite3.connect(path)
    try:
        database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
        for part in parts:
            database.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", part.samples)
            database.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", part.parts)
            offsets.append(part.offsets)
        database.commit()
        database.executescript(INDEXES)
    finally:
        database.close()
    return offsets


def _info(index: Index, names: list[str]) -> dict[str, object]:
    return {"energon_version": VERSION, "shard_counts": dict(zip(names, index.shards.nsamples, strict=True))}


def _split(names: list[str]) -> str:
    """All shards are for training; JSON's strings are YAML's."""
    lines = [f"  - {json.dumps(pattern)}" for pattern in urls.collapse(names)]
    return "\n".join(["split_parts:", "  train:", *lines, "  val: []", "  test: []", "exclude: []", ""])


def read(folder: str) -> list[Source]:
    """Read the shard table of a prepared folder (or of its .nv-meta); the rest is read shard by shard. Raises
    IndexFileError, NotFoundError; reading a shard also StaleIndexError."""
    root = os.path.dirname(folder.rstrip("/")) if os.path.basename(folder.rstrip("/")) == FOLDER else folder
    path = os.path.join(root, FOLDER, INFO)
    try:
        counts = json.loads(foreign.read_text(path))["shard_counts"]
        if not isinstance(counts, dict) or not all(type(n) is int and n >= 0 for n in counts.values()):
            raise TypeError("shard_counts is no table of numbers")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        wrong(path, f"not Energon's shard table: {error}")
    shards = []
    for name in counts:
        try:
            shards.append(urls.join(root, name))
        except UrlError as error:
            wrong(path, error)
    database: str | None = os.path.join(root, FOLDER, INDEX)
    if database is not None and not os.path.exists(database):
        database = None
    if database is not None:
        _check_numbers(database, len(shards))
    each = enumerate(zip(shards, counts.values(), strict=True))
    return [Source(shard, partial(_read_shard, database, i, shard, count)) for i, (shard, count) in each]


def _read_shard(database: str | None, number: int, shard: str, count: int) -> Claim:
    claim = energon.read(energon.index_path(shard), shard)
    claim.nsamples = count
    if database is not None:
        _add_samples(database, number, claim)
    return claim


def _check_numbers(path: str, shards: int) -> None:
    with foreign.sqlite(path, TABLE_NAMES) as database:
        extra = database.execute("SELECT count(*) FROM samples WHERE tar_file_id >= ?", (shards,)).fetchone()[0]
        if extra:
            wrong(path, f"{extra} samples of shards that {INFO} does not have")


def _add_samples(path: str, number: int, claim: Claim) -> None:
    """Put what the SQLite file has of a shard into its claim, which must have the same."""
    with foreign.sqlite(path, TABLE_NAMES) as database:
        rows = database.execute(
            "SELECT sample_key, sample_index, byte_offset, byte_size FROM samples WHERE tar_file_id = ? "
            "ORDER BY sample_index LIMIT ?",
            (number, len(claim.starts or ()) + 1),
        ).fetchall()
        _check_samples(path, claim, rows)
        claim.samples = _fields(path, database, number, len(rows))
    for key, sample in zip((row[0] for row in rows), claim.samples, strict=True):
        sample[:] = [field._replace(key=key) for field in sample]


def _check_samples(path: str, claim: Claim, rows: list[tuple[Any, ...]]) -> None:
    starts = list(claim.starts or ())
    if len(rows) != len(starts):
        count = "more" if len(rows) > len(starts) else str(len(rows))
        stale(path, claim.url, f"{count} samples, where {claim.path} has {len(starts)}")
    bounds = [*starts, claim.end or 0]
    for i, (key, number, start, size) in enumerate(rows):
        if not isinstance(key, str) or (number, start, size) != (i, bounds[i], bounds[i + 1] - bounds[i]):
            stale(path, claim.url, f"sample {i} ({key!r}) lies elsewhere than in {claim.path}")


def _fields(path: str, database: sqlite3.Connection, number: int, count: int) -> list[list[Field]]:
    found: list[list[Field]] = [[] for _ in range(count)]
    rows = database.execute(
        "SELECT sample_index, part_name, content_byte_offset, content_byte_size FROM sample_parts "
        "WHERE tar_file_id = ? ORDER BY sample_index, content_byte_offset",
        (number,),
    )
    for sample, name, offset, nbytes in rows:
        if not isinstance(name, str) or any(type(n) is not int or n < 0 for n in (sample, offset, nbytes)):
            wrong(path, f"a part of sample {sample!r} of shard {number} that is none: {name!r}")
        if sample >= count:
            wrong(path, f"a part of sample {sample} of shard {number}, which has {count}")
        found[sample].append(Field(None, name.lower(), offset, nbytes))
    return found
