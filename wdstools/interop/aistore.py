"""AIStore's shard index, version 1 (AIS 4.5 to 5.0), binary. All numbers but the checksum are Go's varints.

    1 version | 0 TAR | 1 xxhash | XXH64 of the rest, big-endian, seed 1103515245 | checksum type, value, size of the
    shard | count | count x (name, where the final header stands, bytes of the payload)

AIS keeps it in a bucket of its own, ais://.sys-shardidx, as OBJECT.idx. Beside a shard that name is Energon's or
Lhotse's, so it goes into a folder of its own.
"""

from __future__ import annotations

import os

from wdstools import _core, tar, urls
from wdstools.errors import DestinationError, UnsupportedError
from wdstools.index import Index
from wdstools.interop import foreign
from wdstools.interop.claims import Claim, Field
from wdstools.interop.detect import AISTORE_SEED, claim_file
from wdstools.interop.foreign import Options, Written, wrong
from wdstools.interop.members import Members, write_each
from wdstools.samples import split_name

HEAD = b"\1\0\1"
MOST = 1 << 20  # members
FILE = ord("f")


def index_path(shard: str) -> str:
    """The name of the index of an object."""
    return shard + ".idx"


def export(index: Index, options: Options) -> Written:
    """Write the index of every shard into the folder `options.output`. Raises UnsupportedError for shards with too many
    members, StaleIndexError, DestinationError."""
    if options.output is None:
        raise DestinationError("AIStore keeps indexes in its own bucket: give a folder for them with --output")
    paths = foreign.beside(index.shards.url, options, "AIStore", index_path)
    for path, url in zip(paths, index.shards.url, strict=True):
        local = urls.local_path(url)
        if local is not None and os.path.realpath(path) == os.path.realpath(index_path(local)):
            raise DestinationError(
                f"{path}: is where Energon and Lhotse have theirs; give another folder with --output"
            )
        claim_file(path, "aistore", options.overwrite, url)
    write_each(index, paths, encode, options)
    note = "the checksum of the object is left out, so an AIS that compares it builds the index anew"
    return Written(paths, [f"{options.output}: {note}"])


def encode(members: Members, url: str, checksum: tuple[str, str] = ("none", "")) -> bytes:
    """Return the bytes of the index of a shard; of a name that comes twice, the first member. Raises
    UnsupportedError."""
    files: dict[bytes, tuple[int, int]] = {}
    names = members.names.to_pylist()
    for name, kind, header, nbytes in zip(
        names, members.types.tolist(), members.headers.tolist(), members.nbytes.tolist(), strict=True
    ):
        if kind == FILE:
            files.setdefault(name, (header, nbytes))
    if len(files) > MOST:
        raise UnsupportedError(f"{len(files)} files, and AIStore's index takes {MOST}", url)
    out = bytearray()
    for text in checksum:
        out += _text(text.encode())
    out += varint(members.shard_nbytes) + varint(len(files))
    for name, (header, nbytes) in files.items():
        out += _text(name) + varint(header) + varint(nbytes)
    return HEAD + _core.hash_key(out, AISTORE_SEED).to_bytes(8, "big") + out


def _text(data: bytes) -> bytes:
    return varint(len(data)) + data


def varint(value: int) -> bytes:
    """A number as Go's binary.PutUvarint writes it: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    def __init__(self, path: str, data: bytes) -> None:
        self._path, self._data, self._at = path, data, 11

    def number(self) -> int:
        value = shift = 0
        while True:
            if self._at >= len(self._data):
                wrong(self._path, f"ends in a number at byte {self._at}")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                wrong(self._path, f"a number of more than 64 bits at byte {self._at}")
        if value >= 1 << 64:
            wrong(self._path, f"a number of more than 64 bits at byte {self._at}")
        return value

    def text(self) -> str:
        length = self.number()
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            wrong(self._path, f"a text of {length} bytes at byte {start} that goes past its end")
        return self._data[start : self._at].decode("utf-8", "surrogateescape")

    def finish(self) -> None:
        if self._at != len(self._data):
            wrong(self._path, f"{len(self._data) - self._at} bytes more than it says")


def read(path: str, shard: str) -> Claim:
    """Read the index of a shard. Raises IndexFileError, NotFoundError."""
    data = foreign.read(path)
    if data[:3] != HEAD:
        what = "version 2, of AIS 5.1, which is not read" if data[:1] == b"\2" else f"{data[:3]!r}"
        wrong(path, f"not an AIStore index of version 1: it begins with {what}")
    if _core.hash_key(data[11:], AISTORE_SEED) != int.from_bytes(data[3:11], "big"):
        wrong(path, "damaged: its checksum is another one")
    reader = _Reader(path, data)
    reader.text(), reader.text()
    nbytes, count = reader.number(), reader.number()
    if count > MOST:
        wrong(path, f"{count} files, and the format takes {MOST}")
    fields = []
    for _ in range(count):
        name, header, size = reader.text(), reader.number(), reader.number()
        if (split := split_name(name)) is not None:
            fields.append(Field(*split, header + tar.BLOCK, size))
    reader.finish()
    return Claim(shard, path, fields=fields, nbytes=nbytes)
