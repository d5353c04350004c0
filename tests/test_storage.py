"""Opening URLs: files, stdin, pipes, http and compression; and every way in which less comes than was to come."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import lzma
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from conftest import wait_until
from helpers import make_tar, take

import wdstools
from wdstools import storage
from wdstools.compression import Decompressed
from wdstools.errors import (
    AccessError,
    NotFoundError,
    PipeError,
    ShardError,
    StoreError,
    TruncatedError,
    UnreachableError,
    UrlError,
    WdsError,
)
from wdstools.storage import Source, open_local, open_object, open_source
from wdstools.store import Retries, Stores

TAR = make_tar([(f"{i:03d}.{ext}", random.Random(i).randbytes(300 * i)) for i in range(8) for ext in ("cls", "jpg")])
# the frames of which a shard in several parts is made, as `cat a.gz b.gz` or pigz or pzstd make them
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "zst-unsized": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
compressions = pytest.mark.parametrize("name", list(COMPRESS))


def read(source: Source) -> bytes:
    """Everything that a source gives, as the core reads it."""
    with source:
        out = bytearray(source.head)
        if isinstance(source.handle, int):
            with open(source.handle, "rb", closefd=False) as file:
                return bytes(out + file.read())
        buffer = bytearray(1000)
        while n := source.handle.readinto(memoryview(buffer)):
            out += buffer[:n]
        return bytes(out)


def keys(url: Any) -> list[str]:
    return [sample["__key__"] for sample in wdstools.stream(url)]


ALL = [f"{i:03d}" for i in range(8)]


# files


@pytest.mark.usefixtures("no_leaks")
def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a b%2Fü.tar"
    (tmp_path / name).write_bytes(TAR)
    monkeypatch.chdir(tmp_path)
    quoted = urllib.parse.quote(str(tmp_path / name))
    for url in (name, f"./{name}", str(tmp_path / name), f"file:{quoted}", f"file://{quoted}"):
        source = open_source(url)
        assert source.local_path is not None
        assert Path(name).samefile(source.local_path)
        assert read(source) == TAR, url
    assert keys(f"file:{urllib.parse.quote(name)}") == ALL


@pytest.mark.usefixtures("no_leaks")
def test_files_that_are_not_there(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/none.tar", f"{tmp_path}/none/none.tar", f"file:{tmp_path}/none.tar"):
        for call in (open_source, open_local):
            with pytest.raises(NotFoundError, match=r"none\.tar") as caught:
                call(url)
            assert isinstance(caught.value, FileNotFoundError)
    (tmp_path / "file").write_bytes(TAR)
    with pytest.raises(NotFoundError):
        open_source(f"{tmp_path}/file/a.tar")
    with pytest.raises(StoreError, match="is a folder"):
        open_source(str(tmp_path))
    for url in (f"{tmp_path}/\0.tar", "file://host/a.tar", "pipe:cat \0"):
        with pytest.raises(UrlError):
            open_source(url)


def test_unknown_schemes() -> None:
    with pytest.raises(UrlError, match="nonsense"):
        open_source("nonsense://x")
    for url in ("nonsense://x", "s3://bucket/a.tar", "http://127.0.0.1/a.tar"):
        with pytest.raises(UrlError, match="random access needs a local file"):
            open_local(url)


def test_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.tar")
    writer = threading.Thread(target=(tmp_path / "f.tar").write_bytes, args=(TAR,))
    writer.start()
    assert keys(str(tmp_path / "f.tar")) == ALL
    writer.join()


# stdin

READ_STDIN = "import wdstools; print(*[s['__key__'] for s in wdstools.stream('-')])"


@pytest.mark.parametrize("data", [TAR, gzip.compress(TAR)], ids=["tar", "gz"])
def test_stdin(data: bytes, tmp_path: Path) -> None:
    run = [sys.executable, "-c", READ_STDIN]
    assert subprocess.run(run, input=data, capture_output=True, check=True).stdout.decode().split() == ALL
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert subprocess.run(run, stdin=file, capture_output=True, check=True).stdout.decode().split() == ALL


def test_stdin_that_was_read_from(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 700 + TAR)
    with path.open("rb", buffering=0) as file:
        file.read(700)
        out = subprocess.run([sys.executable, "-c", READ_STDIN], stdin=file, capture_output=True, check=True)
    assert out.stdout.decode().split() == ALL


# open files


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


class OneByte(io.RawIOBase):
    """Gives its first bytes one at a time."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def readinto(self, buffer: Any) -> int:
        n = min(1 if self.at < 20 else 700, len(buffer), len(self.data) - self.at)
        buffer[:n] = self.data[self.at : self.at + n]
        self.at += n
        return n


