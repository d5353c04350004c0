"""_core.Writer: what it writes is read back by everybody; a sample that fails leaves nothing behind."""

from __future__ import annotations

import gc
import io
import os
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import URL, items, reference, regular, samples_of
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools import _core, tar
from wdstools.errors import SourceError

MIB = 1 << 20
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@contextmanager
def writing(mtime: int = 0, **options: Any) -> Iterator[tuple[int, _core.Writer]]:
    fd = os.memfd_create("out")
    writer = _core.Writer(fd, mtime, **options)
    try:
        yield fd, writer
    finally:
        writer.stop()
        os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def finished(fd: int, writer: _core.Writer) -> bytes:
    """Finish, and check that the columns are exactly those of a scan."""
    columns = writer.finish()
    assert columns == _core.scan(fd, URL)
    assert columns["nbytes"] == os.fstat(fd).st_size
    return content(fd)


keys = st.lists(
    st.sampled_from(
        ["a", "b", "d/1", "d.x/2", "é", "k" * 101, "p" * 100 + "/" + "n" * 90, "q" * 300, "\udcff", "x\ny"]
    ),
    unique=True,
    max_size=6,
)
fields = st.dictionaries(
    st.sampled_from(["jpg", "cls", "SEG.png", "", "é", "x" * 80, "json", "__key__", "_x"]),
    st.binary(max_size=20) | st.integers(500, 1500).map(bytes),
    max_size=5,
).filter(lambda f: any(not k.startswith("_") for k in f))
samples = keys.flatmap(lambda ks: st.tuples(*[st.tuples(st.just(k), fields) for k in ks]))


@settings(max_examples=120, deadline=None)
@given(samples=samples, mtime=st.integers(0, 2**33 - 1))
def test_everybody_reads_it_back(samples: list[tuple[str, dict[str, bytes]]], mtime: int) -> None:
    with writing(mtime) as (fd, writer):
        taken = [writer.write(key, values) for key, values in samples]
        assert writer.nsamples == len(samples)
        assert writer.nbytes == sum(taken)
        data = finished(fd, writer)
    assert len(data) == sum(taken) + 1024
    flat = [(f"{k}.{e}", v) for k, vs in samples for e, v in sorted(vs.items()) if not e.startswith("_")]
    assert sum(taken) == sum(tar.member_nbytes(name, len(value)) for name, value in flat)
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        members = t.getmembers()
        assert [(m.name, t.extractfile(m).read()) for m in members] == flat  # type: ignore[union-attr]
        assert {m.mtime for m in members} <= {mtime}
    want = reference(data)
    assert [s["__key__"] for s in want] == [key for key, _ in samples]
    assert items(samples_of(data)) == items(want)


def test_golden_bytes() -> None:
    with writing(1000) as (fd, writer):
        assert writer.write("a", {"txt": b"hello", "cls": memoryview(b"7")}) == 2048
        want = tar.format_header("a.cls", 1, 1000) + b"7" + bytes(511)
        want += tar.format_header("a.txt", 5, 1000) + b"hello" + bytes(507) + bytes(1024)
        assert finished(fd, writer) == want


def test_files_are_copied(tmp_path: Path) -> None:
    big, empty = tmp_path / "big", tmp_path / "empty"
    big.write_bytes(os.urandom(9 * MIB + 5))
    empty.write_bytes(b"")
    with writing() as (fd, writer):
        writer.write("a", {"bin": (str(big), 9 * MIB + 5), "txt": (empty, 0), "raw": (big, -1)})
        (sample,) = samples_of(finished(fd, writer))
    assert sample["bin"] == sample["raw"] == big.read_bytes()
    assert sample["txt"] == b""


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 700_000), min_size=1, max_size=5), checksum=st.integers(0, 2))
def test_files_are_as_their_bytes(sizes: list[int], checksum: int) -> None:
    """Whoever writes, and whether fields are files or bytes: the same shard, columns and checksums."""
    payloads = [os.urandom(nbytes) for nbytes in sizes]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i, payload in enumerate(payloads):
            Path(folder, str(i)).write_bytes(payload)
        for behind, as_files in ((True, False), (True, True), (False, True), (False, False)):
            with writing(behind=behind, checksum=checksum) as (fd, writer):
                for i, payload in enumerate(payloads):
                    value = (f"{folder}/{i}", len(payload)) if as_files else payload
                    writer.write(f"k{i}", {"A.bin": value, "cls": b"1"})
                    with pytest.raises(FileNotFoundError, match="no-such"):
                        writer.write("bad", {"bin": value, "txt": (f"{folder}/no-such", -1)})
                found.append((writer.finish(), content(fd)))
    assert all(one == found[0] for one in found)


