"""Requests out of the bytes of a connection, strictly: whatever two servers could understand in two ways is refused.

The grammar is httptools'. What is ours: limits, the end of every message (a head ends at its first empty line, a body
has a Content-Length; Transfer-Encoding is not taken at all), and the names in a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import httptools

MAX_LINE = 8 * 1024  # bytes of the request line
MAX_HEAD = 32 * 1024  # bytes of request line and headers
MAX_HEADERS = 100
MAX_BODY = 16 * 1024 * 1024  # bytes

_TARGET = re.compile(rb"/[!\"$-~]*")  # origin form: visible ASCII without the "#"
_LONE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00|\n[ \t]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ONCE = {
    b"host", b"content-length", b"content-type", b"transfer-encoding", b"authorization", b"range", b"if-range",
    b"if-modified-since", b"if-unmodified-since",
}  # fmt: skip


# Heads without a body that were found good. A head with a Range is split around its digits: clients send thousands
# that differ in nothing else.
MAX_KNOWN = 256
_KNOWN: dict[bytes | tuple[bytes, bytes], tuple[str, bytes, dict[bytes, bytes], bool, bool]] = {}
_RANGE = re.compile(rb"\r\n[Rr]ange: bytes=([0-9]{1,18}-[0-9]{0,18})\r\n")


class Refused(Exception):
    """A request that gets an error and no other answer on its connection. `status`: the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class BadPath(ValueError):
    """A path that can name nothing here."""


