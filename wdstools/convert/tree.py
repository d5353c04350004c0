"""Folders and lists of paths -> entries. One scandir a folder, one stat a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from wdstools.convert.entries import Entries, Entry
from wdstools.convert.options import Options
from wdstools.convert.sources import Faults, Listing, finish, relative_key, split_file, why_no_field
from wdstools.errors import SourceError

CIRCLE = "a link to a folder above it"
_JUNK = frozenset({"Thumbs.db", "desktop.ini"})


def list_tree(root: str, options: Options, faults: Faults) -> Listing:
    """List a folder: classes (ImageFolder: the first-level folders, sorted, are numbered) or flat."""
    folder = root.rstrip("/") + "/"
    dirs, files = _top(folder)
    layout = options.layout
    if layout == "auto":
        if dirs and files:
            raise SourceError(
                f"{root}: has folders ({dirs[0]}) and files ({files[0]}) at its top: say --layout classes (every "
                "folder is a class; files at the top are left out) or --layout flat (files anywhere below, no classes)"
            )
        layout = "classes" if dirs else "flat"
    walker = _Walker(folder, options, faults)
    if layout == "flat":
        listing = Listing("flat", folder, Entries(walker.walk("", None)))
    else:
        if not dirs:
            raise SourceError(f"{root}: has no class folders: say --layout flat for files without classes")
        listing = Listing("classes", folder, _classes(folder, dirs, walker, faults), shuffle=True)
        listing.classes = {name: number for number, name in enumerate(dirs)}
    listing.name, listing.folder, listing.newest = os.path.basename(os.path.abspath(root)), folder, walker.seen.newest
    return finish(listing, options, faults, root)


def _top(folder: str) -> tuple[list[str], list[str]]:
    dirs: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as found:
        for item in found:
            if item.name[0] != "." and item.name not in _JUNK:
                (dirs if item.is_dir() else files).append(item.name)
    return sorted(dirs), sorted(files)


def _classes(folder: str, dirs: list[str], walker: _Walker, faults: Faults) -> Entries:
    """The samples of all classes, by key: a folder at a time, in the order of their keys, which go on with a slash."""
    entries = Entries()
    for number in sorted(range(len(dirs)), key=lambda number: dirs[number] + "/"):
        name = dirs[number]
        before = len(faults.skipped)
        if os.path.realpath(folder + name) == os.path.realpath(folder):
            faults.add(name, folder + name, CIRCLE)
            continue
        found = list(walker.walk(name + "/", number))
        if not found and len(faults.skipped) == before:
            faults.add(name, folder + name, "empty class folder", "remove it, or leave it out with --on-error skip")
        entries.extend(sorted(found, key=lambda entry: entry.key))
    return entries


class _Walker:
    """Collects the samples below a folder of the tree."""

    def __init__(self, root: str, options: Options, faults: Faults) -> None:
        self.root, self.faults = root, faults
        self.dotted, self.last = options.dotted, options.keys == "number"
        self.seen = Listing("")  # for the times of files

    def walk(self, prefix: str, label: int | None) -> Iterator[Entry]:
        """Yield the samples below root + prefix, in no order; with a label, they get it as `cls`."""
        text = str(label).encode("ascii")
        extra = () if label is None else ("cls", text, len(text))
        pending = [(prefix, frozenset[tuple[int, int]]())]
        while pending:
            prefix, above = pending.pop()
            entries: list[Entry] = []  # of one folder
            try:
                folders, links = self._folder(prefix, label, extra, entries)
            except OSError as error:
                self.faults.add(prefix, self.root + prefix, (error.strerror or str(error)).lower())
                continue
            yield from entries
            pending += [(prefix + name + "/", above) for name in folders]
            for name in links:  # followed as ImageFolder does, but not in circles
                path = self.root + prefix + name
                try:
                    about = os.stat(path)
                    place = (about.st_dev, about.st_ino)
                    circle = place in above or self._is_above(prefix, place)
                except OSError as error:
                    self.faults.add(prefix + name, path, (error.strerror or str(error)).lower())
                    continue
                if circle:
                    self.faults.add(prefix + name, path, CIRCLE)
                else:
                    pending.append((prefix + name + "/", above | {place}))

    def _is_above(self, prefix: str, place: tuple[int, int]) -> bool:
        path = self.root + prefix
        while len(path) >= len(self.root):
            about = os.stat(path)
            if (about.st_dev, about.st_ino) == place:
                return True
            path = path.rstrip("/").rpartition("/")[0] + "/"
        return False

    def _folder(
        self, prefix: str, label: int | None, extra: tuple[object, ...], entries: list[Entry]
    ) -> tuple[list[str], list[str]]:
        """Add the samples of one folder to the entries; return its folders, and its links to folders."""
        folders: list[str] = []
        links: list[str] = []
        found: dict[str, list[tuple[str, str, int]]] = {}
        bad: dict[str, None] = {}
        for item in _scan(self.root + prefix):
            name = item.name
            if name[0] == "." or name in _JUNK:
                continue
            if item.is_dir():
                (links if item.is_symlink() else folders).append(name)
                continue
            stem, ext = split_file(name, self.dotted, self.last)
            try:
                about = item.stat()
            except OSError as error:
                wrong = ((error.strerror or str(error)).lower(), "a dangling link?" if item.is_symlink() else "")
            else:
                if ext and stat.S_ISREG(about.st_mode):
                    if about.st_mtime_ns > self.seen.newest[0]:
                        self.seen.saw(about, self.root + prefix + name)
                    found.setdefault(stem, []).append((ext, name, about.st_size))
                    continue
                wrong = why_no_field(name) if not ext else ("not a regular file", "")
            self.faults.add(prefix + stem, self.root + prefix + name, *wrong)
            bad[stem] = None
        for stem in bad:
            found.pop(stem, None)
        for stem, files in found.items():
            if len(files) == 1:
                ext, name, nbytes = files[0]
                if ext != "cls" or not extra:
                    entries.append(Entry(prefix + stem, label, (ext, prefix + name, nbytes, *extra)))
                    continue
            self._several(prefix, stem, files, label, extra, entries)
        return folders, links

    def _several(
        self,
        prefix: str,
        stem: str,
        files: list[tuple[str, str, int]],
        label: int | None,
        extra: tuple[object, ...],
        entries: list[Entry],
    ) -> None:
        parts: list[object] = []
        seen = {"cls": "the class number"} if extra else {}
        for ext, name, nbytes in sorted(files):
            if ext in seen:
                detail = f"field {ext!r} of sample {prefix + stem!r} comes from {seen[ext]} and from {name}"
                self.faults.add(prefix + stem, self.root + prefix + name, "two files for one field", detail)
                return
            seen[ext] = name
            parts += (ext, prefix + name, nbytes)
        entries.append(Entry(prefix + stem, label, (*parts, *extra)))


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        yield from found


def list_paths(paths: Iterable[str], options: Options, faults: Faults) -> Listing:
    """List files given by their paths: flat rules, keys relative to the current folder."""
    root = os.getcwd().rstrip("/") + "/"
    listing = Listing("paths")
    found: dict[str, dict[str, tuple[str, int]]] = {}
    bad: set[str] = set()
    for path in paths:
        folder, slash, name = relative_key(path, root).rpartition("/")
        stem, ext = split_file(name, options.dotted, options.keys == "number")
        key = folder + slash + stem
        wrong = why_no_field(name) if not ext else None
        try:
            about = os.stat(path)
        except OSError as error:
            wrong = ((error.strerror or str(error)).lower(), "")
        else:
            if not stat.S_ISREG(about.st_mode):
                wrong = ("not a regular file", "")
            elif not wrong and ext in found.setdefault(key, {}):
                wrong = (
                    "two files for one field",
                    f"field {ext!r} of sample {key!r} also comes from {found[key][ext][0]}",
                )
        if wrong:
            faults.add(key, path, *wrong)
            bad.add(key)
        else:
            found[key][ext] = (path, about.st_size)
            listing.saw(about, path)
    for key, files in found.items():
        if key not in bad:
            listing.entries.append(Entry(key, None, tuple(x for ext in sorted(files) for x in (ext, *files[ext]))))
    return finish(listing, options, faults, "stdin")
