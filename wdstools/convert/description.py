"""What makes the bytes of the output, as JSON: the options that matter, and a digest of the source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from wdstools.convert.options import Options
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError

VERSION = 1
TOOLS = ("pillow", "map's module")


def describe(listing: Listing, options: Options, lift: Sequence[str] | None, shuffle: bool) -> dict[str, Any]:
    """Return what makes the bytes of the output: the options that matter, and a digest of the source."""
    maxcount, maxsize = options.limits
    used: dict[str, Any] = {"maxcount": maxcount, "maxsize": maxsize, "shuffle": shuffle}
    if options.by_count and listing.stream is None:
        del used["maxsize"]
    used |= {"keys": options.keys, "column": None if lift is None else list(lift)}
    used["checksum"] = options.checksum
    if shuffle or options.splits:
        used["seed"] = options.seed
    if options.splits:
        used |= {"split": [list(pair) for pair in options.splits], "by": options.by}
    if options.resize is not None:
        used |= {"resize": options.resize, "quality": options.quality}
        used["resize-fields"] = sorted(options.resize_fields)
    if options.map is not None:
        used["map"] = options.map
    used |= tools(options)
    if options.selects():
        used |= {"where": options.where, "join": list(options.join), "sample": options.sample, "seed": options.seed}
        used |= {"sort-by": options.sort_by, "desc": options.descending}
    if listing.stream is not None:
        used |= {"rename": [list(pair) for pair in options.rename]}
        used |= {"inline": list(options.inline), "key-column": options.key_column, "where": options.where}
        used |= {"drop": sorted(options.drop), "keep": sorted(options.keep)}
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((listing.kind, listing.identity, listing.classes)).encode("utf-8", "surrogateescape"))
    nbytes = listing.entries.feed(state)
    source = {"samples": len(listing.entries), "nbytes": nbytes, "digest": state.hexdigest()}
    job = {"version": VERSION, "options": used, "source": source}
    text = json.dumps(job, sort_keys=True).encode()
    return {"fingerprint": hashlib.blake2b(text, digest_size=16).hexdigest(), **job}


def tools(options: Options) -> dict[str, str]:
    """Return what samples are computed with, as versions or digests. Raises SourceError where it is not there."""
    found: dict[str, str] = {}
    if options.resize is not None:
        try:
            from PIL import __version__ as pillow
        except ImportError as error:
            raise SourceError("--resize needs Pillow: pip install 'wdstools[images]'") from error
        found[TOOLS[0]] = pillow
    if options.map is not None:
        from wdstools.convert import mapping  # with what runs processes

        found[TOOLS[1]] = mapping.digest(options.map)
    return found


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say what differs between two jobs."""
    if old.get("version") != new["version"]:
        return f"it was made by another version (job format {old.get('version')!r})"
    before, now = old.get("options", {}), new["options"]
    changed = [
        f"--{name} was {before.get(name, 'not given')} and is {now.get(name, 'not given')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    a, b = old.get("source", {}), new["source"]
    if a != b:
        counts = [(d.get("samples"), d.get("nbytes")) for d in (a, b)]
        changed.append(
            f"the source had {counts[0][0]} samples of {counts[0][1]} bytes and has {counts[1][0]} of {counts[1][1]}"
            if counts[0] != counts[1]
            else "names or sizes in the source are not what they were"
        )
    return "; ".join(changed) or "its record is damaged"
