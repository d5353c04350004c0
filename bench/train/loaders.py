"""Batches from any loader by one option: the same samples, decoded by the same code.

feed = make(settings, "train")
for epoch in range(5):
    feed.set_epoch(epoch)
    for batch in feed:  # {"image": uint8 [B, C, H, W], "label": int64 [B], "key": list[str]}
        ...
"""

from __future__ import annotations

import importlib
import importlib.util
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import wdstools
from bench.train.decoding import Prepare, collate, decode_on
from bench.train.sources import Place, locate, random_access
from wdstools import urls
from wdstools.loader import Collate
from wdstools.plan import split_of
from wdstools.samples import hash_key, split_name

LOADERS = ("indexed", "stream", "webdataset", "imagefolder", "litdata", "synthetic")
BUFFER = 1000  # samples in the shuffle buffers of those that have one
SYNTHETIC = 100  # batches of an epoch
Batch = dict[str, Any]
_MADE: weakref.WeakSet[Feed] = weakref.WeakSet()


class Feed:
    """The batches of one part for one rank: every iteration is an epoch, the next one or that of set_epoch().

    `batches`: what is iterated; `name`: of the loader; `length`: batches of an epoch on this rank, None: not known;
    `epoch`: called with the number of each epoch before it begins.
    """

    exact = False  # whether state_dict() is a place to resume at
    decode: Callable[[Batch, torch.device], Batch] | None = None  # what is left to do on the device, for DeviceFeed

    def __init__(
        self, name: str, batches: Any, length: int | None, epoch: Callable[[int], object] = lambda epoch: None
    ) -> None:
        self.name, self.batches, self._length, self._tell = name, batches, length, epoch
        self._next = 0
        _MADE.add(self)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(f"loader={self.name} does not know how many batches an epoch has")
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        self._tell(self._next)
        self._next += 1
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch, from its start."""
        self._next = epoch

    def close(self) -> None:
        """End the workers, which live on between epochs."""
        iterator = getattr(self.batches, "_iterator", None)
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
            self.batches._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch. Raises ValueError: only loader=indexed has one."""
        raise ValueError(f"loader={self.name} cannot resume in mid-epoch: loader=indexed can")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError, as state_dict()."""
        raise ValueError(f"loader={self.name} cannot resume in mid-epoch: loader=indexed can")


def close() -> None:
    """End the workers of all feeds of this process. After a failure torch would tell of one that is dead wherever the
    program is when its next child ends."""
    for feed in list(_MADE):
        feed.close()


class Indexed(Feed):
    """wdstools.loader: exact epochs, and resume at any batch with exactly the same pixels."""

    exact = True

    def __init__(self, loader: Any, training: bool) -> None:
        super().__init__("indexed", loader, len(loader))
        self._training = training

    def __iter__(self) -> Iterator[Batch]:
        if not self._training:
            self.batches.set_epoch(0)
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch; of a state just loaded, the rest of it."""
        self.batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch delivered."""
        return dict(self.batches.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises wdstools' StateError."""
        self.batches.load_state_dict(state)


def make(settings: Any, part: str, *, rank: int = 0, world: int = 1) -> Feed:
    """Return the Feed of a part, "train" (shuffled, augmented where data.augment says so) or "val" (in order).

    Of a training, the regime says what becomes of the samples that make no full batch on every rank; a validation is
    read as a whole. Raises ValueError that says what to change, and what the loader raises.
    """
    if settings.loader not in LOADERS:
        raise ValueError(f"loader is none of {', '.join(LOADERS)}: {settings.loader!r}")
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not from 0 to below {world}")
    if settings.loader == "synthetic":
        return synthetic(settings, part)
    if settings.decoder == "nvjpeg":
        check_nvjpeg(settings)
    feed = _made(settings, part, locate(settings, part), rank, world)
    if settings.decoder == "nvjpeg":
        feed.decode = partial(decode_on, size=settings.data.size, channels=settings.data.channels)
    return feed


def _made(settings: Any, part: str, place: Place, rank: int, world: int) -> Feed:
    if settings.loader == "indexed":
        return indexed(settings, part, place, rank, world)
    if settings.loader == "stream":
        return stream(settings, part, place, rank, world)
    peer = importlib.import_module(f"bench.train.peer_{settings.loader}")
    feed: Feed = peer.make(settings, part, place, rank, world)
    return feed


def check_nvjpeg(settings: Any) -> None:
    """Raises ValueError where pictures cannot be decoded on a GPU."""
    if settings.device == "cpu" or not torch.cuda.is_available():
        raise ValueError("decoder=nvjpeg needs a CUDA device: use decoder=pillow or simplejpeg")
    if importlib.util.find_spec("torchvision") is None:
        raise ValueError("decoder=nvjpeg needs torchvision: pip install torchvision, or use decoder=simplejpeg")


def prepare(settings: Any, part: str) -> Prepare:
    """Return what every loader calls with every sample."""
    data = settings.data
    augment = bool(data.augment) and part == "train"
    return Prepare(settings.decoder, data.image, data.label, data.size, data.channels, augment, settings.seed)


def dataset(settings: Any, part: str, place: Place | None = None) -> Any:
    """Return the wdstools Dataset of a part, with the two fields as views; val from the shards of train is chosen by
    the hash of the key."""
    place = place or locate(settings, part)
    index = random_access(place, settings.loader, settings.source.kind)
    fields = [settings.data.image, settings.data.label]
    whole = wdstools.open(index, fields=fields, views=True, storage_options=place.storage_options)
    if settings.data.val is not None:
        return whole
    val = settings.data.val_part
    return whole.split(train=1 - val, val=val)[part]


