"""Files in a bucket or behind http -> entries: listed folder by folder, at once; read ahead, each as it was listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from wdstools import urls
from wdstools.convert.entries import Entries, Entry
from wdstools.convert.options import Options
from wdstools.convert.sources import Faults, Fields, Listing, finish, split_file, why_no_field
from wdstools.errors import ChangedError, NotFoundError, PastEndError, SourceError
from wdstools.store import Stores
from wdstools.storebase import Stat, Store

AHEAD = 32  # objects that are listed or read at once
_JUNK = frozenset({"Thumbs.db", "desktop.ini"})
Found = tuple[str, Stat]  # path below the root


def is_reached(source: str) -> bool:
    """Say whether a SOURCE lies in a bucket or behind http."""
    return urls.scheme(source) in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")


def is_objects(source: str) -> bool:
    """Say whether a SOURCE is a URL that names a folder of files."""
    if not is_reached(source):
        return False
    name = source.partition("?")[0].rstrip("/").rpartition("/")[2].lower()
    return source.endswith("/") or not any(c in name for c in "{.") or source.count("/") == 2


def list_objects(source: str, options: Options, faults: Faults) -> Listing:
    """List a folder: classes or flat, as list_tree does. Raises SourceError."""
    url = source.rstrip("/") + "/"
    store, prefix = Stores().of(url)
    dirs, files = _top(store, prefix, faults)
    if any(name.endswith(".tar") for name, _ in files):
        from wdstools.convert import shards

        names = [urls.escape(url + name) for name, _ in files if name.endswith(".tar")]
        return shards.list_shards("::".join(names), options, faults)
    if not dirs and not files and urls.scheme(source) in ("http", "https"):
        raise SourceError(
            f"{source}: its page shows no links to files below it: is the listing of folders (autoindex) switched on?"
        )
    layout = options.layout
    if layout == "auto":
        if dirs and files:
            raise SourceError(
                f"{source}: has folders ({dirs[0]}) and files ({files[0][0]}) at its top: say --layout classes (every "
                "folder is a class; files at the top are left out) or --layout flat (files anywhere below, no classes)"
            )
        layout = "classes" if dirs else "flat"
    if layout == "classes" and not dirs:
        raise SourceError(f"{source}: has no class folders: say --layout flat for files without classes")
    listing = Listing("objects-" + layout, url, Entries(), shuffle=layout == "classes", ahead=AHEAD)
    listing.name = url.rstrip("/").rpartition("/")[2]
    spelled = plain_name if urls.scheme(source) in ("http", "https") else str
    if layout == "flat":
        _add(listing, iter(files), None, options, faults, spelled)
    else:
        dirs.sort(key=spelled)
        listing.classes = {spelled(name): number for number, name in enumerate(dirs)}
    with ThreadPoolExecutor(AHEAD // 2) as pool:
        order = sorted(dirs, key=lambda name: spelled(name) + "/")
        for name, found in zip(order, pool.map(lambda name: _below(store, prefix, name + "/"), order), strict=True):
            label = None if listing.classes is None else listing.classes[spelled(name)]
            if not found and label is not None:
                faults.add(name, url + name, "empty class folder")
            _add(listing, iter(found), label, options, faults, spelled)
    listing.read = reader(store, prefix)
    return finish(listing, options, faults, source)


def _top(store: Store, prefix: str, faults: Faults) -> tuple[list[str], list[Found]]:
    """The folders and files in the source."""
    dirs, files = [], []
    for path, stat in _listed(store, prefix, True):
        name = path[len(prefix) :]
        if not name or name[0] == "." or name in _JUNK:
            continue
        if stat is None:
            dirs.append(name.rstrip("/"))
        else:
            files.append((name, stat))
    return sorted(dirs), sorted(files, key=lambda item: item[0])


def _below(store: Store, prefix: str, folder: str) -> list[Found]:
    return [(path[len(prefix) :], stat) for path, stat in _listed(store, prefix + folder, False) if stat is not None]


def _listed(store: Any, prefix: str, delimited: bool) -> Iterator[tuple[str, Stat | None]]:
    try:
        yield from store.listing(prefix, delimited)
    except NotFoundError as error:
        raise SourceError(str(error)) from error


def plain_name(path: str) -> str:
    """What the path of a URL stands for."""
    return unquote(path, errors="surrogateescape")


def _add(
    listing: Listing,
    files: Iterable[Found],
    label: int | None,
    options: Options,
    faults: Faults,
    spelled: Callable[[str], str],
) -> None:
    """Add the samples of one folder of the top, with all below it. `spelled`: the name that a path stands for."""
    text = str(label).encode("ascii")
    extra = () if label is None else ("cls", text, len(text))
    samples: dict[str, dict[str, tuple[tuple[str, str], int]]] = {}
    bad: set[str] = set()
    for path, stat in files:
        folder, slash, name = spelled(path).rpartition("/")
        if any(part[:1] == "." for part in spelled(path).split("/")) or name in _JUNK:
            continue
        stem, ext = split_file(name, options.dotted, options.keys == "number")
        key = folder + slash + stem
        if not ext:
            wrong = why_no_field(name)
        elif ext in samples.setdefault(key, {}) or (ext == "cls" and extra):
            wrong = ("two files for one field", f"field {ext!r} of sample {key!r}")
        else:
            samples[key][ext] = ((path, stat.etag or str(stat.mtime_ns or "")), stat.nbytes)
            continue
        faults.add(key, listing.root + path, *wrong)
        bad.add(key)
    for key in sorted(samples.keys() - bad):
        parts = tuple(x for ext in sorted(samples[key]) for x in (ext, *samples[key][ext]))
        listing.entries.append(Entry(key, label, (*parts, *extra)))


def reader(store: Store, prefix: str) -> Any:
    """A function of an entry: its fields, read from the objects that were listed. Raises SourceError where one is
    another now."""

    def read(entry: Entry) -> Fields:
        parts = entry.parts
        fields: Fields = {}
        for i in range(0, len(parts), 3):
            where = parts[i + 1]
            fields[parts[i]] = where if isinstance(where, bytes) else one(where[0], where[1], parts[i + 2])
        return fields

    def one(path: str, version: str, nbytes: int) -> bytes:
        name = prefix + path
        try:
            data = store.read(name, 0, nbytes) if nbytes else b""
            stat = store.size(name) if not nbytes else store.pinned(name)
        except (ChangedError, PastEndError, NotFoundError) as error:
            raise SourceError(f"{store.url(name)}: changed while it was packed: {error}") from error
        finally:
            store.forget(name)
        now = None if stat is None else stat.etag or str(stat.mtime_ns or "")
        if stat is None or stat.nbytes != nbytes or (version and now != version):
            have = "nothing" if stat is None else f"{stat.nbytes} bytes, version {now}"
            raise SourceError(
                f"{store.url(name)}: changed while it was packed: {nbytes} bytes, version {version} when listed, "
                f"{have} now"
            )
        return data

    return read
