"""Every member that a shard still has, damaged or not, and what lies between them: the columns of _core.survey()."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from wdstools import _core
from wdstools.checksums import Sums
from wdstools.storage import Source, Whole

Array = np.ndarray[Any, Any]

# kinds of marks, as survey.h has them
DAMAGE, SHIFT, ZEROS, END, TRAILING, TRUNCATED, LONE = range(1, 8)
# flags of members: the payload is not all there; the bytes behind it are not zero from the first on; or later on
CUT, PADDING, LITTER = 1, 2, 4
NONE = 0xFFFFFFFF  # the code of a member that is no field
RESERVED = ("__key__", "__url__", "__local_path__")  # no names for fields
BLOCK = 512
RECORD = 20 * BLOCK


class Mark(NamedTuple):
    """Bytes [start, end) between members, or behind them. `at`: the block at fault; `before`: how many members stand in
    front of it; `kind`: see above."""

    kind: int
    start: int
    at: int
    end: int
    before: int
    reason: str | None


@dataclass
class Survey:
    """The members of one shard, by columns. All offsets are bytes from its start.

    `types`: bytes, keys of tar.TYPES; `flags`: see above; `codes`: which of `exts` a member is, NONE where it is no
    field of a sample; `hashes`: of the keys; `nbytes`: of the shard; `pax_members`, `pax_bytes`: headers that plain
    ustar does without, and how many bytes they take.
    """

    url: str
    nbytes: int
    names: bytes
    name_ends: Array
    types: Array
    flags: Array
    starts: Array
    headers: Array
    offsets: Array
    sizes: Array
    key_lens: Array
    hashes: Array
    codes: Array
    exts: list[str]
    marks: list[Mark]
    pax_members: int
    pax_bytes: int

    def __len__(self) -> int:
        return len(self.starts)

    def raw_name(self, member: int) -> bytes:
        """Return the bytes of a member's name."""
        return self.names[int(self.name_ends[member - 1]) if member else 0 : int(self.name_ends[member])]

    def name(self, member: int) -> str:
        """Return the name of a member, UTF-8 with surrogateescape."""
        return self.raw_name(member).decode("utf-8", "surrogateescape")

    def raw_key(self, member: int) -> bytes:
        """Return the bytes of the key of a member that is a field."""
        return self.raw_name(member)[: int(self.key_lens[member])]

    def key(self, member: int) -> str:
        """Return the key of a member that is a field."""
        return self.raw_key(member).decode("utf-8", "surrogateescape")

    def ext(self, member: int) -> str:
        """Return the field that a member is."""
        return self.exts[int(self.codes[member])]

    def is_marker(self, number: int) -> bool:
        """Say whether a mark of zeros with members behind it looks like the end of an archive, as programs write it:
        two blocks, or so many that the archive has a multiple of 20. Else it is what was overwritten by zeros."""
        mark = self.marks[number]
        begin = self._begins[number]
        return mark.end - mark.start == 2 * BLOCK or self.is_padded(mark, begin)

    def past_marker(self, number: int) -> int:
        """Where what begins with a mark of zeros ends: bytes may trail it."""
        mark = self.marks[number]
        follows = self.marks[number + 1] if number + 1 < len(self.marks) else None
        trailed = follows is not None and follows.kind == TRAILING and follows.start == mark.end
        return follows.end if trailed and follows else mark.end

    @cached_property
    def _begins(self) -> list[int]:
        """Per mark, where the archive that it is in begins."""
        begins, begin = [], 0
        for mark in self.marks:
            begins.append(begin)
            begin = mark.end if mark.kind == END else begin
        return begins

    def is_padded(self, mark: Mark, begin: int) -> bool:
        """Say whether an archive that begins at `begin` and ends behind a mark has a multiple of 20 blocks."""
        return mark.end % BLOCK == begin % BLOCK and (mark.end - begin) % RECORD == 0

    @cached_property
    def ends(self) -> Array:
        """Where the padding of each member ends."""
        block = np.uint64(BLOCK)
        found: Array = self.offsets + (self.sizes + block - np.uint64(1)) // block * block
        return found

    @cached_property
    def is_dirty(self) -> bool:
        """Say whether most padding is not zero: whoever wrote the shard left it as it was, and it tells nothing."""
        padded = np.count_nonzero(self.sizes % np.uint64(BLOCK))
        return bool(np.count_nonzero(self.flags & (PADDING | LITTER)) * 2 > padded > 2)

    @cached_property
    def fields(self) -> Array:
        """The members that are fields of samples, in order."""
        return np.flatnonzero(self.codes != NONE)

    @cached_property
    def sparse(self) -> Array:
        """The fields that are sparse members."""
        found: Array = self.fields[self.types[self.fields] == ord("S")]
        return found

    @cached_property
    def not_text(self) -> list[int]:
        """The fields whose names are not UTF-8."""
        if _is_text(self.names):
            return []
        return [member for member in self.fields.tolist() if not _is_text(self.raw_name(member))]

    @cached_property
    def firsts(self) -> Array:
        """Positions in `fields` at which another group begins: adjacent members with one key."""
        hashes, lens = self.hashes[self.fields], self.key_lens[self.fields]
        if not len(hashes):
            return np.zeros(0, np.int64)
        fresh: Array = (hashes[1:] != hashes[:-1]) | (lens[1:] != lens[:-1])
        begins: Array = np.append(0, np.flatnonzero(fresh) + 1)
        return begins

    @cached_property
    def groups(self) -> Array:
        """The first member of each group."""
        return self.fields[self.firsts]

    @cached_property
    def distinct_hashes(self) -> Array:
        """The hashes of the keys, ascending, each once."""
        hashes = np.sort(self.hashes[self.groups])
        distinct: Array = hashes[np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]]
        return distinct

    @cached_property
    def group_of(self) -> Array:
        """The group of each of `fields`."""
        lengths = np.diff(np.append(self.firsts, len(self.fields)))
        return np.repeat(np.arange(len(self.firsts)), lengths)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def take(source: Source) -> Survey:
    """Survey an opened shard. Of one that cannot be read anywhere, what follows damage is looked for behind it only.

    Raises StoreError, OSError."""
    whole = source.local_path is None or not isinstance(source.handle, int)
    return of_columns(_core.survey(Whole(source) if whole and source.head else source.handle), source.url)


