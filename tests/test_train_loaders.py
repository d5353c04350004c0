"""The loaders of the training program: all give the same pixels, each sample once, split and seeded as told."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench.train import copies, loaders  # noqa: E402
from bench.train.loaders import LOADERS, make  # noqa: E402
from tests.train_data import COUNT, sample, settings, told, write  # noqa: E402
from wdstools.errors import StateError, WdsError  # noqa: E402
from wdstools.reader import stream  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
    # webdataset leaves a shard open whose end it has not read
    pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"),
]
PEERS = ["stream", "webdataset", "imagefolder"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_TRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def epochs(feed: Any, numbers: list[int]) -> list[list[tuple[str, int, str]]]:
    found = []
    for number in numbers:
        feed.set_epoch(number)
        found.append(told(feed))
    return found


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[set[tuple[str, int, str]]]:
    """Epochs 0 and 1 of the part for training, made one by one of what the shards hold."""
    given = settings(shards)
    one, part = loaders.prepare(given, "train"), loaders.part_of(given, "train")
    assert part is not None
    found = []
    for epoch in range(2):
        one.set_epoch(epoch)
        made = [one(s) for s in stream(str(shards / "train-{000000..000003}.tar")) if part(s["__key__"])]
        found.append(set(told([loaders.collate(made)])))
    assert found[0] != found[1]
    assert {s[:2] for s in found[0]} == {s[:2] for s in found[1]}
    return found


@pytest.mark.parametrize("loader", ["indexed", *PEERS])
def test_every_loader_gives_the_same_pixels(loader: str, shards: Path, expected: Any) -> None:
    feed = make(settings(shards, loader=loader), "train")
    found = epochs(feed, [0, 1])
    assert [Counter(epoch) for epoch in found] == [Counter(epoch) for epoch in expected]
    assert [s[0] for s in found[0]] != [s[0] for s in found[1]]  # another order


@pytest.mark.parametrize("loader", ["indexed", *PEERS])
def test_parts_are_disjoint_and_whole_and_the_validation_is_not_augmented(loader: str, shards: Path) -> None:
    given = settings(shards, loader=loader, workers=0)
    train, val = (Counter(key for key, _, _ in told(make(given, part))) for part in ("train", "val"))
    assert set((train + val).values()) == {1}
    assert len(train + val) == COUNT
    assert 3 < len(val) < 25
    first, second = epochs(make(given, "val"), [0, 1])
    assert Counter(first) == Counter(second)
    plain = loaders.prepare(settings(shards, augment=False), "val")
    numbers = {str(s["__key__"]): i for i in range(COUNT) for s in [sample(i)]}
    made = [plain({**sample(numbers[key]), "cls": b"%d" % (numbers[key] % 7)}) for key in sorted(val)]
    assert Counter(told([loaders.collate(made)])) == Counter(first)


def test_blocks_stay_together_in_the_order(shards: Path, expected: Any) -> None:
    (found,) = epochs(make(settings(shards, block=4), "train"), [0])
    assert set(found) == expected[0]
    part = loaders.dataset(settings(shards), "train")
    rows = {part[row]["__key__"]: row for row in range(len(part))}
    order = [rows[key] // 4 for key, *_ in found]
    assert len([1 for a, b in pairwise(order) if a != b]) == len(set(order)) - 1


@pytest.mark.parametrize("loader", ["indexed", "stream", "webdataset", "imagefolder"])
def test_raw_arrays_come_as_they_are(loader: str, shards: Path) -> None:
    given = settings(shards, loader=loader, decoder="raw", image="npy", val=str(shards), workers=1)
    batches = list(make(given, "train"))
    found = {key: image for batch in batches for key, image in zip(batch["key"], batch["image"], strict=True)}
    assert len(found) == COUNT
    import numpy as np

    for number in range(COUNT):
        here = np.random.default_rng(number).integers(0, 256, (3, 24, 24), dtype=np.uint8)
        np.testing.assert_array_equal(found[sample(number)["__key__"]].numpy(), here)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_has_exactly_the_same_pixels(workers: int, shards: Path) -> None:
    given = settings(shards, workers=workers, regime="exact")
    feed = make(given, "train")
    assert len(feed) == 6
    whole = epochs(feed, [4, 5])
    feed = make(given, "train")
    feed.set_epoch(4)
    batches = iter(feed)
    got = told([next(batches) for _ in range(3)])
    state = feed.state_dict()
    again = make(settings(shards, workers=2 - workers, regime="exact"), "train")
    again.load_state_dict(state)
    again.set_epoch(4)  # as a training loop calls it
    assert got + told(again) == whole[0]
    assert told(again) == whole[1]
    with pytest.raises(StateError):
        make(settings(shards, seed=4), "train").load_state_dict(state)


def test_ranks_share_an_epoch(shards: Path) -> None:
    for loader in ("indexed", "stream", "webdataset", "imagefolder"):
        given = settings(shards, loader=loader, regime="padded" if loader == "imagefolder" else "uneven", workers=1)
        ranks = [told(make(given, "train", rank=rank, world=2)) for rank in range(2)]
        whole = told(make(settings(shards), "train"))
        assert set(ranks[0] + ranks[1]) == set(whole)
        if loader != "imagefolder":
            assert len(ranks[0]) + len(ranks[1]) == len(whole)


def test_litdata_gives_the_same_pixels(shards: Path) -> None:
    pytest.importorskip("litdata")
    given = {"val": str(shards), "workers": 1}
    feed, ours = (make(settings(shards, loader=loader, **given), "train") for loader in ("litdata", "indexed"))
    found, expected = epochs(feed, [0, 1]), epochs(ours, [0, 1])
    assert [Counter(epoch) for epoch in found] == [Counter(epoch) for epoch in expected]
    assert [s[0] for s in found[0]] != [s[0] for s in found[1]]
    val, expected_val = (told(make(settings(shards, loader=name, **given), "val")) for name in ("litdata", "indexed"))
    assert val == expected_val
    exact = settings(shards, loader="litdata", **given | {"regime": "exact"})
    ranks = [told(make(exact, "train", rank=rank, world=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > COUNT // 2 - 8
    assert max(Counter(ranks[0] + ranks[1]).values()) == 1


@pytest.mark.parametrize("loader", ["indexed", "stream", "webdataset", "imagefolder"])
def test_ranks_have_equally_many_full_batches(loader: str, shards: Path) -> None:
    given = settings(shards, loader=loader, regime="exact", workers=1, batch_size=4)
    counts = []
    for rank in range(2):
        feed = make(given, "train", rank=rank, world=2)
        sizes = [len(batch["key"]) for batch in feed]
        assert len(feed) == len(sizes)
        assert set(sizes) == {4}
        counts.append(sum(sizes))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("loader", ["indexed", "stream", "webdataset"])
def test_resampling_repeats_samples(loader: str, shards: Path) -> None:
    found = told(make(settings(shards, loader=loader, regime="resample", workers=1), "train"))
    assert len(found) >= 40
    assert max(Counter(found).values()) > 1


def test_synthetic_is_one_batch(shards: Path) -> None:
    feed = make(settings(shards, loader="synthetic"), "train")
    batches = list(feed)
    assert len(batches) == len(feed) == loaders.SYNTHETIC
    assert batches[0]["image"].shape == (8, 3, 24, 24)
    assert batches[0]["image"] is batches[-1]["image"]
    assert batches[0]["label"].max() < 7
    assert len(told(batches[:2])) == 16


def test_only_indexed_resumes(shards: Path) -> None:
    for loader in set(LOADERS) - {"litdata"}:
        feed = make(settings(shards, loader=loader, workers=1), "train")
        if loader == "indexed":
            feed.load_state_dict(feed.state_dict())
            continue
        with pytest.raises(ValueError, match=f"loader={loader} cannot resume in mid-epoch: loader=indexed can"):
            feed.state_dict()
        with pytest.raises(ValueError, match=f"loader={loader} cannot resume"):
            feed.load_state_dict({})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"loader": "best"}, "loader is none of indexed, stream"),
        ({"decoder": "best"}, "decoder is none of pillow"),
        ({"decoder": "nvjpeg"}, "needs a CUDA device: use decoder=pillow"),
        ({"channels": 4}, "channels must be 1 or 3"),
        ({"loader": "imagefolder", "regime": "resample"}, "exact or padded"),
        ({"loader": "litdata", "regime": "resample"}, "exact, or another loader"),
        ({"loader": "stream", "regime": "resample", "kind": "pipe-fread"}, "number of samples"),
        ({"loader": "litdata", "kind": "pipe-fread"}, "use loader=stream or webdataset"),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, Any], match: str, shards: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("wdstools.pipes._has", lambda program: True)
    with pytest.raises(ValueError, match=match):
        make(settings(shards, **given), "train")
    with pytest.raises(ValueError, match="rank 2 is not from 0 to below 2"):
        make(settings(shards), "train", rank=2, world=2)


def test_unknown_lengths_are_errors(shards: Path) -> None:
    for loader in ("stream", "webdataset"):
        with pytest.raises(TypeError, match=f"loader={loader} does not know"):
            len(make(settings(shards, loader=loader), "train"))
    assert len(make(settings(shards), "val")) > 0


def test_a_sample_without_a_field_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", 15)
    for loader in ("indexed", "stream"):
        given = settings(folder, loader=loader, image="jpeg", workers=0)
        with pytest.raises(ValueError, match=r"no field 'jpeg' in sample .*, which has .*: set data.image") as caught:
            list(make(given, "train"))
        assert "folder" in "".join(caught.value.__notes__)


def test_a_copy_of_other_shards_is_made_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", 15)
    given = settings(folder, loader="imagefolder", workers=0)
    first = told(make(given, "train"))
    made = sorted(copies.folder().iterdir())
    assert told(make(given, "train"))[0] in first
    assert sorted(copies.folder().iterdir()) == made
    for path in folder.iterdir():
        path.unlink()
    write(folder, 15, 5)
    assert len(told(make(given, "train"))) == len(first)
    assert len(sorted(copies.folder().iterdir())) > len(made)


def test_a_copy_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "shards", 15)
    monkeypatch.setenv("BENCH_TRAIN_CACHE", str(tmp_path / "cache"))
    given = settings(folder, loader="imagefolder", workers=0)
    shard = folder / "train-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-20_000] + bytes(20_000))
    with pytest.raises(WdsError):
        make(given, "train")
    shard.write_bytes(data)
    assert len(told(make(given, "train"))) == len(told(make(settings(folder, workers=0), "train")))
