"""What is served under a name: a Blob. Files on local disks are here, each with an open descriptor."""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
import time
from collections import OrderedDict

from wdstools.serve.ranges import http_date

OPEN_FILES = 512  # descriptors that stay open between requests
FRESH = (
    0.01  # seconds for which a file is not looked at again: as long as a tick of the clock that stamps files, or two
)

_KINDS = {".tar": "application/x-tar", ".wdsindex": "application/vnd.apache.arrow.file", ".json": "application/json"}


class Handle:
    """An open file, closed when nobody uses it any more. `warm`, `age`: what `disk` knows of it."""

    __slots__ = ("age", "fd", "warm")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.warm: set[int] = set()
        self.age = 0

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Blob:
    """A run of bytes and what is told of it. `etag`: with its quotes; `head`: the header lines that all answers about
    it have in common."""

    __slots__ = ("etag", "head", "kind", "mtime_ns", "nbytes")

    def __init__(self, name: str, nbytes: int, etag: str, mtime_ns: int | None) -> None:
        self.nbytes, self.mtime_ns = nbytes, mtime_ns
        self.etag = f'"{etag}"'.encode("latin-1", "replace")
        self.kind = content_type(name).encode()
        modified = b"Last-Modified: %b\r\n" % http_date(mtime_ns) if mtime_ns is not None else b""
        self.head = b"ETag: %b\r\n%bAccept-Ranges: bytes\r\n" % (self.etag, modified)

    @property
    def version(self) -> str:
        return self.etag.decode("latin-1")


class LocalBlob(Blob):
    """A file, open."""

    __slots__ = ("handle", "inode", "path", "seen")

    def __init__(self, path: str, handle: Handle, about: os.stat_result) -> None:
        super().__init__(path, about.st_size, etag_of(about), about.st_mtime_ns)
        self.path, self.handle, self.inode = path, handle, (about.st_dev, about.st_ino)
        self.seen = time.monotonic()

    def is_still(self, about: os.stat_result) -> bool:
        return (
            about.st_mtime_ns == self.mtime_ns
            and about.st_size == self.nbytes
            and (about.st_dev, about.st_ino) == self.inode
        )


def etag_of(about: os.stat_result) -> str:
    """The ETag of a file, without quotes: the same that LocalStore gives."""
    return f"{about.st_ino:x}-{about.st_mtime_ns:x}-{about.st_size:x}"


def content_type(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _KINDS:
        return _KINDS[suffix]
    kind, encoding = mimetypes.guess_type(name, strict=False)
    if encoding is not None or kind is None:
        return "application/octet-stream"
    # what a browser would run in our name is shown as text
    return "text/plain; charset=utf-8" if kind in ("text/html", "image/svg+xml", "text/xml") else kind


class Files:
    """Open files by path, the least lately used closed first; checked against the disk by a stat."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self._open: OrderedDict[str, LocalBlob] = OrderedDict()
        self._limit = limit

    def find(self, path: str, root: str | None) -> LocalBlob | None:
        """The file at a path, or None: nothing that may be served. `root`: a real path that it may not leave."""
        blob = self._open.get(path)
        now = time.monotonic()
        if blob is not None:
            if now - blob.seen < FRESH:
                return blob
            try:
                about = os.stat(path)
            except OSError:
                about = None
            if about is not None and blob.is_still(about):
                self._open.move_to_end(path)
                blob.seen = now
                return blob
            del self._open[path]
        blob = open_beneath(path, root)
        if blob is not None:
            self._open[path] = blob
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        return blob


def open_beneath(path: str, root: str | None) -> LocalBlob | None:
    """Open a regular file, whose real path is beneath `root`. OSError: out of descriptors, a disk that fails."""
    try:
        spot = os.open(path, os.O_PATH | os.O_CLOEXEC)  # opens nothing yet: a device or FIFO does not notice
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise
    except ValueError:  # a NUL, or what no file name can hold
        return None
    try:
        link = f"/proc/self/fd/{spot}"
        if not stat.S_ISREG(os.fstat(spot).st_mode):
            return None
        if root is not None and not is_beneath(os.readlink(link), root):
            return None
        try:
            handle = Handle(os.open(link, os.O_RDONLY | os.O_CLOEXEC))
        except PermissionError:
            return None
    finally:
        os.close(spot)
    return LocalBlob(path, handle, os.fstat(handle.fd))


def is_beneath(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
