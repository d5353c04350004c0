"""Answers, before a connection sends them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeAlias

from wdstools.ranges import Buffer
from wdstools.serve.sending import Piece

Streamed: TypeAlias = AsyncIterator[Buffer | list[Piece]]  # what is in a list is sent together
Body: TypeAlias = bytes | list[Piece] | Streamed

STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
STATUS_LINES[416] = b"HTTP/1.1 416 Range Not Satisfiable\r\n"


@dataclass(slots=True)
class Response:
    """`headers`: lines, each with its CRLF; `length`: bytes of the body, None where only its end tells (then the body
    is an iterator, sent in chunks). A HEAD is answered like a GET: the connection leaves the body out."""

    status: int
    headers: bytes = b""
    body: Body = b""
    length: int | None = 0
    close: bool = False  # after it
    patience: float = 0.0  # seconds for which the client may take nothing, where that is more than the settings have


def full(status: int, kind: str, body: str | bytes, headers: bytes = b"", close: bool = False) -> Response:
    """An answer that is in memory. `kind`: its content type."""
    data = body.encode("utf-8", "surrogateescape") if isinstance(body, str) else body
    lines = b"Content-Type: %b\r\nX-Content-Type-Options: nosniff\r\n%b" % (kind.encode(), headers)
    return Response(status, lines, data, len(data), close)


def text(status: int, message: str, headers: bytes = b"", close: bool = False) -> Response:
    return full(status, "text/plain; charset=utf-8", message + "\n", headers, close)


def as_json(value: Any, status: int = 200) -> Response:
    return full(status, "application/json; charset=utf-8", json.dumps(value))


def redirect(target: str) -> Response:
    return text(301, target, b"Location: %b\r\n" % target.encode("latin-1", "replace"))
