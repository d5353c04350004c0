"""ratarmount's SQLite index: the same rows as its own, read by it; attacks."""

from __future__ import annotations

import io
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
from interoping import PAIRS, RICH, digest, export, imported, indexed, needs_readers, read_with

from wdstools import build
from wdstools.errors import IndexFileError, UrlError
from wdstools.interop.formats import read_claims


def dump(path: str | Path) -> dict[str, Any]:
    database = sqlite3.connect(path)
    found: dict[str, Any] = {
        name: database.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3").fetchall() for name in ("files", "xattrs")
    }
    found["columns"] = database.execute("PRAGMA table_info(files)").fetchall()
    found["made"] = database.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2").fetchall()
    found["metadata"] = dict(database.execute("SELECT * FROM metadata").fetchall())
    found["versions"] = database.execute("SELECT * FROM versions ORDER BY 1").fetchall()
    database.close()
    return found


def rich_tar(path: Path, format: int) -> None:
    """Owners, modes, times, links, folders, long names, PAX records, extended attributes."""
    with tarfile.open(path, "w", format=format) as archive:
        for number, (name, data) in enumerate([*RICH[0], *RICH[1], ("x/" * 80 + "long.jpg", b"l"), ("s/q.txt", b"")]):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.gid = len(data), 0o600 + number, 1000 + number, 3
            info.mtime = 1e9 + (0.25 if format == tarfile.PAX_FORMAT else 0)
            if format == tarfile.PAX_FORMAT:
                info.pax_headers = {"SCHILY.xattr.user.note": f"n{number}", "comment": "c"}
            archive.addfile(info, io.BytesIO(data))
        for name, kind, link in (("d", tarfile.DIRTYPE, ""), ("l", tarfile.SYMTYPE, "t" * 120),
                                 ("p", tarfile.FIFOTYPE, ""),
                                 ("h", tarfile.LNKTYPE, "b.txt"), ("c", tarfile.CHRTYPE, "")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link[: 100 if format == tarfile.USTAR_FORMAT else None], 0o755
            archive.addfile(info)


def test_golden(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[("a/b/x.jpg", b"hello"), ("c.txt", b"")]], mtime=7)
    (path,) = export(index, "ratarmount").paths
    assert path == str(tmp_path / "t-000000.tar.index.sqlite")
    found = dump(path)
    assert found["files"] == [
        ("", "a", 0, 512, 0, 0.0, 0o40555, 5, "", 0, 0, 0, 0, 0, 0),
        ("", "c.txt", 1024, 1536, 0, 7.0, 0o100644, b"0", "", 0, 0, 0, 0, 0, 0),
        ("/a", "b", 0, 512, 0, 0.0, 0o40555, 5, "", 0, 0, 0, 0, 0, 0),
        ("/a/b", "x.jpg", 0, 512, 5, 7.0, 0o100644, b"0", "", 0, 0, 0, 0, 0, 0),
    ]
    assert ("index", "0.7.0", 0, 7, 0) in found["versions"]
    assert json.loads(found["metadata"]["tarstats"])["st_size"] == index.shards.nbytes[0]


