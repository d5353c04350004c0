"""Mix: several plans in one order, by weights; which source stands at a position is a closed form of the weights.

mix = Mix({"web": (Plan(10**9), 0.7), "books": (Plan(10**6), 0.3)}, batch_size=64, rank=rank, world=world)
for rows in mix.batches():  # rows of the sources put end to end
    sources, inside = mix.locate(rows)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from wdstools.deal import Deal
from wdstools.permute import LIMIT, MASK, Blocks, blocks
from wdstools.plan import Plan

if TYPE_CHECKING:
    from wdstools.deal import Rows
    from wdstools.permute import Words

PARTS = 1 << 31  # a cycle of a mixture has at most so many positions


def parts_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the smallest whole numbers in the proportions of the weights, adding up to at most 2**31.

    A float counts as the decimal number that Python prints for it: 0.7 and 0.3 are 7 and 3. Where the sum would be
    larger (1/3 as a float), a source gets round(2**31 * its share), at least 1, the largest taking up what is over or
    lacking: shares are then right to about 2**-31. Raises ValueError unless all weights are finite and above 0.
    """
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"weights must be finite numbers above 0, not {weight!r}")
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    parts = [int(weight * scale) for weight in exact]
    common = math.gcd(*parts)
    parts = [part // common for part in parts]
    total = sum(parts)
    if total > PARTS:
        parts = [max(1, (part * PARTS + total // 2) // total) for part in parts]
        parts[parts.index(max(parts))] += PARTS - sum(parts)
    return tuple(parts)


class Line:
    """The sources on a line, as evenly as whole positions allow, in cycles of sum(parts) positions.

    A binary tree over the sources. Where a node has l parts on its left side of w in all, floor((m * l + w // 2) / w)
    of its first m positions go left: the rounded straight line of Bresenham, "Algorithm for computer control of a
    digital plotter", IBM Systems Journal 4(1), 1965. So a position goes down the tree by one division a level, the
    count of a source before a position too, and the place of its k-th occurrence goes up. Every rounding is off by
    at most a half, scaled by the shares below it: among any first m positions a source stands m * its share times,
    give or take (1 + log2(sources)) / 2.
    """

    def __init__(self, parts: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self.total = sum(parts)
        self.nodes: list[tuple[int, int, int, int]] = []  # left parts, all parts, left node, right node
        self.paths: dict[int, list[tuple[int, bool]]] = {}  # of a source: (node, whether it goes left), from the root
        self.sources: list[int] = []  # of a node: its source, or -1
        self.depth = math.ceil(math.log2(len(parts)))
        self._grow(0, len(parts), [])

    def _grow(self, first: int, end: int, path: list[tuple[int, bool]]) -> int:
        node = len(self.nodes)
        size = sum(self.parts[first:end])
        self.nodes.append((size, size, node, node))  # a leaf: all go left, to itself
        self.sources.append(first if end - first == 1 else -1)
        if end - first == 1:
            self.paths[first] = path
        else:
            middle = (first + end) // 2
            left = self._grow(first, middle, [*path, (node, True)])
            right = self._grow(middle, end, [*path, (node, False)])
            self.nodes[node] = (sum(self.parts[first:middle]), size, left, right)
        return node

    def one(self, position: int) -> tuple[int, int]:
        """Return (source at a position, its occurrences before that)."""
        cycle, m = divmod(position, self.total)
        node = 0
        while self.sources[node] < 0:
            lefts, size, left, right = self.nodes[node]
            before = (m * lefts + size // 2) // size
            if ((m + 1) * lefts + size // 2) // size > before:
                m, node = before, left
            else:
                m, node = m - before, right
        source = self.sources[node]
        return source, cycle * self.parts[source] + m

    def many(self, positions: Words) -> tuple[Rows, Words]:
        """Return (sources, occurrences) at positions: one() for arrays."""
        import numpy as np

        cycle = positions // np.uint64(self.total)
        m: Any = positions - cycle * np.uint64(self.total)
        node: Any = np.zeros(len(m), np.int64)
        table = np.array(self.nodes, np.uint64).T
        for _ in range(self.depth):
            lefts, size, left, right = (column[node] for column in table)
            scaled = m * lefts + size // 2  # below 2**31 * 2**31 + 2**30
            before = scaled // size
            goes_left = (scaled + lefts) // size > before
            m = np.where(goes_left, before, m - before)
            node = np.where(goes_left, left, right).astype(np.int64)
        sources = np.array(self.sources, np.int64)[node]
        return sources, cycle * np.array(self.parts, np.uint64)[sources] + m

    def count(self, source: int, position: int) -> int:
        """Return the occurrences of a source before a position."""
        cycle, m = divmod(position, self.total)
        for node, goes_left in self.paths[source]:
            lefts, size, _, _ = self.nodes[node]
            before = (m * lefts + size // 2) // size
            m = before if goes_left else m - before
        return cycle * self.parts[source] + m

    def place(self, source: int, occurrence: int) -> int:
        """Return the position of an occurrence of a source, counted from 0."""
        cycle, m = divmod(occurrence, self.parts[source])
        for node, goes_left in reversed(self.paths[source]):
            lefts, size, _, _ = self.nodes[node]
            half = size // 2
            own, ahead = (lefts, half) if goes_left else (size - lefts, size - 1 - half)
            m = -(-((m + 1) * size - ahead) // own) - 1
        return cycle * self.total + m


@functools.lru_cache(maxsize=64)
def line_of(weights: tuple[float, ...]) -> Line:
    """Return the line of weights, made once."""
    return Line(parts_of(weights))


class Source(NamedTuple):
    """A plan in a mixture."""

    plan: Plan
    weight: float
    name: str


@dataclass(frozen=True)
class Mix(Deal):
    """An order over several sources by weight, dealt out, stopped and resumed like a Plan.

    `sources`: {name: (plan, weight)}, or [(plan, weight), ...] with the names "0", "1" and so on; kept as a tuple of
    Source. A row is a number in the sources put end to end, in the order given; locate() takes it apart. What orders
    the samples of a plan counts here (n, seed, shuffle, block, resample, and epoch as the first); how it deals them
    out does not.

    The order: a Line lays the sources out evenly by weight; the k-th occurrence of a source of n samples, from 0, is
    position k % n of its epoch k // n. k goes on from one epoch of the mixture to the next: over a run every source
    is read epoch after epoch of its own, exactly, however long an epoch of the mixture is. With `shuffle`, the
    positions of every `window` are permuted (else two sources of equal weight would alternate, and a rank might
    always see the same one); a batch of whole windows has the composition of the line.

    `epoch_length`: positions in an epoch: a number; "first": until some source has been read whole, so that in epoch
    0 no sample comes twice; "all": until every source has been, the others again as needed.

    Raises ValueError for weights that are not above 0, a source without samples, and what is out of range; TypeError
    for a source that is no Plan.
    """

    sources: Any
    epoch_length: int | Literal["first", "all"] = field(default="first", kw_only=True)
    seed: int = field(default=0, kw_only=True)
    shuffle: bool = field(default=True, kw_only=True)
    window: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("seed", 0, MASK)
        self._whole("window", 1)
        object.__setattr__(self, "sources", _sources(self.sources))
        if sum(source.plan.n for source in self.sources) > LIMIT:
            raise ValueError("the sources have more than 2**63 samples together")
        if self.epoch_length not in ("first", "all"):
            if isinstance(self.epoch_length, str):
                raise ValueError(f"epoch_length is a number, 'first' or 'all', not {self.epoch_length!r}")
            self._whole("epoch_length", 0)
        if self.length > LIMIT:
            raise ValueError(f"an epoch would have {self.length} positions, more than 2**63: give epoch_length")

    @property
    def line(self) -> Line:
        """Where the sources stand before windows are shuffled."""
        return line_of(tuple(source.weight for source in self.sources))

    @functools.cached_property
    def length(self) -> int:
        """Positions in an epoch."""
        if isinstance(self.epoch_length, int):
            return self.epoch_length
        sizes = list(enumerate(source.plan.n for source in self.sources))
        if self.epoch_length == "first":
            return min(self.line.place(i, n) for i, n in sizes)
        return 1 + max(self.line.place(i, n - 1) for i, n in sizes)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """How many positions of an epoch each source has."""
        return tuple(self.line.count(i, self.length) for i in range(len(self.sources)))

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """The row at which each source begins, and after them the number of all rows."""
        return (0, *itertools.accumulate(source.plan.n for source in self.sources))

    def locate(self, rows: Rows) -> tuple[Rows, Rows]:
        """Return (numbers of sources, rows in them) for rows of the mixture, int64 arrays."""
        import numpy as np

        offsets = np.array(self.offsets[:-1], np.int64)
        sources = np.searchsorted(offsets, rows, side="right") - 1
        return sources, rows - offsets[sources]

    def _identity(self) -> dict[str, int | str]:
        found = super()._identity() | {"length": self.length, "seed": self.seed}
        found |= {"shuffle": int(self.shuffle), "window": self.window}
        found["sources"] = ", ".join(source.name for source in self.sources)  # their order counts, too
        for source, part in zip(self.sources, self.line.parts, strict=True):
            told = {"parts": part, "epoch": source.plan.epoch} | source.plan.order()
            found |= {f"{source.name}.{name}": value for name, value in told.items()}
        return found

    def _begin(self, source: int) -> tuple[int, int]:
        """Return (epoch, position) of a source at the start of this epoch of the mixture."""
        plan = self.sources[source].plan
        epochs, position = divmod(self.epoch * self.counts[source], plan.n)
        return plan.epoch + epochs & MASK, position

    @property
    def _windows(self) -> Blocks:
        return blocks(self.length, self.window, f"mix {self.seed}", outer=False)

    def _row(self, position: int) -> int:
        if self.shuffle:
            position = self._windows.row(position, self.epoch)
        source, occurrence = self.line.one(position)
        epoch, first = self._begin(source)
        plan: Plan = self.sources[source].plan
        epochs, inside = divmod(first + occurrence, plan.n)
        return self.offsets[source] + plan.one(inside, epoch + epochs & MASK)

    def _rows(self, positions: Words) -> Words:
        import numpy as np

        if self.shuffle:
            positions = self._windows.rows(positions, self.epoch)
        sources, occurrences = self.line.many(positions)
        found = np.empty(len(positions), np.uint64)
        for number, (plan, _, _) in enumerate(self.sources):
            here = np.flatnonzero(sources == number)
            if len(here):
                epoch, first = self._begin(number)
                inside = occurrences[here] + np.uint64(first)
                epochs = inside // np.uint64(plan.n)
                inside -= epochs * np.uint64(plan.n)
                epochs += np.uint64(epoch)
                same = bool((epochs == epochs[0]).all())
                found[here] = plan.many(inside, int(epochs[0]) if same else epochs) + np.uint64(self.offsets[number])
        return found


def _sources(given: Any) -> tuple[Source, ...]:
    pairs = list(given.items()) if isinstance(given, Mapping) else [(str(i), pair) for i, pair in enumerate(given)]
    found = []
    for name, pair in pairs:
        if (
            not isinstance(pair, tuple | list)
            or (len(pair) != 2 and not isinstance(pair, Source))
            or not isinstance(pair[0], Plan)
        ):
            raise TypeError(f"source {name!r} must be (Plan, weight), not {pair!r}")
        if not isinstance(name, str):
            raise TypeError(f"the name of a source must be a string, not {name!r}")
        if not pair[0].n:
            raise ValueError(f"source {name!r} has no samples")
        found.append(pair if isinstance(pair, Source) else Source(pair[0], pair[1], name))
    if not found:
        raise ValueError("a mixture of no sources")
    if len({source.name for source in found}) < len(found):
        raise ValueError(f"two sources have one name: {[source.name for source in found]}")
    line_of(tuple(source.weight for source in found))  # looks at the weights
    return tuple(found)
