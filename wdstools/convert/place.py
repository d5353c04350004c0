"""What lies where shards go, a local folder or a prefix of a bucket: files by paths or URLs, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wdstools import urls
from wdstools.errors import DestinationError, NotFoundError
from wdstools.store import Stat, Stores

if TYPE_CHECKING:
    from wdstools.index import Index
    from wdstools.remote import RemoteStore

PART = 16 << 20  # bytes of an upload under way in one request: 10,000 of them make 160 GB
_PIECE = 1 << 20
_stores = Stores()


def is_remote(path: str) -> bool:
    """Say whether a path is a URL of a bucket."""
    return urls.scheme(path) != "file"


def bucket(url: str) -> tuple[RemoteStore, str]:
    """Return the bucket of a URL, and the path in it. Raises DestinationError where nothing can be written."""
    if urls.scheme(url) not in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"):
        raise DestinationError(f"{url}: shards go to local folders and to buckets (s3://, gs://, az://)")
    store, path = _stores.of(url)
    return store, path  # type: ignore[return-value]


def names(folder: str) -> dict[str, int]:
    """Return what lies in a folder: bytes by name; empty where there is no such folder."""
    if is_remote(folder):
        store, path = bucket(folder)
        prefix = path.rstrip("/") + "/" if path else ""
        found = store.listing(prefix, delimited=True)
        return {name[len(prefix) :]: about.nbytes for name, about in found if about is not None and name != prefix}
    sizes = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder or ".") as items:
        for item in items:
            with contextlib.suppress(FileNotFoundError):
                sizes[item.name] = item.stat().st_size if not item.is_dir() else 0
    return sizes


def read(path: str) -> bytes | None:
    """Return a small file; None where there is none."""
    try:
        if is_remote(path):
            store, name = bucket(path)
            store.forget(name)
            with store.open(name) as file:
                return file.read()
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:  # also NotFoundError
        return None


def read_version(url: str) -> tuple[bytes, Stat] | None:
    """Return a small object of a bucket, and the version that it is; None where there is none."""
    data = read(url)
    store, name = bucket(url)
    stat = store.pinned(name)
    return None if data is None else (data, stat or Stat(len(data)))


def replace(url: str, data: bytes, was: Stat) -> bool:
    """Write a small object of a bucket over the version `was`; false where it is another now. Where the bucket knows no
    such condition it is looked at first, which leaves a moment in between."""
    store, name = bucket(url)
    done = store.replace(name, data, was)
    if done is not None:
        return done
    now = read_version(url)
    if now is None or not now[1].same(was):
        return False
    write(url, data)
    return True


def write(path: str, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    if is_remote(path):
        store, name = bucket(path)
        store.put(name, data)
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def remove(path: str) -> None:
    """Remove a file, or nothing where there is none."""
    if is_remote(path):
        store, name = bucket(path)
        store.remove(name)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def send(local: str, path: str) -> None:
    """Copy a local file to a bucket, over what was there."""
    store, name = bucket(path)
    store.remove(name)
    with open(local, "rb") as file:
        store.upload(name, _pieces(file), PART)


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def load_index(path: str) -> Index:
    """Index.load, of a bucket too. Raises NotFoundError, IndexFileError."""
    if not is_remote(path):
        if not os.path.exists(path):
            raise NotFoundError(f"{path}: no such index")
        from wdstools.index import Index  # with Arrow: not before there is an index to read

        return Index.load(path)
    store, name = bucket(path)
    store.forget(name)
    with store.open(name) as file, tempfile.TemporaryDirectory() as folder:
        from wdstools.index import Index

        local = os.path.join(folder, os.path.basename(path))
        with open(local, "wb") as copy:
            while piece := file.read(_PIECE):
                copy.write(piece)
        index = Index.load(local)  # mapped: it stays when its name is gone
        base = os.path.dirname(path)
        index.shards.url = [urls.join(base, os.path.relpath(url, folder)) for url in index.shards.url]
        return index


def full(path: str) -> str:
    """The name of a shard as an index has it."""
    return path if is_remote(path) else os.path.abspath(path)
