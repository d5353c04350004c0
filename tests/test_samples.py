"""Names into keys and fields, the hash of a key, and whole samples: the C core against webdataset and xxhash."""

from __future__ import annotations

import io
import itertools
import os
import re
import tarfile
from typing import Any

import pytest
import xxhash
from helpers import URL, WAYS, dribble, items, make_tar, reference, regular, samples_of, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from wdstools import _core
from wdstools.errors import DuplicateFieldError, HeaderError, TruncatedError


def split_as_webdataset(name: str) -> tuple[str, str] | None:
    if re.match(r"__[^/]*__($|/)", name) or ("/" not in name and name.startswith("__") and name.endswith("__")):
        return None
    key, ext = base_plus_ext(name)
    return None if key is None else (key, ext.lower())


NAMES = {
    "a/b.c/d.seg.jpg": ("a/b.c/d", "seg.jpg"),
    "22.0/1.1.png": ("22.0/1", "1.png"),
    "./a.jpg": ("./a", "jpg"),
    "noext": None,
    ".hidden": None,
    "a.b/c": None,
    "dir/.hidden.txt": ("dir/", "hidden.txt"),
    "a.b/.hidden": None,
    "foo.": ("foo", ""),
    "a..jpg": ("a", ".jpg"),
    "a.JPG": ("a", "jpg"),
    "a.İÉ": ("a", "i̇é"),
    "": None,
    ".": None,
    "/": None,
    "/.x": ("/", "x"),
    "//.x": ("//", "x"),
    "__x__": None,
    "__x__/a.jpg": None,
    "__x__\n": None,
    "__.__": None,
    "____/a.b": None,
    "___.x": ("___", "x"),
    "__meta__.json": ("__meta__", "json"),
    "a/__x__/b.c": ("a/__x__/b", "c"),
    "a\nb/c.d": ("a\nb/c", "d"),
    "a.b\nc/d.e": None,
    "x/a.b\nc/d.e": None,
    "a.\n": ("a", "\n"),
}


@pytest.mark.parametrize(("name", "want"), NAMES.items())
def test_split_name(name: str, want: tuple[str, str] | None) -> None:
    assert _core.split_name(name) == want == split_as_webdataset(name)


@settings(max_examples=3000, deadline=None)
@given(st.text("._/\na\r", max_size=14) | st.text("._/\nÉ\udcff日A\0", max_size=10))
def test_split_name_of_nasty_names(name: str) -> None:
    assert _core.split_name(name) == split_as_webdataset(name)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(["__", "_", "a", ".", "/", "\n", "\n\n", "./", "/."]), max_size=9).map("".join))
def test_split_name_of_metadata(name: str) -> None:
    assert _core.split_name(name) == split_as_webdataset(name)


@pytest.mark.parametrize("length", range(200))
def test_hash_key_of_every_length(length: int) -> None:
    data = bytes((i * 37 + length) % 256 for i in range(length))
    assert _core.hash_key(data) == xxhash.xxh64_intdigest(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_hash_key(data: bytes) -> None:
    assert _core.hash_key(data) == _core.hash_key(memoryview(data)) == xxhash.xxh64_intdigest(data)


SMALL = make_tar([("a.txt", b"1"), ("a.bin", b"x" * 600), ("b.txt", b"2"), ("c.txt", b""), ("c.bin", b"3")])

KEYS = ["a", "b", "é", "d/1", "d.x/2", "日本", "k" * 120, "d/", "x\ny", "\udcff", "./c"]
EXTS = ["jpg", "cls", "seg.png", "", "x" * 60, "é", "a b", "json.gz"]


@st.composite
def shards(draw: st.DrawFn) -> bytes:
    """A shard as a webdataset writer could make it: keys once, fields once; other members anywhere."""
    out = io.BytesIO()
    form = draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    mtime = draw(st.sampled_from([0, 1.5]))
    with tarfile.open(fileobj=out, mode="w", format=form) as t:
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=6)):
            for ext in draw(st.lists(st.sampled_from(EXTS), unique=True, min_size=1, max_size=4)):
                info = tarfile.TarInfo(f"{key}.{ext.upper() if draw(st.booleans()) else ext}")
                info.size, info.mtime = draw(st.sampled_from([0, 1, 100, 512, 513, 2000])), mtime
                t.addfile(info, io.BytesIO(draw(st.sampled_from([b"a", b"b"])) * info.size))
                if draw(st.integers(0, 5)) == 0:
                    other = tarfile.TarInfo(draw(st.sampled_from(["__meta__", "noext", "z.jpg", "d"])))
                    other.type = tarfile.REGTYPE if other.name in ("__meta__", "noext") else tarfile.DIRTYPE
                    t.addfile(other)
    return out.getvalue()


