"""Bytes of a field -> values, chosen by the field's name. Nothing here unpickles, whatever is asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from wdstools.errors import DecodeError

Sample: TypeAlias = dict[str, Any]

Decoder: TypeAlias = Callable[[Any], Any]
"""bytes or a memoryview -> a value"""

Decode: TypeAlias = str | Mapping[str, str | Decoder] | Callable[[Sample], Sample] | None
"""What make_decoder takes."""


def make_decoder(decode: Decode) -> Callable[[Sample], Sample] | None:
    """Return what decodes a sample in place; None: nothing is to be decoded.

    `decode` is one of:

    * "auto" or "pil": by the last part of a field's name: json jsn; txt text transcript html htm -> str; cls cls2 class
      count index inx id -> int; npy npz -> arrays; jpg jpeg img image png pbm pgm ppm tif tiff webp bmp gif -> an RGB
      image of pillow. Other fields stay as they are.
    * "rgb": the same, images as uint8 arrays of the shape (height, width, 3).
    * a mapping of field names ("seg.png"), or last parts of them ("png"), to "json", "text", "cls", "npy", "npz",
      "pil", "rgb", "raw", or to a function of the bytes; only these fields are decoded.
    * a function of the sample that returns a sample, such as webdataset.autodecode.Decoder([...]), which may unpickle.

    ValueError: a name that is none of these. When decoding, DecodeError names the sample, the field and the shard;
    without pillow, ModuleNotFoundError. What a function of the sample raises comes as it is.
    """
    if decode is None or (callable(decode) and not isinstance(decode, Mapping)):
        return decode
    if isinstance(decode, str):
        if decode not in ("auto", "pil", "rgb"):
            raise ValueError(f'decode={decode!r} is not "auto", "pil", "rgb", a mapping of fields, or a function')
        table = _TEXTS | dict.fromkeys(_IMAGES, _rgb if decode == "rgb" else _pil)
    else:
        table = {field.lower(): _named(how) for field, how in decode.items()}
    known: dict[str, Decoder | None] = {}

    def decoder(sample: Sample) -> Sample:
        for field in sample:
            if field not in known:
                known[field] = None if field[:2] == "__" else _look_up(table, field)
            if one := known[field]:
                sample[field] = _value(one, field, sample)
        return sample

    return decoder


def _look_up(table: Mapping[str, Decoder], field: str) -> Decoder | None:
    return table.get(field) or table.get(field.rpartition(".")[2])


def _named(how: str | Decoder) -> Decoder:
    if callable(how):
        return how
    if how not in _BY_NAME:
        raise ValueError(f"no decoder {how!r}: there are {', '.join(_BY_NAME)}")
    return _BY_NAME[how]


def _value(decoder: Decoder, field: str, sample: Sample) -> Any:
    try:
        return decoder(sample[field])
    except ImportError:
        raise
    except Exception as error:  # every codec has exceptions of its own
        reason = str(error) or type(error).__name__
        raise DecodeError(reason, sample.get("__key__"), sample.get("__url__"), field) from error


def _raw(data: Any) -> Any:
    return data


def _text(data: Any) -> str:
    return str(data, "utf-8")


def _json(data: Any) -> Any:
    return json.loads(bytes(data))


def _number(data: Any) -> int:
    return int(bytes(data))


def _npy(data: Any) -> Any:
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)


def _npz(data: Any) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _pil(data: Any) -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('images are decoded by pillow: pip install "wdstools[images]"') from error

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")  # decodes, also where it is RGB


def _rgb(data: Any) -> Any:
    return np.array(_pil(data))


_IMAGES = ["jpg", "jpeg", "img", "image", "png", "pbm", "pgm", "ppm", "tif", "tiff", "webp", "bmp", "gif"]
_TEXTS: dict[str, Decoder] = {
    **dict.fromkeys(["json", "jsn"], _json),
    **dict.fromkeys(["txt", "text", "transcript", "html", "htm"], _text),
    **dict.fromkeys(["cls", "cls2", "class", "count", "index", "inx", "id"], _number),
    "npy": _npy,
    "npz": _npz,
}
_BY_NAME: dict[str, Decoder] = {
    "json": _json, "text": _text, "cls": _number, "npy": _npy, "npz": _npz, "pil": _pil, "rgb": _rgb, "raw": _raw,
}  # fmt: skip

__all__ = ["Decode", "Decoder", "make_decoder"]
