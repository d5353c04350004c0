"""The server as users run it: a process on a free port, and ways to talk to it that no client library allows."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

MAIN = [sys.executable, "-c", "from wdstools.cli.serve import main; main()"]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Live:
    """A running server. `told`: what it printed."""

    def __init__(self, process: subprocess.Popen[str], told: dict[str, Any], log: Path) -> None:
        self.process, self.told, self._log = process, told, log
        self.url: str = told["url"]
        self.port = int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        """One request on a connection of its own; `_` in the names of headers stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def raw(self, data: bytes, half_close: bool = True, seconds: float = 20) -> bytes:
        """Send bytes, and return all that comes until the server closes. TimeoutError: it does not."""
        with self.connect(seconds) as sock:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                if half_close:
                    sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

    def connect(self, seconds: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def resident(self) -> int:
        """Bytes in memory, of this process alone."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def one_byte(sock: socket.socket, path: str) -> None:
    """Ask for the first byte of a file, and take the whole answer."""
    sock.sendall(get(path, "Range: bytes=0-0"))
    data = b""
    while len(data.partition(b"\r\n\r\n")[2]) < 1:
        more = sock.recv(1000)
        assert more, "closed"
        data += more
    assert data.startswith(b"HTTP/1.1 206")


def read_all(sock: socket.socket) -> bytes:
    found = []
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 20):
            found.append(data)
    return b"".join(found)


@contextlib.contextmanager
def serving(
    folder: Path, *args: object, env: Mapping[str, str] | None = None, before: Callable[[], None] | None = None
) -> Iterator[Live]:
    """`wds-serve ARGS --port 0 --json`, whose stderr goes to a file in `folder`. `before`: is called in its process."""
    log = folder / f"stderr-{time.monotonic_ns()}"
    command = [*MAIN, *map(str, args), "--port", "0", "--json"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WDS_", "AWS_"))}
    with open(log, "wb") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, env=clean | dict(env or {}), preexec_fn=before
        )
    try:
        assert process.stdout is not None
        text = ""
        while line := process.stdout.readline():
            text += line
            if line == "}\n":
                break
        if not text.endswith("\n}\n"):
            process.wait(30)
            raise RuntimeError(f"exit code {process.returncode}: {log.read_text()[-3000:]}")
        yield Live(process, json.loads(text), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if "Traceback" in log.read_text():
        pytest.fail(log.read_text()[-5000:])


def get(target: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def statuses(answer: bytes) -> list[int]:
    """The statuses of the answers in what a connection sent, each with a Content-Length."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        found.append(int(head.split()[1]))
        lengths = [
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        ]
        answer = rest[lengths[0] :]
    return found
