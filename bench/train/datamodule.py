"""Feeds in a Lightning Trainer: its epochs, and the place in the data in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor


class FeedData(LightningDataModule):
    """`make(part)` returns the Feed of "train" or "val". The state goes into checkpoints; one of other data or of
    another order is wdstools' StateError, one in mid-epoch of a loader that cannot resume there the Feed's ValueError.
    """

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make
        self._running: Epochs | None = None
        self._state: Mapping[str, Any] | None = None  # loaded before there was a loader

    def train_dataloader(self) -> Any:
        self._running = Epochs(self._make("train"), self.trainer)
        if self._state is not None:
            self._running.load_state_dict(self._state)
            self._state = None
        return self._running

    def val_dataloader(self) -> Any:
        return self._make("val")

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data: the same on every rank."""
        return {} if self._running is None else {"train": self._running.place()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state, once there is a loader."""
        self._state = state_dict.get("train")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


class Epochs:
    """A Feed as a Trainer gets it: the first iteration is the Trainer's epoch, or the rest of a state's; others follow.

    An iteration begins with its first batch: a Trainer asks for an iterator earlier.
    """

    def __init__(self, feed: Any, trainer: Trainer | None) -> None:
        self.feed, self._trainer = feed, trainer
        self._epoch = 0 if trainer is None else trainer.current_epoch
        self._loaded = self._begun = False

    def __len__(self) -> int:
        return len(self.feed)

    def __iter__(self) -> Iterator[Any]:
        if not self._loaded:
            self._epoch += self._begun
            self.feed.set_epoch(self._epoch)
        self._loaded, self._begun = False, True
        yield from self.feed  # a Trainer that knows the length does not come to the end

    def place(self) -> dict[str, Any]:
        """Return the epoch, whether it is over, and the state of the Feed where it has one."""
        found = {"epoch": self._epoch, "over": self._trainer is not None and self._trainer.is_last_batch}
        return found | ({"feed": self.feed.state_dict()} if self.feed.exact else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a place. Raises StateError, ValueError."""
        self._epoch = int(state["epoch"])
        if state["over"]:
            if "feed" in state and self.feed.exact:
                self.feed.load_state_dict(state["feed"])  # is it of this data?
            self._epoch += 1
        else:
            self.feed.load_state_dict(state.get("feed", {}))
            self._loaded = True
