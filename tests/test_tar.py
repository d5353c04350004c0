"""wdstools.tar against tarfile and the system's tar: names, types and offsets of random archives; headers we write."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers import URL, WAYS, dribble, make_tar, regular
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from wdstools import _core, tar
from wdstools.errors import HeaderError, TruncatedError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "device",
    tarfile.GNUTYPE_SPARSE: "sparse",
}
OTHER = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]

part = st.text(st.sampled_from("ab.-_ é日\U0001f600\n="), min_size=1, max_size=12) | st.sampled_from(
    ["n" * 99, "m" * 60]
)
name = st.lists(part, min_size=1, max_size=6).map("/".join).filter(lambda s: s.strip("/"))
plain_name = st.text("abé.", min_size=1, max_size=40)


@st.composite
def infos(draw: st.DrawFn, names: st.SearchStrategy[str] = name) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.CONTTYPE, tarfile.AREGTYPE, *OTHER]))
    if info.type == tarfile.AREGTYPE and len(info.name) > 50:
        info.type = tarfile.REGTYPE  # tarfile takes it for a directory where the cut name ends in a slash
    info.mtime = draw(st.sampled_from([0, 1, 2**33 - 1]))
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(names)
    data = draw(st.sampled_from([0, 1, 511, 512, 513, 3000])) * b"x" if info.isreg() else b""
    info.size = len(data)
    return info, data


def archive(members: list[tuple[tarfile.TarInfo, bytes]], form: int, comment: str | None = None) -> bytes:
    out = io.BytesIO()
    options: dict[str, Any] = {"pax_headers": {"comment": comment}} if comment and form == tarfile.PAX_FORMAT else {}
    with tarfile.open(fileobj=out, mode="w", format=form, **options) as t:
        for info, data in members:
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def check(data: bytes, got: list[tar.Member]) -> None:
    """The members are those of tarfile, and lie side by side with nothing between them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        want = t.getmembers()
    assert len(got) == len(want)
    end = 0
    for ours, theirs in zip(got, want, strict=True):
        kind = TYPES.get(theirs.type, "other")
        assert ours.type == ("sparse" if theirs.issparse() else kind)
        assert ours.name == theirs.name
        if theirs.islnk() or theirs.issym():
            assert ours.linkname == theirs.linkname
        # tarfile counts a global header to nobody; here it belongs to the member behind it.
        assert ours.start == end
        assert data[end + 156 : end + 157] == b"g" if ours.start < theirs.offset else ours.start == theirs.offset
        assert data[ours.header + 148 : ours.header + 156] != bytes(8)
        if not theirs.issparse():
            assert (ours.offset, ours.nbytes) == (theirs.offset_data, theirs.size)
            assert ours.header == ours.offset - 512
        end = ours.offset + tar.padded(ours.nbytes)
    assert data[end : end + 1024] == bytes(1024)


def walk_all(data: bytes) -> list[tar.Member]:
    """Walk by every way in; they must agree."""
    results = []
    for way in WAYS.values():
        with way(data) as source:
            results.append(list(tar.walk(source)))
    assert results[0] == results[1] == results[2]
    return results[0]


@pytest.mark.parametrize("form", list(FORMATS))
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_archives_of_tarfile(form: str, data: st.DataObject) -> None:
    names = plain_name if form == "ustar" else name
    members = data.draw(st.lists(infos(names), max_size=8))
    comment = data.draw(st.none() | st.text("c\n é", min_size=1, max_size=2000)) if members else None
    raw = archive(members, FORMATS[form], comment)
    check(raw, walk_all(raw))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 254), st.integers(0, 2**20)), min_size=1, max_size=5))
def test_ustar_prefix(lengths: list[tuple[int, int]]) -> None:
    """Names that ustar splits at a slash."""
    members = []
    for length, seed in lengths:
        text = "".join("/" if (i * 7 + seed) % 41 == 0 and 0 < i < length - 1 else "n" for i in range(length))
        assume(fits_ustar(text.encode()))
        members.append((tarfile.TarInfo(text), b""))
    raw = archive(members, tarfile.USTAR_FORMAT)
    check(raw, walk_all(raw))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "d" / "e.f").mkdir(parents=True)
    for i, size in enumerate([0, 1, 512, 513, 10_000]):
        (root / "d" / f"{i}.bin").write_bytes(b"x" * size)
    (root / "d" / "link").symlink_to("0.bin")
    os.link(root / "d" / "1.bin", root / "d" / "z.hard")
    os.mkfifo(root / "d" / "fifo")
    (root / "d" / "é.jpg").write_bytes(b"e")
    return root


