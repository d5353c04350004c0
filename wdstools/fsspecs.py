"""Everything that fsspec can reach: listing and writing, whatever obstore does not read, and reading after a fork.

fsspec, s3fs, gcsfs and adlfs are installed apart: `pip install wdstools[s3]`, `[gcs]`, `[azure]`.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wdstools import failures
from wdstools.errors import NotFoundError, StoreError, UnreachableError, UrlError
from wdstools.ranges import Buffer
from wdstools.retrying import Retries, Transient
from wdstools.storebase import Answer, Stat, beyond, etag_of

_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}  # what to install, and the extra
LONG = 10  # idle time-outs that a listing, or the start of an upload, may take
SLOWEST = 100_000  # bytes a second of an upload that is not given up
_WHOLE = {"s3", "gs", "az", "memory", "hf"}  # where an object that is written appears at once and whole


class Fsspec:
    """One root of a file system of fsspec. `verifies` is false: the ETag does not come with the bytes."""

    verifies = False

    def __init__(self, scheme: str, root: str, options: Mapping[str, Any], retries: Retries) -> None:
        self._scheme, self._root, self._idle = scheme, root, retries.patience
        options = dict(options)
        if scheme == "s3":
            config: dict[str, Any] = {"connect_timeout": min(retries.idle, 10.0), "read_timeout": retries.patience}
            config |= {"retries": {"max_attempts": 1}}
            options["config_kwargs"] = config | dict(options.get("config_kwargs") or {})
        if scheme == "gs" and (options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")):
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # its probe stalls a minute
            options.setdefault("token", "anon")
        try:
            self._asyn: Any = importlib.import_module("fsspec.asyn")
            core: Any = importlib.import_module("fsspec.core")
            self._fs, _ = core.url_to_fs(root, skip_instance_cache=True, **options)
            if scheme == "s3":
                self._fs.retries = 1
        except ImportError as error:
            package, extra = _PACKAGES.get(scheme, ("fsspec", "s3"))
            raise StoreError(f"{root}: needs {package}: pip install wdstools[{extra}] ({error})") from error
        except Exception as error:
            if "Protocol not known" in str(error):
                raise UrlError(f"{root}: nobody knows {scheme}: URLs here") from error
            raise failures.of_exception(root, error) from error

    def stat(self, path: str) -> Stat:
        self._fs.invalidate_cache()
        info = self._call("info", path)
        if info.get("type") == "directory":
            raise NotFoundError(f"{self._root}{path}: is a folder, not an object")
        return self._told(info, path)

    def _told(self, info: Mapping[str, Any], path: str) -> Stat:
        if info.get("size") is None:
            raise StoreError(f"{self._root}{path}: the server does not tell the size")
        etag = info.get("generation") if self._scheme == "gs" else None  # as obstore has it
        etag = etag or etag_of(info.get("ETag") or info.get("etag") or info.get("e_tag"))
        times = ("LastModified", "updated", "last_modified", "mtime", "modified", "modify", "created")
        return Stat(int(info["size"]), etag, _time(next((info[k] for k in times if info.get(k)), None)))

    def get(self, path: str, start: int, end: int, partly: bool = False) -> Answer:
        """One range. A server that ignores Range, and a short body, show in the length."""
        url = self._root + path
        stat = None
        if partly:
            stat = self.stat(path)
            end = min(end, stat.nbytes)
        if end <= start:
            return Answer(b"", stat)
        data: Buffer = self._call("cat_file", path, start=start, end=end)
        if len(data) > end - start:
            raise failures.NoRangesError(f"{url}: the server ignores Range: it sends the whole object")
        if len(data) < end - start:
            nbytes = self.stat(path).nbytes
            if nbytes < end:
                raise beyond(url, end, nbytes)
            raise failures.short(url, len(data), end - start)
        return Answer(data, stat)

    def put(self, path: str, data: Buffer) -> None:
        if self._scheme in _WHOLE:
            self._call("pipe_file", path, bytes(data))
            return
        folder, name = posixpath.split(path)
        partial = posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.partial")
        try:
            if folder:
                self._fs.makedirs(self._name(folder), exist_ok=True)
            self._call("pipe_file", partial, bytes(data))
            self._fs.mv(self._name(partial), self._name(path))
        except BaseException as error:
            with contextlib.suppress(Exception):  # it is not there, or the server is gone
                self._fs.rm_file(self._name(partial))
            if isinstance(error, Exception):
                raise failures.of_exception(self._root + path, error) from error
            raise

    def list(self, prefix: str, recursive: bool) -> list[str]:
        folder = prefix[: prefix.rfind("/") + 1]
        self._fs.invalidate_cache()
        base = self._name(folder).rstrip("/")
        try:
            found = self._call("find", folder) if recursive else self._call("ls", folder, detail=True)
        except NotFoundError:
            if folder and self._scheme in _WHOLE:
                self._call("ls", "", detail=True)  # or the bucket is not there: that is worth an error
            return []
        infos = [{"name": name} for name in found] if recursive else found
        names = [info["name"] for info in infos if info.get("type") != "directory"]
        paths = [folder + name[len(base) :].lstrip("/") for name in names if name.rstrip("/") != base]
        return sorted(path for path in paths if path.startswith(prefix) and not path.endswith("/"))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object where there is none; false where there is one."""
        self._fs.invalidate_cache()
        try:
            self._call("pipe_file", path, data, mode="create")
        except StoreError as error:
            if isinstance(error.__cause__, FileExistsError):
                return False
            raise
        return True

    def replace(self, path: str, data: bytes, version: str) -> bool | None:
        """Write an object of Google's over this generation; false where it is another or gone. None elsewhere: fsspec
        knows no such condition."""
        if self._scheme != "gs":
            return None
        bucket, _, key = str(self._name(path)).partition("/")
        where = f"{self._fs._location}/upload/storage/v1/b/{bucket}/o"
        more: dict[str, Any] = {"uploadType": "media", "name": key, "ifGenerationMatch": version, "data": data}
        more["headers"] = {"Content-Type": "application/octet-stream"}
        try:
            self._asyn.sync(self._fs.loop, self._fs._call, "POST", where, timeout=LONG * self._idle, **more)
        except Exception as error:
            if isinstance(error, FileNotFoundError | FileExistsError) or "412" in str(getattr(error, "code", "")):
                return False
            raise failures.of_exception(self._root + path, error) from error
        return True

    def remove(self, path: str) -> None:
        """Remove an object, or nothing where there is none."""
        self._fs.invalidate_cache()
        with contextlib.suppress(NotFoundError):
            self._call("rm_file", path)

    def upload(self, path: str, pieces: Iterator[Buffer], nbytes: int) -> None:
        """Write an object in parts of `nbytes`, one after the other."""
        url = self._root + path
        file: Any = None
        try:
            file = self._fs.open(self._name(path), "wb", block_size=nbytes)
            for piece in pieces:
                file.write(piece)
            file.close()
        except BaseException as error:
            if file is not None:
                file.closed = True  # or the end of it would complete the upload
                with contextlib.suppress(Exception):
                    file.discard()
            if isinstance(error, Exception):
                raise failures.of_exception(url, error) from error
            raise

    def abandon(self, prefix: str, mine: Callable[[str], bool]) -> int:
        """Abort the uploads to paths of this prefix that nobody completed, and return how many. Only S3 shows them:
        elsewhere they take no place under any name, and are forgotten within a week."""
        if self._scheme != "s3":
            return 0
        bucket, _, head = str(self._name(prefix)).partition("/")
        head += "/" if prefix.endswith("/") and not head.endswith("/") else ""
        count, more = 0, dict[str, Any]()
        while True:
            page = self._s3("list_multipart_uploads", prefix, Bucket=bucket, Prefix=head, **more)
            for item in page.get("Uploads") or []:
                if mine(prefix + item["Key"][len(head) :]):
                    with contextlib.suppress(NotFoundError):
                        self._s3(
                            "abort_multipart_upload", prefix, Bucket=bucket, Key=item["Key"], UploadId=item["UploadId"]
                        )
                    count += 1
            if not page.get("IsTruncated"):
                return count
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _s3(self, method: str, path: str, **kwargs: Any) -> Any:
        try:
            return self._asyn.sync(self._fs.loop, self._fs._call_s3, method, timeout=LONG * self._idle, **kwargs)
        except Exception as error:
            raise failures.of_exception(self._root + path, error) from error

    def listing(self, prefix: str, delimited: bool) -> Iterator[tuple[str, Stat | None]]:
        """As Obstore.listing."""
        folder = prefix[: prefix.rfind("/") + 1]
        self._fs.invalidate_cache()
        base = self._name(folder).rstrip("/")
        try:
            found = (
                self._call("ls", folder, detail=True)
                if delimited
                else list(self._call("find", folder, detail=True).values())
            )
        except NotFoundError:
            if folder and self._scheme in _WHOLE:
                self._call("ls", "", detail=True)  # or the bucket is not there: that is worth an error
            return
        for info in found:
            path = folder + info["name"][len(base) :].lstrip("/")
            if not path.startswith(prefix) or info["name"].rstrip("/") == base:
                continue
            if info.get("type") == "directory":
                yield path.rstrip("/") + "/", None
            elif not path.endswith("/"):
                yield path, self._told(info, path)

    def _name(self, path: str) -> Any:
        return self._fs._strip_protocol(self._root + path)

    def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the file system, within a time that is bounded where it is asynchronous inside."""
        timeout = 0.0
        try:
            if self._fs.async_impl and hasattr(self._fs, "_" + method):
                function = getattr(self._fs, "_" + method)
                timeout = self._idle if method in ("cat_file", "info") else LONG * self._idle
                timeout += sum(len(data) for data in args) / SLOWEST
                return self._asyn.sync(self._fs.loop, function, self._name(path), *args, timeout=timeout, **kwargs)
            return getattr(self._fs, method)(self._name(path), *args, **kwargs)
        except Exception as error:
            url = self._root + path
            if isinstance(error, TimeoutError):
                told = UnreachableError(f"{url}: no server answers within {timeout or self._idle:g} s")
                if self._scheme == "gs" or method not in ("cat_file", "info"):
                    raise told from error  # the library has repeated it all that time
                raise Transient(told, contact=False) from error
            raise failures.of_exception(url, error) from error


def _time(value: Any) -> int | None:
    """Nanoseconds since 1970 of what the file systems give: datetime, ISO text or seconds."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return int(value * 1_000_000) * 1000 if isinstance(value, int | float) else None