def options(settings: Any, part: str, world: int) -> dict[str, Any]:
    """Return the options of wdstools.loader that order samples."""
    if part == "val":
        return {"shuffle": False, "tail": "uneven" if world == 1 else "pad"}
    from bench.train import regimes

    return {"seed": settings.seed, **regimes.options(settings.regime)}


def workers(settings: Any) -> dict[str, Any]:
    """Return the options of a DataLoader that all loaders share."""
    pinned = settings.device != "cpu" and torch.cuda.is_available()
    return {"num_workers": settings.workers, "pin_memory": pinned, "persistent_workers": settings.workers > 0}


def indexed(settings: Any, part: str, place: Place, rank: int, world: int) -> Feed:
    """wdstools.loader over wdstools.open."""
    block = settings.block if part == "train" else 1
    loader = wdstools.loader(
        dataset(settings, part, place), settings.batch_size, rank=rank, world=world, block=block, collate=collate,
        transform=prepare(settings, part), **options(settings, part, world), **workers(settings),
    )  # fmt: skip
    return Indexed(loader, part == "train")


class Told:
    """Prepare for loaders whose workers live on: the epoch is a number in shared memory."""

    def __init__(self, one: Prepare) -> None:
        self.one = one
        self.epoch: torch.Tensor = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        self.epoch[0] = epoch

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        self.one.set_epoch(int(self.epoch))
        return self.one(sample)


class Part:
    """Whether a key is in a part, by the rule of Dataset.split(): for loaders that have no index."""

    def __init__(self, part: str, val: float) -> None:
        self.number, self.shares = ("train", "val").index(part), {"train": 1 - val, "val": val}

    def __call__(self, key: str) -> bool:
        return bool(split_of(np.array([hash_key(key)], np.uint64), self.shares)[0] == self.number)

    def member(self, name: str) -> bool:
        """Say whether a member of a shard belongs to a sample of the part."""
        split = split_name(name)
        return split is not None and self(split[0])


def part_of(settings: Any, part: str) -> Part | None:
    """Return which keys of the shards are in a part; None: all."""
    return None if settings.data.val is not None else Part(part, settings.data.val_part)


def epoch_length(settings: Any, part: str, place: Place, world: int) -> int | None:
    """Return how many samples an epoch of a streaming loader has, over all its readers, so that every rank has equally
    many full batches, where the regime asks for that; None: the shards are read once, as a whole.

    "exact" leaves samples out, "padded" repeats some. Raises ValueError where the number of samples is not known.
    """
    if part == "val" or settings.regime == "uneven" or (settings.regime in ("exact", "padded") and world == 1):
        return None
    if place.index is None:
        told = f"regime={settings.regime} on {world} ranks needs the number of samples"
        raise ValueError(
            f"{told}, which source={settings.source.kind} does not tell: use regime=uneven, or loader=indexed"
        )
    unit = settings.batch_size * world * max(1, settings.workers)
    n = len(dataset(settings, part, place))
    batches = -(-n // unit) if settings.regime == "padded" else n // unit
    if not batches:
        raise ValueError(f"{n} samples are no batch of {settings.batch_size} on {unit // settings.batch_size} readers")
    return int(batches * unit)


def stream(settings: Any, part: str, place: Place, rank: int, world: int) -> Feed:
    """wdstools.iterable: shards dealt to readers, and a shuffle buffer. See epoch_length()."""
    one, chosen, training = Told(prepare(settings, part)), part_of(settings, part), part == "train"
    length = epoch_length(settings, part, place, world)
    shards = wdstools.iterable(
        place.shards, fields=[settings.data.image, settings.data.label], views=not training, transform=one,
        shuffle_shards=training, buffer=BUFFER if training else 0, seed=settings.seed, rank=rank, world=world,
        resample=training and settings.regime == "resample", epoch_length=length, allow_empty=not training,
        select=None if chosen is None else chosen.member, storage_options=place.storage_options,
    )  # fmt: skip
    batches: Any = DataLoader(
        shards,
        batch_size=settings.batch_size,
        collate_fn=Collate(collate),
        **started(settings, place),
        **workers(settings),
    )

    def tell(epoch: int) -> None:
        one.set_epoch(epoch)
        shards.set_epoch(epoch)

    return Feed("stream", batches, None if length is None else length // settings.batch_size // world, tell)


def started(settings: Any, place: Place) -> dict[str, Any]:
    """Return how workers of remote data start, which have clients that cannot be used in a forked child."""
    far = settings.workers > 0 and any(urls.scheme(shard) not in ("file", "pipe") for shard in place.shards)
    return {"multiprocessing_context": "forkserver"} if far else {}


def synthetic(settings: Any, part: str) -> Feed:
    """One batch of noise that is on the device already, again and again: what the model alone can take."""
    data, n = settings.data, settings.batch_size
    cuda = settings.device != "cpu" and torch.cuda.is_available()
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (n, data.size, data.size, data.channels)
    batch = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2),
        "label": torch.randint(0, data.classes, (n,), generator=generator),
    }
    if cuda:
        batch = {name: tensor.cuda() for name, tensor in batch.items()}
    length = SYNTHETIC if part == "train" else 1
    return Feed("synthetic", _Repeated({**batch, "key": [f"synthetic-{i}" for i in range(n)]}, length), length)


class _Repeated:
    def __init__(self, batch: Batch, n: int) -> None:
        self.batch, self.n = batch, n

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.n):
            yield dict(self.batch)
