"""The formats by name: how each is written, and how the files that it has of some shards are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from wdstools import sets, urls
from wdstools.errors import NotFoundError, UrlError
from wdstools.index import Index
from wdstools.interop import aistore, dali, energon, energon_meta, lhotse, parquet, ratarmount, wids
from wdstools.interop.claims import Claim, Source
from wdstools.interop.foreign import Options, Written


class Format(NamedTuple):
    """`export`: writes it. `read_shard`, `index_path`: reads what it has of one shard, and where that is; `read_set`:
    reads the file, or folder, that it has of a set. `tells`: where payloads lie, so that they need not be read."""

    export: Callable[[Index, Options], Written]
    index_path: Callable[[str], str] | None = None
    read_shard: Callable[[str, str], Claim] | None = None
    read_set: Callable[[str], Sequence[Claim | Source]] | None = None
    tells: bool = True


FORMATS = {
    "dali": Format(dali.export, dali.index_path, dali.read),
    "energon": Format(energon_meta.export, energon.index_path, energon.read, energon_meta.read),
    "wids": Format(wids.export, read_set=wids.read, tells=False),
    "lhotse": Format(lhotse.export, lhotse.index_path, lhotse.read, tells=False),
    "aistore": Format(aistore.export, aistore.index_path, aistore.read),
    "ratarmount": Format(ratarmount.export, ratarmount.index_path, ratarmount.read),
    "parquet": Format(parquet.export, read_set=parquet.read),
}


def claim_sources(format: str, names: Sequence[str], folder: str | None = None) -> list[Claim | Source]:
    """Return what a format has of a set: of shards, whose indexes lie beside them or in `folder`, and are read later;
    or of its own file or folder. Raises IndexFileError, NotFoundError."""
    one = FORMATS[format]
    if one.read_set is not None and (one.read_shard is None or (folder is None and _is_set(names))):
        return [claim for name in names for claim in one.read_set(_set_path(format, name))]
    if one.read_shard is None or one.index_path is None:
        raise UrlError(f"{format} has no index of a shard")
    found: list[Claim | Source] = []
    for shard in sets.list_shards(names, compressed=False):
        path = one.index_path(shard)
        if folder is not None:
            path = os.path.join(folder, urls.basename(path))
        local = urls.local_path(path)
        if local is not None and not os.path.exists(local):
            raise NotFoundError(f"{path}: no such index; it would be that of {shard}")
        found.append(Source(shard, partial(one.read_shard, path, shard)))
    return found


def read_claims(format: str, names: Sequence[str], folder: str | None = None) -> list[Claim]:
    """Read all that claim_sources() returns. Raises StaleIndexError too."""
    found = claim_sources(format, names, folder)
    return [claim.read() if isinstance(claim, Source) else claim for claim in found]


def _is_set(names: Sequence[str]) -> bool:
    """Whether these are folders that Energon has prepared."""
    return all(
        os.path.basename(name.rstrip("/")) == energon_meta.FOLDER
        or os.path.isdir(os.path.join(name, energon_meta.FOLDER))
        for name in names
    )


def _set_path(format: str, source: str) -> str:
    if format == "wids" and os.path.isdir(source):
        return os.path.join(source, wids.NAME)
    return source
