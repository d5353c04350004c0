"""The compact form in which LitData keeps lists and dicts: a tag, then numbers, text or more of it (0.2.76)."""

from __future__ import annotations

import json
import struct
from typing import Any


def loads(data: bytes) -> Any:
    """Return the value. Raises ValueError."""
    if not data or data[0] > 0x20:  # as it was before: JSON
        return json.loads(data)
    reader = _Reader(data)
    value = reader.value()
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes behind a value")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, n: int) -> bytes:
        found = self._data[self.at : self.at + n]
        if len(found) < n:
            raise ValueError("cut short")
        self.at += n
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self) -> int:
        return int(self.number("<I"))

    def text(self) -> str:
        return self.take(self.count()).decode()

    def several(self, form: str, size: int) -> list[Any]:
        n = self.count()
        return list(struct.unpack(f"<{n}{form}", self.take(size * n)))

    def value(self) -> Any:
        tag = self.take(1)[0]
        if tag == 0:
            return json.loads(self.take(self.count()))
        if tag == 1:
            return [self.text() for _ in range(self.count())]
        if tag in (2, 3, 4):
            return self.several("qd?"[tag - 2], (8, 8, 1)[tag - 2])
        if tag == 5:
            return {self.text(): self.value() for _ in range(self.count())}
        if tag == 6:
            return self.records()
        if tag in (11, 0x10):
            return None
        if tag in (7, 0x11):
            return self.text()
        if tag in (8, 0x12):
            return self.number("<q")
        if tag in (9, 0x13):
            return self.number("<d")
        if tag in (10, 0x14):
            return self.take(1) != b"\0"
        raise ValueError(f"a value with the tag {tag}, which is not known")

    def records(self) -> list[dict[str, Any]]:
        rows, columns = self.count(), self.count()
        names = [self.text() for _ in range(columns)]
        return [{name: self.value() for name in names} for _ in range(rows)]
