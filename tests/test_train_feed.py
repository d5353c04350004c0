"""Batches on a device: the order, the state of what was delivered, errors and threads of what is read ahead.

torch's device "meta" takes the place of a GPU where there is none: everything but the copy is the same.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

torch = pytest.importorskip("torch")

from bench.train.feed import DeviceFeed, normalize  # noqa: E402
from bench.train.loaders import make  # noqa: E402
from tests.train_data import settings, write  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]
CUDA = torch.cuda.is_available()
DEVICES = ["cpu", "meta", *(["cuda"] if CUDA else [])]
AHEAD = [device for device in DEVICES if device != "cpu"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("feed"))


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "device-feed"] == []


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("loader", ["indexed", "stream", "synthetic"])
def test_it_gives_what_the_feed_gives(device: str, depth: int, loader: str, shards: Path) -> None:
    given = settings(shards, loader=loader, workers=0)
    plain, feed = make(given, "train"), DeviceFeed(make(given, "train"), device, depth)
    for _ in range(2):
        expected = keys(plain)
        batches = list(feed)
        assert keys(batches) == expected
        assert {batch["image"].device.type for batch in batches} == {device}
        assert {batch["label"].device.type for batch in batches} == {device}
    plain.set_epoch(7)
    feed.set_epoch(7)
    assert keys(feed) == keys(plain)
    if loader == "indexed":
        assert len(feed) == len(plain)
    elif loader == "stream":
        with pytest.raises(TypeError):
            len(feed)
        with pytest.raises(ValueError, match="loader=stream cannot resume"):
            feed.state_dict()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("taken", [0, 1, 4, 7])
def test_its_state_is_of_what_was_delivered(device: str, taken: int, shards: Path) -> None:
    given = settings(shards, workers=1)

    def fresh() -> DeviceFeed:
        return DeviceFeed(make(given, "train"), device, 3)

    whole, feed = fresh(), fresh()
    first, second = keys(whole), keys(whole)
    batches = iter(feed)
    got = keys(itertools.islice(batches, taken))
    state = feed.state_dict()
    time.sleep(0.05)  # something is read ahead meanwhile
    assert feed.state_dict() == state
    batches.close()  # type: ignore[attr-defined]
    assert feed.state_dict() == state
    again = fresh()
    again.load_state_dict(state)
    again.set_epoch(0 if taken else state["epoch"])
    rest = keys(again)
    assert got + rest == first if len(got) < len(first) else rest in ([], second)


@pytest.mark.parametrize("device", DEVICES)
def test_an_iteration_left_midway_is_over_and_one_that_gave_nothing_is_not(device: str, shards: Path) -> None:
    given = settings(shards, workers=0)
    plain, feed = make(given, "train"), DeviceFeed(make(given, "train"), device)
    expected = [keys(plain), keys(plain), keys(plain)]
    batches = iter(feed)
    if device != "cpu":
        batches.close()  # type: ignore[attr-defined]
    batches = iter(feed)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert keys(feed) == expected[1]
    assert keys(feed) == expected[2]


class Given:
    """A Feed of given batches."""

    exact = False

    def __init__(self, make_batches: Any) -> None:
        self.make_batches = make_batches

    def __iter__(self) -> Any:
        return self.make_batches()

    def set_epoch(self, epoch: int) -> None:
        pass


def batch(number: int) -> dict[str, Any]:
    return {"image": torch.full((2, 3, 4, 4), number, dtype=torch.uint8), "label": torch.zeros(2), "key": [str(number)]}


@pytest.mark.parametrize("device", AHEAD)
def test_an_error_comes_in_the_place_of_its_batch(device: str) -> None:
    def batches() -> Iterator[Any]:
        yield batch(0)
        yield batch(1)
        raise OSError("the shard is gone")

    several = iter(DeviceFeed(Given(batches), device, 2))
    assert [next(several)["key"] for _ in range(2)] == [["0"], ["1"]]
    with pytest.raises(OSError, match="the shard is gone"):
        next(several)


@pytest.mark.parametrize("device", AHEAD)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_is_read_ahead_and_a_feed_that_is_left_is_closed(device: str, depth: int) -> None:
    made, closed = [], []

    def batches() -> Iterator[Any]:
        try:
            for number in range(100):
                made.append(number)
                yield batch(number)
        finally:
            closed.append(True)

    several = iter(DeviceFeed(Given(batches), device, depth))
    next(several)
    wait_until(lambda: len(made) >= depth + 1, 5)
    time.sleep(0.05)
    assert len(made) <= depth + 2  # delivered, ahead, and one whose copy waits for room
    several.close()  # type: ignore[attr-defined]
    assert closed == [True]


@pytest.mark.parametrize("device", AHEAD)
def test_a_late_batch_is_not_waited_for_while_others_are_there(device: str) -> None:
    late = threading.Event()

    def batches() -> Iterator[Any]:
        for number in range(6):
            if number == 4:
                late.wait(5)
            yield batch(number)

    several = iter(DeviceFeed(Given(batches), device, 3))
    found = [next(several)["key"] for _ in range(4)]
    late.set()
    assert found + [one["key"] for one in several] == [[str(i)] for i in range(6)]


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DeviceFeed(Given(list), "cpu", 0)
    feed = Given(list)
    feed.decode = lambda batch, device: batch  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="decodes on a GPU, not on cpu"):
        DeviceFeed(feed, "cpu")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_normalize(channels: int, last: bool) -> None:
    images = torch.randint(0, 256, (2, channels, 5, 6), dtype=torch.uint8)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    found = normalize(images)
    mean, std = {1: ([0.5], [0.5]), 3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}[channels]
    expected = torch.stack([(images[:, c] / 255 - mean[c]) / std[c] for c in range(channels)], 1)
    torch.testing.assert_close(found, expected)
    assert found.stride() == images.stride()
    assert normalize(found) is found
    assert normalize(images, torch.bfloat16).dtype == torch.bfloat16


def test_normalize_refuses_two_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        normalize(torch.zeros((1, 2, 3, 3), dtype=torch.uint8))


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.may_skip("needs a GPU")
def test_copies_are_whole_when_the_model_reads_them() -> None:
    def batches() -> Iterator[Any]:
        for number in range(50):
            image = torch.full((64, 3, 256, 256), number, dtype=torch.uint8)
            yield {"image": image, "label": torch.full((64,), number), "key": [str(number)]}

    for number, one in enumerate(DeviceFeed(Given(batches), "cuda", 3)):
        assert bool((one["image"] == number).all())
        assert bool((one["label"] == number).all())
