"""AIStore's index, version 1: golden bytes, a decoder of its own after the Go code, attacks."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path

import pytest
import xxhash
from helpers import make_tar
from hypothesis import given
from hypothesis import strategies as st
from interoping import RICH, export, imported, indexed

from wdstools.errors import DestinationError, IndexFileError
from wdstools.interop import aistore
from wdstools.interop.formats import read_claims

SEED = 1103515245


def decode(data: bytes) -> tuple[str, str, int, dict[str, tuple[int, int]]]:
    """Checksum type and value, size, name -> (header, bytes)."""
    assert data[:3] == b"\1\0\1"
    (checksum,) = struct.unpack(">Q", data[3:11])
    rest = list(data[11:])
    assert checksum == xxhash.xxh64_intdigest(bytes(rest), SEED)

    def number() -> int:
        value = shift = 0
        while True:
            byte = rest.pop(0)
            value |= (byte & 127) << shift
            shift += 7
            if not byte & 128:
                return value

    def text() -> str:
        return bytes(rest.pop(0) for _ in range(number())).decode()

    kind, value, size = text(), text(), number()
    entries = {text(): (number(), number()) for _ in range(number())}
    assert not rest
    return kind, value, size, entries


def pack(size: int, entries: list[tuple[bytes, int, int]], count: int | None = None) -> bytes:
    payload = b"\4none\0" + aistore.varint(size) + aistore.varint(len(entries) if count is None else count)
    for name, header, nbytes in entries:
        payload += aistore.varint(len(name)) + name + aistore.varint(header) + aistore.varint(nbytes)
    return seal(payload)


def seal(payload: bytes) -> bytes:
    return b"\1\0\1" + struct.pack(">Q", xxhash.xxh64_intdigest(payload, SEED)) + payload


def test_golden(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1" * 300)]])
    (path,) = export(index, "aistore", tmp_path / "out").paths
    assert path == str(tmp_path / "out" / "t-000000.tar.idx")
    payload = b"\4none\0" + b"\x80\x50" + b"\1" + b"\5a.jpg" + b"\0" + b"\xac\2"
    assert Path(path).read_bytes() == seal(payload)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_every_file_is_in_it(tmp_path: Path, format: int) -> None:
    """Also what is no field; the final header, not the PAX one."""
    index = indexed(tmp_path, RICH, format=format, mtime=1.5 if format == tarfile.PAX_FORMAT else 0)
    for url, path in zip(index.shards.url, export(index, "aistore", tmp_path / "out").paths, strict=True):
        with tarfile.open(url) as archive:
            want = {member.name: (member.offset_data - 512, member.size) for member in archive}
        assert decode(Path(path).read_bytes()) == ("none", "", Path(url).stat().st_size, want)


def test_the_first_of_two_is_kept_and_folders_are_left() -> None:
    import io

    from wdstools import _core
    from wdstools.interop.members import from_columns

    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    data = folder.tobuf(tarfile.USTAR_FORMAT) + make_tar([("n", b"1"), ("n", b"22")])
    members = from_columns(_core.members(io.BytesIO(data), "t"))
    assert decode(aistore.encode(members, "t"))[3] == {"n": (512, 1)}


def test_not_beside_the_shards(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    with pytest.raises(DestinationError, match="give a folder for them with --output"):
        export(index, "aistore")
    with pytest.raises(DestinationError, match="is where Energon and Lhotse have theirs"):
        export(index, "aistore", tmp_path)


@given(st.integers(0, (1 << 64) - 1))
def test_varint(value: int) -> None:
    data = aistore.varint(value)
    assert sum((byte & 127) << 7 * i for i, byte in enumerate(data)) == value
    assert [byte > 127 for byte in data] == [True] * (len(data) - 1) + [False]


ENTRY = (b"a.jpg", 0, 1)
ATTACKS = {
    "empty": (b"", "it begins with b''"),
    "version 2": (b"\2\0\1" + bytes(100), "version 2, of AIS 5.1"),
    "checksum": (pack(10240, [ENTRY])[:-1] + b"\7", "its checksum is another one"),
    "no payload": (seal(b""), "ends in a number at byte 11"),
    "endless count": (pack(10240, [ENTRY], 1 << 62), "files, and the format takes 1048576"),
    "more than there are": (pack(10240, [ENTRY], 2), "ends in a number"),
    "less than there are": (pack(10240, [ENTRY, ENTRY], 1), "8 bytes more than it says"),
    "long name": (seal(b"\4none\0\x80\x50\1\xff\xff\xff\xff\x0fx"), "that goes past its end"),
    "long number": (seal(b"\xff" * 20), "more than 64 bits"),
    "number of 65 bits": (seal(b"\xff" * 9 + b"\x7f"), "more than 64 bits"),
    "another size": (pack(512, [ENTRY]), "it has 10240 bytes, not 512"),
    "another name": (pack(10240, [(b"b.jpg", 0, 1)]), "where it has 'jpg' of 'b'"),
    "another place": (pack(10240, [(b"a.jpg", 512, 1)]), "where it has 'jpg' of 'a' at byte 1024"),
    "outside": (pack(10240, [(b"a.jpg", (1 << 64) - 1, (1 << 64) - 1)]), "where it has"),
    "nothing": (pack(10240, []), "the shard has 1 fields, not 0"),
    "too much": (pack(10240, [ENTRY, (b"c.jpg", 4096, 1)]), "the shard has 1 fields, not 2"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_attacks(tmp_path: Path, what: str) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1")]])
    data, message = ATTACKS[what]
    (tmp_path / "t-000000.tar.idx").write_bytes(data)
    with pytest.raises(IndexFileError, match=message) as caught:
        imported(read_claims("aistore", index.shards.url), tmp_path / "again.wdsindex")
    assert "t-000000.tar.idx" in str(caught.value)


def test_three_formats_under_one_name(tmp_path: Path) -> None:
    """A file of AIStore's that lies beside the shard is told from the others', and they from it."""
    index = indexed(tmp_path)
    for path in export(index, "aistore", tmp_path / "out").paths:
        Path(path).rename(tmp_path / Path(path).name)
    for format in ("energon", "lhotse"):
        with pytest.raises(DestinationError, match=r"is an index of AIStore .*, not an index of"):
            export(index, format, overwrite=True)
    assert [claim.nbytes for claim in read_claims("aistore", index.shards.url)] == index.shards.nbytes
