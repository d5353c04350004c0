"""Whether an index says of a shard what a survey of it found: quick where it does."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdstools.columns import one_chunk, take_fields, text_array
from wdstools.comparison import difference
from wdstools.doctor.survey import Survey
from wdstools.index import Index
from wdstools.shardindex import index_shard, unsorted_hashes

Array = np.ndarray[Any, Any]


class Claims:
    """What an index says of its shards. Raises IndexFileError where it is not sound."""

    def __init__(self, index: Index) -> None:
        index.validate()
        self.index = index
        self._ends = np.cumsum([0, *index.shards.nsamples])
        self._hashes = unsorted_hashes(index)

    def contradicts(self, number: int, survey: Survey) -> str | None:
        """Return what the index has wrong of a shard without damage, or None. Raises ShardError, StoreError."""
        rows = slice(int(self._ends[number]), int(self._ends[number + 1]))
        if self._agrees(number, rows, survey):
            return None
        found = index_shard(survey.url)
        return difference(self.index, number, rows, self._hashes[rows], found)

    def _agrees(self, number: int, rows: slice, survey: Survey) -> bool:
        shards, groups = self.index.shards, survey.groups
        told = shards.nbytes[number], shards.nsamples[number], shards.nmembers[number]
        if told != (survey.nbytes, len(groups), len(survey)):
            return False
        if not len(groups):
            return True
        table = self.index.table.slice(rows.start, rows.stop - rows.start)
        lasts = survey.fields[np.append(survey.firsts[1:], len(survey.fields)) - 1]
        return (
            np.array_equal(self._hashes[rows], survey.hashes[groups])
            and np.array_equal(table.column("start").to_numpy(), survey.starts[groups])
            and np.array_equal(table.column("end").to_numpy(), survey.ends[lasts])
            and one_chunk(table.column("key")).cast("large_utf8").equals(_keys(survey).cast("large_utf8"))
            and _fields_agree(table, survey)
        )


def _keys(survey: Survey) -> Any:
    """The keys of the groups, as Arrow text."""
    lens = survey.key_lens[survey.groups].astype(np.int64)
    before = np.where(survey.groups > 0, survey.name_ends[survey.groups - 1], 0).astype(np.int64)
    ends = np.cumsum(lens)
    places = np.arange(ends[-1]) + np.repeat(before - (ends - lens), lens)
    return text_array(np.frombuffer(survey.names, np.uint8)[places].tobytes(), ends)


def _fields_agree(table: Any, survey: Survey) -> bool:
    known = {ext: code for code, ext in enumerate(survey.exts)}
    ends = np.append(survey.firsts[1:], len(survey.fields))
    mine = [column[survey.fields] for column in (survey.headers, survey.offsets, survey.sizes)]
    codes = survey.codes[survey.fields]
    row = field = 0
    for chunk in take_fields(table):
        rows, count = len(chunk.ends), len(chunk.codes)
        if not np.array_equal(chunk.ends + field, ends[row : row + rows]):
            return False
        translated = np.array([known.get(ext, -1) for ext in chunk.exts], np.int64)
        if count and not np.array_equal(translated[chunk.codes], codes[field : field + count]):
            return False
        if any(not np.array_equal(a, b[field : field + count]) for a, b in zip(chunk.places, mine, strict=True)):
            return False
        row, field = row + rows, field + count
    return field == len(survey.fields)
