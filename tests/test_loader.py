"""The torch loader: exact epochs over ranks and workers, resume at any batch, start methods, errors, processes."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import build_of, labelled, save

torch = pytest.importorskip("torch")

import wdstools.loader  # noqa: E402
from tests.servers import nginx  # noqa: E402
from wdstools.dataset import Dataset  # noqa: E402
from wdstools.deal import TAILS  # noqa: E402
from wdstools.errors import StateError  # noqa: E402
from wdstools.index import Index  # noqa: E402
from wdstools.loader import Loader, collate_batch, loader  # noqa: E402
from wdstools.mix import Mix  # noqa: E402
from wdstools.plan import Plan  # noqa: E402
from wdstools.sampler import PlanBatchSampler, fingerprint  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]

COUNT = 103


class Numbers:
    """A dataset of numbers, without files."""

    def __init__(self, n: int, first: int = 0) -> None:
        self.n, self.first = n, first

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> int:
        assert type(number) is int
        assert 0 <= number < self.n
        return self.first + number


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Samples s0, s1 ... with their number as `cls`, in two shards with an index beside them."""
    folder = tmp_path_factory.mktemp("shards")
    labels = [str(i) for i in range(COUNT)]
    files = labelled(labels)
    return Dataset(save(build_of(folder, [files[:100], files[100:]]), folder / "t.wdsindex"))


def number_of(sample: dict[str, Any]) -> int:
    return int(sample["cls"])


def drain(batches: Any) -> list[list[int]]:
    return [list(map(int, batch)) for batch in batches]


def ranks(n: int, batch: int, world: int, state: Any = None, **options: Any) -> list[list[list[int]]]:
    """The batches of every rank, after a state."""
    found = []
    for rank in range(world):
        mine = loader(Numbers(n), batch, rank=rank, world=world, **options)
        if state is not None:
            mine.load_state_dict(json.loads(json.dumps(state)))
        found.append(drain(mine))
    return found


def flat(batches: Any) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def by_step(batches: list[list[list[int]]]) -> list[list[int]]:
    """The global batches: of every step, what all ranks have."""
    return [flat(part or [] for part in step) for step in itertools.zip_longest(*batches)]


options_of = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**64 - 1), "block": st.integers(1, 40), "shuffle": st.booleans()}
)


@settings(max_examples=150)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5), st.sampled_from(TAILS), options_of)
def test_an_epoch_is_every_sample_once(n: int, batch: int, world: int, tail: str, options: dict[str, Any]) -> None:
    found = ranks(n, batch, world, tail=tail, **options)
    counts = Counter(flat(flat(found)))
    sizes = {len(batches) for batches in found}
    if tail == "uneven":
        assert counts == Counter(range(n))
        assert max(sizes) - min(sizes) <= 1
    else:
        assert len(sizes) == 1
        assert {len(rows) for rows in flat(found)} <= {batch}  # type: ignore[arg-type]
    if tail == "drop":
        assert sum(counts.values()) == n - n % (batch * world)
        assert set(counts.values()) <= {1}
    if tail == "pad":
        assert set(counts) == set(range(n))
        assert sum(counts.values()) - n < batch * world
    for rank, batches in enumerate(found):
        assert len(loader(Numbers(n), batch, rank=rank, world=world, tail=tail, **options)) == len(batches)


