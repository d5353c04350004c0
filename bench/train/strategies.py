"""What a Lightning Trainer needs for the regimes: its strategy.

torch's Join cannot be used in Lightning 2.6: a rank that has joined answers the collectives of DDP alone, and the loop
has one of its own before every batch (a broadcast, in _TrainingEpochLoop.advance), others where a checkpoint is
written or a metric is synchronised; the ranks that go on would wait for them forever. So a rank that runs out goes
through the steps that it lacks with an empty batch, and gradients of zero: that is what Join does for it, and the
weights are the same (the tests compare them with engine=ddp, which uses Join).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy

from bench.train.regimes import options


def strategy(regime: str, world: int) -> str | Strategy:
    """Return the strategy= of a Trainer for one process of `world`. Raises ValueError."""
    options(regime)
    if world == 1:
        return "auto"
    return IdleDDP() if regime == "uneven" else DDPStrategy()


def empty(settings: Any) -> dict[str, Any]:
    """Return a batch without samples, for Steps(empty=...)."""
    data = settings.data
    image = torch.empty((0, data.channels, data.size, data.size), dtype=torch.uint8)
    return {"image": image, "label": torch.empty(0, dtype=torch.int64), "key": []}


class IdleDDP(DDPStrategy):
    """DDP in which a batch without samples takes part with gradients of zero; the module does not see it."""

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if len(batch["label"]):
            return super().training_step(batch, *args, **kwargs)
        module: Any = self.lightning_module
        module.idle_step = lambda: sum(p.sum() for p in module.parameters() if p.requires_grad) * 0.0
        with self.precision_plugin.train_step_context():
            return self._forward_redirection(self.model, module, "idle_step")