@settings(max_examples=100, deadline=None)
@given(data=shards(), block_bytes=st.integers(100, 5000) | st.just(1 << 20), views=st.booleans())
def test_samples_are_those_of_webdataset(data: bytes, block_bytes: int, views: bool) -> None:
    want = items(reference(data))
    for way in WAYS:
        assert items(samples_of(data, way, block_bytes=block_bytes, views=views)) == want


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 31, 99])
def test_blocks_of_a_few_bytes(way: str, block_bytes: int) -> None:
    for data in (SMALL, make_tar([("é" * 60 + ".txt", b"1" * 513), ("b.txt", b"2")], tarfile.PAX_FORMAT, 1.5)):
        want = items(reference(data))
        assert items(samples_of(data, way, block_bytes=block_bytes)) == want
        assert items(samples_of(data, way, block_bytes=block_bytes, views=True)) == want


@settings(max_examples=60, deadline=None)
@given(data=shards(), block_bytes=st.integers(50, 3000), head=st.integers(0, 5000))
def test_bytes_that_were_read_already(data: bytes, block_bytes: int, head: int) -> None:
    want = items(reference(data))
    first = data[:head]
    with regular(data) as fd:
        assert items(_core.Stream(fd, URL, head=first, block_bytes=block_bytes, views=True)) == want
    with dribble(data[head:]) as source:
        assert items(_core.Stream(source, URL, head=first, block_bytes=block_bytes)) == want


@settings(max_examples=60, deadline=None)
@given(data=shards(), fields=st.sets(st.sampled_from([*EXTS, "none"])), views=st.booleans())
def test_fields_are_a_filter(data: bytes, fields: set[str], views: bool) -> None:
    want = [[(k, v) for k, v in s if k in fields or k.startswith("__")] for s in items(reference(data))]
    assert items(samples_of(data, "readinto", fields=fields, views=views, block_bytes=700)) == want
    assert items(samples_of(data, fields=fields, views=views)) == want


def test_views_are_read_only_memoryviews_and_bytes_are_bytes() -> None:
    data = make_tar([("a.txt", b"text"), ("a.bin", b"")])
    (plain,), (viewed,) = samples_of(data), samples_of(data, views=True)
    assert (type(plain["txt"]), type(plain["bin"])) == (bytes, bytes)
    for ext in ("txt", "bin"):
        assert type(viewed[ext]) is memoryview
        assert viewed[ext].readonly
    with pytest.raises(TypeError):
        viewed["txt"][0] = 1


def test_local_path_stands_in_every_sample() -> None:
    data = make_tar([("a.txt", b"1"), ("b.txt", b"2")])
    with regular(data) as fd:
        got = list(_core.Stream(fd, URL, "/x/u.tar"))
    assert [s["__local_path__"] for s in got] == ["/x/u.tar"] * 2
    got, error = stream(make_tar([("a.__local_path__", b"1")]))
    assert got == []
    assert type(error) is DuplicateFieldError


@settings(max_examples=60, deadline=None)
@given(data=shards(), mask=st.integers(0, 255))
def test_select_and_rename_are_those_of_webdataset(data: bytes, mask: int) -> None:
    def rename(name: str) -> str:
        return name.replace("jpg", "jpeg")

    def select(name: str) -> bool:
        return bool(mask >> len(name) % 8 & 1)

    source = [{"url": URL, "stream": io.BytesIO(data)}]
    want = list(group_by_keys(tar_file_expander(source, select_files=select, rename_files=rename)))
    assert items(samples_of(data, select=select, rename=rename)) == items(want)


def test_an_error_in_a_hook_comes_out() -> None:
    def fail(name: str) -> str:
        raise KeyError(name)

    hooks: list[dict[str, Any]] = [{"select": fail}, {"rename": fail}]
    for options in hooks:
        _, error = stream(make_tar([("a.txt", b"1")]), **options)
        assert type(error) is KeyError


@pytest.mark.parametrize("way", ["regular", "readinto"])
@pytest.mark.parametrize("shard", ["ustar", "pax"])
def test_a_cut_at_every_byte(way: str, shard: str) -> None:
    data = SMALL
    if shard == "pax":
        data = make_tar([("é" * 60 + ".txt", b"1" * 513), ("b.txt", b"2")], tarfile.PAX_FORMAT, 1.5)
    true = reference(data)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    if shard == "ustar":
        end += -end % 512
    assert samples_of(data[: end - end % 512], way) == true
    for cut in range(end - end % 512):
        got, error = stream(data[:cut], way, block_bytes=1 << 16)
        assert isinstance(error, TruncatedError), (cut, error)
        assert error.offset == cut
        assert got == true[: len(got)]
        # The last sample is whole only when the tar is.
        assert len(got) < len(true)


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_flipped_bit_anywhere_in_a_header(flip: int) -> None:
    """Whatever bit of a header falls over, no sample changes: the shard is refused."""
    true = reference(SMALL)
    for at in range(512):
        data = bytearray(SMALL)
        data[1024 + at] ^= flip
        got, error = stream(bytes(data))
        if 148 <= at < 156 and error is None:
            assert got == true, "a byte of the checksum field that means nothing, such as its last"
        else:
            assert isinstance(error, HeaderError)
            assert got == []


