"""Orders that are computed, never stored: keyed permutations of any range, whole or block by block.

Every function here takes Python ints, or one-dimensional uint64 arrays of numpy for many values at once, and gives the
same for both; nothing depends on the machine, the byte order or the versions of Python and numpy. Not for secrets.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    Words = np.ndarray[Any, np.dtype[np.uint64]]

Number: TypeAlias = Any  # an int, or Words; what comes out is what went in
LIMIT = 1 << 63  # rows are int64: a range has at most so many
MASK = (1 << 64) - 1
LOW = (1 << 32) - 1
GOLDEN, MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
CHUNK = 8192  # positions at a time: a dozen arrays of that size stay in the L2 cache


def mix(z: Number) -> Number:
    """Return a bijection of 64-bit words that looks random: the finalizer of SplitMix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the constants of
    Stafford's variant 13, as in Vigna's public-domain splitmix64.c.
    """
    z = (z ^ z >> 30) * MIX1 & MASK
    z = (z ^ z >> 27) * MIX2 & MASK
    return z ^ z >> 31


def words(count: int, purpose: str) -> list[int]:
    """Return 64-bit words that depend on every character of the purpose (SHAKE-128, little-endian)."""
    data = hashlib.shake_128(f"wdstools.plan 1 {purpose}".encode()).digest(8 * count)
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, 8 * count, 8)]


def draw(position: Number, n: int, tweak: Number) -> Number:
    """Return a number in [0, n) for a position: draws with replacement.

    The position-th output, from 0, of SplitMix64 seeded with the tweak, times n, over 2**64. Some numbers are more
    likely than others by one in floor(2**64 / n).
    """
    h = mix(tweak + (position + 1) * GOLDEN & MASK)
    high, low, n_high, n_low = h >> 32, h & LOW, n >> 32, n & LOW
    middle = high * n_low + (low * n_low >> 32)
    return high * n_high + (middle >> 32) + (low * n_high + (middle & LOW) >> 32)


class Permutation:
    """A permutation of [0, n) for every 64-bit tweak, 1 <= n <= 2**63, by arithmetic.

    A Feistel network over pairs (left < a, right < b) with a = ceil(sqrt(n)), b = ceil(n / a): Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002, section 5. A value of n or more (there are fewer than a of
    them among a * b) is permuted again until it falls below n ("cycle walking", section 4), which keeps the map
    exact. The round function is `mix` without its last step, its upper 32 bits scaled to [0, a) or [0, b); what a round
    adds is therefore some values more often than others, by one in floor(2**32 / a).

    Rounds: where there are few values, Feistel networks of few rounds are visibly not uniform over the n! orders (for
    n = 6, 16 rounds pass a chi-square test over all 720 orders and 12 do not; pairs of values pass from 12 rounds for
    n = 12, from 10 for 16, from 8 for 64, 250 and 1000). Hence 24 rounds below 64, 12 below 1024, 8 from there on.
    """

    def __init__(self, n: int, purpose: str) -> None:
        self.n = n
        self.a = math.isqrt(n - 1) + 1
        self.b = -(-n // self.a)
        rounds = 0 if n == 1 else 24 if n < 64 else 12 if n < 1024 else 8
        keys = words(rounds, f"{purpose} {n}")
        self.keys = list(zip(keys[::2], keys[1::2], strict=True))

    def _forward(self, x: Number, tweak: Number) -> Number:
        a, b = self.a, self.b
        left = x // b
        right = x - left * b
        for even, odd in self.keys:
            left = left + _scaled(right ^ tweak ^ even, a)
            left = left - left // a * a
            right = right + _scaled(left ^ tweak ^ odd, b)
            right = right - right // b * b
        return left * b + right

    def _backward(self, x: Number, tweak: Number) -> Number:
        a, b = self.a, self.b
        left = x // b
        right = x - left * b
        for even, odd in reversed(self.keys):
            right = right + b - _scaled(left ^ tweak ^ odd, b)
            right = right - right // b * b
            left = left + a - _scaled(right ^ tweak ^ even, a)
            left = left - left // a * a
        return left * b + right

    def one(self, x: int, tweak: int) -> int:
        """Return the image of one number in [0, n)."""
        x = self._forward(x, tweak)
        while x >= self.n:
            x = self._forward(x, tweak)
        return x

    def inverse(self, x: int, tweak: int) -> int:
        """Return the number in [0, n) whose image is x."""
        x = self._backward(x, tweak)
        while x >= self.n:
            x = self._backward(x, tweak)
        return x

    def many(self, x: Words, tweak: Words | int) -> Words:
        """Return the images of an array; the tweak is one for all, or an array with one for each."""
        import numpy as np

        found: Words = self._forward(x, tweak)
        walking = np.flatnonzero(found >= self.n)
        while len(walking):
            again: Words = self._forward(found[walking], tweak if isinstance(tweak, int) else tweak[walking])
            found[walking] = again
            walking = walking[again >= self.n]
        return found


def _scaled(z: Number, size: int) -> Number:
    """Return a number in [0, size), size <= 2**32, that depends on all 64 bits."""
    z = (z ^ z >> 30) * MIX1 & MASK
    z = ((z ^ z >> 27) * MIX2 & MASK) >> 32
    return z * size >> 32


class Blocks:
    """An order of [0, n) in every epoch: the blocks of `block` adjacent numbers permuted, then each block inside.

    The last block is short where `block` does not divide n. It is permuted among the others, and the numbers behind
    it move up: if it stands in slot j, a position at or after j * block + short is treated as (block - short)
    further on, as though the short block were full. `outer=False` leaves the blocks where they are.

    Every block is as often in a slot as any other. So all numbers are equally likely at a position where `block`
    divides n; else those of the short block are likelier at the very ends of the epoch, being fewer in a slot.
    """

    def __init__(self, n: int, block: int, seed: int | str, outer: bool = True) -> None:
        self.n = n
        self.block = block = min(block, n)
        self.short = n % block
        self.count = -(-n // block)
        self.outer = Permutation(self.count, f"outer {block} {seed}") if outer else None
        self.inner = Permutation(block, f"inner {seed}")
        self.last = Permutation(self.short, f"inner {seed}") if self.short else None
        self.key = words(1, f"epoch {seed}")[0]
        self._known = (-1, 0)  # a tweak, the slot of the last block

    def _tail(self, tweak: int) -> int:
        """Return the slot of the last block."""
        if self.outer is None:
            return self.count - 1
        known = self._known  # of the epoch that was asked for last; replaced whole, so that threads may race
        if known[0] != tweak:
            self._known = known = (tweak, self.outer.inverse(self.count - 1, tweak))
        return known[1]

    def _inner(self, number: int) -> Permutation:
        return self.last if self.last and number == self.count - 1 else self.inner

    def row(self, position: int, epoch: int) -> int:
        """Return the number at a position in [0, n) of an epoch."""
        tweak = mix(epoch ^ self.key)
        if self.block == 1:
            return position if self.outer is None else self.outer.one(position, tweak)
        if self.short and position >= self._tail(tweak) * self.block + self.short:
            position += self.block - self.short
        slot, inside = divmod(position, self.block)
        number = slot if self.outer is None else self.outer.one(slot, tweak)
        return number * self.block + self._inner(number).one(inside, mix(tweak ^ number))

    def position(self, row: int, epoch: int) -> int:
        """Return the position of a number in [0, n): the inverse of row()."""
        tweak = mix(epoch ^ self.key)
        number, inside = divmod(row, self.block)
        slot = number if self.outer is None else self.outer.inverse(number, tweak)
        position = slot * self.block + self._inner(number).inverse(inside, mix(tweak ^ number))
        return position - (self.block - self.short if self.short and slot > self._tail(tweak) else 0)

    def rows(self, positions: Words, epoch: int | Words) -> Words:
        """Return the numbers at positions; the epoch is one for all, or an array with one for each."""
        import numpy as np

        tweak: Number = mix(epoch ^ self.key)
        if self.block == 1:
            return positions if self.outer is None else self.outer.many(positions, tweak)
        if self.short:
            ahead: Number = self._behind(positions, tweak).astype(np.uint64)
            positions = positions + ahead * (self.block - self.short)
        slot: Number = positions // self.block
        inside = positions - slot * self.block
        number = slot if self.outer is None else self.outer.many(slot, tweak)
        tweak = mix(number ^ tweak)
        found: Words = self.inner.many(inside, tweak)
        if self.last:
            short = np.flatnonzero(number == self.count - 1)
            if len(short):
                found[short] = self.last.many(inside[short], tweak[short])
        whole: Words = number * self.block + found
        return whole

    def _behind(self, positions: Words, tweak: int | Words) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which positions lie behind the short block."""
        import numpy as np

        if isinstance(tweak, int):
            return positions >= self._tail(tweak) * self.block + self.short
        different, which = np.unique(tweak, return_inverse=True)
        starts = [self._tail(int(t)) * self.block + self.short for t in different]
        return positions >= np.array(starts, np.uint64)[which]


