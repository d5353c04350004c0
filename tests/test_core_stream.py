"""_core.Stream: blocks and the views into them, closing, interruption, fork, threads, sources and hooks that fail."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import pickle
import signal
import threading
import time
import tty
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import URL, WAYS, Sample, items, make_tar, pipe, reference, regular, samples_of, stream, take

from wdstools import _core
from wdstools.errors import TruncatedError

MIB = 1 << 20
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def shard(samples: int, nbytes: int = 700) -> bytes:
    """Samples k0, k1, ..., each with a text field and a payload of its own bytes."""
    files = []
    for i in range(samples):
        files += [(f"k{i}.txt", b"%d" % i), (f"k{i}.bin", bytes([i % 251]) * nbytes)]
    return make_tar(files)


TEN = shard(10)
KEYS = [f"k{i}" for i in range(10)]


# ---- views and blocks


@pytest.mark.parametrize("way", list(WAYS))
def test_views_outlive_the_stream_and_the_recycling_of_its_blocks(way: str) -> None:
    data = shard(300, 100_000)
    with WAYS[way](data) as source:
        samples = _core.Stream(source, URL, views=True)
        kept = [sample["bin"] for i, sample in enumerate(samples) if i % 7 == 0]
        samples.close()
    del samples
    with regular(make_tar([(f"{i}.z", b"\xff" * (4 * MIB)) for i in range(2)])) as other:
        for _ in range(25):  # 200 MiB through the same pool
            assert sum(len(s["z"]) for s in _core.Stream(other, URL, views=True)) == 8 * MIB
    for i, view in enumerate(kept):
        assert view == bytes([i * 7 % 251]) * 100_000


def test_a_view_of_a_view_keeps_the_block() -> None:
    (sample,) = samples_of(make_tar([("a.bin", b"0123456789" * 100)]), views=True)
    part = memoryview(sample.pop("bin"))[10:20]
    gc.collect()
    for _ in range(3):
        samples_of(make_tar([("z.bin", b"z" * 5000)]), views=True)
    assert bytes(part) == b"0123456789"


def test_rss_blocks_come_back_to_the_pool() -> None:
    """A stream of gigabytes takes no more memory than a stream of megabytes."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with regular(make_tar([(f"{i}.z", b"\xff" * (3 * MIB)) for i in range(20)])) as fd:
        for sample in _core.Stream(fd, URL, views=True):
            assert len(sample["z"]) == 3 * MIB
        before = resident()
        for _ in range(10):
            for sample in _core.Stream(fd, URL, views=True):
                assert len(sample["z"]) == 3 * MIB
        assert resident() - before < 48 * MIB


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("block_bytes", [64, 511, 512, 513, 700, 1024])
def test_a_cut_at_every_block_boundary(way: str, block_bytes: int) -> None:
    data = shard(2, 600)
    true = reference(data)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024  # of the end marker
    for cut in range(block_bytes, end, block_bytes):
        for views in (False, True):
            got, error = stream(data[:cut], way, block_bytes=block_bytes, views=views)
            assert isinstance(error, TruncatedError), (cut, error)
            assert error.offset == cut
            assert items(got) == items(true)[: len(got)]
            assert len(got) < len(true)


