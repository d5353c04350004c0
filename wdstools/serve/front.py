"""The gallery's page: GET / for browsers, and the files under /-/gallery/ that it is made of.

Nothing in them is about what is served, so they need no token: the page asks for one, and shows nothing without.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from wdstools.serve import s3
from wdstools.serve.request import Request
from wdstools.serve.response import Response, full, text

FOLDER = Path(__file__).parent / "gallery"
PREFIX = b"/-/gallery/"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

# No script but ours, no other host, no way to make markup out of text.
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class _File(NamedTuple):
    kind: str
    data: bytes
    etag: bytes


@cache
def files() -> dict[str, _File]:
    """Name -> file, read once."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in KINDS:
            data = path.read_bytes()
            etag = b'"%b"' % hashlib.sha256(data).hexdigest()[:24].encode()
            found[path.name] = _File(f"{KINDS[path.suffix]}; charset=utf-8", data, etag)
    return found


def page(request: Request) -> Response:
    """GET / of a browser."""
    return _answer(request, files()["index.html"])


def static(request: Request) -> Response:
    """GET /-/gallery/NAME."""
    if request.method not in ("GET", "HEAD"):
        return text(405, "only reading is possible here", b"Allow: GET, HEAD\r\n")
    file = files().get(request.raw_path[len(PREFIX) :].decode("latin-1"))
    return text(404, "the gallery has no such file") if file is None else _answer(request, file)


def is_for(request: Request) -> bool:
    """Whether GET / asks for the gallery: a browser does. With ?files it asks for the list of files."""
    if s3.is_spoken(request):
        return False
    return b"text/html" in request.headers.get(b"accept", b"") and "files" not in request.query


def is_public(request: Request) -> bool:
    """Whether a request is for what everybody may see."""
    if request.method not in ("GET", "HEAD"):
        return False
    path = request.raw_path
    return path.startswith(PREFIX) or (path == b"/" and is_for(request))


def _answer(request: Request, file: _File) -> Response:
    caching = b"ETag: %b\r\nCache-Control: no-cache\r\n" % file.etag
    lines = caching + b"Content-Security-Policy: %b\r\nReferrer-Policy: no-referrer\r\n" % POLICY.encode()
    given = [tag.strip().removeprefix("W/") for tag in request.header(b"if-none-match").split(",")]
    if file.etag.decode() in given:
        return Response(304, lines)
    return full(200, file.kind, file.data, lines + b"Vary: Accept\r\n")
