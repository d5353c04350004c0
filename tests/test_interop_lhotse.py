"""Lhotse's offsets: golden bytes, an independent reader after its rule, what is no pairs, attacks."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import pytest
from interoping import PAIRS, export, imported, indexed, same

from wdstools.errors import DestinationError, IndexFileError, StaleIndexError, UnsupportedError
from wdstools.interop.formats import read_claims


def test_golden(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1"), ("a.json", b"{}"), ("b.jpg", b"2" * 600), ("b.json", b"")]])
    assert export(index, "lhotse").paths == [str(tmp_path / "t-000000.tar.idx")]
    assert (tmp_path / "t-000000.tar.idx").read_bytes() == struct.pack("<3Q", 0, 2048, 10240)


def test_pairs_are_read_by_their_offsets(tmp_path: Path) -> None:
    """As lhotse.indexing does it: a 512-byte header at the offset, its payload, the next header behind it."""
    index = indexed(tmp_path)
    for url, path in zip(index.shards.url, export(index, "lhotse").paths, strict=True):
        data, raw = Path(url).read_bytes(), Path(path).read_bytes()
        places = struct.unpack(f"<{len(raw) // 8}Q", raw)
        with tarfile.open(url) as archive:
            want = [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
        found = []
        for at in places[:-1]:
            for _ in range(2):
                info = tarfile.TarInfo.frombuf(data[at : at + 512], "utf-8", "strict")
                found.append((info.name, data[at + 512 : at + 512 + info.size]))
                at += 512 + -(-info.size // 512) * 512
        assert (found, places[-1]) == (want, len(data))


def test_what_is_no_pairs(tmp_path: Path) -> None:
    index = indexed(tmp_path, [PAIRS[0], PAIRS[1][:-1]])
    with pytest.raises(UnsupportedError, match=r"t-000001\.tar: 7 members are no pairs"):
        export(index, "lhotse")
    assert not (tmp_path / "t-000000.tar.idx").exists()  # nothing of the others either
    index = indexed(tmp_path, PAIRS, format=tarfile.PAX_FORMAT, mtime=1.5)
    with pytest.raises(UnsupportedError, match="takes no PAX or long name header"):
        export(index, "lhotse")


def test_energons_file_is_told_from_lhotses(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    export(index, "energon")
    before = (tmp_path / "t-000000.tar.idx").read_bytes()
    with pytest.raises(DestinationError, match=r"is an index of Energon .*, not an index of Lhotse .*--output"):
        export(index, "lhotse", overwrite=True)
    assert (tmp_path / "t-000000.tar.idx").read_bytes() == before
    with pytest.raises(StaleIndexError, match="it is Energon's: import --from energon"):
        read_claims("lhotse", index.shards.url)
    export(index, "lhotse", tmp_path / "elsewhere")
    assert same(
        index, imported(read_claims("lhotse", index.shards.url, str(tmp_path / "elsewhere")), tmp_path / "x.wdsindex")
    )


ATTACKS = {
    "empty": b"",
    "odd": b"\0" * 17,
    "size": struct.pack("<2Q", 0, 512),
    "one less": struct.pack("<1Q", 10240),
    "moved": struct.pack("<2Q", 512, 10240),
    "outside": struct.pack("<2Q", 1 << 60, 10240),
    "twice": struct.pack("<3Q", 0, 0, 10240),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_attacks(tmp_path: Path, what: str) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1"), ("a.json", b"{}")]])
    (tmp_path / "t-000000.tar.idx").write_bytes(ATTACKS[what])
    with pytest.raises(IndexFileError, match=r"t-000000\.tar\.idx"):
        read_claims("lhotse", index.shards.url)
