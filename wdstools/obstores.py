"""Reading s3, gs, az and http, writing s3 and az, by obstore.

obstore is not to be used in a child of a process that has it loaded: its threads are not there any more, and every
call waits for ever. `usable` tells; a hook notices the fork.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from wdstools import failures
from wdstools.credentials import Options, azure_config, gcs_config, is_file, s3_config
from wdstools.errors import StoreError
from wdstools.ranges import Buffer
from wdstools.retrying import Retries, Transient
from wdstools.storebase import Answer, Stat, beyond, etag_of

# What is understood here of the options of s3fs, gcsfs, adlfs and fsspec's http; with any other, fsspec reads.
_KNOWN = {
    "s3": {"key", "secret", "token", "anon", "endpoint_url", "client_kwargs", "profile"},
    "gs": {"token", "project", "endpoint_url"},
    "az": {"account_name", "account_key", "sas_token", "connection_string", "anon"}
    | {"tenant_id", "client_id", "client_secret"},
    "http": {"headers"},
}
PAGE = 512  # bytes in which a web page shows what it is
_CLIENT_KWARGS = {"endpoint_url", "region_name"}


class _Fork:
    """Whether this process was forked from one that had obstore loaded."""

    happened = False

    @classmethod
    def note(cls) -> None:
        cls.happened = cls.happened or "obstore" in sys.modules


os.register_at_fork(after_in_child=_Fork.note)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("obstore") is not None


def usable(scheme: str, path: str, options: Options) -> bool:
    """Whether obstore can read this: it is there, no fork spoilt it, and it understands the options and the path."""
    if _Fork.happened or not _installed():
        return False
    if not set(options) <= _KNOWN[scheme] or not set(options.get("client_kwargs") or ()) <= _CLIENT_KWARGS:
        return False
    token = options.get("token")
    if scheme == "gs" and not (token in (None, "anon", "google_default") or isinstance(token, dict) or is_file(token)):
        return False
    if scheme == "http":
        plain = "?" not in path and "#" not in path and "%2" not in path.lower()
        if not plain or urllib.parse.quote(urllib.parse.unquote(path), safe="/%:@!$&'()*+,;=~") != path:
            return False
    return not any(part in ("", ".", "..") for part in path.removeprefix("/" if scheme == "http" else "").split("/"))


class Obstore:
    """One bucket, container or host. Every request is made once: RemoteStore repeats them."""

    verifies = True

    def __init__(self, scheme: str, root: str, options: Options, retries: Retries) -> None:
        self._obstore: Any = importlib.import_module("obstore")
        stores: Any = importlib.import_module("obstore.store")
        self._root, self._scheme = root, scheme
        host = urllib.parse.urlsplit(root).netloc
        total = retries.total if retries.total is not None else 86400.0
        client: dict[str, Any] = {
            "allow_http": True,  # only where the endpoint says http
            "connect_timeout": timedelta(seconds=min(retries.idle, 10.0)),
            "read_timeout": timedelta(seconds=retries.patience),
            "timeout": timedelta(seconds=total),
            "user_agent": "wdstools",
            "pool_idle_timeout": timedelta(seconds=60),
        }
        if scheme == "http" and options.get("headers"):
            client["default_headers"] = dict(options["headers"])
        rest = {"client_options": client, "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=total)}}
        again: dict[str, Any] = {"max_retries": retries.attempts - 1}
        again["retry_timeout"] = timedelta(seconds=min(total, 600.0))
        pauses = {"init_backoff": timedelta(seconds=retries.first), "max_backoff": timedelta(seconds=retries.most)}
        again["backoff"] = {**pauses, "base": 2}
        make: Any
        where: dict[str, Any]
        try:
            if scheme == "s3":
                make, where = functools.partial(stores.S3Store, host), s3_config(root, host, options, retries)
            elif scheme == "gs":
                make, where = functools.partial(stores.GCSStore, host), gcs_config(options)
            elif scheme == "az":
                make, where = stores.AzureStore, azure_config(host, options)
            else:
                make, where = functools.partial(stores.HTTPStore.from_url, root), {}
            self._store = make(**where, **rest)
            self._patient = make(**where, **{**rest, "retry_config": again})  # for what has many requests in it
        except StoreError:
            raise
        except Exception as error:
            raise failures.of_obstore(failures.hide(root), error) from error

    def stat(self, path: str) -> Stat:
        try:
            return _stat(self._obstore.head(self._store, self._name(path)), self._scheme)
        except Exception as error:
            raise failures.of_obstore(failures.hide(self._root + path), error) from error

    def get(self, path: str, start: int, end: int, partly: bool = False) -> Answer:
        """One range, checked by obstore to be this range. `partly`: the object may end before `end`."""
        url = failures.hide(self._root + path)
        try:
            result = self._obstore.get(self._store, self._name(path), options={"range": (start, end)})
            data: Buffer = memoryview(result.bytes())
            stat = _stat(result.meta, self._scheme)
            page = None
            if start == 0 and data[:1] in (b"<", b"\r", b"\n", b" ", b"\t", b"\xef"):
                page = failures.of_page(url, result.attributes.get("Content-Type"), bytes(data[:PAGE]))
        except Exception as error:
            failed = failures.of_obstore(url, error)
            if isinstance(failed, failures.NoRangesError) and self._scheme != "http":
                failed = self._in_place(path, url) or failed
            raise failed from error
        if page is not None:
            raise page
        if len(data) < end - start and not partly:
            raise beyond(url, end, stat.nbytes)
        return Answer(data, stat)

    def listing(self, prefix: str, delimited: bool = False, after: str = "") -> Iterator[tuple[str, Stat | None]]:
        """Yield (path, Stat) of all that begins with `prefix`, in order, from behind `after` on; `delimited`: not below
        its next slash, but (path with a slash, None) for what is there. Requests are repeated, broken answers not."""
        folder, _, rest = prefix.rpartition("/")
        try:
            if delimited:
                found = self._obstore.list_with_delimiter(self._patient, folder or None)
                batches: Any = [found["objects"]]
                for name in found["common_prefixes"]:
                    if (name := name.rstrip("/") + "/").startswith(prefix):
                        yield name, None
            else:
                batches = self._obstore.list(self._patient, folder or None, chunk_size=1000, offset=after or None)
            for batch in batches:
                for meta in batch:
                    if not rest or meta["path"].startswith(prefix):
                        yield meta["path"], _stat(meta, self._scheme)
        except FileNotFoundError:
            return
        except Exception as error:
            raise failures.of_obstore(failures.hide(self._root + prefix), error) from error

    def put(self, path: str, data: Buffer) -> None:
        """Write an object in one request."""
        try:
            self._obstore.put(self._store, self._name(path), data, use_multipart=False)
        except Exception as error:
            raise failures.of_obstore(failures.hide(self._root + path), error) from error

    def create(self, path: str, data: bytes) -> bool:
        """Write an object where there is none; false where there is one."""
        try:
            self._obstore.put(self._store, self._name(path), data, use_multipart=False, mode="create")
        except Exception as error:
            if type(error).__name__ == "AlreadyExistsError":
                return False
            raise failures.of_obstore(failures.hide(self._root + path), error) from error
        return True

    def remove(self, path: str) -> None:
        """Remove an object, or nothing where there is none."""
        try:
            self._obstore.delete(self._store, self._name(path))
        except FileNotFoundError:
            return
        except Exception as error:
            raise failures.of_obstore(failures.hide(self._root + path), error) from error

    def upload(self, path: str, pieces: Iterator[Buffer], nbytes: int, at_once: int) -> None:
        """Write an object in parts of `nbytes`, `at_once` of them under way. Requests are repeated; where the pieces
        end with an exception the upload is aborted."""
        name = self._name(path)
        try:
            self._obstore.put(
                self._patient, name, pieces, use_multipart=True, chunk_size=nbytes, max_concurrency=at_once
            )
        except Exception as error:
            raise failures.of_obstore(failures.hide(self._root + path), error) from error

    def replace(self, path: str, data: bytes, etag: str) -> bool | None:
        """Write an object over the version with this ETag; false where it is another or gone, None where the server
        does not know such a condition."""
        exceptions: Any = importlib.import_module("obstore.exceptions")
        try:
            self._obstore.put(self._store, self._name(path), data, mode={"e_tag": f'"{etag}"'}, use_multipart=False)
        except (exceptions.PreconditionError, exceptions.AlreadyExistsError, FileNotFoundError):
            return False
        except exceptions.NotSupportedError:
            return None
        except Exception as error:
            if "NotImplemented" in str(error) or "501" in str(error):
                return None
            raise failures.of_obstore(failures.hide(self._root + path), error) from error
        return True

    def _in_place(self, path: str, url: str) -> StoreError | Transient | None:
        """What stands in place of an object whose ranges are not to be had; None: the object itself, as a whole."""
        try:
            result = self._obstore.get(self._store, self._name(path))
            head = bytes(next(iter(result.stream(min_chunk_size=1)), b"")[:PAGE])
        except Exception as error:  # noqa: BLE001 - translated, and raised where it is from
            return failures.of_obstore(url, error)
        return failures.of_page(url, result.attributes.get("Content-Type"), head)

    def _name(self, path: str) -> str:
        return urllib.parse.unquote(path)[1:] if self._scheme == "http" else path


def _stat(meta: Mapping[str, Any], scheme: str) -> Stat:
    written = meta["last_modified"].timestamp()
    # Google's generation, where there is one: its ETags are spelled in one way here and in another through gcsfs
    etag = meta.get("version") if scheme == "gs" else None
    return Stat(meta["size"], etag or etag_of(meta["e_tag"]), int(written * 1_000_000) * 1000 if written else None)
