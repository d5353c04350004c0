"""Writing shards: one (ShardFile), or a numbered sequence of them (ShardWriter). Each appears whole or not at all.

Arrow takes 0.1 s to load: it is loaded when the first shard is finished, while other threads go on writing theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wdstools import encode, tar, urls
from wdstools.errors import DestinationError
from wdstools.openshard import OpenShard
from wdstools.samples import Sample
from wdstools.shardnames import check_pattern, existing_shards

if TYPE_CHECKING:
    from wdstools.columns import Lift
    from wdstools.index import Index

Value = bytes | bytearray | memoryview | tuple[str | os.PathLike[str], int]
"""The payload of a field: bytes, or (path, nbytes) of a file to copy; nbytes -1 takes whatever it has."""


def sample_nbytes(key: str, fields: Mapping[str, int]) -> int:
    """Return the bytes that a sample takes in a shard, headers and padding included, from the sizes of its fields."""
    return sum(tar.member_nbytes(f"{key}.{name}", nbytes) for name, nbytes in fields.items())


class ShardFile(OpenShard):
    """One shard on its way: written under a temporary name beside its place, and renamed by commit().

    `part`: also save the index of this shard under part_name(path), which is there before the shard is.
    `mtime`: the index tells that of the shard; without it, the same samples give the same index, byte for byte.
    `sync`: commit() waits until the disk has the bytes, so that a power failure cannot take them back either.
    `checksum`: 0 for none in the index, 1 of the shard, 2 of every sample too.
    `core`: `encode`, `maxcount` and `maxsize` for add(). `attempt`: of several that may write this shard at once, in
    the temporary name. `behind`: a thread of its own writes the file, while the next samples are taken in; False where
    other shards keep the cores busy.
    As a context it commits, or removes what it wrote if an exception leaves it. Raises SourceError for a sample that
    readers would not get back (the shard stays good without it), OSError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lift: Lift = (),
        part: bool = False,
        mtime: bool = True,
        sync: bool = False,
        checksum: int = 0,
        core: Mapping[str, Any] | None = None,
        attempt: str = "",
        behind: bool = True,
    ) -> None:
        path = os.fspath(path)
        self._part, self._mtime, self._sync = part, mtime, sync
        self._temporary = _hidden(path, f"{attempt and '.'}{attempt}.tmp")
        fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        super().__init__(path, fd, lift, checksum=checksum, behind=behind, **(core or {}))

    def write(self, key: str, fields: dict[str, Value]) -> int:
        """Append a sample, fields sorted by name, and return its bytes in the shard."""
        return self._core.write(key, fields)

    def copy(self, key: str, fd: int, start: int, end: int, url: str) -> int:
        """Append bytes [start, end) of another shard, headers included: the sample with this key. Raises HeaderError
        where they are not it, SourceError, OSError."""
        return self._core.copy(key, fd, start, end, url)

    def add(self, sample: Sample) -> int | None:
        """Append a sample dict, encoded; None, and nothing is written, where it would pass maxcount or maxsize."""
        return self._core.add(sample)

    def commit(self) -> Index:
        """Finish the shard, put it into its place and return its index."""
        columns = self._core.finish()
        if self._sync:
            os.fsync(self._fd)
        index = self._index(columns, self.path, self._mtime)
        if self._part:
            index.save(part_name(self.path), sync=self._sync)
        os.close(self._fd)
        self._fd = -1
        os.replace(self._temporary, self.path)
        return index

    def abort(self) -> None:
        """Remove what was written."""
        self._core.stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self.commit()
        finally:
            self.abort()


def _hidden(path: str, suffix: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}{suffix}")


def part_name(path: str) -> str:
    """Return where the index of a single shard lies until it is merged into that of the set."""
    return _hidden(path, ".part")


class Packer:
    """Where one shard ends and the next begins: a sample goes into the next if this one would pass a limit with it.

    `maxcount`: samples; `maxsize`: bytes of the whole tar. A sample larger than maxsize gets a shard of its own.
    """

    def __init__(self, maxcount: int | None, maxsize: int | None) -> None:
        if (maxcount is not None and maxcount < 1) or (maxsize is not None and maxsize < 1):
            raise ValueError("maxcount and maxsize must be positive")
        self._maxcount = maxcount if maxcount is not None else 1 << 62
        self._maxsize = maxsize if maxsize is not None else 1 << 62
        self.reset()

    def reset(self) -> None:
        """Begin another shard."""
        self.count, self.nbytes = 0, tar.END_MARKER

    def is_full(self, nbytes: int) -> bool:
        """Say whether a sample of nbytes must begin another shard."""
        return self.count > 0 and (self.count >= self._maxcount or self.nbytes + nbytes > self._maxsize)

    def add(self, nbytes: int) -> bool:
        """Count a sample in; true where it begins another shard (never for the first of all)."""
        fresh = self.is_full(nbytes)
        if fresh:
            self.reset()
        self.count += 1
        self.nbytes += nbytes
        return fresh


