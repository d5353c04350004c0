"""The real readers of the foreign indexes, run in an environment of their own: `python interop_readers.py NAME`, what
to read as JSON on stdin, what was read as JSON on stdout. It imports nothing of wdstools."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Told = dict[str, Any]


def digest(data: Any) -> str:
    return hashlib.sha256(bytes(data)).hexdigest()


def dali(told: Told) -> Any:
    """Each sample as its payloads, in the order of the fields asked for."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        return tuple(
            fn.readers.webdataset(
                paths=told["shards"],
                index_paths=told["indexes"],
                ext=told["fields"],
                missing_component_behavior="empty",
            )
        )

    pipe = pipeline()
    pipe.build()
    found = []
    for _ in range(told["count"]):
        found.append([digest(output.at(0).tobytes()) for output in pipe.run()])
    return found


def wds2idx(told: Told) -> Any:
    """Write each index with DALI's own script."""
    import wds2idx

    for shard, path in zip(told["shards"], told["indexes"], strict=True):
        with wds2idx.IndexCreator(shard, path, verbose=False) as creator:
            creator.create_index()


def wids(told: Told) -> Any:
    """The samples of each index."""
    import wids as reader

    found: list[Any] = []
    for index in told["indexes"]:
        found.append([])
        dataset = reader.ShardListDataset(index, keep=True, cache_dir=told["cache"], transformations=[])
        for i in range(len(dataset)):
            sample = dataset[i]
            fields = {name[1:]: digest(value.read()) for name, value in sample.items() if name.startswith(".")}
            found[-1].append([sample["__key__"], fields])
    return found


def energon(told: Told) -> Any:
    """Prepare a copy of the shards by Energon's own code. Then what our folder gives: by its loader, by key from its
    SQLite index, and by offset."""
    from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.indexing import SqliteIndexReader
    from megatron.energon.flavors.webdataset.itar import get_itar_byte_offset
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    WebdatasetPreparator.prepare_dataset(told["copy"], told["names"], split_parts_ratio=[("train", 1.0)], workers=1)
    dataset = get_train_dataset(
        told["folder"], worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0), batch_size=None,
        shuffle_buffer_size=None, max_samples_per_sequence=None, repeat=False, task_encoder=raw_task_encoder(),
    )  # fmt: skip
    loaded = {}
    for sample in get_savable_loader(dataset):
        fields = {k: digest(v) for k, v in sample.items() if not k.startswith("__")}
        loaded[sample["__key__"]] = fields
    reader = SqliteIndexReader(EPath(told["folder"]) / ".nv-meta" / "index.sqlite")
    samples = [
        [s.tar_file_id, s.byte_offset, s.byte_size] for s in (reader.get_sample_pointer_by_key(k) for k in told["keys"])
    ]
    offsets = [[get_itar_byte_offset(shard, i) for i in range(n)] for shard, n in told["shards"]]
    return {"loaded": loaded, "samples": samples, "offsets": offsets}


def raw_task_encoder() -> Any:
    """Samples as they are."""
    from megatron.energon import Cooker, DefaultTaskEncoder, stateless

    class Raw(DefaultTaskEncoder):
        decoder = None
        cookers = [Cooker(stateless(lambda sample: sample))]  # noqa: RUF012

    return Raw()


def ratarmount(told: Told) -> Any:
    """The files of an archive as they are mounted, without writing an index; and whether the index was taken."""
    from ratarmountcore.mountsource.formats.tar import SQLiteIndexedTar

    with SQLiteIndexedTar(told["shard"], indexFilePath=told["index"], indexFolders=[], writeIndex=False) as mounted:
        taken = mounted.index.indexFilePath

        def walk(folder: str) -> Any:
            for name in sorted(mounted.list(folder) or ()):
                path = f"{folder.rstrip('/')}/{name}"
                info = mounted.lookup(path)
                if info.mode & 0o170000 == 0o040000:
                    yield from walk(path)
                else:
                    with mounted.open(info) as file:
                        yield path[1:], digest(file.read())

        return {"taken": taken, "files": list(walk("/"))}


def ratarmount_index(told: Told) -> Any:
    """Write an index by ratarmount's own code."""
    from ratarmountcore.mountsource.formats.tar import SQLiteIndexedTar

    SQLiteIndexedTar(
        told["shard"], indexFilePath=told["index"], writeIndex=True, indexMinimumFileCount=0, encoding="utf-8"
    ).close()


READERS: dict[str, Callable[[Told], Any]] = {
    f.__name__: f for f in (dali, wds2idx, wids, energon, ratarmount, ratarmount_index)
}

if __name__ == "__main__":
    for folder in filter(None, os.environ.get("WDS_TEST_WIDS", "").split(":")):
        sys.path.insert(0, folder)
    answer = os.dup(1)  # they print
    os.dup2(2, 1)
    result = READERS[sys.argv[1]](json.load(sys.stdin))
    with open(answer, "w") as file:
        json.dump(result, file)
