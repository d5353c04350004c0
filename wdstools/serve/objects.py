"""Answers about one object: whole, in part, not modified."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from wdstools.ranges import Buffer
from wdstools.serve.blobs import Blob, LocalBlob
from wdstools.serve.ranges import Span, Unsatisfiable, precondition, range_counts, spans
from wdstools.serve.remotes import Flights, RemoteBlob
from wdstools.serve.request import Request
from wdstools.serve.response import Body, Response
from wdstools.serve.sending import FileSpan, Piece

_CONDITIONS = frozenset([b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since"])


class OutOfRange(Exception):
    """416. `nbytes`: the size of the object."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.nbytes = nbytes


class Unmet(Exception):
    """412: a condition of the request does not hold."""


def answer(request: Request, blob: Blob, flights: Flights) -> Response:
    """The answer to a GET or HEAD of an object. Raises OutOfRange, Unmet."""
    headers = request.headers
    if not _CONDITIONS.isdisjoint(headers):
        status = precondition(headers, blob.etag, blob.mtime_ns)
        if status == 412:
            raise Unmet
        if status is not None:
            return Response(status, blob.head)
    wanted = None
    given = headers.get(b"range")
    if given is not None and request.method == "GET" and range_counts(headers, blob.etag, blob.mtime_ns):
        try:
            wanted = spans(given, blob.nbytes)
        except Unsatisfiable:
            raise OutOfRange(blob.nbytes) from None
    if wanted is None:
        lines = b"Content-Type: %b\r\n%b" % (blob.kind, blob.head)
        return Response(200, lines, _body(blob, [(0, blob.nbytes)], flights), blob.nbytes)
    if len(wanted) == 1:
        start, end = wanted[0]
        lines = b"Content-Range: bytes %d-%d/%d\r\nContent-Type: %b\r\n%b" % (
            start, end - 1, blob.nbytes, blob.kind, blob.head,
        )  # fmt: skip
        return Response(206, lines, _body(blob, wanted, flights), end - start)
    return _multipart(blob, wanted, flights)


def _multipart(blob: Blob, wanted: list[Span], flights: Flights) -> Response:
    boundary = secrets.token_hex(16).encode()
    heads = [
        b"%b--%b\r\nContent-Type: %b\r\nContent-Range: bytes %d-%d/%d\r\n\r\n"
        % (b"\r\n" if i else b"", boundary, blob.kind, start, end - 1, blob.nbytes)
        for i, (start, end) in enumerate(wanted)
    ]
    last = b"\r\n--%b--\r\n" % boundary
    length = sum(map(len, heads)) + len(last) + sum(end - start for start, end in wanted)
    lines = b"Content-Type: multipart/byteranges; boundary=%b\r\n%b" % (boundary, blob.head)
    return Response(206, lines, _body(blob, wanted, flights, heads, last), length)


def _body(
    blob: Blob, wanted: list[Span], flights: Flights, heads: list[bytes] | None = None, last: bytes = b""
) -> Body:
    """The spans of an object, each with what stands before it, and what stands after all of them."""
    if isinstance(blob, LocalBlob):
        if heads is None:
            return [FileSpan(blob.handle, *span) for span in wanted if span[0] < span[1]]
        pieces: list[Piece] = []
        for head, span in zip(heads, wanted, strict=True):
            pieces += [head, FileSpan(blob.handle, *span)]
        return [*pieces, last]
    if not isinstance(blob, RemoteBlob):
        raise TypeError(f"no way to send {type(blob).__name__}")
    return _remote(blob, wanted, flights, heads or [b""] * len(wanted), last)


async def _remote(
    blob: RemoteBlob, wanted: list[Span], flights: Flights, heads: list[bytes], last: bytes
) -> AsyncIterator[Buffer]:
    for head, span in zip(heads, wanted, strict=True):
        if head:
            yield head
        async for piece in flights.pieces(blob, *span):
            yield piece
    if last:
        yield last
