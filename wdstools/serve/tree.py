"""All that a server serves: its buckets, by name, and which of them a path means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from wdstools import urls
from wdstools.errors import NotFoundError, UrlError
from wdstools.index import SUFFIX
from wdstools.serve.blobs import Files
from wdstools.serve.buckets import Bucket, FolderBucket, IndexBucket, PrefixBucket
from wdstools.serve.remotes import Objects

_NAMED = re.compile(r"([A-Za-z0-9._-]+)=(.+)", re.DOTALL)
_NAME = re.compile(r"[^/\x00-\x1f\x7f\\?#%]{1,200}")


def name_sources(sources: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(bucket, SOURCE) of each SOURCE, or NAME=SOURCE. Raises UrlError: two of one name, or a name that can be none."""
    found: dict[str, str] = {}
    for source in sources:
        match = _NAMED.fullmatch(source)
        if match is not None and not os.path.exists(source):
            name, source = match[1], match[2]
        else:
            path = urls.local_path(source)
            base = os.path.abspath(path) if path is not None else source.rstrip("/")
            name = urls.basename(base) or re.sub(r"^[^:]*:/*", "", base) or "root"
            name = name.removesuffix(SUFFIX)
        if not _NAME.fullmatch(name) or name[0] in ".-":
            raise UrlError(f"{source}: {name!r} can be no name of a bucket; write it as NAME={source}")
        if name in found:
            raise UrlError(f"{found[name]} and {source} would both be served as {name}; write one as NAME=SOURCE")
        found[name] = source
    return tuple(found.items())


class Tree:
    """The buckets of (name, SOURCE) pairs. Raises NotFoundError, UrlError, IndexFileError: a SOURCE that is none."""

    def __init__(
        self,
        sources: Iterable[tuple[str, str]],
        storage_options: Mapping[str, Any] | None = None,
        cache: str | None = None,
    ) -> None:
        self.files, self._objects = Files(), Objects(storage_options or {}, cache)
        self.buckets = {name: self._bucket(name, source) for name, source in sources}
        only = list(self.buckets.values())
        self.single: Bucket | None = only[0] if len(only) == 1 else None

    def _bucket(self, name: str, source: str) -> Bucket:
        path = urls.local_path(source) if urls.scheme(source) != "pipe" else None
        if path is None:
            if urls.scheme(source) == "pipe" or source.endswith(SUFFIX):
                raise UrlError(f"{source}: give a folder, an index on a local disk, or a remote prefix")
            return PrefixBucket(name, source, self._objects)
        if os.path.isdir(path):
            return FolderBucket(name, path, self.files)
        if path.endswith(SUFFIX):
            return IndexBucket(name, path, self.files, self._objects)
        if os.path.exists(path):
            raise UrlError(f"{source}: is no folder and no {SUFFIX}; give the folder that it lies in")
        raise NotFoundError(f"{source}: nothing is there")

    def places(self, path: str) -> list[tuple[Bucket, str]]:
        """The (bucket, key) pairs that a path may mean, in order: /BUCKET/KEY, then /KEY of a single bucket."""
        name, slash, key = path[1:].partition("/")
        found = []
        if slash and name in self.buckets:
            found.append((self.buckets[name], key))
        if self.single is not None:
            found.append((self.single, path[1:]))
        return found
