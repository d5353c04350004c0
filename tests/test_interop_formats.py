"""Every format both ways: what is exported and imported again is the same; what is in the way stays as it is."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import Files, touch
from interoping import PAIRS, RICH, claims_of, export, imported, indexed, same, shards, write

from wdstools import build, comparison
from wdstools.errors import DestinationError, IndexFileError, NotFoundError, StaleIndexError, UnsupportedError
from wdstools.index import Index
from wdstools.interop.formats import FORMATS, read_claims

ELSEWHERE = ["lhotse", "aistore"]  # what goes into a folder of its own here
ALL = list(FORMATS)


def round_trip(folder: Path, format: str, sets: list[Files], tar: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> None:
    index = indexed(folder, sets, format=tar, mtime=mtime)
    out = folder / "out" if format in ELSEWHERE else None
    written = export(index, format, out)
    assert written.paths
    assert all(os.path.getsize(path) for path in written.paths)
    again = imported(claims_of(index, format, folder, out), folder / "again.wdsindex")
    assert same(index, again)
    assert comparison.check(again) == []
    left = [name for _, _, names in os.walk(folder) for name in names if name.endswith((".tmp", "-journal"))]
    assert left == []


@pytest.mark.parametrize("format", ALL)
def test_round_trip(tmp_path: Path, format: str) -> None:
    round_trip(tmp_path, format, PAIRS)


@pytest.mark.parametrize("format", [name for name in ALL if name != "lhotse"])
@pytest.mark.parametrize("tar", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_round_trip_of_all_that_a_shard_may_have(tmp_path: Path, format: str, tar: int) -> None:
    round_trip(tmp_path, format, RICH, tar, 1.5 if tar == tarfile.PAX_FORMAT else 0)


@settings(max_examples=12)
@given(st.data(), st.sampled_from(ALL), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_round_trip_of_anything(data: st.DataObject, format: str, tar: int) -> None:
    sets = data.draw(shards(pairs=format == "lhotse", spaces=format not in ("lhotse", "dali")))
    if format == "lhotse":
        tar = tarfile.GNU_FORMAT
    with tempfile.TemporaryDirectory() as folder:
        round_trip(Path(folder), format, sets, tar)


@pytest.mark.parametrize("format", ALL)
def test_what_is_there_is_replaced_only_where_asked(tmp_path: Path, format: str) -> None:
    index = indexed(tmp_path)
    out = tmp_path / "out" if format in ELSEWHERE else None
    paths = export(index, format, out).paths
    before = {path: Path(path).read_bytes() for path in paths}
    with pytest.raises(DestinationError, match="is there already; --overwrite replaces it"):
        export(index, format, out)
    assert {path: Path(path).read_bytes() for path in paths} == before
    export(index, format, out, overwrite=True)
    for path in paths:
        if not path.endswith((".uuid", ".yaml", ".sqlite")):
            assert Path(path).read_bytes() == before[path]


@pytest.mark.parametrize("format", ALL)
def test_what_is_of_somebody_else_is_never_replaced(tmp_path: Path, format: str) -> None:
    index = indexed(tmp_path)
    out = tmp_path / "out" if format in ELSEWHERE else None
    paths = export(index, format, out).paths
    chosen = next(path for path in paths if not path.endswith((".uuid", ".yaml")))
    for content in (b"mine", b"", b"\0" * 16 + b"x"):
        Path(chosen).write_bytes(content)
        with pytest.raises(DestinationError, match="is something else, not "):
            export(index, format, out, overwrite=True)
        assert Path(chosen).read_bytes() == content
    os.unlink(chosen)
    os.mkdir(chosen)
    with pytest.raises(DestinationError, match="is no file"):
        export(index, format, out, overwrite=True)


@pytest.mark.parametrize("format", [name for name in ALL if name != "parquet"])
@pytest.mark.parametrize("how", ["longer", "renamed", "gone"])
def test_a_stale_index_of_ours_is_not_exported(tmp_path: Path, format: str, how: str) -> None:
    index = indexed(tmp_path)
    shard = tmp_path / "t-000001.tar"
    if how == "gone":
        shard.unlink()
    else:
        files = (
            [*PAIRS[1], ("x.jpg", b"1"), ("x.cls", b"1")] if how == "longer" else [("q" + n, d) for n, d in PAIRS[1]]
        )
        if how == "longer":
            shutil.copy(write(tmp_path / "other", [files * 1 + [("y.jpg", b"2" * 9000), ("y.cls", b"")]])[0], shard)
        else:
            shutil.copy(write(tmp_path / "other", [files])[0], shard)
    out = tmp_path / "out" if format in ELSEWHERE else None
    if (format, how) == ("wids", "renamed"):  # it has no names, and the md5 is of the shard as it is
        assert export(index, format, out).paths
        return
    kind = NotFoundError if how == "gone" else StaleIndexError
    with pytest.raises(kind, match="t-000001"):
        export(index, format, out)
    left = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert left <= {"t-000000.tar", "t-000001.tar", "t-000002.tar", "t.wdsindex"}


@pytest.mark.parametrize("format", ALL)
def test_a_stale_foreign_index_is_an_error_that_names_both(tmp_path: Path, format: str) -> None:
    index = indexed(tmp_path)
    out = tmp_path / "out" if format in ELSEWHERE else None
    export(index, format, out)
    other = [("a.jpg", b"1" * 3000), ("a.cls", b"2"), *PAIRS[1][2:], ("zz.jpg", b"9" * 9000), ("zz.cls", b"")]
    shutil.copy(write(tmp_path / "other", [other])[0], tmp_path / "t-000001.tar")
    with pytest.raises(StaleIndexError, match=r"(?s)^(?=.*t-000001\.tar)(?=.*(\.idx|\.json|\.sqlite|\.parquet))"):
        imported(claims_of(index, format, tmp_path, out), tmp_path / "again.wdsindex")
    assert not (tmp_path / "again.wdsindex").exists()


@pytest.mark.parametrize("format", ALL)
def test_a_broken_shard_is_not_imported(tmp_path: Path, format: str) -> None:
    index = indexed(tmp_path)
    out = tmp_path / "out" if format in ELSEWHERE else None
    export(index, format, out)
    os.truncate(tmp_path / "t-000001.tar", 1500)
    with pytest.raises((StaleIndexError, EOFError), match=r"t-000001\.tar"):
        imported(claims_of(index, format, tmp_path, out), tmp_path / "again.wdsindex")
    assert not (tmp_path / "again.wdsindex").exists()


@pytest.mark.parametrize("format", ALL)
def test_a_foreign_index_that_was_cut_or_damaged(tmp_path: Path, format: str) -> None:
    """Whatever byte of it changes: an error of ours, or the same rows."""
    index = indexed(tmp_path)
    out = tmp_path / "out" if format in ELSEWHERE else None
    paths = [path for path in export(index, format, out).paths if not path.endswith((".uuid", ".yaml"))]
    told: list[str] = []
    for path in paths[:2]:
        whole = Path(path).read_bytes()
        step = max(1, len(whole) // 12)
        damaged = [whole[:at] for at in range(0, len(whole), step)]
        damaged += [whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :] for at in range(0, len(whole), step)]
        for data in damaged:
            Path(path).write_bytes(data)
            try:
                again = imported(claims_of(index, format, tmp_path, out), tmp_path / "again.wdsindex")
            except IndexFileError as error:
                told.append(str(error))
            except NotFoundError as error:  # a URL that is another one
                told.append(str(error))
            else:
                assert all(
                    row in index.table.column("key").to_pylist() for row in again.table.column("key").to_pylist()
                )
                assert [u for u in again.shards.url if u not in index.shards.url] == []
        Path(path).write_bytes(whole)
    assert told
    assert all(str(tmp_path) in text for text in told)


def test_a_foreign_index_that_is_not_there(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    for format in ALL:
        with pytest.raises(NotFoundError, match=r"no such index|No such file"):
            claims_of(index, format, tmp_path)


def test_a_touched_shard_is_exported(tmp_path: Path) -> None:
    """Headers decide, not times."""
    index = indexed(tmp_path)
    touch(tmp_path / "t-000000.tar")
    assert export(index, "dali").paths


def test_two_shards_with_one_name_for_their_index(tmp_path: Path) -> None:
    paths = write(tmp_path, PAIRS[:2])
    for path, name in zip(paths, ("a.b-0.tar", "a.c-0.tar"), strict=True):
        Path(path).rename(tmp_path / name)
    index = build.build([str(tmp_path / "a.b-0.tar"), str(tmp_path / "a.c-0.tar")])
    with pytest.raises(DestinationError, match=r"a\.idx: would be the DALI index of .*a\.b-0.tar and of .*a\.c-0"):
        export(index, "dali")


def test_shards_without_samples(tmp_path: Path) -> None:
    index = indexed(tmp_path, [PAIRS[0], [("readme", b"x"), ("licence", b"y")]])
    for format in ("dali", "energon"):
        with pytest.raises(UnsupportedError, match="no samples"):
            export(index, format)
    for format in ("wids", "ratarmount", "aistore", "lhotse"):
        out = tmp_path / "out" / format if format in ELSEWHERE else None
        export(index, format, out)
        assert same(index, imported(claims_of(index, format, tmp_path, out), tmp_path / f"{format}.wdsindex"))


def test_all_are_exported_from_an_index_of_several_parts(tmp_path: Path) -> None:
    """A merged index has chunks with dictionaries of their own."""
    from wdstools.merge import merge

    parts = [build.build([path]) for path in write(tmp_path, RICH)]
    merged = merge(parts)
    merged.save(tmp_path / "t.wdsindex")
    index = Index.load(tmp_path / "t.wdsindex")
    export(index, "dali")
    assert same(index, imported(read_claims("dali", index.shards.url), tmp_path / "again.wdsindex"))
