"""The iterable path: shards dealt to ranks and workers, epochs, buffers, lengths, states; in torch's loaders."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import logging
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import labelled, write_shards

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, get_worker_info  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402

import wdstools  # noqa: E402
from wdstools.errors import NotFoundError, ShardError, StateError  # noqa: E402
from wdstools.loader import Collate  # noqa: E402
from wdstools.streaming import ShardIterable  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata calls it
]
SIZES = [5, 0, 9, 1, 7, 12, 3, 8]
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of different sizes; `cls` numbers the samples of all of them."""
    first = itertools.accumulate(SIZES, initial=0)
    files = [
        labelled([str(n + i) for i in range(size)], prefix=f"k{n}-") for n, size in zip(first, SIZES, strict=False)
    ]
    return write_shards(tmp_path_factory.mktemp("shards"), files)


def number(sample: dict[str, Any]) -> int:
    return int(sample["cls"])


def made(shards: Any, **options: Any) -> ShardIterable:
    return ShardIterable(shards, **{"transform": number} | options)


OPTIONS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**64 - 1), "buffer": st.sampled_from([0, 1, 4, 100]), "shuffle_shards": st.booleans()}
)


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(0, 5), OPTIONS)
def test_an_epoch_is_every_sample_once(shards: list[str], world: int, epoch: int, options: dict[str, Any]) -> None:
    found = []
    for rank in range(world):
        mine = made(shards, rank=rank, world=world, **options)
        mine.set_epoch(epoch)
        found.append(list(mine))
        mine.set_epoch(epoch)
        assert list(mine) == found[-1]
    assert Counter(itertools.chain(*found)) == Counter(range(TOTAL))


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(0, 30), OPTIONS, st.booleans(), st.integers(0, 3))
def test_epochs_of_a_length(
    shards: list[str], world: int, part: int, options: dict[str, Any], resample: bool, epoch: int
) -> None:
    # in one order for ever, a reader may have nothing but the empty shard
    options |= {"resample": resample, "shuffle_shards": resample or world > 1 or options["shuffle_shards"]}
    for rank in range(world):
        mine = made(shards, rank=rank, world=world, epoch_length=part * world, **options)
        mine.set_epoch(epoch)
        found = list(mine)
        assert len(found) == part
        if world == 1 and not resample:
            counts = Counter(found)
            whole, rest = divmod(part, TOTAL)
            assert all(whole <= counts[i] <= whole + 1 for i in range(TOTAL))
            assert sum(count == whole + 1 for count in counts.values()) == (rest if rest else 0) or whole == 0


