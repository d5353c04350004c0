"""Records of other formats -> samples: rows of named values, of which bytes become fields, and the rest json.

A value that is bytes (or an array, which becomes npy) is a field. It is called by its content (jpg, png, ...) where
the record has only one, else COLUMN.jpg; what is of no known kind is called by its column. A column that is called
like a kind of file (jpg, txt, npy) keeps its name. `cls` or an integer `label` is the field cls; `txt`, `text` or
`caption`, the first that there is, is txt; columns of --inline are fields of their names; the others are one field
json. Keys are a column, or the number of the record, whatever --where leaves out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from wdstools import encode
from wdstools.convert.condition import holding
from wdstools.convert.images import IMAGES, Failure
from wdstools.convert.manifest import as_bytes, plain
from wdstools.convert.options import Options
from wdstools.convert.sources import Fields, Listing, check_field, check_key
from wdstools.errors import EncodeError, SourceError, WdsError

KEYS = ("__key__", "key", "id")
_TEXTS = ("txt", "text", "caption")
_KINDS = IMAGES | {
    "txt", "cls", "json", "npy", "npz", "wav", "flac", "mp3", "ogg", "opus", "m4a", "mp4", "webm", "mkv", "avi", "mov",
    "pdf", "bin", "pyd", "pkl", "pth", "pt", "gz", "html", "xml", "glb", "exr", "jxl", "avif", "heic",
}  # fmt: skip
_MAGIC = [
    (0, b"\xff\xd8\xff", "jpg"), (0, b"\x89PNG\r\n\x1a\n", "png"), (0, b"GIF8", "gif"), (0, b"BM", "bmp"),
    (0, b"II*\0", "tif"), (0, b"MM\0*", "tif"), (0, b"fLaC", "flac"), (0, b"OggS", "ogg"), (0, b"ID3", "mp3"),
    (0, b"\x93NUMPY", "npy"), (0, b"%PDF-", "pdf"), (0, b"\x1aE\xdf\xa3", "mkv"), (0, b"glTF", "glb"),
    (8, b"WEBP", "webp"), (8, b"WAVE", "wav"), (8, b"AVI ", "avi"), (4, b"ftypavif", "avif"), (4, b"ftypheic", "heic"),
    (4, b"ftypM4A", "m4a"), (4, b"ftyp", "mp4"),
]  # fmt: skip


class File(NamedTuple):
    """A value that is a file: its bytes, and its extension where it is known, else ""."""

    data: bytes
    ext: str = ""


class Record(NamedTuple):
    """A row of a source. `where`: for errors; values are bytes, File, arrays, or what JSON has."""

    where: str
    values: Mapping[str, Any]


Rows = Iterator[Record | Failure]


def sniff(data: bytes) -> str:
    """Return the extension that the first bytes of a file stand for, or ""."""
    for at, magic, ext in _MAGIC:
        if data.startswith(magic, at) and (at != 8 or data[:4] == b"RIFF"):
            return ext
    return "mp3" if data[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2") else ""


def list_records(
    kind: str, rows: Callable[[], Rows], options: Options, paths: Iterable[str], name: str, total: int | None = None
) -> Listing:
    """Return a listing that streams records. `paths`: of all files, in order; `total`: how many records, if known."""
    identity = []
    listing = Listing(kind, name=name)
    for path in paths:
        about = os.stat(path)
        listing.saw(about, path)
        identity.append(f"{os.path.basename(path)} {about.st_size}")
    listing.identity = "\n".join(identity)
    width = max(6, len(str(total - 1))) if total else 9

    def stream() -> Iterator[tuple[str, Fields | Failure]]:
        column: str | None = options.key_column
        known = column is not None or options.keys == "number"
        for number, row in holding(enumerate(rows()), options.where, _columns):
            key = f"{number:0{width}d}"
            if not isinstance(row, Record):
                yield key, row
                continue
            if not known:
                column = next((n for n in KEYS if isinstance(row.values.get(n), str | int)), None)
                known = True
            yield _sample(row, key, column, options)

    listing.stream = stream
    return listing


def _sample(row: Record, number: str, column: str | None, options: Options) -> tuple[str, Fields | Failure]:
    """Raises SourceError where no record can be right: a column that is not there."""
    if options.key_column is not None and column not in row.values:
        raise SourceError(f"{row.where}: has no column {column!r}; it has {', '.join(row.values)}")
    key = number
    if column is not None and options.keys != "number":
        if row.values.get(column) is None:
            return number, Failure(row.where, "no key in its row", f"column {column!r} is empty")
        key = str(row.values[column])
    if wrong := check_key(key):
        return key, Failure(row.where, *wrong)
    try:
        fields = fields_of(row.values, column, options)
    except (EncodeError, ValueError, TypeError) as error:
        return key, Failure(row.where, "a value that is no field", str(error))
    for name in fields:
        if wrong := check_field(name):
            return key, Failure(row.where, *wrong)
    if not fields:
        return key, Failure(row.where, "no field in its row", f"it has {', '.join(row.values)}")
    return key, fields


def fields_of(values: Mapping[str, Any], key: str | None, options: Options) -> Fields:
    """Return the fields of a record. Raises ValueError, TypeError, EncodeError."""
    files = [n for n, v in values.items() if n != key and n not in options.drop and _is_file(v)]
    found: list[tuple[str, bytes]] = []
    rest: dict[str, Any] = {}
    text = next((n for n in _TEXTS if isinstance(values.get(n), str)), None)
    for name, value in values.items():
        if name in options.drop or value is None or (name == key and name not in options.inline):
            continue
        if name in files:
            file = _file(value)
            found.append((_field(name, file, len(files) == 1), file.data))
        elif name in options.inline or name == "cls":
            found.append((clean(name), as_bytes(value, name)))
        elif name == "label" and isinstance(value, int) and "cls" not in values:
            found.append(("cls", b"%d" % value))
        elif name == text:
            found.append(("txt", value.encode("utf-8", "surrogatepass")))
        elif name == "json" and isinstance(value, dict):
            rest |= value
        else:
            rest[name] = value
    if rest:
        found.append(("json", json.dumps(plain(rest), ensure_ascii=False).encode("utf-8", "surrogatepass")))
    return _picked(found, options)


def _picked(found: list[tuple[str, bytes]], options: Options) -> Fields:
    renamed = dict(options.rename)
    fields: Fields = {}
    for name, data in found:
        if name in options.drop or (options.keep and name not in options.keep):
            continue
        new = renamed.get(name, name).lower()
        if new in fields:
            raise ValueError(f"two columns would be the field {new!r}; rename or drop one")
        fields[new] = data
    return fields


def _is_file(value: Any) -> bool:
    return isinstance(value, bytes | File) or hasattr(value, "__array_interface__")


def _file(value: Any) -> File:
    if isinstance(value, File):
        return value
    if isinstance(value, bytes):
        return File(value)
    return File(encode.encode(value, "npy"), "npy")


def _field(column: str, file: File, only: bool) -> str:
    name = clean(column)
    if name in _KINDS:
        return name
    ext = file.ext or sniff(file.data)
    return name if not ext else ext if only else f"{name}.{ext}"


def clean(column: str) -> str:
    """Return a column's name as a field may be called."""
    return re.sub(r"[^\w.-]+", "_", column.lower()).strip("_.") or "field"


def _columns(item: tuple[int, Record | Failure]) -> dict[str, Any] | None:
    """What a condition sees of a record."""
    row = item[1]
    if not isinstance(row, Record):
        return None
    return {name: value for name, value in row.values.items() if not _is_file(value)}


def failure(where: str, error: Exception) -> Failure:
    """Return what an error says of a record."""
    text = (
        error.strerror or str(error) if isinstance(error, OSError) and not isinstance(error, WdsError) else str(error)
    )
    return Failure(where, "cannot be read", text)