@pytest.mark.parametrize("data", [TAR, *(c(TAR) for c in COMPRESS.values())], ids=["tar", *COMPRESS])
@pytest.mark.parametrize("make", [io.BytesIO, OnlyRead, OneByte])
def test_objects(data: bytes, make: Callable[[bytes], Any]) -> None:
    assert read(open_object(make(data))) == TAR
    assert keys(make(data)) == ALL


def test_what_objects_are_called(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(TAR)
    with path.open("rb") as file:
        source = open_object(file)
        assert (source.url, source.local_path) == (str(path), None)
        with source:
            pass
        assert not file.closed
    assert open_object(io.BytesIO(TAR)).url == "<BytesIO>"
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file:
        assert open_object(file).url == "<BufferedReader>"


def test_an_object_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 600 + TAR)
    with path.open("rb") as file:
        file.seek(600)
        assert keys(file) == ALL


def test_text_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text")
    with (tmp_path / "a").open() as file:
        with pytest.raises(TypeError, match="open it in binary mode"):
            keys(file)


# pipes


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(TAR)
    return path


@pytest.mark.usefixtures("no_leaks")
def test_pipes(shard: Path) -> None:
    assert keys(f"pipe:cat {shard}") == ALL
    assert keys(f"pipe:cat {shard} | cat | cat") == ALL
    assert keys(f"pipe:gzip -c {shard}") == ALL
    assert keys(f"pipe:gzip -c {shard} | gunzip") == ALL
    assert keys(f"pipe:head -c 3 {shard}; sleep 0.2; tail -c +4 {shard}") == ALL


def test_a_pipe_has_no_stdin(shard: Path) -> None:
    assert keys(f"pipe:cat {shard} -") == ALL


FAILING = {
    "status": ("cat {shard}; echo went wrong >&2; exit 3", "exit status 3: went wrong"),
    "no output": ("echo no such thing >&2; exit 1", "exit status 1: no such thing"),
    "no such command": ("no-such-command-here {shard}", "exit status 127: .*no-such-command-here"),
    "first part": ("cat {shard}.none | cat", "exit status 1: .*No such file"),
    "first part, after all": ("(cat {shard}; echo late >&2; exit 9) | cat", "exit status 9: late"),
    "half": ("head -c 5000 {shard}; echo lost >&2; exit 4", "exit status 4: lost"),
    "signal": ("cat {shard}; kill -9 $$", "signal 9"),
    "silent": ("exit 7", "exit status 7$"),
    "huge stderr": ("yes | head -c 8000000 >&2; echo the end >&2; exit 1", "y\ny\nthe end$"),
    "not utf-8": (r"printf '\\377gr\\303\\274n' >&2; exit 1", "\ufffdgrün$"),
}


@pytest.mark.parametrize("what", FAILING)
@pytest.mark.usefixtures("no_leaks")
def test_failing_commands(what: str, shard: Path) -> None:
    command, text = FAILING[what]
    with pytest.raises(PipeError, match=text) as caught:
        keys("pipe:" + command.format(shard=shard))
    assert len(str(caught.value)) < 3000
    assert isinstance(caught.value, OSError)


