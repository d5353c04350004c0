"""Routes under /-/ and the front page, as later rooms enter them: bodies that are made while they are sent."""

from __future__ import annotations

import asyncio
import gc
import http.client
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from tests.serving import get, read_all
from wdstools.serve.connection import Connection
from wdstools.serve.metrics import Metrics
from wdstools.serve.request import Request
from wdstools.serve.response import Response, as_json, text
from wdstools.serve.server import Server, bind
from wdstools.serve.settings import Settings

T = TypeVar("T")

PARTS = [b"a" * 10, b"", b"b" * 3_000_000, b"c"]


async def parts() -> AsyncIterator[bytes]:
    for part in PARTS:
        await asyncio.sleep(0)
        yield part


async def broken() -> AsyncIterator[bytes]:
    yield b"begun"
    raise RuntimeError("in the middle")


async def slow(request: Request) -> Response:
    await asyncio.sleep(0.01)
    return as_json({"body": request.body.decode(), "query": request.query})


async def failing(request: Request) -> Response:
    raise KeyError("a bug")


def stream(request: Request) -> Response:
    return Response(200, b"Content-Type: application/x-tar\r\n", parts(), None)


def short(request: Request) -> Response:
    return Response(200, b"", parts(), 5_000_000)  # more than comes


Ask = Callable[[Callable[[int], T]], T]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Run a client, which is given the port, beside a server with these routes."""

    def run(client: Callable[[int], T]) -> T:
        async def main() -> T:
            server = Server(Settings((("s", str(tmp_path)),)), Metrics())
            server.app.routes |= {"stream": stream, "slow": slow, "failing": failing, "short": short}
            server.app.routes["broken"] = lambda request: Response(200, b"", broken(), None)
            server.app.front = lambda request: text(200, "the front")
            sock = bind("127.0.0.1", 0, shared=False)
            await server.listen(sock)
            try:
                with ThreadPoolExecutor(1) as pool:
                    return await asyncio.get_running_loop().run_in_executor(pool, client, sock.getsockname()[1])
            finally:
                server.stop()
                await server.stopped.wait()
                server.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())

    return run


def http_get(port: int, *targets: str, method: str = "GET", body: bytes | None = None) -> list[tuple[int, bytes]]:
    """Answers on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    found = []
    try:
        for target in targets:
            connection.request(method, target, body, {"Accept": "text/html"})
            response = connection.getresponse()
            found.append((response.status, response.read()))
    finally:
        connection.close()
    return found


def test_a_body_without_a_length_comes_in_chunks(ask: Ask) -> None:
    answers = ask(lambda port: http_get(port, "/-/stream?x=1", "/-/health", "/-/stream/below"))
    assert answers == [(200, b"".join(PARTS)), (200, b"ok\n"), (200, b"".join(PARTS))]
    heads = ask(lambda port: http_get(port, "/-/stream", "/-/health", method="HEAD"))
    assert heads == [(200, b""), (200, b"")]


def test_http_1_0_gets_it_to_the_end_of_the_connection(ask: Ask) -> None:
    def client(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall(get("/-/stream", "Connection: keep-alive", version="1.0"))
            return read_all(sock)

    head, _, body = ask(client).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert body == b"".join(PARTS)


@pytest.mark.parametrize("target", ["/-/broken", "/-/short"])
def test_a_body_that_fails_is_closed_short(ask: Ask, target: str) -> None:
    with pytest.raises(http.client.IncompleteRead):
        ask(lambda port: http_get(port, target))


def test_bodies_are_read(ask: Ask) -> None:
    answers = ask(lambda port: http_get(port, "/-/slow?a=b", "/-/slow", method="POST", body=b"hello"))
    assert answers[0] == (200, b'{"body": "hello", "query": {"a": "b"}}')
    assert answers[1] == (200, b'{"body": "hello", "query": {}}')


def test_a_bug_is_one_answer_and_tells_nothing(ask: Ask) -> None:
    answers = ask(lambda port: http_get(port, "/-/failing", "/-/health", "/-/unknown"))
    assert [status for status, _ in answers] == [500, 200, 404]
    assert b"a bug" not in answers[0][1]


def test_the_front_is_for_browsers(ask: Ask) -> None:
    assert ask(lambda port: http_get(port, "/")) == [(200, b"the front\n")]


@pytest.mark.parametrize("missing", ["uvloop", "httptools"])
def test_what_is_not_installed_is_said(tmp_path: Path, missing: str) -> None:
    code = f"import sys; sys.modules['{missing}'] = None; sys.argv[1:] = ['{tmp_path}', '--port', '0']\n"
    code += "from wdstools.cli.serve import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "wdstools[serve]" in done.stderr


def test_nothing_is_held_for_clients_that_are_gone(tmp_path: Path) -> None:
    """Without waiting for the collector: what a connection holds may be megabytes."""
    (tmp_path / "a.tar").write_bytes(bytes(20_000_000))

    def vanish(port: int) -> None:
        for target in ("/-/stream", "/a.tar", "/-/health", "/-/slow"):
            with socket.create_connection(("127.0.0.1", port), 20) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.sendall(get(target))
                assert sock.recv(10)

    async def main() -> int:
        server = Server(Settings((("s", str(tmp_path)),)), Metrics())
        server.app.routes |= {"stream": stream, "slow": slow}
        sock = bind("127.0.0.1", 0, shared=False)
        await server.listen(sock)
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, vanish, sock.getsockname()[1])
        for _ in range(500):
            await asyncio.sleep(0.01)
            if not server.metrics.total("connections"):
                break
        await asyncio.sleep(0.05)
        found = sum(type(thing) is Connection for thing in gc.get_objects())
        server.stop()
        await server.stopped.wait()
        server.close()
        return found

    gc.collect()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(main()) == 0
    finally:
        gc.enable()
