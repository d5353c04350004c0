"""Orders: ten million rows computed by a Plan, against shuffling them in memory; and one row of ten billion.

A Plan holds no rows: it needs 1 MB for the few thousand it computes at a time, whatever the size, where a permutation
in memory needs 8 bytes a row (80 MB for ten million, 80 GB for ten billion), and all of it before the first.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from bench.compare import compare
from wdstools.mix import Mix
from wdstools.plan import Plan

N = 10_000_000
HUGE = 10_000_000_000
CALLS = 20_000


def peers() -> dict[str, Any]:
    found = {"numpy permutation": lambda: np.random.default_rng(0).permutation(N)}
    try:
        import torch
    except ImportError:
        return found
    return found | {"torch randperm": lambda: torch.randperm(N, generator=torch.Generator().manual_seed(0))}


def whole(plan: Plan | Mix) -> None:
    """Every row of an epoch, a million at a time, none kept."""
    for start in range(0, N, 1_000_000):
        plan.rows(start, start + 1_000_000)


def bench_rows(benchmark: Any) -> None:
    compare(benchmark, "Plan(10**7), every row", N, "rows/s", lambda: whole(Plan(N)), peers())


def bench_rows_of_blocks(benchmark: Any) -> None:
    plan = Plan(N, block=1024)
    compare(benchmark, "Plan(10**7, block=1024), every row", N, "rows/s", lambda: whole(plan), peers())


def bench_rows_of_a_mixture(benchmark: Any) -> None:
    mixture = Mix([(Plan(N), 0.7), (Plan(1000), 0.2), (Plan(N, block=64), 0.1)], epoch_length=N)
    compare(benchmark, "Mix of three, 10**7 rows", N, "rows/s", lambda: whole(mixture), peers())


def bench_batches(benchmark: Any) -> None:
    """Batches of 256 on one rank, against slices of a permutation that is made first."""
    plan = Plan(N, batch_size=256)

    def ours() -> None:
        for _ in plan.batches():
            pass

    def theirs() -> None:
        order = np.random.default_rng(0).permutation(N)
        for start in range(0, N, 256):
            order[start : start + 256]

    compare(benchmark, "Plan(10**7), batches of 256", plan.steps, "batches/s", ours, {"numpy permutation": theirs})


def bench_one_row(benchmark: Any) -> None:
    """Single rows of ten billion, at random positions, against looking them up in ten million that lie in memory."""
    plan = Plan(HUGE)
    order = np.random.default_rng(0).permutation(N)
    positions = [random.Random(0).randrange(HUGE) for _ in range(CALLS)]

    def ours() -> None:
        for position in positions:
            plan.row(position)

    def theirs() -> None:
        for position in positions:
            int(order[position % N])

    compare(benchmark, "Plan(10**10).row(p)", CALLS, "rows/s", ours, {"permutation of 10**7 in memory": theirs})
