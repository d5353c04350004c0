"""What the regimes promise, against the plan that deals the samples; how ranks take their steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("hydra")

import wdstools  # noqa: E402
from bench.train import steps as steps_module  # noqa: E402
from bench.train import strategies  # noqa: E402
from bench.train.regimes import OPTIONS, counts, joined, options  # noqa: E402
from bench.train.settings import CHOICES, Settings  # noqa: E402
from bench.train.steps import Agreement, Steps, StoppedTogether  # noqa: E402
from bench.train.stopping import Stop  # noqa: E402
from wdstools.plan import Plan  # noqa: E402

SIZES = {"n": st.integers(0, 300), "batch": st.integers(1, 20), "world": st.integers(1, 7)}


def test_every_regime_that_can_be_set_has_options() -> None:
    assert set(CHOICES["regime"]) == set(OPTIONS)
    with pytest.raises(ValueError, match="regime=fair: one of exact, resample, uneven, padded"):
        options("fair")
    with pytest.raises(ValueError, match="one of exact"):
        counts(10, 2, 2, "fair")
    with pytest.raises(ValueError, match="one of exact"):
        joined([], "fair")
    options("exact")["tail"] = "pad"
    assert options("exact") == {"tail": "drop"}


def test_counts_of_the_example() -> None:
    """1,003 samples, two ranks, batches of 8."""
    assert counts(1003, 8, 2, "exact") == [(496, 62), (496, 62)]
    assert counts(1003, 8, 2, "resample") == [(496, 62), (496, 62)]
    assert counts(1003, 8, 2, "uneven") == [(501, 63), (502, 63)]
    assert counts(1003, 8, 2, "padded") == [(504, 63), (504, 63)]
    assert counts(993, 8, 2, "uneven") == [(496, 62), (497, 63)]


@given(**SIZES, regime=st.sampled_from(sorted(OPTIONS)))
def test_counts_are_those_of_the_plan(n: int, batch: int, world: int, regime: str) -> None:
    if n == 0 and regime == "resample":
        return  # nothing to draw from
    dealt: list[list[Any]] = []
    for rank in range(world):
        plan = Plan(n, batch_size=batch, rank=rank, world=world, **options(regime))
        dealt.append([rows.tolist() for rows in plan.batches()])
    assert counts(n, batch, world, regime) == [(sum(map(len, b)), len(b)) for b in dealt]
    rows = sorted(row for batches in dealt for rows in batches for row in rows)
    if regime == "uneven":
        assert rows == list(range(n))
    elif regime == "padded":
        assert set(rows) == set(range(n))
    elif regime == "exact":
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("regime", sorted(OPTIONS))
def test_counts_are_those_of_the_loader(regime: str) -> None:
    for rank, (samples, batches) in enumerate(counts(103, 4, 3, regime)):
        loader = wdstools.loader(list(range(103)), 4, rank=rank, world=3, seed=1, **options(regime))
        found = list(loader)
        assert (sum(map(len, found)), len(found), len(loader)) == (samples, batches, batches)


def test_only_uneven_joins() -> None:
    for regime in ("exact", "resample", "padded"):
        assert isinstance(joined([], regime), contextlib.nullcontext)
    with pytest.raises(ValueError, match="at least one joinable"):
        joined([], "uneven")


def test_strategies() -> None:
    assert strategies.strategy("uneven", 1) == "auto"
    assert type(strategies.strategy("exact", 2)).__name__ == "DDPStrategy"
    assert type(strategies.strategy("uneven", 2)).__name__ == "IdleDDP"
    batch = strategies.empty(Settings())
    assert (batch["image"].shape, batch["label"].shape, batch["key"]) == ((0, 1, 28, 28), (0,), [])


class Numbers:
    """A feed of numbers, whose state is how many it gave."""

    def __init__(self, n: int, exact: bool = True, sized: bool = True) -> None:
        self.n, self.exact, self.sized, self.at, self.closed = n, exact, sized, 0, 0
        self.error: Exception | None = None

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError("loader=x does not know")
        return self.n

    def __iter__(self) -> Iterator[int]:
        try:
            while self.at < self.n:
                self.at += 1
                if self.error:
                    raise self.error
                yield self.at
        finally:
            self.closed += 1

    def set_epoch(self, epoch: int) -> None:
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        if not self.exact:
            raise ValueError("loader=x cannot resume")
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_steps_of_one_rank() -> None:
    feed = Numbers(4)
    taken = Steps(feed, Agreement(Stop()))
    assert len(taken) == 4
    assert [(n, taken.state_dict()["at"]) for n in taken] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    taken.load_state_dict({"at": 2})
    assert list(taken) == [3, 4]
    taken.set_epoch(1)
    assert list(taken) == [1, 2, 3, 4]
    assert feed.closed == 3


def test_a_stop_keeps_the_batch_that_was_not_taken() -> None:
    stop, feed = Stop(), Numbers(4)
    taken = Steps(feed, Agreement(stop))
    batches = iter(taken)
    assert [next(batches), next(batches)] == [1, 2]
    stop.number = signal.SIGTERM
    with pytest.raises(StoppedTogether) as stopped:
        next(batches)
    assert stopped.value.code == 143
    assert feed.at == 3
    assert taken.state_dict() == {"at": 2}
    assert feed.closed == 1


def test_workers_that_a_signal_killed_are_no_error() -> None:
    stop, feed = Stop(), Numbers(4)
    feed.error = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
    with pytest.raises(RuntimeError, match="is killed"):
        list(Steps(feed, Agreement(stop)))
    stop.number = signal.SIGINT
    with pytest.raises(StoppedTogether):
        list(Steps(feed, Agreement(stop)))


def test_a_feed_without_a_place_says_so() -> None:
    taken = Steps(Numbers(2, exact=False), Agreement(Stop()))
    assert list(taken) == [1, 2]
    with pytest.raises(ValueError, match="cannot resume"):
        taken.state_dict()


class TwoRanks(Agreement):
    """As if another rank said something else."""

    def __init__(self, stop: Stop, most: int = 0, other: tuple[int, bool] = (0, False)) -> None:
        super().__init__(stop)
        self.other, self.said = other, 0

    def agree(self, lacking: bool = False) -> tuple[int, bool]:
        self.said += 1
        return max(self.stop.number, self.other[0]), lacking or self.other[1]


def test_an_epoch_ends_where_one_rank_has_no_batch() -> None:
    agreement = TwoRanks(Stop())
    seen = []
    for n in Steps(Numbers(9, sized=False), agreement):
        seen.append(n)
        agreement.other = (0, n == 3)
    assert seen == [1, 2, 3]


def test_in_a_join_nobody_stops_while_a_rank_is_gone() -> None:
    agreement = TwoRanks(Stop())
    seen = []
    for n in Steps(Numbers(5), agreement, joined=True):
        seen.append(n)
        agreement.other = (signal.SIGTERM, n >= 3) if n >= 3 else (0, False)
    assert seen == [1, 2, 3, 4, 5]
    assert agreement.said == 5  # not at the end: who is out of batches says nothing more
    agreement.other = (signal.SIGTERM, False)
    with pytest.raises(StoppedTogether):
        list(Steps(Numbers(5), agreement, joined=True))


def test_ranks_that_lack_batches_get_empty_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "_several", lambda: True)
    monkeypatch.setattr(Steps, "_most", lambda self, count: 5)
    taken = Steps(Numbers(3), TwoRanks(Stop()), empty=lambda: 0)
    assert len(taken) == 5
    assert list(taken) == [1, 2, 3, 0, 0]
    taken.load_state_dict({"at": 3})
    assert list(taken) == [0, 0]
    with pytest.raises(ValueError, match="by Lightning needs the length of an epoch; engine=ddp does not"):
        Steps(Numbers(3, sized=False), TwoRanks(Stop()), empty=lambda: 0)