BIG = bytes(9 * MIB)  # more than what is buffered: half of the sample is in the file when it fails

BAD_SAMPLES: dict[str, tuple[Any, dict[Any, Any], type[Exception]]] = {
    "no fields": ("x", {}, SourceError),
    "only hidden fields": ("x", {"__key__": b"x"}, SourceError),
    "dot in key": ("x.y", {"txt": b"1"}, SourceError),
    "empty key": ("", {"txt": b"1"}, SourceError),
    "metadata key": ("__x__/a", {"txt": b"1"}, SourceError),
    "nul in key": ("x\0y", {"txt": b"1"}, SourceError),
    "nul in field": ("x", {"t\0t": b"1"}, SourceError),
    "slash in field": ("x", {"a": BIG, "t/t": b"1"}, SourceError),
    "surrogate in key": ("\ud800", {"txt": b"1"}, UnicodeEncodeError),
    "surrogate in field": ("x", {"a": BIG, "\ud800": b"1"}, UnicodeEncodeError),
    "key twice": ("good", {"txt": b"1"}, SourceError),
    "key twice, big": ("good", {"txt": BIG}, SourceError),
    "field twice": ("x", {"TXT": b"1", "txt": b"2"}, SourceError),
    "field twice, big": ("x", {"TXT": BIG, "txt": b"2"}, SourceError),
    "new field names, then a bad one": ("x", {"new1": b"1", "new2": b"2", "t/t": b"1"}, SourceError),
    "field twice in Unicode": ("x", {"É": BIG, "é": b"2"}, SourceError),
    "field twice by a Kelvin sign": ("x", {"k": b"1", "\u212a": b"2"}, SourceError),
    "a str": ("x", {"a": BIG, "txt": "text"}, TypeError),
    "a number": ("x", {"a": BIG, "txt": 5}, TypeError),
    "None": ("x", {"txt": None}, TypeError),
    "a buffer with gaps": ("x", {"a": BIG, "txt": memoryview(b"123456")[::2]}, BufferError),
    "missing file": ("x", {"a": BIG, "txt": ("/no/such/file", 5)}, FileNotFoundError),
    "a folder": ("x", {"a": BIG, "txt": ("/tmp", -1)}, SourceError),
    "a device": ("x", {"a": BIG, "txt": ("/dev/zero", -1)}, SourceError),
    "file of another size": ("x", {"a": BIG, "txt": (__file__, 3)}, SourceError),
    "tuple of one": ("x", {"txt": ("/tmp",)}, TypeError),
    "field is no str": ("x", {5: b"1"}, SourceError),
    "name over 1 MiB": ("n" * (MIB + 5), {"txt": b"1"}, SourceError),
    "name just over the header group": ("n" * (MIB - 1000), {"txt": b"1"}, SourceError),
    "name of 5 MiB": ("n" * (5 * MIB), {"txt": b"1"}, SourceError),
    "key is no str": (b"x", {"txt": b"1"}, TypeError),
}


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("name", list(BAD_SAMPLES))
def test_a_failing_sample_leaves_nothing(name: str, behind: bool) -> None:
    key, values, error = BAD_SAMPLES[name]
    good = [("good", {"txt": b"1", "jpg": b"j" * 3000}), ("last", {"cls": b"5", "png": bytes(5 * MIB)})]
    with writing(behind=behind) as (fd, writer):
        writer.write(*good[0])
        nbytes = writer.nbytes
        for _ in range(2):
            with pytest.raises(error):
                writer.write(key, values)
            assert (writer.nbytes, writer.nsamples) == (nbytes, 1)
        writer.write(*good[1])
        data = finished(fd, writer)
    with writing() as (fd, writer):
        for sample in good:
            writer.write(*sample)
        assert data == finished(fd, writer), "as if the failing sample had never been"


