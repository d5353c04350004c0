"""A plain HTTP client over http.client: it works in a forked child, takes any URL, and says what a server did wrong.

obstore is faster; this one reads where obstore may not (after a fork) or cannot (URLs with a query, odd paths).
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import email.utils
import http.client
import re
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wdstools import failures
from wdstools.errors import StoreError
from wdstools.storebase import Answer, Stat, beyond, etag_of

REDIRECTS = 5
CHUNK = 1 << 20  # bytes of a stream at a time
PAGE = 512  # bytes in which a web page shows what it is
IDLE_CONNECTIONS = 64
MOST_TEXT = 16 << 20  # bytes of an answer that is text
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request whose answer is to be read. `origin`: scheme and host of the connection, with its port."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    origin: tuple[str, str]

    def close(self) -> None:
        self.response.close()  # which has the socket where the server closes after its answer
        self.connection.close()


class HttpClient:
    """GET and HEAD under one scheme and host. `headers`: sent with every request; `idle`: seconds without a byte."""

    verifies = True

    def __init__(self, root: str, idle: float, headers: Mapping[str, str] | None = None) -> None:
        self._root, self._idle = root, idle
        self._headers = {"User-Agent": "wdstools", "Accept-Encoding": "identity", **(headers or {})}
        self._free: dict[tuple[str, str], deque[http.client.HTTPConnection]] = {}

    def __del__(self) -> None:
        for free in self._free.values():
            for connection in free:
                connection.close()

    def stat(self, path: str) -> Stat:
        """HEAD, or where that is refused (a URL that is signed for GET) the headers of a range."""
        try:
            exchange = self._ask("HEAD", path, {})
            self._keep(exchange)
            stat = _stat(exchange.response, exchange.response.headers.get("Content-Length"))
            kind = exchange.response.headers.get("Content-Type") or ""
            if stat is not None and "html" not in kind:  # a web page? its first bytes will tell
                return stat
        except StoreError as error:
            if not re.search(r"HTTP (?:403|405|501)\b", str(error)):
                raise
        answer = self.get(path, 0, 1, partly=True)
        if answer.stat is None:
            raise StoreError(f"{failures.hide(self._root + path)}: the server does not tell the size")
        return answer.stat

    def get(self, path: str, start: int, end: int, partly: bool = False) -> Answer:
        """One range. It is checked that it is this range; `partly`: the object may end before `end`."""
        url = failures.hide(self._root + path)
        exchange = self._ask("GET", path, {"Range": f"bytes={start}-{end - 1}"})
        response = exchange.response
        try:
            if response.status == 206:
                answer = self._part(url, response, start, end, partly)
            elif response.status == 416:
                answer = self._past_end(url, response, start, end, partly)
            else:
                answer = self._whole(url, response, start, end, partly)
        except BaseException:
            exchange.close()
            raise
        self._keep(exchange)
        return answer

    def stream(self, path: str, page: bool = False) -> tuple[Stat | None, Iterator[bytes]]:
        """The whole object without a range: its stat (None: the server does not tell the size) and its pieces.
        `page`: it may be a web page."""
        url = failures.hide(self._root + path)
        exchange = self._ask("GET", path, {})
        response = exchange.response
        stat = _stat(response, response.headers.get("Content-Length"))

        def pieces() -> Iterator[bytes]:
            have = 0
            try:
                while piece := self._read(url, response, CHUNK):
                    kind = response.headers.get("Content-Type")
                    if not (have or page) and (wrong := failures.of_page(url, kind, piece[:PAGE])):
                        raise wrong
                    have += len(piece)
                    yield piece
                if stat is not None and have != stat.nbytes:
                    raise failures.short(url, have, stat.nbytes)
            finally:
                exchange.close()

        return stat, pieces()

    def fetch(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> bytes:
        """A whole object, or what else a request is answered with, in one attempt."""
        exchange = self._ask(method, path, dict(headers or {}))
        with contextlib.closing(exchange):
            return self._read(failures.hide(self._root + path), exchange.response, MOST_TEXT)

    @contextlib.contextmanager
    def post(self, path: str, body: bytes, kind: str) -> Iterator[Callable[[int], bytes]]:
        """The answer to a POST, in one attempt: as a function that reads so many bytes of it, or raises."""
        url = failures.hide(self._root + path)
        exchange = self._ask("POST", path, {"Content-Type": kind}, body)
        try:
            yield lambda nbytes: self._body(url, exchange.response, nbytes)
            self._read(url, exchange.response, MOST_TEXT)  # what comes after that which was asked for
        except BaseException:
            exchange.close()
            raise
        self._keep(exchange)

    def _part(self, url: str, response: http.client.HTTPResponse, start: int, end: int, partly: bool) -> Answer:
        match = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
        if not match:
            raise StoreError(f"{url}: the server does not say which range it sent")
        stat = _stat(response, match[3])
        last = int(match[2]) + 1
        if int(match[1]) != start or last > end or (last < end and (stat is None or last != stat.nbytes)):
            raise StoreError(f"{url}: asked for bytes {start}-{end - 1}, the server sent {match[0]}")
        if last < end and not partly:
            raise beyond(url, end, last)
        data = self._body(url, response, last - start)
        if start == 0 and (page := failures.of_page(url, response.headers.get("Content-Type"), data[:PAGE])):
            raise page
        return Answer(data, stat)

    def _past_end(self, url: str, response: http.client.HTTPResponse, start: int, end: int, partly: bool) -> Answer:
        total = (response.headers.get("Content-Range") or "").rpartition("/")[2]
        nbytes = int(total) if total.isdecimal() else None
        if partly and start == 0 and nbytes in (0, None):
            return Answer(b"", _stat(response, "0"))
        if nbytes is None:
            raise failures.of_status(url, 416)
        raise beyond(url, end, nbytes)

    def _whole(self, url: str, response: http.client.HTTPResponse, start: int, end: int, partly: bool) -> Answer:
        """200 in answer to a range: right only where the range is the whole object."""
        stat = _stat(response, response.headers.get("Content-Length"))
        head = self._read(url, response, PAGE)
        if page := failures.of_page(url, response.headers.get("Content-Type"), head):
            raise page
        if start == 0 and stat is not None and (stat.nbytes == end or (partly and stat.nbytes < end)):
            data = head + self._body(url, response, stat.nbytes - len(head))
            return Answer(data, stat)
        if start == 0 and stat is not None and stat.nbytes < end:
            raise beyond(url, end, stat.nbytes)
        raise failures.NoRangesError(f"{url}: the server ignores Range: it sends the whole object (HTTP 200)")

    def _body(self, url: str, response: http.client.HTTPResponse, nbytes: int) -> bytes:
        data = self._read(url, response, nbytes)
        if len(data) != nbytes:
            raise failures.short(url, len(data), nbytes)
        return data

    def _read(self, url: str, response: http.client.HTTPResponse, nbytes: int) -> bytes:
        try:
            return response.read(nbytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise failures.of_exception(url, error) from error

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> _Exchange:
        """Send a request and follow redirects. Returns what is to be read, status 2xx or 416."""
        target = self._root + path
        url = failures.hide(target)
        for _ in range(REDIRECTS + 1):
            exchange = self._send(method, url, target, headers, body)
            response = exchange.response
            if response.status in (301, 302, 303, 307, 308) and (to := response.headers.get("Location")):
                exchange.close()
                target = urllib.parse.urljoin(target, to)
                if urllib.parse.urlsplit(target).scheme not in ("http", "https"):
                    raise StoreError(f"{url}: redirects to {target[:200]}")
                continue
            if not 200 <= response.status < 300 and response.status != 416:
                said = "" if method == "HEAD" else self._read(url, response, 4096).decode("utf-8", "replace")
                exchange.close()
                said = f"{response.reason} {said}"
                raise failures.of_status(url, response.status, said, response.headers.get("Retry-After"))
            return exchange
        raise StoreError(f"{url}: more than {REDIRECTS} redirects")

    def _send(
        self, method: str, url: str, target: str, headers: dict[str, str], body: bytes | None = None
    ) -> _Exchange:
        parts = urllib.parse.urlsplit(target)
        home = urllib.parse.urlsplit(self._root)
        sent = {**self._headers, **headers}
        if (parts.scheme, parts.netloc) != (home.scheme, home.netloc):  # what is secret stays at home
            sent = {k: v for k, v in sent.items() if k.lower() not in ("authorization", "cookie")}
        elif parts.username is not None:
            user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            sent["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        name = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            f"?{parts.query}" if parts.query else ""
        )
        origin = (parts.scheme, parts.netloc)
        free = self._free.get(origin)
        while True:
            try:
                connection, used = (free.popleft(), True) if free else (self._connect(parts), False)
            except IndexError:  # another thread was faster
                continue
            try:
                connection.request(method, getattr(connection, "absolute", "") + name, body, sent)
                return _Exchange(connection, connection.getresponse(), origin)
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                if used and not isinstance(error, TimeoutError):
                    continue  # the server had closed it meanwhile: no fault of anybody
                raise failures.of_exception(url, error) from error
            except BaseException:
                connection.close()
                raise

    def _connect(self, parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        kind: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        host = parts.hostname or ""
        proxies = urllib.request.getproxies()
        if parts.scheme in proxies and not urllib.request.proxy_bypass(host):
            proxy = urllib.parse.urlsplit(proxies[parts.scheme])
            connection = kind(proxy.hostname or "", proxy.port, timeout=self._idle)
            if parts.scheme == "https":
                connection.set_tunnel(host, parts.port)
            else:
                connection.absolute = f"http://{parts.netloc.rpartition('@')[2]}"
        else:
            connection = kind(host, parts.port, timeout=self._idle)
        return connection  # type: ignore[no-any-return]

    def _keep(self, exchange: _Exchange) -> None:
        """Put a connection back whose answer was read to its end."""
        exchange.response.read()  # nothing is left, but http.client wants to see the end
        free = self._free.setdefault(exchange.origin, deque())
        if exchange.connection.sock is None or len(free) >= IDLE_CONNECTIONS:
            exchange.close()
        else:
            free.append(exchange.connection)


def _stat(response: http.client.HTTPResponse, nbytes: str | None) -> Stat | None:
    if nbytes is None or not nbytes.isdecimal():
        return None
    written = email.utils.parsedate(response.headers.get("Last-Modified") or "")
    mtime_ns = calendar.timegm(written) * 1_000_000_000 if written else None
    return Stat(int(nbytes), etag_of(response.headers.get("ETag")), mtime_ns)
