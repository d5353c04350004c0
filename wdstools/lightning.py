"""wdstools.loader in a Lightning Trainer: the ranks of its strategy, its epochs, exact resume from a checkpoint.

    data = DataModule(train=dataset, val=other, batch_size=64, num_workers=4, transform=prepare)
    trainer = Trainer(callbacks=[DataWait()])
    trainer.fit(model, data, ckpt_path="last.ckpt")

The loaders that a Trainer gets are no torch DataLoaders, so that it puts no sampler of its own into them, whatever
its `use_distributed_sampler` says. Nothing in the package imports this module.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from wdstools.loader import Loader, loader

ORDER = ("shuffle", "resample", "block", "epoch_length", "tail", "drop_last")  # options that are for training alone


class DataModule(LightningDataModule):
    """The loaders of a training: `train`, `val` and `test` are what wdstools.loader takes, datasets or mixtures.

    `options`: those of wdstools.loader. For validation and test, what orders the samples is left out (shuffle, block,
    tail ...): they are read in order, the same every time, and as a whole: their tail is "uneven" on one rank, and
    "pad" on several, where some samples come twice, so that all ranks have equally many batches. `val_options` and
    `test_options` say otherwise.

    The Trainer's strategy says rank and world, also where it splits a model over devices. The place in the training
    data is in its checkpoints: fit(ckpt_path=...) goes on with exactly the rest of the epoch, on other ranks too, as
    long as batch_size times ranks is the same. An epoch that `limit_train_batches` ended is over; one in which
    `max_steps` stopped the training is not, though the Trainer counts it. A checkpoint of other data or another order
    is a StateError.
    """

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        *,
        val_options: Mapping[str, Any] | None = None,
        test_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._train, self._val, self._test = train, val, test
        self._options = options
        self._others = {"val": dict(val_options or {}), "test": dict(test_options or {})}
        self._running: _Training | None = None
        self._state: Mapping[str, Any] | None = None  # loaded before there was a loader

    def train_dataloader(self) -> Any:
        """Return the loader of the training: an iterable with a length and a state. Raises ValueError without one."""
        if self._train is None:
            raise ValueError("DataModule has no train=")
        trainer = self.trainer
        options = self._options
        if getattr(trainer, "overfit_batches", 0):
            options = options | {"shuffle": False, "resample": False}
        running = _Training(self._loader(self._train, options), trainer)
        if self._state is not None:
            running.load_state_dict(self._state)
        self._running, self._state = running, None
        return running

    @property
    def val_dataloader(self) -> Callable[[], Any]:
        """What returns the loader of the validation; without val=, Lightning's own method, which stands for none."""
        return super().val_dataloader if self._val is None else self._validation

    def _validation(self) -> Any:
        return self._evaluation(self._val, self._others["val"])

    def test_dataloader(self) -> Any:
        """Return the loader of the test. Raises ValueError without one."""
        if self._test is None:
            raise ValueError("DataModule has no test=")
        return self._evaluation(self._test, self._others["test"])

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data, for a checkpoint: the same on every rank."""
        state = self._state if self._running is None else self._running.state_dict()
        return {} if state is None else {"train": dict(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's state. Raises StateError, at the latest where the training loader is made."""
        self._state = state_dict.get("train")
        if self._running is not None and self._state is not None:
            self._running.load_state_dict(self._state)

    def _evaluation(self, dataset: Any, others: dict[str, Any]) -> _Evaluation:
        options = {name: value for name, value in self._options.items() if name not in ORDER}
        options |= {"shuffle": False} | others
        if not {"tail", "drop_last"} & others.keys():
            options["tail"] = "uneven" if self._ranks()["world"] == 1 else "pad"
        return _Evaluation(self._loader(dataset, options))

    def _loader(self, dataset: Any, options: Mapping[str, Any]) -> Loader:
        return loader(dataset, **{**self._ranks(), **options})

    def _ranks(self) -> dict[str, int]:
        trainer = self.trainer
        if trainer is None:
            return {"rank": 0, "world": 1}
        told = trainer.distributed_sampler_kwargs or {"rank": trainer.global_rank, "num_replicas": trainer.world_size}
        return {"rank": told["rank"], "world": told["num_replicas"]}


class _Evaluation:
    """A Loader as a Trainer gets it, of which every iteration is epoch 0: mixtures too are the same every time."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.loader.set_epoch(0)
        yield from self.loader

    @property
    def worker_init_fn(self) -> Any:
        """Of the Loader: seed_everything(workers=True) makes the Trainer set it."""
        return self.loader.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self.loader.worker_init_fn = function


class _Training(_Evaluation):
    """The one whose place is in checkpoints: the Trainer itself keeps the state of a loader that has one, too.

    Its epochs begin with the Trainer's, and follow each other. An iteration begins with its first batch: a Trainer
    asks for one earlier, when it does not know yet how many batches it will take.
    """

    def __init__(self, loader: Loader, trainer: Trainer | None) -> None:
        super().__init__(loader)
        self._trainer, self._loaded = trainer, False
        if trainer is not None:
            loader.set_epoch(trainer.current_epoch)

    def __iter__(self) -> Iterator[Any]:
        if self._loaded:
            self._loaded = False
            place = self.loader.place
            limit = len(self) if self._trainer is None else min(len(self), self._trainer.num_training_batches)
            if place.step >= limit:  # the epoch of the state is over, for this Trainer
                place.set_epoch(place.plan.epoch + 1)
        yield from self.loader

    def state_dict(self) -> dict[str, Any]:
        return dict(self.loader.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.loader.load_state_dict(state)
        self._loaded = True


class DataWait(Callback):
    """Records how long each training step waits for its batch, on this rank.

    The wait is the time from the end of a step (of an epoch's first: from its start) to the start of the next, which
    has the batch on its device; the step is what the process itself spends in it, so that where a GPU runs behind its
    process, less of the wait is felt. A gap in which a checkpoint was written or a validation ran is no wait.
    Every wait is logged as `data_wait`, in seconds, as often as the Trainer logs; summary() goes to its loggers at the
    end of an epoch, as `data_wait/...`, of all steps since fit() began.
    """

    def __init__(self) -> None:
        self._waits, self._steps = array("d"), array("d")
        self._end: float | None = None  # of the last step
        self._start: float | None = None

    def summary(self) -> dict[str, float]:
        """Return `steps`, `median` and `p99` of the waits in seconds, and their `share` of all time; 0 without any."""
        waits, n = sorted(self._waits), len(self._waits)
        if not n:
            return {"steps": 0, "median": 0.0, "p99": 0.0, "share": 0.0}
        total = sum(waits) + sum(self._steps)
        found = {"median": (waits[n // 2] + waits[(n - 1) // 2]) / 2, "p99": waits[min(n - 1, n * 99 // 100)]}
        return {"steps": n, **found, "share": sum(waits) / total if total else 0.0}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._waits, self._steps = array("d"), array("d")
        self._end = time.perf_counter()  # of an epoch that a checkpoint goes on with, the start is not told

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._start is not None and self._end is not None:
            self._waits.append(self._start - self._end)
            self._steps.append(now - self._start)
            if trainer.loggers and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                for logger in trainer.loggers:  # pl_module.log() would wait for the device at every step
                    logger.log_metrics({"data_wait": self._waits[-1]}, step=trainer.global_step)
        self._end, self._start = now, None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end = time.perf_counter()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._end = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {f"data_wait/{name}": value for name, value in self.summary().items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