@pytest.mark.parametrize("length", [500_000, 520_000, 523_000, 600_000, MIB - 3000])
def test_a_name_longer_than_the_buffer(length: int) -> None:
    with writing() as (fd, writer):
        writer.write("a", {"bin": bytes(400_000)})
        writer.write("n" * length, {"jpg": b"j" * 3000, "txt": b"1"})
        with pytest.raises(SourceError):
            writer.write("m" * length, {"jpg": b"j" * 3000, "t/t": b"1"})
        writer.write("z", {"txt": b"2"})
        got = samples_of(finished(fd, writer))
    assert [len(s["__key__"]) for s in got] == [1, length, 1]
    assert (got[1]["jpg"], got[1]["txt"], got[2]["txt"]) == (b"j" * 3000, b"1", b"2")


def test_a_failing_first_sample() -> None:
    with writing() as (fd, writer):
        with pytest.raises(SourceError):
            writer.write("x", {"a": BIG, "t/t": b"1"})
        assert finished(fd, writer) == bytes(1024)


def test_nothing_follows_the_end() -> None:
    with writing() as (fd, writer):
        writer.write("a", {"txt": b"1"})
        data = finished(fd, writer)
        for call in (lambda: writer.write("b", {"txt": b"1"}), writer.finish):
            with pytest.raises(ValueError):
                call()
        assert content(fd) == data


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("nbytes", [1, 5 * MIB, 20 * MIB])
def test_a_full_disk_is_an_error_at_the_latest_in_finish(nbytes: int, behind: bool) -> None:
    with open("/dev/full", "wb", buffering=0) as f:
        writer = _core.Writer(f.fileno(), 0, behind=behind)
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012  in which of the two is not promised
            writer.write("a", {"txt": bytes(nbytes)})
            writer.finish()
        with pytest.raises(ValueError):
            writer.finish()
        writer.stop()


def test_a_pipe_takes_a_shard_but_no_rollback() -> None:
    out, into = os.pipe()
    with open(out, "rb") as reading, open(into, "wb") as f:
        writer = _core.Writer(f.fileno(), 0)
        writer.write("a", {"txt": b"1"})
        with pytest.raises(SourceError):
            writer.write("b.c", {"txt": b"1"})  # still in the buffer: nothing to take back from the pipe
        writer.write("d", {"txt": b"2"})
        columns = writer.finish()
        f.close()
        data = reading.read()
    with regular(data) as fd:
        assert _core.scan(fd, URL) == columns


def test_an_encoder_that_writes_into_the_same_writer() -> None:
    def encode(value: Any, name: str) -> bytes:
        writers[0].write("inner", {"txt": b"1"})
        return str(value).encode()

    writers: list[_core.Writer] = []
    with writing(encode=encode) as (fd, writer):
        writers.append(writer)
        assert writer.add({"__key__": "outer", "cls": 5}) == 1024
        keys = [s["__key__"] for s in samples_of(finished(fd, writer))]
    assert keys == ["inner", "outer"]


def test_add_says_when_the_shard_is_full() -> None:
    with writing(maxcount=2) as (fd, writer):
        assert [writer.add({"__key__": k, "txt": b"1"}) for k in "abc"] == [1024, 1024, None]
        assert len(samples_of(finished(fd, writer))) == 2
    with writing(maxsize=2048 + 1024) as (fd, writer):
        assert [writer.add({"__key__": k, "txt": b"1"}) for k in "abc"] == [1024, 1024, None]
        assert len(finished(fd, writer)) == 3072
    with writing(maxsize=10) as (fd, writer):
        assert writer.add({"__key__": "a", "txt": b"1"}) == 1024, "one sample always goes in"


