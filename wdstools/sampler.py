"""Batches of sample numbers for torch, and where a reader of them stands. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from wdstools.deal import Deal


class Place:
    """An epoch and the steps that were taken of it: what a sampler or loader counts, keeps and takes up again.

    Every iteration is an epoch: begin() starts the one after the last, also where that was left midway, as torch's
    own shuffling does; an iteration that gave nothing yet does not count, unless nothing was left to give. After
    load_state_dict() the next iteration is the rest of that epoch, after set_epoch() the epoch named.
    """

    def __init__(self, plan: Deal) -> None:
        self.plan, self.step = plan, 0
        self._run: object | None = None  # the iteration that moves this place; of none: it is where the next begins
        self._from = 0  # the step at which it began

    def begin(self) -> object:
        """Start an iteration at `plan` and `step`; return what names it."""
        if self._run is not None and self.step and (self.step > self._from or not self.plan.count(self.step)):
            self._to(self.plan.epoch + 1)
        self._run, self._from = object(), self.step
        return self._run

    def advance(self, run: object) -> None:
        """Count a step of an iteration; one that a later call has put an end to moves nothing."""
        if run is self._run:
            self.step += 1

    def end(self, run: object) -> None:
        """Note that an iteration came to the end of its epoch."""
        if run is self._run:
            self._to(self.plan.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch, from its start. The one that a loaded state stands in goes on."""
        if self._run is not None or epoch != self.plan.epoch:
            self._to(epoch)

    def state_dict(self, step: int | None = None) -> dict[str, int | str]:
        return self.plan.state_dict(self.step if step is None else step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StateError; the place is then where it was."""
        self.plan, self.step = self.plan.resume(state)
        self._run = None

    def _to(self, epoch: int) -> None:
        self.plan, self.step, self._run = self.plan.with_epoch(epoch), 0, None


class PlanBatchSampler:
    """The batches of a plan's rank as lists of numbers, for anyone's DataLoader(..., batch_sampler=this).

    Every iteration is the next epoch, or as set_epoch() says (see Place). `plan`: a Plan or Mix. A DataLoader with
    workers draws batches before it delivers them, and the sampler sees only the drawing: state_dict() without a step
    is exact without workers; with them, say how many batches of the epoch were used. torchdata's StatefulDataLoader
    does so itself: the state of the sampler in its own is that of the last batch it delivered. So does wdstools.loader.
    """

    def __init__(self, plan: Deal) -> None:
        self.place = Place(plan)

    @property
    def plan(self) -> Deal:
        """The plan for the epoch of the place."""
        return self.place.plan

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch, wherever the next iteration begins."""
        return self.plan.count()

    def __iter__(self) -> Iterator[list[int]]:
        run = self.place.begin()
        return self._drawn(run, self.ahead())  # begun now, not at the first batch

    def _drawn(self, run: object, batches: Iterator[list[int]]) -> Iterator[list[int]]:
        for batch in batches:
            self.place.advance(run)
            yield batch
        self.place.end(run)

    def ahead(self) -> Iterator[list[int]]:
        """Return the batches from the place to the end of its epoch; the place stays where it is."""
        return (rows.tolist() for rows in self.plan.batches(self.place.step))

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch, from its start; of a state just loaded, the rest of its epoch."""
        self.place.set_epoch(epoch)

    def state_dict(self, step: int | None = None) -> dict[str, int | str]:
        """Return the place after `step` batches of this epoch (those that were drawn), the same on every rank.

        Raises IndexError for a step past the end of the epoch.
        """
        return self.place.state_dict(step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, of any number of ranks at the same global batch. Raises StateError."""
        self.place.load_state_dict(state)


def fingerprint(dataset: Any) -> str:
    """Return what tells the samples of a dataset and their order from others, for the state of a loader.

    The names of the shards without their folders, so that data may move; their sizes and numbers of samples; and the
    rows of a view. A dataset that has its own `fingerprint` (a string, or what returns one) says it itself; of one
    without an index only the type is known.
    """
    own = getattr(dataset, "fingerprint", None)
    if own is not None:
        return str(own() if callable(own) else own)
    index = getattr(dataset, "index", None)
    shards = getattr(index, "shards", None)  # of a list, `index` is a method
    if index is None or shards is None:
        return type(dataset).__name__
    names = [posixpath.basename(url.partition("?")[0]) for url in shards.url]
    lines = [f"{name} {nbytes} {n}" for name, nbytes, n in zip(names, shards.nbytes, shards.nsamples, strict=True)]
    told = f"{len(names)} shards, {sum(shards.nbytes)} bytes, {_digest(chr(10).join(lines).encode())}"
    rows = getattr(dataset, "rows", range(len(index)))
    if isinstance(rows, range):
        return told if rows == range(len(index)) else f"{told}, rows {rows.start}:{rows.stop}:{rows.step}"
    import numpy as np

    return f"{told}, rows {_digest(np.ascontiguousarray(rows, np.int64))}"


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