@functools.lru_cache(maxsize=256)
def blocks(n: int, block: int, seed: int | str, outer: bool = True) -> Blocks:
    """Return Blocks(n, block, seed, outer), made once: its keys take some microseconds."""
    return Blocks(n, block, seed, outer)


def block_share(block: int, batch: int) -> float:
    """Return the share of the pairs in a batch that lie in one block, both being contiguous in the order.

    Exact over whole periods of lcm(block, batch) positions. Where the block divides the batch it is
    (block - 1) / (batch - 1), where the batch divides the block 1, and 0 for blocks or batches of one.
    """
    if batch < 2 or block < 2:
        return 0.0
    grain = math.gcd(block, batch)  # batches start at every multiple of it in a block, equally often

    def pairs(size: int) -> int:
        return size * (size - 1) // 2

    def summed(m: int) -> int:
        """Return the sum of pairs(j * grain) for j in [1, m]."""
        return (grain * grain * m * (m + 1) * (2 * m + 1) // 3 - grain * m * (m + 1)) // 4

    starts = block // grain
    if batch <= block:  # cut by at most one border
        cuts = batch // grain - 1
        together = 2 * summed(cuts) + (starts - cuts) * pairs(batch)
    else:  # a first part, whole blocks, a last part
        together = summed(starts) + summed(starts - 1) + (batch - block) // grain * pairs(block)
    return together / (starts * pairs(batch))
