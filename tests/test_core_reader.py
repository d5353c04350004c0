"""_core.SampleReader: ranges, rows of a batch, columns that lie, files that change, threads, and what views keep."""

from __future__ import annotations

import array
import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import URL, Sample, items, make_tar, reference, regular, take
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools import _core
from wdstools.errors import DuplicateFieldError, HeaderError, ShardError, TruncatedError, UnsupportedError

Row = tuple[int, int, int, str]  # shard, start, end, key

SHARDS = [
    make_tar([(f"a{i}.{ext}", ext.encode() * (i * 97 + 1)) for i in range(20) for ext in ("cls", "jpg", "txt")]),
    make_tar([("é/b.bin", b"B" * 300_000), ("é/b.cls", b"1"), ("c.bin", b"C" * 70_000), ("d.cls", b"")]),
]


def rows_of(data: bytes, shard: int = 0) -> list[Row]:
    with regular(data) as fd:
        c = _core.scan(fd, URL)
    ends = list(memoryview(c["key_ends"]).cast("Q"))
    keys = [c["keys"][a:b].decode("utf-8", "surrogateescape") for a, b in zip([0, *ends], ends, strict=False)]
    places = zip(memoryview(c["starts"]).cast("Q"), memoryview(c["ends"]).cast("Q"), keys, strict=True)
    return [(shard, *place) for place in places]


ROWS = [row for i, data in enumerate(SHARDS) for row in rows_of(data, i)]
TRUE = [sample for data in SHARDS for sample in items(reference(data))]


def columns(rows: list[Row], sizes: list[int], kind: str = "i") -> list[Any]:
    """What Rows.put() takes, for these rows, and the sizes of the shards."""
    raw = [os.fsencode(row[3]) for row in rows]
    ends = array.array(kind, itertools.accumulate([0, *(len(key) for key in raw)]))
    return [
        array.array("I", [row[0] for row in rows]),
        array.array("Q", [row[1] for row in rows]),
        array.array("Q", [row[2] for row in rows]),
        ends,
        b"".join(raw),
        array.array("Q", sizes),
    ]


SIZES = [len(data) for data in SHARDS]


@contextmanager
def opened() -> Iterator[list[tuple[Any, ...]]]:
    with regular(SHARDS[0]) as first, regular(SHARDS[1]) as second:
        yield [(first, URL, None), (second, URL, "/x/u.tar", "more")]


def rows_in(parts: list[list[Any]]) -> _core.Rows:
    """The rows of batches, each as columns() gives it."""
    first = array.array("Q", itertools.accumulate([0, *(len(part[0]) for part in parts)]))
    rows = _core.Rows(first if len(parts[0][0]) else array.array("Q", [0]), parts[0][5])
    for number, part in enumerate(parts if len(parts[0][0]) else []):
        rows.put(number, *part[:5])
    return rows


def attached(*parts: Any, **options: Any) -> _core.SampleReader:
    reader = _core.SampleReader(**options)
    reader.attach(rows_in([list(parts) or columns(ROWS, SIZES)]))
    return reader


def without_path(sample: Sample) -> Sample:
    return {k: v for k, v in sample.items() if k != "__local_path__"}


# ---- right data


@settings(max_examples=60, deadline=None)
@given(
    order=st.lists(st.integers(0, len(ROWS) - 1), max_size=30),
    views=st.booleans(),
    kind=st.sampled_from("iq"),
    fields=st.none() | st.sets(st.sampled_from(["cls", "jpg", "bin", "none"])),
)
def test_rows_in_any_order(order: list[int], views: bool, kind: str, fields: set[str] | None) -> None:
    reader = attached(*columns(ROWS, SIZES, kind), fields=fields, views=views)
    with opened() as files:
        for row in order:
            want = [(k, v) for k, v in TRUE[row] if fields is None or k in fields or k.startswith("__")]
            by_row = reader.read_row(row, files)
            shard, start, end, key = ROWS[row]
            by_range = reader.read(files[shard][0], start, end, key, URL, None)
            assert by_row is not None
            assert items([without_path(by_row), by_range]) == [want, want]
            assert by_row.get("__local_path__") == files[shard][2]
            kinds = {type(v) for k, v in by_row.items() if not k.startswith("__")}
            assert kinds <= {memoryview if views else bytes}


