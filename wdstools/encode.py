"""Values -> bytes of a field, chosen by the field's name, as webdataset's writer does (writer.py, 1.0.2)."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wdstools.errors import EncodeError

Encoder = Callable[[Any], bytes]

_TENBIN_MAGIC = b"~TenBin~"
_TENBIN_TYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u8"]  # webdataset cannot read u4
_IMAGE_FORMATS = {
    "jpg": "JPEG", "jpeg": "JPEG", "img": "JPEG", "image": "JPEG", "png": "PNG",
    "pbm": "PPM", "pgm": "PPM", "ppm": "PPM", "tiff": "TIFF", "tif": "TIFF",
}  # fmt: skip


def encode(
    value: Any, field: str, *, allow_pickle: bool = False, encoders: Mapping[str, Encoder] | None = None
) -> bytes:
    """Return the bytes of a field.

    bytes-like values and str (as UTF-8) are taken as they are; others go by the last part of the field's name:
    cls cls2 class count index inx id -> decimal text; txt text transcript html htm -> UTF-8; json jsn; npy; npz;
    ten tenbin tb; mp msgpack msg (needs msgpack); cbor (needs cbor2 or cbor); jpg jpeg img image png pbm pgm ppm tiff
    tif (needs pillow; an image, or an array of floats in [0, 1] or of integers that the format holds); pyd pickle pth
    only with allow_pickle. A `.gz` behind the name compresses. `encoders` adds to these or replaces them.

    Raises EncodeError for a value without an encoder, or one that its encoder refuses.
    """
    return make_encoder(allow_pickle, encoders)(value, field)


def make_encoder(
    allow_pickle: bool = False, encoders: Mapping[str, Encoder] | None = None
) -> Callable[[Any, str], bytes]:
    """Return encode() for many values: what it finds out about a field's name is kept."""
    table = {**_ENCODERS, **(_PICKLES if allow_pickle else {}), **(encoders or {})}
    known: dict[str, tuple[Encoder | None, bool]] = {}

    def encoder(value: Any, field: str) -> bytes:
        found = known.get(field)
        if found is None:
            found = known[field] = _look_up(table, field)
        encode_one, compress = found
        try:
            if isinstance(value, str):
                data = value.encode("utf-8")
            elif isinstance(value, bytes | bytearray | memoryview):
                data = bytes(value)
            elif encode_one is None:
                raise TypeError(_no_encoder(field))
            else:
                data = encode_one(value)
                if not isinstance(data, bytes):
                    raise TypeError(f"its encoder gave a {type(data).__name__}, not bytes")
        except Exception as error:  # every encoder and every codec has exceptions of its own
            raise EncodeError(f"field {field!r}: cannot encode a {type(value).__name__}: {error}") from error
        return gzip.compress(data, mtime=0) if compress else data

    return encoder


def _kind(field: str) -> tuple[str, bool]:
    name, compress = (field[:-3], True) if field.endswith(".gz") else (field, False)
    return name.rpartition(".")[2].lower(), compress


def _look_up(table: Mapping[str, Encoder], field: str) -> tuple[Encoder | None, bool]:
    kind, compress = _kind(field)
    return table.get(kind), compress


def _no_encoder(field: str) -> str:
    kind = _kind(field)[0]
    return f"no encoder for {kind!r}" + (" unless allow_pickle=True is passed" if kind in _PICKLES else "")


def _text(value: Any) -> bytes:
    raise TypeError("wants a str")


def _number(value: Any) -> bytes:
    return str(value).encode("ascii")


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8")


def _npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asanyarray(value), allow_pickle=False)
    return stream.getvalue()


def _npz(value: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **dict(value))
    return stream.getvalue()


def _tenbin_chunk(data: bytes) -> bytes:
    return _TENBIN_MAGIC + struct.pack("@q", len(data)) + data + bytes(-len(data) % 64)


def _tenbin(value: Any) -> bytes:
    """Chunks of (magic, length, data padded to 64); an array is a chunk of int64 (dtype, name, rank, shape) and one of
    its data. Source: webdataset, tenbin.py."""
    chunks = []
    for item in value if isinstance(value, list) else [value]:
        array = np.ascontiguousarray(item)
        kind = f"{array.dtype.kind}{array.dtype.itemsize}"
        if kind not in _TENBIN_TYPES or array.ndim >= 10:
            raise ValueError(f"tenbin has no {array.dtype} array of rank {array.ndim}")
        header = struct.pack("@8s8sq", kind.encode("ascii"), b"", np.ndim(item)) + struct.pack(
            f"@{np.ndim(item)}q", *np.shape(item)
        )
        chunks += [_tenbin_chunk(header), _tenbin_chunk(array.tobytes())]
    return b"".join(chunks)


def _msgpack(value: Any) -> bytes:
    return bytes(importlib.import_module("msgpack").packb(value))


def _cbor(value: Any) -> bytes:
    try:
        module = importlib.import_module("cbor2")
    except ImportError:
        module = importlib.import_module("cbor")
    return bytes(module.dumps(value))


def _image(kind: str) -> Encoder:
    def encoder(value: Any) -> bytes:
        from PIL import Image

        image = value if isinstance(value, Image.Image) else Image.fromarray(_pixels(np.asarray(value)))
        options = {"quality": 100} if _IMAGE_FORMATS[kind] in ("JPEG", "TIFF") else {}
        stream = io.BytesIO()
        image.save(stream, format=_IMAGE_FORMATS[kind], **options)
        return stream.getvalue()

    return encoder


def _pixels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ValueError(f"an image has the shape (h, w), (h, w, 1) or (h, w, 3), not {array.shape}")
    if array.dtype.kind == "f":
        if array.size and not (array.min() > -0.001 and array.max() < 1.001):  # NaN too is refused
            raise ValueError(f"float pixels must lie in [0, 1], not [{array.min()}, {array.max()}]")
        array = (np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _torch_save(value: Any) -> bytes:
    stream = io.BytesIO()
    importlib.import_module("torch").save(value, stream)
    return stream.getvalue()


_PICKLES: dict[str, Encoder] = {"pyd": pickle.dumps, "pickle": pickle.dumps, "pth": _torch_save}
_ENCODERS: dict[str, Encoder] = {
    **dict.fromkeys(["cls", "cls2", "class", "count", "index", "inx", "id"], _number),
    **dict.fromkeys(["txt", "text", "transcript", "html", "htm"], _text),
    **dict.fromkeys(["json", "jsn"], _json),
    **dict.fromkeys(["ten", "tenbin", "tb"], _tenbin),
    **dict.fromkeys(["mp", "msgpack", "msg"], _msgpack),
    **{kind: _image(kind) for kind in _IMAGE_FORMATS},
    "npy": _npy,
    "npz": _npz,
    "cbor": _cbor,
}
