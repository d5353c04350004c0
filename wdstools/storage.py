"""Where shards lie: opening a URL for reading from its start, whatever its scheme and compression.

A Source is what the C core reads: a file descriptor where there is one (it prefetches from it in a thread of its own),
else an object with `readinto`. Closing it tells whether everything that was to come has come.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import http.client
import io
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from wdstools import _core, urls
from wdstools.errors import NotFoundError, PipeError, ShardError, StoreError, TruncatedError, UrlError

IDLE_TIMEOUT = 30.0  # seconds without a byte from a server
PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for on Linux
STDERR_TAIL = 2000  # characters of a failed command's stderr in the error

_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
_MAGIC_BYTES = 6


class Source:
    """An opened shard. `handle`: a descriptor or an object with readinto; `head`: bytes read from it already;
    `local_path`: of a local file, else None. Use it as a context: leaving it closes, and raises what went wrong."""

    def __init__(self, url: str, handle: _core.Source, head: bytes = b"", local_path: str | None = None) -> None:
        self.url, self.handle, self.head, self.local_path = url, handle, head, local_path
        self._exits = contextlib.ExitStack()

    def on_close(self, call: Callable[[BaseException | None], None]) -> None:
        """Call this with the exception, or None, at the end."""
        self._exits.push(lambda _type, error, _trace: call(error))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._exits.__exit__(kind, error, trace)


def open_source(url: str) -> Source:
    """Open a URL for one pass from its start: a path, file:, pipe:, http(s):, or `-` (stdin).

    gzip, zstd, bzip2 and xz are recognised by their first bytes and decompressed.
    Raises NotFoundError, StoreError, UrlError; PipeError comes when the source is closed.
    """
    scheme = urls.scheme(url)
    if url == "-":
        source = Source(url, sys.stdin.fileno())
    elif scheme == "file":
        source = _open_file(url)
    elif scheme == "pipe":
        source = _open_pipe(url)
    elif scheme in ("http", "https"):
        source = _open_http(url)
    else:
        raise UrlError(f"{url}: cannot open {scheme}: URLs; files, http(s): and pipe: are read")
    try:
        return _decompressed(source)
    except BaseException as error:
        source.__exit__(type(error), error, None)
        raise


def open_object(file: Any, url: str | None = None, local_path: str | None = None) -> Source:
    """Wrap an open binary file: anything with readinto or read. It stays open. `url`: what to call it."""
    name = url or getattr(file, "name", None)
    name = name if isinstance(name, str) else f"<{type(file).__name__}>"
    fd = _plain_descriptor(file) if local_path else None
    return _decompressed(Source(name, _Body(file) if fd is None else fd, local_path=local_path))


def _plain_descriptor(file: Any) -> int | None:
    """The descriptor of a buffered regular file that has not been read from: the core reads it faster."""
    if not isinstance(file, io.BufferedReader) or not isinstance(file.raw, io.FileIO):
        return None
    return file.fileno() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.tell() == 0 else None


def open_local(url: str) -> tuple[int, str]:
    """Open a local shard for reading anywhere in it. Returns (descriptor, path); raises as open_source does."""
    path = urls.local_path(url)
    if path is None:
        raise UrlError(f"{url}: random access needs a local file")
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
    except OSError as error:
        raise _translate(error, url) from error


def _translate(error: OSError, url: str) -> StoreError:
    kind = NotFoundError if error.errno in (errno.ENOENT, errno.ENOTDIR) else StoreError
    return kind(error.errno, error.strerror or str(error), url)


def _open_file(url: str) -> Source:
    fd, path = open_local(url)
    source = Source(url, fd, local_path=path)
    source.on_close(lambda _: os.close(fd))
    if os.path.isdir(path):
        error = StoreError(errno.EISDIR, "is a folder, not a shard", url)
        source.__exit__(type(error), error, None)
        raise error
    return source


def _open_pipe(url: str) -> Source:
    command = url[len("pipe:") :]
    talk = tempfile.TemporaryFile()
    shell = ["bash", "-o", "pipefail", "-c"] if shutil.which("bash") else ["sh", "-c"]  # `a | b` fails where a does
    process = subprocess.Popen([*shell, command], stdout=subprocess.PIPE, stderr=talk, stdin=subprocess.DEVNULL)
    output = cast(IO[bytes], process.stdout)
    with contextlib.suppress(OSError):  # a wider pipe is only faster
        import fcntl

        fcntl.fcntl(output.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    source = Source(url, output.fileno())

    def close(error: BaseException | None) -> None:
        output.close()  # a command that goes on writing gets SIGPIPE
        with talk:
            status = _reap(process)
            talk.seek(max(0, talk.seek(0, os.SEEK_END) - STDERR_TAIL))
            said = talk.read().decode("utf-8", "replace").strip()
        # SIGPIPE is our own doing where we stopped early.
        if status and (error is None or (isinstance(error, ShardError) and status not in (-13, 128 + 13))):
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise PipeError(f"{url}: the command failed with {how}{': ' + said if said else ''}") from error

    source.on_close(close)
    return source


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for a command whose output nobody reads any more; it gets five seconds, then SIGTERM, then SIGKILL."""
    for stop in (process.terminate, process.kill):
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            stop()
    return process.wait()


