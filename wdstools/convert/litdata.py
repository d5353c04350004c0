"""Folders of LitData chunks (`litdata.optimize`), without it: index.json and chunk-*.bin."""

from __future__ import annotations

import json
import os
import re
import struct
from typing import Any

from wdstools.convert import litjson
from wdstools.convert.chunks import array, load_index, pil, read_whole, split_chunk
from wdstools.convert.options import Options
from wdstools.convert.records import File, Record, Rows, failure, list_records
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError

_DTYPES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "bool",
)  # fmt: skip
_TENSORS = {0: "float32", 1: "float32", 2: "float64", 3: "float64", 4: "complex64", 5: "complex64", 6: "complex128"}
_TENSORS |= {7: "complex128", 8: "float16", 9: "float16", 11: "uint8", 12: "int8", 13: "int16", 14: "int16"}
_TENSORS |= {15: "int32", 16: "int32", 17: "int64", 18: "int64", 19: "bool", 20: "uint16"}  # 10: bfloat16


def is_litdata(folder: str) -> bool:
    """Say whether a folder is one."""
    index = load_index(folder)
    return index is not None and isinstance(index.get("chunks"), list) and isinstance(index.get("config"), dict)


def list_litdata(folder: str, options: Options) -> Listing:
    """List a folder. Raises SourceError for what was not written by the default loader, or is encrypted."""
    index = load_index(folder) or {}
    where, config = os.path.join(folder, "index.json"), index["config"]
    if config.get("encryption"):
        raise SourceError(f"{where}: the chunks are encrypted")
    if config.get("item_loader") not in (None, "PyTreeLoader"):
        raise SourceError(f"{where}: written for {config['item_loader']}, which keeps no samples that stand alone")
    if config.get("compression") and config["compression"].partition(":")[0] not in ("zstd", "gzip"):
        raise SourceError(f"{where}: chunks that are compressed with {config['compression']}")
    if config.get("compression_level") not in (None, "chunk") or config.get("compression_batch_size"):
        raise SourceError(f"{where}: items that are compressed one by one")
    try:
        chunks = [
            (os.path.join(folder, os.path.basename(c["filename"])), int(c["chunk_size"])) for c in index["chunks"]
        ]
        formats = list(config["data_format"])
        names = _leaves(json.loads(config["data_spec"])[1], "") if config.get("data_spec") else [""]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SourceError(f"{where}: not an index of LitData: {error!r}") from error
    if len(names) != len(formats):
        raise SourceError(f"{where}: {len(names)} names for {len(formats)} values")

    def rows() -> Rows:
        for path, count in chunks:
            data = read_whole(path, bool(config.get("compression")))
            number = 0
            for offset, sample in split_chunk(path, data):
                number += 1
                at = f"{path}: item {number} at byte {offset}"
                try:
                    yield Record(at, _values(sample, names, formats))
                except (ValueError, TypeError, LookupError, struct.error) as error:
                    yield failure(at, error)
            if number != count:
                raise SourceError(f"{path}: {number} items, where its index has {count}")

    base = re.sub(r"[^A-Za-z0-9_-].*", "", os.path.basename(os.path.abspath(folder)))
    paths = [where, *(path for path, _ in chunks)]
    return list_records("litdata", rows, options, paths, base, sum(count for _, count in chunks))


def _leaves(spec: dict[str, Any], name: str) -> list[str]:
    """The names of the values of an item: keys of dicts and numbers in lists, joined by dots."""
    children = spec["children_spec"]
    if not children and spec["type"] is None:
        return [name or "item"]
    context = spec.get("context")
    keys = json.loads(context) if isinstance(context, str) and context.startswith("[") else None
    if not isinstance(keys, list) or len(keys) != len(children):
        keys = list(range(len(children)))
    pairs = zip(keys, children, strict=True)
    return [leaf for key, child in pairs for leaf in _leaves(child, f"{name}.{key}".lstrip("."))]


def _values(data: bytes, names: list[str], formats: list[str]) -> dict[str, Any]:
    sizes = struct.unpack_from(f"<{len(names)}I", data)
    at = 4 * len(names)
    if at + sum(sizes) != len(data):
        raise ValueError(f"{len(data)} bytes, where its values have {at + sum(sizes)}")
    found = {}
    for name, form, size in zip(names, formats, sizes, strict=True):
        found[name] = _value(data[at : at + size], *form.partition(":")[::2])
        at += size
    return found


def _value(data: bytes, kind: str, rest: str) -> Any:
    """Raises ValueError for a kind that is not known."""
    if kind in ("bytes", "file", "video", "audio", "image", "nifti", "mesh", "pdf", "tifffile"):
        return File(data, rest or {"pdf": "pdf", "tifffile": "tif"}.get(kind, ""))
    if kind in ("str", "text"):
        return data.decode()
    if kind in ("int", "float"):
        return array(data, "i8" if kind == "int" else "f8")[0].item()
    if kind == "bool":
        return data[0] != 0
    if kind == "json":
        return litjson.loads(data)
    if kind == "jpeg":
        return File(data, "jpg")
    if kind == "pil":
        return pil(data)
    if kind == "pickle":
        return File(data, "pkl")
    if kind in ("no_header_numpy", "no_header_tensor"):
        return array(data, _DTYPES[int(rest)] if kind.endswith("numpy") else _TENSORS[int(rest)])
    if kind in ("numpy", "tensor"):
        order = "<" if kind == "numpy" else ">"
        code, rank = struct.unpack_from(f"{order}2I", data)
        shape = struct.unpack_from(f"{order}{rank}I", data, 8)
        return array(data[8 + 4 * rank :], _DTYPES[code] if kind == "numpy" else _TENSORS[code], shape)
    raise ValueError(f"a value of a kind that is not known: {kind}")
