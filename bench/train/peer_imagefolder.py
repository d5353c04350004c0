"""ImageFolder: a picture per file in a folder per class, one open() each, and torch's own sampler.

torchvision's class would do the same with Pillow; this one has the labels of the shards and any decoder.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from torch import Generator
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from bench.train import loaders
from bench.train.copies import copied
from bench.train.decoding import collate_shared
from bench.train.loaders import Feed, Told, prepare, workers
from bench.train.sources import Place


def make(settings: Any, part: str, place: Place, rank: int, world: int) -> Feed:
    """Return the Feed of a part. Of several ranks each has equally many samples, by DistributedSampler: "exact" leaves
    some out, "padded" repeats some; ValueError for the other regimes."""
    samples = loaders.dataset(settings, part, place)
    folder = copied("imagefolder", settings, samples, place, functools.partial(extract, settings, samples))
    one, training = Told(prepare(settings, part)), part == "train"
    files = Files(folder, settings, one)
    dropped = training and settings.regime == "exact"
    sampler: Any
    if training and (settings.regime == "resample" or (settings.regime == "uneven" and world > 1)):
        raise ValueError(f"loader=imagefolder has no regime={settings.regime}: exact or padded, or another loader")
    if world > 1:
        sampler = DistributedSampler(files, world, rank, training, settings.seed, dropped)
        tell = sampler.set_epoch
    else:
        generator = Generator()
        sampler = RandomSampler(files, generator=generator) if training else SequentialSampler(files)

        def tell(epoch: int) -> None:
            generator.manual_seed(settings.seed * 1_000_003 + epoch)

    loader: Any = DataLoader(
        files, settings.batch_size, sampler=sampler, drop_last=dropped, collate_fn=collate_shared, **workers(settings)
    )

    def epoch(number: int) -> None:
        one.set_epoch(number)
        tell(number)

    return Feed("imagefolder", loader, len(loader), epoch)


class Files(Dataset[dict[str, Any]]):
    """The files of class folders that extract() made, in the order of their names."""

    def __init__(self, folder: Path, settings: Any, one: Any) -> None:
        self.one, self.image, self.label = one, settings.data.image, settings.data.label
        self.paths = [
            os.path.join(kind.path, name)
            for kind in sorted(os.scandir(folder), key=lambda entry: entry.name)
            for name in sorted(os.listdir(kind.path))
        ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        folder, name = self.paths[number].rsplit("/", 2)[1:]
        with open(self.paths[number], "rb") as file:
            data = file.read()
        key = unquote(name.rpartition(".")[0], errors="surrogateescape")
        found: dict[str, Any] = self.one({"__key__": key, self.image: data, self.label: folder.encode()})
        return found


def extract(settings: Any, samples: Any, folder: Path) -> None:
    """Write every picture to FOLDER/LABEL/KEY.EXTENSION, the key quoted as in a URL."""
    extension = settings.data.image.replace(".", "-")
    for sample in samples:
        kind = folder / str(int(bytes(sample[settings.data.label])))
        kind.mkdir(exist_ok=True)
        name = quote(sample["__key__"], safe="", errors="surrogateescape")
        with open(kind / f"{name}.{extension}", "xb") as file:
            file.write(sample[settings.data.image])