@settings(max_examples=80)
@given(st.integers(1, 4), st.floats(0, 1), OPTIONS, st.sampled_from([None, 0, 17, 150]), st.booleans())
def test_a_state_gives_exactly_the_rest(
    shards: list[str], world: int, where: float, options: dict[str, Any], length: int | None, resample: bool
) -> None:
    options |= {"epoch_length": None if length is None else length * world, "rank": world - 1, "world": world}
    if resample and length is not None:
        options |= {"resample": True, "shuffle_shards": True}
    first = made(shards, **options)
    first.set_epoch(2)
    whole = list(first)
    after = list(first)
    first.set_epoch(2)
    stop = int(where * len(whole))
    assert list(itertools.islice(first, stop)) == whole[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    other = made(shards, **options)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert list(other) == whole[stop:]
    assert list(other) == after  # and the next epoch
    other.load_state_dict(state)
    other.set_epoch(2)
    assert list(other) == whole[stop:]
    other.load_state_dict(state)
    other.set_epoch(3)
    assert list(other) == after


def test_iterations_and_epochs(shards: list[str], caplog: pytest.LogCaptureFixture) -> None:
    epochs = []
    for epoch in range(4):
        mine = made(shards, seed=3)
        mine.set_epoch(epoch)
        epochs.append(list(mine))
    assert len(set(map(tuple, epochs))) == 4
    mine = made(shards, seed=3)
    assert [list(mine) for _ in range(3)] == epochs[:3]
    assert list(itertools.islice(mine, 5)) == epochs[3][:5]  # left midway
    mine.set_epoch(1)
    older = iter(mine)
    next(older)
    assert list(mine) == epochs[2]
    assert list(older) == epochs[1][1:]
    assert mine.state_dict()["epoch"] == 2  # an older iteration moves nothing
    mine.load_state_dict({**mine.state_dict(), "epoch": 7})
    mine.set_epoch(0)
    with caplog.at_level(logging.WARNING):
        assert list(mine) == epochs[0]
    assert "set_epoch(0) puts aside a state of epoch 7" in caplog.text
    assert list(made(shards, seed=4)) != epochs[0]


def test_it_is_in_the_package(shards: list[str]) -> None:
    assert wdstools.iterable is ShardIterable
    (sample,) = (s for s in wdstools.iterable(shards, decode="auto", fields=["cls"]) if s["cls"] == 7)
    assert set(sample) == {"__key__", "__url__", "__local_path__", "cls"}
    assert isinstance(wdstools.iterable(shards), torch.utils.data.IterableDataset)


def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    """A name that was expanded is not expanded again."""
    (path,) = write_shards(tmp_path, [labelled(["0", "1"])], "a{%d}.tar")
    assert list(made(wdstools.urls.escape(path), shuffle_shards=False)) == [0, 1]


def test_views_are_copied_into_the_buffer(shards: list[str]) -> None:
    assert {type(s["txt"]) for s in made(shards, transform=None, views=True)} == {memoryview}
    assert {type(s["txt"]) for s in made(shards, transform=None, views=True, buffer=3)} == {bytes}


@pytest.mark.parametrize(("method", "world"), [("fork", 1), ("fork", 3), ("spawn", 1), ("forkserver", 2)])
def test_workers_share_the_shards(shards: list[str], method: str, world: int) -> None:
    found = []
    for rank in range(world):
        mine = made(shards, rank=rank, world=world, buffer=3)
        data: Any = DataLoader(mine, batch_size=2, num_workers=2, multiprocessing_context=method)
        found += [int(n) for batch in data for n in batch]
    assert Counter(found) == Counter(range(TOTAL))


def test_fewer_shards_than_workers(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # torch waits so long for each worker of an iteration that failed, whenever the collector comes upon it
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    with pytest.raises(ValueError, match=r"2 shards for 3 readers \(ranks times workers\) leave some without"):
        list(DataLoader(made(shards[:2]), num_workers=3))
    gc.collect()
    data: Any = DataLoader(made(shards[:2], allow_empty=True), num_workers=3)
    assert sorted(int(n) for batch in data for n in batch) == list(range(SIZES[0] + SIZES[1]))


def test_parcels_in_a_plain_loader(shards: list[str]) -> None:
    """With our collation, samples are dicts of lists and come as parcels."""
    mine = ShardIterable(shards, views=True)
    data: Any = DataLoader(mine, batch_size=4, num_workers=2, collate_fn=Collate())
    found = [(key, label) for batch in data for key, label in zip(batch["__key__"], batch["cls"], strict=True)]
    assert sorted(found) == sorted((s["__key__"], bytes(s["cls"])) for s in ShardIterable(shards))


def placed(sample: dict[str, Any]) -> tuple[int, int]:
    info = get_worker_info()
    return info.id if info else -1, number(sample)


def test_every_worker_gives_the_same_number(shards: list[str]) -> None:
    mine = made(shards, transform=placed, epoch_length=40, rank=0, world=2)
    data: Any = DataLoader(mine, batch_size=5, num_workers=2)
    counts = Counter(worker for batch in data for worker in batch[0].tolist())
    assert counts == {0: 10, 1: 10}
    for length in (42, 41):
        with pytest.raises(ValueError, match=f"epoch_length={length} is not the same for each of 4 readers"):
            list(DataLoader(made(shards, epoch_length=length, rank=0, world=2), num_workers=2))


def epochs_of(source: ShardIterable, epochs: list[int | None], persistent: bool) -> list[list[int]]:
    """What two workers give in epochs; None: without set_epoch."""
    data: Any = DataLoader(source, 4, num_workers=2, persistent_workers=persistent)
    found = []
    for epoch in epochs:
        if epoch is not None:
            source.set_epoch(epoch)
        found.append([int(n) for batch in data for n in batch])
    return found


def test_persistent_workers_hear_of_epochs(shards: list[str]) -> None:
    source = made(shards, seed=1)
    expected = epochs_of(source, [0, 5, 1, 5, 6], False)
    assert len(set(map(tuple, expected))) == 4
    other = copy.deepcopy(pickle.loads(pickle.dumps(source)))
    assert epochs_of(other, [0, 5, 1, 5, None], True) == expected


def test_ranks_are_found(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    mine = made(shards)
    sent = pickle.loads(pickle.dumps(mine))
    assert list(mine) == list(made(shards, rank=1, world=3))
    monkeypatch.delenv("RANK")
    assert list(sent) == list(made(shards, rank=1, world=3))  # as it was where it came from
    with pytest.raises(ValueError, match="rank 3 is not from 0 to below world 3"):
        made(shards, rank=3, world=3)
    with pytest.raises(ValueError, match="give rank and world together"):
        made(shards, rank=3)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"buffer": 4}, {"epoch_length": 60}], ids=["plain", "buffer", "length"])
