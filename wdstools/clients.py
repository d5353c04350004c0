"""Which client does what for the objects of one root: made when it is first needed.

obstore reads s3, gs, az and http where it can (`obstores.usable`), else our own client for http, else fsspec. obstore
lists, and writes to s3 and az, where it can, else fsspec does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

from wdstools.errors import StoreError
from wdstools.fsspecs import Fsspec
from wdstools.httpclient import HttpClient
from wdstools.inflight import Process
from wdstools.obstores import Obstore, usable
from wdstools.retrying import Retries, Transient
from wdstools.storebase import Answer, Stat
from wdstools.uploads import Uploads, signs

T = TypeVar("T")


class Client(Protocol):
    """What reads. `get` makes one attempt, and raises StoreError, or Transient where another may succeed.

    `verifies`: the Stat comes with the bytes, from the same answer.
    """

    verifies: bool

    def stat(self, path: str) -> Stat: ...
    def get(self, path: str, start: int, end: int, partly: bool = False) -> Answer: ...


class Clients:
    """Those of one root, a URL. `made`: the ones that there are, by name. Every one may raise StoreError."""

    def __init__(self, scheme: str, root: str, options: Mapping[str, Any], retries: Retries) -> None:
        self._scheme, self._root, self._options, self._retries = scheme, root, options, retries
        self.made: dict[str, Any] = {}

    def drop(self) -> None:
        """In a forked child: make new ones, and leave those of the parent alone."""
        Process.inherited.append(self.made)
        self.made = {}

    def reader(self, path: str) -> Client:
        """What reads an object."""
        if self._scheme in ("s3", "gs", "az", "http") and usable(self._scheme, path, self._options):
            return self._obstore()
        return self.plain() if self._scheme == "http" else self.fsspec()

    def lister(self) -> Obstore | Fsspec:
        """What lists; the versions that Google's listing has through obstore are not those that reads have."""
        return self._obstore() if self._writes("x") else self.files("listed")

    def writer(self, path: str) -> Obstore | Fsspec:
        """What writes an object."""
        return self._obstore() if self._writes(path) else self.files("written to")

    def aborter(self) -> Uploads | Fsspec | None:
        """What aborts uploads that nobody completed; None: they leave nothing."""
        if self._scheme != "s3" and self._writes("x"):
            return None
        if self._scheme == "s3" and usable("s3", "x", self._options) and signs(self._options):
            return self._make("uploads", lambda: Uploads(self._root, self._options, self._retries))
        return self.files("written to")

    def plain(self) -> HttpClient:
        """Our own client for http."""
        headers = self._options.get("headers") or (self._options.get("client_kwargs") or {}).get("headers")
        return self._make("plain", lambda: HttpClient(self._root, self._retries.patience, headers))

    def fsspec(self) -> Fsspec:
        """What fsspec has for the scheme."""
        return self._make("fsspec", lambda: Fsspec(self._scheme, self._root, self._options, self._retries))

    def files(self, what: str) -> Fsspec:
        """As fsspec(). Raises StoreError for http, which cannot be `what`."""
        if self._scheme == "http":
            raise StoreError(f"{self._root}: an http server cannot be {what}")
        return self.fsspec()

    def _obstore(self) -> Obstore:
        return self._make("obstore", lambda: Obstore(self._scheme, self._root, self._options, self._retries))

    def _writes(self, path: str) -> bool:
        """Whether obstore writes this: it can for gs too, but not to what plays gs in tests."""
        return self._scheme in ("s3", "az") and usable(self._scheme, path, self._options)

    def _make(self, name: str, make: Callable[[], T]) -> T:
        client = self.made.get(name)
        if client is None:
            try:
                client = self.made.setdefault(name, make())  # of two threads, one made the client of both
            except Transient as failed:
                raise failed.error from failed.__cause__
        return cast(T, client)
