"""MDS folders of mosaicml-streaming, without it: index.json (version 2) and shards, compressed or not."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from wdstools.convert.chunks import array, check_hashes, load_index, pil, read_whole, split_chunk
from wdstools.convert.options import Options
from wdstools.convert.records import File, Record, Rows, failure, list_records
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError

_NUMBERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {"float16", "float32", "float64"}
_VALUE_TYPES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
_SHAPE_TYPES = ("u1", "<u2", "<u4", "<u8")
_COMPRESSED = {"zstd", "gz", "bz2"}  # as zstd:7


def is_mds(folder: str) -> bool:
    """Say whether a folder is one."""
    index = load_index(folder)
    shards = (index or {}).get("shards")
    return (
        isinstance(shards, list) and bool(shards) and isinstance(shards[0], dict) and shards[0].get("format") == "mds"
    )


def list_mds(folder: str, options: Options) -> Listing:
    """List a folder. Raises SourceError."""
    index = load_index(folder) or {}
    path = os.path.join(folder, "index.json")
    if index.get("version") != 2:
        raise SourceError(f"{path}: MDS of version {index.get('version')!r}; version 2 can be read")
    try:
        shards = [_Shard(folder, about, options.drop) for about in index["shards"]]
    except SourceError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: not an index of MDS: {error!r}") from error

    def rows() -> Rows:
        for shard in shards:
            yield from shard.rows()

    name = re.sub(r"[^A-Za-z0-9_-].*", "", os.path.basename(os.path.abspath(folder)))
    total = sum(shard.samples for shard in shards)
    return list_records("mds", rows, options, [path, *(shard.path for shard in shards)], name, total)


class _Shard:
    """One file. Raises KeyError, SourceError for what its entry in the index lacks."""

    def __init__(self, folder: str, about: dict[str, Any], drop: frozenset[str]) -> None:
        self.samples = int(about["samples"])
        self.names, self.sizes = list(about["column_names"]), list(about["column_sizes"])
        raw, zipped = about["raw_data"], about.get("zip_data")
        self.nbytes, self.hashes = int(raw["bytes"]), dict(raw.get("hashes") or {})
        plain = os.path.join(folder, os.path.basename(raw["basename"]))
        self.compressed = zipped is not None and not os.path.exists(plain)
        self.path = os.path.join(folder, os.path.basename(zipped["basename"])) if zipped and self.compressed else plain
        kind = str(about.get("compression") or "").partition(":")[0]
        if self.compressed and kind not in _COMPRESSED:
            raise SourceError(f"{self.path}: compressed with {kind}; decompress it first, or write it as zstd or gz")
        encodings = list(about["column_encodings"])
        pairs = zip(self.names, encodings, strict=True)
        self.coders = [None if name in drop else _coder(str(encoding), self.path) for name, encoding in pairs]
        if not len(self.names) == len(self.sizes) == len(self.coders):
            raise SourceError(f"{self.path}: its index has columns without a size or an encoding")

    def rows(self) -> Rows:
        data = read_whole(self.path, self.compressed)
        if len(data) != self.nbytes:
            raise SourceError(f"{self.path}: {len(data)} bytes, where its index has {self.nbytes}")
        check_hashes(self.path, data, self.hashes)
        number = 0
        for offset, sample in split_chunk(self.path, data):
            number += 1
            where = f"{self.path}: sample {number} at byte {offset}"
            try:
                yield Record(where, self._values(sample))
            except (ValueError, TypeError, LookupError, struct.error) as error:
                yield failure(where, error)
        if number != self.samples:
            raise SourceError(f"{self.path}: {number} samples, where its index has {self.samples}")

    def _values(self, data: bytes) -> dict[str, Any]:
        at = 4 * self.sizes.count(None)
        variable = iter(struct.unpack_from(f"<{at // 4}I", data))
        sizes = [next(variable) if size is None else size for size in self.sizes]
        if at + sum(sizes) != len(data):
            raise ValueError(f"{len(data)} bytes, where its columns have {at + sum(sizes)}")
        found = {}
        for name, coder, size in zip(self.names, self.coders, sizes, strict=True):
            if coder is not None:
                found[name] = coder(data[at : at + size])
            at += size
        return found


def _coder(encoding: str, path: str) -> Callable[[bytes], Any]:
    """What makes a value of the bytes of a column. Raises SourceError for an encoding that is not known."""
    kind, _, rest = encoding.partition(":")
    fixed: dict[str, Callable[[bytes], Any]] = {
        "bytes": bytes, "str": bytes.decode, "json": json.loads, "pil": pil, "pkl": lambda data: File(data, "pkl"),
        "jpeg": lambda data: File(data, "jpg"), "png": lambda data: File(data, "png"),
        "str_int": lambda data: int(data.decode()), "str_float": lambda data: float(data.decode()),
        "str_decimal": bytes.decode, "int": lambda data: int(array(data, "i8")[0]),
    }  # fmt: skip
    if kind in fixed:
        return fixed[kind]
    if kind in _NUMBERS:
        return lambda data: array(data, kind)[0].item()
    if kind == "ndarray":
        return _ndarray(rest)
    if kind in ("jpeg_array", "jpegarray", "list[jpeg]", "list[png]", "list[pil]"):
        raise SourceError(
            f"{path}: a column of lists of images ({encoding}) has no place in a sample: leave it out with --drop"
        )
    raise SourceError(f"{path}: a column with an encoding that is not known: {encoding}")


def _ndarray(config: str) -> Callable[[bytes], Any]:
    """`dtype:shape`, where either may be lacking: then it stands before the numbers."""
    dtype, _, text = config.partition(":")
    shape = tuple(map(int, text.split(","))) if text else None

    def decode(data: bytes) -> Any:
        kind, rest = (dtype, data) if dtype else (_VALUE_TYPES[data[0]], data[1:])
        if shape is not None:
            return array(rest, kind, shape)
        of = np.dtype(_SHAPE_TYPES[rest[0] & 3])
        end = 1 + (rest[0] >> 2) * of.itemsize
        return array(rest[end:], kind, tuple(np.frombuffer(rest[1:end], of).tolist()))

    return decode
