"""wids' `shardindex.json` (webdataset 0.2.111): of every shard its URL, samples, size and md5."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, cast

from wdstools import _core, urls
from wdstools.errors import UrlError, WdsError
from wdstools.index import Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, wrong
from wdstools.interop.members import each
from wdstools.storage import Whole, open_source

NAME = "shardindex.json"
KIND, VERSION = "wids-shard-index-v1", 1
CHUNK = 1 << 20


def index_path(shards: list[str]) -> str:
    """Where the index of shards is: in their folder."""
    return os.path.join(os.path.dirname(urls.index_name([urls.escape(url) for url in shards])), NAME)


def export(index: Index, options: Options) -> Written:
    """Write one file, which has the md5 of every shard: all their bytes are read. `options.output`: that file, or a
    folder. Raises StaleIndexError for shards of other sizes, StoreError, DestinationError."""
    path = foreign.one_file(options, NAME) or foreign.local_path(index_path(index.shards.url), "wids")
    claim_file(path, "wids", options.overwrite)
    folder = os.path.dirname(os.path.abspath(path))

    def one(number: int) -> dict[str, Any]:
        url = index.shards.url[number]
        if urls.scheme(url) == "pipe":
            raise UrlError(f"{url}: commands that an index names are not run")
        digest, nbytes = md5(url)
        if nbytes != index.shards.nbytes[number]:
            foreign.stale(index.name, url, f"it has {nbytes} bytes, not {index.shards.nbytes[number]}")
        local = urls.local_path(url)
        name = url if local is None else urls.relative(os.path.abspath(local), folder)
        return {"url": name, "md5sum": digest, "nsamples": index.shards.nsamples[number], "filesize": nbytes}

    shards = list(each(index, one, options.workers, options.progress))
    stem = urls.basename(urls.index_name([urls.escape(url) for url in index.shards.url])).removesuffix(".wdsindex")
    told = {"__kind__": KIND, "wids_version": VERSION, "name": stem, "shardlist": shards}
    with foreign.Batch() as batch:
        batch.put(path, json.dumps(told, indent=2).encode() + b"\n")
    return Written([path])


def md5(url: str) -> tuple[str, int]:
    """Return the md5 of all bytes of a shard, as it is stored, and how many they are."""
    digest, nbytes, buffer = hashlib.md5(usedforsecurity=False), 0, bytearray(CHUNK)
    view = memoryview(buffer)
    with open_source(url, raw=True) as source:
        handle = source.handle
        if isinstance(handle, int):
            handle = cast("_core.Readable", open(handle, "rb", buffering=0, closefd=False))
            source.handle = handle
        stream = Whole(source) if source.head else handle
        while n := stream.readinto(view) or 0:
            digest.update(view[:n])
            nbytes += n
    return digest.hexdigest(), nbytes


def read(path: str) -> list[Claim]:
    """Read a shard index. Raises IndexFileError, NotFoundError."""
    try:
        told = json.loads(foreign.read_text(path))
        if not isinstance(told, dict):
            raise TypeError("no object")
        if told.get("wids_version", VERSION) != VERSION or told.get("__kind__", KIND) != KIND:
            raise ValueError(f"wids_version {told.get('wids_version')!r} of {told.get('__kind__')!r}, not {VERSION}")
        lists = [told, *(told.get("datasets") or [])] if "shardlist" in told else list(told["datasets"])
        folder = os.path.dirname(path) if urls.scheme(path) == "file" else urls.dirname(path)
        base = _base(told, folder)
        found = []
        for one in lists:
            if "shardlist" not in one:
                raise ValueError(f"a dataset at {one.get('source_url')!r}: import that file")
            found += [_claim(path, shard, base if one is told else _base(one, base)) for shard in one["shardlist"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, WdsError):
            raise
        wrong(path, f"not a shard index of wids: {error!r}")
    return found


def _base(told: dict[str, Any], folder: str) -> str:
    base = told.get("base")
    if base is None:
        return folder
    if not isinstance(base, str) or urls.scheme(base) == "pipe":
        raise ValueError(f"base {base!r}")
    return base if urls.is_absolute(base) else os.path.join(folder, base)


def _claim(path: str, shard: dict[str, Any], base: str) -> Claim:
    counts = [shard["nsamples"], shard.get("filesize")]
    if any(n is not None and (type(n) is not int or n < 0) for n in counts):
        wrong(path, f"{shard.get('url')!r}: nsamples and filesize are not both counts")
    return Claim(foreign.resolve(base, shard["url"], path), path, nsamples=counts[0], nbytes=counts[1])
