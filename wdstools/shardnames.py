"""Names for the shards of a set: a pattern with one number, and the files that it has named before."""

from __future__ import annotations

import os
import re

from wdstools import urls
from wdstools.errors import DestinationError

_NUMBER = re.compile(r"%(?:0[1-9][0-9]*)?d")
_COMPRESSED = re.compile(r"\.(?:tgz|tzst|tbz2?|txz|gz|zst|bz2|xz)$", re.IGNORECASE)


def check_pattern(pattern: str) -> None:
    """Raises DestinationError unless a pattern is a local path with one %d or %06d, in its last part."""
    plain = pattern.replace("%%", "")
    if plain.count("%") != 1 or not _NUMBER.search(plain) or "%" not in os.path.basename(plain):
        raise DestinationError(f"{pattern!r} is not a name for shards: it needs one number, as in train-%06d.tar")
    if urls.is_absolute(pattern) and not pattern.startswith("/"):
        raise DestinationError(f"{pattern!r}: shards are written to local paths only")
    if _COMPRESSED.search(pattern):
        raise DestinationError(f"{pattern!r}: shards are written as plain tars, which can be indexed: name them .tar")


def existing_shards(pattern: str) -> list[str]:
    """Return the files that a pattern may have named before, with numbers of any width, sorted."""
    folder, name = os.path.split(pattern)
    number = next((m for m in re.finditer(rf"%%|{_NUMBER.pattern}", name) if m[0] != "%%"), None)
    if number is None:
        return []
    head, tail = (re.escape(text % ()) for text in (name[: number.start()], name[number.end() :]))
    form = re.compile(f"{head}[0-9]+{tail}", re.DOTALL)
    folder = folder.replace("%%", "%")
    try:
        return sorted(os.path.join(folder, item) for item in os.listdir(folder or ".") if form.fullmatch(item))
    except (FileNotFoundError, NotADirectoryError):
        return []
