"""What a process that loads data is, among others: its rank, its worker; and the user's function on a sample.

Nothing here imports torch: where it is not loaded, there are no ranks or workers of its making.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any


def rank_and_world(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Return this process among how many: as given, or torch.distributed's, or the environment's, or (0, 1).

    Raises ValueError unless both or neither are given, and for RANK and WORLD_SIZE that are no numbers.
    """
    return given_ranks(rank, world) or distributed_ranks() or environment_ranks() or (0, 1)


def given_ranks(rank: int | None, world: int | None) -> tuple[int, int] | None:
    """Return (rank, world), or None where neither is given. Raises ValueError."""
    if (rank is None) != (world is None):
        raise ValueError("give rank and world together, or neither")
    return None if rank is None or world is None else (rank, world)


def distributed_ranks() -> tuple[int, int] | None:
    """Return (rank, world) of torch.distributed, or None where it is not initialised in this process."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def environment_ranks() -> tuple[int, int] | None:
    """Return (RANK, WORLD_SIZE) of the environment, or None where one of them is not set. Raises ValueError."""
    told = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if told[0] is None or told[1] is None:
        return None
    try:
        return int(told[0]), int(told[1])
    except ValueError:
        raise ValueError(f"RANK={told[0]!r} and WORLD_SIZE={told[1]!r} of the environment are no numbers") from None


def worker_and_workers() -> tuple[int, int]:
    """Return this DataLoader worker among how many; (0, 1) in a process that is none."""
    data = sys.modules.get("torch.utils.data")
    info = None if data is None else data.get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def transformed(transform: Callable[[Any], Any], sample: Any) -> Any:
    """Return what a user's function makes of a sample; what it raises gets a note that names the sample."""
    told = {name: sample.get(name) for name in ("__key__", "__url__")} if isinstance(sample, dict) else {}
    try:
        return transform(sample)
    except Exception as error:
        error.add_note(f"in transform, of sample {told.get('__key__')!r} of {told.get('__url__')}")
        raise