@settings(max_examples=150)
@given(
    st.integers(1, 200), st.integers(1, 4), st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1), (1, 2), (3, 6)]),
    st.sampled_from(TAILS), st.floats(0, 1), options_of,
)  # fmt: skip
def test_resume_on_other_ranks_is_exactly_the_rest(
    n: int, size: int, worlds: tuple[int, int], tail: str, where: float, options: dict[str, Any]
) -> None:
    before, after = worlds
    total = 6 * size
    whole = by_step(ranks(n, total // before, before, tail=tail, **options))
    first = loader(Numbers(n), total // before, rank=0, world=before, tail=tail, **options)
    stop = int(where * len(first))
    taken = drain(itertools.islice(first, stop))
    assert len(taken) == stop
    rest = by_step(ranks(n, total // after, after, first.state_dict(), tail=tail, **options))
    assert rest == whole[stop:]


@settings(max_examples=40)
@given(
    st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.floats(0, 1), st.sampled_from(["first", "all", 50])
)
def test_mixtures_stop_and_resume(a: int, b: int, weight: int, where: float, length: Any) -> None:
    mixed = {"a": (Numbers(a), weight), "b": (Numbers(b, 1000), 2)}

    def made(batch: int, rank: int, world: int) -> Loader:
        return loader(mixed, batch, rank=rank, world=world, epoch_length=length, tail="uneven")

    def rest(state: Any, world: int) -> list[list[int]]:
        found = []
        for rank in range(world):
            mine = made(4 // world, rank, world)
            mine.load_state_dict(state)
            found.append(drain(mine))
        return by_step(found)

    whole = made(4, 0, 1)
    plan = whole.place.plan
    assert isinstance(plan, Mix)
    expected = [[x if x < a else 1000 + x - a for x in rows.tolist()] for rows in plan.batches()]
    stop = int(where * len(expected))
    assert drain(itertools.islice(whole, stop)) == expected[:stop]
    for world in (1, 2, 4):
        assert rest(whole.state_dict(), world) == expected[stop:]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_of_a_mixture_name_their_source(dataset: Dataset, workers: int) -> None:
    mixed = {"low": (dataset[:40], 2), "high": (dataset[40:], 1)}
    seen = set()
    for batch in loader(mixed, 5, num_workers=workers, epoch_length="all"):
        for label, source in zip(batch["cls"], batch["__source__"], strict=True):
            assert source == ("low" if int(label) < 40 else "high")
            seen.add(int(label))
    assert len(seen) > COUNT - 5  # the tail is dropped
    (batch,) = loader({"only": (dataset[:5], 1)}, 5)
    assert batch["__source__"] == ["only"] * 5
    assert "__source__" not in next(iter(loader(dataset, 5)))
    told: list[str] = []
    next(iter(loader(mixed, 5, transform=lambda sample: told.append(sample["__source__"]) or 0)))  # type: ignore[func-returns-value]
    assert len(told) == 5


def test_a_source_is_never_overwritten() -> None:
    kept = [{"__key__": "a", "n": 1}]
    assert [b["__source__"] for b in loader({"x": (kept, 1)}, 1)] == [["x"]]
    assert kept == [{"__key__": "a", "n": 1}]
    theirs = {"x": ([{"__key__": "a", "__source__": "theirs"}], 1)}
    with pytest.raises(ValueError, match="sample 'a' of source 'x' has a field __source__ already"):
        drain(loader(theirs, 1))


def test_seeds_and_epochs() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        mine = loader(Numbers(500), 10, seed=seed)
        mine.set_epoch(epoch)
        return flat(drain(mine))

    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    for one, other in itertools.combinations(orders.values(), 2):
        assert one != other
        assert sorted(one) == sorted(other)
    assert orders == {pair: order(*pair) for pair in orders}
    mine = loader(Numbers(500), 10, seed=1)
    assert [flat(drain(mine)) for _ in range(3)] == [orders[1, epoch] for epoch in range(3)]
    assert flat(drain(loader(Numbers(500), 10, shuffle=False))) == list(range(500))
    drawn = flat(drain(loader(Numbers(500), 10, resample=True)))
    assert len(drawn) == 500
    assert 250 < len(set(drawn)) < 380  # 1 - 1/e of them


Counted = Loader | PlanBatchSampler


def both() -> list[Counted]:
    """A loader, and a sampler alone."""
    return [loader(Numbers(20), 2), PlanBatchSampler(Plan(20, batch_size=2))]


def place(mine: Counted) -> tuple[Any, Any]:
    state = mine.state_dict()
    return state["epoch"], state["step"]


def test_an_iteration_is_the_next_epoch() -> None:
    epochs = [[rows.tolist() for rows in Plan(20, batch_size=2, epoch=e).batches()] for e in range(8)]
    for mine in both():
        assert place(mine) == (0, 0)
        assert drain(mine) == epochs[0]
        assert place(mine) == (1, 0)
        iterator = iter(mine)
        assert place(mine) == (1, 0)
        iterator = iter(mine)  # one that gave nothing does not count
        assert drain(itertools.islice(iterator, 3)) == epochs[1][:3]
        assert place(mine) == (1, 3)
        assert drain(mine) == epochs[2]  # left midway: the next
        assert len(mine) == 10
        mine.set_epoch(7)
        assert place(mine) == (7, 0)
        older = iter(mine)
        next(older)
        mine.set_epoch(7)
        assert drain(mine) == epochs[7]  # from its start
        assert drain(older) == epochs[7][1:]  # moves nothing any more
        assert place(mine) == (8, 0)


def test_a_loaded_state_survives_iterations_that_gave_nothing() -> None:
    """torchdata begins twice before it draws the first batch."""
    epochs = [[rows.tolist() for rows in Plan(20, batch_size=2, epoch=e).batches()] for e in range(2)]
    for mine in both():
        mine.load_state_dict({**mine.state_dict(), "step": 6})
        unused = iter(mine)
        assert place(mine) == (0, 6)
        assert drain(mine) == epochs[0][6:]
        mine.load_state_dict({**mine.state_dict(), "epoch": 0, "step": 10})
        unused = iter(mine)
        assert drain(mine) == epochs[1]  # of an epoch that was read whole there is nothing to begin again
        del unused


def test_a_loaded_state_and_set_epoch() -> None:
    epochs = [[rows.tolist() for rows in Plan(20, batch_size=2, epoch=e).batches()] for e in range(6)]
    for mine, other in zip(both(), both(), strict=True):
        mine.set_epoch(4)
        drain(itertools.islice(mine, 6))
        state = mine.state_dict()
        for epoch in (4, 5):  # the loop of a script that goes on
            other.load_state_dict(state) if epoch == 4 else None
            other.set_epoch(epoch)
            assert drain(other) == (epochs[4][6:] if epoch == 4 else epochs[5])
        other.load_state_dict(state)
        other.set_epoch(2)
        assert drain(other) == epochs[2]
        older = iter(other)
        next(older)
        other.load_state_dict(state)  # in the midst of an epoch
        next(older)
        assert place(other) == (4, 6)
        assert drain(other) == epochs[4][6:]
        other.load_state_dict(state | {"step": 10})
        assert drain(other) == []  # the whole epoch was read
        assert drain(other) == epochs[5]


def test_a_state_of_other_data_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    state = loader(dataset, 8).state_dict()
    others: list[tuple[Any, dict[str, Any], str]] = [
        (dataset[:50], {}, "data is .* in the state and .*, rows 0:50:1' here; n is 103 in the state and 50 here"),
        (dataset[::-1], {}, "data is '2 shards, .*' in the state and .*, rows 102:-1:-1' here"),
        (dataset, {"seed": 1}, "seed is 0 in the state and 1 here"),
        (dataset, {"block": 2}, "block is 1 in the state and 2 here"),
        (dataset, {"tail": "pad"}, "tail is 'drop' in the state and 'pad' here"),
        (dataset, {"batch_size": 4}, "global_batch is 8 in the state and 4 here"),
        (Numbers(COUNT), {}, "data is '2 shards.*' in the state and 'Numbers' here"),
        ({"a": (dataset, 1)}, {}, "a.n is None in the state and 103 here"),
    ]
    for data, options, told in others:
        mine = loader(data, **{"batch_size": 8} | options)
        with pytest.raises(StateError, match=told):
            mine.load_state_dict(state)
        assert place(mine) == (0, 0)
    with pytest.raises(StateError, match="not the state of a plan"):
        loader(dataset, 8).load_state_dict({})


def test_fingerprints(dataset: Dataset, tmp_path: Path) -> None:
    """The same where the data moved, another where they are others."""
    files = labelled([str(i) for i in range(COUNT)])
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    one = Dataset(build_of(tmp_path / "one", [files[:100], files[100:]]))
    two = Dataset(build_of(tmp_path / "two", [files[:102], files[102:]]))
    assert fingerprint(one) == fingerprint(dataset) == fingerprint(pickle.loads(pickle.dumps(dataset)))
    assert fingerprint(one) != fingerprint(two)
    rows = np.arange(10)
    views = [one, one[:10], one[10:20], Dataset(one.index, rows), Dataset(one.index, rows[::-1])]
    assert len(set(map(fingerprint, views))) == len(views)
    assert fingerprint(Numbers(3)) == "Numbers"
    assert fingerprint([1, 2]) == "list"

    class Own(Numbers):
        fingerprint = "mine"

    assert fingerprint(Own(3)) == "mine"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_a_dataset_that_the_parent_opened(dataset: Dataset, method: str) -> None:
    assert dataset[3]["cls"] == b"3"  # open files
    mine = loader(dataset, 8, transform=number_of, num_workers=2, multiprocessing_context=method, tail="uneven")
    assert drain(mine) == [rows.tolist() for rows in Plan(COUNT, batch_size=8, tail="uneven").batches()]
    assert dataset[3]["cls"] == b"3"
    assert wait_until(lambda: not multiprocessing.active_children())


@pytest.mark.parametrize("persistent", [False, True])
def test_resume_with_other_workers(dataset: Dataset, persistent: bool) -> None:
    """What workers have read ahead is not delivered, and not in the state."""
    whole = [rows.tolist() for rows in Plan(COUNT, batch_size=4).batches()]
    following = [rows.tolist() for rows in Plan(COUNT, batch_size=4, epoch=1).batches()]
    state: Any = None
    found: list[list[int]] = []
    for workers, take in ((2, 3), (0, 4), (1, 5), (2, 100)):
        options: Any = {"prefetch_factor": 5, "persistent_workers": persistent} if workers else {}
        mine = loader(dataset, 4, transform=number_of, num_workers=workers, **options)
        if state:
            mine.load_state_dict(state)
        found += drain(itertools.islice(mine, take))
        state = mine.state_dict()
        assert (state["epoch"], state["step"]) == (len(found) // 25, len(found) % 25)
    assert found == whole
    assert drain(mine) == following
    mine.load_state_dict({**state, "step": 20})
    assert drain(mine) == following[20:]
    del mine
    gc.collect()
    assert wait_until(lambda: not multiprocessing.active_children())


def test_the_sampler_in_a_plain_loader(dataset: Dataset) -> None:
    sampler = PlanBatchSampler(Plan(len(dataset), batch_size=4, data=fingerprint(dataset)))
    plain: Any = torch.utils.data.DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler, num_workers=2, collate_fn=collate_batch,
    )  # fmt: skip
    mine = loader(dataset, 4)
    assert len(plain) == 25
    for batch, ours in zip(plain, mine, strict=True):
        assert batch == ours
        assert batch.keys() == {"__key__", "__url__", "__local_path__", "txt", "cls"}
        assert [f"s{int(label)}" for label in batch["cls"]] == batch["__key__"]
    assert mine.state_dict() == sampler.state_dict()
    assert sampler.state_dict(7)["step"] == 7


def fails(sample: dict[str, Any]) -> Any:
    if sample["__key__"] == "s77":
        raise ZeroDivisionError("a bad image")
    return number_of(sample)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_sample(dataset: Dataset, workers: int) -> None:
    mine = loader(dataset, 8, transform=fails, num_workers=workers)
    with pytest.raises(ZeroDivisionError) as raised:
        drain(mine)
    told = str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
    assert "a bad image" in told
    assert "in transform, of sample 's77' of /" in told
    assert not multiprocessing.active_children()  # though the error is still held


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_worker_is_an_error(dataset: Dataset, method: str) -> None:
    mine = loader(dataset, 2, num_workers=2, multiprocessing_context=method)

    def kill() -> None:
        for number, _ in enumerate(mine):
            if number == 3:
                child = multiprocessing.active_children()[0].pid or 0
                os.kill(child, signal.SIGKILL)
                os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # torch raises in a signal handler: here or later

    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed by signal|exited unexpectedly)"):
        kill()
    assert wait_until(lambda: not multiprocessing.active_children())
    again = loader(dataset, 2, transform=number_of)
    again.load_state_dict(mine.state_dict())
    step = int(mine.state_dict()["step"])
    assert drain(again) == [rows.tolist() for rows in Plan(COUNT, batch_size=2).batches(step)]


@pytest.mark.parametrize(
    ("told", "notes"),
    [("DataLoader worker (pid(s) 1, 2) exited unexpectedly", 1), ("DataLoader worker (pid 1) is killed by signal", 1),
     ("DataLoader timed out", 0), ("some user's worker", 0)],
)  # fmt: skip
def test_a_dead_worker_is_explained(told: str, notes: int) -> None:
    """Where torch finds out while it waits for a batch."""

    def batches() -> Any:
        yield [1]
        raise RuntimeError(told)

    mine = loader(Numbers(20), 2)
    with pytest.raises(RuntimeError) as raised:
        list(mine._delivered(mine.place.begin(), batches()))
    found = getattr(raised.value, "__notes__", [])
    assert [note.split(":")[0] for note in found] == ["a worker died at step 1 of epoch 0"] * notes


def test_workers_end_with_an_iteration_that_is_left(dataset: Dataset, large: Dataset, no_leaks: None) -> None:
    for data in (dataset, large):
        for _ in loader(data, 2, num_workers=2):
            break
    gc.collect()
    assert wait_until(lambda: not multiprocessing.active_children())


def test_views_arrive_as_bytes(dataset: Dataset) -> None:
    views = Dataset(dataset.index, views=True)
    expected = {batch["__key__"][0]: batch["txt"] for batch in loader(dataset, 4)}
    for collate in (None, list):
        for batch in loader(views, 4, num_workers=1, collate=collate):
            keys, texts = ([s[name] for s in batch] if collate else batch[name] for name in ("__key__", "txt"))
            assert texts == expected[keys[0]]
            assert {type(text) for text in texts} == {bytes}
    batch = next(iter(loader(views, 4)))
    assert {type(text) for text in batch["txt"]} == {memoryview}


@dataclasses.dataclass
class Wrapped:
    view: memoryview


def wrapped(sample: dict[str, Any]) -> Wrapped:
    return Wrapped(memoryview(sample["txt"]))


def test_what_cannot_be_sent_is_an_error(dataset: Dataset) -> None:
    """multiprocessing would lose the batch, and torch wait for ever."""
    with pytest.raises(TypeError, match=r"cannot pickle .*memoryview"):
        drain(loader(dataset, 4, num_workers=1, transform=wrapped))


class Pair(NamedTuple):
    tensor: Any
    text: Any


def pairs(samples: list[dict[str, Any]]) -> Any:
    numbers = torch.tensor([int(bytes(sample["cls"])) for sample in samples])
    texts = [sample["txt"] for sample in samples]
    return {
        "pair": Pair(numbers, texts[0]),
        "tuple": (texts, bytearray(b"abc")),
        "key": samples[0]["__key__"],
        "none": None,
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [False, True])
def test_pinned_batches(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, workers: int, views: bool) -> None:
    """torch's thread that pins, for an accelerator that only it believes in: tensors are pinned, all else stays."""
    pinned: list[Any] = []

    def pin(tensor: Any) -> Any:
        pinned.append(threading.current_thread())
        return tensor.clone()

    source = Dataset(dataset.index, views=views)
    expected = list(loader(dataset, 4, collate=pairs))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    mine = loader(source, 4, collate=pairs, num_workers=workers, pin_memory=True)
    for batch, wanted in zip(mine, expected, strict=True):
        assert type(batch["pair"]) is Pair
        assert torch.equal(batch["pair"].tensor, wanted["pair"].tensor)
        assert batch["pair"].text == wanted["pair"].text
        assert type(batch["pair"].text) is bytes
        assert (batch["tuple"], batch["key"], batch["none"]) == (wanted["tuple"], wanted["key"], None)
        assert {type(text) for text in batch["tuple"][0]} == {bytes}
    assert len(pinned) == len(expected)
    assert (threading.main_thread() in pinned) == (not workers)
    assert mine.state_dict()["epoch"] == 1


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
def test_pinned_without_an_accelerator(dataset: Dataset) -> None:
    for workers in (0, 1):
        mine = loader(dataset, 4, transform=number_of, num_workers=workers, pin_memory=True)
        assert drain(mine) == drain(loader(dataset, 4, transform=number_of))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same samples behind nginx, with their index."""
    folder = tmp_path_factory.mktemp("served")
    with nginx(folder) as server:
        files = labelled([str(i) for i in range(COUNT)])
        save(build_of(server.root, [files[:100], files[100:]]), server.root / "t.wdsindex")
        yield server.url


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_remote_data_in_workers(served: str, method: str) -> None:
    """After the parent has read: its threads and connections are no worker's."""
    source = wdstools.open(f"{served}/t.wdsindex")
    assert {number_of(sample) for sample in source.fetch(range(COUNT))} == set(range(COUNT))
    options: Any = {"num_workers": 2, "multiprocessing_context": method, "timeout": 60}
    expected = [rows.tolist() for rows in Plan(COUNT, batch_size=8).batches()]
    assert drain(loader(source, 8, transform=number_of, **options)) == expected
    assert number_of(source[3]) == 3
    shards = wdstools.iterable(f"{served}/t-{{000000..000001}}.tar", transform=number_of, buffer=5)
    assert sorted(shards) == list(range(COUNT))
    if method == "spawn":
        return  # starts as forkserver does, and slower
    batches: Any = torch.utils.data.DataLoader(shards, batch_size=8, **options)
    assert sorted(flat(drain(batches))) == list(range(COUNT))


def test_how_workers_of_remote_data_start(served: str, large: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    source = wdstools.open(f"{served}/t.wdsindex")

    def start(*arguments: Any, **options: Any) -> str | None:
        context = loader(*arguments, 8, num_workers=2, **options).multiprocessing_context
        return context and context.get_start_method()

    assert start(source, transform=number_of) == "forkserver"
    assert start({"a": (source, 1), "b": (large, 1)}) == "forkserver"
    assert start(source, multiprocessing_context="fork") == "fork"
    assert start(large, transform=number_of) is None
    assert loader(source, 8).multiprocessing_context is None, "no workers"
    assert not caplog.records
    assert start(source, transform=lambda sample: sample) is None, "Python's own way, which is to fork"
    assert "transform cannot be pickled: workers are forked" in caplog.text


def test_a_loader_of_ones_own_that_forks(served: str) -> None:
    """A plain DataLoader over a remote Dataset that the parent has used, epoch after epoch."""
    source = wdstools.open(f"{served}/t.wdsindex")
    for _ in range(2):
        assert len(source.fetch(range(0, COUNT, 3))) == 35
        plain: Any = torch.utils.data.DataLoader(
            source, batch_size=8, shuffle=True, num_workers=2, collate_fn=collate_batch,  # type: ignore[arg-type]
            multiprocessing_context="fork", timeout=60,
        )  # fmt: skip
        assert sorted(int(label) for batch in plain for label in batch["cls"]) == list(range(COUNT))


def mixed(sample: dict[str, Any]) -> dict[str, Any]:
    image = np.frombuffer(sample["bin"], np.uint8).copy()
    parts = [sample["bin"][:5000], memoryview(sample["bin"])[::2]]
    return {"__key__": sample["__key__"], "tensor": torch.tensor(image), "parts": parts, "rest": (image, b"", None)}


@pytest.mark.parametrize("batch_size", [1, 9])
def test_what_workers_send_arrives_as_it_was(large: Dataset, batch_size: int) -> None:
    options: Any = {"transform": mixed, "tail": "uneven", "collate": list}
    sent = list(loader(large, batch_size, num_workers=2, **options))
    for batch, expected in zip(sent, loader(large, batch_size, **options), strict=True):
        for sample, wanted in zip(batch, expected, strict=True):
            assert sample["__key__"] == wanted["__key__"]
            assert sample["parts"] == [wanted["parts"][0], wanted["parts"][1].tobytes()]
            assert type(sample["parts"][1]) is bytes
            assert torch.equal(sample["tensor"], wanted["tensor"])
            array, nothing, none = sample["rest"]
            assert (nothing, none) == (b"", None)
            assert np.array_equal(array, wanted["rest"][0])
            array[0] = 1  # writable, as it was


def test_collate_batch() -> None:
    first = {"x": np.zeros((2, 3), np.uint8), "n": 1, "f": 0.5, "b": b"a", "s": "t", "j": {"a": [1]}, "none": None}
    batch = collate_batch([first, first])
    assert (batch["x"].shape, batch["x"].dtype) == ((2, 2, 3), torch.uint8)
    assert batch["n"].tolist() == [1, 1]
    assert batch["f"].dtype == torch.float64
    assert {name: batch[name] for name in ("b", "s", "j", "none")} == {
        "b": [b"a", b"a"], "s": ["t", "t"], "j": [{"a": [1]}] * 2, "none": [None, None]
    }  # fmt: skip
    images, labels, names = collate_batch([(torch.ones(3), 4, "a"), (torch.ones(3), 5, "b")])
    assert (images.shape, labels.tolist(), names) == ((2, 3), [4, 5], ["a", "b"])
    assert collate_batch([True, False]).tolist() == [True, False]
    assert collate_batch([1, None]) == [1, None]
    with pytest.raises(ValueError, match="samples 'a' and 'b' cannot be in one batch: only one of them has cls, txt"):
        collate_batch([{"__key__": "a", "cls": 1}, {"__key__": "b", "txt": b""}])
    with pytest.raises(RuntimeError) as raised:
        collate_batch([{"x": np.zeros(2)}, {"x": np.zeros(3)}])
    assert raised.value.__notes__ == ["in the collation of field 'x'"]


def test_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def told() -> tuple[int, int]:
        plan = loader(Numbers(100), 2).place.plan
        return plan.rank, plan.world

    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert told() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    assert told() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert told() == (2, 4)
    assert loader(Numbers(9), 2, rank=0, world=2).place.plan.world == 2
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert told() == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ValueError, match="RANK='x' and WORLD_SIZE='4' of the environment are no numbers"):
        told()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 1}, "give rank and world together"),
        ({"rank": 1, "world": 1}, "rank 1 is not below world 1"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"tail": "cut"}, "tail is none of"),
        ({"tail": "pad", "drop_last": True}, "give tail or drop_last"),
        ({"drop_last": False, "rank": 0, "world": 2}, "drop_last=False leaves open what 2 ranks do"),
        ({"in_order": False}, "in_order=False"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_bad_arguments(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        loader(Numbers(9), **{"batch_size": 2} | options)


def test_more_bad_arguments() -> None:
    options: dict[str, Any]
    for options in ({"transform": lambda x: x}, {"collate": lambda x: x}):
        assert drain(loader(Numbers(4), 2, num_workers=1, multiprocessing_context="fork", **options))
        with pytest.raises(TypeError, match=f"{next(iter(options))} cannot be pickled, as spawn workers need"):
            loader(Numbers(4), 2, num_workers=1, multiprocessing_context="spawn", **options)
    with pytest.raises(TypeError):
        loader(Numbers(4), 2, sampler=[1], whatever=3)
    assert loader(Numbers(5), 2, drop_last=True).place.plan.tail == "drop"
    assert drain(loader(Numbers(5), 2, drop_last=False, shuffle=False)) == [[0, 1], [2, 3], [4]]


def test_the_module_can_be_called() -> None:
    assert callable(wdstools.loader)
    assert drain(wdstools.loader(Numbers(4), 2, shuffle=False)) == [[0, 1], [2, 3]]  # type: ignore[operator]
    code = "import sys, wdstools.sampler, wdstools; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.fixture
def large(tmp_path: Path) -> Dataset:
    rng = random.Random(0)
    files = [(f"k{i:03d}.bin", rng.randbytes(200_000)) for i in range(40)]
    return Dataset(save(build_of(tmp_path, [files]), tmp_path / "t.wdsindex"))


def test_large_payloads_arrive_whole(large: Dataset) -> None:
    index: Index = large.index
    seen = {}
    for batch in loader(large, 8, num_workers=2):
        seen |= dict(zip(batch["__key__"], batch["bin"], strict=True))
    assert seen == {index.key(row): large[row]["bin"] for row in range(40)}


class Epochs:
    """A transform that wants to know the epoch."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, number: int) -> tuple[int, int]:
        return self.epoch, number


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "spawn"}],
)
def test_a_transform_is_told_the_epoch_also_of_a_state(options: dict[str, Any]) -> None:
    def fresh() -> Loader:
        return loader(Numbers(20), 2, transform=Epochs(), **options)

    epochs = fresh()
    first = [[epoch.tolist() for epoch, _ in epochs] for _ in range(2)]
    assert first == [[[0, 0]] * 10, [[1, 1]] * 10]
    epochs.set_epoch(7)
    batches = iter(epochs)
    assert [next(batches)[0].tolist() for _ in range(3)] == [[7, 7]] * 3
    state = epochs.state_dict()
    batches.close()  # type: ignore[attr-defined]
    again = fresh()
    again.load_state_dict(state)
    assert [epoch.tolist() for epoch, _ in again] == [[7, 7]] * 7
    assert {int(epoch[0]) for epoch, _ in again} == {8}
