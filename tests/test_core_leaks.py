"""What the core allocates it gives back, objects of Python and memory of malloc: on good paths and on bad ones."""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import URL, make_tar, regular, take

from wdstools import _core

GOOD = make_tar([(f"k{i}.{ext}", ext.encode() * 50) for i in range(4) for ext in ("cls", "jpg", "x" * 60, "é")])
BAD = {
    "cut": GOOD[:5000],
    "garbage": GOOD[:4096] + b"g" * 512,
    "trailing": GOOD + b"x",
    "twice": make_tar([("a.cls", b"1"), ("b.cls", b"1"), ("b.CLS", b"1")]),
    "folded": make_tar([("a.cls", b"1"), ("b.É", b"1"), ("b.é", b"1")]),
    "comes back": make_tar([("a.cls", b"1"), ("b.cls", b"1"), ("a.jpg", b"1")]),
    "empty": b"",
}


class MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")
        + ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def allocated() -> Callable[[], int]:
    """Bytes that malloc has handed out: glibc only."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("no mallinfo2 in this C library")
    mallinfo.restype = MallInfo

    def count() -> int:
        info = mallinfo()
        return int(info.uordblks + info.hblkhd)

    return count


def check(act: Callable[[], Any], times: int = 300) -> None:
    """Nothing may grow by what a leak of an object or of 16 bytes at a time would be: a leak grows in every round, what
    an interpreter keeps for itself (a larger table, a cached chunk of malloc) does not."""
    malloced = allocated()
    for _ in range(30):
        act()
    for _ in range(4):
        gc.collect()
        before = (sys.getallocatedblocks(), malloced())
        for _ in range(times):
            act()
        gc.collect()
        blocks, nbytes = sys.getallocatedblocks() - before[0], malloced() - before[1]
        if blocks < times // 3 and nbytes < times * 8:
            return
    assert blocks < times // 3, f"{blocks} objects in {times} times"
    assert nbytes < times * 8, f"{nbytes} bytes in {times} times"


def test_the_leak_check_finds_leaks() -> None:
    kept: list[Any] = []
    with pytest.raises(AssertionError, match="objects"):
        check(lambda: kept.append(object()))
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    with pytest.raises(AssertionError, match="bytes"):
        check(lambda: libc.malloc(16) and None)


@contextlib.contextmanager
def sources(data: bytes) -> Iterator[list[Callable[[], Any]]]:
    with regular(data) as fd:
        yield [lambda: fd, lambda: io.BytesIO(data)]


@pytest.mark.parametrize("data", [GOOD, *BAD.values()], ids=["good", *BAD])
def test_no_leak_in_reading(data: bytes) -> None:
    hooks: list[dict[str, Any]] = [
        {},
        {"views": True, "block_bytes": 700},
        {"fields": ["jpg"], "head": b""},
        {"select": lambda name: "jpg" in name, "rename": str.upper, "local_path": "/x"},
        {"rename": lambda name: name + 5},
        {"select": lambda name: 1 / (len(name) - 6)},
    ]
    with sources(data) as opens:

        def act() -> None:
            for source in opens:
                for options in hooks:
                    take(_core.Stream(source(), URL, **options))
                take(_core.Walker(source(), URL))
                next(_core.Walker(source(), URL), None) if data in (GOOD, BAD["cut"]) else None
                for whole in (_core.scan, _core.members):
                    with contextlib.suppress(ValueError):
                        whole(source(), URL)

        check(act, 100)


def test_no_leak_in_closing_half_way() -> None:
    with sources(GOOD) as opens:

        def act() -> None:
            for source in opens:
                for options in ({}, {"views": True, "block_bytes": 700}, {"head": GOOD[:700]}):
                    samples = _core.Stream(
                        source() if "head" not in options else io.BytesIO(GOOD[700:]), URL, **options
                    )
                    next(samples)
                    samples.close()

        check(act, 100)


def test_no_leak_in_arguments_that_are_refused() -> None:
    def act() -> None:
        wrong: list[dict[str, Any]] = [{"fields": 5}, {"fields": [[]]}, {"block_bytes": 0}, {"nothing": 1}]
        for options in wrong:
            with contextlib.suppress(TypeError, ValueError):
                _core.Stream(io.BytesIO(GOOD), URL, **options)
        for call in (_core.Stream, _core.Walker, _core.scan):
            for source in (-1, 1 << 40, None):
                with contextlib.suppress(OSError, ValueError, OverflowError, AttributeError):
                    take(call(source, URL))  # type: ignore[arg-type]
        with contextlib.suppress(TypeError):
            _core.SampleReader(fields=5)  # type: ignore[arg-type]
        with contextlib.suppress(OverflowError):
            _core.Writer(1, -1)
        _core.split_name("a/b.c"), _core.split_name("none"), _core.hash_key(b"x"), _core.format_header(b"a" * 200, 1, 1)

    check(act)


@pytest.mark.parametrize("views", [False, True])
def test_no_leak_in_random_access(views: bool) -> None:
    with regular(GOOD) as fd:
        c = _core.scan(fd, URL)
        starts, ends = (array.array("Q", c[name]) for name in ("starts", "ends"))
        keys = [0, *memoryview(c["key_ends"]).cast("Q")]
        columns = [
            array.array("I", [0] * 4),
            starts,
            ends,
            array.array("q", keys),
            c["keys"],
            array.array("Q", [len(GOOD)]),
        ]

        def act() -> None:
            reader = _core.SampleReader({"jpg", "é"}, views)
            first = array.array("Q", [0, 4])
            rows = _core.Rows(first, columns[5], first[1:], fd)
            for bad in ([*columns[:4], "text"], [b"1", *columns[1:5]]):
                with contextlib.suppress(ValueError, TypeError):
                    rows.put(0, *bad)
            assert rows.locate(0) is None
            rows.put(0, *columns[:5])
            reader.attach(rows)
            filed = _core.Rows(first, columns[5], first[1:], fd)
            for number in (0, 0, 1):
                with contextlib.suppress(IndexError):
                    filed.put_at(number, 0, 0, 0, 0, 1 << 20, 8)
            for row in range(5):
                rows.locate(row), rows.key(row)
                with contextlib.suppress(ValueError):
                    filed.locate(row)
            for row in range(5):
                reader.read_row(row, [(fd, URL, "/x")])
            for start, end, key in [(0, 512, "k0"), (0, ends[1], "k0"), (0, ends[0], "k1"), (starts[3], 1 << 40, "k3")]:
                with contextlib.suppress(ValueError, MemoryError):
                    reader.parse(GOOD[start:end], start, key, URL, None)
                with contextlib.suppress(ValueError, MemoryError):
                    reader.read(fd, start, end, key, URL, None)
            with contextlib.suppress(TypeError):
                reader.attach(columns)  # type: ignore[arg-type]
            for first_rows, sizes in ([b"1", columns[5]], [first, b"1"], [array.array("Q", [0, 4, 4]), columns[5]]):
                with contextlib.suppress(ValueError):
                    _core.Rows(first_rows, sizes, first[1:], fd)
            reader.attach(rows)

        check(act)


def test_no_leak_in_writing() -> None:
    def encode(value: Any, name: str) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode() if value != 13 else value

    def act() -> None:
        fd = os.memfd_create("out")
        writer = _core.Writer(fd, 0, encode=encode, maxcount=5)
        samples: list[dict[Any, Any]] = [
            {"__key__": "a", "cls": 5, "jpg": b"j", "x" * 150: b"1"},
            {"__key__": "b", "É": b"1", "é": b"2"},
            {"__key__": "c", "cls": 13},
            {"__key__": "a", "cls": 5},
            {"__key__": "n" * 600_000, "cls": 5},
            {"__key__": "d", "big": bytes(1_500_000), "e/f": b""},
            {"cls": 5},
            {"__key__": "e", "cls": 5, 5: 5},
        ]
        for sample in samples:
            with contextlib.suppress(ValueError, TypeError):
                writer.add(sample)
        for value in ((__file__, -1), (__file__, 3), ("/no/such/file", -1), ("/", -1), "text", None):
            with contextlib.suppress(ValueError, TypeError, OSError):
                writer.write(f"f{value}"[:5], {"py": value})
        writer.finish() if len(samples) % 2 == 0 else writer.stop()
        os.close(fd)

    check(act, 40)
