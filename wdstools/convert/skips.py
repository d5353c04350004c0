"""skipped.jsonl: the samples that were left out of the sets of shards in a folder, a line each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from wdstools.convert import place
from wdstools.convert.options import Skipped

NAME = "skipped.jsonl"


def put_skipped(folder: str, stem: str, skipped: Sequence[Skipped]) -> None:
    """Write what was left out of the set `stem`, anew; lines of other sets in the folder stay."""
    path = os.path.join(folder, NAME)
    old = (place.read(path) or b"").splitlines(keepends=True)
    lines = [line for line in old if not _is_of(line, stem)]
    lines += [json.dumps({**item._asdict(), "set": stem}).encode() + b"\n" for item in skipped]
    if lines and lines != old:
        place.write(path, b"".join(lines))
    elif old and not lines:
        place.remove(path)


def _is_of(line: bytes, stem: str) -> bool:
    try:
        return bool(json.loads(line)["set"] == stem)
    except (ValueError, LookupError, TypeError):
        return False
