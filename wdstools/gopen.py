"""Openers for webdataset's gopen: streams that tell the truth about what went wrong. `compat.register` puts them in.

Variables of the environment, read at every open: GOPEN_BUFFER, bytes that are read at a time (and, for commands, the
width of the pipe as far as the system allows); GOPEN_TIMEOUT, seconds without a byte after which a read is an error
(remote: 30 by default; commands: none by default, because a slow one may be at work; 0: never); GOPEN_VERBOSE, a line
on stderr for every stream that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import IO, Any, BinaryIO, cast

from wdstools import urls
from wdstools.errors import NotFoundError, PipeError, StoreError
from wdstools.passing import reader
from wdstools.pipes import quote
from wdstools.storage import STDERR_TAIL, Source, open_source, shell
from wdstools.store import Retries, Stores

BUFFER = 1 << 18  # bytes that are read at a time where GOPEN_BUFFER says nothing
DRAIN = 1 << 20  # bytes behind what was read that are looked at for the end, and the exit status, in a close
DRAIN_SECONDS = 1.0
IDLE = 30.0  # seconds without a byte from a remote store
NEVER = 7 * 86400.0

_stores: dict[float, Stores] = {}  # by time-out


class Reader(io.BufferedReader):
    """A stream that was opened for reading. At the end of the data, and in close(), it raises what went wrong:
    PipeError with the stderr of a command, StoreError. A close before the end is no error."""

    def __init__(self, raw: _Raw, nbytes: int) -> None:
        super().__init__(raw, nbytes)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nobody is there to hear it
            cast(_Raw, self.raw).drop()


def open_stream(url: str, mode: str = "rb", bufsize: int = 8192) -> BinaryIO:
    """The opener of http, https, s3, gs and az. Writing: http by PUT, through curl; others as an object that appears
    whole when it is closed, for which it is held in a file, and then in memory."""
    _check(mode)
    if mode[0] == "w":
        if urls.scheme(url) in ("http", "https"):
            return CommandWriter(url, f"curl -sSfL --globoff -X PUT -T - --url {quote(url)}")
        return Upload(url)
    buffer, idle = _buffer(), _number("GOPEN_TIMEOUT", IDLE) or NEVER
    if idle not in _stores:
        _stores[idle] = Stores(retries=Retries(idle=idle))
    return Reader(_Raw(open_source(url, _stores[idle], raw=True), None), buffer)


def open_pipe(url: str, mode: str = "rb", bufsize: int = 8192) -> BinaryIO:
    """The opener of pipe: commands run in bash with pipefail where there is one, and in sh."""
    _check(mode)
    if mode[0] == "w":
        return CommandWriter(url, url[len("pipe:") :])
    buffer, idle = _buffer(), _number("GOPEN_TIMEOUT", 0.0) or None
    source = open_source(url, raw=True)
    _widen(int(cast(int, source.handle)), buffer)
    return Reader(_Raw(source, idle), buffer)


def open_file(path: str, mode: str = "rb", buffering: int = -1) -> IO[Any]:
    """What stands in for `open` in webdataset's gopen module, which reads GOPEN_BUFFER and gives it as `buffering`."""
    try:
        file = open(path, mode, buffering=buffering if buffering > 1 else -1)
    except FileNotFoundError as error:
        raise NotFoundError(error.errno, error.strerror, path) from error
    except OSError as error:
        raise StoreError(error.errno, error.strerror, path) from error
    if "r" in mode:
        with contextlib.suppress(OSError):  # a FIFO
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return file


def _check(mode: str) -> None:
    if mode not in ("rb", "wb"):
        raise ValueError(f"{mode}: unknown mode")


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        found = float(text) if text else default
    except ValueError:
        found = -1
    if not 0 <= found < float("inf"):
        raise ValueError(f"{name}={text}: not a number from 0 up")
    return found


def _buffer() -> int:
    """Bytes to read at a time; webdataset's own default of 8192 is not worth a system call."""
    return int(_number("GOPEN_BUFFER", 0)) or BUFFER


def _widen(fd: int, nbytes: int) -> None:
    with contextlib.suppress(OSError), open("/proc/sys/fs/pipe-max-size") as file:
        most = int(file.read())
        if nbytes > fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, min(nbytes, most))


def _tell(url: str, nbytes: int, began: float, error: BaseException | None) -> None:
    if _number("GOPEN_VERBOSE", 0):
        seconds = max(time.monotonic() - began, 1e-6)
        end = f"failed: {error}" if error else "done"
        rate = f"{nbytes} bytes in {seconds:.3f} s, {nbytes / seconds / 1e6:.1f} MB/s"
        sys.stderr.write(f"GOPEN {url}: {rate}, {end}\n")


