"""Folders as HTML: what browsers, wget -r and fsspec's and rclone's http clients list from."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from wdstools.serve.buckets import Bucket
from wdstools.serve.listing import page
from wdstools.serve.response import Response, full

MOST = 100_000  # names on a page

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui;margin:2em}}td{{padding:0 1em 0 0}}</style></head><body><h1>{title}</h1><table>
{rows}
</table>{note}</body></html>
"""


def folder(bucket: Bucket, prefix: str, title: str) -> Response | None:
    """The names right below a prefix, or None: there are none. May wait for the bucket. StoreError."""
    found = page(bucket, prefix, "/", "", MOST)
    if prefix and not (found.objects or found.prefixes):
        return None
    rows: list[tuple[str, int | None]] = [(p[len(prefix) :], None) for p in found.prefixes]
    rows += [(entry.key[len(prefix) :], entry.nbytes) for entry in found.objects]
    return names(title, rows, found.last is not None)


def names(title: str, rows: list[tuple[str, int | None]], more: bool = False) -> Response:
    """A page of links, with the bytes of each."""
    lines = [
        f'<tr><td><a href="./{quote(name, errors="surrogateescape")}">{escape(name)}</a></td>'
        f"<td>{'' if nbytes is None else nbytes}</td></tr>"
        for name, nbytes in rows
    ]
    note = f"<p>Only the first {MOST} names.</p>" if more else ""
    text = _PAGE.format(title=escape(title), rows="\n".join(lines), note=note)
    return full(200, "text/html; charset=utf-8", text.encode("utf-8", "replace"))
