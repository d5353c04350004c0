"""--map: functions of the user, in worker processes, in order, whatever they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from convert_helpers import everything, go, keys, members, put, run, samples, shards

from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import SourceError
from wdstools.index import Index

MODULE = """
import os

def upper(sample):
    return {**sample, "txt": sample["txt"].upper(), "n": {"a": 1}} | {"n.json": {"len": len(sample["txt"])}, "n": b"1"}

def none(sample):
    return None if int(sample["__key__"]) % 3 else sample

def three(sample):
    return [{**sample, "cls": i} for i in range(int(sample["__key__"]) % 4)]

def renamed(sample):
    return {"__key__": "new/" + sample["__key__"], "txt": sample["txt"]}

def twice(sample):
    return {"__key__": "%03d" % (int(sample["__key__"]) % 20), "txt": b""}

def bad(sample):
    if sample["__key__"] == "007":
        raise KeyError("oh")
    wrong = {"008": {"_hidden": 1}, "009": "x", "010": {"bin": object()}, "011": {"__key__": "../x", "txt": b""}}
    return wrong.get(sample["__key__"], sample)

def dies(sample):
    if sample["__key__"] == "007":
        os._exit(3)
    return sample

constant = 3
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "here", {"recipes_of_a_test.py": MODULE, "broken_recipe.py": "1/0"})
    put(tmp_path / "in", {f"{i:03d}.txt": f"text {i}" for i in range(40)})
    monkeypatch.chdir(tmp_path / "here")


def mapped(tmp_path: Path, function: str, out: str = "out", **options: Any) -> Any:
    return go(tmp_path / "in", tmp_path / out / "x-%06d.tar", map=f"recipes_of_a_test:{function}", **options)


def test_samples_are_mapped_in_order(tmp_path: Path) -> None:
    for workers in (1, 2):
        mapped(tmp_path, "upper", f"out{workers}", workers=workers, maxcount=9)
    found = samples(tmp_path / "out1")
    assert list(found) == [f"{i:03d}" for i in range(40)]
    assert found["012"] == {"txt": b"TEXT 12", "n.json": b'{"len": 7}', "n": b"1"}
    assert everything(tmp_path / "out1") == everything(tmp_path / "out2")


def test_samples_that_become_none_or_several(tmp_path: Path) -> None:
    mapped(tmp_path, "none")
    assert keys(tmp_path / "out") == [f"{i:03d}" for i in range(0, 40, 3)]
    mapped(tmp_path, "three", "several", workers=1)
    wanted = {}
    for i in range(40):
        n = i % 4
        wanted |= {f"{i:03d}" + (f"_{k}" if n > 1 else ""): b"%d" % k for k in range(n)}
    assert {key: sample["cls"] for key, sample in samples(tmp_path / "several").items()} == wanted
    assert Index.load(tmp_path / "several/x.wdsindex").lifted() == ["cls"]
    mapped(tmp_path, "renamed", "renamed", workers=1)
    assert keys(tmp_path / "renamed")[0] == "new/000"


def test_errors_by_sample(tmp_path: Path) -> None:
    wanted = "(?s)sample '007': the map failed: KeyError: 'oh' .*recipes_of_a_test.py:"
    with pytest.raises(SourceError, match=wanted):
        mapped(tmp_path, "bad", workers=1)
    summary = mapped(tmp_path, "bad", "skip", workers=1, on_error="skip")
    assert [(item.key, item.reason) for item in summary.skipped] == [
        ("007", "the map failed"), ("008", "the map gave no sample"), ("009", "the map gave no sample"),
        ("010", "a value that is no field"), ("011", "a key that leaves its folder"),
    ]  # fmt: skip
    assert keys(tmp_path / "skip") == [f"{i:03d}" for i in range(40) if not 7 <= i <= 11]


def test_a_worker_that_dies(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="a worker process died"):
        mapped(tmp_path, "dies", workers=1, on_error="skip")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("recipes_of_a_test", "write it as module:function"),
        ("recipes_of_a_test:", "write it as module:function"),
        ("no_such_module:f", "there is no module no_such_module"),
        ("no_such.module:f", "no_such"),
        ("recipes_of_a_test:gone", "cannot be imported: AttributeError"),
        ("recipes_of_a_test:constant", "is no function"),
        ("broken_recipe:f", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_functions_that_are_none(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        go(tmp_path / "in", tmp_path / "out", map=name, workers=1)


@pytest.mark.parametrize("by", [{}, {"maxsize": 10**9}], ids=["by count", "by size"])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, by: dict[str, Any]) -> None:
    options: dict[str, Any] = {"maxcount": 7, "workers": 1, "map": "recipes_of_a_test:three", **by}
    go(tmp_path / "in", tmp_path / "whole/x-%06d.tar", **options)
    count = 0

    def stop(n: int, nbytes: int) -> None:
        nonlocal count
        count += n
        if count > 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(tmp_path / "in"), f"{tmp_path}/out/x-%06d.tar", Options(**options), progress=stop)
    assert len(shards(tmp_path / "out")) == 3
    assert go(tmp_path / "in", tmp_path / "out/x-%06d.tar", **options).kept == 3
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_another_function_is_another_job(tmp_path: Path) -> None:
    mapped(tmp_path, "upper", workers=1)
    with pytest.raises(FileExistsError, match="--map was recipes_of_a_test:upper and is recipes_of_a_test:none"):
        mapped(tmp_path, "none", workers=1)
    (tmp_path / "here/recipes_of_a_test.py").write_text(MODULE + "\n# changed\n")
    with pytest.raises(FileExistsError, match="--map's module was"):
        mapped(tmp_path, "upper", workers=1)


def test_of_shards_and_records(tmp_path: Path) -> None:
    go(tmp_path / "in", tmp_path / "shards/x-%06d.tar")
    pq.write_table(pa.table({"key": [f"{i:03d}" for i in range(9)], "txt": ["t"] * 9, "b": [b"?"] * 9}), "a.parquet")
    for number, source in enumerate([tmp_path / "shards", Path("a.parquet")]):
        arguments = [tmp_path / f"out{number}", "--map", "recipes_of_a_test:none", "--where", "key < '008'"]
        code, _, err = run(source, *arguments, "--workers", "1")
        assert code == 0, err
        assert keys(tmp_path / f"out{number}") == ["000", "003", "006"]
    assert members(shards(tmp_path / "out0")[0])[0] == ("000.txt", b"text 0")


@pytest.mark.parametrize("limit", [{"maxcount": 5}, {"maxsize": 10_000}])
def test_a_key_of_two_shards_is_an_error(limit: dict[str, int], tmp_path: Path) -> None:
    """Each shard is good, and the set would hold two samples of one key: no index says that it is whole."""
    for _again in range(2):
        with pytest.raises(
            SourceError, match=r"two samples with one key: '0\d\d' is in .*/x-00000\d.tar and in .*/x-0000\d\d"
        ):
            mapped(tmp_path, "twice", **limit)
    assert not list((tmp_path / "out").glob("*.wdsindex"))
    with pytest.raises(SourceError, match="two samples with one key"):
        mapped(tmp_path, "twice", on_error="skip", overwrite=True, **limit)
