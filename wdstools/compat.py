"""Pieces for code that uses webdataset: a stage for its pipelines, and a replacement under WebDataset itself.

    import webdataset as wds, wdstools.compat as compat

    wds.DataPipeline(wds.SimpleShardList(urls), compat.tarfile_to_samples(), ...)    # one line changes
    compat.install()                                                                 # no line changes
    compat.register()                                                  # webdataset's reader, opened by wdstools.gopen

Same samples, same order, same handlers as webdataset 1.0.2, only faster; and what it loses in silence is an error here
(a truncated shard, bytes after its end, a key that comes back, a failing pipe). A handler that goes on after such an
error goes on with the next shard.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import webdataset
from webdataset import cache, filters, tariterators, utils
from webdataset import compat as wds_compat
from webdataset.gopen import gopen, gopen_curl, gopen_gsutil, gopen_pipe, gopen_schemes
from webdataset.handlers import reraise_exception

from wdstools import gopen as openers
from wdstools import urls
from wdstools.errors import ShardError, StoreError, UrlError
from wdstools.reader import reading
from wdstools.samples import Sample
from wdstools.storage import Source, open_object, open_source

Handler = Callable[[Exception], bool]

_module: Any = importlib.import_module("webdataset.gopen")  # webdataset's attribute of this name is the function

_DEFAULTS = {"pipe": gopen_pipe, "http": gopen_curl, "https": gopen_curl, "gs": gopen_gsutil}
_OURS = ("file", "pipe", "http", "https")
_originals: dict[tuple[Any, str], Any] = {}
_registered: dict[str, Any] = {}  # scheme -> our opener
_replaced: dict[str, Any] = {}  # scheme -> what stood there
_MISSING = object()


def tarfile_samples(
    src: Iterable[dict[str, Any]],
    handler: Handler = reraise_exception,
    select_files: Callable[[str], object] | None = None,
    rename_files: Callable[[str], str] | None = None,
) -> Iterator[Sample]:
    """Yield the samples of shards given as dicts with a `url`: webdataset's tarfile_samples, with its arguments.

    Files, pipe:, http(s): and, after register(), s3:, gs: and az: are opened by wdstools, every other scheme by
    webdataset's gopen.
    """

    return _expand(src, handler, select_files, rename_files)


tarfile_to_samples = filters.pipelinefilter(tarfile_samples)


def tar_file_expander(
    data: Iterable[dict[str, Any]],
    handler: Handler = reraise_exception,
    select_files: Callable[[str], object] | None = None,
    rename_files: Callable[[str], str] | None = None,
    eof_value: Any = None,
) -> Iterator[Sample]:
    """Yield the samples of shards (dicts with `url`, and perhaps `stream` and `local_path`), grouped already: what
    stands in for webdataset's tar_file_expander after install(). `eof_value` is not needed for that."""
    return _expand(data, handler, select_files, rename_files)


def group_by_keys(data: Iterable[Sample], **_: Any) -> Iterator[Sample]:
    """Pass samples on: what stands in for webdataset's group_by_keys after install()."""
    return iter(data)


