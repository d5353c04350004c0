"""The bytes of one field: where they lie, a part of them, the answer to a request for them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from wdstools.errors import StaleIndexError
from wdstools.index import Field
from wdstools.ranges import Buffer
from wdstools.serve.fieldkinds import kind_of
from wdstools.serve.objects import OutOfRange, Unmet
from wdstools.serve.ranges import Span, Unsatisfiable, precondition, range_counts, spans
from wdstools.serve.request import Request
from wdstools.serve.response import Response
from wdstools.serve.samplesets import SampleSet
from wdstools.serve.sending import FileSpan, Piece
from wdstools.serve.tarstream import Wait, is_header
from wdstools.tar import BLOCK

WHOLE = 1 << 20  # bytes of a sample up to which it is read and checked as a whole
PIECE = 1 << 20  # bytes of a remote field that are read at once

# what a browser would run in our name
_ACTIVE = ("text/html", "image/svg", "text/xml", "application/pdf")


def find_field(samples: SampleSet, row: int, name: str) -> Field | None:
    return next((field for field in samples.index.fields(row) if field.ext == name), None)


def check_field(samples: SampleSet, row: int, field: Field) -> None:
    """Compare what lies in the shard with the index. Raises StaleIndexError, StoreError."""
    key, shard, start, end = samples.index.locate(row)
    blob = samples.blob(shard)
    if end - start <= WHOLE or (blob is not None and not samples.is_as_indexed(shard, blob)):
        samples.check(samples.read(shard, [(start, end)])[0], key, shard, start)
        return
    block = samples.read(shard, [(field.header, field.header + BLOCK)])[0]
    if not is_header(block) or _size(bytes(block[124:136])) not in (field.nbytes, None):
        raise StaleIndexError(f"{samples.name}: {key}.{field.ext} is not where its index says")


def read_field(samples: SampleSet, row: int, field: Field, nbytes: int | None = None) -> Buffer:
    """The payload of a field, or the first bytes of it, checked. Raises StaleIndexError, StoreError."""
    check_field(samples, row, field)
    length = field.nbytes if nbytes is None else min(nbytes, field.nbytes)
    if not length:
        return b""
    return samples.read(samples.index.locate(row)[1], [(field.offset, field.offset + length)])[0]


def _size(digits: bytes) -> int | None:
    """The size in a header; None: it is written in a way that only the parser knows, or in a PAX header."""
    if digits[0] & 0x80:
        return None
    text = digits.strip(b" \0")
    return int(text, 8) if re.fullmatch(rb"[0-7]{1,10}", text) else None


def prepare(samples: SampleSet, row: int, field: Field, request: Request, wait: Wait) -> Response:
    """The answer to a request for a field; called in a thread. Raises OutOfRange, StaleIndexError, StoreError."""
    etag = f'"{samples.version}-{row}-{quote(field.ext)}"'.encode()
    common = b"ETag: %b\r\nAccept-Ranges: bytes\r\nCache-Control: private, no-cache\r\n" % etag
    status = precondition(request.headers, etag, None)
    if status == 412:
        raise Unmet
    if status is not None:
        return Response(status, common)
    kind = kind_of(field.ext).type
    lines = b"Content-Type: %b\r\nX-Content-Type-Options: nosniff\r\nContent-Disposition: %b\r\n%b" % (
        kind.encode(), disposition(f"{samples.index.key(row)}.{field.ext}"), common,
    )  # fmt: skip
    if kind.startswith(_ACTIVE):
        lines += b"Content-Security-Policy: sandbox; default-src 'none'; style-src 'unsafe-inline'\r\n"
    wanted: list[Span] | None = None
    given = request.headers.get(b"range")
    if given is not None and request.method == "GET" and range_counts(request.headers, etag, None):
        try:
            wanted = spans(given, field.nbytes)
        except Unsatisfiable:
            raise OutOfRange(field.nbytes) from None
    check_field(samples, row, field)
    if wanted is None or len(wanted) != 1:
        start, end = 0, field.nbytes
    else:
        start, end = wanted[0]
        lines = b"Content-Range: bytes %d-%d/%d\r\n%b" % (start, end - 1, field.nbytes, lines)
    status = 206 if wanted is not None and len(wanted) == 1 else 200
    shard = samples.index.locate(row)[1]
    blob = samples.blob(shard)
    if blob is None:
        body = _remote(samples, shard, field.offset + start, field.offset + end, wait)
        return Response(status, lines, body, end - start)
    pieces: list[Piece] = [FileSpan(blob.handle, field.offset + start, field.offset + end)] if start < end else []
    return Response(status, lines, pieces, end - start)


async def _remote(
    samples: SampleSet, shard: int, start: int, end: int, wait: Wait
) -> AsyncIterator[Buffer | list[Piece]]:
    while start < end:
        stop = min(end, start + PIECE)
        pieces = await wait(samples.read, shard, [(start, stop)])
        yield pieces
        start = stop


def disposition(name: str) -> bytes:
    """Content-Disposition for a file name, whatever is in it (RFC 6266)."""
    base = name.rpartition("/")[2]
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", base)[:200]
    encoded = quote(base[:200], safe="", errors="surrogateescape")
    return f"inline; filename=\"{safe}\"; filename*=UTF-8''{encoded}".encode("ascii")
