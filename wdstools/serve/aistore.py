"""AIStore's spelling of reading in a shard: `?archpath=MEMBER`, and `?archregx=TEXT&archmode=wdskey|prefix|...`, which
is answered by a tar of the members that match. Of shards on local disks, whose members are listed when first asked."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable

from wdstools import tar
from wdstools.errors import ShardError
from wdstools.samples import split_name
from wdstools.serve.blobs import Blob, LocalBlob
from wdstools.serve.fieldkinds import kind_of
from wdstools.serve.objects import Unmet
from wdstools.serve.payloads import disposition
from wdstools.serve.ranges import precondition
from wdstools.serve.request import Request
from wdstools.serve.response import Response
from wdstools.serve.sampleapi import Wrong
from wdstools.serve.sending import FileSpan, Piece
from wdstools.serve.tarstream import END

KEPT = 16  # shards whose members are known
NAMES = frozenset(["archpath", "archregx", "archmode"])

MODES: dict[str, Callable[[str, str], bool]] = {
    "wdskey": lambda name, text: (split_name(name) or ("", ""))[0] == text,
    "prefix": lambda name, text: name.startswith(text),
    "suffix": lambda name, text: name.endswith(text),
    "substr": lambda name, text: text in name,
}


class Archives:
    """The members of shards."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bytes], list[tar.Member]] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, request: Request, blob: Blob) -> Response:
        """In a thread. Raises Wrong."""
        if not isinstance(blob, LocalBlob):
            raise Wrong(501, "archpath and archregx are for shards on local disks; ask /-/samples")
        status = precondition(request.headers, blob.etag, None)
        if status == 412:
            raise Unmet
        if status is not None:
            return Response(status, blob.head)
        query = request.query
        if "archpath" in query:
            return self._member(blob, query["archpath"])
        mode, text = query.get("archmode", "regexp"), query.get("archregx", "")
        if mode not in MODES:
            raise Wrong(501, f"archmode is none of {', '.join(MODES)}")
        if not text:
            raise Wrong(400, "archregx is empty")
        found = [m for m in self._members(blob) if m.type == "file" and MODES[mode](m.name, text)]
        if not found:
            raise Wrong(404, "no member of this shard matches")
        pieces: list[Piece] = []
        for one in found:
            end = one.offset + tar.padded(one.nbytes)
            before = pieces[-1] if pieces else None
            if isinstance(before, FileSpan) and before.end == one.start:
                pieces[-1] = FileSpan(blob.handle, before.start, end)
            else:
                pieces.append(FileSpan(blob.handle, one.start, end))
        length = sum(piece.end - piece.start for piece in pieces if isinstance(piece, FileSpan)) + len(END)
        lines = b"Content-Type: application/x-tar\r\nETag: %b\r\n" % blob.etag
        return Response(200, lines, [*pieces, END], length)

    def _member(self, blob: LocalBlob, name: str) -> Response:
        found = next((m for m in self._members(blob) if m.name == name and m.type == "file"), None)
        if found is None:
            raise Wrong(404, "the shard has no such member")
        field = split_name(name)
        kind = kind_of(field[1] if field else name).type
        lines = b"Content-Type: %b\r\nX-Content-Type-Options: nosniff\r\nContent-Disposition: %b\r\nETag: %b\r\n" % (
            kind.encode(), disposition(name), blob.etag,
        )  # fmt: skip
        if re.match(r"text/html|image/svg|text/xml|application/pdf", kind):
            lines += b"Content-Security-Policy: sandbox; default-src 'none'\r\n"
        span = FileSpan(blob.handle, found.offset, found.offset + found.nbytes)
        return Response(200, lines, [span] if found.nbytes else [], found.nbytes)

    def _members(self, blob: LocalBlob) -> list[tar.Member]:
        name = blob.path, blob.etag
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        try:
            found = list(tar.walk(blob.handle.fd))
        except ShardError as error:
            raise Wrong(422, f"no tar: {error.reason}") from error
        with self._lock:
            self._kept[name] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found