def test_rows_that_are_not_for_the_reader() -> None:
    """None: Python is to see to it, which opens files and says what is wrong."""
    bare = _core.SampleReader()
    reader = attached()
    with opened() as files:
        assert bare.read_row(0, files) is None
        assert reader.read_row(0, [None, files[1]]) is None
        assert reader.read_row(20, files[:1]) is None
        assert reader.read_row(0, []) is None
        assert reader.read_row(0, [[0, URL, None]]) is None  # type: ignore[list-item]
        assert reader.read_row(0, [(0, URL)]) is None
        for row in (-1, len(ROWS), len(ROWS) + 1, (1 << 63) - 1, -(1 << 63)):
            assert reader.read_row(row, files) is None
        for row in (1 << 63, 1 << 80):
            with pytest.raises(OverflowError):
                reader.read_row(row, files)
        for arguments in [(), (0,), ("0", files), (0, tuple(files)), (0, files, 1), (0.0, files)]:
            with pytest.raises(TypeError):
                reader.read_row(*arguments)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            reader.read_row(0, [("3", URL, None)])
        with pytest.raises((ValueError, OverflowError)):
            reader.read_row(0, [((1 << 32) + files[0][0], URL, None)])
        with pytest.raises(OSError, match="Bad file descriptor"):
            reader.read_row(0, [(987_654, URL, None)])
        assert reader.read_row(0, files) is not None, "and goes on after all of that"


def test_arguments_of_read() -> None:
    reader = _core.SampleReader()
    with regular(SHARDS[0]) as fd:
        for arguments in [(), (fd, 0, 512, "k", URL), (fd, 0, 512, b"k", URL, None), ("3", 0, 512, "k", URL, None)]:
            with pytest.raises(TypeError):
                reader.read(*arguments)  # type: ignore[arg-type]
        for start, end in [(512, 512), (1024, 512), (0, 0), (0, 1 << 63), ((1 << 64) - 1, (1 << 64) - 1)]:
            with pytest.raises(ValueError, match="not a byte range"):
                reader.read(fd, start, end, "k", URL, None)
        for start, end in [(-1, 512), (0, -512), (0, 1 << 64)]:
            with pytest.raises(OverflowError):
                reader.read(fd, start, end, "k", URL, None)
        for bad in (-1, 1 << 31, (1 << 32) + fd):
            with pytest.raises((ValueError, OverflowError)):
                reader.read(bad, 0, 512, "k", URL, None)
        with pytest.raises(UnicodeEncodeError):
            reader.read(fd, 0, 512, "\ud800", URL, None)


# ---- ranges that are not of one sample


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("shard", [0, 1])
def test_ranges_that_reach_into_neighbours(shard: int, views: bool) -> None:
    rows = [row for row in ROWS if row[0] == shard]
    reader = _core.SampleReader(views=views)
    with regular(SHARDS[shard]) as fd:
        for (_, start, end, key), (_, after, stop, _) in itertools.pairwise(rows):
            for a, b in [(start, stop), (start, after + 512), (start, stop - 512), (start + 512, stop)]:
                if (a, b) == (start, end):  # the neighbour is one block
                    continue
                with pytest.raises(HeaderError) as caught:
                    reader.read(fd, a, b, key, URL, None)
                assert caught.value.url == URL
                assert caught.value.offset is not None
            for a, b in [
                (start, end - 512),
                (start, end - 1),
                (start, end + 1),
                (start + 1, end),
                (start, start + 512),
            ]:
                with pytest.raises(ShardError):
                    reader.read(fd, a, b, key, URL, None)
            with pytest.raises(HeaderError, match="where the index has"):
                reader.read(fd, after, stop, key, URL, None)


