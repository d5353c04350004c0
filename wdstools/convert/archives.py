"""Zip files, and tars of tars (as ImageNet comes: a tar for each class), as files in folders. Nothing is unpacked."""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from wdstools import _core
from wdstools.convert.entries import Entry
from wdstools.convert.images import Failure
from wdstools.convert.options import Options
from wdstools.convert.sources import Faults, Fields, Listing, finish, relative_key, split_file, why_no_field
from wdstools.errors import ShardError, SourceError

_JUNK = ("__MACOSX/", "Thumbs.db", "desktop.ini")


class _Inside(NamedTuple):
    """A file in an archive. `place`: a number or offset, as its reader takes it."""

    name: str
    place: Any
    nbytes: int
    label: int | None = None


class _Open:
    """An archive, open for reading until the last reference to it is gone. Pickled, it is its path, and opened again
    where it is read: raises SourceError where it is another file then."""

    def __init__(self, path: str, seen: tuple[int, int] | None = None) -> None:
        self._path, self._fd = os.path.abspath(path), -1
        self._seen = seen or _seen(os.stat(path))
        self._zip: zipfile.ZipFile | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._seen)

    @property
    def fd(self) -> int:
        """The descriptor."""
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            if _seen(os.fstat(self._fd)) != self._seen:
                raise SourceError(f"{self._path}: changed while it was packed")
        return self._fd

    @property
    def zip(self) -> zipfile.ZipFile:
        """The archive, as a zip file. Raises BadZipFile."""
        if self._zip is None:
            if _seen(os.stat(self._path)) != self._seen:
                raise SourceError(f"{self._path}: changed while it was packed")
            self._zip = _zip(self._path, self._seen)
        return self._zip

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _seen(about: os.stat_result) -> tuple[int, int]:
    return about.st_size, about.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _zip(path: str, seen: tuple[int, int]) -> zipfile.ZipFile:
    """A zip file; of several tasks in one process, the first reads its directory."""
    archive = zipfile.ZipFile(path)
    if archive.fp is None or _seen(os.fstat(archive.fp.fileno())) != seen:
        archive.close()
        raise SourceError(f"{path}: changed while it was packed")
    return archive


def is_zip(path: str) -> bool:
    """Say whether a file is a zip file, by its name."""
    return path.lower().endswith(".zip") and os.path.isfile(path)


def is_nested(path: str) -> bool:
    """Say whether a local tar holds tars: its first file is one."""
    if not path.lower().endswith(".tar") or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        try:
            for name, kind, *_ in _core.Walker(file.fileno(), path):
                if kind == "f":
                    return name.lower().endswith(".tar")
        except ShardError:
            return False  # whoever reads it will say it better
    return False


def list_zip(path: str, options: Options, faults: Faults) -> Listing:
    """List a zip file: files with one name are one sample, as in a folder. Raises SourceError."""
    if options.layout == "classes":
        raise SourceError(f"{path}: a zip file is listed flat; unzip it for --layout classes")
    file = _Open(path)
    try:
        infos = file.zip.infolist()
    except zipfile.BadZipFile as error:
        raise SourceError(f"{path}: not a zip file, or a damaged one: {error}") from error
    listing = _listing("zip", path)
    if any(info.flag_bits & 1 for info in infos):
        raise SourceError(f"{path}: holds encrypted files")
    found = (_Inside(info.filename, i, info.file_size) for i, info in enumerate(infos) if not info.is_dir())
    _collect(listing, found, path, options, faults)

    def read(entry: Entry) -> Fields | Failure:
        fields: Fields = {}
        inside = file.zip.infolist()
        for name, place, nbytes in zip(*[iter(entry.parts)] * 3, strict=True):
            where = f"{path}: {inside[place].filename}"
            try:
                data = file.zip.read(inside[place])  # which checks its CRC
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                return Failure(where, "cannot be read", str(error))
            if len(data) != nbytes:
                return Failure(where, "cannot be read", f"{len(data)} bytes, where it should have {nbytes}")
            fields[name] = data
        return fields

    listing.read = read
    return finish(listing, options, faults, path)


