"""Surveys: on whole shards what walk() says, both ways of reading; hostile bytes in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from attacks import ATTACKS
from damaging import KINDS, make
from helpers import dribble, make_tar, pipe, regular, take
from hypothesis import given
from hypothesis import strategies as st

from wdstools import _core, tar
from wdstools.doctor.checkup import Lot, Options, checkup
from wdstools.doctor.repair import repair
from wdstools.doctor.survey import CUT, DAMAGE, END, LONE, SHIFT, TRUNCATED, Survey, of_columns
from wdstools.errors import ShardError


def survey(data: bytes, way: Callable[[bytes], Any] = regular) -> Survey:
    with way(data) as source:
        return of_columns(_core.survey(source), "u.tar")


def names(found: Survey) -> list[str]:
    return [found.name(i) for i in range(len(found))]


@pytest.mark.parametrize("seed", range(12))
def test_a_whole_shard_is_what_walk_says(seed: int) -> None:
    made = make(Random(seed), tars=seed % 3 == 0)
    with regular(made.data) as fd:
        members = list(tar.walk(fd))
    for way in (regular, pipe, dribble):
        found = survey(made.data, way)
        assert found.marks == []
        assert found.nbytes == len(made.data)
        assert not found.flags.any()
        rows = zip(found.starts, found.headers, found.offsets, found.sizes, strict=True)
        assert [tuple(map(int, row)) for row in rows] == [(m.start, m.header, m.offset, m.nbytes) for m in members]
        assert names(found) == [m.name for m in members]


@given(st.integers(0, 1 << 30))
def test_any_damage_leaves_a_sound_survey(seed: int) -> None:
    rng = Random(seed)
    made = make(rng, tars=rng.random() < 0.3)
    data = KINDS[rng.choice(list(KINDS))](made, rng).data
    for way in (regular, dribble):
        found = survey(data, way)
        assert found.nbytes == len(data)
        assert np.all(found.starts[1:] >= found.headers[:-1] + np.uint64(512))
        assert np.all(found.headers < found.offsets)
        inside = found.flags & CUT == 0
        assert np.all((found.offsets + found.sizes)[inside] <= len(data))
        for mark in found.marks:
            assert 0 <= mark.start <= mark.end <= len(data)
            assert mark.start <= mark.at <= len(data)  # a reader notices later, where bytes were lost
            assert mark.before <= len(found)


@given(st.integers(0, 1 << 30))
def test_a_survey_with_checksums_is_both(seed: int) -> None:
    """Whatever is jumped over, read twice or looked for in payloads: every byte is summed up once, in order."""
    rng = Random(seed)
    made = make(rng, tars=rng.random() < 0.3)
    whole = make_tar(
        [(f"{i}.x", rng.randbytes(rng.choice([0, 5000, 40_000, 300_000]))) for i in range(rng.randrange(6))]
    )
    data = rng.choice(
        [made.data, KINDS[rng.choice(list(KINDS))](made, rng).data, whole, whole[:-1000], whole + bytes(9)]
    )
    cuts = sorted(set(rng.choices(range(len(data) + 5000), k=2 * rng.randrange(5))))
    starts, ends = (np.array(cuts[i::2][: len(cuts) // 2], np.uint64).tobytes() for i in (0, 1))
    with regular(data) as fd:
        found = _core.survey_sums(fd, starts, ends)
        assert found.pop("sums") == _core.checksums(fd, "u.tar", starts, ends)
        assert found == _core.survey(fd)


def test_a_survey_with_checksums_of_what_it_cannot() -> None:
    with regular(make_tar([])) as fd:
        for starts, ends in [(bytes(7), bytes(7)), (bytes(8), b""), (bytes(8), bytes(8))]:
            with pytest.raises(ValueError, match="64-bit numbers"):
                _core.survey_sums(fd, starts, ends)
    with pipe(make_tar([])) as source, pytest.raises(ValueError, match="regular file"):
        _core.survey_sums(source, b"", b"")
    with regular(b"") as fd:
        assert _core.survey_sums(fd, b"", b"")["sums"][0] == 0


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attacks(name: str) -> None:
    """What a reader refuses for its headers leaves a mark; what it takes leaves none."""
    for way in (regular, dribble):
        found = survey(ATTACKS[name].data, way)
        with regular(ATTACKS[name].data) as fd:
            refused = isinstance(take(tar.walk(fd))[1], ShardError)
        assert bool(found.marks) == refused


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    block = bytearray(tar.format_header(name.decode(), 0))
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HOSTILE = {
    "headers that claim long texts": header(b"x", 1 << 20, b"x") + b"9 path=a\n" + bytes(503),
    "headers that claim all there is": header(b"a.x", 1 << 40),
    "headers that claim a lot": header(b"a.x", 8 << 20),
    "digits": b"0123456 ",
    "headers in a row": header(b"a.x", 0),
    "spaces": b" ",
    "zeros and headers": bytes(1024) + header(b"a.x", 512),
    "lone zeros": bytes(512) + header(b"a.x", 0) + b"\1" * 512,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_take_time_in_proportion(what: str) -> None:
    def seconds(nbytes: int) -> float:
        data = b"junk" + HOSTILE[what] * (nbytes // len(HOSTILE[what]))
        began = time.process_time()
        survey(data)
        return time.process_time() - began

    small, large = seconds(1 << 20), seconds(8 << 20)
    assert large < 2
    assert large < 40 * small + 0.1, "8 times the bytes"


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_repaired_in_time(what: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"junk" + HOSTILE[what] * ((1 << 20) // len(HOSTILE[what])))
    began = time.process_time()
    checkup(Lot([str(tmp_path / "a.tar")], None, None), Options(workers=1))
    repair([str(tmp_path / "a.tar")], str(tmp_path / "out"), keep="first")
    assert time.process_time() - began < 4


def test_members_lost_in_a_payload_that_is_a_chain() -> None:
    """Thousands of headers within a damaged payload, none of which leads out of it."""
    inner = make_tar([(f"{i:05d}.x", b"") for i in range(20000)])
    data = make_tar([("a.tar", inner), ("b.x", b"b" * 100), ("c.x", b"c")])
    at = 512 + len(inner)
    broken = data[:at] + b"\xff" * 512 + data[at + 512 :]
    began = time.process_time()
    found = survey(broken)
    assert time.process_time() - began < 2
    assert names(found) == ["a.tar", "c.x"]
    assert [mark.kind for mark in found.marks] == [DAMAGE]


def test_marks() -> None:
    data = make_tar([("a.x", b"a" * 700), ("b.x", b"b" * 700), ("c.x", b"c" * 700)])
    whole = data[:4608]
    assert [m.kind for m in survey(whole).marks] == [TRUNCATED]
    assert [(m.kind, m.at) for m in survey(whole + bytes(512)).marks] == [(TRUNCATED, 5120)]
    assert survey(whole + bytes(1024)).marks == []
    assert [(m.kind, m.at, m.end) for m in survey(data + data).marks] == [(END, 4608, len(data))]
    assert [(m.kind, m.at) for m in survey(data[:1536] + bytes(512) + data[1536:]).marks] == [(LONE, 1536)]
    lost = survey(data[:1000] + data[1300:])
    assert [(m.kind, m.at, m.end) for m in lost.marks] == [(SHIFT, 0, 1236)]
    assert names(lost) == ["a.x", "b.x", "c.x"]
    assert lost.flags[0] & CUT