@pytest.mark.parametrize("views", [False, True])
def test_ranges_beyond_the_file(views: bool) -> None:
    reader = _core.SampleReader(views=views)
    data = SHARDS[0]
    with regular(data) as fd:
        for start, end in [(len(data), len(data) + 512), (1 << 40, (1 << 40) + 512), (0, len(data) + 512)]:
            with pytest.raises(ShardError):
                reader.read(fd, start, end, "a0", URL, None)
        end_marker = len(data.rstrip(b"\0")) // 512 * 512 + 512
        with pytest.raises(HeaderError, match="another end"):
            reader.read(fd, end_marker, end_marker + 1024, "a0", URL, None)


def test_a_range_without_a_sample() -> None:
    data = make_tar([("noext", b"1"), ("__meta__", b"2"), ("a.cls", b"3")])
    with regular(data) as fd:
        with pytest.raises(HeaderError, match="no sample where the index has one"):
            _core.SampleReader().read(fd, 0, 2048, "a", URL, None)
        assert _core.SampleReader().read(fd, 0, 3072, "a", URL, None)["cls"] == b"3"


def test_a_range_whose_sample_is_not_sound() -> None:
    twice = make_tar([("a.cls", b"1"), ("a.CLS", b"2")])
    with regular(twice) as fd, pytest.raises(DuplicateFieldError):
        _core.SampleReader().read(fd, 0, 2048, "a", URL, None)
    sparse = bytearray(make_tar([("a.cls", b"1")]))
    sparse[156:157] = b"S"
    sparse[148:156] = b"%06o\0 " % sum(sparse[:148] + b" " * 8 + sparse[156:512])
    with regular(bytes(sparse)) as fd, pytest.raises(UnsupportedError):
        _core.SampleReader().read(fd, 0, 1024, "a", URL, None)


# ---- bytes that somebody has read already


def outcome(call: Callable[[], Sample]) -> Any:
    try:
        return items([call()])
    except (ShardError, ValueError) as error:
        return type(error), str(error)


