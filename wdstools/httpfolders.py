"""What a web server shows of a folder (autoindex of nginx and Apache, python -m http.server): the links of the page."""

from __future__ import annotations

import codecs
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser

from wdstools import failures
from wdstools.errors import StoreError

DEPTH = 64  # folders in folders: more of them is a link that leads back


class _Links(HTMLParser):
    """The targets of the links of a page. `ended`: it came to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}
        self.ended = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.update((value, None) for name, value in attrs if name == "href" and value)

    def handle_endtag(self, tag: str) -> None:
        self.ended = self.ended or tag == "html"


def names(url: str, pieces: Iterable[bytes], told: bool) -> tuple[list[str], list[str]]:
    """Return (folders, files) that the page of a folder links to, as its URL spells them: one level below it, folders
    with a slash at their end. Links to anywhere else, and those with a query (as to sort the page), are none.

    `told`: the server has told the length, so that a page that was cut short is known. Raises StoreError for a page
    without a link, one that was cut, and names that no server should show."""
    parser, decoder = _Links(), codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for piece in pieces:
        parser.feed(decoder.decode(piece))
    parser.close()
    if not (told or parser.ended):
        raise StoreError(f"{url}: this page has no end: it was cut short, or is none that shows a folder")
    if not parser.found and not parser.ended:
        raise StoreError(f"{url}: shows no links to files: is the listing of folders (autoindex) switched on?")
    base = urllib.parse.urlsplit(url)
    folder = urllib.parse.unquote(base.path)
    found: dict[str, None] = {}
    for link in parser.found:
        try:
            to = urllib.parse.urlsplit(urllib.parse.urljoin(url, link.strip()))
            there = (to.scheme, to.hostname, to.port)
        except ValueError:
            continue
        if there != (base.scheme, base.hostname, base.port) or to.query or to.fragment:
            continue
        bare = to.path.removesuffix("/")
        above, slash, name = bare.rpartition("/")
        if urllib.parse.unquote(above + slash) != folder or not name:
            continue
        plain = urllib.parse.unquote(name, errors="surrogateescape")
        if "/" in plain or "\0" in plain or plain in (".", ".."):
            raise StoreError(f"{url}: links to {link!r}, which names no file in it")
        found[to.path[len(above + slash) :]] = None
    folders = [name for name in found if name.endswith("/")]
    return folders, [name for name in found if name[-1] != "/" and name + "/" not in found]


def walk(
    root: str, prefix: str, delimited: bool, page: Callable[[str], tuple[list[str], list[str]]]
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield for each folder (folders, files) in it whose paths begin with `prefix`, and go through the folders, or
    with `delimited` through the first only. `page`: what names() gives for a path. Raises StoreError past DEPTH."""
    top = prefix[: prefix.rfind("/") + 1]
    left = [top]
    while left:
        folder = left.pop()
        if folder.count("/") - top.count("/") > DEPTH:
            raise StoreError(f"{failures.hide(root + folder)}: lies {DEPTH} folders deep: does a link lead back?")
        inner, files = ([folder + name for name in names] for names in page(folder))
        if not delimited:
            left += [path for path in inner if path.startswith(prefix) or prefix.startswith(path)]
        yield (
            [path for path in inner if delimited and path.startswith(prefix)],
            [path for path in files if path.startswith(prefix)],
        )