class _Raw(io.RawIOBase):
    """readinto over a source, which ends where its data do."""

    def __init__(self, source: Source, idle: float | None) -> None:
        self._source: Source | None = source
        self._url, self._nbytes, self._began = source.url, 0, time.monotonic()
        self._reader = reader(source, idle)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._source is None:
            return 0
        try:
            n = int(self._reader.readinto(buffer) or 0)
        except BaseException as error:
            self._end(error)
            raise
        self._nbytes += n
        if not n:
            self._end(None)
        return n

    def close(self) -> None:
        """What is left, if it is little, is read, to come to the end: only there does a command tell its exit status.
        One that has more is stopped, and has not failed."""
        if self.closed:
            return
        try:
            if self._source is not None and isinstance(self._source.handle, int):
                self._drain(self._source.handle)
        finally:
            self.drop()
            super().close()

    def drop(self) -> None:
        """Close, whatever is left."""
        self._end(GeneratorExit())

    def _drain(self, fd: int) -> None:
        waiting, end = reader(Source(self._url, fd), DRAIN_SECONDS), self._nbytes + DRAIN
        rest = memoryview(bytearray(1 << 16))
        while self._source is not None and self._nbytes < end:
            try:
                n = waiting.readinto(rest)
            except StoreError:  # it is at work
                return
            self._nbytes += n
            if not n:
                self._end(None)

    def _end(self, error: BaseException | None) -> None:
        source, self._source = self._source, None
        if source is None:
            return
        try:
            source.__exit__(type(error) if error else None, error, None)
        except BaseException as failed:
            error = failed
            raise
        finally:
            _tell(self._url, self._nbytes, self._began, None if isinstance(error, GeneratorExit) else error)


class _Writer(io.BufferedWriter):
    """A stream that is open for writing. What is not closed, or left by an exception, has not been written."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.abort()

    def abort(self) -> None:
        """End it, and leave nothing behind that looks whole."""
        raise NotImplementedError


class _Command(io.RawIOBase):
    """The stdin of a command, and its end. The descriptor is a number: no collector can close it before abort()."""

    def __init__(self, url: str, command: str) -> None:
        self._url, self._began, self._owner, self._nbytes = url, time.monotonic(), os.getpid(), 0
        self._talk: IO[bytes] | None = tempfile.TemporaryFile()
        read, self.fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen([*shell(), command], stdin=read, stderr=self._talk, process_group=0)
        except BaseException:
            os.close(self.fd)
            self._talk.close()
            raise
        finally:
            os.close(read)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            n = os.write(self.fd, data)
        except BrokenPipeError as error:
            self.finish(error)
            raise
        self._nbytes += n
        return n

    def finish(self, broken: BaseException | None = None) -> None:
        """Wait for the end of the command. PipeError: it failed, or did not want everything."""
        talk, self._talk = self._talk, None
        if talk is None:
            return
        os.close(self.fd)
        with talk:
            status = self._process.wait()
            talk.seek(max(0, talk.seek(0, os.SEEK_END) - STDERR_TAIL))
            said = talk.read().decode("utf-8", "replace").strip()
        error: PipeError | None = None
        if status or broken:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            left = "" if status else ", before it had read everything"
            error = PipeError(f"{self._url}: the command ended with {how}{left}{': ' + said if said else ''}")
        _tell(self._url, self._nbytes, self._began, error)
        if error:
            raise error from broken

    def abort(self) -> None:
        """Kill the command before it sees an end; a forked child has no say in this."""
        if self._talk is None or self._owner != os.getpid():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self.fd)
        self._talk.close()
        self._talk = None


class CommandWriter(_Writer):
    """The stdin of a command. close() waits for it and raises PipeError where it failed; abort() kills it first."""

    def __init__(self, url: str, command: str) -> None:
        nbytes = _buffer()
        self._command = _Command(url, command)
        super().__init__(self._command, nbytes)
        _widen(self._command.fd, nbytes)

    def close(self) -> None:
        broken: OSError | None = None
        try:
            super().close()
        except BrokenPipeError as error:
            broken = error
        self._command.finish(broken)

    def abort(self) -> None:
        self._command.abort()


class Upload(_Writer):
    """An object of a store, which is written, whole, by close()."""

    def __init__(self, url: str) -> None:
        self._store, self._path = Stores().of(url)
        self._url, self._began = url, time.monotonic()
        self._file = tempfile.TemporaryFile(buffering=0)
        super().__init__(self._file, _buffer())

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            nbytes = os.fstat(self._file.fileno()).st_size
            if nbytes:
                with mmap.mmap(self._file.fileno(), nbytes) as data, memoryview(data) as view:
                    self._store.put(self._path, view)
            else:
                self._store.put(self._path, b"")
            _tell(self._url, nbytes, self._began, None)
        finally:
            super().close()

    def abort(self) -> None:
        if not self.closed:
            self._file.close()
