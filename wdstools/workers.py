"""What a process that loads data is, among others: its rank, its worker, how its workers start; and the user's
function on a sample.

Nothing here imports torch: where it is not loaded, there are no ranks or workers of its making.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

log = logging.getLogger("wdstools")


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


def choose_start(datasets: Iterable[Any], functions: Mapping[str, object], options: dict[str, Any]) -> None:
    """Check, and choose where it is open, how a DataLoader with these options starts its workers.

    Those of remote `datasets` come from a forkserver, unless the caller, Python or the environment has said how, or one
    of `functions` (name -> what workers call) cannot be pickled. TypeError: one cannot be pickled, and has to be; torch
    would fail with half of the workers started.
    """
    if not options.get("num_workers"):
        return
    context = options.get("multiprocessing_context")
    method = context if isinstance(context, str) else (context or multiprocessing).get_start_method()
    remote = not context and method == "fork" and any(getattr(dataset, "is_remote", False) for dataset in datasets)
    if method == "fork" and not remote:
        return
    problem = _unpicklable(functions)
    if problem is None and remote:
        options["multiprocessing_context"] = "forkserver"
    elif problem is not None and remote:
        log.warning("%s cannot be pickled: workers are forked, and read remote data through slower clients", problem[0])
    elif problem is not None:
        raise TypeError(f"{problem[0]} cannot be pickled, as {method} workers need: {problem[1]}") from problem[1]


def _unpicklable(functions: Mapping[str, object]) -> tuple[str, Exception] | None:
    for name, value in functions.items():
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return name, error
    return None