def test_a_pipe_of_nothing_is_truncated() -> None:
    with pytest.raises(TruncatedError, match=r"pipe:true.*empty"):
        keys("pipe:true")


def test_a_cut_pipe_that_does_not_fail_is_truncated(shard: Path) -> None:
    with pytest.raises(TruncatedError):
        keys(f"pipe:head -c 5000 {shard}")


def test_a_part_that_need_not_write_all_is_no_failure(shard: Path) -> None:
    """`yes | head` ends with SIGPIPE for yes: with a whole shard, nothing is lost."""
    assert keys(f"pipe:cat {shard} <(yes) | head -c {len(TAR)}") == ALL


def test_not_a_tar_is_told_as_such() -> None:
    with pytest.raises(ShardError, match="checksum"):
        keys("pipe:yes")


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def running(marker: str) -> bool:
    def has(pid: str) -> bool:
        try:
            return marker.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return any(has(pid) for pid in os.listdir("/proc") if pid.isdecimal() and pid != str(os.getpid()))


EARLY = {
    "writes on": "cat {shard}; cat /dev/zero",
    "several parts": "(cat {shard}; cat /dev/zero) | cat | cat",
    "sleeps": "cat {shard}; sleep 98.7654321",
    "sleeps in a part": "(cat {shard}; sleep 98.7654321) | cat",
    "ignores SIGPIPE": "trap '' PIPE; cat {shard}; while true; do echo 2>/dev/null; sleep 0.01; done; : 98.7654321",
}


@pytest.mark.parametrize("what", EARLY)
@pytest.mark.usefixtures("no_leaks")
def test_stopping_early_leaves_no_process(what: str, shard: Path) -> None:
    before = children()
    samples = wdstools.stream("pipe:" + EARLY[what].format(shard=shard))
    assert next(samples)["__key__"] == "000"
    begin = time.monotonic()
    samples.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 3
    assert children() == before
    assert wait_until(lambda: not running("98.7654321"))


