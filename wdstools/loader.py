"""The torch DataLoader of a Dataset: exact epochs, the same number of batches on every rank, resume at any batch.

    loader = wdstools.loader(dataset, batch_size=64, seed=7, num_workers=4, transform=decode)
    for epoch in range(90):
        for batch in loader:  # a new order every time
            ...
            checkpoint["loader"] = loader.state_dict()  # after this batch, on any rank; load_state_dict() goes on

Besides streaming.py, this is the only file that imports torch. The package's `loader` is this module, which can be
called.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate, get_worker_info

from wdstools.deal import Deal, Tail
from wdstools.mix import Mix
from wdstools.parcel import Packer
from wdstools.plan import Plan
from wdstools.sampler import PlanBatchSampler, fingerprint
from wdstools.workers import choose_start, rank_and_world, transformed

NUMBERS = (torch.Tensor, np.ndarray, np.number, np.bool_, int, float)


def loader(
    dataset: Any,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    block: int = 1,
    resample: bool = False,
    tail: Tail | None = None,
    drop_last: bool | None = None,
    rank: int | None = None,
    world: int | None = None,
    epoch_length: int | Literal["first", "all"] = "first",
    transform: Callable[[Any], Any] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    **options: Any,
) -> Loader:
    """Return the Loader of a dataset.

    `dataset`: a Dataset, anything with a length and numbered samples, or a mixture {name: (dataset, weight)}, whose
    epochs are as Mix describes (`epoch_length`), and whose samples, where they are dicts, have the name as
    `__source__`; one that has such a field already is a ValueError. `batch_size`: samples per rank and step.
    `shuffle`, `seed`, `block`, `resample`: as in Plan. `tail`: as in Deal, "drop" unless said; drop_last=True is "drop"
    and, on one rank, drop_last=False is "uneven". `rank`, `world`: this process among how many; unless both are given,
    those of torch.distributed where it is initialised, else RANK and WORLD_SIZE of the environment, else 0 of 1.

    `transform`: called with every sample, in the worker; where it has a set_epoch(number), that is called before the
    samples of an epoch, so that augmentation can be a function of seed, epoch and key, which a resume repeats.
    `collate`: makes a batch of a list of what transform
    returned; without it, see collate_batch(). Both must be picklable where workers are not forked. Other options are
    DataLoader's: prefetch_factor, persistent_workers, pin_memory, multiprocessing_context, timeout ...

    Workers of remote data are started by forkserver unless multiprocessing_context says something else, because the
    fast client of object stores cannot be used in a forked child: as with spawn, the script that trains needs its
    `if __name__ == "__main__":`.

    Raises ValueError or TypeError for arguments that do not fit.
    """
    rank, world = rank_and_world(rank, world)
    dealt: Any = {"batch_size": batch_size, "rank": rank, "world": world, "tail": _tail(tail, drop_last, world)}
    order: Any = {"seed": seed, "shuffle": shuffle, "block": block, "resample": resample}
    sources = dataset if isinstance(dataset, Mapping) else {"": (dataset, 1)}
    plans = {name: (Plan(len(d), data=fingerprint(d), **order), weight) for name, (d, weight) in sources.items()}
    plan: Deal
    if isinstance(dataset, Mapping):
        plan = Mix(plans, seed=seed, shuffle=shuffle, epoch_length=epoch_length, **dealt)
    else:
        plan = Plan(len(dataset), data=plans[""][0].data, **order, **dealt)
    names = list(sources) if isinstance(dataset, Mapping) else None
    samples = _Samples([d for d, _ in sources.values()], transform, names)
    return Loader(samples, PlanBatchSampler(plan), collate_fn=collate, num_workers=num_workers, **options)


class Loader(DataLoader[Any]):
    """A DataLoader that knows which batches it has delivered, with the semantics of torchdata's StatefulDataLoader.

    Every iteration is an epoch: the next one, also after one that was left midway; after load_state_dict() the rest
    of the epoch of that state; after set_epoch() the epoch named. len() is a whole epoch's batches on this rank.
    A batch counts as soon as it is delivered, whatever workers have read ahead.
    """

    def __init__(self, dataset: Any, sampler: PlanBatchSampler, **options: Any) -> None:
        if not options.get("in_order", True):
            raise ValueError("in_order=False: batches in any order cannot be counted, nor resumed")
        collate = Collate(options.pop("collate_fn", None), bool(options.get("pin_memory")))
        functions = {"transform": getattr(dataset, "transform", None), "collate": collate.collate}
        choose_start(getattr(dataset, "datasets", [dataset]), functions, options)
        self.place = sampler.place
        tells = hasattr(functions["transform"], "set_epoch")
        super().__init__(dataset, batch_sampler=_Ahead(sampler, tells), collate_fn=collate, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # of torch's own class, which nobody needs
        run = self.place.begin()
        return self._delivered(run, super().__iter__())  # workers start now

    def _delivered(self, run: object, batches: Any) -> Iterator[Any]:
        try:
            for batch in batches:
                self.place.advance(run)
                yield batch
            self.place.end(run)
        except (RuntimeError, ConnectionError, EOFError) as error:  # what it was sending broke off, or it is missed
            if re.match(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)", str(error)) or (
                not isinstance(error, RuntimeError) and _one_died(batches)
            ):
                error.add_note(
                    f"a worker died at step {self.place.step} of epoch {self.place.plan.epoch}: mostly for lack of"
                    " memory or of room in /dev/shm; state_dict() of the loader holds the batches up to there"
                )
            self._stop(batches)
            raise
        finally:
            # an exception keeps the iterator alive, in its traceback; its workers must not live as long
            if not self.persistent_workers:
                self._stop(batches)

    def _stop(self, batches: Any) -> None:
        """End the workers: torch would tell of a dead one wherever the program is when the next process ends."""
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
        self._iterator = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch, from its start; of a state just loaded, the rest of its epoch."""
        self.place.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | str]:
        """Return the place after the last batch delivered: small ints and strings, the same on every rank."""
        return self.place.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from a state, of any number of workers, and of ranks at the same global batch.

        Raises StateError, with what differs, for a state of other data or another order.
        """
        self.place.load_state_dict(state)


def _one_died(batches: Any) -> bool:
    """Whether a worker has ended; the kernel closes its sockets a moment before it tells."""
    return bool(wait([worker.sentinel for worker in getattr(batches, "_workers", ())], timeout=1))


class _Ahead(PlanBatchSampler):
    """The sampler of a Loader, which counts what it delivers: drawing moves nothing. `tells`: batches have an epoch."""

    def __init__(self, sampler: PlanBatchSampler, tells: bool) -> None:
        self.place, self.tells = sampler.place, tells

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.ahead()
        return map(partial(_Numbers, self.plan.epoch), batches) if self.tells else batches


class _Numbers(list[int]):
    """The numbers of a batch on their way to a worker, with their epoch."""

    def __init__(self, epoch: int, numbers: Iterable[int]) -> None:
        super().__init__(numbers)
        self.epoch = epoch

    def __reduce__(self) -> tuple[Any, ...]:
        return _Numbers, (self.epoch, list(self))


class _Samples:
    """Datasets put end to end, with a transform: what a worker reads. `names`: of the sources of a mixture."""

    def __init__(
        self, datasets: Sequence[Any], transform: Callable[[Any], Any] | None, names: Sequence[str] | None = None
    ) -> None:
        self.datasets, self.transform, self.names = list(datasets), transform, names
        self.ends = np.cumsum([len(dataset) for dataset in datasets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        if self.names is None:
            found = _fetch(self.datasets[0], numbers)
        else:
            found = [None] * len(numbers)
            sources = np.searchsorted(self.ends, numbers, side="right")
            for source in np.unique(sources).tolist():
                here = np.flatnonzero(sources == source).tolist()
                first = int(self.ends[source]) - len(self.datasets[source])
                samples = _fetch(self.datasets[source], [numbers[i] - first for i in here])
                for i, sample in zip(here, samples, strict=True):
                    found[i] = _named(sample, self.names[source])
        if self.transform is None:
            return found
        if isinstance(numbers, _Numbers):
            self.transform.set_epoch(numbers.epoch)  # type: ignore[attr-defined]  # who has none is sent no epoch
        return [transformed(self.transform, sample) for sample in found]


def _named(sample: Any, source: str) -> Any:
    """Return a sample of a mixture with the name of its source; the dataset may keep the sample itself."""
    if not isinstance(sample, dict):
        return sample
    if "__source__" in sample:
        told = f"sample {sample.get('__key__')!r} of source {source!r}"
        raise ValueError(f"{told} has a field __source__ already: leave it out, or rename it in the dataset")
    return {**sample, "__source__": source}


def _fetch(dataset: Any, numbers: list[int]) -> list[Any]:
    many = getattr(dataset, "__getitems__", None) or getattr(dataset, "fetch", None)
    return list(many(numbers)) if many else [dataset[number] for number in numbers]


class Collate:
    """A collate function whose batches come from workers faster than torch sends them: for anyone's DataLoader.

    `collate`: makes a batch of a list of samples, else collate_batch(). A worker sends it as a Parcel, which is the
    batch when it arrives. `pinned`: the DataLoader has pin_memory=True.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None = None, pinned: bool = False) -> None:
        self.collate, self.pinned, self.packer = collate, pinned, Packer()

    def __call__(self, samples: list[Any]) -> Any:
        batch = (self.collate or collate_batch)(samples)
        if get_worker_info() is None:
            return _without_views(batch) if self.pinned else batch
        return self.packer(batch)