def take_summed(source: Source, places: tuple[bytes, bytes]) -> tuple[Survey, Sums] | None:
    """Survey an opened shard and compute its checksums, in one pass. None: it is no plain local file.

    Raises OSError."""
    if source.local_path is None or not isinstance(source.handle, int):
        return None
    if not stat.S_ISREG(os.fstat(source.handle).st_mode):
        return None
    columns = _core.survey_sums(source.handle, *places)
    return of_columns(columns, source.url), columns["sums"]


def of_columns(columns: dict[str, Any], url: str) -> Survey:
    """Wrap what _core.survey() returned."""

    def u64(name: str) -> Array:
        return np.frombuffer(columns[name], np.uint64)

    ends = [0, *u64("ext_ends").tolist()]
    raw = [columns["exts"][a:b] for a, b in itertools.pairwise(ends)]
    exts = [ext.decode("utf-8", "surrogateescape").lower() for ext in raw]
    codes = np.frombuffer(columns["codes"], np.uint32)
    if len(set(exts)) < len(exts):  # the core lowers ASCII only
        first = {ext: number for number, ext in reversed(list(enumerate(exts)))}
        fold = np.append(np.array([first[ext] for ext in exts], np.uint32), np.uint32(NONE))
        codes = fold[np.minimum(codes, len(exts))]
    return Survey(
        url, columns["size"], columns["names"], u64("name_ends"), np.frombuffer(columns["types"], np.uint8),
        np.frombuffer(columns["flags"], np.uint8), u64("starts"), u64("headers"), u64("offsets"), u64("nbytes"),
        np.frombuffer(columns["key_lens"], np.uint32), u64("hashes"), codes, exts,
        [Mark(*mark) for mark in columns["marks"]], columns["pax_members"], columns["pax_bytes"],
    )  # fmt: skip
