"""Shards read one after the other, webdataset's way: dealt to ranks and workers, shuffled in a buffer, drawn again.

    shards = wdstools.iterable("train-{000000..000146}.tar", buffer=1000, decode="rgb", transform=prepare)
    for epoch in range(90):
        shards.set_epoch(epoch)  # before every epoch, as with torch's DistributedSampler
        for batch in DataLoader(shards, batch_size=64, num_workers=4, collate_fn=wdstools.loader.Collate()):
            ...

Any collate_fn will do; this one brings batches from the workers faster. Whoever has an index gets more of
wdstools.loader: exact epochs in any order, and no buffer.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wdstools import urls
from wdstools.decode import Decode, make_decoder
from wdstools.errors import ShardError, StateError, WdsError
from wdstools.permute import LIMIT
from wdstools.reader import Handler, check_handler, go_on, reading
from wdstools.samples import Sample
from wdstools.shardorder import ShardOrder, shuffled, tweak, whole
from wdstools.storage import open_source
from wdstools.store import Stores
from wdstools.workers import distributed_ranks, environment_ranks, given_ranks, transformed, worker_and_workers

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset as Base
else:
    try:
        from torch.utils.data import IterableDataset as Base
    except ModuleNotFoundError:  # it is an iterable without torch, too
        Base = object

log = logging.getLogger("wdstools")

VERSION = 1  # of the order: it changes where the formula does, so that an old state is refused
FRUITLESS = 8  # times the number of shards: shards without a sample, one after the other, until an epoch is given up


@dataclass
class At:
    """Where an iteration stands: samples given of an epoch; shards read of the reader's own, samples of the next."""

    epoch: int = 0
    given: int = 0
    shard: int = 0
    inside: int = 0


