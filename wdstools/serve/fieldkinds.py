"""What a field is, by its name: its content type, and how a page shows it."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class Kind(NamedTuple):
    """`type`: its content type; `kind`: image, audio, video, json, text, number or hex."""

    type: str
    kind: str


_TEXT = "text/plain; charset=utf-8"
_KINDS = {
    "image": {
        "jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp", "gif": "gif", "bmp": "bmp", "tif": "tiff",
        "tiff": "tiff", "avif": "avif", "ppm": "x-portable-pixmap", "pgm": "x-portable-graymap",
        "pbm": "x-portable-bitmap", "jp2": "jp2",
    },
    "audio": {
        "wav": "wav", "mp3": "mpeg", "flac": "flac", "ogg": "ogg", "opus": "ogg", "m4a": "mp4", "aac": "aac",
    },
    "video": {
        "mp4": "mp4", "m4v": "mp4", "webm": "webm", "mkv": "x-matroska", "mov": "quicktime", "avi": "x-msvideo",
        "ogv": "ogg",
    },
}  # fmt: skip
_TEXTS = [
    "txt", "text", "transcript", "caption", "csv", "tsv", "md", "srt", "vtt", "yaml", "yml", "toml", "jsonl",
    "log", "py",
]  # fmt: skip
_NUMBERS = ["cls", "cls2", "class", "count", "index", "inx", "id", "score", "label"]

IMAGES = frozenset(_KINDS["image"])
KINDS: dict[str, Kind] = {
    **{ext: Kind(f"{kind}/{name}", kind) for kind, exts in _KINDS.items() for ext, name in exts.items()},
    **{ext: Kind(_TEXT, "text") for ext in _TEXTS},
    **{ext: Kind(_TEXT, "number") for ext in _NUMBERS},
    "json": Kind("application/json", "json"),
    "jsn": Kind("application/json", "json"),
    "htm": Kind("text/html; charset=utf-8", "text"),
    "html": Kind("text/html; charset=utf-8", "text"),
    "svg": Kind("image/svg+xml", "text"),
    "xml": Kind("text/xml; charset=utf-8", "text"),
    "pdf": Kind("application/pdf", "hex"),
}
_OTHER = Kind("application/octet-stream", "hex")


def kind_of(field: str) -> Kind:
    return KINDS.get(field.rpartition(".")[2].lower(), _OTHER)


def is_image(field: str) -> bool:
    return field.rpartition(".")[2].lower() in IMAGES


def column_type(kind: pa.DataType) -> str:
    """number, text, bool or other."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return "text"
    return "other"


def class_column(columns: dict[str, str]) -> str | None:
    """The column that is likely to be the class. `columns`: names and types."""
    for name in ("cls", "class", "label", "category", "class_name", "label_name"):
        if columns.get(name) in ("number", "text", "bool"):
            return name
    return None
