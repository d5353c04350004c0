"""Which bytes of an object a request asks for: Range, If-Range and the conditions of RFC 9110. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from itertools import pairwise
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]  # bytes [start, end)
Headers: TypeAlias = Mapping[bytes, bytes]

MOST_RANGES = 64  # in one answer; whoever asks for more gets the whole object

_ONE = re.compile(rb"bytes=([0-9]{1,18})-([0-9]{0,18})")
_SPEC = re.compile(rb"[ \t]*([0-9]*)-([0-9]*)[ \t]*")


class Unsatisfiable(Exception):
    """No byte of the object is in the ranges."""


def spans(header: bytes, nbytes: int) -> list[Span] | None:
    """The bytes that a Range header asks for, in its order; None: it does not count, the whole object is the answer.

    It does not count where it is no Range of bytes; where it has more than MOST_RANGES; or, with several ranges, where
    they overlap or together are as long as the object (RFC 9110, 14.2 and 17.15). Raises Unsatisfiable.
    """
    match = _ONE.fullmatch(header)
    if match is not None:
        start, end = int(match[1]), int(match[2]) + 1 if match[2] else nbytes
        if match[2] and end <= start:
            return None
        if start >= nbytes:
            raise Unsatisfiable
        return [(start, end if end < nbytes else nbytes)]
    if header[:6].lower() != b"bytes=" or header.count(b",") >= MOST_RANGES:
        return None
    found = []
    for text in header[6:].split(b","):
        spec = _SPEC.fullmatch(text)
        if spec is None:
            if text.strip(b" \t"):
                return None
            continue  # an empty element of a list
        first, last = _number(spec[1]), _number(spec[2])
        if first is None and last is None:
            return None
        if first is None:
            start, end = max(0, nbytes - (last or 0)), nbytes
        elif last is not None and last < first:
            return None
        else:
            start, end = first, nbytes if last is None else min(last + 1, nbytes)
        if start < end:
            found.append((start, end))
    if not found:
        raise Unsatisfiable
    if len(found) > 1 and _is_greedy(found, nbytes):
        return None
    return found


def _number(digits: bytes) -> int | None:
    digits = digits.lstrip(b"0") or digits[:1]
    return (int(digits) if len(digits) <= 19 else 10**19) if digits else None


def _is_greedy(found: list[Span], nbytes: int) -> bool:
    ordered = sorted(found)
    overlap = any(start < end for (_, end), (start, _) in pairwise(ordered))
    return overlap or sum(end - start for start, end in found) >= nbytes


def http_date(mtime_ns: int | None) -> bytes:
    """A time as HTTP writes it; "" for None."""
    return b"" if mtime_ns is None else formatdate(mtime_ns // 10**9, usegmt=True).encode()


def precondition(headers: Headers, etag: bytes, mtime_ns: int | None) -> int | None:
    """The status (304 or 412) that the conditions of a request ask for in place of the object, or None.

    `etag`: with its quotes.
    """
    if b"if-match" in headers:
        if not _matches(headers[b"if-match"], etag, weak=False):
            return 412
    elif b"if-unmodified-since" in headers:
        since = _seconds(headers[b"if-unmodified-since"])
        if since is not None and mtime_ns is not None and mtime_ns // 10**9 > since:
            return 412
    if b"if-none-match" in headers:
        return 304 if _matches(headers[b"if-none-match"], etag, weak=True) else None
    if b"if-modified-since" in headers:
        since = _seconds(headers[b"if-modified-since"])
        if since is not None and mtime_ns is not None and mtime_ns // 10**9 <= since:
            return 304
    return None


def range_counts(headers: Headers, etag: bytes, mtime_ns: int | None) -> bool:
    """Whether If-Range, if there is one, still names this object, so that Range counts."""
    value = headers.get(b"if-range")
    if value is None:
        return True
    if value.startswith((b'"', b"W/")):
        return value == etag
    return value == http_date(mtime_ns) != b""


def _matches(header: bytes, etag: bytes, weak: bool) -> bool:
    if header.strip() == b"*":
        return True
    given = [tag.strip() for tag in header.split(b",")]
    if weak:
        given = [tag.removeprefix(b"W/") for tag in given]
    return etag in given or etag.strip(b'"') in given  # some clients leave the quotes out


def _seconds(header: bytes) -> float | None:
    try:
        return parsedate_to_datetime(header.decode("latin-1")).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