@pytest.mark.parametrize("block_bytes", [0, -1, -(1 << 62)])
def test_blocks_have_bytes(block_bytes: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        _core.Stream(io.BytesIO(TEN), URL, block_bytes=block_bytes)


def test_blocks_that_no_memory_holds() -> None:
    with pytest.raises(MemoryError):
        next(_core.Stream(io.BytesIO(TEN), URL, block_bytes=(1 << 63) - 1))


# ---- the end of a stream


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("way", list(WAYS))
def test_close_half_way(way: str) -> None:
    for after in (0, 1, 5, 10):
        for views in (False, True):
            with WAYS[way](TEN) as source:
                samples = _core.Stream(source, URL, views=views, block_bytes=600)
                got = [next(samples) for _ in range(after)]
                samples.close()
                samples.close()
                assert next(samples, None) is None
                assert list(samples) == []
                assert items(got) == items(reference(TEN))[:after]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("way", list(WAYS))
def test_dropping_a_stream_ends_its_thread(way: str) -> None:
    with WAYS[way](TEN) as source:
        samples = _core.Stream(source, URL, block_bytes=600)
        assert next(samples)["__key__"] == "k0"
        tasks = len(os.listdir("/proc/self/task"))
        del samples
        assert len(os.listdir("/proc/self/task")) <= tasks - (way != "readinto")


@pytest.mark.usefixtures("no_leaks")
def test_a_stream_in_a_cycle_is_collected() -> None:
    class Loop(io.BytesIO):
        me: Any = None

    source = Loop(TEN)
    source.me = _core.Stream(source, URL, block_bytes=600)
    next(source.me)
    alive = weakref.ref(source)
    del source
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("way", list(WAYS))
def test_the_descriptor_stays_the_callers(way: str) -> None:
    with WAYS[way](TEN) as source:
        _core.Stream(source, URL).close()
        if isinstance(source, int):
            os.fstat(source)


# ---- signals, fork, threads


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda fd: next(_core.Stream(fd, URL)), id="stream"),
        pytest.param(lambda fd: next(_core.Walker(fd, URL)), id="walk"),
        pytest.param(lambda fd: _core.scan(fd, URL), id="scan"),
    ],
)
def test_ctrl_c_ends_the_wait_for_a_silent_pipe(act: Callable[[int], Any]) -> None:
    out, into = os.pipe()
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite runs behind a `&`
    timer = threading.Timer(0.15, interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            act(out)
        assert time.monotonic() - sent[0] < 1
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
        os.close(out)
        os.close(into)


def test_a_silent_pipe_hands_out_what_it_has() -> None:
    out, into = os.pipe()
    try:
        os.write(into, TEN[: 5 * 2048])
        samples = _core.Stream(out, URL)
        assert [next(samples)["__key__"] for _ in range(3)] == KEYS[:3]
        started = time.monotonic()
        samples.close()
        assert time.monotonic() - started < 1, "closing does not wait for the pipe"
    finally:
        os.close(out)
        os.close(into)


@forks
@pytest.mark.parametrize("way", ["regular", "pipe"])
def test_a_fork_while_streaming(way: str) -> None:
    data = shard(400, 5000)
    with WAYS[way](data) as source:
        samples = _core.Stream(source, URL, block_bytes=8192)
        first = [next(samples) for _ in range(3)]
        pid = os.fork()
        if pid == 0:  # what is in its copy of the block may come, then an error; never an end
            signal.alarm(20)
            code = 1
            try:
                _, error = take(samples)
                samples.close()
                code = 0 if isinstance(error, RuntimeError) and "fork" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert items([*first, *samples]) == items(reference(data))


@pytest.mark.parametrize("way", list(WAYS))
def test_threads_on_one_stream_lose_nothing(way: str) -> None:
    """Who comes while another thread is in it is refused; every sample comes once, and the end comes last."""
    data = shard(300, 3000)
    got: list[Sample] = []
    odd: list[Exception] = []

    with WAYS[way](data) as source:
        samples = _core.Stream(source, URL, block_bytes=4096)

        def work() -> None:
            while True:
                try:
                    got.append(next(samples))
                except StopIteration:
                    return
                except ValueError as error:
                    if str(error) != "stream already executing":
                        odd.append(error)
                        return

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert odd == []
    assert sorted(s["__key__"] for s in got) == sorted(f"k{i}" for i in range(300))
    assert {k: v for s in got for k, v in [(s["__key__"], s["bin"])]} == {
        s["__key__"]: s["bin"] for s in reference(data)
    }


def test_a_second_thread_is_refused_while_the_first_waits() -> None:
    out, into = os.pipe()
    samples = _core.Stream(out, URL)
    first = threading.Thread(target=take, args=[samples])
    first.start()
    try:
        deadline = time.monotonic() + 10
        error: Exception | None = None
        while error is None and time.monotonic() < deadline:  # until the first is in it
            time.sleep(0.01)
            try:
                samples.close() if first.ident is None else next(samples)
            except ValueError as refused:
                error = refused
        assert str(error) == "stream already executing"
        with pytest.raises(ValueError, match="already executing"):
            samples.close()
    finally:
        os.close(into)
        first.join()
        os.close(out)


# ---- sources that fail


class Odd:
    """A source that gives good bytes, then does something else."""

    def __init__(self, act: Callable[[memoryview], Any], good: int = 0) -> None:
        self.file, self.act, self.good, self.kept = io.BytesIO(TEN), act, good, [b""]

    def readinto(self, buffer: memoryview) -> Any:
        if self.file.tell() < self.good:
            return self.file.readinto(buffer[: min(len(buffer), self.good - self.file.tell())])
        return self.act(buffer)


def fail(_: memoryview) -> int:
    raise ConnectionResetError("gone")


ODD: dict[str, tuple[Callable[[memoryview], Any], type[Exception]]] = {
    "raises": (fail, ConnectionResetError),
    "one byte too many": (lambda b: len(b) + 1, OSError),
    "far too many": (lambda b: 1 << 62, OSError),
    "more than 64 bits": (lambda b: 1 << 70, OverflowError),
    "negative": (lambda b: -1, OSError),
    "None": (lambda b: None, TypeError),
    "text": (lambda b: "5", TypeError),
    "a float": (lambda b: 5.0, TypeError),
}


@pytest.mark.parametrize("good", [0, 512, 5000, 10240])
@pytest.mark.parametrize("what", list(ODD))
def test_a_source_that_fails(what: str, good: int) -> None:
    act, error = ODD[what]
    samples = _core.Stream(Odd(act, good), URL, block_bytes=4096)
    got, ended = take(samples)
    assert type(ended) is error
    assert items(got) == items(reference(TEN))[: len(got)]
    assert len(got) < 10
    assert next(samples, None) is None
    for call in (lambda: _core.scan(Odd(act, good), URL), lambda: list(_core.Walker(Odd(act, good), URL))):
        with pytest.raises(error):
            call()


def test_a_source_without_readinto() -> None:
    with pytest.raises(AttributeError, match="readinto"):
        next(_core.Stream(object(), URL))  # type: ignore[arg-type]


def test_a_source_cannot_write_into_a_block_later() -> None:
    kept: list[memoryview] = []

    class Keeps(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            kept.append(buffer)
            return super().readinto(buffer)

    samples = list(_core.Stream(Keeps(TEN), URL, views=True))
    for buffer in kept:
        with pytest.raises(ValueError, match="released"):
            buffer[0] = 1
    assert items(samples) == items(reference(TEN))


@pytest.mark.parametrize("hold", [memoryview, (ctypes.c_char * 10).from_buffer])
def test_a_source_that_keeps_a_part_of_its_buffer(hold: Callable[[Any], Any]) -> None:
    """It can spoil what it gave, but not what others have: its block does not go back to the pool."""
    kept: list[Any] = []

    class Keeps(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            kept.append(hold(buffer))
            return super().readinto(buffer)

    for _ in range(3):
        assert len(list(_core.Stream(Keeps(TEN), URL))) == 10
    samples = list(_core.Stream(io.BytesIO(TEN), URL, views=True))
    for part in kept:
        part[0:10] = b"x" * 10
    assert items(samples) == items(reference(TEN))


def test_a_source_that_holds_its_buffer_is_an_error() -> None:
    kept: list[pickle.PickleBuffer] = []

    class Holds(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            kept.append(pickle.PickleBuffer(buffer))
            return super().readinto(buffer)

    with pytest.raises(BufferError):
        next(_core.Stream(Holds(TEN), URL))
    assert bytes(kept[0].raw()[:5]) == TEN[:5], "its memory is still there"


def test_a_source_that_reads_the_stream() -> None:
    errors: list[str] = []

    class Inner(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            for call in (lambda: next(samples), samples.close):
                with pytest.raises(ValueError) as caught:
                    call()
                errors.append(str(caught.value))
            return super().readinto(buffer)

    samples = _core.Stream(Inner(TEN), URL)
    assert [s["__key__"] for s in samples] == KEYS
    assert set(errors) == {"stream already executing"}


@pytest.mark.parametrize("fd", [-1, -5, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 70])
def test_what_is_no_descriptor(fd: int) -> None:
    """Above all not 1 << 32 | fd, cut down to fd."""
    for call in (lambda: _core.Stream(fd, URL), lambda: _core.Walker(fd, URL), lambda: _core.scan(fd, URL)):
        with pytest.raises((ValueError, OverflowError)):
            call()


@pytest.mark.usefixtures("no_leaks")
def test_a_closed_descriptor() -> None:
    fd = os.memfd_create("closed")
    os.close(fd)
    for call in (lambda: _core.Stream(fd, URL), lambda: _core.Walker(fd, URL), lambda: _core.scan(fd, URL)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    ("path", "flags", "error"),
    [
        (".", os.O_RDONLY, IsADirectoryError),
        (__file__, os.O_PATH, OSError),
        ("/dev/null", os.O_WRONLY, OSError),
        ("/proc/self/mem", os.O_RDONLY, OSError),  # EIO at byte 0
    ],
)
def test_a_descriptor_that_cannot_be_read(path: str, flags: int, error: type[OSError]) -> None:
    fd = os.open(path, flags)
    try:
        with pytest.raises(error) as caught:
            list(_core.Stream(fd, URL))
        assert caught.value.filename == URL
        with pytest.raises(error):
            _core.scan(fd, URL)
    finally:
        os.close(fd)


@pytest.mark.usefixtures("no_leaks")
def test_what_comes_before_an_error_is_used() -> None:
    """A terminal whose other side is closed gives what it has, and then EIO."""
    master, slave = os.openpty()
    tty.setraw(slave)

    def fill() -> None:
        with open(slave, "wb", buffering=0) as f:
            f.write(TEN[: 4 * 2048])

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        got, error = take(_core.Stream(master, URL))
        assert isinstance(error, OSError)
        assert error.strerror == "Input/output error"
        assert 1 < len(got) < 4
        assert items(got) == items(reference(TEN))[: len(got)]
    finally:
        thread.join()
        os.close(master)


# ---- hooks


class Stubborn:
    def __bool__(self) -> bool:
        raise ArithmeticError("neither")


def at(key: str, act: Callable[[str], Any]) -> Callable[[str], Any]:
    """Act on the members of one key, let the others be."""
    return lambda name: act(name) if name.startswith(key + ".") else name


def refuse(name: str) -> str:
    raise LookupError(name)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("key", ["k0", "k4", "k9"])
@pytest.mark.parametrize(
    ("hook", "act", "error"),
    [
        ("select", refuse, LookupError),
        ("rename", refuse, LookupError),
        ("select", lambda _: Stubborn(), ArithmeticError),
        ("rename", lambda _: None, TypeError),
        ("rename", lambda _: b"a.txt", TypeError),
        ("rename", lambda _: "\ud800.txt", UnicodeEncodeError),
    ],
)
def test_a_hook_that_fails(way: str, key: str, hook: str, act: Any, error: type[Exception]) -> None:
    got, ended = stream(TEN, way, block_bytes=700, **{hook: at(key, act)})
    assert type(ended) is error
    true = items(reference(TEN))
    assert items(got) == true[: len(got)]
    assert len(got) <= KEYS.index(key), "the sample that the hook refused is not there"


def test_a_hook_that_calls_the_stream() -> None:
    def select(name: str) -> bool:
        with pytest.raises(ValueError, match="already executing"):
            next(samples)
        with pytest.raises(ValueError, match="already executing"):
            samples.close()
        return True

    samples = _core.Stream(io.BytesIO(TEN), URL, select=select)
    assert [s["__key__"] for s in samples] == KEYS


def test_rename_regroups() -> None:
    """A rename that puts a key in the middle of another is the error that the shard would give."""
    got, error = stream(TEN, rename=lambda name: name.replace("k5", "k1"))
    assert "comes back after other keys" in str(error)
    assert [s["__key__"] for s in got] == KEYS[: len(got)]


def test_options_of_the_wrong_type() -> None:
    wrong: Iterator[dict[str, Any]] = iter(
        [{"fields": 5}, {"fields": [[]]}, {"select": 5}, {"rename": "x"}, {"head": "text"}, {"block_bytes": 1.5}]
    )
    for options in wrong:
        with pytest.raises(TypeError):
            list(_core.Stream(io.BytesIO(TEN), URL, **options))
    with pytest.raises(TypeError):
        _core.Stream(io.BytesIO(TEN), b"u.tar")  # type: ignore[arg-type]


def test_many_fields_and_long_names() -> None:
    """More names than the cache of names holds, and longer ones than it takes."""
    exts = [f"e{i}" for i in range(70)] + ["x" * n for n in (47, 48, 49, 90)]
    data = make_tar([(f"{key}.{ext}", ext.encode()) for key in "abc" for ext in exts])
    want = items(reference(data))
    assert items(samples_of(data)) == want
    some = {"e3", "e69", "x" * 48, "x" * 90}
    assert items(samples_of(data, fields=some)) == [[(k, v) for k, v in s if k in some or k[0] == "_"] for s in want]


def test_a_pipe_of_many_blocks() -> None:
    data = shard(200, 20_000)
    with pipe(data) as fd:
        assert items(_core.Stream(fd, URL, block_bytes=4096, views=True)) == items(reference(data))
