"""What a SOURCE is made of, and the names in it that can be keys and fields."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from wdstools import samples, writer
from wdstools.convert.entries import Entries, Entry
from wdstools.convert.options import Options, Skipped
from wdstools.errors import SourceError

Fields = dict[str, writer.Value]
_INNER = re.compile(r"[a-z_][^\s.]*", re.IGNORECASE)  # a part of a.seg.png that is no part of the name


@dataclass
class Faults:
    """What is wrong with a source: raised at once, or gathered if samples may be left out. `moved`: see Listing."""

    skip: bool
    moved: tuple[str, str] = ("", "")
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, key: str, file: str, reason: str, detail: str = "") -> None:
        """Leave a sample out. Raises SourceError where that is not wanted; `detail` is said only then."""
        if not self.skip:
            raise SourceError(f"{file}: {reason}{detail and ': ' + detail}")
        here, given = self.moved
        if here and file.startswith(here):
            file = given + file[len(here) :]
        self.skipped.append(Skipped(key, file, reason))


@dataclass
class Listing:
    """A source, listed. `entries` are sorted by key; `root` ends with a slash or is empty; `classes`: name -> number;
    `shuffle`: whether to shuffle where nobody says; `name`: what to call the shards, or ""; `folder`: that shards must
    not be written into, or ""; `newest`: when a file was changed last, in ns since 1970, and which.

    `read(entry)` gives the fields of a sample, ready for ShardFile.write, or a Span to copy. `carried`: columns of the
    index that come with the samples. `stream`, instead of entries: samples that
    can only be taken one after the other, fields or an images.Failure; `identity`: what is known of them beforehand.
    `ahead`: how many samples are to be read at once, because each takes a while to come. `moved`: the root where it is
    an absolute one for another process, and as it was given: so files are named as they would be here.
    """

    kind: str
    root: str = ""
    entries: Entries = field(default_factory=Entries)
    classes: dict[str, int] | None = None
    shuffle: bool = False
    name: str = ""
    read: Callable[[Entry], Any] | None = None
    carried: frozenset[str] = frozenset()
    stream: Callable[[], Iterator[tuple[str, Any]]] | None = None
    identity: str = ""
    local_shards: list[str] = field(default_factory=list)
    folder: str = ""
    newest: tuple[int, str] = (0, "")
    ahead: int = 0
    moved: tuple[str, str] = ("", "")

    def saw(self, about: os.stat_result, path: str) -> None:
        """Take note of a file's time; one in the future says nothing."""
        if self.newest[0] < about.st_mtime_ns <= time.time_ns():
            self.newest = (about.st_mtime_ns, path)

    def fields(self, entry: Entry) -> Any:
        """Return the fields of a sample: bytes, or (path, nbytes) of files to copy; or a Span. Raises WdsError,
        OSError."""
        if self.read is not None:
            return self.read(entry)
        parts, root = entry.parts, self.root
        found: Fields = {}
        for i in range(0, len(parts), 3):
            where = parts[i + 1]
            if type(where) is str:
                found[parts[i]] = (root + where if where[:1] != "/" else where, parts[i + 2])
            else:
                found[parts[i]] = where
        return found


def split_file(name: str, dotted: bool, last: bool) -> tuple[str, str]:
    """Return (stem, field) of a file name: the field is what follows the first dot, in lower case; "" if none.

    Where what follows looks like the rest of a name (`IMG_2024.05.01.jpg`), the field is "" too, unless `dotted`; with
    `last` it is what follows the last dot.
    """
    stem, _, ext = name.partition(".")
    if "." in ext and not dotted:
        inner = ext.split(".")[:-1]
        if not all(_INNER.fullmatch(part) for part in inner):
            if last:
                stem, _, ext = name.rpartition(".")
            else:
                return name.rpartition(".")[0], ""
    return stem, ext.lower()


def why_no_field(name: str) -> tuple[str, str]:
    """Return (reason, detail) for a name that split_file gives no field."""
    if "." in name[:-1].lstrip("."):
        return (
            "the key has a dot",
            f"readers would take {name.partition('.')[0]!r} for the key and {name.partition('.')[2]!r} for the field; "
            "rename it, or number the keys with --keys number, or mean it with --dotted-fields",
        )
    return "no extension", "there is nothing to call its field; rename it, or leave such files out with --on-error skip"


def check_key(key: str) -> tuple[str, str] | None:
    """Return (reason, detail) where readers would not get a key back, or tar would not unpack it safely."""
    advice = "rename it, or number the keys with --keys number"
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError:
            return "a name that is not UTF-8", f"{key!r}; {advice}"
    if not samples.is_good_key(key):
        base = key.rpartition("/")[2]
        if "." in base:
            return "the key has a dot", f"readers would take {base.partition('.')[0]!r} for the key; {advice}"
        return "a key that readers skip", f"{key!r}; {advice}"
    if key[:1] == "/" or (".." in key and ".." in key.split("/")):
        return "a key that leaves its folder", f"{key!r}; {advice}"
    return None


def check_field(name: str) -> tuple[str, str] | None:
    """Return (reason, detail) where a field would not be written, or not come back under its name."""
    if name[:1] == "_":
        return "a field that begins with _", f"{name!r}: readers keep such names for themselves; rename it"
    if "/" in name or "\0" in name or not name:
        return "a field that readers would not get back", f"{name!r}; rename it"
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return "a name that is not UTF-8", f"field {name!r}; rename it"
    return None


def relative_key(path: str, root: str) -> str:
    """Return a path as a name below the root: as it is if relative, else without what leads to the root, or the `/`."""
    path = os.path.normpath(path)
    if path.startswith("/"):
        return path[len(root) :] if root and path.startswith(root) else path.lstrip("/")
    return path


def finish(listing: Listing, options: Options, faults: Faults, what: str, ordered: bool = False) -> Listing:
    """Sort the entries, unless they are `ordered`, and check their keys. Raises SourceError where nothing is left."""
    entries = listing.entries if ordered else listing.entries.sorted()
    seen: set[str] = set()
    numbered = options.keys == "number"
    bad: set[int] = set()
    known: dict[str, tuple[str, str] | None] = {}
    previous = None
    for i, entry in enumerate(entries):
        key = entry.key
        wrong = None if numbered else check_key(key)
        if (key in seen if ordered else key == previous) and not numbered:
            wrong = ("two samples with one key", f"{key!r}; choose another --key-column, or number them: --keys number")
        for name in entry.parts[::3]:
            if name not in known:
                known[name] = check_field(name)
            wrong = wrong or known[name]
        if wrong:
            faults.add(key, _file_of(listing, entry), *wrong)
            bad.add(i)
            continue
        previous = key
        if ordered:
            seen.add(key)
    if len(bad) == len(entries):
        raise SourceError(f"{what}: {'no sample is left' if faults.skipped else 'no files to make samples of'}")
    listing.entries = Entries(entry for i, entry in enumerate(entries) if i not in bad) if bad else entries
    return listing


def _file_of(listing: Listing, entry: Entry) -> str:
    where = next((w for w in entry.parts[1::3] if isinstance(w, str)), None)
    return f"sample {entry.key}" if where is None else os.path.join(listing.root, where)


def number_keys(entries: Entries) -> Entries:
    """Return the entries with their positions, zero-padded, for keys."""
    width = max(6, len(str(len(entries) - 1)))
    return Entries(Entry(f"{i:0{width}d}", group, parts) for i, (_, group, parts) in enumerate(entries))