class StreamingOpen:
    """Pass shards on, for the expander to open: what stands in for webdataset's StreamingOpen after install()."""

    def __init__(self, verbose: bool = False, handler: Handler = reraise_exception) -> None:
        pass  # the expander has the handler too

    def __call__(self, shards: Iterable[dict[str, Any] | str]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            url = shard["url"] if isinstance(shard, dict) else shard
            try:
                path = urls.local_path(url)
            except UrlError:  # opening it will say so again, to the handler
                path = None
            yield {"url": url} if path is None else {"url": url, "local_path": path}


def _open(item: dict[str, Any]) -> Source:
    url = item["url"]
    if "stream" in item:
        return _wrap(item)
    if not _is_plain(url):
        return _wrap({**item, "stream": gopen(url)})
    source = open_source(url)
    source.local_path = item.get("local_path")  # webdataset's samples have it only where the item does
    return source


def _is_plain(url: str) -> bool:
    """Whether wdstools opens a URL by itself: webdataset would do it in its own way or through register(), nobody has
    put another opener into its table, and nothing rewrites or forbids URLs."""
    scheme = urls.scheme(url)
    theirs = gopen_schemes.get(scheme)
    plain = scheme in _OURS and theirs is _DEFAULTS.get(scheme)
    ours = theirs is not None and theirs is _registered.get(scheme)
    return (plain or ours) and "GOPEN_REWRITE" not in os.environ and not _security()


def _security() -> bool:
    return bool(getattr(utils, "enforce_security", False))  # older versions have none


def _expand(
    items: Iterable[dict[str, Any]],
    handler: Handler,
    select: Callable[[str], object] | None,
    rename: Callable[[str], str] | None,
) -> Iterator[Sample]:
    for item in items:
        try:
            with reading(_open(item), select=select, rename=rename) as samples:
                yield from samples
        except Exception as error:  # noqa: BLE001  # the handler decides, as in webdataset
            if not handler(error):
                return


def _wrap(item: dict[str, Any]) -> Source:
    """A stream that webdataset opened. It is closed at the end, which makes a webdataset Pipe tell its exit status."""
    stream = item["stream"]
    source = open_object(stream, item["url"], item.get("local_path"))

    def close(error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Exception):
            return  # somebody stopped in the middle; what webdataset opened ends with its last reference
        try:
            stream.close()
        except OSError as failed:
            # a broken shard is explained by the command that failed, unless we broke its pipe by stopping early
            if error is None or (isinstance(error, ShardError) and getattr(stream, "status", None) != -signal.SIGPIPE):
                raise StoreError(f"{item['url']}: {failed}") from (error or failed)

    if hasattr(stream, "close"):
        source.on_close(close)
    return source


def install() -> None:
    """Put this reader under webdataset.WebDataset and webdataset.tarfile_to_samples, for this process.

    Pipelines that were built before keep what they have. Calling it again does nothing; uninstall() undoes it.
    """
    if _originals:
        return
    replacements = {
        (wds_compat, "tar_file_expander"): tar_file_expander,
        (wds_compat, "group_by_keys"): group_by_keys,
        (cache, "StreamingOpen"): StreamingOpen,
        (tariterators, "tarfile_samples"): tarfile_samples,
        (tariterators, "tarfile_to_samples"): tarfile_to_samples,
        (webdataset, "tarfile_samples"): tarfile_samples,
        (webdataset, "tarfile_to_samples"): tarfile_to_samples,
    }
    for (module, name), ours in replacements.items():
        _originals[module, name] = getattr(module, name)
        setattr(module, name, ours)


def uninstall() -> None:
    """Undo install()."""
    for (module, name), original in _originals.items():
        setattr(module, name, original)
    _originals.clear()


def _open_pipe(url: str, mode: str = "rb", bufsize: int = 8192) -> BinaryIO:
    if _security():
        raise ValueError("gopen: unsafe_gopen is False, cannot open pipe URLs")
    return openers.open_pipe(url, mode, bufsize)


def register() -> None:
    """Put the openers of wdstools.gopen under webdataset's gopen, for this process: pipe, http, https, s3, gs, az, and
    for files. What somebody else put into gopen_schemes stays. Calling it again does nothing; unregister() undoes it.

    GOPEN_BUFFER, GOPEN_TIMEOUT and GOPEN_VERBOSE are heeded by all of them: see wdstools.gopen. webdataset reads
    pipe:, remote shards and, with WebDataset's cache_dir, everything through gopen; plain files of a WebDataset it
    opens by itself: for these there is install().
    """
    if _registered:
        return
    ours = dict.fromkeys(("http", "https", "s3", "gs", "az"), openers.open_stream) | {"pipe": _open_pipe}
    for scheme, opener in ours.items():
        theirs = gopen_schemes.get(scheme, _MISSING)
        if theirs is _DEFAULTS.get(scheme, _MISSING):
            _replaced[scheme] = theirs
            _registered[scheme] = gopen_schemes[scheme] = opener
    vars(_module).setdefault("open", openers.open_file)  # before the builtin of that name


def unregister() -> None:
    """Undo register(): the table is as it was, but for what others have put into it since."""
    for scheme, ours in _registered.items():
        if gopen_schemes.get(scheme) is ours:
            if _replaced[scheme] is _MISSING:
                del gopen_schemes[scheme]
            else:
                gopen_schemes[scheme] = _replaced[scheme]
    if vars(_module).get("open") is openers.open_file:
        del vars(_module)["open"]
    _registered.clear()
    _replaced.clear()


__all__ = [
    "group_by_keys",
    "install",
    "register",
    "tar_file_expander",
    "tarfile_samples",
    "tarfile_to_samples",
    "uninstall",
    "unregister",
]