@pytest.fixture(scope="module")
def deep(tree: Path) -> Path:
    folder = tree / "d" / ("l" * 90) / ("m" * 90)
    folder.mkdir(parents=True)
    (folder / ("n" * 120)).write_bytes(b"long")
    (folder / "link").symlink_to("t" * 150)
    return tree


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("holes")
    for name, extents in {"few.bin": 2, "many.bin": 60}.items():
        with open(root / name, "wb") as f:
            for i in range(extents):
                f.seek(i * 131072)
                f.write(b"data")
            f.truncate(extents * 131072)
    (root / "z.txt").write_bytes(b"behind")
    return root


def system_tar(root: Path, *options: str) -> bytes:
    done = subprocess.run(["tar", "-cf", "-", *options, "-C", str(root), "."], check=True, capture_output=True)
    return done.stdout


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_system_tar(tree: Path, form: str) -> None:
    # Short names only: `deep` may have been made, and v7 and ustar cannot hold it.
    raw = system_tar(tree, f"--format={form}", "--exclude=*l*l", *(["--exclude=fifo"] if form == "v7" else []))
    members = walk_all(raw)
    check(raw, members)
    assert {m.type for m in members} >= {"file", "dir", "symlink", "hardlink"}


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax"])
def test_system_tar_long_names(deep: Path, form: str) -> None:
    raw = system_tar(deep, f"--format={form}")
    members = walk_all(raw)
    check(raw, members)
    assert max(len(m.name) for m in members) > 300


@pytest.mark.parametrize(
    "options", [("--format=gnu",), *(("--format=pax", f"--sparse-version={v}") for v in ("0.0", "0.1", "1.0"))]
)
def test_system_tar_sparse(holes: Path, options: tuple[str, ...]) -> None:
    raw = system_tar(holes, "-S", *options)
    members = walk_all(raw)
    check(raw, members)
    kinds = {os.path.basename(m.name): m.type for m in members}
    assert kinds == {".": "dir", "few.bin": "sparse", "many.bin": "sparse", "z.txt": "file"}


def test_a_global_header_and_no_member() -> None:
    """What git archive writes of an empty tree. tarfile refuses it, GNU tar lists nothing."""
    raw = archive([], tarfile.PAX_FORMAT, "0123456789abcdef")
    assert subprocess.run(["tar", "-tf", "-"], input=raw, check=True, capture_output=True).stdout == b""
    assert walk_all(raw) == []


def test_walk_takes_a_path_a_descriptor_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar([("a.txt", b"1"), ("b.txt", b"2" * 600)]))
    want = [("a.txt", "file", "", 0, 0, 512, 1), ("b.txt", "file", "", 1024, 1024, 1536, 600)]
    assert list(tar.walk(path)) == list(tar.walk(str(path))) == want
    with open(path, "rb") as f:
        assert list(tar.walk(f)) == list(tar.walk(f.fileno())) == want
        f.seek(0)
        f.read(100)
        assert list(tar.walk(f.fileno())) == want, "a regular file is read from byte 0"
    with pytest.raises(FileNotFoundError):
        next(tar.walk(tmp_path / "none.tar"))


def test_walk_names_the_file_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(make_tar([("a.txt", b"1")])[:700])
    with pytest.raises(TruncatedError, match=r"cut\.tar: truncated in a member at byte 700"):
        list(tar.walk(path))


def test_walk_reads_headers_only() -> None:
    """A member of a gigabyte is a hole in the file: nothing of it comes into memory."""
    head, fd = tar.format_header("big.bin", 1 << 30), os.memfd_create("big")
    try:
        os.write(fd, head)
        os.pwrite(fd, tar.format_header("b.txt", 0), len(head) + (1 << 30))
        os.ftruncate(fd, len(head) + (1 << 30) + 512 + 1024)
        assert [m.name for m in tar.walk(fd)] == ["big.bin", "b.txt"]
        # memfd keeps only the pages that were touched; reading a hole does not, so count what was allocated.
        assert os.fstat(fd).st_blocks * 512 < 1 << 20
    finally:
        os.close(fd)


byte_names = st.integers(1, 300).flatmap(
    lambda n: st.lists(st.sampled_from([b"a", b"b", b"/", b".", "é".encode(), b"\xff"]), min_size=n, max_size=n).map(
        lambda parts: b"".join(parts)[:n]
    )
)
sizes = st.sampled_from([0, 1, 511, 512, 2**33 - 1, 2**33, 2**33 + 1, 2**40, 2**60]) | st.integers(0, 2**61)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(raw=byte_names, nbytes=sizes, mtime=st.integers(0, 2**33 - 1))
def test_format_header(raw: bytes, nbytes: int, mtime: int) -> None:
    """tarfile and we read back what we write."""
    text = raw.decode("utf-8", "surrogateescape")
    group = tar.format_header(text, nbytes, mtime)
    assert len(group) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(group + bytes(1024))) as t:
        info = t.next()
    assert info is not None
    stripped = text.rstrip("/") if b" path=" in group else text  # tarfile strips a path that comes from PAX
    assert (info.name, info.size, info.mtime, info.mode) == (stripped, nbytes, mtime, 0o644)
    assert info.type == tarfile.REGTYPE
    assert info.offset_data == len(group)
    with dribble(group + bytes(2)) as source:
        got = next(_core.Walker(source, URL))
    assert got == (text, "f", "", 0, len(group) - 512, len(group), nbytes)
    assert (len(group) == 512) == (nbytes < 2**33 and fits_ustar(raw))