def _without_views(batch: Any) -> Any:
    """Return a batch with bytes for memoryviews, which torch takes for sequences of numbers when it pins."""
    if isinstance(batch, memoryview):
        return bytes(batch)
    if type(batch) is dict:
        return {name: _without_views(value) for name, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(map(_without_views, batch))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_without_views, batch))
    return batch


def collate_batch(samples: list[Any]) -> Any:
    """Make a batch of samples: a dict of columns of dicts, a tuple of columns of tuples, else one column.

    A column of tensors, arrays or numbers is one tensor (torch's default_collate); of anything else, bytes and text
    too, a list; from a worker, memoryviews come as bytes. Raises ValueError where samples have different fields.
    """
    first = samples[0]
    if isinstance(first, dict):
        for sample in samples:
            if sample.keys() != first.keys():
                odd = ", ".join(map(str, sorted(sample.keys() ^ first.keys(), key=str)))
                keys = f"{first.get('__key__')!r} and {sample.get('__key__')!r}"
                raise ValueError(f"samples {keys} cannot be in one batch: only one of them has {odd}; give a transform")
        return {name: _column([sample[name] for sample in samples], name) for name in first}
    if isinstance(first, tuple):
        columns = [_column(list(values), i) for i, values in enumerate(zip(*samples, strict=True))]
        return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
    return _column(samples, None)


