"""Our samplers in torchdata's StatefulDataLoader, loaders by its protocol: exactly the rest, wherever stopped."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402
from torchdata.stateful_dataloader.stateful import Stateful  # noqa: E402

from wdstools.errors import StateError  # noqa: E402
from wdstools.loader import loader  # noqa: E402
from wdstools.mix import Mix  # noqa: E402
from wdstools.plan import Plan  # noqa: E402
from wdstools.sampler import PlanBatchSampler  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]
PLAN = Plan(50, seed=3, batch_size=4, tail="uneven")
STEPS = 13


class Numbers:
    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> int:
        return number


def made(plan: Any, workers: int, **options: Any) -> tuple[Any, PlanBatchSampler]:
    sampler = PlanBatchSampler(plan)
    return StatefulDataLoader(Numbers(), batch_sampler=sampler, num_workers=workers, **options), sampler  # type: ignore[arg-type]


def taken(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def epoch(plan: Any, number: int) -> list[list[int]]:
    return [rows.tolist() for rows in plan.with_epoch(number).batches()]


def test_the_protocol() -> None:
    assert isinstance(PlanBatchSampler(PLAN), Stateful)
    assert isinstance(loader(Numbers(), 4), Stateful)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("every", [1, 3])
def test_exactly_the_rest(workers: int, every: int) -> None:
    """What torchdata's workers have drawn ahead is not lost, whatever the steps between its snapshots."""
    for stop in (0, 5, STEPS - 1, STEPS) if workers < 3 else (1, 7):
        first, sampler = made(PLAN, workers, snapshot_every_n_steps=every)
        sampler.set_epoch(2)
        batches = iter(first)
        assert taken(itertools.islice(batches, stop)) == epoch(PLAN, 2)[:stop]
        state = first.state_dict()
        second, _ = made(PLAN, workers, snapshot_every_n_steps=every)
        second.load_state_dict(state)
        assert taken(second) == epoch(PLAN, 2)[stop:]
        assert taken(second) == epoch(PLAN, 3)
        del batches, first, second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_epoch_was_read(workers: int) -> None:
    first, _ = made(PLAN, workers)
    assert taken(first) == epoch(PLAN, 0)
    second, _ = made(PLAN, workers)
    second.load_state_dict(first.state_dict())
    assert taken(second) == epoch(PLAN, 1)  # torchdata knows that it had come to the end
    assert taken(first) == epoch(PLAN, 1)


def test_mixtures_and_ranks() -> None:
    """A mixture, taken up by ranks that are more at the same global batch."""
    mix = Mix({"a": (Plan(40), 2), "b": (Plan(30), 1)}, batch_size=6, epoch_length=60)
    first, _ = made(mix, 2)
    assert taken(itertools.islice(first, 4)) == epoch(mix, 0)[:4]
    state = first.state_dict()
    found = []
    for rank in range(3):
        second, _ = made(mix.with_rank(rank, 3), 2)
        second.load_state_dict(state)
        found.append(taken(second))
    assert [list(itertools.chain(*parts)) for parts in zip(*found, strict=True)] == epoch(mix, 0)[4:]


def test_another_number_of_workers() -> None:
    """torchdata refuses it; the sampler's part of its state goes on with any, and so does our loader."""
    first, _ = made(PLAN, 2)
    assert taken(itertools.islice(first, 5)) == epoch(PLAN, 0)[:5]
    state = first.state_dict()
    with pytest.raises(AssertionError):
        iter(_loaded(3, state))
    inner = state["_snapshot"]["_main_snapshot"]["_index_sampler_state"]
    for workers in (0, 1, 3):
        second, sampler = made(PLAN, workers)
        sampler.load_state_dict(inner)
        assert taken(second) == epoch(PLAN, 0)[5:]


def _loaded(workers: int, state: dict[str, Any]) -> Any:
    second, _ = made(PLAN, workers)
    second.load_state_dict(state)
    return second


def test_a_state_of_other_data_is_refused() -> None:
    first, _ = made(PLAN, 0)
    taken(itertools.islice(first, 3))
    second, _ = made(Plan(51, seed=3, batch_size=4, tail="uneven"), 0)
    second.load_state_dict(first.state_dict())
    with pytest.raises(StateError, match="n is 50 in the state and 51 here"):
        iter(second)