@settings(max_examples=150, deadline=None)
@given(
    row=st.integers(0, len(ROWS) - 1),
    views=st.booleans(),
    fields=st.none() | st.sets(st.sampled_from(["cls", "jpg"])),
    moved=st.tuples(st.sampled_from([0, 0, 0, -512, 512, 100]), st.sampled_from([0, 0, 0, -512, 512, 1024])),
    flip=st.none() | st.tuples(st.integers(0, 3000), st.integers(1, 255)),
    key=st.none() | st.just("other"),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_parse_is_read(row: int, views: bool, fields: Any, moved: Any, flip: Any, key: Any, kind: Any) -> None:
    shard, start, end, own = ROWS[row]
    data = bytearray(SHARDS[shard])
    start, end = max(0, start + moved[0]), min(len(data), end + moved[1])
    if flip is not None:
        data[(start + flip[0]) % len(data)] ^= flip[1]
    reader = _core.SampleReader(fields=fields, views=views)
    with regular(bytes(data)) as fd:
        read = outcome(lambda: reader.read(fd, start, end, key or own, URL, "p"))
    part = kind(data[start:end])
    assert outcome(lambda: reader.parse(part, start, key or own, URL, "p")) == read
    with opened() as files:  # what the reader keeps for reading is as it was
        assert items([reader.read(files[0][0], *ROWS[3][1:], URL, None)])


def test_parsed_views_are_of_a_copy() -> None:
    _, start, end, key = ROWS[0]
    part = bytearray(SHARDS[0][start:end])
    sample = _core.SampleReader(views=True).parse(part, start, key, URL, None)
    part[:] = bytes(len(part))
    assert items([sample]) == [[(k, v) for k, v in TRUE[0] if k != "__local_path__"]]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((b"", 0, "a", URL, None), ValueError),
        ((b"x" * 512, 2**63 - 100, "a", URL, None), ValueError),
        ((b"x" * 512, -1, "a", URL, None), (OverflowError, ValueError)),
        (("text", 0, "a", URL, None), TypeError),
        ((b"x" * 512, 0, b"a", URL, None), TypeError),
        ((b"x" * 512, 0, "a", URL), TypeError),
        ((b"x" * 512, 0, "a", URL, None), HeaderError),
    ],
)
def test_arguments_of_parse(arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        _core.SampleReader().parse(*arguments)


# ---- columns that lie


def changed(at: int, row: int, value: int) -> list[Any]:
    parts = columns(ROWS, SIZES)
    parts[at][row] = value
    return parts


HOSTILE: dict[str, list[Any]] = {
    "shard far away": changed(0, 0, 2**32 - 1),
    "shard of none": changed(0, 0, 2),
    "start at the end": changed(1, 0, ROWS[0][2]),
    "start behind the end": changed(1, 0, 2**64 - 1),
    "start of 2^63": changed(1, 0, 2**63),
    "end before start": changed(2, 0, 0),
    "end of 2^63": changed(2, 0, 2**63),
    "end of 2^64 - 1": changed(2, 0, 2**64 - 1),
    "end beyond the shard": changed(2, 0, SIZES[0] + 512),
    "key end negative": changed(3, 1, -1),
    "key start negative": changed(3, 0, -1),
    "key end huge": changed(3, 1, 2**31 - 1),
    "key ends go down": changed(3, 0, 5),
    "no keys": [*columns(ROWS, SIZES)[:4], b"", array.array("Q", SIZES)],
    "no sizes": [*columns(ROWS, SIZES)[:5], array.array("Q")],
    "size of zero": changed(5, 0, 0),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_numbers_that_lie_are_left_to_python(what: str) -> None:
    reader = attached(*HOSTILE[what])
    with opened() as files:
        assert reader.read_row(0, files) is None


def test_64_bit_key_ends_that_lie() -> None:
    for value in (-1, 2**62, -(2**63), 2**63 - 1):
        for row in (0, 1):
            parts = columns(ROWS, SIZES, "q")
            parts[3][row] = value
            with opened() as files:
                assert attached(*parts).read_row(0, files) is None


@pytest.mark.parametrize("delta", [-512, -1, 1, 512, 1024])
@pytest.mark.parametrize("column", [1, 2])
def test_places_that_lie_a_little(column: int, delta: int) -> None:
    """The shard says otherwise: an error, never another sample. Only a range that begins or ends at another member of
    the same sample is sound; it gives these fields, as test_samples says."""
    with opened() as files:
        for row, (shard, start, end, _) in enumerate(ROWS):
            parts = columns(ROWS, SIZES)
            parts[column][row] = max(0, (start if column == 1 else end) + delta)
            if parts[column][row] == ROWS[row][column]:
                continue
            try:
                got = attached(*parts).read_row(row, files)
            except ShardError:
                continue
            if got is not None:
                assert abs(delta) == 1024
                assert set(without_path(got).items()) < set(TRUE[row]), (shard, row)


@pytest.mark.parametrize("views", [False, True])
def test_a_size_that_no_memory_holds(views: bool) -> None:
    parts = columns(ROWS, [1 << 62, 1 << 62])
    parts[2][0] = (1 << 62) - 512
    with opened() as files, pytest.raises((MemoryError, OverflowError, ShardError)):
        attached(*parts, views=views).read_row(0, files)


def test_columns_need_not_be_aligned() -> None:
    def shifted(part: Any) -> Any:
        raw = bytes(part)
        room = bytearray(len(raw) + 3)
        room[3:] = raw
        code = part.typecode
        return memoryview(room)[3:].cast(code) if len(raw) else part

    parts = [part if isinstance(part, bytes) else shifted(part) for part in columns(ROWS, SIZES)]
    reader = attached(*parts)
    with opened() as files:
        got = [reader.read_row(row, files) for row in range(len(ROWS))]
    assert items([without_path(s) for s in got if s]) == TRUE


# ---- files that change, threads


@pytest.mark.parametrize("views", [False, True])
def test_a_file_that_is_cut_under_the_reader(views: bool) -> None:
    reader = attached(views=views)
    with opened() as files:
        for row in range(len(ROWS) - 1, -1, -1):
            shard, start, end, _ = ROWS[row]
            for cut in (end - 1, (start + end) // 2, start + 1, start):
                os.ftruncate(files[shard][0], cut)
                got, error = take(reader.read_row(row, files) for row in [row])
                if error:
                    assert isinstance(error, TruncatedError)
                    assert (error.offset, error.url) == (cut, URL)
                else:  # nothing but the last padding is gone
                    assert (cut, views) == (end - 1, False)
                    assert items([without_path(got[0] or {})]) == [TRUE[row]]


@pytest.mark.parametrize("views", [False, True])
def test_a_file_that_is_written_over(views: bool) -> None:
    reader = attached(views=views)
    with opened() as files:
        os.pwrite(files[0][0], SHARDS[1], 0)
        for row, (shard, *_) in enumerate(ROWS):
            if shard == 0:
                with pytest.raises(ShardError):
                    reader.read_row(row, files)


@pytest.mark.parametrize("views", [False, True])
def test_threads_on_one_reader(views: bool) -> None:
    """Reads that meet, and columns that are swapped meanwhile: every sample is the right one."""
    reader = attached(views=views)
    wrong: list[Any] = []
    stop = threading.Event()

    def work(seed: int) -> None:
        for i in range(1200):
            row = (i * 7 + seed * 5) % len(ROWS)
            try:
                sample = reader.read_row(row, files)
                if sample is None or items([without_path(sample)]) != [TRUE[row]]:
                    wrong.append((row, sample))
            except Exception as error:  # noqa: BLE001  no thread may end in silence
                wrong.append(error)

    def swap() -> None:
        while not stop.is_set():
            reader.attach(rows_in([columns(ROWS, SIZES)]))

    with opened() as files:
        threads = [threading.Thread(target=work, args=[seed]) for seed in range(3)]
        swapper = threading.Thread(target=swap)
        for thread in [*threads, swapper]:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        swapper.join()
    assert wrong == []


def test_columns_live_as_long_as_a_read_that_uses_them() -> None:
    """Three reads overlap, and the columns are swapped when only the first is done."""
    reader = attached()
    big = make_tar([(f"k{i}.bin", bytes([i]) * 3_000_000) for i in range(4)])
    rows = rows_of(big)
    wrong: list[Any] = []

    def work(row: int) -> None:
        for _ in range(30):
            sample = reader.read_row(row, [(fd, URL, None)])
            if sample is not None and sample["__key__"] != rows[row][3]:
                wrong.append(sample["__key__"])

    with regular(big) as fd:
        reader.attach(rows_in([columns(rows, [len(big)])]))
        threads = [threading.Thread(target=work, args=[row]) for row in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            reader.attach(rows_in([columns(rows, [len(big)])]))
            gc.collect()
        for thread in threads:
            thread.join()
    assert wrong == []


# ---- views


def test_views_keep_their_own_sample_only() -> None:
    reader = attached(views=True)
    with opened() as files:
        small = reader.read_row(0, files)
        large = reader.read_row(20, files)
    assert small is not None
    assert large is not None
    start, end = ROWS[0][1:3]
    owner = small["cls"].obj
    assert type(owner) is bytes
    assert len(owner) == end - start
    assert owner is small["jpg"].obj
    assert owner is not large["bin"].obj
    assert owner == SHARDS[0][start:end]


def test_views_stay_what_they_are() -> None:
    reader = attached(views=True)
    with opened() as files:
        kept = [reader.read_row(row, files) for row in range(len(ROWS))]
        os.ftruncate(files[0][0], 0)
    del reader
    gc.collect()
    filler = [bytes([7]) * 2000 for _ in range(2000)]
    assert items([without_path(s) for s in kept if s]) == TRUE
    assert len(filler) == 2000
    with pytest.raises(TypeError):
        kept[0]["cls"][0] = 1  # type: ignore[index]
