"""Deal: which positions of an epoch a rank and its workers read at which step, and the state of that.

An epoch is a line of positions. Global step s covers positions [s * G, (s + 1) * G) for the global batch
G = batch_size * world; rank r reads [s * G + r * batch_size, s * G + (r + 1) * batch_size) of them. So a place in
training is one integer, the step, and means the same for any number of ranks and workers with the same G.
"""

from __future__ import annotations

import abc
import dataclasses
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from wdstools.errors import StateError
from wdstools.permute import CHUNK, LIMIT

if TYPE_CHECKING:
    import numpy as np

    from wdstools.permute import Words

    Rows = np.ndarray[Any, np.dtype[np.int64]]

Tail = Literal["drop", "pad", "uneven"]
AnyDeal = TypeVar("AnyDeal", bound="Deal")
TAILS = ("drop", "pad", "uneven")
VERSION = 1  # of the order: it changes where the formula does, so that an old state is refused


@dataclass(frozen=True, kw_only=True)
class Deal(abc.ABC):
    """How the positions of an epoch are dealt out to steps, ranks and workers: what Plan and Mix share.

    `batch_size`: samples per rank and step. `rank`, `world`: this reader among how many. `data`: a fingerprint of
    what the rows mean, of the caller's making; it goes into the state. `tail`: what becomes of the last positions,
    where they are fewer than a global batch:

    * "drop": they are not read in this epoch; every rank has length // G full batches.
    * "pad": the last step is filled up with the first positions of the epoch (again from the start, where the epoch
      is shorter than what is lacking); every rank has ceil(length / G) full batches.
    * "uneven": the r samples left are dealt in contiguous slices as even as possible: rank k reads
      [r * k // world, r * (k + 1) // world) of them. Every sample is read exactly once; the last batch may be short,
      and a rank has none where its slice is empty (r < world): the numbers of batches differ by at most one.
    """

    epoch: int = 0
    batch_size: int = 1
    rank: int = 0
    world: int = 1
    tail: Tail = "drop"
    data: str = ""

    def __post_init__(self) -> None:
        self._whole("epoch", 0)
        self._whole("batch_size", 1)
        self._whole("world", 1)
        self._whole("rank", 0)
        if self.rank >= self.world:
            raise ValueError(f"rank {self.rank} is not below world {self.world}")
        if self.global_batch > LIMIT:
            raise ValueError(f"batch_size * world is more than 2**63: {self.global_batch}")
        if self.tail not in TAILS:
            raise ValueError(f"tail is none of {', '.join(TAILS)}: {self.tail!r}")
        if not isinstance(self.data, str):
            raise TypeError(f"data must be a string, not {type(self.data).__name__}")

    def _whole(self, name: str, least: int, most: int = LIMIT) -> None:
        value = operator.index(getattr(self, name))
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, not {value}")
        object.__setattr__(self, name, value)

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Positions in an epoch."""

    @abc.abstractmethod
    def _row(self, position: int) -> int: ...

    @abc.abstractmethod
    def _rows(self, positions: Words) -> Words: ...

    def _identity(self) -> dict[str, int | str]:
        """What must be equal for a step to mean the same place, in the words of the state."""
        return {"version": VERSION, "global_batch": self.global_batch, "tail": self.tail, "data": self.data}

    def __len__(self) -> int:
        return self.length  # of 2**63 itself, len() makes an OverflowError

    @property
    def global_batch(self) -> int:
        """Samples in a step, over all ranks."""
        return self.batch_size * self.world

    @property
    def steps(self) -> int:
        """Global steps in an epoch."""
        return self.length // self.global_batch if self.tail == "drop" else -(-self.length // self.global_batch)

    def row(self, position: int) -> int:
        """Return the row at a position in [0, length) of the epoch, in microseconds. Raises IndexError."""
        position = operator.index(position)
        if not 0 <= position < self.length:
            raise IndexError(f"position {position} of an epoch of {self.length}")
        return self._row(position)

    def rows(self, start: int, stop: int) -> Rows:
        """Return the rows at positions [start, stop) of the epoch, an int64 array (stop - start,).

        Raises IndexError unless 0 <= start <= stop <= length.
        """
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"positions [{start}, {stop}) of an epoch of {self.length}")
        return self._span(start, stop)

    def _span(self, start: int, stop: int) -> Rows:
        """Return the rows at positions [start, stop), which go round at the end of the epoch."""
        import numpy as np

        found = np.empty(stop - start, np.int64)
        for at in range(start, stop, CHUNK):
            positions = np.arange(min(CHUNK, stop - at), dtype=np.uint64) + np.uint64(at)
            found[at - start : at - start + CHUNK] = self._rows(positions % np.uint64(self.length)).view(np.int64)
        return found

    def span(self, step: int) -> tuple[int, int]:
        """Return the positions [start, stop) that this rank reads at a global step; empty where its tail slice is.

        With tail="pad", positions of the length and more stand for position % length. Raises IndexError unless
        0 <= step < steps.
        """
        step = operator.index(step)
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps} steps")
        start = step * self.global_batch
        left = self.length - start
        if left < self.global_batch and self.tail == "uneven":
            return start + left * self.rank // self.world, start + left * (self.rank + 1) // self.world
        return start + self.rank * self.batch_size, start + (self.rank + 1) * self.batch_size

    def batch(self, step: int) -> Rows:
        """Return the rows that this rank reads at a global step, an int64 array. Raises IndexError."""
        return self._span(*self.span(step))

    def _end(self) -> int:
        """Return the step at which this rank has nothing more to read."""
        if self.tail == "uneven" and self.steps:
            start, stop = self.span(self.steps - 1)
            return self.steps - (start == stop)
        return self.steps

    def _own(self, start: int, worker: int, workers: int) -> range:
        """Return the steps of a worker."""
        start, worker, workers = operator.index(start), operator.index(worker), operator.index(workers)
        if not 0 <= start <= self.steps:
            raise IndexError(f"a start at step {start} of an epoch of {self.steps} steps")
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} of {workers}")
        return range(start + worker, self._end(), workers)

    def count(self, start: int = 0, worker: int = 0, workers: int = 1) -> int:
        """Return how many batches batches() with these arguments yields."""
        own = self._own(start, worker, workers)
        return max(0, -(-(own.stop - own.start) // own.step))  # len() ends at 2**63 - 1

    def batches(self, start: int = 0, worker: int = 0, workers: int = 1) -> Iterator[Rows]:
        """Yield the rows of every batch of this rank, from global step `start` to the end of the epoch: int64 arrays.

        A worker yields steps start + worker, start + worker + workers, and so on: whoever takes one batch of every
        worker in turn has the steps in order, wherever it started. Batches come from a few thousand positions that
        are computed at once. Raises IndexError unless 0 <= start <= steps, ValueError unless 0 <= worker < workers.
        """
        return self._batches(self._own(start, worker, workers))

    def _batches(self, own: range) -> Iterator[Rows]:
        import numpy as np

        size = self.batch_size
        whole = self.length // self.global_batch  # steps from here on are cut or go round
        ahead = CHUNK // size
        inside = np.arange(size, dtype=np.uint64) if ahead > 1 else None
        step = own.start
        while step < own.stop:
            if inside is None or step >= whole:
                yield self.batch(step)
                step += own.step
                continue
            steps = range(step, min(whole, own.stop, step + ahead * own.step), own.step)
            starts = np.array([s * self.global_batch + self.rank * size for s in steps], np.uint64)
            rows = self._rows((starts[:, None] + inside).reshape(-1)).view(np.int64)
            yield from rows.reshape(len(steps), size)
            step += len(steps) * own.step

    def with_epoch(self: AnyDeal, epoch: int) -> AnyDeal:
        """Return the same for another epoch."""
        return dataclasses.replace(self, epoch=epoch)

    def with_rank(self: AnyDeal, rank: int, world: int) -> AnyDeal:
        """Return the same for another rank and number of ranks, at the same global batch.

        Raises ValueError where the global batch does not divide by the number of ranks.
        """
        if operator.index(world) < 1 or self.global_batch % world:
            raise ValueError(f"a global batch of {self.global_batch} does not divide among {world} ranks")
        return dataclasses.replace(self, rank=rank, world=world, batch_size=self.global_batch // world)

    def state_dict(self, step: int) -> dict[str, int | str]:
        """Return the place before global step `step` of this epoch: small ints and strings, fit for JSON.

        The same on every rank and worker: nothing in it depends on how many there are. Raises IndexError unless
        0 <= step <= steps.
        """
        step = operator.index(step)
        if not 0 <= step <= self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps} steps")
        return {"epoch": self.epoch, "step": step, **self._identity()}

    def resume(self: AnyDeal, state: Mapping[str, Any]) -> tuple[AnyDeal, int]:
        """Return (the same for the epoch of the state, the global step to start from).

        Raises StateError, with every difference, for a state of other data, another order, global batch or tail.
        """
        if not isinstance(state, Mapping) or not {"epoch", "step"} <= state.keys():
            raise StateError(f"not the state of a plan: {state!r:.200}")
        here = self._identity()
        differing = [name for name in {**here, **state} if name not in ("epoch", "step")]
        differing = [name for name in differing if here.get(name) != state.get(name)]
        if differing:
            told = (f"{name} is {state.get(name)!r} in the state and {here.get(name)!r} here" for name in differing)
            raise StateError(f"the state belongs to other data or options: {'; '.join(told)}")
        epoch, step = state["epoch"], state["step"]
        if type(epoch) is not int or type(step) is not int or not 0 <= epoch <= LIMIT or not 0 <= step <= self.steps:
            raise StateError(f"the state has epoch {epoch!r}, step {step!r}; an epoch has {self.steps} steps")
        return self.with_epoch(epoch), step
