"""One process of a server: the event loop, its connections, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable
from email.utils import formatdate

from wdstools.errors import StoreError
from wdstools.serve.accesslog import AccessLog
from wdstools.serve.app import App
from wdstools.serve.connection import Connection
from wdstools.serve.disk import Disk
from wdstools.serve.metrics import Metrics
from wdstools.serve.request import Request
from wdstools.serve.response import Response, full, text
from wdstools.serve.settings import Settings

log = logging.getLogger("wdstools")

BACKLOG = 1024
FORGET = 10.0  # seconds for which what was in the page cache is taken to be there
TICK = 0.5  # seconds between two looks at what takes too long
SPARE = 700  # descriptors for files, threads and all that is no connection


class Server:
    """What the connections of a process share. Needs a running event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.loop = asyncio.get_running_loop()
        self.disk, self.app = Disk(), App(settings)
        self.app.routes |= {"health": self._health, "metrics": self._metrics}
        self.stopping, self._deadline = False, 0.0
        self.stopped = asyncio.Event()
        self.common = b""
        self._log = AccessLog(settings.access_log) if settings.access_log is not None else None
        self._connections: set[Connection] = set()
        self._limit = min(settings.max_connections, max(16, (_descriptors() - SPARE) // 2))
        if self._limit < settings.max_connections:
            log.warning("only %d connections at once: that is what the limit of open files allows", self._limit)
        cors = settings.cors
        self._cors = b"" if cors is None else _cors(cors)
        self._listener: asyncio.Server | None = None
        self._forget = 0.0
        self._tick()

    async def listen(self, sock: socket.socket) -> None:
        context = None
        if self.settings.tls_cert is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            try:
                context.load_cert_chain(self.settings.tls_cert, self.settings.tls_key)
            except ssl.SSLError as error:
                names = f"{self.settings.tls_cert}, {self.settings.tls_key}"
                raise StoreError(f"{names}: no certificate with its key: {error.reason}") from error
            context.set_alpn_protocols(["http/1.1"])
        self._listener = await self.loop.create_server(
            lambda: Connection(self), sock=sock, ssl=context, backlog=BACKLOG
        )

    # what connections call

    def enter(self, connection: Connection) -> None:
        """A connection was opened. Where there are too many, the one that was idle for longest has to go."""
        self.metrics.add("accepted")
        self.metrics.add("connections")
        self._connections.add(connection)
        if self.stopping:
            connection.close()
        elif len(self._connections) > self._limit:
            idle = [(c.idle_since, id(c), c) for c in self._connections if c.idle_since is not None]
            self.metrics.add("turned_away")
            min(idle)[2].close()

    def leave(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self.metrics.add("connections", -1)

    def note(self, request: Request, status: int, nbytes: int, seconds: float, whole: bool) -> None:
        self.metrics.note(status, nbytes, seconds)
        if self._log is not None:
            self._log.note(request, status, nbytes, seconds, whole)

    def log_error(self, request: Request, error: Exception) -> None:
        log.error("%s %s: closed short: %s", request.method, request.raw_path.decode("latin-1")[:1000], error)

    # routes

    def _health(self, request: Request) -> Response:
        return text(503 if self.stopping else 200, "stopping" if self.stopping else "ok")

    def _metrics(self, request: Request) -> Response:
        return full(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text())

    # time and ends

    def _tick(self) -> None:
        now = self.loop.time()
        date = formatdate(time.time(), usegmt=True).encode()
        self.common = b"Server: wds-serve\r\nDate: %b\r\n%b" % (date, self._cors)
        for connection in list(self._connections):
            connection.check(now)
        if self._log is not None:
            self._log.flush()
        if now > self._forget:
            self._forget = now + FORGET
            self.disk.forget()
        self._timer = self.loop.call_later(TICK, self._tick)

    def stop(self) -> None:
        """Take no more connections, finish what is under way for at most `drain` seconds, then stop. Called once more,
        it does not wait."""
        if self.stopping:
            self._deadline = 0.0
            return
        self.stopping, self._deadline = True, self.loop.time() + self.settings.drain
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.stop()
        self.loop.create_task(self._drain()).add_done_callback(lambda _: self.stopped.set())

    async def _drain(self) -> None:
        while self._connections and self.loop.time() < self._deadline:
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)

    def close(self) -> None:
        self._timer.cancel()
        self.app.close()
        self.disk.close()
        if self._log is not None:
            self._log.close()


def _cors(origin: str) -> bytes:
    return (
        f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Methods: GET, HEAD, POST, OPTIONS\r\n"
        "Access-Control-Allow-Headers: Authorization, Content-Type, If-None-Match, If-Range, Range\r\n"
        "Access-Control-Expose-Headers: Accept-Ranges, Content-Length, Content-Range, ETag, Last-Modified\r\n"
        "Access-Control-Max-Age: 86400\r\n"
    ).encode() + (b"" if origin == "*" else b"Vary: Origin\r\n")


def _descriptors() -> int:
    """How many files may be open; as many as are allowed to be asked for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def bind(host: str, port: int, shared: bool) -> socket.socket:
    """A socket on an address, which does not listen yet. `shared`: others may bind to the same one. OSError."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen: {error.strerror}", f"{host}:{port}") from error
    return sock


def serve(settings: Settings, sock: socket.socket, metrics: Metrics, ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one does not wait for what is under way. `ready`: is called once it
    listens. Raises WdsError, OSError: what cannot be served."""
    import uvloop

    gc.collect()
    gc.freeze()  # what is here stays: it need not be looked at again

    async def main() -> None:
        server = Server(settings, metrics)
        try:
            await server.listen(sock)
            for number in (signal.SIGTERM, signal.SIGINT):
                server.loop.add_signal_handler(number, server.stop)
            ready(server)
            await server.stopped.wait()
        finally:
            server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
