"""Pieces for code that uses webdataset: a stage for its pipelines, and a replacement under WebDataset itself.

    import webdataset as wds, wdstools.compat as compat

    wds.DataPipeline(wds.SimpleShardList(urls), compat.tarfile_to_samples(), ...)    # one line changes
    compat.install()                                                                 # no line changes

Same samples, same order, same handlers as webdataset 1.0.2, only faster; and what it loses in silence is an error here
(a truncated shard, bytes after its end, a key that comes back, a failing pipe). A handler that goes on after such an
error goes on with the next shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import webdataset
from webdataset import compat as wds_compat
from webdataset import filters, gopen, tariterators
from webdataset.handlers import reraise_exception

from wdstools import urls
from wdstools.reader import reading
from wdstools.samples import Sample
from wdstools.storage import Source, open_object, open_source

Handler = Callable[[Exception], bool]

_OURS = ("file", "pipe", "http", "https")
_originals: dict[tuple[Any, str], Any] = {}


def tarfile_samples(
    src: Iterable[dict[str, Any]],
    handler: Handler = reraise_exception,
    select_files: Callable[[str], object] | None = None,
    rename_files: Callable[[str], str] | None = None,
) -> Iterator[Sample]:
    """Yield the samples of shards given as dicts with a `url`: webdataset's tarfile_samples, with its arguments.

    Files, pipe: and http(s): are opened by wdstools, every other scheme by webdataset's gopen.
    """

    def open_item(item: dict[str, Any]) -> Source:
        url = item["url"]
        return open_source(url) if urls.scheme(url) in _OURS else _wrap({"url": url, "stream": gopen.gopen(url)})

    return _expand(src, open_item, handler, select_files, rename_files)


tarfile_to_samples = filters.pipelinefilter(tarfile_samples)


def tar_file_expander(
    data: Iterable[dict[str, Any]],
    handler: Handler = reraise_exception,
    select_files: Callable[[str], object] | None = None,
    rename_files: Callable[[str], str] | None = None,
    eof_value: Any = None,
) -> Iterator[Sample]:
    """Yield the samples of opened shards (dicts with `url`, `stream` and perhaps `local_path`), grouped already:
    what stands in for webdataset's tar_file_expander after install(). `eof_value` is not needed for that."""
    return _expand(data, _wrap, handler, select_files, rename_files)


def group_by_keys(data: Iterable[Sample], **_: Any) -> Iterator[Sample]:
    """Pass samples on: what stands in for webdataset's group_by_keys after install()."""
    return iter(data)


def _expand(
    items: Iterable[dict[str, Any]],
    open_item: Callable[[dict[str, Any]], Source],
    handler: Handler,
    select: Callable[[str], object] | None,
    rename: Callable[[str], str] | None,
) -> Iterator[Sample]:
    for item in items:
        try:
            with reading(open_item(item), select=select, rename=rename) as samples:
                yield from samples
        except Exception as error:  # noqa: BLE001  # the handler decides, as in webdataset
            if not handler(error):
                return


def _wrap(item: dict[str, Any]) -> Source:
    """A stream that webdataset opened. It is closed at the end, which makes a webdataset Pipe tell its exit status."""
    stream = item["stream"]
    source = open_object(stream, item["url"], item.get("local_path"))

    def close(error: BaseException | None) -> None:
        if error is None:
            stream.close()

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


__all__ = ["group_by_keys", "install", "tar_file_expander", "tarfile_samples", "tarfile_to_samples", "uninstall"]