@forks
@pytest.mark.parametrize("behind", [True, False])
def test_the_child_of_a_fork_cannot_go_on(behind: bool) -> None:
    with writing(behind=behind) as (fd, writer):
        writer.write("a", {"txt": BIG})
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            code = 1
            try:
                writer.write("b", {"txt": BIG})
            except RuntimeError:
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        writer.write("c", {"txt": b"1"})
        assert [s["__key__"] for s in samples_of(finished(fd, writer))] == ["a", "c"]


# ---- add


def encode(value: Any, name: str) -> bytes:
    if value == "bad":
        raise LookupError(name)
    return value if isinstance(value, bytes) and not name.endswith(".gz") else repr(value).encode()


@settings(max_examples=120, deadline=None)
@given(samples=samples, maxcount=st.integers(1, 7), maxsize=st.integers(1, 12_000))
def test_add_is_write_within_limits(samples: list[tuple[str, dict[str, bytes]]], maxcount: int, maxsize: int) -> None:
    """A naive model of the limits: what a sample takes is what write() says."""
    with writing() as (_, plain):
        sizes = [plain.write(key, values) for key, values in samples]
    with writing(encode=encode, maxcount=maxcount, maxsize=maxsize) as (fd, writer), writing() as (other, plain):
        total = count = 0
        for (key, values), nbytes in zip(samples, sizes, strict=True):
            fits = count == 0 or (count < maxcount and total + nbytes + 1024 <= maxsize)
            assert writer.add({**values, "__key__": key, "__url__": 5}) == (nbytes if fits else None)
            if fits:
                plain.write(key, values)
                total, count = total + nbytes, count + 1
            assert (writer.nbytes, writer.nsamples) == (total, count)
        assert finished(fd, writer) == finished(other, plain)


def test_which_values_go_through_the_encoder() -> None:
    seen: list[tuple[Any, str]] = []

    class Sub(bytes):
        pass

    def note(value: Any, name: str) -> bytes:
        seen.append((value, name))
        return b"encoded"

    with writing(encode=note) as (fd, writer):
        writer.add({"__key__": "a", "raw": b"1", "sub": Sub(b"2"), "cls": 3, "json.gz": b"4", "_hidden": 5, "gz": b"6"})
        (sample,) = samples_of(finished(fd, writer))
    assert sorted(seen, key=str) == sorted([(Sub(b"2"), "sub"), (3, "cls"), (b"4", "json.gz")], key=str)
    fields = {k: v for k, v in sample.items() if not k.startswith("__")}
    assert fields == {"raw": b"1", "sub": b"encoded", "cls": b"encoded", "json.gz": b"encoded", "gz": b"6"}


BAD_ADDS: dict[str, tuple[Any, type[Exception]]] = {
    "no dict": ([("__key__", "x")], SourceError),
    "no key": ({"cls": 5}, SourceError),
    "key is no str": ({"__key__": b"x", "cls": 5}, SourceError),
    "field is no str": ({"__key__": "x", 5: 5}, TypeError),
    "encoder fails": ({"__key__": "x", "a": BIG, "cls": "bad"}, LookupError),
    "no fields": ({"__key__": "x"}, SourceError),
    "dot in key": ({"__key__": "x.y", "cls": 5}, SourceError),
    "slash in field": ({"__key__": "x", "a": BIG, "t/t": 5}, SourceError),
    "field twice": ({"__key__": "x", "a": BIG, "CLS": 5, "cls": 6}, SourceError),
    "key twice": ({"__key__": "good", "a": BIG}, SourceError),
    "surrogate": ({"__key__": "\ud800", "cls": 5}, UnicodeEncodeError),
    "a huge name": ({"__key__": "n" * (2 * MIB), "cls": 5}, SourceError),
}


@pytest.mark.parametrize("name", list(BAD_ADDS))
def test_a_failing_add_leaves_nothing(name: str) -> None:
    sample, error = BAD_ADDS[name]
    with writing(encode=encode) as (fd, writer), writing() as (other, plain):
        writer.add({"__key__": "good", "txt": b"1"})
        for _ in range(2):
            with pytest.raises(error):
                writer.add(sample)
        writer.add({"__key__": "last", "bin": bytes(3 * MIB)})
        plain.write("good", {"txt": b"1"})
        plain.write("last", {"bin": bytes(3 * MIB)})
        assert finished(fd, writer) == finished(other, plain)


