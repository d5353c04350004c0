"""What shards on their way have in common, wherever they go: the samples that are taken in, and the index of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wdstools import _core, tar

if TYPE_CHECKING:
    from wdstools.columns import Lift
    from wdstools.index import Index


class OpenShard:
    """A shard that is written into the file `fd`, by the C core. `options`: of _core.Writer."""

    def __init__(self, path: str, fd: int, lift: Lift, **options: Any) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}  # of the index
        self.rows: list[int] = []  # of other indexes, from which samples were copied
        self.columns: Callable[[Sequence[int], Index], Mapping[str, Any]] | None = None  # of these rows, for the index
        self._fd, self._lift = fd, lift
        self._core = _core.Writer(fd, tar.MTIME, **options)

    @property
    def nbytes(self) -> int:
        """Bytes so far, with the end marker."""
        return self._core.nbytes + tar.END_MARKER

    @property
    def nsamples(self) -> int:
        return self._core.nsamples

    def _index(self, columns: _core.Columns, name: str, mtime: bool) -> Index:
        """The index of the shard `name`, of what the core has put down; with the time of its file, or 0."""
        from wdstools import shardindex

        index = shardindex.from_columns(columns, name, fd=self._fd, lift=self._lift)
        if self.columns is not None:
            shardindex.add_columns(index, self.columns(self.rows, index))
        if not mtime:
            index.shards.mtime = [0]
        index.metadata.update(self.metadata)
        return index