def test_remote_shards(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    index.shards.url[0] = "http://127.0.0.1:1/t-000000.tar"
    with pytest.raises(UrlError, match="ratarmount mounts local files"):
        export(index, "ratarmount", tmp_path / "out")


@needs_readers
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_ratarmount_writes_the_same_and_reads_it(tmp_path: Path, format: int) -> None:
    shard = tmp_path / "t.tar"
    rich_tar(shard, format)
    index = build.build([str(shard)])
    (path,) = export(index, "ratarmount").paths
    other = tmp_path / "theirs.sqlite"
    read_with("ratarmount_index", {"shard": str(shard), "index": str(other)})
    ours, theirs = dump(path), dump(other)
    assert ours["files"] == theirs["files"]
    assert (ours["xattrs"], ours["columns"], ours["made"]) == (theirs["xattrs"], theirs["columns"], theirs["made"])
    assert {n: v for n, v in ours["metadata"].items() if n != "tarstats"} == {
        n: v for n, v in theirs["metadata"].items() if n != "tarstats"
    }
    read = read_with("ratarmount", {"shard": str(shard), "index": path})
    assert read["taken"] == path
    with tarfile.open(shard) as archive:
        files = {m.name.removeprefix("./"): digest(archive.extractfile(m).read()) for m in archive if m.isreg()}  # type: ignore[union-attr]
    assert {name: data for name, data in read["files"] if name in files} == files
    (tmp_path / "t.tar.index.sqlite").unlink()
    other.rename(tmp_path / "t.tar.index.sqlite")
    again = imported(read_claims("ratarmount", [str(shard)]), tmp_path / "again.wdsindex")
    assert again.table.column("key").to_pylist() == index.table.column("key").to_pylist()


SQL = {
    "DELETE FROM files WHERE name = '1.jpg'": "the shard has 8 fields, not 7|where it has",
    "UPDATE files SET offset = offset + 512": "where it has 'jpg' of 'p0/0' at byte 1024",
    "UPDATE files SET size = size + 1": "where it has 'jpg' of 'p0/0' at byte 512 with",
    "UPDATE files SET name = 'x' || name": "of 'p0/x0'",
    "UPDATE files SET name = x'ff00' WHERE mode & 32768": "whose name is no text",
    "UPDATE files SET offset = -512 WHERE mode & 32768": "no place of a file: -512",
    "UPDATE files SET offset = 1e300 WHERE mode & 32768": "no place of a file",
    "UPDATE files SET offset = 9223372036854775807 WHERE mode & 32768": "9223372036854775807",
    "INSERT INTO files SELECT path, 'new.jpg', offsetheader, offset, size, mtime, mode, type, linkname, uid, gid, "
    "istar, issparse, isgenerated, recursiondepth FROM files WHERE name = '0.jpg'": "where it has",
    "UPDATE versions SET version = '0.8.0' WHERE name = 'index'": "its version is '0.8.0'",
    "DELETE FROM versions": "its version is None",
    "UPDATE metadata SET value = 'SQLiteIndexedZip' WHERE key = 'backendName'": "its backend is 'SQLiteIndexedZip'",
    "UPDATE metadata SET value = '{\"st_size\": 5}' WHERE key = 'tarstats'": "bytes, not 5",
    "UPDATE metadata SET value = '[' WHERE key = 'tarstats'": "its tarstats are none",
    "DROP TABLE files": "not an index: no such table",
    "ALTER TABLE files RENAME COLUMN offset TO o": "not an index: no such column",
}


@pytest.mark.parametrize("sql", SQL)
def test_attacks(tmp_path: Path, sql: str) -> None:
    index = indexed(tmp_path, PAIRS[:1])
    (path,) = export(index, "ratarmount").paths
    database = sqlite3.connect(path)
    database.execute(sql)
    database.commit()
    database.close()
    with pytest.raises(IndexFileError, match=SQL[sql]) as caught:
        imported(read_claims("ratarmount", index.shards.url), tmp_path / "again.wdsindex")
    assert path in str(caught.value)
    assert not (tmp_path / "again.wdsindex").exists()


def test_a_view_that_never_ends(tmp_path: Path) -> None:
    """SQL in a file is not run beyond what the format has: files must be a table."""
    index = indexed(tmp_path, PAIRS[:1])
    (path,) = export(index, "ratarmount").paths
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE files RENAME TO real")
    database.execute(
        "CREATE VIEW files AS WITH RECURSIVE f(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM f) SELECT '/p0' AS path, "
        "n || '.jpg' AS name, n * 512 AS offset, 0 AS size, 33188 AS mode, 0 AS istar, 0 AS issparse FROM f"
    )
    database.commit()
    database.close()
    with pytest.raises(IndexFileError, match="files is no table"):
        read_claims("ratarmount", index.shards.url)
