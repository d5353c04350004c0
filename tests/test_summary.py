"""Sets of shards and what is told of them: counts, gaps, the state of the index."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from indexing import labelled, model, random_files, save, touch, write_shards

from wdstools import build, errors, sets, summary
from wdstools.index import Index


def test_counts_against_tarfile(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [random_files(i) for i in range(4)])
    index = build.build(paths)
    rows = model([Path(path).read_bytes() for path in paths])
    for wanted in (None, [0, 2], [3], [3, 3], []):
        mine = [row for row in rows if wanted is None or row.shard in wanted]
        fields: dict[str, list[int]] = {}
        for row in mine:
            for ext, _, _, nbytes in row.fields:
                fields.setdefault(ext, []).append(nbytes)
        counts = summary.count(index, wanted)
        numbers = range(4) if wanted is None else set(wanted)
        assert (counts.shards, counts.samples) == (len(numbers), len(mine))
        assert counts.nbytes == sum(os.path.getsize(paths[i]) for i in numbers)
        assert counts.members == sum(index.shards.nmembers[i] for i in numbers)
        assert counts.fields == {name: (len(sizes), sum(sizes)) for name, sizes in fields.items()}
        assert list(counts.fields) == sorted(fields)
        for name, sizes in fields.items():
            assert counts.fields[name].mean == pytest.approx(sum(sizes) / len(sizes))


def test_the_mean_of_nothing() -> None:
    assert summary.FieldCount(0, 0).mean == 0
    assert summary.count(build.build([])).to_json() == {
        "shards": 0, "samples": 0, "members": 0, "nbytes": 0, "fields": {},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- sets


def touch_all(folder: Path, names: str) -> None:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_what_names_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch_all(tmp_path, "d/b.tar d/a-1.tar d/a-0.tar d/z.tar.gz d/y.tgz d/.hidden.tar d/x.txt e/none {0..1}.tar")
    monkeypatch.chdir(tmp_path)
    assert sets.list_shards(["d"]) == ["d/a-0.tar", "d/a-1.tar", "d/b.tar", "d/y.tgz", "d/z.tar.gz"]
    assert sets.list_shards(["d/"], compressed=False) == ["d/a-0.tar", "d/a-1.tar", "d/b.tar"]
    assert sets.list_shards(["d/a-{0..2}.tar", "d/a-1.tar"]) == ["d/a-0.tar", "d/a-1.tar", "d/a-2.tar"]
    assert sets.list_shards(["{0..1}.tar"]) == ["{0..1}.tar"]  # a file that is called so
    assert sets.list_shards(["http://h/{0..1}.tar", "pipe:cat d"]) == ["http://h/0.tar", "http://h/1.tar", "pipe:cat d"]
    monkeypatch.chdir(tmp_path / "d")
    assert sets.list_shards(["."], compressed=False) == ["a-0.tar", "a-1.tar", "b.tar"]
    with pytest.raises(errors.NotFoundError, match=r"e: no \.tar in this folder"):
        sets.list_shards([str(tmp_path / "e")])


def found(shards: list[str]) -> dict[str, list[str]]:
    return {one.index: one.patterns for one in sets.shard_sets(shards)}


def test_sets_are_names_that_differ_in_a_number() -> None:
    names = [f"d/{s}-{i:03d}.tar" for s in ("train", "val") for i in range(10) if i != 4]
    assert found([*names, "d/other.tar", "e/train-000.tar", "cifar10.tar", "cifar11.tar"]) == {
        "d/train.wdsindex": ["d/train-{000..003}.tar", "d/train-{005..009}.tar"],
        "d/val.wdsindex": ["d/val-{000..003}.tar", "d/val-{005..009}.tar"],
        "d/other.wdsindex": ["d/other.tar"],
        "e/train.wdsindex": ["e/train-000.tar"],
        "cifar.wdsindex": ["cifar{10..11}.tar"],
    }
    assert found([]) == {}
    assert found(["http://h/a-0.tar", "http://h/a-1.tar"]) == {"http://h/a.wdsindex": ["http://h/a-{0..1}.tar"]}


def test_an_index_of_several_sets_makes_them_one(tmp_path: Path) -> None:
    train = write_shards(tmp_path, [labelled(["1"])], "train-%d.tar")
    val = write_shards(tmp_path, [labelled(["2"])], "val-%d.tar")
    build.build([*train, *val]).save(tmp_path / "all.wdsindex")
    (tmp_path / "broken.wdsindex").write_bytes(b"x")
    more = write_shards(tmp_path, [labelled(["3"])], "train-%d.tar", first=1)
    assert found([*train, *val, *more]) == {
        str(tmp_path / "all.wdsindex"): [str(tmp_path / "train-{0..1}.tar"), str(tmp_path / "val-0.tar")]
    }
    build.build(train).save(tmp_path / "train.wdsindex")  # its own goes before one that it shares
    assert found([*train, *val, *more]) == {
        str(tmp_path / "train.wdsindex"): [str(tmp_path / "train-{0..1}.tar")],
        str(tmp_path / "all.wdsindex"): [str(tmp_path / "val-0.tar")],
    }


# --------------------------------------------------------------------------------------------------------------- state


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, [labelled(["1", "2"], prefix=f"p{i}/") for i in range(4)])


def test_states(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    assert str(sets.state(index)) == str(sets.state(index, shards)) == "fresh"
    monkeypatch.chdir(tmp_path)
    assert str(sets.state(index, ["t-000001.tar"])) == "fresh"
    touch(shards[0])
    more = write_shards(tmp_path, [labelled(["9"] * 20)], first=4)
    os.truncate(shards[2], 512)
    os.unlink(shards[3])
    state = sets.state(index, [*shards[:3], *more])
    assert (state.kind, state.changed, state.new, state.gone) == ("stale", [shards[0], shards[2]], more, [shards[3]])
    assert str(state) == "stale: 2 changed, 1 new, 1 gone"


def test_what_lies_elsewhere_is_not_asked(shards: list[str]) -> None:
    assert str(sets.state(build.build([f"pipe:cat {shards[0]}"]))) == "fresh"


def test_indexes_that_are_not_there_or_not_read(tmp_path: Path) -> None:
    assert sets.load_index(str(tmp_path / "t.wdsindex")) == (None, sets.State("none"))
    assert sets.load_index("http://h/t.wdsindex") == (None, sets.State("none"))
    (tmp_path / "t.wdsindex").write_bytes(b"x" * 100)
    index, state = sets.load_index(str(tmp_path / "t.wdsindex"))
    assert (index, state.kind, str(state)) == (None, "unreadable", "unreadable")
    assert "t.wdsindex: not an index" in state.reason


# ------------------------------------------------------------------------------------------------------------ summaries


def summarise(shards: list[str]) -> summary.Summary:
    (one,) = sets.shard_sets(shards)
    return summary.summarise(one)


def test_summary_from_a_fresh_index_reads_no_shard(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(shards).save(tmp_path / "t.wdsindex")
    monkeypatch.setattr(build, "index_shard", None)
    for given, samples in ((shards, 8), (shards[1:3], 4)):
        one = summarise(given)
        assert (one.counted, str(one.state), one.error, one.missing) == ("index", "fresh", None, [])
        assert one.counts is not None
        assert (one.counts.shards, one.counts.samples) == (len(given), samples)
        assert one.counts.nbytes == sum(map(os.path.getsize, given))


def test_summary_without_an_index_counts_headers(shards: list[str], tmp_path: Path) -> None:
    steps: list[int] = []
    (one,) = sets.shard_sets([shards[0], shards[3]])
    told = summary.summarise(one, progress=steps.append)
    assert (told.counted, str(told.state), len(steps)) == ("headers", "none", 2)
    assert told.missing == [str(tmp_path / "t-{000001..000002}.tar")]
    assert told.to_json() == {
        "patterns": shards[::3], "missing": [str(tmp_path / "t-{000001..000002}.tar")],
        "index": {"path": str(tmp_path / "t.wdsindex"), "state": "none"},
        "shards": 2, "samples": 4, "members": 8, "nbytes": 20480, "counted": "headers",
        "fields": {"cls": {"samples": 4, "nbytes": 4, "mean": 1.0}, "txt": {"samples": 4, "nbytes": 16, "mean": 4.0}},
    }  # fmt: skip
    assert not (tmp_path / "t.wdsindex").exists()


def test_summary_of_a_stale_index_counts_what_is_there(shards: list[str], tmp_path: Path) -> None:
    build.build(shards).save(tmp_path / "t.wdsindex")
    write_shards(tmp_path, [labelled(["1"] * 30)], first=1)
    one = summarise(shards)
    assert (one.counted, str(one.state)) == ("headers", "stale: 1 changed")
    assert one.counts is not None
    assert one.counts.samples == 36
    assert one.to_json()["index"]["changed"] == [shards[1]]


def test_summary_of_broken_things(shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "t.wdsindex").write_bytes(b"x")
    one = summarise(shards)
    assert (str(one.state), one.counted) == ("unreadable", "headers")
    assert one.counts is not None
    assert one.counts.samples == 8
    assert "not an index" in one.to_json()["index"]["reason"]
    os.truncate(shards[1], 512)
    one = summarise(shards)
    assert one.counts is None
    assert isinstance(one.error, errors.TruncatedError)
    assert "t-000001.tar" in one.to_json()["error"]


def test_describe(shards: list[str], tmp_path: Path) -> None:
    twice = write_shards(tmp_path, [labelled(["1", "2"], prefix="p0/")], first=4)
    index = save(build.build([*shards, *twice], lift=["cls"]), tmp_path / "t.wdsindex")
    told = summary.describe(index)
    some = ("path", "version", "state", "shards", "samples", "columns", "duplicates")
    assert {name: told[name] for name in some} == {
        "path": str(tmp_path / "t.wdsindex"), "version": 1, "state": "fresh", "shards": 5, "samples": 10,
        "columns": {"cls": "int64"}, "duplicates": {"p0/0": [0, 8], "p0/1": [1, 9]},
    }  # fmt: skip
    assert summary.describe(index, index.select_shards([0, 4]))["shards"] == 2
    assert summary.describe(Index(index.table, index.shards))["state"] == "none"


def test_numbers_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path, [labelled(["1"], prefix=f"p{i}/") for i in range(3)])
    index = build.build(shards)
    monkeypatch.chdir(tmp_path)
    assert summary.shard_numbers(index, ["t-000002.tar", shards[0]]) == [2, 0]
    with pytest.raises(errors.NotFoundError, match=r"does not have other\.tar"):
        summary.shard_numbers(index, ["other.tar"])