def fits_ustar(raw: bytes) -> bool:
    cuts = (i for i, byte in enumerate(raw) if byte == ord("/"))
    return len(raw) <= 100 or any(1 <= i <= 155 and 1 <= len(raw) - i - 1 <= 100 for i in cuts)


@pytest.mark.parametrize("slash", [None, 1, 99, 100, 101, 154, 155, 156, 200])
def test_every_name_length(slash: int | None) -> None:
    names = ["".join("/" if i == slash and i < n - 1 else "n" for i in range(n)) for n in range(1, 301)]
    raw = b"".join(tar.format_header(name, 3) + b"abc" + bytes(509) for name in names)
    assert sum(tar.member_nbytes(name, 3) for name in names) == len(raw)
    with regular(raw + bytes(1024)) as fd:
        assert [m.name for m in tar.walk(fd)] == names
    with tarfile.open(fileobj=io.BytesIO(raw + bytes(1024))) as t:
        assert t.getnames() == names


@settings(max_examples=200, deadline=None)
@given(
    name=st.text(st.sampled_from("a/é."), min_size=1, max_size=200) | byte_names.map(os.fsdecode),
    nbytes=st.integers(0, 2000),
)
def test_member_nbytes(name: str, nbytes: int) -> None:
    assert tar.member_nbytes(name, nbytes) == len(tar.format_header(name, nbytes)) + -(-nbytes // 512) * 512


def test_golden_header() -> None:
    want = bytearray(512)
    want[0:5] = b"a.jpg"
    want[100:124] = b"0000644\x000000000\x000000000\x00"
    want[124:136] = b"00000000007\x00"
    want[136:148] = b"00000001750\x00"
    want[148:156] = b"006725\x00 "
    want[156:157] = b"0"
    want[257:265] = b"ustar\x0000"
    want[148:156] = b"%06o\0 " % sum(want[:148] + b" " * 8 + want[156:])
    assert tar.format_header("a.jpg", 7, 1000) == bytes(want)


def test_golden_pax_header() -> None:
    group = tar.format_header("n" * 101, 1 << 33)
    assert len(group) == 3 * 512
    assert group[156:157] == b"x"
    assert group[:14] == b"././@PaxHeader"
    assert group[512:1024].rstrip(b"\0") == b"111 path=" + b"n" * 101 + b"\n" + b"19 size=8589934592\n"
    assert group[1024:1124] == b"n" * 100
    assert group[1024 + 124 : 1024 + 136] == b"00000000000\0"


def test_a_large_member_with_a_name_that_ustar_splits() -> None:
    name = "p" * 100 + "/" + "n" * 50
    with dribble(tar.format_header(name, 1 << 33)) as source:
        assert next(tar.walk(source))[0] == name


@pytest.mark.parametrize("bad", ["", "a\0b", "\0"])
def test_format_header_refuses(bad: str) -> None:
    with pytest.raises(ValueError):
        tar.format_header(bad, 0)


@pytest.mark.parametrize("nbytes", [-1, 2**62 + 1, 2**63, 2**64 - 1, 2**64, 2**64 + 5])
def test_format_header_refuses_impossible_sizes(nbytes: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        tar.format_header("a", nbytes)


@pytest.mark.parametrize("length", [2**20 - 1000, 2**20, 2**21])
def test_no_header_that_we_would_not_read(length: int) -> None:
    try:
        group = tar.format_header("n" * length, 0)
    except ValueError:
        return
    with dribble(group + bytes(1024)) as source:
        assert len(list(_core.Walker(source, URL))) == 1


def test_a_walker_ends_after_an_error() -> None:
    with regular(b"x" * 512) as fd:
        walker = _core.Walker(fd, URL)
        with pytest.raises(HeaderError):
            next(walker)
        assert list(walker) == []


def test_a_walker_is_not_over_because_it_is_busy() -> None:
    """Whoever comes while it is reading is refused, and does not take that for the end."""

    class Inner(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            with pytest.raises(ValueError, match="walker already executing"):
                next(walker)
            return super().readinto(buffer)

    walker = _core.Walker(Inner(make_tar([("a.txt", b"1"), ("b.txt", b"2")])), URL)
    assert [member[0] for member in walker] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("source", [-1, 2**31 + 5, "a.tar", None])
def test_a_bad_source(source: Any) -> None:
    with pytest.raises((OSError, TypeError, ValueError, OverflowError, AttributeError)):
        list(_core.Walker(source, URL))
