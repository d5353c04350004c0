"""A lock on a prefix of a bucket: an object that is written only where there is none, and renewed while its owner
lives.

It is taken over, and renewed, only as the version that was read: of two that take it over at once, one does. S3, Azure
(If-Match) and Google (generations) know such a condition; where a server or client does not, it is looked at before it
is written, and the loser sees it when it asks before its next shard is committed.

Clocks of different machines are never compared. An owner is gone where this machine can see that its process is, or
where its lock stays as it is for WATCH seconds of the one who waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from wdstools.convert import place
from wdstools.errors import DestinationError, StoreError
from wdstools.store import Stat

BEAT = 10.0  # seconds between two renewals
WATCH = 35.0  # seconds without one after which the owner is taken for gone


_LIVE: set[str] = set()  # what this process holds


class Lock:
    """A lock, taken. `check()` raises where it was lost."""

    def __init__(self, url: str, force: bool = False) -> None:
        """Take it. Raises DestinationError where another holds it, unless `force`."""
        self.url, self._force = url, force
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._me = {"nonce": secrets.token_hex(8), **_self(), "began": began}
        self._beat = 0
        self._lost = ""
        self._over = threading.Event()
        self._take()
        _LIVE.add(self._me["nonce"])
        self._thread = threading.Thread(target=self._renew, name="wds-lock", daemon=True)
        self._thread.start()

    @property
    def owner(self) -> tuple[str, str]:
        """For check_owner."""
        return self.url, str(self._me["nonce"])

    def check(self) -> None:
        """Ask whether the lock is still ours. Raises DestinationError."""
        if not self._lost:
            self._look()
        if self._lost:
            raise DestinationError(f"{self.url}: {self._lost}: this job stops here")

    def close(self) -> None:
        """Give it back."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(DestinationError, StoreError):  # it stays: whoever comes sees that its owner is gone
            self.check()
            place.remove(self.url)
        _LIVE.discard(self._me["nonce"])

    def _take(self) -> None:
        store, name = place.bucket(self.url)
        until, seen = 0.0, b""
        while not store.create(name, self._text()):
            version = place.read_version(self.url)
            if version is None:
                continue
            found, other = version[0], _parse(version[0])
            if other.get("nonce") == self._me["nonce"]:
                return  # the answer to our own request was lost
            if self._force or _is_gone(other):
                if place.replace(self.url, self._text(), version[1]):
                    return
                continue  # another was faster
            if not until:
                until, seen = time.monotonic() + WATCH, found
            if found != seen:
                raise DestinationError(
                    f"{self.url}: another wds-shard is at work on this destination: {_owner(other)}. Wait for it, or "
                    "give --overwrite to take its place"
                )
            if time.monotonic() > until:
                if place.replace(self.url, self._text(), version[1]):
                    return
                continue
            self._over.wait(1.0)

    def _renew(self) -> None:
        while not self._over.wait(BEAT) and not self._lost:
            self._beat += 1
            with contextlib.suppress(StoreError):  # who commits a shard asks again
                version = self._look()
                if version is not None:
                    place.replace(self.url, self._text(), version)  # if not, the next look tells

    def _look(self) -> Stat | None:
        """The version of the lock that is ours."""
        version = place.read_version(self.url)
        if version is None:
            self._lost = "the lock of this job was removed"
            return None
        found = _parse(version[0])
        if found.get("nonce") == self._me["nonce"]:
            return version[1]
        self._lost = f"another wds-shard has taken this destination over ({_owner(found)})"
        return None

    def _text(self) -> bytes:
        return json.dumps({**self._me, "beat": self._beat}).encode()


def check_owner(url: str, nonce: str) -> None:
    """Ask, from another process, whether a lock is still its owner's. Raises DestinationError."""
    found = place.read(url)
    if found is None or _parse(found).get("nonce") != nonce:
        raise DestinationError(f"{url}: the job that this shard is of has lost its lock")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _owner(lock: dict[str, Any]) -> str:
    return f"process {lock.get('pid', '?')} on {lock.get('host', '?')}, since {lock.get('began', '?')} by its clock"


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """What tells this boot of this machine, and its process numbers, from others; "" where nothing does."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: Any) -> str:
    """When a process began, as the kernel counts; "" where it is gone."""
    try:
        with open(f"/proc/{int(pid)}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, ValueError, TypeError):
        return ""


def _is_gone(lock: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine and is not there any more."""
    machine = _machine()
    if not machine or lock.get("machine") != machine:
        return False
    if lock.get("pid") == os.getpid() and lock.get("nonce") not in _LIVE:
        return True
    return _started(lock.get("pid")) != lock.get("started")
