"""The four ways to deal the samples of an epoch to the ranks, and what each promises.

| regime | an epoch of n samples, global batch G = batch_size * world |
|---|---|
| exact | every rank has n // G full batches; the n % G samples left over are not read in this epoch |
| resample | as many batches, of samples drawn with replacement |
| uneven | every sample exactly once; the last batches are short, and a rank may lack one: torch's Join |
| padded | every rank has ceil(n / G) full batches; the first samples of the epoch come again at its end |

With "uneven" the gradients of a step are the mean over all ranks, also of those with a short batch, or with none,
whose gradients are zero: torch's default, Join(divide_by_initial_world_size=True).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {"tail": "drop"},
    "resample": {"tail": "drop", "resample": True},
    "uneven": {"tail": "uneven"},
    "padded": {"tail": "pad"},
}


def options(regime: str) -> dict[str, Any]:
    """Return the options of wdstools.loader for a regime. Raises ValueError."""
    if regime not in OPTIONS:
        raise ValueError(f"regime={regime}: one of {', '.join(OPTIONS)}")
    return dict(OPTIONS[regime])


def counts(n: int, batch_size: int, world: int, regime: str) -> list[tuple[int, int]]:
    """Return (samples, batches) of every rank in an epoch of n samples, by arithmetic alone. Raises ValueError."""
    tail = options(regime)["tail"]
    whole, left = divmod(n, batch_size * world)
    if tail == "pad":
        whole += left > 0
    if tail != "uneven":
        return [(whole * batch_size, whole)] * world
    more = [left * (rank + 1) // world - left * rank // world for rank in range(world)]
    return [(whole * batch_size + m, whole + (m > 0)) for m in more]


def joined(models: Sequence[Any], regime: str) -> contextlib.AbstractContextManager[Any]:
    """Return torch's Join over what takes part in every step, where ranks may run out of batches; else nothing."""
    options(regime)
    if regime != "uneven":
        return contextlib.nullcontext()
    from torch.distributed.algorithms.join import Join

    return Join(list(models))
