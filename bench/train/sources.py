"""Where shards are read from: one option changes it; the names of the shards stay.

`data.train` and `data.val` name shards ("DIR/train-{000000..000003}.tar", or a folder); of that, a source other than
"folder" takes the last part, and puts it behind its own address:

    folder      the path as it is (or any URL)
    wds-serve   ENDPOINT/NAME; a set has an index there, and batches come in one request
    nginx       ENDPOINT/PREFIX/NAME
    s3          s3://PREFIX/NAME, of the server at ENDPOINT, or of AWS where that is empty; keys from the environment
    gcs         gs://PREFIX/NAME, the same
    pipe-curl   pipe:curl ... ENDPOINT/PREFIX/NAME
    pipe-fread  pipe:fread PATH, of the path as it is
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import wdstools
from wdstools import urls

INDEX = ".wdsindex"
KINDS = ("folder", "wds-serve", "nginx", "s3", "gcs", "pipe-curl", "pipe-fread")
SCHEMES = {"s3": "s3", "gcs": "gs"}
STREAMS = ("stream", "webdataset")  # loaders that need no index


@dataclass(frozen=True)
class Place:
    """Where samples are. `shards`: URLs in order; `index`: what wdstools.open() takes, None where there is no random
    access; `storage_options`: for both."""

    shards: list[str]
    index: Any
    storage_options: dict[str, Any] | None = None


def locate(settings: Any, part: str) -> Place:
    """Return the place of a part, "train" or "val"; val is in the shards of train where data.val is null.

    Raises ValueError that says what to change, and FileNotFoundError for a folder without shards.
    """
    if part not in ("train", "val"):
        raise ValueError(f'part is "train" or "val", not {part!r}')
    kind, endpoint, prefix = settings.source.kind, settings.source.endpoint or "", settings.source.prefix or ""
    given = settings.data.train if part == "train" or settings.data.val is None else settings.data.val
    if not given:
        raise ValueError(f"data.{part} names no shards: give a folder or DIR/train-{{000000..000003}}.tar")
    if kind not in KINDS:
        raise ValueError(f"source.kind is none of {', '.join(KINDS)}: {kind!r}")
    if kind in ("wds-serve", "nginx", "pipe-curl") and not endpoint:
        raise ValueError(f"source={kind} needs source.endpoint=http://HOST:PORT")
    if kind in ("s3", "gcs") and not prefix:
        raise ValueError(f"source={kind} needs source.prefix=BUCKET/FOLDER")
    given = str(given)
    if kind == "folder" and given.endswith(INDEX):
        return Place(wdstools.open(given).index.shards.url, given)
    if kind == "folder" and urls.scheme(given) in ("http", "https") and not given.endswith(".tar"):
        return Place(wdstools.open(given).index.shards.url, given)  # a set behind wds-serve
    shards = _shards(given)
    if kind == "folder":
        return Place(shards, shards)
    if kind == "pipe-fread":
        return Place([urls.pipe(shard, "fread") for shard in shards], None)
    names = [shard.rpartition("/")[2] for shard in shards]
    base = "/".join(part.strip("/") for part in (endpoint, prefix) if part)
    if kind == "wds-serve":
        return Place([f"{base}/{name}" for name in names], f"{base}/{_set(names)}")
    if kind == "nginx":
        far = [f"{base}/{name}" for name in names]
        return Place(far, far)
    if kind == "pipe-curl":
        return Place([urls.pipe(f"{base}/{name}", "curl") for name in names], None)
    far = [f"{SCHEMES[kind]}://{prefix.strip('/')}/{name}" for name in names]
    return Place(far, far, {"endpoint_url": endpoint} if endpoint else None)


def random_access(place: Place, loader: str, kind: str) -> Any:
    """Return what wdstools.open() takes. Raises ValueError where there is no random access."""
    if place.index is None:
        told = f"loader={loader} needs random access, which source={kind} does not have"
        raise ValueError(f"{told}: use loader={' or '.join(STREAMS)}, or source=folder, wds-serve, nginx, s3 or gcs")
    return place.index


def _shards(given: str) -> list[str]:
    if os.path.isdir(given):
        found = sorted(name for name in os.listdir(given) if name.endswith(".tar"))
        if not found:
            raise FileNotFoundError(f"{given}: no .tar is in this folder")
        return [urls.escape(os.path.join(given, name)) for name in found]
    return urls.expand(given)


def _set(names: list[str]) -> str:
    """The name by which wds-serve knows a set of shards."""
    return urls.index_name(names).rpartition("/")[2].removesuffix(".wdsindex")
