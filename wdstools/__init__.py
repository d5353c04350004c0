"""Fast, safe data I/O for WebDataset tar shards.

    stream(urls)        samples in shard order, from files, pipes and http
    open(urls)          samples in any order, by number or key
    ShardWriter(...)    write shards and their index
    loader(...)         a torch DataLoader: exact epochs, ranks, resume
    iterable(urls)      a torch IterableDataset: shards dealt to ranks and workers, a shuffle buffer
    tar.walk(file)      the members of a tar

Names are loaded when they are first used, so that commands start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wdstools.dataset import Dataset
    from wdstools.dataset import open_dataset as open
    from wdstools.errors import WdsError
    from wdstools.loader import loader as loader
    from wdstools.reader import stream
    from wdstools.streaming import ShardIterable as iterable
    from wdstools.writer import ShardWriter

__version__ = "0.1.0"

_WHERE = {
    "Dataset": ("wdstools.dataset", "Dataset"),
    "ShardWriter": ("wdstools.writer", "ShardWriter"),
    "WdsError": ("wdstools.errors", "WdsError"),
    "iterable": ("wdstools.streaming", "ShardIterable"),
    "open": ("wdstools.dataset", "open_dataset"),
    "stream": ("wdstools.reader", "stream"),
}
_MODULES = ("compat", "errors", "loader", "tar", "urls")  # loader can be called, too

__all__ = ["Dataset", "ShardWriter", "WdsError", "iterable", "open", "stream"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module, attribute = _WHERE[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _MODULES:
        return importlib.import_module(f"wdstools.{name}")
    raise AttributeError(f"module 'wdstools' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES})
