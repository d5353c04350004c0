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
    """Name -> file, read once. The page names the others as /-/gallery/VERSION/NAME, which browsers keep for good."""
    texts = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}
    texts["index.html"] = texts["index.html"].replace(b'"-/gallery/', b'"-/gallery/%b/' % version().encode())
    return {
        name: _File(f"{KINDS[Path(name).suffix]}; charset=utf-8", data, b'"%b"' % _digest(data).encode())
        for name, data in texts.items()
    }


@cache
def version() -> str:
    """Changes with any of the files."""
    return _digest(b"".join(path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def page(request: Request) -> Response:
    """GET / of a browser."""
    return _answer(request, files()["index.html"])


def static(request: Request) -> Response:
    """GET /-/gallery/NAME, or /-/gallery/VERSION/NAME."""
    if request.method not in ("GET", "HEAD"):
        return text(405, "only reading is possible here", b"Allow: GET, HEAD\r\n")
    name = request.raw_path[len(PREFIX) :].decode("latin-1")
    fixed = name.startswith(f"{version()}/")
    file = files().get(name.removeprefix(f"{version()}/"))
    return text(404, "the gallery has no such file") if file is None else _answer(request, file, fixed)


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


def _answer(request: Request, file: _File, fixed: bool = False) -> Response:
    keep = b"max-age=31536000, immutable" if fixed else b"no-cache"
    caching = b"ETag: %b\r\nCache-Control: %b\r\n" % (file.etag, keep)
    lines = caching + b"Content-Security-Policy: %b\r\nReferrer-Policy: no-referrer\r\n" % POLICY.encode()
    given = [tag.strip().removeprefix("W/") for tag in request.header(b"if-none-match").split(",")]
    if file.etag.decode() in given:
        return Response(304, lines)
    return full(200, file.kind, file.data, lines + b"Vary: Accept\r\n")
