"""The way of an answer into the socket: a head, pieces of memory, spans of files that the kernel copies itself.

A file that ends before its span does is never padded: the connection is closed, short of what its head promised.
"""

from __future__ import annotations

import abc
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from wdstools.serve.blobs import Handle
from wdstools.serve.disk import WINDOW, Disk

AT_ONCE = 1024 * 1024  # bytes to one connection before others have their turn


_NOTHING = Handle(-1)


class FileSpan(NamedTuple):
    """Bytes [start, end) of an open file."""

    handle: Handle
    start: int
    end: int


Piece: TypeAlias = bytes | memoryview | FileSpan


def _nothing() -> None:
    pass


def _ignore(reason: str) -> None:
    pass


def piece_nbytes(piece: Piece) -> int:
    return piece.end - piece.start if isinstance(piece, FileSpan) else len(piece)


class Sender(abc.ABC):
    """Sends pieces in their order. `done` is called when all are gone, but not by send() itself; `broken`, once, when
    they cannot be sent."""

    def __init__(self, disk: Disk, done: Callable[[], None], broken: Callable[[str], None]) -> None:
        self._pieces: deque[Piece] = deque()
        self._disk, self._done, self._broken = disk, done, broken
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._warm = FileSpan(_NOTHING, 0, 0)  # what is in memory
        self.sent = 0  # bytes
        self.moved = 0.0  # loop.time() at which the client last took something

    def send(self, pieces: list[Piece]) -> bool:
        """True: all of it is gone. False: done() will be called."""
        self._pieces.extend(pieces)
        self.moved = self._loop.time()
        return self._push()

    @property
    def waiting(self) -> bool:
        """Whether something is not gone yet."""
        return bool(self._pieces)

    @abc.abstractmethod
    def shut(self) -> None:
        """Send no more after what was sent. OSError: the other side is gone."""

    def close(self) -> None:
        self._closed = True
        self._pieces.clear()
        self._done, self._broken = _nothing, _ignore  # no circle with the connection

    @abc.abstractmethod
    def _push(self) -> bool:
        """Send what goes without waiting; arrange to be called again for the rest."""

    def _again(self) -> None:
        if not self._closed and self._push():
            self._done()

    def _fail(self, reason: str) -> bool:
        if not self._closed:
            broken = self._broken
            self.close()
            broken(reason)
        return False

    def _wait_for_disk(self, span: FileSpan) -> bool:
        """Whether the span is not in memory: then it is brought in, up to WINDOW of it."""
        warm = self._warm
        if warm.handle is span.handle and warm.start <= span.start < warm.end:
            return False
        end = min(span.end, span.start + WINDOW)
        pending = self._disk.reading(span.handle, span.start, end)
        self._warm = FileSpan(span.handle, span.start, end)
        if pending is None:
            return False
        pending.add_done_callback(lambda done: self._arrived(done))
        return True

    def _arrived(self, done: asyncio.Future[None]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._fail(f"the disk: {'stopped' if done.cancelled() else done.exception()}")
        else:
            self.moved = self._loop.time()
            self._again()


class SocketSender(Sender):
    """Straight into the socket of a transport, which itself never has anything to write."""

    def __init__(self, fd: int, disk: Disk, done: Callable[[], None], broken: Callable[[str], None]) -> None:
        super().__init__(disk, done, broken)
        # A duplicate: libuv may close its own while we are about to send, and then it is another connection's. It is
        # also what add_writer takes, which refuses the descriptor of a transport.
        self._fd = os.dup(fd)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=self._fd)
        self._waits = False

    def close(self) -> None:
        if self._closed:
            return
        super().close()
        if self._waits:
            self._loop.remove_writer(self._fd)
        self._socket.close()

    def shut(self) -> None:
        """Send no more: the other side sees the end, and may still talk."""
        if not self._closed:
            self._socket.shutdown(socket.SHUT_WR)

    def _push(self) -> bool:
        pieces, fd, room = self._pieces, self._fd, AT_ONCE
        try:
            while pieces:
                piece = pieces[0]
                if isinstance(piece, FileSpan):
                    handle, start, end = piece
                    if self._wait_for_disk(piece):
                        return False
                    most = min(end - start, room, self._warm.end - start)
                    count = os.sendfile(fd, handle.fd, start, most)
                    if not count:
                        return self._fail("a file was cut short while it was sent")
                    if start + count == end:
                        pieces.popleft()
                    else:
                        pieces[0] = FileSpan(handle, start + count, end)
                else:
                    count = self._socket.send(piece)
                    if count == len(piece):
                        pieces.popleft()
                    else:
                        pieces[0] = memoryview(piece)[count:]
                self.sent += count
                room -= count
                if room <= 0 and pieces:
                    self.moved = self._loop.time()
                    self._loop.call_soon(self._again)
                    return False
        except BlockingIOError:
            if room < AT_ONCE:
                self.moved = self._loop.time()
            self._waits = True
            self._loop.add_writer(fd, self._writable)
            return False
        except OSError as error:
            return self._fail(error.strerror or str(error))
        return True

    def _writable(self) -> None:
        if self._closed:
            return
        self.moved = self._loop.time()
        self._waits = False
        self._loop.remove_writer(self._fd)
        self._again()


class TransportSender(Sender):
    """Through a transport that changes the bytes on their way: TLS."""

    CHUNK = 256 * 1024

    def __init__(
        self, transport: asyncio.Transport, disk: Disk, done: Callable[[], None], broken: Callable[[str], None]
    ) -> None:
        super().__init__(disk, done, broken)
        self._transport = transport
        self.paused = False

    def shut(self) -> None:
        self._transport.close()

    def resume(self) -> None:
        """The transport takes more."""
        self.paused = False
        self.moved = self._loop.time()
        if self._pieces:
            self._again()

    def _push(self) -> bool:
        pieces, room = self._pieces, AT_ONCE
        while pieces and not self.paused:
            piece = pieces.popleft()
            if isinstance(piece, FileSpan):
                handle, start, end = piece
                if self._wait_for_disk(piece):
                    pieces.appendleft(piece)
                    return False
                data: bytes | memoryview = os.pread(
                    handle.fd, min(end - start, self.CHUNK, self._warm.end - start), start
                )
                if not data:
                    return self._fail("a file was cut short while it was sent")
                if start + len(data) < end:
                    pieces.appendleft(FileSpan(handle, start + len(data), end))
            else:
                data = piece
            self._transport.write(data)
            self.sent += len(data)
            room -= len(data)
            if room <= 0 and pieces and not self.paused:
                self._loop.call_soon(self._again)
                return False
        return not pieces
