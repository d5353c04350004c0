"""A file of the source that changes between the plan and the reading is named, whatever it is a file of."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from convert_helpers import image_tree, put, shards

from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import SourceError, StaleIndexError

EACH = 20
DATA = {f"{half}{i:02d}.txt": os.urandom(3000) for half in "ab" for i in range(EACH)}


def manifest(root: Path) -> tuple[Path, Path]:
    put(root, DATA)
    put(root, {"m.tsv": "path\tlabel\n" + "".join(f"{name}\t1\n" for name in DATA)})
    return root / "m.tsv", root / "b07.txt"


def parquet(root: Path) -> tuple[Path, Path]:
    for half in "ab":
        rows = [{"key": name[:3], "bytes": data} for name, data in DATA.items() if name[0] == half]
        pq.write_table(pa.Table.from_pylist(rows), root / f"{half}.parquet")
    return root, root / "b.parquet"


def tars(root: Path) -> tuple[Path, Path]:
    put(root / "files", DATA)
    (root / "tars").mkdir()
    for half in "ab":
        with tarfile.open(root / f"tars/{half}.tar", "w") as tar:
            for name in DATA:
                if name[0] == half:
                    tar.add(root / "files" / name, name)
    return root / "tars", root / "tars/b.tar"


def nested(root: Path) -> tuple[Path, Path]:
    tars(root)
    with tarfile.open(root / "n.tar", "w") as outer:
        outer.add(root / "tars/a.tar", "a.tar")
        outer.add(root / "tars/b.tar", "b.tar")
    return root / "n.tar", root / "n.tar"


def zipped(root: Path) -> tuple[Path, Path]:
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        for name, data in DATA.items():
            archive.writestr(name, data)
    return root / "z.zip", root / "z.zip"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


Make = Callable[[Path], tuple[Path, Path]]
CASES: list[tuple[Make, Callable[[Path], None], type[Exception], str]] = [
    (manifest, Path.unlink, SourceError, "{}: no such file or directory"),
    (manifest, cut, SourceError, "{}: changed while it was packed: 3000 bytes when listed, 1500 now"),
    (parquet, Path.unlink, FileNotFoundError, "Failed to open local file '{}'.* No such file or directory"),
    (parquet, cut, SourceError, "{}: cannot be read"),
    (tars, Path.unlink, FileNotFoundError, "No such file or directory: '{}'"),
    (tars, cut, StaleIndexError, "does not describe {} any more: [0-9]+ bytes, where the index has"),
    (nested, cut, SourceError, "{}: cut short while it was read"),  # one that is unlinked is open, and stays whole
    (zipped, cut, SourceError, "{}: b[0-9]+.txt: cannot be read"),
]


@pytest.mark.parametrize(("make", "harm", "kind", "message"), CASES)
def test_it_is_named(
    tmp_path: Path, make: Make, harm: Callable[[Path], None], kind: type[Exception], message: str
) -> None:
    (tmp_path / "in").mkdir()
    source, victim = make(tmp_path / "in")
    with pytest.raises(kind, match=message.format(victim)):
        convert(str(source), str(tmp_path / "out"), Options(maxcount=100), planned=lambda plan: harm(victim))
    assert not shards(tmp_path / "out")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Not even by root: a loop of links is refused to all, as a mode is to others."""
    image_tree(tmp_path / "in")
    victim = tmp_path / "in/n1/3.jpg"

    def harm(plan: object) -> None:
        victim.unlink()
        victim.symlink_to(victim)

    with pytest.raises(SourceError, match=f"{victim}: too many levels of symbolic links"):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), Options(), planned=harm)