@dataclass(slots=True)
class Request:
    """One request. `target`: path and query as they were sent; `headers`: names in lower case; `peer`: who sent it."""

    method: str
    target: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool = True
    http10: bool = False
    body: bytes = b""
    peer: str = ""
    secure: bool = False
    _query: dict[str, str] | None = field(default=None, repr=False)

    @property
    def raw_path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def raw_query(self) -> bytes:
        return self.target.partition(b"?")[2]

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the query, decoded; of two with one name the first."""
        if self._query is None:
            self._query = {}
            for name, value in pairs(self.raw_query):
                self._query.setdefault(name, value)
        return self._query

    @property
    def path(self) -> str:
        """The path, decoded once. Raises BadPath."""
        return decode_path(self.raw_path)

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def base(self) -> str:
        """What clients reach this server under: "http://host:port"."""
        host = self.header(b"host")
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{host}" if re.fullmatch(r"[A-Za-z0-9.\-:\[\]_]{1,300}", host) else ""


def pairs(query: bytes) -> list[tuple[str, str]]:
    """The parameters of a query in their order, decoded; at most 1000."""
    found = []
    for part in query.split(b"&", 1000)[:1000]:
        if part:
            name, _, value = part.partition(b"=")
            found.append((_text(name.replace(b"+", b" ")), _text(value.replace(b"+", b" "))))
    return found


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")


def decode_path(raw: bytes) -> str:
    """A path with its %-escapes decoded, once. Raises BadPath: `.` or `..` in any spelling, or what no name has."""
    if _BAD_ESCAPE.search(raw):
        raise BadPath("a % in the path that is no escape")
    path = _text(raw)
    if any(c < " " or c == "\x7f" or c == "\\" for c in path):
        raise BadPath("a control character or a backslash in the path")
    if any(part in (".", "..") for part in path.split("/")):
        raise BadPath("a . or .. in the path")
    return path


class Parser:
    """The requests of one connection: feed() what comes, then next() until it is None."""

    def __init__(self) -> None:
        self._data = b""
        self._headers: dict[bytes, bytes] = {}
        self._waiting: Request | None = None  # a request whose body is not here yet
        self._lacks = 0
        self._new()

    def _new(self) -> None:
        self._http = httptools.HttpRequestParser(self)

    @property
    def buffered(self) -> int:
        """Bytes that were fed and not used yet."""
        return len(self._data)

    @property
    def asks_to_go_on(self) -> bool:
        """Whether the client waits for a word before it sends a body; true once."""
        waits = self._waiting is not None and self._waiting.headers.pop(b"expect", b"").lower() == b"100-continue"
        return waits and len(self._data) < self._lacks

    @property
    def amid(self) -> bool:
        """Whether a request has begun and not ended."""
        return bool(self._data) or self._waiting is not None

    def feed(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data

    def next(self) -> Request | None:
        """The next request, or None where its end has not come. Raises Refused."""
        if self._waiting is None:
            at = self._data.find(b"\r\n\r\n")
            if at < 0:
                if self._data:
                    _check_part(self._data)
                return None
            head, self._data = self._data[: at + 4], self._data[at + 4 :]
            request = self._known(head)
            if not self._lacks:
                return request
            self._waiting = request
        if len(self._data) < self._lacks:
            return None
        request, self._waiting = self._waiting, None
        request.body, self._data = self._data[: self._lacks], self._data[self._lacks :]
        self._lacks = 0
        self._new()  # the body went past it
        return request

    def _known(self, head: bytes) -> Request:
        """As _head(), which is spared where the same head was parsed before, but for the digits of its Range."""
        if len(head) > 2048:
            return self._head(head)
        match = _RANGE.search(head)
        key = head if match is None else (head[: match.start(1)], head[match.end(1) :])
        known = _KNOWN.get(key)
        if known is None:
            request = self._head(head)
            if not self._lacks:
                if len(_KNOWN) >= MAX_KNOWN:
                    _KNOWN.clear()
                _KNOWN[key] = request.method, request.target, request.headers.copy(), request.keep_alive, request.http10
            return request
        method, target, headers, keep_alive, http10 = known
        headers = headers.copy()
        if match is not None:
            headers[b"range"] = b"bytes=" + match[1]
        return Request(method, target, headers, keep_alive, http10)

    def _head(self, head: bytes) -> Request:
        if len(head) > MAX_HEAD or head.find(b"\r\n") > MAX_LINE:
            _check_part(head)
        if _LONE.search(head):
            raise Refused(400, "a line that ends or goes on in a way that is not allowed")
        if head.count(b"\r\n") > MAX_HEADERS + 2:
            raise Refused(431, f"more than {MAX_HEADERS} headers")
        headers: dict[bytes, bytes] = {}
        self._headers = headers
        self._version = ""
        try:
            self._http.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._new()  # no other protocol is spoken here: the request is answered as it is
        except httptools.HttpParserError as error:
            raise Refused(400, f"no HTTP request: {str(error)[:100]}") from None
        if b"\x00" in headers:
            raise Refused(400, "a header that may come once came twice")
        if b"transfer-encoding" in headers:
            raise Refused(400 if b"content-length" in headers else 411, "a body needs a Content-Length, and only that")
        if b"content-length" in headers:
            self._lacks = _content_length(headers[b"content-length"])
        if self._version not in ("1.1", "1.0"):
            raise Refused(505, "HTTP/1.1 is spoken here, and nothing else")
        if b"host" not in headers and self._version == "1.1":
            raise Refused(400, "no Host")
        target, method = self._target, self._method
        if not _TARGET.fullmatch(target) or not head.startswith(b"HTTP/1.", len(method) + len(target) + 2):
            raise Refused(400, "the request line must have a path")
        return Request(method, target, headers, self._keep, self._version == "1.0")

    # what httptools calls

    def on_message_begin(self) -> None:
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        if name in headers:
            if name in _ONCE:
                headers[b"\x00"] = name
            else:
                headers[name] += b", " + value
        else:
            headers[name] = value

    def on_headers_complete(self) -> None:
        http = self._http
        self._method = http.get_method().decode("latin-1")
        self._version = http.get_http_version()
        self._keep = http.should_keep_alive()


def _check_part(data: bytes) -> None:
    """Raises Refused where the head of a request cannot become a good one any more."""
    line = data.find(b"\r\n")
    if line > MAX_LINE or (line < 0 and len(data) > MAX_LINE):
        raise Refused(414, f"a request line of more than {MAX_LINE} bytes")
    if len(data) > MAX_HEAD:
        raise Refused(431, f"headers of more than {MAX_HEAD} bytes")
    if _LONE.search(data.removesuffix(b"\r")) or not (65 <= data[0] <= 90):
        raise Refused(400, "no HTTP request")


def _content_length(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise Refused(400, "a Content-Length that is no number")
    if int(value) > MAX_BODY:
        raise Refused(413, f"a body of more than {MAX_BODY} bytes")
    return int(value)
