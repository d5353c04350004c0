"""Where shards lie: opening a URL for reading from its start, whatever its scheme and compression.

A Source is what the C core reads: a file descriptor where there is one (it prefetches from it in a thread of its own),
else an object with `readinto`. Closing it tells whether everything that was to come has come.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any, cast

from wdstools import _core, urls
from wdstools.compression import MAGIC_BYTES, Decompressed, kind
from wdstools.errors import NotFoundError, PipeError, ShardError, StoreError, UrlError
from wdstools.store import Stat, Stores

REAP_TIMEOUT = 5.0  # seconds that a command gets to end by itself, then to heed SIGTERM
PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for on Linux
_STORES = Stores()  # of whoever gives no options
STDERR_TAIL = 2000  # characters of a failed command's stderr in the error


class Source:
    """An opened shard. `handle`: a descriptor or an object with readinto; `head`: bytes read from it already;
    `local_path`: of a local file, else None. Use it as a context: leaving it closes, and raises what went wrong."""

    def __init__(self, url: str, handle: _core.Source, head: bytes = b"", local_path: str | None = None) -> None:
        self.url, self.handle, self.head, self.local_path = url, handle, head, local_path
        self._exits = contextlib.ExitStack()
        self.version: Callable[[], Stat | None] = lambda: None  # what the store of a remote one tells of it

    def on_close(self, call: Callable[[BaseException | None], None]) -> None:
        """Call this with the exception, or None, at the end."""
        self._exits.push(lambda _type, error, _trace: call(error))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._exits.__exit__(kind, error, trace)


class Whole:
    """A source from its start: what was read to look at it, then the rest."""

    def __init__(self, source: Source) -> None:
        rest = source.handle
        self._head = source.head
        self._rest: Any = open(rest, "rb", buffering=0, closefd=False) if isinstance(rest, int) else rest

    def readinto(self, buffer: memoryview) -> int:
        if not self._head:
            return int(self._rest.readinto(buffer) or 0)
        n = min(len(buffer), len(self._head))
        buffer[:n], self._head = self._head[:n], self._head[n:]
        return n


def open_source(url: str, stores: Stores | None = None, *, raw: bool = False) -> Source:
    """Open a URL for one pass from its start: a path, file:, pipe:, `-` (stdin), http(s):, s3:, gs:, az:, or whatever
    fsspec opens.

    gzip, zstd, bzip2 and xz are recognised by their first bytes and decompressed, unless `raw`. `stores`: with options
    for what is remote. Raises NotFoundError, StoreError, UrlError; PipeError comes when the source is closed.
    """
    scheme = urls.scheme(url)
    if url == "-":
        source = _open_stdin()
    elif scheme == "file":
        source = _open_file(url)
    elif scheme == "pipe":
        source = _open_pipe(url)
    else:
        source = _open_remote(url, stores or _STORES)
    try:
        return source if raw else _decompressed(source)
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
    except ValueError as error:  # NUL, or text that the file system cannot encode
        raise UrlError(f"{url!r}: no name of a file: {error}") from error


def _translate(error: OSError, url: str) -> StoreError:
    kind = NotFoundError if error.errno in (errno.ENOENT, errno.ENOTDIR) else StoreError
    return kind(error.errno, error.strerror or str(error), url)


def _open_stdin() -> Source:
    fd = 0 if sys.stdin is None else sys.stdin.fileno()
    if stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR):
        # the core reads regular files from their start; somebody has read the beginning of this one
        return Source("-", _Body(open(fd, "rb", buffering=0, closefd=False)))
    return Source("-", fd)


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
    if "\0" in command:
        raise UrlError(f"{url!r}: a command cannot contain NUL")
    talk = tempfile.TemporaryFile()
    try:
        # A group of its own, so that all parts of a command can be stopped.
        process = subprocess.Popen(
            [*shell(), command], stdout=subprocess.PIPE, stderr=talk, stdin=subprocess.DEVNULL, process_group=0
        )
    except BaseException:
        talk.close()
        raise
    output = cast(IO[bytes], process.stdout)
    with contextlib.suppress(OSError):  # a wider pipe is only faster
        import fcntl

        fcntl.fcntl(output.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    source = Source(url, output.fileno())

    def close(error: BaseException | None) -> None:
        output.close()  # a command that goes on writing gets SIGPIPE
        with talk:
            status = _reap(process, error is None or isinstance(error, Exception))
            talk.seek(max(0, talk.seek(0, os.SEEK_END) - STDERR_TAIL))
            said = talk.read().decode("utf-8", "replace").strip()
        # SIGPIPE: its reader, we or a later part of the command, wanted no more.
        failed = status not in (0, -signal.SIGPIPE, 128 + signal.SIGPIPE)
        if failed and (error is None or isinstance(error, ShardError)):
            how = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise PipeError(f"{url}: the command failed with {how}{': ' + said if said else ''}") from error

    source.on_close(close)
    return source


def shell() -> list[str]:
    """What runs a command line, which comes last: in bash `a | b` fails where a does."""
    return ["bash", "-o", "pipefail", "-c"] if shutil.which("bash") else ["sh", "-c"]


def _reap(process: subprocess.Popen[bytes], patient: bool) -> int:
    """Wait for a command whose output nobody reads any more; it gets five seconds, then SIGTERM, then SIGKILL.

    Not patient: SIGTERM comes at once, where somebody stopped in the middle and waits.
    """
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            return process.wait(REAP_TIMEOUT if patient or stop == signal.SIGKILL else 0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, stop)
    return process.wait()


class _Body(io.RawIOBase):
    """readinto over an object that has readinto or only read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._direct = hasattr(file, "readinto")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._direct:
            n = self._file.readinto(buffer) or 0
        else:
            data = self._file.read(len(buffer))
            if isinstance(data, str):
                raise TypeError(f"{self._file!r} is open for text: open it in binary mode")
            n = len(data)
            buffer[:n] = data
        return n


def _open_remote(url: str, stores: Stores) -> Source:
    store, path = stores.of(url)
    store.forget(path)  # what is there now is the shard; one that changes while it streams is an error
    body = store.open(path)
    source = Source(url, cast("_core.Readable", body))
    source.version = lambda: store.pinned(path)
    source.on_close(lambda _: body.close())
    return source


def _decompressed(source: Source) -> Source:
    """Look at the first bytes, and put a decompressor over the source where they ask for one."""
    raw: Any = None
    if not isinstance(source.handle, int):
        raw = source.handle
    elif source.local_path is None or not os.path.isfile(source.local_path):
        raw = open(source.handle, "rb", buffering=0, closefd=False)
    head = os.pread(cast(int, source.handle), MAGIC_BYTES, 0) if raw is None else _read_head(raw)
    if name := kind(head):
        rest = open(cast(int, source.handle), "rb", buffering=0, closefd=False) if raw is None else raw
        chained = io.BufferedReader(_Chained(b"" if raw is None else head, rest), _core.BLOCK_BYTES // 4)
        source.handle = Decompressed(chained, source.url, name)
    elif raw is not None:
        source.head = head
    return source


def _read_head(raw: Any) -> bytes:
    head = bytearray(MAGIC_BYTES)
    have = 0
    while have < MAGIC_BYTES and (n := raw.readinto(memoryview(head)[have:])):
        have += n
    return bytes(head[:have])


class _Chained(io.RawIOBase):
    """Bytes that were read already, then the rest of the file."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._head:
            return self._rest.readinto(buffer) or 0
        n = min(len(buffer), len(self._head))
        buffer[:n], self._head = self._head[:n], self._head[n:]
        return n
