"""What the tests of the index share: shards made here, and the naive model that an index is compared with."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from helpers import make_tar

from wdstools import build, shardindex
from wdstools.columns import make_fields
from wdstools.dataset import Dataset
from wdstools.index import Index
from wdstools.samples import split_name
from wdstools.shardtable import Shards

Files = list[tuple[str, bytes]]


class Row(NamedTuple):
    key: str
    shard: int
    start: int
    end: int
    fields: list[tuple[str, int, int, int]]


def model(shards: Sequence[bytes]) -> list[Row]:
    """What an index of these tars has, by way of tarfile."""
    rows: list[Row] = []
    for number, data in enumerate(shards):
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                name = split_name(member.name) if member.isreg() else None
                if name is None:
                    continue
                key, ext = name
                end = member.offset_data + -(-member.size // 512) * 512
                field = (ext, member.offset_data - 512, member.offset_data, member.size)
                if rows and (rows[-1].key, rows[-1].shard) == (key, number):
                    rows[-1] = rows[-1]._replace(end=end, fields=[*rows[-1].fields, field])
                else:
                    rows.append(Row(key, number, member.offset, end, [field]))
    return rows


def rows_of(index: Index) -> list[Row]:
    rows = []
    for row in range(len(index)):
        key, shard, start, end = index.locate(row)
        assert index.key(row) == key
        rows.append(Row(key, shard, start, end, [tuple(field) for field in index.fields(row)]))  # type: ignore[misc]
    return rows


def random_files(seed: int, samples: int = 6, prefix: str = "") -> Files:
    """The members of a shard: folders, long names, several fields, members that are no fields."""
    rng = random.Random(seed)
    files: Files = []
    for i in range(samples):
        folder = rng.choice(["", "a/", "b.c/", "x" * 120 + "/", "é/"])
        for ext in rng.sample(["jpg", "cls", "json", "seg.PNG", "txt"], rng.randint(1, 4)):
            files.append((f"{prefix}{folder}{i:03d}.{ext}", rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000]))))
        if rng.random() < 0.2:
            files.append((f"readme{i}", b"no field"))
    return files


def write_shards(folder: Path, shards: Iterable[Files], name: str = "t-%06d.tar", first: int = 0) -> list[str]:
    paths = []
    for number, files in enumerate(shards, first):
        path = folder / (name % number)
        formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        needs = any(len(member) > 99 for member, _ in files)
        path.write_bytes(make_tar(files, formats[number % 2 + 1] if needs else formats[number % 3]))
        paths.append(str(path))
    return paths


def labelled(labels: Sequence[str | bytes | None], ext: str = "cls", prefix: str = "s") -> Files:
    """Samples with a txt, and a field where the label is not None."""
    files: Files = []
    for i, label in enumerate(labels):
        files.append((f"{prefix}{i}.txt", b"text"))
        if label is not None:
            files.append((f"{prefix}{i}.{ext}", label.encode() if isinstance(label, str) else label))
    return files


def build_of(folder: Path, shards: Iterable[Files], **options: Any) -> Index:
    return build.build(write_shards(folder, shards), **options)


def save(index: Index, path: Path) -> Index:
    """Save and load."""
    index.save(path)
    return Index.load(path)


def with_column(index: Index, name: str, values: Any, kind: Any = None) -> pa.Table:
    """The table with one column replaced."""
    table = index.table
    return table.set_column(
        table.column_names.index(name), name, pa.array(values, kind or table.schema.field(name).type)
    )


def as_file(table: pa.Table, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a table as it is, as an index file."""
    if metadata is not None:
        table = table.replace_schema_metadata(metadata)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


def metadata_of(index: Index, base: str) -> dict[str, str]:
    return {"wds.version": "1", "wds.shards": index.shards.to_json(base)}


def payloads(index: Index, row: int) -> dict[str, bytes]:
    """A sample read by the offsets of its fields, without the C core."""
    _, shard, _, _ = index.locate(row)
    with open(index.shards.url[shard], "rb") as file:
        found = {}
        for field in index.fields(row):
            file.seek(field.offset)
            found[field.ext] = file.read(field.nbytes)
    return found


def fields_of(dataset: Dataset, row: int | str) -> dict[str, bytes]:
    return {name: value for name, value in dataset[row].items() if not name.startswith("__")}


def naive_hash(key: str) -> int:
    return xxhash.xxh64_intdigest(key.encode())


def shard_table(**columns: Any) -> Shards:
    return Shards(**columns)


def touch(path: str | os.PathLike[str], seconds: float = 5) -> None:
    """Give a file another mtime."""
    about = os.stat(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + int(seconds * 1e9)))


def with_column_added(index: Index, name: str, values: list[Any]) -> Index:
    return Index(index.table.add_column(5, name, pa.array(values)), index.shards)


def index_of(keys: list[str], per_shard: int = 0) -> Index:
    """An index of these keys, each with an empty field x, of shards that are not there: one, or so many rows each."""
    n = len(keys)
    size = per_shard or max(n, 1)
    starts = np.arange(n, dtype=np.uint64) % size * np.uint64(512)
    fields = make_fields(np.arange(n) + 1, np.zeros(n, np.int32), ["x"], [starts, starts + 512, np.zeros(n, np.uint64)])
    hashes = np.array([naive_hash(key) for key in keys], np.uint64)
    shard = np.arange(n) // size
    table = shardindex.assemble(pa.array(keys, pa.utf8()), shard, starts, starts + 512, fields, hashes, {})
    counts = [min(size, n - first) for first in range(0, n, size)] or [0]
    m = len(counts)
    names = ["/t.tar"] if m == 1 else [f"/t-{i}.tar" for i in range(m)]
    return Index(table, Shards(names, [512 * size if n else 0] * m, [0] * m, counts, counts))