def list_nested(path: str, options: Options, faults: Faults) -> Listing:
    """List a tar of tars: each is a class, called by its name, unless the layout is flat. Raises SourceError,
    ShardError."""
    listing = _listing("nested", path)
    file = _Open(path)
    fd = file.fd
    inner = []
    for name, kind, _, _, _, offset, nbytes in _core.Walker(fd, path):
        if kind == "f" and not _is_junk(name):
            if not name.lower().endswith(".tar"):
                raise SourceError(f"{path}: holds {name} beside tars: unpack it")
            inner.append((os.path.normpath(name[:-4]), offset, nbytes))
    names = sorted(name for name, _, _ in inner)
    classes = {name: number for number, name in enumerate(names)}
    if len(classes) < len(names):
        raise SourceError(f"{path}: holds two tars with one name")
    if options.layout != "flat":
        listing.classes = {os.path.basename(name): number for name, number in classes.items()}
        listing.shuffle = True
        if len(listing.classes) < len(classes):
            raise SourceError(f"{path}: two of its tars are called alike: say --layout flat")
    _collect(listing, _members(fd, path, inner, classes, options.layout == "flat"), path, options, faults)

    def read(entry: Entry) -> Fields:
        fields: Fields = {}
        for name, place, nbytes in zip(*[iter(entry.parts)] * 3, strict=True):
            if isinstance(place, bytes):
                fields[name] = place
                continue
            data = os.pread(file.fd, nbytes, place) if nbytes < 1 << 30 else _pread(file.fd, nbytes, place)
            if len(data) != nbytes:
                raise SourceError(f"{path}: cut short while it was read")
            fields[name] = data
        return fields

    listing.read = read
    return finish(listing, options, faults, path)


def _members(
    fd: int, path: str, inner: Iterable[tuple[str, int, int]], classes: dict[str, int], flat: bool
) -> Iterator[_Inside]:
    for folder, start, nbytes in inner:
        url = f"{path}: {folder}.tar"
        for name, kind, _, _, _, offset, size in _core.Walker(fd, url, start=start, end=start + nbytes):
            if kind == "f":
                yield _Inside(f"{folder}/{name}", offset, size, None if flat else classes[folder])
            elif kind != "d":
                raise SourceError(f"{url}: {name}: neither a file nor a folder")


def _pread(fd: int, nbytes: int, at: int) -> bytes:
    """One call reads 2 GiB at most."""
    pieces = []
    while nbytes and (piece := os.pread(fd, min(nbytes, 1 << 30), at)):
        pieces.append(piece)
        nbytes, at = nbytes - len(piece), at + len(piece)
    return b"".join(pieces)


def _listing(kind: str, path: str) -> Listing:
    about = os.stat(path)
    listing = Listing(kind, name=os.path.basename(path).partition(".")[0])
    listing.identity = f"{os.path.basename(path)} {about.st_size}"
    listing.saw(about, path)
    return listing


def _is_junk(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith(".") or base in _JUNK or name.startswith(_JUNK[0])


def _collect(listing: Listing, files: Iterable[_Inside], path: str, options: Options, faults: Faults) -> None:
    """Files with one stem are one sample, as in a folder."""
    found: dict[str, tuple[int | None, dict[str, tuple[Any, int]]]] = {}
    bad: set[str] = set()
    for file in files:
        if _is_junk(file.name):
            continue
        folder, slash, base = relative_key(file.name, "").rpartition("/")
        stem, ext = split_file(base, options.dotted, options.keys == "number")
        key = folder + slash + stem
        wrong = why_no_field(base) if not ext else None
        fields = found.setdefault(key, (file.label, {}))[1]
        if not wrong and (ext in fields or (ext == "cls" and file.label is not None)):
            wrong = ("two files for one field", f"field {ext!r} of sample {key!r}")
        if wrong:
            faults.add(key, f"{path}: {file.name}", *wrong)
            bad.add(key)
        else:
            fields[ext] = (file.place, file.nbytes)
    for key, (label, fields) in found.items():
        if key in bad or not fields:
            continue
        parts: list[Any] = [x for ext in sorted(fields) for x in (ext, *fields[ext])]
        if label is not None:
            text = b"%d" % label
            parts += ["cls", text, len(text)]
        listing.entries.append(Entry(key, label, tuple(parts)))
