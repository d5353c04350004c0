"""Steps, ranks, workers, tails and states, of plans and of mixtures, against lists."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools.deal import Deal
from wdstools.errors import StateError, WdsError
from wdstools.mix import Mix
from wdstools.plan import Plan

SEED = st.integers(0, (1 << 64) - 1)
TAIL = st.sampled_from(["drop", "pad", "uneven"])
DEALT = st.fixed_dictionaries({"tail": TAIL, "epoch": st.integers(0, 1000), "data": st.sampled_from(["", "abc"])})
RANKS = st.tuples(st.integers(1, 7), st.integers(1, 6))  # batch_size, world


@st.composite
def orders(draw: Any, least: int = 0, most: int = 120) -> dict[str, Any]:
    """The arguments of a Plan."""
    n = draw(st.integers(least, most))
    shuffle, resample = draw(st.sampled_from([(True, False), (True, False), (True, True), (False, False)]))
    block = 1 if resample else draw(st.sampled_from([1, 2, 7, max(1, n - 1), max(1, n), n + 3]))
    return {"n": n, "seed": draw(SEED), "shuffle": shuffle, "resample": resample, "block": block}


@st.composite
def deals(draw: Any) -> Deal:
    """A plan or a mixture, as rank 0."""
    batch_size, world = draw(RANKS)
    dealt = {**draw(DEALT), "batch_size": batch_size, "world": world, "seed": draw(SEED)}
    if draw(st.booleans()):
        return Plan(**draw(orders()) | dealt)
    weight = st.one_of(st.integers(1, 5), st.floats(0.01, 10))
    sources = [(Plan(**arguments), draw(weight)) for arguments in draw(st.lists(orders(1, 30), min_size=1, max_size=4))]
    length = draw(st.one_of(st.integers(0, 150), st.just("first")))
    return Mix(sources, epoch_length=length, window=draw(st.integers(1, 70)), shuffle=draw(st.booleans()), **dealt)


def ranks(deal: Deal, world: int | None = None) -> list[Any]:
    world = deal.world if world is None else world
    return [deal.with_rank(rank, world) for rank in range(world)]


def lists(batches: Any) -> list[list[int]]:
    return [rows.tolist() for rows in batches]


def dealt(deal: Deal) -> list[list[list[int]]]:
    """The batches of every rank, from the order of the epoch as a list; step by step, rank by rank."""
    order = first = [deal.row(p) for p in range(deal.length)]
    lacking = 0
    batches: list[list[list[int]]] = [[] for _ in range(deal.world)]
    while order:
        step, order = order[: deal.global_batch], order[deal.global_batch :]
        if len(step) < deal.global_batch and deal.tail == "drop":
            break
        while len(step) < deal.global_batch and deal.tail == "pad":
            step.append(first[lacking % len(first)])
            lacking += 1
        sizes = [len(step) * (k + 1) // deal.world - len(step) * k // deal.world for k in range(deal.world)]
        assert sum(sizes) == len(step)
        assert max(sizes) - min(sizes) <= 1
        for mine, size in zip(batches, sizes, strict=True):
            mine += [step[:size]] if size else []
            step = step[size:]
    return batches


@settings(max_examples=200, deadline=None)
@given(deals())
def test_ranks_against_lists(deal: Deal) -> None:
    expected = dealt(deal)
    assert [lists(mine.batches()) for mine in ranks(deal)] == expected
    assert [mine.count() for mine in ranks(deal)] == [len(batches) for batches in expected]
    for mine, batches in zip(ranks(deal), expected, strict=True):
        assert lists(mine.batch(step) for step in range(len(batches))) == batches
        assert all(rows.dtype == np.int64 for rows in mine.batches())


@settings(max_examples=200, deadline=None)
@given(deals())
def test_every_position_once(deal: Deal) -> None:
    order = deal.rows(0, deal.length).tolist()
    assert [deal.row(p) for p in range(len(order))] == order
    counts = [mine.count() for mine in ranks(deal)]
    read = Counter(row for mine in ranks(deal) for rows in mine.batches() for row in rows.tolist())
    steps = len(order) / deal.global_batch
    if deal.tail == "uneven":
        assert read == Counter(order)
        assert max(counts) - min(counts) <= 1
        assert math.ceil(steps) == max(counts)
    elif deal.tail == "drop":
        assert read == Counter(order[: math.floor(steps) * deal.global_batch])
        assert set(counts) == {math.floor(steps)}
    else:
        assert read == Counter(order[i % len(order)] for i in range(math.ceil(steps) * deal.global_batch))
        assert set(counts) == {math.ceil(steps)}


@settings(max_examples=100, deadline=None)
@given(deals(), st.integers(1, 5), st.data())
def test_workers(deal: Deal, workers: int, data: st.DataObject) -> None:
    deal = deal.with_rank(data.draw(st.integers(0, deal.world - 1)), deal.world)
    start = data.draw(st.integers(0, deal.steps))
    whole = lists(deal.batches(start))
    assert whole == lists(deal.batches())[start:]
    assert deal.count(start) == len(whole)
    shares = [lists(deal.batches(start, worker, workers)) for worker in range(workers)]
    assert [deal.count(start, worker, workers) for worker in range(workers)] == list(map(len, shares))
    assert [shares[i % workers][i // workers] for i in range(len(whole))] == whole
    assert sum(map(len, shares)) == len(whole)


@settings(max_examples=200, deadline=None)
@given(deals(), st.data())
def test_resume_with_other_ranks_and_workers(deal: Deal, data: st.DataObject) -> None:
    """What was read before the stop and what is read after it is the epoch, whatever reads it."""
    stop = data.draw(st.integers(0, deal.steps))
    before = [rows for mine in ranks(deal) for rows in lists(mine.batches())[:stop]]
    state = json.loads(json.dumps(deal.state_dict(stop)))
    assert all(mine.state_dict(stop) == state for mine in ranks(deal))
    world = data.draw(st.sampled_from([w for w in range(1, deal.global_batch + 1) if deal.global_batch % w == 0]))
    workers = data.draw(st.integers(1, 4))
    after = []
    for mine in ranks(deal.with_epoch(0), world):
        resumed, step = mine.resume(state)
        assert (resumed, step) == (mine.with_epoch(deal.epoch), stop)
        for worker in range(workers):
            after += lists(resumed.batches(step, worker, workers))
    whole = [rows for mine in ranks(deal) for rows in lists(mine.batches())]
    assert Counter(x for rows in before + after for x in rows) == Counter(x for rows in whole for x in rows)
    again = [rows for mine in ranks(deal) for rows in lists(mine.batches(stop))]
    assert Counter(x for rows in after for x in rows) == Counter(x for rows in again for x in rows)


@pytest.mark.parametrize("batch_size", [1, 3, 64, 4096, 8192, 10_000])
def test_batches_beside_each_other_are_those_one_by_one(batch_size: int) -> None:
    for tail in ("drop", "pad", "uneven"):
        plan = Plan(30_001, batch_size=batch_size, rank=1, world=3, tail=tail)
        assert lists(plan.batches(5 % plan.steps, 1, 2)) == lists(
            plan.batch(step) for step in range(5 % plan.steps + 1, plan.count(), 2)
        )


def test_a_batch_is_the_callers() -> None:
    """A batch may be written to: no other changes."""
    plan = Plan(100, batch_size=10)
    expected = lists(plan.batches())
    found = []
    for rows in plan.batches():
        found.append(rows.tolist())
        rows[:] = -1
    assert found == expected


PLAN = Plan(100, seed=3, block=4, batch_size=4, world=2, tail="drop", data="set 1")
MIX = Mix({"a": (PLAN, 2), "b": (Plan(10), 1)}, batch_size=4, world=2)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Plan(99, seed=3, block=4, batch_size=8, data="set 1"), "n is 100 in the state and 99 here$"),
        (Plan(100, seed=4, block=4, batch_size=8, data="set 1"), "seed is 3 in the state and 4 here$"),
        (Plan(100, seed=3, block=5, batch_size=8, data="set 1"), "block is 4 in the state and 5 here$"),
        (Plan(100, seed=3, block=4, batch_size=8, data="set 1", shuffle=False), "shuffle is 1 in .* and 0 here$"),
        (Plan(100, seed=3, block=4, batch_size=9, data="set 1"), "global_batch is 8 in the state and 9 here$"),
        (Plan(100, seed=3, block=4, batch_size=8, tail="pad", data="set 1"), "tail is 'drop' in .* 'pad' here$"),
        (Plan(100, seed=3, block=4, batch_size=8, data="set 2"), "data is 'set 1' in the state and 'set 2' here$"),
        (Plan(99, seed=4, block=4, batch_size=8, data="set 1"), "n is .*; seed is"),
        (MIX, "sources is None in the state and 'a, b' here"),
    ],
)  # fmt: skip
def test_a_state_of_something_else(other: Deal, told: str) -> None:
    with pytest.raises(StateError, match=told):
        other.resume(PLAN.state_dict(3))
    assert issubclass(StateError, ValueError)
    assert issubclass(StateError, WdsError)


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({"a": (PLAN, 4), "b": (Plan(10), 2)}, None),
        ({"a": (PLAN.with_rank(1, 4), 2), "b": (Plan(10), 1)}, None),
        ({"a": (PLAN, 2), "b": (Plan(10), 3)}, r"b.parts is 1 in the state and 3 here"),
        ({"a": (PLAN, 2), "b": (Plan(11), 1)}, r"b.n is 10 in the state and 11 here"),
        ({"a": (PLAN, 2), "b": (Plan(10, epoch=1), 1)}, r"b.epoch is 0 in the state and 1 here"),
        ({"a": (PLAN, 2), "c": (Plan(10), 1)}, r"b.parts is 1 in the state and None here"),
        ({"b": (Plan(10), 1), "a": (PLAN, 2)}, r"sources is 'a, b' in the state and 'b, a' here$"),
    ],
)
def test_a_state_of_another_mixture(sources: Any, told: str | None) -> None:
    other = Mix(sources, epoch_length=MIX.length, batch_size=8)
    if told is None:
        assert other.resume(MIX.state_dict(2)) == (other, 2)
    else:
        with pytest.raises(StateError, match=told):
            other.resume(MIX.state_dict(2))


@pytest.mark.parametrize(
    "change",
    [{"step": 13}, {"step": -1}, {"step": "1"}, {"step": 1.0}, {"step": None}, {"epoch": -1}, {"epoch": True}],
)
def test_a_state_that_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        PLAN.resume({**PLAN.state_dict(12), **change})
    nonsense: list[Any] = [{}, {"step": 1}, None, [], "state"]
    for broken in nonsense:
        with pytest.raises(StateError, match="not the state of a plan"):
            PLAN.resume(broken)


def test_a_state_is_small_and_may_gain_keys_only_by_a_version() -> None:
    assert PLAN.state_dict(5) == {
        "epoch": 0, "step": 5, "version": 1, "global_batch": 8, "tail": "drop", "data": "set 1",
        "n": 100, "seed": 3, "block": 4, "shuffle": 1, "resample": 0,
    }  # fmt: skip
    with pytest.raises(StateError, match="extra is 1 in the state and None here"):
        PLAN.resume({**PLAN.state_dict(5), "extra": 1})


def test_out_of_range() -> None:
    plan = Plan(10, batch_size=4, tail="pad")
    for position in (-1, 10, 1 << 70):
        with pytest.raises(IndexError, match=f"position {position} of an epoch of 10"):
            plan.row(position)
    for start, stop in ((-1, 3), (4, 3), (0, 11)):
        with pytest.raises(IndexError, match="of an epoch of 10"):
            plan.rows(start, stop)
    for step in (-1, 3):
        with pytest.raises(IndexError, match=f"step {step} of an epoch of 3 steps"):
            plan.batch(step)
    with pytest.raises(IndexError, match="start at step 4"):
        plan.batches(4)
    with pytest.raises(IndexError, match="step 4"):
        plan.state_dict(4)
    for worker, workers in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"worker {worker} of {workers}"):
            plan.batches(0, worker, workers)
    for world in (0, -1, 3):
        with pytest.raises(ValueError, match=f"batch of 4 does not divide among {world} ranks"):
            plan.with_rank(0, world)
    assert plan.rows(10, 10).tolist() == lists(plan.batches(3)) == []


@pytest.mark.parametrize("deal", [PLAN, MIX])
def test_values(deal: Deal) -> None:
    """Plans are values: equal, hashable, small when pickled, not to be changed."""
    deal.rows(0, 10)
    copy = pickle.loads(pickle.dumps(deal))
    assert copy == deal
    assert hash(copy) == hash(deal)
    assert deal.with_epoch(1) != deal
    assert len(pickle.dumps(deal)) < 1500
    assert eval(repr(Plan(3, seed=1))) == Plan(3, seed=1)
    with pytest.raises(AttributeError):
        deal.epoch = 3  # type: ignore[misc]
    assert len(deal) == deal.length
