"""ratarmount's `X.tar.index.sqlite`, index version 0.7.0: every member, with owner, mode and time."""

from __future__ import annotations

import json
import os
import posixpath
import re
import sqlite3
import stat
import tarfile
from collections.abc import Iterator
from typing import Any

from wdstools import tar, urls
from wdstools.errors import UrlError
from wdstools.index import Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim, Field, normal
from wdstools.interop.detect import claim_file
from wdstools.interop.foreign import Options, Written, wrong
from wdstools.interop.members import Members, each, exact_names, first_rows, read_members, rows_of
from wdstools.samples import split_name

SUFFIX = ".index.sqlite"
VERSIONS = [("ratarmount", "0.11.1", "0", "11", "1"), ("index", "0.7.0", "0", "7", "0")]
ARGUMENTS = {
    "mountRecursively": False, "encoding": "utf-8", "stripRecursiveTarExtension": False,
    "transformRecursiveMountPoint": None, "transformPattern": None, "ignoreZeros": False, "hashes": [],
    "gzipSeekPointSpacing": 16 << 20,
}  # fmt: skip
FOLDER_ROW = (0, 0, 0o555 | stat.S_IFDIR, 5, "", 0, 0, 0, 0, 0, 0)  # from the size on
KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip
XATTR = "SCHILY.xattr."
MODE = 6  # column of a row

TABLES = """
CREATE TABLE "files" (
  "path" VARCHAR(65535) NOT NULL, "name" VARCHAR(65535) NOT NULL, "offsetheader" INTEGER, "offset" INTEGER,
  "size" INTEGER, "mtime" REAL, "mode" INTEGER, "type" INTEGER, "linkname" VARCHAR(65535), "uid" INTEGER,
  "gid" INTEGER, "istar" BOOL, "issparse" BOOL, "isgenerated" BOOL, "recursiondepth" INTEGER,
  PRIMARY KEY ("path","name","offsetheader"));
CREATE TABLE "xattrkeys" ("id" INTEGER PRIMARY KEY, "name" VARCHAR(65535) UNIQUE);
CREATE TABLE "xattrsdata" (
  "offsetheader" INTEGER, "keyid" INTEGER, "value" VARCHAR(65535), PRIMARY KEY ("offsetheader","keyid"),
  FOREIGN KEY ("keyid") REFERENCES xattrkeys("id"));
CREATE VIEW "xattrs" ("offsetheader", "key", "value") AS
  SELECT offsetheader, xattrkeys.name, value FROM "xattrsdata"
  INNER JOIN xattrkeys ON xattrkeys.id = xattrsdata.keyid;
CREATE TRIGGER "xattrs_insert" INSTEAD OF INSERT ON "xattrs" BEGIN
  INSERT OR IGNORE INTO xattrkeys(name) VALUES (NEW.key);
  INSERT OR REPLACE INTO xattrsdata(offsetheader, keyid, value)
    VALUES (NEW.offsetheader, (SELECT xattrkeys.id FROM xattrkeys WHERE name = NEW.key), NEW.value);
END;
CREATE TABLE "metadata" ("key" VARCHAR(65535) NOT NULL, "value" VARCHAR(65535) NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE "versions" (
  "name" VARCHAR(65535) NOT NULL, "version" VARCHAR(65535) NOT NULL, "major" INTEGER, "minor" INTEGER,
  "patch" INTEGER, PRIMARY KEY ("name"));
"""


def index_path(shard: str) -> str:
    """Where ratarmount looks: X.tar -> X.tar.index.sqlite."""
    return shard + SUFFIX


def export(index: Index, options: Options) -> Written:
    """Write the index of every shard. Raises StaleIndexError, ShardError, DestinationError, UrlError for remote
    shards."""
    paths = foreign.beside(index.shards.url, options, "ratarmount", index_path)
    for path, url in zip(paths, index.shards.url, strict=True):
        if urls.local_path(url) is None:
            raise UrlError(f"{url}: ratarmount mounts local files")
        claim_file(path, "ratarmount", options.overwrite, url)

    first = first_rows(index)

    def one(number: int) -> None:
        rows = rows_of(index, number, first)
        members = read_members(rows.url)
        exact_names(index, rows, members)
        _write(batch.path(paths[number]), urls.local_path(rows.url) or "", members)

    with foreign.Batch() as batch:
        for _ in each(index, one, options.workers, options.progress):
            pass
    return Written(paths)


def _write(path: str, shard: str, members: Members) -> None:
    database = sqlite3.connect(path)
    try:
        database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + TABLES)
        with open(shard, "rb") as file:
            files = list(_files(file.fileno(), members))
            about = os.fstat(file.fileno())
        database.executemany(f"INSERT OR REPLACE INTO files VALUES ({','.join('?' * 15)})", (row for row, _ in files))
        known = {row[:2] for row, _ in files if row[MODE] & stat.S_IFDIR}
        for row in _folders(files):
            if row[:2] not in known:
                database.execute(f"INSERT OR IGNORE INTO files VALUES ({','.join('?' * 15)})", row)
        for row, records in files:
            for key, value in records.items():
                if key.startswith(XATTR):
                    database.execute("INSERT INTO xattrs VALUES (?, ?, ?)", (row[2], key[len(XATTR) :], value))
        stats = {name: getattr(about, name) for name in dir(about) if name.startswith("st_")}
        metadata = {"tarstats": json.dumps(stats), "arguments": json.dumps(ARGUMENTS)}
        metadata |= {"backendName": "SQLiteIndexedTar", "isGnuIncremental": "0"}
        database.executemany("INSERT INTO metadata VALUES (?, ?)", metadata.items())
        database.executemany("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", VERSIONS)
        database.commit()
    finally:
        database.close()