class _Body(io.RawIOBase):
    """readinto over an object that has readinto or only read, and a body that must be as long as was announced."""

    def __init__(self, file: Any, url: str = "", nbytes: int | None = None) -> None:
        self._file, self._url, self._left = file, url, nbytes
        self._direct = hasattr(file, "readinto")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._direct:
            n = self._file.readinto(buffer) or 0
        else:
            data = self._file.read(len(buffer))
            n = len(data)
            buffer[:n] = data
        if self._left is not None:
            self._left -= n
            if not n and self._left > 0:
                raise StoreError(f"{self._url}: the server closed {self._left} bytes before the end of the body")
        return n


class _HttpBody(_Body):
    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except StoreError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise StoreError(f"{self._url}: {error or type(error).__name__}") from error


def _open_http(url: str) -> Source:
    request = urllib.request.Request(url, headers={"User-Agent": "wdstools", "Accept-Encoding": "identity"})
    try:
        response = urllib.request.urlopen(request, timeout=IDLE_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            kind = NotFoundError if error.code in (404, 410) else StoreError
            raise kind(f"{url}: HTTP {error.code} {error.reason}") from error
    except OSError as error:
        raise StoreError(f"{url}: {error}") from error
    length = response.headers.get("Content-Length")
    source = Source(url, _HttpBody(response, url, int(length) if length else None))
    source.on_close(lambda _: response.close())
    return source


def _decompressed(source: Source) -> Source:
    """Look at the first bytes, and put a decompressor over the source where they ask for one."""
    if isinstance(source.handle, int):
        regular = source.local_path is not None and os.path.isfile(source.local_path)
        head = os.pread(source.handle, _MAGIC_BYTES, 0) if regular else _read_head(source.handle)
        raw: Any = None
        if not regular:
            source.head = head
    else:
        raw = io.BufferedReader(cast(io.RawIOBase, source.handle), _core.BLOCK_BYTES // 4)
        head = raw.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
        source.handle = raw
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        return source
    if raw is None:
        fd = cast(int, source.handle)
        raw = io.BufferedReader(_Chained(source.head, open(fd, "rb", buffering=0, closefd=False)))
    source.handle, source.head = _Translated(_decompressor(kind)(raw), source.url, kind), b""
    return source


def _read_head(fd: int) -> bytes:
    head = b""
    while len(head) < _MAGIC_BYTES and (more := os.read(fd, _MAGIC_BYTES - len(head))):
        head += more
    return head


class _Chained(io.RawIOBase):
    """Bytes that were read already, then the rest of the file."""

    def __init__(self, head: bytes, rest: io.FileIO) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._rest.readinto(buffer) or 0
        n = min(len(buffer), len(self._head))
        buffer[:n], self._head = self._head[:n], self._head[n:]
        return n


def _decompressor(kind: str) -> Callable[[Any], Any]:
    if kind == "gz":
        return lambda raw: gzip.GzipFile(fileobj=raw, mode="rb")
    if kind == "bz2":
        return lambda raw: bz2.BZ2File(raw)
    if kind == "xz":
        return lambda raw: lzma.LZMAFile(raw)
    return _open_zstd


def _open_zstd(raw: Any) -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14

        return zstd.ZstdFile(raw)
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError as error:
        raise StoreError("a zstd shard needs Python 3.14 or `pip install wdstools[zstd]`") from error
    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)


class _Translated:
    """readinto over a decompressor, whose complaints become errors of the shard."""

    def __init__(self, file: Any, url: str, kind: str) -> None:
        self._file, self._url, self._kind = file, url, kind

    def readinto(self, buffer: memoryview) -> int:
        with _complaints(self._url, self._kind):
            return int(self._file.readinto(buffer) or 0)


@contextlib.contextmanager
def _complaints(url: str, kind: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except EOFError as error:
        raise TruncatedError(f"truncated {kind} stream", url) from error
    except (OSError, zlib.error, lzma.LZMAError) as error:
        raise ShardError(f"broken {kind} stream ({error})", url) from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise ShardError(f"broken {kind} stream ({error})", url) from error