def test_stateful_loader(shards: list[str], workers: int, options: dict[str, Any]) -> None:
    def loaded() -> tuple[Any, ShardIterable]:
        mine = made(shards, seed=2, **options)
        return StatefulDataLoader(mine, batch_size=3, num_workers=workers), mine

    def taken(batches: Any) -> list[list[int]]:
        return [batch.tolist() for batch in batches]

    first, data = loaded()
    data.set_epoch(4)
    whole = taken(first)
    assert options or Counter(itertools.chain(*whole)) == Counter(range(TOTAL))
    for stop in {0, 1, len(whole) // 2, len(whole) - 1, len(whole)}:
        data.set_epoch(4)
        batches = iter(first)
        assert taken(itertools.islice(batches, stop)) == whole[:stop]
        state = first.state_dict()
        second, again = loaded()
        again.set_epoch(4)
        second.load_state_dict(state)
        assert taken(second) == whole[stop:], stop
        del batches


def test_states_that_do_not_fit(shards: list[str]) -> None:
    state = made(shards).state_dict()
    others: list[tuple[ShardIterable, str]] = [
        (made(shards[1:]), "shards is '8 shards, .*' in the state and '7 shards, .*' here"),
        (made(shards, seed=1), "seed is 0 in the state and 1 here"),
        (made(shards, rank=0, world=2), "readers is 1 in the state and 2 here"),
        (made(shards, buffer=1), "buffer is 0 in the state and 1 here"),
    ]
    for other, told in others:
        with pytest.raises(StateError, match=told):
            other.load_state_dict(state)
    for bad in ({}, None, {**state, "given": -1}, {**state, "inside": "1"}):
        with pytest.raises(StateError, match=r"not the state|are not places"):
            made(shards).load_state_dict(bad)  # type: ignore[arg-type]
    mine = made(shards, shuffle_shards=False)
    mine.load_state_dict({**mine.state_dict(), "given": 6, "inside": 6})
    with pytest.raises(StateError, match="has fewer than the 6 samples that the state has read of it"):
        next(iter(mine))


def test_handlers(shards: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = [shards[0], str(tmp_path / "none.tar"), *shards[1:]]
    with pytest.raises(NotFoundError):
        list(made(broken))
    with caplog.at_level(logging.WARNING):
        assert Counter(made(broken, handler="warn")) == Counter(range(TOTAL))
    assert len(caplog.records) == 1
    assert list(made(broken, handler=lambda _: False, shuffle_shards=False)) == list(range(SIZES[0]))
    with pytest.raises(ShardError, match="without a sample: the epoch cannot be filled"):
        list(made(broken[1:2], handler="skip", epoch_length=5))
    with pytest.raises(ZeroDivisionError) as raised:
        list(made(shards, transform=lambda sample: 1 // 0))
    assert raised.value.__notes__[0].startswith("in transform, of sample 'k")


def test_bad_arguments(shards: list[str]) -> None:
    cases: list[dict[str, Any]] = [
        {"handler": "wran"}, {"decode": "rbg"}, {"buffer": -1}, {"resample": True}, {"shards": []},
    ]  # fmt: skip
    for options in cases:
        with pytest.raises(ValueError):
            made(**{"shards": shards} | options)
    with open(shards[0], "rb") as file, pytest.raises(TypeError):
        made([file])


def test_without_torch(shards: list[str]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import wdstools\n"
        "mine = wdstools.iterable(sys.argv[1:], buffer=5)\n"
        "mine.set_epoch(3)\n"
        "print(len(list(mine)), mine.state_dict()['epoch'])\n"
    )
    out = subprocess.run([sys.executable, "-c", code, *shards], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(TOTAL), "3"]