def columns_of(data: bytes) -> tuple[dict[str, Any], list[tuple[int, int, str]]]:
    with regular(data) as fd:
        c = _core.scan(fd, URL)
    ends = list(memoryview(c["key_ends"]).cast("Q"))
    keys = [c["keys"][a:b].decode("utf-8", "surrogateescape") for a, b in zip([0, *ends], ends, strict=False)]
    rows = zip(memoryview(c["starts"]).cast("Q"), memoryview(c["ends"]).cast("Q"), keys, strict=True)
    return c, list(rows)


@settings(max_examples=100, deadline=None)
@given(data=shards(), views=st.booleans())
def test_sample_reader(data: bytes, views: bool) -> None:
    """Each range of scan() reads as the sample that the stream gives."""
    want = items(reference(data))
    c, rows = columns_of(data)
    hashes = list(memoryview(c["hashes"]).cast("Q"))
    assert hashes == [xxhash.xxh64_intdigest(os.fsencode(key)) for _, _, key in rows]
    reader = _core.SampleReader(views=views)
    with regular(data) as fd:
        got = [reader.read(fd, start, end, key, URL, None) for start, end, key in rows]
        assert items(got) == want
        only = _core.SampleReader(fields={"jpg"}, views=views)
        got = [only.read(fd, start, end, key, URL, None) for start, end, key in rows]
        assert items(got) == [[(k, v) for k, v in s if k == "jpg" or k.startswith("__")] for s in want]


@settings(max_examples=100, deadline=None)
@given(data=shards())
def test_scan_says_where_the_payloads_lie(data: bytes) -> None:
    c, _ = columns_of(data)
    ends = list(memoryview(c["ext_ends"]).cast("Q"))
    exts = [c["exts"][a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]
    codes = memoryview(c["field_codes"]).cast("I")
    offsets, nbytes = memoryview(c["field_offsets"]).cast("Q"), memoryview(c["field_nbytes"]).cast("Q")
    flat = [(exts[code].lower(), data[o : o + n]) for code, o, n in zip(codes, offsets, nbytes, strict=True)]
    want = [[(k, v) for k, v in s if not k.startswith("__")] for s in items(reference(data))]
    assert flat == [field for sample in want for field in sample]
    counts = [0, *memoryview(c["field_ends"]).cast("Q")]
    assert [b - a for a, b in itertools.pairwise(counts)] == [len(s) for s in want]
    headers = memoryview(c["field_headers"]).cast("Q")
    assert all(data[h + 257 : h + 262] == b"ustar" for h in headers)
    for way in WAYS.values():
        with way(data) as source:
            assert _core.scan(source, URL) == c


@pytest.mark.parametrize("views", [False, True])
def test_sample_reader_gives_an_error_for_every_other_range(views: bool) -> None:
    _, rows = columns_of(SMALL)
    reader = _core.SampleReader(views=views)
    sizes = range(0, len(SMALL) + 1024, 256)
    with regular(SMALL) as fd:
        for (first, last, key), (true,) in zip(rows, ([s] for s in reference(SMALL)), strict=True):
            for start, end in itertools.product(sizes, sizes):
                try:
                    got = items([reader.read(fd, start, end, key, URL, None)])[0]
                except ValueError:  # ShardError is one
                    assert (start, end) != (first, last)
                    continue
                # Some ranges hold a part of a sample's members and are sound tar: only the index can tell.
                assert first <= start < end <= last
                assert set(got) <= set(true.items())
                assert ((start, end) == (first, last)) == (len(got) == len(true))


def test_sample_reader_checks_the_key() -> None:
    _, rows = columns_of(SMALL)
    reader = _core.SampleReader()
    with regular(SMALL) as fd:
        start, end, _ = rows[0]
        with pytest.raises(HeaderError, match="sample 'a' where the index has 'b'"):
            reader.read(fd, start, end, "b", URL, None)
        with pytest.raises(HeaderError, match="two samples"):
            reader.read(fd, start, rows[1][1], "a", URL, None)
        with pytest.raises(TruncatedError):
            reader.read(fd, start, len(SMALL) + 512, "a", URL, None)
        for bad in [(5, 5), (10, 5), (0, 2**63), (2**63, 2**63 + 512)]:
            with pytest.raises((ValueError, OSError)):
                reader.read(fd, *bad, "a", URL, None)
        with pytest.raises(OverflowError):
            reader.read(fd, -1, 5, "a", URL, None)
        assert reader.read(fd, start, end, "a", URL, "/p")["__local_path__"] == "/p"
