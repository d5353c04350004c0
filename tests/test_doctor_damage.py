"""Damage made on purpose at random places: all of it found, none invented, everything recoverable recovered."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from damaging import KINDS, Damage, Made, make, run_case, try_one
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools.doctor.checkup import Lot, Options, checkup
from wdstools.samples import split_name

MANY = 160


def test_damage_at_random_places() -> None:
    """`python tests/damaging.py 1000` makes more of them."""
    told = [run_case(number, seed=7) for number in range(MANY)]
    assert [said for _, _, said in told if said] == []
    total = {column: sum(row[column] for _, row, _ in told) for column in told[0][1]}
    assert total["found"] > 0.7 * MANY
    assert total["recovered"] >= 0.99 * total["untouched"] > 0
    assert {name for name, _, _ in told} == set(KINDS)


@settings(max_examples=60, derandomize=True)
@given(st.integers(0, 10_000_000))
def test_damage_at_any_place(seed: int) -> None:
    assert run_case(seed % len(KINDS), seed)[2] == ""


def test_a_miss_would_be_told(tmp_path: Path) -> None:
    """The model itself: what is not saved, and what is other than it was, does show."""
    made = make(Random(3))
    outcome = try_one(tmp_path, made, Damage(made.data, {"header"}, (0, 0)))
    assert (outcome.found, outcome.wrong, outcome.lost) == (set(), [], [])
    (tmp_path / "b").mkdir()
    at = made.offsets[-1] - 512
    other = made.data[:at] + bytes([made.data[at] ^ 1]) + made.data[at + 1 :]
    outcome = try_one(tmp_path / "b", made, Damage(other, {"header"}, (0, 0)))
    assert outcome.found == {"header"}
    assert outcome.lost == [split_name(made.files[-1][0])[0]]  # type: ignore[index]
    (tmp_path / "c").mkdir()
    at = made.offsets[0]
    other = made.data[:at] + bytes([made.data[at] ^ 1]) + made.data[at + 1 :]
    outcome = try_one(tmp_path / "c", made, Damage(other, {"header"}, (0, 0)))
    assert (outcome.found, outcome.wrong) == (set(), [split_name(made.files[0][0])[0]])  # type: ignore[index]


def double(made: Made, rng: Random) -> bytes:
    """Two headers of samples far apart."""
    data = bytearray(made.data)
    for member in (1, len(made.files) - 2):
        at = made.offsets[member] - 512 + 148
        data[at : at + 6] = b"\xff" * 6
    return bytes(data)


@pytest.mark.parametrize("seed", range(6))
def test_two_damaged_places(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    made = make(rng)
    hit = {split_name(made.files[member][0])[0] for member in (1, len(made.files) - 2)}  # type: ignore[index]
    outcome = try_one(tmp_path, made, Damage(double(made, rng), {"header"}, (0, 0)))
    assert outcome.wrong == []
    assert set(outcome.lost) == hit


@pytest.mark.parametrize("seed", range(40))
def test_members_of_a_tar_within_a_tar_are_no_samples(tmp_path: Path, seed: int) -> None:
    """Whatever is done to a header: of the shard, or within a payload."""
    rng = Random(seed)
    made = make(rng, tars=True)
    member = rng.randrange(len(made.files))
    at = made.offsets[member] - 512
    junk = rng.choice([bytes(512), rng.randbytes(512), b"\xff" * 512])
    outcome = try_one(tmp_path, made, Damage(made.data[:at] + junk + made.data[at + 512 :], {"header"}, (at, at + 512)))
    assert outcome.wrong == []
    assert set(outcome.lost) <= outcome.beside
    inside = next(i for i, (name, data) in enumerate(made.files) if b"in" in data[:3] and len(data) > 9000)
    at = made.offsets[inside] + 600
    (tmp_path / "b").mkdir()
    changed = made.data[:at] + b"\xff" * 8 + made.data[at + 8 :]
    (tmp_path / "b" / "x.tar").write_bytes(changed)
    report = checkup(Lot([str(tmp_path / "b" / "x.tar")], None, None), Options(workers=1))
    assert {problem.kind for problem in report.problems} <= {"pax"}, "a payload is not looked into"
