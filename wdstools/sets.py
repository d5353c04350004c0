"""Sets of shards: which names belong together, where the index of each set is, and whether it is up to date."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wdstools import urls
from wdstools.errors import IndexFileError, NotFoundError
from wdstools.index import SUFFIX, Index
from wdstools.shardtable import canonical

_SHARD = re.compile(r"\.(?:tar(?:\.(?:gz|zst|bz2|xz))?|tgz|tzst|tbz2?|txz)$", re.IGNORECASE)


@dataclass
class ShardSet:
    """Shards that one index describes. `index`: the path or URL where it is, or would be."""

    shards: list[str]
    index: str

    @property
    def patterns(self) -> list[str]:
        """Its names, as brace patterns."""
        return urls.collapse(self.shards)


@dataclass
class State:
    """How an index stands to its shards: "fresh", "stale", "none" or "unreadable", and the shards that made it stale.

    `changed`: other in size or mtime than was indexed; `new`: not in the index; `gone`: in it, but not there any more.
    `reason`: why it cannot be read.
    """

    kind: str
    changed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    reason: str = ""

    def __str__(self) -> str:
        counts = [(len(getattr(self, what)), what) for what in ("changed", "new", "gone")]
        found = ", ".join(f"{count} {what}" for count, what in counts if count)
        return f"{self.kind}: {found}" if found else self.kind


def list_shards(names: Iterable[str], *, compressed: bool = True) -> list[str]:
    """Return the shards that names stand for: a folder's shards, a file as it is called, anything else a pattern.

    `compressed`: whether .tar.gz and the like count in folders. Raises NotFoundError for a folder without shards,
    UrlError.
    """
    found: list[str] = []
    for name in names:
        path = urls.local_path(name) if urls.scheme(name) == "file" else None
        if path is not None and os.path.isdir(path):
            here = [n for n in sorted(os.listdir(path)) if _SHARD.search(n) and not n.startswith(".")]
            here = [n for n in here if compressed or n.endswith(".tar")]
            if not here:
                raise NotFoundError(f"{name}: no .tar in this folder")
            found += [n if name == "." else os.path.join(path, n) for n in here]
        elif path is not None and os.path.lexists(path):
            found.append(name)
        else:
            found += urls.expand(name)
    return list(dict.fromkeys(found))


def shard_sets(shards: Sequence[str]) -> list[ShardSet]:
    """Sort shards into sets: names that differ in a number, and those that an index beside them has together."""
    found: dict[str, ShardSet] = {}
    owners: dict[str, dict[str, str]] = {}  # per folder: shard -> index
    for pattern in urls.collapse(shards):
        names = urls.expand(pattern)
        index = urls.index_name(pattern)
        folder = os.path.dirname(index)
        if urls.scheme(index) == "file" and names and urls.scheme(names[0]) == "file":
            if folder not in owners:
                owners[folder] = _owners(folder)
            owner = owners[folder]
            index = next((owner[url] for url in map(canonical, names) if url in owner), index)
        found.setdefault(index, ShardSet([], index)).shards += names
    return list(found.values())


def _owners(folder: str) -> dict[str, str]:
    """The shards that the indexes in a folder have, each with its index; the index with the name of its set first."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else ():
        path = os.path.join(folder, name)
        if not name.endswith(SUFFIX) or name.startswith("."):
            continue
        try:
            shards = Index.load(path).shards.url
        except (IndexFileError, NotFoundError):
            continue  # whoever opens it will say so
        for url in map(canonical, shards):
            # of several, the one that is named by the set
            if url not in found or (urls.scheme(url) == "file" and _default(url) == name):
                found[url] = path
    return found


def _default(shard: str) -> str:
    return os.path.basename(urls.index_name(urls.escape(shard)))


def load_index(path: str) -> tuple[Index | None, State]:
    """Return the index at a path and a State, which is "fresh" where one was read; see state()."""
    if urls.scheme(path) != "file" or not os.path.exists(path):
        return None, State("none")
    try:
        return Index.load(path), State("fresh")
    except IndexFileError as error:
        return None, State("unreadable", reason=str(error))


def state(index: Index, shards: Iterable[str] | None = None) -> State:
    """Return how an index stands to its shards, as far as their sizes and mtimes tell; comparison.check() reads them.

    `shards`: those that it should have; by default those that it has.
    """
    known = {canonical(url): i for i, url in enumerate(index.shards.url)}
    found = State("fresh")
    for url in () if shards is None else shards:
        if canonical(url) not in known:
            found.new.append(url)
    for url, number in known.items():
        path = urls.local_path(url)
        if path is None:
            continue  # what lies elsewhere is not asked
        try:
            about = os.stat(path)
        except OSError:
            found.gone.append(index.shards.url[number])
            continue
        if index.shards.mtime[number] and index.shards.is_changed(number, about):
            found.changed.append(index.shards.url[number])
    if found.changed or found.new or found.gone:
        found.kind = "stale"
    return found
