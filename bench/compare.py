"""One comparison: ours and peers in turn, round by round, in one process; rates go into pytest-benchmark's record."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS = 5


def compare(
    benchmark: Any,
    work: str,
    units: float,
    unit: str,
    ours: Callable[[], object],
    peers: dict[str, Callable[[], object]],
    targets: dict[str, float] | None = None,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Run every peer once before each round of ours (after one round of all that is not counted).

    A callable may return the seconds that it took by its own clock (dd does). `units`: how many of `unit` one call
    processes. `targets`: the ratio that an issue asks for. Returns the ratio ours / peer of the medians, by peer.
    """
    times: dict[str, list[float]] = {name: [] for name in peers}
    mine: list[float] = []

    def timed(call: Callable[[], object]) -> float:
        before()
        gc.collect()
        start = time.perf_counter()
        told = call()
        return told if isinstance(told, float) else time.perf_counter() - start

    for call in (ours, *peers.values()):
        timed(call)

    def peers_round() -> None:
        for name, call in peers.items():
            times[name].append(timed(call))

    def our_round() -> None:
        mine.append(timed(ours))

    benchmark.pedantic(our_round, setup=peers_round, rounds=ROUNDS, iterations=1)
    median = statistics.median(mine)
    ratios = {name: statistics.median(seconds) / median for name, seconds in times.items()}
    benchmark.extra_info.update(
        work=work,
        unit=unit,
        rate=units / median,
        spread=[units / max(mine), units / min(mine)],
        peers={
            name: {
                "rate": units / statistics.median(seconds),
                "spread": [units / max(seconds), units / min(seconds)],
                "ratio": ratios[name],
                "target": (targets or {}).get(name),
            }
            for name, seconds in times.items()
        },
    )
    return ratios


def touch(payload: bytes | memoryview) -> int:
    """Read every byte of a payload, as fast as this machine can, the same for every contestant."""
    words = np.frombuffer(payload, np.uint64, len(payload) // 8)
    return int(np.bitwise_xor.reduce(words))
