"""A TCP proxy that does to HTTP what networks and servers do: latency, resets, stalls, short bodies, errors, lies.

It understands just as much of HTTP/1.1 as clients of object stores need: requests without a body in front of answers
with a Content-Length. One fault is drawn for each request, from a plan that the test gives.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

Fault = str  # "", or one of the names in Proxy.FAULTS
Head = list[bytes]  # the first line and the header lines


class Proxy:
    """Stands in front of `port` on 127.0.0.1. `draw(line)` chooses the fault for a request line; `latency`: seconds
    before an answer; `counts`: requests by fault; `lines`: the request lines that came;
    `ranges`: the first and last byte of every range."""

    FAULTS = ("reset", "cut", "short", "stall", "500", "503", "429", "408", "403", "norange", "etag", "page", "shift")
    FAULTS += ("page206", "says", "lost")

    def __init__(self, port: int, draw: Callable[[str], Fault] | None = None, latency: float = 0.0) -> None:
        self.origin, self.draw, self.latency = port, draw or (lambda line: ""), latency
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.ranges: list[tuple[int, int]] = []
        self.stall = 3.0  # seconds
        self.says = ("400", b"")  # status and body of the fault of this name
        self.host = ""  # what the origin is told that it was called, where it minds
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._server.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection of a client, over one of the origin."""
        self._open.add(client)
        try:
            with client, socket.create_connection(("127.0.0.1", self.origin)) as origin:
                for sock in (client, origin):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with client.makefile("rb") as asked, origin.makefile("rb") as answered:
                    while head := read_head(asked):
                        if b"expect: 100-continue" in b"\n".join(head).lower():
                            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                            head = [item for item in head if not item.lower().startswith(b"expect:")]
                        body = read_exactly(asked, length(head))
                        if not self._pass(head, body, client, origin, answered):
                            break
        except OSError:
            pass
        finally:
            self._open.discard(client)

    def _pass(self, head: Head, body: bytes, client: socket.socket, origin: socket.socket, answered: object) -> bool:
        """One request and its answer; false: the connection is of no more use."""
        line = head[0].decode("latin-1")
        fault = self.draw(line)
        self.lines.append(line)
        self.counts[fault] += 1
        for item in head:
            if item.lower().startswith(b"range: bytes="):
                first, _, last = item[13:].partition(b"-")
                self.ranges.append((int(first), int(last)))
        if self.latency:
            time.sleep(self.latency)
        if fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
            return False
        if fault.isdigit():
            client.sendall(reply(fault, b"what the proxy says", bare=line.startswith("HEAD")))
            return True
        if fault == "says":
            client.sendall(reply(*self.says, bare=line.startswith("HEAD")))
            return True
        page = b"<!DOCTYPE html><html><head><title>Please log in</title></head></html>"
        if fault == "page206":  # a page that is an object like any other
            client.sendall(ranged(page, self.ranges[-1] if b"range: " in b"\n".join(head).lower() else None, line))
            return True
        if fault == "page":
            client.sendall(reply("200", page, "text/html; charset=utf-8", bare=line.startswith("HEAD")))
            return True
        if fault == "norange":
            head = [item for item in head if not item.lower().startswith(b"range:")]
        if self.host:
            head = [b"Host: " + self.host.encode() if item.lower().startswith(b"host:") else item for item in head]
        origin.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
        back = read_head(answered)
        if not back:  # the origin closed the connection: so does this
            return False
        nbytes = 0 if head[0].startswith(b"HEAD") or back[0].split()[1] == b"304" else length(back)
        if fault == "etag":
            back = [b'ETag: "another"' if item.lower().startswith(b"etag:") else item for item in back]
        if fault == "shift":
            back = [shifted(item) for item in back]
        data = read_exactly(answered, nbytes)
        start = b"\r\n".join(back) + b"\r\n\r\n"
        if fault == "lost":  # it was done, and nobody hears of it
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if fault in ("cut", "short", "stall") and nbytes:
            client.sendall(start + data[: nbytes // 2])
            if fault == "stall":
                time.sleep(self.stall)
            elif fault == "cut":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        client.sendall(start + data)
        return True


@contextlib.contextmanager
def proxied(port: int, draw: Callable[[str], Fault] | None = None, latency: float = 0.0) -> Iterator[Proxy]:
    proxy = Proxy(port, draw, latency)
    try:
        yield proxy
    finally:
        proxy.close()


def read_head(file: object) -> Head:
    lines: Head = []
    while line := file.readline().rstrip(b"\r\n"):  # type: ignore[attr-defined]
        lines.append(line)
    return lines


def read_exactly(file: object, nbytes: int) -> bytes:
    data = file.read(nbytes)  # type: ignore[attr-defined]
    if len(data) != nbytes:
        raise OSError("the other side broke off")
    return bytes(data)


def length(head: Head) -> int:
    found = [item for item in head if item.lower().startswith(b"content-length:")]
    return int(found[0].partition(b":")[2]) if found else 0


def shifted(item: bytes) -> bytes:
    """A Content-Range that is one byte off."""
    if not item.lower().startswith(b"content-range: bytes "):
        return item
    first, _, rest = item[21:].partition(b"-")
    last, _, total = rest.partition(b"/")
    return b"Content-Range: bytes %d-%d/%s" % (int(first) + 1, int(last) + 1, total)


def reply(status: str, body: bytes, kind: str = "text/plain", bare: bool = False, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + (b"" if bare else body)


def ranged(page: bytes, span: tuple[int, int] | None, line: str) -> bytes:
    """A page, or bytes of it, as of an object with the Content-Type of one."""
    more = 'Last-Modified: Mon, 21 Sep 2026 07:00:00 GMT\r\nETag: "page"\r\n'
    if span is None:
        return reply("200", page, "text/html", line.startswith("HEAD"), more)
    first, last = span[0], min(span[1], len(page) - 1)
    if first > last:
        return reply("416", b"", "text/html", False, f"{more}Content-Range: bytes */{len(page)}\r\n")
    more += f"Content-Range: bytes {first}-{last}/{len(page)}\r\n"
    return reply("206", page[first : last + 1], "text/html", line.startswith("HEAD"), more)


if __name__ == "__main__":  # for benchmarks, which want it in a process of its own: PORT LATENCY
    proxy = Proxy(int(sys.argv[1]), latency=float(sys.argv[2]))
    sys.stdout.write(f"{proxy.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
