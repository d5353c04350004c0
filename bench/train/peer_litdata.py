"""litdata: samples optimised once into chunks of its own, then StreamingDataset and StreamingDataLoader.

`python -m bench.train.peer_litdata FOLDER < SAMPLES` makes the chunks, in a process of its own: optimize() starts
others.
"""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.train import loaders
from bench.train.copies import copied
from bench.train.decoding import collate_shared
from bench.train.loaders import Feed, Told, prepare, workers
from bench.train.sources import Place

CHUNK = "64MB"


def make(settings: Any, part: str, place: Place, rank: int, world: int) -> Feed:
    """Return the Feed of a part. On several ranks litdata leaves samples out, so that all have equally many: what
    "exact" means; ValueError for the other regimes."""
    import litdata
    from litdata.utilities.env import _DistributedEnv

    training = part == "train"
    if training and world > 1 and settings.regime != "exact":
        raise ValueError(f"loader=litdata has no regime={settings.regime} on {world} ranks: exact, or another loader")
    if training and settings.regime == "resample":
        raise ValueError("loader=litdata has no regime=resample: exact, or another loader")
    samples = loaders.dataset(settings, part, place)
    folder = copied("litdata", settings, samples, place, functools.partial(optimized, settings, samples))
    one = Told(prepare(settings, part))
    fields = settings.data.image, settings.data.label
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cache that is not needed, and the like
        dropped = world > 1
        chunks = litdata.StreamingDataset(
            str(folder), shuffle=training, seed=settings.seed, drop_last=dropped, transform=Named(one, *fields)
        )
        chunks.distributed_env = _DistributedEnv(world, rank, 1)
        loader = litdata.StreamingDataLoader(
            chunks, batch_size=settings.batch_size, collate_fn=collate_shared, **workers(settings)
        )
    return Feed("litdata", loader, None, one.set_epoch)


class Named:
    """A sample as litdata keeps it -> one as shards have it -> what Prepare makes of that."""

    def __init__(self, one: Callable[[dict[str, Any]], Any], image: str, label: str) -> None:
        self.one, self.image, self.label = one, image, label

    def __call__(self, sample: dict[str, Any]) -> Any:
        return self.one({"__key__": sample["key"], self.image: sample["image"], self.label: b"%d" % sample["label"]})


def optimized(settings: Any, samples: Any, folder: Path) -> None:
    """Write litdata's chunks of a dataset into a folder. Raises RuntimeError with what litdata said."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.train.peer_litdata", str(folder)]
    data = pickle.dumps((samples, settings.data.image, settings.data.label))
    done = subprocess.run(command, input=data, capture_output=True)
    if done.returncode or not (folder / "index.json").exists():
        raise RuntimeError(f"litdata's optimize failed: {done.stderr.decode(errors='replace')[-3000:]}")


class Read:
    """Sample number -> what litdata keeps of it."""

    def __init__(self, samples: Any, image: str, label: str) -> None:
        self.samples, self.image, self.label = samples, image, label

    def __call__(self, number: int) -> dict[str, Any]:
        sample = self.samples[number]
        return {
            "key": sample["__key__"],
            "image": bytes(sample[self.image]),
            "label": int(bytes(sample[self.label])),
        }


def main() -> None:
    import litdata

    read = Read(*pickle.load(sys.stdin.buffer))
    numbers = list(range(len(read.samples)))
    litdata.optimize(read, numbers, sys.argv[1], num_workers=1, chunk_bytes=CHUNK)


if __name__ == "__main__":
    main()
