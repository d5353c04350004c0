"""TFRecord files of tf.train.Example, without TensorFlow: length, masked crc32c, bytes, masked crc32c; protobuf.

Format: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/example.proto.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Iterator
from typing import Any

from wdstools import _core
from wdstools.convert.images import Failure
from wdstools.convert.options import Options
from wdstools.convert.records import Record, Rows, list_records
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError
from wdstools.storage import Whole, open_source

LARGEST = 1 << 31  # bytes of a record; a length beyond is damage


def list_tfrecord(source: str, options: Options) -> Listing:
    """List a file of Examples, or those that a pattern with `*` names, in order. Raises SourceError."""
    paths = [source] if os.path.exists(source) else sorted(glob.glob(source))
    if not paths:
        raise SourceError(f"{source}: no such file")

    def rows() -> Rows:
        for path in paths:
            number = 0
            for offset, data in read_records(path):
                number += 1
                where = f"{path}: record {number} at byte {offset}"
                if data is None:
                    yield Failure(where, "a damaged record", "its checksum is wrong")
                    continue
                try:
                    yield Record(where, parse_example(data))
                except ValueError as error:
                    yield Failure(where, "no tf.train.Example", str(error))

    stem = re.sub(r"[^A-Za-z0-9_-].*", "", os.path.basename(source.rstrip("/")))
    return list_records("tfrecord", rows, options, paths, stem)


def read_records(path: str) -> Iterator[tuple[int, bytes | None]]:
    """Yield (offset, bytes) of every record, decompressed; None for one whose bytes are not what their checksum says.

    Raises SourceError where the lengths cannot be trusted: what follows would be lost.
    """
    with open_source(path) as source:
        stream = Whole(source)
        offset = 0
        while head := _take(stream, 12):
            if len(head) < 12 or mask(_core.crc32c(head[:8])) != int.from_bytes(head[8:], "little"):
                what = "truncated" if len(head) < 12 else "a length whose checksum is wrong"
                raise SourceError(f"{path}: {what} at byte {offset}: no TFRecord file, or a damaged one")
            size = int.from_bytes(head[:8], "little")
            body = _take(stream, size + 4) if size < LARGEST else b""
            if len(body) < size + 4:
                raise SourceError(f"{path}: truncated in the record at byte {offset}")
            good = mask(_core.crc32c(memoryview(body)[:size])) == int.from_bytes(body[size:], "little")
            yield offset, body[:size] if good else None
            offset += 16 + size


def mask(crc: int) -> int:
    """Return a checksum as these files have it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _take(stream: Whole, n: int) -> bytes:
    buffer = bytearray(n)
    view, have = memoryview(buffer), 0
    while have < n and (got := stream.readinto(view[have:])):
        have += got
    return bytes(view[:have])


def parse_example(data: bytes) -> dict[str, Any]:
    """Return the features of a tf.train.Example: one value as it is, several as a list, none as None.

    Text in UTF-8 becomes str. Raises ValueError.
    """
    found: dict[str, Any] = {}
    for number, features in _fields(data):
        if number != 1 or not isinstance(features, bytes):
            raise ValueError(f"field {number} of the record is not `features`")
        for _, entry in _fields(features):
            parts = dict(_fields(_message(entry)))
            name = _message(parts.get(1, b"")).decode()
            values = _feature(_message(parts.get(2, b"")))
            found[name] = values[0] if len(values) == 1 else values or None
    return found


def _feature(data: bytes) -> list[Any]:
    values: list[Any] = []
    for kind, body in _fields(data):
        for number, value in _fields(_message(body)):
            if number != 1:
                raise ValueError(f"field {number} in a list of values")
            if kind == 1:
                values.append(_text(_message(value)))
            elif kind == 2:
                raw = _message(value)
                values += struct.unpack(f"<{len(raw) // 4}f", raw)
            elif kind == 3:
                values += [_signed(v) for v in (_varints(value) if isinstance(value, bytes) else [value])]
            else:
                raise ValueError(f"a feature of kind {kind}")
    return values


def _text(data: bytes) -> bytes | str:
    """Bytes that are text: no control characters, and UTF-8."""
    if any(byte < 9 or 13 < byte < 32 for byte in data[:512]):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (number, value) of every field of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size, at = _varint(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}.get(tag & 7, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError("cut short, or no protobuf")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("cut short, or no protobuf")


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
