"""One connection: requests in, answers out in the same order, time-outs, an end in good order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol, cast

from wdstools.ranges import Buffer
from wdstools.serve.app import App
from wdstools.serve.disk import Disk
from wdstools.serve.metrics import Metrics
from wdstools.serve.request import Parser, Refused, Request
from wdstools.serve.response import STATUS_LINES, Response, Streamed, full
from wdstools.serve.sending import Piece, Sender, SocketSender, TransportSender, piece_nbytes
from wdstools.serve.settings import Settings

BUFFERED = 256 * 1024  # bytes of requests that wait for their turn before the client is made to wait
LINGER = 2.0  # seconds in which a client that was refused may read why


class Host(Protocol):
    """What all connections of a process share: wdstools.serve.server.Server. `common`: header lines of all answers."""

    loop: asyncio.AbstractEventLoop
    settings: Settings
    metrics: Metrics
    app: App
    disk: Disk
    common: bytes
    stopping: bool

    def enter(self, connection: Connection) -> None: ...
    def leave(self, connection: Connection) -> None: ...
    def note(self, request: Request, status: int, nbytes: int, seconds: float, whole: bool) -> None: ...
    def log_error(self, request: Request, error: Exception) -> None: ...


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Host) -> None:
        self._server, self._parser = server, Parser()
        self._busy = self._closing = self._ended = self._full = False
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._status, self._began, self._before = 0, 0.0, 0
        self._patience = 0.0
        self._wake: asyncio.Future[None] | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        server = self._server
        self._secure = transport.get_extra_info("sslcontext") is not None
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if peer else ""
        self._sender: Sender
        if self._secure:
            self._sender = TransportSender(self._transport, server.disk, self._sent, self._broken)
        else:
            fd = transport.get_extra_info("socket").fileno()
            self._sender = SocketSender(fd, server.disk, self._sent, self._broken)
        self._since = server.loop.time()  # when it became idle, or its request began
        server.enter(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        parser = self._parser
        if not self._busy and not parser.amid:
            self._since = self._server.loop.time()
        parser.feed(data)
        if not self._busy:
            self._run()
        elif parser.buffered > BUFFERED and not self._full:
            self._full = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        if not self._busy:
            self.close()
        return not self._secure  # what was asked for is still answered

    def pause_writing(self) -> None:
        if isinstance(self._sender, TransportSender):
            self._sender.paused = True

    def resume_writing(self) -> None:
        if isinstance(self._sender, TransportSender):
            self._sender.resume()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self._sender.close()
        if self._task is not None:
            self._task.cancel()
            self._task = None  # what is held in a circle stays in memory for long
        if self._request is not None:
            self._log(False)
        self._server.leave(self)

    # requests and answers

    def _run(self) -> None:
        """Answer what has come, until an answer takes its time."""
        server = self._server
        while not self._busy and not self._closing:
            try:
                request = self._parser.next()
            except Refused as refused:
                self._refuse(refused.status, refused.reason)
                return
            if request is None:
                if self._ended:
                    self.close()
                elif self._parser.asks_to_go_on:
                    self._sender.send([b"HTTP/1.1 100 Continue\r\n\r\n"])
                return
            self._began = server.loop.time()
            self._request, self._busy = request, True
            request.peer, request.secure = self._peer, self._secure
            self._before = self._sender.sent
            answer = server.app.handle(request)
            if isinstance(answer, Response):
                self._answer(request, answer)
            else:
                self._task = server.loop.create_task(self._answer_later(request, answer))

    def _answer(self, request: Request, response: Response) -> None:
        """Send an answer whose body is at hand."""
        if not isinstance(response.body, bytes | list):
            self._task = self._server.loop.create_task(self._stream(request, response, response.body))
            return
        head = self._head(request, response, b"Content-Length: %d\r\n" % (response.length or 0))
        pieces: list[Piece]
        if request.method == "HEAD" or not response.length:
            pieces = [head]
        elif isinstance(response.body, bytes):
            pieces = [head + response.body]
        else:
            pieces = [head, *response.body]
        if self._sender.send(pieces):
            self._finish()

    def _head(self, request: Request, response: Response, length: bytes) -> bytes:
        server = self._server
        self._status, self._patience = response.status, response.patience
        keep = request.keep_alive and not response.close and not server.stopping
        if not keep:
            request.keep_alive = False
            connection = b"Connection: close\r\n"
        else:
            connection = b"Connection: keep-alive\r\n" if request.http10 else b""
        return b"".join((STATUS_LINES[response.status], server.common, length, connection, response.headers, b"\r\n"))

    async def _answer_later(self, request: Request, answer: Coroutine[Any, Any, Response]) -> None:
        response = await answer
        if isinstance(response.body, bytes | list):
            self._task = None
            self._answer(request, response)
            if not self._busy:
                self._run()
        else:
            await self._stream(request, response, response.body)

    async def _stream(self, request: Request, response: Response, body: Streamed) -> None:
        chunked = response.length is None and not request.http10
        if response.length is None and request.http10:
            request.keep_alive = False
        length = b"Transfer-Encoding: chunked\r\n" if chunked else b""
        length = f"Content-Length: {response.length}\r\n".encode() if response.length is not None else length
        await self._write([self._head(request, response, length)])
        left = response.length
        try:
            async for data in body if request.method != "HEAD" else _nothing():
                pieces: list[Piece] = data if isinstance(data, list) else [data]
                nbytes = sum(map(piece_nbytes, pieces))
                if left is not None:
                    left -= nbytes
                    if left < 0:
                        raise ValueError("a body that is longer than was promised")
                if nbytes:
                    await self._write([b"%x\r\n" % nbytes, *pieces, b"\r\n"] if chunked else pieces)
            if left and request.method != "HEAD":
                raise ValueError("a body that is shorter than was promised")
            if chunked and request.method != "HEAD":
                await self._write([b"0\r\n\r\n"])
        except Exception as error:  # noqa: BLE001 - whatever it was, the client must not wait for the rest
            self._server.log_error(request, error)
            self._broken(str(error))
            return
        finally:
            close = getattr(body, "aclose", None)
            if close is not None:
                await close()
        self._task = None
        self._finish()
        self._run()

    async def _write(self, pieces: list[Piece]) -> None:
        if not self._sender.send(pieces):
            self._wake = self._server.loop.create_future()
            await self._wake

    def _sent(self) -> None:
        """All pieces are gone, later than at once."""
        if self._wake is not None:
            wake, self._wake = self._wake, None
            if not wake.done():
                wake.set_result(None)
            return
        self._finish()
        self._run()

    def _finish(self) -> None:
        request = self._request
        self._busy = False
        self._since = self._server.loop.time()
        self._log(True)
        if request is None or not request.keep_alive or self._server.stopping:
            self.close()
        elif self._full and self._parser.buffered <= BUFFERED:
            self._full = False
            self._transport.resume_reading()

    def _log(self, whole: bool) -> None:
        request, self._request = self._request, None
        if request is not None:
            server = self._server
            server.note(
                request, self._status, self._sender.sent - self._before, server.loop.time() - self._began, whole
            )

    def _refuse(self, status: int, reason: str) -> None:
        """Answer what is no request, and close; the client may still be sending, and has to see the answer."""
        self._closing = True
        self._since = self._server.loop.time()
        request = Request("-", b"-", {}, keep_alive=False, peer=self._peer)
        self._began, self._before = self._since, self._sender.sent
        body = f"{reason}\n".encode()
        response = full(status, "text/plain; charset=utf-8", body, close=True)
        head = self._head(request, response, f"Content-Length: {response.length}\r\n".encode())
        self._request = request
        self._sender.send([head + body])
        self._log(True)
        try:
            self._sender.shut()
        except OSError:
            self.close()

    # time and ends

    def check(self, now: float) -> None:
        """Close what takes too long."""
        settings, parser = self._server.settings, self._parser
        if self._closing:
            if now - self._since > (settings.send_timeout if self._secure else LINGER):
                self.abort()
        elif self._busy:
            if self._sender.waiting and now - self._sender.moved > max(settings.send_timeout, self._patience):
                self._broken("the client takes nothing any more")
        elif parser.amid:
            if now - self._since > settings.head_timeout:
                self._refuse(408, f"no whole request within {settings.head_timeout:g} seconds")
        elif now - self._since > settings.idle_timeout:
            self.close()

    @property
    def idle_since(self) -> float | None:
        """When it was last used, or None: it is in use."""
        return None if self._busy or self._parser.amid else self._since

    def stop(self) -> None:
        """Close as soon as what is under way is done."""
        if not self._busy:
            self.close()

    def close(self) -> None:
        self._closing, self._since = True, self._server.loop.time()
        self._sender.close()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._sender.close()
        self._transport.abort()

    def _broken(self, reason: str) -> None:
        """Close an answer short."""
        self._server.metrics.add("aborted")
        self.abort()


async def _nothing() -> AsyncIterator[Buffer]:
    for _ in ():
        yield b""
