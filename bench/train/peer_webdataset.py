"""webdataset 1.0.2 as its documentation has it: shards split by node and worker, a shuffle buffer, batches made in the
workers, WebLoader. Remote shards are read through commands, which is its way: curl, or wds-cat for buckets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import webdataset

from bench.train.decoding import collate_shared
from bench.train.loaders import BUFFER, Feed, Part, Told, epoch_length, part_of, prepare, workers
from bench.train.sources import Place
from wdstools import urls


def make(settings: Any, part: str, place: Place, rank: int, world: int) -> Feed:
    """Return the Feed of a part. The regimes are as those of loader=stream; its order is webdataset's own."""
    one, chosen, training = Told(prepare(settings, part)), part_of(settings, part), part == "train"
    length = epoch_length(settings, part, place, world)
    resampled = length is not None
    pipeline = webdataset.WebDataset(
        [readable(shard, place) for shard in place.shards],
        resampled=resampled,
        shardshuffle=len(place.shards) if training and not resampled else False,
        nodesplitter=Node(rank, world),
        empty_check=training,
        seed=settings.seed,
    )
    if chosen is not None:
        pipeline = pipeline.select(Chosen(chosen))
    if training:
        pipeline = pipeline.shuffle(BUFFER)
    pipeline = pipeline.map(one).batched(settings.batch_size, collation_fn=collate_shared)
    if length is not None:
        pipeline = pipeline.with_epoch(length // settings.batch_size // world // max(1, settings.workers))
    loader = webdataset.WebLoader(pipeline, batch_size=None, **workers(settings))
    return Feed("webdataset", loader, None if length is None else length // settings.batch_size // world, one.set_epoch)


class Node:
    """webdataset.split_by_node for a rank that is told."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __call__(self, shards: Iterable[Any]) -> Iterator[Any]:
        return itertools.islice(shards, self.rank, None, self.world)


class Chosen:
    """Part for samples."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, sample: dict[str, Any]) -> bool:
        return self.part(sample["__key__"])


def readable(shard: str, place: Place) -> str:
    """Return what webdataset reads a shard by: its URL, or a command."""
    scheme = urls.scheme(shard)
    if scheme in ("http", "https"):
        return urls.pipe(shard, "curl")
    if scheme not in ("s3", "gs"):
        return shard
    options = [f"--storage-option={name}={value}" for name, value in (place.storage_options or {}).items()]
    return urls.pipe(shard, "wds-cat", options=options)