class ShardWriter:
    """Write samples into numbered shards, with their index.

        with ShardWriter("out/train-%06d.tar", maxcount=10_000) as sink:
            sink.write({"__key__": "000001", "jpg": image_or_bytes, "cls": 7})

    `pattern`: with one `%06d` or the like. `maxcount`: samples a shard; `maxsize`: bytes of a tar, all included.
    `lift`: columns for the index ("cls", "json:width"). `index`: where to write the index, None for none; by default
    urls.index_name() of the shards. `encoders`, `allow_pickle`: see encode.encode. `post(path)` is called after each
    shard. `overwrite`: files that the pattern names already are removed first,
    so that two runs never mix; without it they are an error.
    `sync`: see ShardFile.

    A shard appears under its name when it is whole; what is unfinished at an exception is removed, and the index is
    written by close(). Raises EncodeError, SourceError (bad or repeated key), DestinationError.
    """

    def __init__(
        self,
        pattern: str,
        maxcount: int = 100_000,
        maxsize: float = 3_000_000_000,
        *,
        lift: Lift = (),
        index: str | None = "",
        encoders: Mapping[str, encode.Encoder] | None = None,
        allow_pickle: bool = False,
        post: Callable[[str], object] | None = None,
        start_shard: int = 0,
        overwrite: bool = False,
        sync: bool = False,
    ) -> None:
        if maxcount < 1 or maxsize < 1:
            raise ValueError("maxcount and maxsize must be positive")
        if start_shard < 0:
            raise ValueError("start_shard must not be negative")
        check_pattern(pattern)
        existing = existing_shards(pattern)
        if existing and not overwrite:
            raise DestinationError(f"{existing[0]} is there already: pass overwrite=True, or write elsewhere")
        if existing:  # their index goes first, so that none ever names shards that are not there
            _remove(index or urls.index_name([urls.escape(path) for path in existing]))
        for path in existing:
            os.unlink(path)
            _remove(part_name(path))
        os.makedirs(os.path.dirname(pattern % 0) or ".", exist_ok=True)
        self.pattern, self.shard = pattern, start_shard
        self.total = 0
        self._index_path, self._lift = index, lift
        self._post, self._sync = post, sync
        encoder = encode.make_encoder(allow_pickle, encoders)
        self._limits = {"encode": encoder, "maxcount": maxcount, "maxsize": int(maxsize)}
        self._file: ShardFile | None = None
        self._done: list[str] = []
        self._closed = False

    def write(self, sample: Sample) -> int:
        """Append a sample; names that begin with `_` are not written. Returns its bytes in the shard.

        After an error the shard is as it was before.
        """
        written = self._file.add(sample) if self._file is not None else None
        if written is None:  # full: the first sample of a shard always fits
            self._next()
            written = self._file.add(sample)  # type: ignore[union-attr]
        self.total += 1
        return written  # type: ignore[return-value]

    def _next(self) -> None:
        if self._closed:
            raise ValueError("the writer is closed")
        self._finish()
        path = self.pattern % self.shard
        self._file = ShardFile(
            path, lift=self._lift, part=self._index_path is not None, sync=self._sync, core=self._limits
        )
        self.shard += 1

    def _finish(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            if not file.nsamples:  # its first sample was refused
                return
            file.commit()
            self._done.append(file.path)
        finally:
            file.abort()
        if self._post is not None:
            self._post(file.path)

    def close(self) -> None:
        """Finish the last shard and write the index; calling it again does nothing."""
        from wdstools.merge import merge_files

        self._closed = True
        self._finish()
        done, self._done = self._done, []
        if done and self._index_path is not None:
            path = self._index_path or urls.index_name([urls.escape(path) for path in done])
            merge_files([part_name(path) for path in done], path, trusted=True)
            _remove_parts(done)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
            return
        self._closed = True
        file, self._file = self._file, None
        if file is not None:
            file.abort()
        done, self._done = self._done, []
        _remove_parts(done)


def _remove_parts(shards: Sequence[str]) -> None:
    for path in shards:
        _remove(part_name(path))


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)
