"""Which shards a reader reads and in which order, and the order that a shuffle buffer makes. Arithmetic, no I/O.

A reader is a worker of a rank: number worker * world + rank of workers * world, so that ranks have equally many
shards, or one more.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from wdstools.permute import LIMIT, MASK, blocks, draw, mix, words


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """The orders of n shards. The arguments are those of streaming.ShardIterable.

    Raises ValueError for what is out of range or does not go together, TypeError for what is no whole number.
    """

    n: int
    seed: int = 0
    split: bool = True
    shuffle: bool = True
    resample: bool = False
    epoch_length: int | None = None
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if not self.n:
            raise ValueError("no shards")
        whole("seed", self.seed, MASK)
        if self.epoch_length is not None:
            whole("epoch_length", self.epoch_length, LIMIT)
        elif self.resample:
            raise ValueError("resample draws shards for ever: say how many samples an epoch has (epoch_length)")
        if self.resample and not self.shuffle:
            raise ValueError("resample draws at random: it does not go with shuffle_shards=False")

    def identity(self) -> dict[str, int | str]:
        """Return what must be equal for the k-th shard to mean the same."""
        told = {name: int(getattr(self, name)) for name in ("seed", "split", "shuffle", "resample")}
        return {**told, "epoch_length": -1 if self.epoch_length is None else self.epoch_length}

    def part(self, readers: int) -> int | None:
        """Return the samples of an epoch that each reader gives; None: as many as its shards have. Raises ValueError
        where the parts would not be equal."""
        if self.epoch_length is None:
            return None
        if self.epoch_length % readers:
            near = self.epoch_length // readers * readers
            raise ValueError(
                f"epoch_length={self.epoch_length} is not the same for each of {readers} readers (ranks times workers):"
                f" {near} and {near + readers} would be"
            )
        return self.epoch_length // readers

    def own(self, reader: int, readers: int) -> int:
        """Return the shards that a reader reads before it begins again. Raises ValueError where some have none."""
        if self.resample or not self.split:
            return self.n
        if self.n < readers and not (self.allow_empty and self.epoch_length is None):
            hint = "write more of them, start fewer workers" + (
                "" if self.epoch_length else ", or say allow_empty=True"
            )
            raise ValueError(f"{self.n} shards for {readers} readers (ranks times workers) leave some without: {hint}")
        return len(range(reader, self.n, readers))

    def shard(self, k: int, epoch: int, reader: int, readers: int) -> int:
        """Return the number of the shard that a reader reads as its k-th of an epoch, from 0."""
        if self.resample:
            return int(draw(k, self.n, tweak(f"draws {self.seed} {reader}", epoch)))
        again, k = divmod(k, self.own(reader, readers))
        position = reader + k * readers if self.split else k
        if not self.shuffle:
            return position
        order = f"shards {self.seed} {again}" if self.split else f"shards {self.seed} {again} of {reader}"
        return blocks(self.n, 1, order).row(position, epoch)


def tweak(purpose: str, epoch: int) -> int:
    """Return 64 bits that depend on a purpose and an epoch."""
    return int(mix(epoch ^ words(1, purpose)[0]))


def shuffled(samples: Iterable[Any], size: int, tweak: int) -> Iterator[Any]:
    """Yield samples in a random order: each takes the place of one of `size` held ones, which is yielded."""
    held: list[Any] = []
    for number, sample in enumerate(samples):
        if len(held) < size:
            held.append(sample)
            continue
        place = int(draw(number, size, tweak))
        found, held[place] = held[place], sample
        yield found
    tweak = int(mix(tweak))  # other draws than those above
    while held:
        place = int(draw(len(held), len(held), tweak))
        held[place], held[-1] = held[-1], held[place]
        yield held.pop()


def whole(name: str, value: int, most: int) -> int:
    """Return a number in [0, most]. Raises ValueError, TypeError."""
    found = operator.index(value)
    if not 0 <= found <= most:
        raise ValueError(f"{name} must be from 0 to {most}, not {found}")
    return found