@pytest.mark.usefixtures("no_leaks")
def test_a_command_that_does_not_end_is_ended(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has closed its stdout, so that the shard is whole; it ignores SIGTERM."""
    monkeypatch.setattr(storage, "REAP_TIMEOUT", 0.2)
    with pytest.raises(PipeError, match="signal 9"):
        keys(f"pipe:trap '' TERM; cat {shard}; exec >&-; while true; do sleep 0.01; done")


def test_no_bash(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "which", lambda name: None)
    assert keys(f"pipe:cat {shard}") == ALL


@pytest.mark.usefixtures("no_leaks")
def test_a_command_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no processes left")

    monkeypatch.setattr(storage.subprocess, "Popen", refuse)
    with pytest.raises(OSError, match="no processes left"):
        open_source("pipe:true")


# http


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        pass  # clients that go away are what is tested


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    release = threading.Event()
    seen: dict[str, str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        Handler.seen = dict(self.headers)
        self.close_connection = True
        what = self.path.partition("?")[0].strip("/")
        if what.isdecimal():
            self.send_error(int(what))
        elif what.startswith("to/"):
            self.send_response(302)
            self.send_header("Location", "/" + what[3:])
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")  # or a client that is quick asks on this one
            self.end_headers()
        elif what == "no-http":
            self.wfile.write(b"what?\r\n\r\n")
        elif what == "hangs-at-once":
            Handler.release.wait(20)
        elif what.startswith("chunked"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(0, len(TAR), 3000):
                part = TAR[i : i + 3000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                if what == "chunked-cut" and i:
                    return
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_response(200)
            if what == "endless":
                self.send_header("Content-Length", "1000000000")
            elif what != "no-length":
                length = "many" if what == "bad-length" else str(len(TAR))
                self.send_header("Content-Length", length)
            self.end_headers()
            body = (
                TAR[:5000]
                if what in ("cut", "hangs")
                else TAR[:8000]
                if what == "endless"
                else TAR[:-1]
                if what == "one-short"
                else TAR
            )
            if what == "slow":
                for i in range(0, len(body), len(body) // 5):
                    self.wfile.write(body[i : i + len(body) // 5])
                    time.sleep(0.1)
            else:
                self.wfile.write(body)
            while what == "endless":  # until the client goes away
                self.wfile.write(bytes(1_000_000))
            if what == "hangs":
                Handler.release.wait(20)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Handler.release.clear()
    with Server(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        Handler.release.set()
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["a.tar", "a.tar?x=1&y=2", "chunked", "to/a.tar", "to/to/chunked", "slow"])
def test_http(server: str, path: str) -> None:
    assert keys(f"{server}/{path}") == ALL
    assert Handler.seen["User-Agent"] == "wdstools"
    samples = list(wdstools.stream(f"{server}/{path}"))
    assert samples[0]["__url__"] == f"{server}/{path}"
    assert "__local_path__" not in samples[0]


@pytest.mark.parametrize("path", ["no-length", "bad-length"])
def test_http_without_a_length(server: str, path: str) -> None:
    assert keys(f"{server}/{path}") == ALL


BROKEN_HTTP = {
    "404": NotFoundError,
    "410": NotFoundError,
    "500": UnreachableError,
    "403": AccessError,
    "to/404": NotFoundError,
    "cut": UnreachableError,
    "one-short": UnreachableError,
    "chunked-cut": UnreachableError,
    "hangs": UnreachableError,
    "hangs-at-once": UnreachableError,
    "no-http": StoreError,
}


@pytest.mark.parametrize("path", BROKEN_HTTP)
def test_broken_http(server: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_STORES", Stores(retries=Retries(idle=0.8, attempts=2, first=0.01)))
    got, error = take(wdstools.stream(f"{server}/{path}"))
    assert isinstance(error, BROKEN_HTTP[path])
    assert f"{server}/{path}" in str(error)
    assert [s["__key__"] for s in got] == ALL[: len(got)]


def test_http_of_a_closed_port() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}/a.tar"
    with pytest.raises(StoreError, match=r"127\.0\.0\.1.*refused"):
        open_source(url)


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:port/a", "http://127.0.0.1/a\nb", "http://[::1/a"])
def test_http_urls_that_are_none(url: str) -> None:
    with pytest.raises(WdsError):
        open_source(url)


@pytest.mark.usefixtures("no_leaks")
def test_http_stopped_early(server: str) -> None:
    samples = wdstools.stream(f"{server}/endless")
    assert next(samples)["__key__"] == "000"
    del samples


# compression


@compressions
def test_compressed(name: str, tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "a.tar"  # by its bytes, whatever its name
    path.write_bytes(COMPRESS[name](TAR))
    assert read(open_source(str(path))) == TAR
    assert keys(path) == ALL
    assert keys(f"pipe:cat {path}") == ALL
    samples = wdstools.stream(path)
    assert next(samples)["__local_path__"] == str(path)


@compressions
def test_several_streams(name: str) -> None:
    compress = COMPRESS[name]
    parts = [compress(TAR[i : i + 1500]) for i in range(0, len(TAR), 1500)] + [compress(b"")]
    assert read(open_object(io.BytesIO(b"".join(parts)))) == TAR
    rest = b"".join(parts[1:])
    for n in (1, 2, 3, 4, 5, 6, 7, 20):
        with pytest.raises(TruncatedError):
            read(open_object(io.BytesIO(parts[0] + rest[:n])))


@pytest.mark.parametrize("name", ["gz", "zst"])
@pytest.mark.parametrize("room", [1, 7, 100_000])
def test_many_small_streams(name: str, room: int) -> None:
    """Their ends fall everywhere: on the edges of what is read at once, and around them."""
    data = random.Random(8).randbytes(20_000) + bytes(20_000)
    packed = b"".join(COMPRESS[name](data[i : i + i % 23]) for i in range(0, len(data), 10))
    want = b"".join(data[i : i + i % 23] for i in range(0, len(data), 10))
    source = Decompressed(io.BufferedReader(io.BytesIO(packed)), "u", name)  # type: ignore[arg-type]
    buffer, out = bytearray(room), bytearray()
    while n := source.readinto(buffer):
        out += buffer[:n]
    assert out == want


@compressions
def test_cut_anywhere(name: str) -> None:
    data = COMPRESS[name](TAR)
    step = max(1, len(data) // 150)
    for n in [*range(40), *range(40, len(data) - 40, step), *range(len(data) - 40, len(data))]:
        got, error = take(wdstools.stream(io.BytesIO(data[:n])))
        assert isinstance(error, ShardError), n
        assert [s["__key__"] for s in got] == ALL[: len(got)], n


@compressions
def test_a_flipped_bit_is_never_a_wrong_sample(name: str) -> None:
    data = COMPRESS[name](TAR)
    true = [sorted(s.items()) for s in wdstools.stream(io.BytesIO(TAR))]
    true = [[(k, v) for k, v in s if not k.startswith("__url")] for s in true]
    for at in random.Random(5).sample(range(len(data)), 60):
        bad = bytearray(data)
        bad[at] ^= 4
        got = []
        error: Exception | None = None
        try:
            got.extend(wdstools.stream(io.BytesIO(bytes(bad))))
        except WdsError as e:
            error = e
        if error is None and name != "zst-unsized":  # which has no checksum
            whole = [[(k, v) for k, v in sorted(s.items()) if not k.startswith("__url")] for s in got]
            assert whole == true, f"bit at {at}: a header field that means nothing may differ, data may not"


@compressions
@pytest.mark.parametrize("garbage", [b"x", b"garbage" * 100, TAR, b"\0\0\0x", b"\x1f\x8b", b"BZh9garbage"])
def test_garbage_behind(name: str, garbage: bytes) -> None:
    with pytest.raises(ShardError):
        keys(io.BytesIO(COMPRESS[name](TAR) + garbage))


@pytest.mark.parametrize("name", ["gz", "xz"])
def test_zeros_between_and_behind(name: str) -> None:
    compress = COMPRESS[name]
    data = compress(TAR[:3000]) + bytes(8) + compress(TAR[3000:]) + bytes(70_000)
    assert read(open_object(io.BytesIO(data))) == TAR
    assert read(open_object(OneByte(data))) == TAR


def test_skippable_frames() -> None:
    skip = b"\x5a\x2a\x4d\x18" + (10).to_bytes(4, "little") + b"0123456789"
    compress = COMPRESS["zst"]
    data = compress(TAR[:3000]) + skip + compress(TAR[3000:]) + skip
    assert read(open_object(io.BytesIO(data))) == TAR
    with pytest.raises(TruncatedError):
        read(open_object(io.BytesIO(data[:-1])))


@compressions
def test_a_bomb_is_read_in_pieces(name: str) -> None:
    """What comes at once is bounded, whatever it expands to."""
    data = COMPRESS[name](bytes(40_000_000))
    with open_object(io.BytesIO(data)) as source:
        buffer = bytearray(100_000)
        total = 0
        assert not isinstance(source.handle, int)
        while n := source.handle.readinto(memoryview(buffer)):
            total += n
            held = len(source.handle._output)  # type: ignore[attr-defined]
            assert held <= 128 << 20
    assert total == 40_000_000


def test_zstd_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    """Python 3.14 has its own."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "a.tar.zst"
    path.write_bytes(COMPRESS["zst"](TAR))
    if sys.version_info >= (3, 14):
        assert keys(path) == ALL
    else:
        with pytest.raises(StoreError, match=r"a\.tar\.zst.*pip install wdstools\[zstd\]"):
            keys(path)