def _column(values: list[Any], name: Any) -> Any:
    if not all(isinstance(value, NUMBERS) for value in values):
        return values
    try:
        return _stacked(values) if _are_alike(values) else default_collate(values)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        error.add_note(f"in the collation of {'the samples' if name is None else f'field {name!r}'}")
        raise


def _are_alike(values: list[Any]) -> bool:
    """Whether these are arrays, or tensors, of one shape and type, with nothing unusual about them."""
    first = values[0]
    if type(first) is torch.Tensor:
        alike = (first.shape, first.dtype, first.device)
        plain = first.layout is torch.strided and not first.is_quantized
        return plain and all(type(v) is torch.Tensor and (v.shape, v.dtype, v.device) == alike for v in values)
    if type(first) is not np.ndarray or first.dtype.kind not in "biuf":
        return False
    return all(type(v) is np.ndarray and (v.shape, v.dtype) == (first.shape, first.dtype) for v in values)


def _stacked(values: list[Any]) -> torch.Tensor:
    """What default_collate makes of those, but in this process's own memory: pages of shared memory that is new for
    every batch cost many times what copying does, and a Parcel has its own. And read-only arrays are no warning."""
    return torch.stack(values) if type(values[0]) is torch.Tensor else torch.as_tensor(np.stack(values))


def _tail(tail: Tail | None, drop_last: bool | None, world: int) -> Tail:
    if drop_last is None:
        return tail or "drop"
    if tail is not None:
        raise ValueError("give tail or drop_last, not both")
    if not drop_last and world > 1:
        raise ValueError(f"drop_last=False leaves open what {world} ranks do: say tail='pad' or tail='uneven'")
    return "drop" if drop_last else "uneven"


class _Callable(types.ModuleType):
    """`wdstools.loader` names a module and a function; once the module is loaded, Python binds the name to that."""

    def __call__(self, *arguments: Any, **options: Any) -> Loader:
        return loader(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
