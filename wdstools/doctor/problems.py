"""The kinds of problems that a checkup finds, how bad each is, and what to do about it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

REPAIR = "wds-index repair {shard} OUT"
BUILD = "wds-index build {shard}"

# kind -> (level, fix). An error: a reader fails, or reads what was not written. A warning: it costs something.
KINDS = {
    "unreadable": ("error", "make it readable, or leave it out"),
    "truncated": ("error", REPAIR),
    "header": ("error", REPAIR),
    "missing-bytes": ("error", REPAIR),
    "zeros": ("error", REPAIR),
    "trailing": ("error", REPAIR),
    "concatenated": ("error", REPAIR),
    "payload": ("error", REPAIR),
    "interleaved": ("error", REPAIR),
    "duplicate-field": ("error", REPAIR + " --keep first|last|rename"),
    "duplicate-key": ("error", REPAIR + " --keep first|last|rename"),
    "duplicate-across": ("error", "wds-index repair SHARDS OUT --keep first|last|rename"),
    "sparse": ("error", "pack it anew with wds-shard, from the files"),
    "name": ("error", "rename the file and pack it anew"),
    "decode": ("error", "leave the sample out, or get it anew from its source"),
    "checksum": ("error", "get the shard anew from its source"),
    "index": ("error", BUILD),
    "foreign-index": ("error", "keep one format; write the other under another name"),
    "fields": ("warning", "nothing, if these fields are optional"),
    "empty": ("warning", "look at the files that they came from"),
    "pax": ("warning", REPAIR),
    "padding": ("warning", REPAIR),
    "size": ("error", REPAIR),
    "index-older": ("warning", BUILD),
    "no-checksum": ("warning", "wds-index build {shard} --checksum shard"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `kind`: a key of KINDS; `shard`: its URL, or None; `offset`: in it, or None;
    `count`: how many members, samples or bytes it is about; `index`: that it is about, or that has the shard."""

    kind: str
    shard: str | None
    reason: str
    offset: int | None = None
    count: int = 1
    index: str | None = None
    detail: dict[str, Any] | None = None

    @property
    def level(self) -> str:
        return KINDS[self.kind][0]

    @property
    def fix(self) -> str:
        about = [self.shard] if self.shard else (self.detail or {}).get("shards") or [self.index or "TARGET"]
        return KINDS[self.kind][1].format(shard=shlex.join(about))

    @property
    def message(self) -> str:
        """What is wrong, and where, in one line."""
        where = "" if self.offset is None else f" at byte {self.offset}"
        head = f"{self.shard}: " if self.shard else ""
        return f"{head}{self.reason}{where}".replace("\n", " ")

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index, "shard": self.shard, "kind": self.kind, "level": self.level, "offset": self.offset,
            "count": self.count, "message": self.message, "fix": self.fix, **(self.detail or {}),
        }  # fmt: skip