class ShardIterable(Base):  # type: ignore[type-arg]
    """The samples of shards as a torch IterableDataset, or for a plain `for`: `wdstools.iterable`.

    A reader is a DataLoader worker of a rank: there are ranks times workers of them. `shards`, `fields`, `views`,
    `handler`, `select`, `rename`, `storage_options`: as in stream(), open files apart; `decode`: see
    decode.make_decoder; `transform`: called with every sample after that.

    `split`: every shard is read by exactly one reader in an epoch; ValueError where there are fewer shards than
    readers, unless `allow_empty`. False: every reader reads all of them, in an order of its own. `shuffle_shards`: a
    new order for every (seed, epoch), the same on all ranks. `resample`: every reader draws shards with replacement,
    for which `epoch_length` is needed. `buffer`: samples in a shuffle buffer, which holds undecoded bytes; 0: none.

    `epoch_length`: samples in an epoch over all readers; each gives exactly its part (ValueError where they are not
    equal), going over the shards again, dealt in another order, as often as needed. An epoch that ends midway is not
    continued by the next.
    `rank`, `world`: unless given, of torch.distributed where it is initialised when reading begins, else RANK and
    WORLD_SIZE of the environment, else 0 of 1.

    The order depends on the seed, the epoch, the shards, the reader and nothing else. Every iteration is the next
    epoch, or the one that set_epoch() names. Workers that are not persistent begin every epoch with a copy of what
    the parent has, so that with them set_epoch() has to be called, with the same number on every rank.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        fields: Iterable[str] | None = None,
        views: bool = False,
        decode: Decode = None,
        transform: Callable[[Any], Any] | None = None,
        split: bool = True,
        shuffle_shards: bool = True,
        resample: bool = False,
        buffer: int = 0,
        seed: int = 0,
        epoch_length: int | None = None,
        allow_empty: bool = False,
        handler: Handler = "raise",
        select: Callable[[str], object] | None = None,
        rename: Callable[[str], str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__()
        self.shards = urls.expand(shards)
        self.order = ShardOrder(
            n=len(self.shards), seed=seed, split=split, shuffle=shuffle_shards, resample=resample,
            epoch_length=epoch_length, allow_empty=allow_empty,
        )  # fmt: skip
        self.buffer = whole("buffer", buffer, LIMIT)
        check_handler(handler)
        make_decoder(decode)  # tells what is wrong with it
        self.decode, self.transform, self.handler = decode, transform, handler
        self._fields = None if fields is None else frozenset(fields)
        self._options: dict[str, Any] = {"views": views, "select": select, "rename": rename}
        self._stores = None if storage_options is None else Stores(storage_options)
        self._given = given_ranks(rank, world)
        self._captured: tuple[int, int] | None = None  # ranks where this was pickled
        self._told = _shared([0, 0])  # the epoch of set_epoch(), and its calls: workers that live on see them
        self._seen = 0  # calls
        self._at, self._waits = At(), True  # waits: for an iteration that begins there
        self._readers()

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch, from its start; of a state that stands in this epoch, the rest of it."""
        self._told[0] = whole("epoch", epoch, LIMIT - 1)
        self._told[1] += 1

    def state_dict(self) -> dict[str, int | str]:
        """Return the place of this reader after the last sample that its latest iteration gave: ints and strings.

        Of workers, torchdata's StatefulDataLoader asks each for its own.
        """
        return {**asdict(self._at), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration give exactly the rest of the epoch of a state.

        Shards that were read are not opened again; with a buffer, the epoch is read again up to there, undecoded.
        Raises StateError, with what differs, for a state of other shards, options or readers.
        """
        if not isinstance(state, Mapping) or not asdict(At()).keys() <= state.keys():
            raise StateError(f"not the state of an iterable: {state!r:.200}")
        here, at = self._identity(), {name: state[name] for name in asdict(At())}
        differing = [name for name in {**here, **state} if name not in at and here.get(name) != state.get(name)]
        if differing:
            told = (f"{name} is {state.get(name)!r} in the state and {here.get(name)!r} here" for name in differing)
            raise StateError(f"the state belongs to other shards, options or readers: {'; '.join(told)}")
        if not all(type(value) is int and 0 <= value < LIMIT for value in at.values()):
            raise StateError(f"the state has {at}, which are not places")
        self._at, self._waits = At(**at), True

    def _identity(self) -> dict[str, int | str]:
        """What must be equal for a place to mean the same."""
        names = "\n".join(posixpath.basename(url.partition("?")[0]) for url in self.shards)
        reader, readers = self._readers()
        found: dict[str, int | str] = {"version": VERSION, "reader": reader, "readers": readers}
        digest = hashlib.blake2b(names.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        found["shards"] = f"{len(self.shards)} shards, {digest}"
        return found | self.order.identity() | {"buffer": self.buffer}

    def __iter__(self) -> Iterator[Any]:
        at = self._begin()
        samples = self._read(at) if not self.buffer else self._shuffled(at)
        decode, transform = make_decoder(self.decode), self.transform
        if decode is not None:
            samples = map(decode, samples)
        return samples if transform is None else (transformed(transform, sample) for sample in samples)

    def _begin(self) -> At:
        """Return the place at which an iteration begins; it is moved by what is read."""
        epoch, calls = int(self._told[0]), int(self._told[1])
        if calls != self._seen:
            self._seen = calls
            if not self._waits or self._at.epoch != epoch:
                if self._waits and self._at.given and epoch != self._at.epoch + 1:
                    log.warning("set_epoch(%d) puts aside a state of epoch %d", epoch, self._at.epoch)
                self._at = At(epoch)
        elif not self._waits:
            self._at = At(self._at.epoch + 1)
        self._waits = False
        return self._at

    def _read(self, at: At) -> Iterator[Sample]:
        """Yield the samples from a place on, in the order of the shards; a sample is counted before it is given."""
        reader, readers = self._readers()
        part, own, empty = self.order.part(readers), self.order.own(reader, readers), 0
        while at.shard < own if part is None else at.given < part:
            url = self.shards[self.order.shard(at.shard, at.epoch, reader, readers)]
            before = at.given
            try:
                with reading(open_source(url, self._stores), self._fields, **self._options) as samples:
                    if sum(1 for _ in itertools.islice(samples, at.inside)) < at.inside:
                        raise StateError(f"{url}: has fewer than the {at.inside} samples that the state has read of it")
                    for sample in samples:
                        at.inside += 1
                        at.given += 1
                        yield sample
                        if at.given == part:
                            return
            except StateError:
                raise
            except (WdsError, OSError) as error:
                if not go_on(self.handler, error):
                    return
            empty = 0 if at.given > before or at.inside else empty + 1
            if part is not None and empty > FRUITLESS * self.order.n + 64:
                raise ShardError(f"the last of {empty} without a sample: the epoch cannot be filled", url)
            at.shard, at.inside = at.shard + 1, 0

    def _shuffled(self, at: At) -> Iterator[Sample]:
        """Yield the samples from a place on through the buffer."""
        samples = self._read(At(at.epoch))
        if self._options["views"]:
            samples = map(_copied, samples)  # a view would keep its block
        reader, _ = self._readers()
        mixed = shuffled(samples, self.buffer, tweak(f"buffer {self.order.seed} {reader}", at.epoch))
        for sample in itertools.islice(mixed, at.given, None):
            at.given += 1
            yield sample

    def _ranks(self) -> tuple[int, int] | None:
        """Return (rank, world) as far as anything tells."""
        return self._given or distributed_ranks() or self._captured or environment_ranks()

    def _readers(self) -> tuple[int, int]:
        """Return this reader among how many. Ranks come first: they have equally many shards, or one more."""
        rank, world = self._ranks() or (0, 1)
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not from 0 to below world {world}")
        worker, workers = worker_and_workers()
        return worker * world + rank, world * workers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captured": self._ranks()}  # a spawned worker does not have torch.distributed

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._told = _shared(self._told)


def _copied(sample: Sample) -> Sample:
    return {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}


def _shared(values: Any) -> Any:
    """Return a list of numbers as a tensor in shared memory; as it is where there is no torch."""
    if Base is object:
        return list(values)
    import torch

    tensor: Any = torch.as_tensor(values, dtype=torch.int64)
    return tensor if tensor.is_shared() else tensor.clone().share_memory_()