Records = dict[str, bytes]  # of a PAX header
Row = tuple[Any, ...]


def _files(fd: int, members: Members) -> Iterator[tuple[Row, Records]]:
    """The row of every member, and its PAX records."""
    everywhere: Records = {}
    places = zip(members.starts.tolist(), members.offsets.tolist(), members.nbytes.tolist(), strict=True)
    for name, (start, offset, nbytes) in zip(members.text(), places, strict=True):
        group = os.pread(fd, offset - start, start)
        header, records = _group(group, everywhere)
        yield _row(name, start, offset, nbytes, header, records), records


def _group(group: bytes, everywhere: Records) -> tuple[bytes, Records]:
    """The final header of a header group, and the records of the PAX headers before it; global ones stay."""
    own: Records = {}
    at = 0
    while group[at + 156 : at + 157] in (b"x", b"g", b"X", b"L", b"K"):
        nbytes = _octal(group[at + 124 : at + 136])
        kind, body = group[at + 156 : at + 157], group[at + tar.BLOCK : at + tar.BLOCK + nbytes]
        if kind == b"K":
            own["linkpath"] = body.rstrip(b"\0")
        elif kind != b"L":
            (everywhere if kind == b"g" else own).update(_records(body))
        at += tar.BLOCK + tar.padded(nbytes)
    return group[at : at + tar.BLOCK], everywhere | own


def _records(body: bytes) -> Records:
    found = {}
    while match := re.match(rb"([0-9]{1,20}) ([^=]+)=", body):
        end = int(match[1])
        found[match[2].decode("utf-8", "surrogateescape")] = body[match.end() : end - 1]
        body = body[end:] if end > match.end() else b""
    return found


def _octal(field: bytes) -> int:
    """A number of a header that the core has found sound, so that there are two forms of it."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _number(records: Records, name: str, field: bytes, kind: type) -> Any:
    try:
        return kind(records[name])
    except (KeyError, ValueError):
        return _octal(field)


def _row(name: str, start: int, offset: int, nbytes: int, header: bytes, records: Records) -> Row:
    kind = header[156:157]
    link = records.get("linkpath", header[157:257].split(b"\0", 1)[0])
    folder, last = ("/" + posixpath.normpath("/" + name).lstrip("/")).rsplit("/", 1)
    uid, gid = (_number(records, *which, int) for which in (("uid", header[108:116]), ("gid", header[116:124])))
    mode = _octal(header[100:108]) | KINDS.get(kind, stat.S_IFREG if kind in tarfile.REGULAR_TYPES else 0)
    return (
        folder, last, start, offset, nbytes, _number(records, "mtime", header[136:148], float), mode, kind,
        link.decode("utf-8", "surrogateescape"), uid, gid, False, kind == tarfile.GNUTYPE_SPARSE, False, 0,
    )  # fmt: skip


def _folders(files: list[tuple[Row, Records]]) -> Iterator[Row]:
    """Rows of the folders that members lie in: each with the place of the first of these."""
    seen = set()
    for (path, _, start, offset, *_), _records in files:
        while path and path not in seen:
            seen.add(path)
            above, name = path.rsplit("/", 1)
            yield (above, name, start, offset, *FOLDER_ROW)
            path = above


def read(path: str, shard: str) -> Claim:
    """Read the index of a shard. Raises IndexFileError, NotFoundError."""
    with foreign.sqlite(path, ("files", "versions", "metadata")) as database:
        versions = dict(database.execute("SELECT name, version FROM versions").fetchall())
        if not re.fullmatch(r"0\.[2-7]\.[0-9]+", str(versions.get("index"))):
            wrong(path, f"not an index of ratarmount 0.2 to 0.7: its version is {versions.get('index')!r}")
        metadata = dict(database.execute("SELECT key, value FROM metadata").fetchall())
        nbytes = _size(path, metadata)
        rows = database.execute(
            "SELECT path, name, offset, size FROM files WHERE mode & ? = ? AND NOT istar AND NOT issparse "
            "ORDER BY offset",
            (0o170000, stat.S_IFREG),
        )
        fields = []
        for folder, name, offset, size in rows:
            if not isinstance(folder, str) or not isinstance(name, str):
                wrong(path, f"a file whose name is no text: {folder!r}, {name!r}")
            if any(type(n) is not int or n < 0 for n in (offset, size)):
                wrong(path, f"{folder}/{name}: no place of a file: {offset!r}, {size!r}")
            split = split_name(normal(f"{folder}/{name}"))
            if split is not None:
                fields.append(Field(*split, offset, size))
    return Claim(shard, path, fields=fields, nbytes=nbytes, normalised=True)


def _size(path: str, metadata: dict[str, Any]) -> int | None:
    if metadata.get("backendName", "SQLiteIndexedTar") != "SQLiteIndexedTar":
        wrong(path, f"not of a tar: its backend is {metadata['backendName']!r}")
    try:
        nbytes = json.loads(metadata["tarstats"])["st_size"] if "tarstats" in metadata else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        wrong(path, f"its tarstats are none: {error!r}")
    if nbytes is not None and type(nbytes) is not int:
        wrong(path, f"its tarstats have the size {nbytes!r}")
    return nbytes
