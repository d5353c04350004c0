"""Plan: which sample stands at position p of epoch e. Arithmetic: nothing is stored, nothing is shuffled in memory.

    plan = Plan(len(dataset), seed=7, batch_size=64, rank=rank, world=world)
    for epoch in range(90):
        for rows in plan.with_epoch(epoch).batches():  # int64 arrays

Who reads which positions is the business of deal.py, orders of ranges that of permute.py, mixtures that of mix.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wdstools.deal import Deal
from wdstools.permute import MASK, Number, block_share, blocks, draw, mix, words

if TYPE_CHECKING:
    import numpy as np

    from wdstools.permute import Words


@dataclass(frozen=True)
class Plan(Deal):
    """The order of n samples in an epoch, and this rank's share of it.

    `n`: samples, 0 to 2**63 (with none, an epoch has no steps). `seed`: 0 to 2**64 - 1, `epoch`: 0 to 2**63: every
    pair has its own order, the same on any machine. `shuffle=False`: rows in order. `block`: samples that are
    neighbours in the data and stay together: blocks are permuted, then samples in each (permute.Blocks). 1 is a
    global shuffle; see mates() for what a larger one costs. `resample`: every position draws a row on its own, with
    replacement; an epoch is n draws. The other arguments: Deal.

    Raises ValueError for what is out of range, TypeError for what is no whole number.
    """

    n: int
    seed: int = field(default=0, kw_only=True)
    shuffle: bool = field(default=True, kw_only=True)
    block: int = field(default=1, kw_only=True)
    resample: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("n", 0)
        self._whole("seed", 0, MASK)
        self._whole("block", 1)
        if self.resample and not self.shuffle:
            raise ValueError("resample draws at random: it does not go with shuffle=False")
        if self.resample and self.block > 1:
            raise ValueError(f"resample draws single samples: it does not go with block={self.block}")

    @property
    def length(self) -> int:
        """Positions in an epoch: n."""
        return self.n

    def order(self) -> dict[str, int | str]:
        """Return what decides the order of the samples in an epoch, and which samples: part of the state."""
        told: dict[str, int | str] = {"n": self.n, "seed": self.seed, "block": self.block, "shuffle": int(self.shuffle)}
        return told | {"resample": int(self.resample), "data": self.data}

    def _identity(self) -> dict[str, int | str]:
        return super()._identity() | self.order()

    def _row(self, position: int) -> int:
        return self.one(position, self.epoch)

    def _rows(self, positions: Words) -> Words:
        return self.many(positions, self.epoch)

    def one(self, position: int, epoch: int) -> int:
        """Return the row at a position in [0, n) of any epoch; not checked."""
        if self.resample:
            return int(draw(position, self.n, self._draws(epoch)))
        return blocks(self.n, self.block, self.seed).row(position, epoch) if self.shuffle else position

    def many(self, positions: Words, epoch: int | Words) -> Words:
        """Return the rows at positions of an epoch, or of an epoch for each: uint64 arrays, not checked."""
        if self.resample:
            drawn: Words = draw(positions, self.n, self._draws(epoch))
            return drawn
        return blocks(self.n, self.block, self.seed).rows(positions, epoch) if self.shuffle else positions

    def _draws(self, epoch: Number) -> Number:
        return mix(epoch ^ words(1, f"draws {self.seed}")[0])

    def position_of(self, row: int) -> int:
        """Return the position in the epoch of a row in [0, n): the inverse of row().

        Raises IndexError, and ValueError where samples are drawn with replacement.
        """
        row = operator.index(row)
        if self.resample:
            raise ValueError("a row that is drawn with replacement has no one position")
        if not 0 <= row < self.n:
            raise IndexError(f"row {row} of {self.n}")
        return blocks(self.n, self.block, self.seed).position(row, self.epoch) if self.shuffle else row

    def mates(self) -> float:
        """Return the share of a sample's mates in a global batch that are of its own block, on average.

        The quality of an order with block > 1: 0 for block=1, where a mate is any other sample; 1 where a batch is
        always of one block. Blocks of an eighth of the global batch G give 0.12 or less. Exact where n is large
        (permute.block_share); about block / G for blocks smaller than G.
        """
        return block_share(min(self.block, max(self.n, 1)), self.global_batch) if self.shuffle else 1.0


def split_of(hashes: Words, fractions: Mapping[str, float], seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return for each hash of a key (XXH64, as in the index) the number of its split, in the order of `fractions`.

    The hash is stirred with the seed (`mix`), and [0, 2**64) is cut at the sums of the fractions. So a sample stays
    in its split whatever other samples come or go, and whatever their order; samples with one key stay together; and
    where the last fraction is divided further, the splits before it stay as they are. A split of n samples differs
    from its fraction f of them by about sqrt(n * f * (1 - f)).

    Raises ValueError unless there are 1 to 255 fractions above 0 that add up to 1 (to 1e-9), and 0 <= seed < 2**64.
    """
    import numpy as np

    if not 0 < len(fractions) < 256 or not all(0 < fraction <= 1 for fraction in fractions.values()):
        raise ValueError(f"fractions must be 1 to 255 numbers above 0: {dict(fractions)}")
    sums = list(_sums(fractions.values()))
    if abs(sums[-1] - 1) > 1e-9:
        raise ValueError(f"fractions add up to {sums[-1]:g}, not 1: {dict(fractions)}")
    limits = np.array([min(int(total * 2.0**64), MASK) for total in sums[:-1]], np.uint64)
    return np.searchsorted(limits, stirred(hashes, seed), side="right").astype(np.uint8)


def stirred(hashes: Words, seed: int = 0) -> Words:
    """Return the numbers in [0, 2**64) by which split_of() decides: a bijection of the hashes that the seed chooses.

    Raises ValueError unless 0 <= seed < 2**64.
    """
    import numpy as np

    if not 0 <= operator.index(seed) <= MASK:
        raise ValueError(f"seed must be from 0 to 2**64 - 1, not {seed}")
    found: Words = mix(np.asarray(hashes, np.uint64) ^ words(1, f"split {seed}")[0])
    return found


def _sums(values: Iterable[float]) -> Iterator[float]:
    """Yield sums from the left: each is that of the values so far, whatever follows."""
    total = 0.0
    for value in values:
        total += value
        yield total
