"""The shard table of an index: which shards it describes, how large they are, and how many samples each has."""

from __future__ import annotations

import array
import json
import os
from dataclasses import dataclass, field, fields

from wdstools import urls

_TEXTS = ("url", "etag", "checksum")  # the columns that are not counts
_OPTIONAL: dict[str, str | int] = {"etag": "", "checksum": "", "exact": 0}  # what stands for them
_LARGEST = (1 << 63) - 1  # bytes of a file

_ABSOLUTE = ("/", "s3://", "gs://", "az://", "https://", "http://")  # for a quick look

# what can make of a name something else than a file below the folder: such names are looked at one by one
_SPECIAL = (":", "%", "?", "#", "\0", "..", "\n/", "\n.", "\n\n")


@dataclass
class Shards:
    """The shard table, by columns: url, nbytes, mtime in ns since 1970 (0: unknown), number of samples and members, and
    the ETag of what is not local and the checksum of all bytes, as xxh3:0123456789abcdef ("": unknown); whether every
    member is a field that is named key.ext in the very letters of the index (1; 0: unknown). The last three are
    optional in a file."""

    url: list[str] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    mtime: list[int] = field(default_factory=list)
    nsamples: list[int] = field(default_factory=list)
    nmembers: list[int] = field(default_factory=list)
    etag: list[str] = field(default_factory=list)
    checksum: list[str] = field(default_factory=list)
    exact: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.etag = self.etag or [""] * len(self.url)
        self.checksum = self.checksum or [""] * len(self.url)
        self.exact = self.exact or [0] * len(self.url)

    def __len__(self) -> int:
        return len(self.url)

    def extend(self, other: Shards) -> None:
        for column in fields(self):
            getattr(self, column.name).extend(getattr(other, column.name))

    def is_changed(self, number: int, about: os.stat_result) -> bool:
        """Say whether a shard is another one than was indexed, as far as its size and mtime tell."""
        return (self.nbytes[number], self.mtime[number]) != (about.st_size, about.st_mtime_ns)

    def is_like(self, other: Shards) -> bool:
        """Say whether these are the same shards, with as many bytes and samples; mtimes may differ."""
        if list(map(canonical, self.url)) != list(map(canonical, other.url)):
            return False
        return (self.nbytes, self.nsamples) == (other.nbytes, other.nsamples)

    def to_json(self, base: str) -> str:
        columns: dict[str, object] = {column.name: getattr(self, column.name) for column in fields(self)}
        if any(self.etag):
            columns["home"] = base
        else:
            del columns["etag"]
        for name in ("checksum", "exact"):
            if not any(getattr(self, name)):
                del columns[name]
        return json.dumps(
            columns | {"url": [urls.relative(_absolute(url), base) for url in self.url]}, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str | bytes, base: str) -> Shards:
        """ETags of shards that were copied together with their index are left out: the copies have others.

        Raises ValueError or KeyError where the text is not a shard table."""
        raw = json.loads(text)
        columns = {column.name: raw[column.name] for column in fields(cls) if column.name not in _OPTIONAL}
        columns |= {name: raw.get(name, [lacking] * len(columns["url"])) for name, lacking in _OPTIONAL.items()}
        if not all(isinstance(column, list) for column in columns.values()):
            raise ValueError("shard table with a column that is not a list")
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("shard table with columns of different lengths")
        for name, column in columns.items():
            if name not in _TEXTS and (set(map(type, column)) - {int} or min(column, default=0) < 0):
                raise ValueError("shard table with a count that is not a number")
        if any(set(map(type, columns[name])) - {str} for name in _TEXTS):
            raise ValueError("shard table with a URL, ETag or checksum that is not text")
        if "etag" in raw and raw.get("home") != base:
            named = zip(columns["url"], columns["etag"], strict=True)
            columns["etag"] = [etag if urls.is_absolute(url) else "" for url, etag in named]
        columns["url"] = _resolved(columns["url"], base)
        return cls(**columns)

    def sizes(self) -> array.array[int]:
        """Return nbytes as 64-bit numbers; of what no file can be, the largest that one can."""
        if max(self.nbytes, default=0) <= _LARGEST:
            return array.array("Q", self.nbytes)
        return array.array("Q", [min(nbytes, _LARGEST) for nbytes in self.nbytes])


def canonical(url: str) -> str:
    """Return the URL by which two indexes know the same shard: local paths are absolute, the others as they are."""
    path = urls.local_path(url)
    return url if path is None else os.path.abspath(path)


def _absolute(url: str) -> str:
    return url if urls.is_absolute(url) else os.path.abspath(url)


def _resolved(names: list[str], base: str) -> list[str]:
    """The URLs of names in the folder of the index. Raises UrlError."""
    text = "\n".join(["", *names])
    if names and text[-1] != "\n" and text.count("\n") == len(names) and not any(map(text.__contains__, _SPECIAL)):
        folder = urls.join(base, "x")[:-1]
        return [folder + name for name in names]
    return [name if name.startswith(_ABSOLUTE) or urls.is_absolute(name) else urls.join(base, name) for name in names]
