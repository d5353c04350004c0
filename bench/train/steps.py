"""The training batches as all ranks take them, in step: a signal to one rank stops all of them before the same step.

A process group breaks where its processes do not make the same calls in the same order. So what a rank alone knows,
that it got SIGTERM or that it has no batch left, is agreed upon before every step, by an all-reduce of two numbers on
the CPU (gloo, also beside nccl, where it waits for no kernel). Lightning's own way with SIGTERM, a broadcast from
within the signal handler, comes in the middle of whatever the other ranks are doing; its handler is replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

from bench.train.stopping import Stop, Stopped


class StoppedTogether(Stopped):
    """Raised by all ranks before the same step, with nothing under way: all can write a checkpoint."""


class Agreement(Joinable):
    """What the ranks tell each other before every step, in a Join too, where it has to come first."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self.stop = stop
        self._group: Any = None

    def agree(self, lacking: bool = False) -> tuple[int, bool]:
        """Return the signal that came to any rank (0: none), and whether any rank lacks a batch, on all ranks alike."""
        if not _several():
            return self.stop.number, lacking
        Join.notify_join_context(self)
        return self.reduced(self.stop.number, lacking)

    def reduced(self, number: int, lacking: bool) -> tuple[int, bool]:
        told = torch.tensor([number, int(lacking)])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.join_process_group)
        return int(told[0]), bool(told[1])

    def join_hook(self, **_: Any) -> JoinHook:
        """Of Join: what a rank without batches does for every step of the others."""
        return _Shadow(self)

    @property
    def join_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        """The group of all ranks, where that works on CPU tensors; else one of gloo beside it."""
        if self._group is None:
            backends = str(dist.get_backend_config())
            self._group = dist.group.WORLD if "gloo" in backends else dist.new_group(backend="gloo")
        return self._group


class _Shadow(JoinHook):
    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement

    def main_hook(self) -> None:
        self.agreement.reduced(self.agreement.stop.number, True)


class Steps:
    """A feed of training batches, each given only when no rank is to stop: else all raise StoppedTogether.

    `empty`: what makes a batch without samples. Where it is given, ranks that have fewer batches than others end
    with such ones, so that all take the same number of steps; the feeds need lengths. `joined`: ranks that run out
    leave the others to Join; while one has, nobody stops, as that is at most the last step. Else an epoch ends as
    soon as one rank has no batch left.
    """

    def __init__(
        self, feed: Any, agreement: Agreement, empty: Callable[[], Any] | None = None, joined: bool = False
    ) -> None:
        self.feed, self.agreement, self.empty, self.joined = feed, agreement, empty, joined
        self.lacking = 0  # batches that this rank has fewer than the one that has most
        self._held: dict[str, Any] | None = None  # the feed's state before the batch that is not given yet
        if empty is not None and _several():
            self.lacking = self._most(self._own()) - self._own()

    def _own(self) -> int:
        try:
            return len(self.feed)
        except TypeError as error:
            raise ValueError(
                f"regime=uneven by Lightning needs the length of an epoch; engine=ddp does not: {error}"
            ) from error

    def _most(self, count: int) -> int:
        told = torch.tensor([count])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.agreement.join_process_group)
        return int(told[0])

    def __len__(self) -> int:
        """Batches of a whole epoch. Raises TypeError where that is not known."""
        return len(self.feed) + self.lacking

    def __iter__(self) -> Iterator[Any]:
        with contextlib.closing(self._all()) as batches:
            while True:
                self._held = self._state()
                batch, error = self._next(batches)
                if self.joined and batch is None and error is None:
                    self._held = None
                    return
                number, over = self.agreement.agree(batch is None and not self.joined)
                if number and not (self.joined and over):
                    raise StoppedTogether(number)
                if error:
                    raise error
                self._held = None
                if batch is None or (over and not self.joined):
                    return
                yield batch

    def _all(self) -> Any:
        yield from self.feed
        for _ in range(self.lacking):
            yield self.empty() if self.empty else None

    def _next(self, batches: Iterator[Any]) -> tuple[Any, RuntimeError | None]:
        """Return the next batch or None, and what the feed raised where its workers may have died of the signal."""
        try:
            return next(batches, None), None
        except RuntimeError as error:
            if not self.agreement.stop.number:
                raise
            return None, error

    def _state(self) -> dict[str, Any] | None:
        return dict(self.feed.state_dict()) if self.exact else None

    @property
    def exact(self) -> bool:
        """Whether state_dict() is a place to resume at."""
        return bool(self.feed.exact)

    def set_epoch(self, epoch: int) -> None:
        self.feed.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the batches that were given. Raises ValueError for a feed that has none."""
        return dict(self.feed.state_dict()) if self._held is None else self._held

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.feed.load_state_dict(state)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
