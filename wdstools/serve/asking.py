"""What requests for samples have in common: numbers and selections in their query, ETags, errors as JSON."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from wdstools.errors import QueryError, StaleIndexError, WdsError
from wdstools.serve.objects import OutOfRange, Unmet
from wdstools.serve.ranges import precondition
from wdstools.serve.request import BadPath, Request
from wdstools.serve.response import Response, as_json
from wdstools.serve.samplesets import SampleSet
from wdstools.serve.selecting import Selection

Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]

log = logging.getLogger("wdstools")

_BLOCKED = (QueryError, BadPath, UnicodeError)


class Wrong(Exception):
    """A request that gets an error. `status`: the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def guarded(handler: Handler, methods: tuple[str, ...] = ("GET", "HEAD")) -> Handler:
    """A handler whose errors are JSON."""

    async def answer(request: Request) -> Response:
        if request.method not in methods:
            allow = b"Allow: %b\r\n" % ", ".join(methods).encode()
            return failed(405, f"{request.method} is not for this", allow)
        try:
            return await handler(request)
        except Wrong as wrong:
            return failed(wrong.status, str(wrong))
        except OutOfRange as error:
            return failed(416, "the range is outside of the field", b"Content-Range: bytes */%d\r\n" % error.nbytes)
        except Unmet:
            return failed(412, "a condition of the request does not hold")
        except _BLOCKED as error:
            return failed(400, str(error))
        except StaleIndexError as error:
            log.error("%s", error)
            return failed(503, str(error))
        except (WdsError, OSError) as error:
            log.error("%s: %s", request.raw_path.decode("latin-1")[:300], error)
            return failed(503, "the samples cannot be read now; the log of the server has more")

    return answer


def failed(status: int, reason: str, headers: bytes = b"") -> Response:
    response = as_json({"error": reason}, status)
    response.headers += headers
    return response


def tagged(request: Request, samples: SampleSet, make: Callable[[], Response]) -> Response:
    """An answer that stays the same while the set does: 304 to who has it."""
    text = f"{samples.name}\n{samples.version}\n".encode("utf-8", "surrogateescape") + request.target
    tag = b'"%b"' % hashlib.sha256(text).hexdigest()[:24].encode()
    lines = b"ETag: %b\r\nCache-Control: private, no-cache\r\n" % tag
    status = precondition(request.headers, tag, None)
    if status == 412:
        raise Unmet
    if status is not None:
        return Response(status, lines)
    response = make()
    response.headers += lines
    return response


def selection(request: Request) -> Selection:
    query = request.query
    descending = query.get("desc", "0") not in ("", "0", "false")
    sort = query.get("sort", "")
    return Selection(query.get("where", "").strip(), sort, descending and bool(sort), query.get("key", ""))


def number(request: Request, name: str, default: int, least: int = 0, most: int = 1 << 62) -> int:
    """A number of the query. Raises Wrong."""
    text = request.query.get(name, "")
    if not text:
        return default
    value = int(text) if re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) else -1
    if not least <= value <= most:
        raise Wrong(400, f"{name} must be a number from {least} to {most}")
    return value