@pytest.mark.parametrize("gives", ["text", None, 5, bytearray(b"1")])
def test_an_encoder_gives_bytes(gives: Any) -> None:
    with writing(encode=lambda value, name: gives) as (_, writer):
        with pytest.raises(TypeError, match=r"encoder of field 'cls' gave a .*, not bytes"):
            writer.add({"__key__": "a", "cls": 5})
        assert writer.nsamples == 0


def test_an_encoder_that_empties_the_sample() -> None:
    sample: dict[str, Any] = {"__key__": "a" * 50, "cls": ["x"] * 3, "txt": ["y"]}

    def empty(value: Any, name: str) -> bytes:
        sample.clear()
        gc.collect()
        return repr(value).encode()

    with writing(encode=empty) as (fd, writer):
        with pytest.raises(KeyError, match="txt"):
            writer.add(sample)
        assert finished(fd, writer) == bytes(1024)


# ---- threads, the end, arguments


def test_a_second_thread_is_refused(tmp_path: Path) -> None:
    """While one thread writes into a full pipe, nobody else gets into the same writer."""
    out, into = os.pipe()
    writer = _core.Writer(into, 0)
    first = threading.Thread(target=lambda: writer.write("a", {"bin": bytes(8 * MIB)}))
    first.start()
    calls = (lambda: writer.write("b", {"txt": b"1"}), lambda: writer.add({"__key__": "b", "t": b""}), writer.finish)
    try:
        while writer.nbytes < MIB:  # in the second buffer: the first is stuck in the pipe
            time.sleep(0.001)
        for call in (*calls, writer.stop):
            with pytest.raises(ValueError, match="already executing"):
                call()
    finally:
        data = b""
        while len(data) < 7 * MIB:
            data += os.read(out, MIB)
        drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(out, MIB), b"")])
        drain.start()
        first.join()
        writer.stop()
        os.close(into)
        drain.join()
        os.close(out)
    for call in calls:
        with pytest.raises(ValueError, match="broken"):
            call()


@pytest.mark.usefixtures("no_leaks")
def test_a_writer_that_is_dropped_ends_its_thread() -> None:
    fd = os.memfd_create("out")
    writer = _core.Writer(fd, 0)
    writer.write("a", {"bin": BIG})
    del writer
    assert len(content(fd)) >= 8 * MIB, "the descriptor can be closed: what was handed over is written"
    os.close(fd)


def test_stop_stops() -> None:
    with writing() as (fd, writer):
        writer.write("a", {"bin": BIG})
        writer.stop()
        writer.stop()
        size = len(content(fd))
        for call in (lambda: writer.write("b", {"txt": b"1"}), writer.finish):
            with pytest.raises(ValueError, match="broken"):
                call()
        assert len(content(fd)) == size


@pytest.mark.parametrize(
    "options", [{"mtime": -1}, {"mtime": 1 << 64}, {"maxcount": -1}, {"maxsize": 1 << 64}, {"fd": 1 << 32}]
)
def test_numbers_that_do_not_fit(options: dict[str, int]) -> None:
    with pytest.raises(OverflowError):
        _core.Writer(**{"fd": 1, "mtime": 0, **options})  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(plan=st.lists(st.tuples(st.integers(0, 1_300_000), st.booleans()), max_size=8))
def test_rolling_back_anywhere(plan: list[tuple[int, bool]]) -> None:
    """Good samples and failing ones of sizes about the buffers: as if only the good ones had been."""
    with writing() as (fd, writer), writing() as (other, plain):
        for i, (nbytes, good) in enumerate(plan):
            values = {"a": bytes([i]) * nbytes}
            if good:
                assert writer.write(f"k{i}", values) == plain.write(f"k{i}", values)
            else:
                with pytest.raises(TypeError):
                    writer.write(f"k{i}", {**values, "z": None})
        assert finished(fd, writer) == finished(other, plain)
