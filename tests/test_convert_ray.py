"""wds-shard on Ray: the same bytes as without; lost workers, and errors that are no loss."""

from __future__ import annotations

import os
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raycluster
from convert_helpers import assert_same, class_tree, everything, go, image_tree, keys, put, run, samples, shards

from wdstools.convert import description, engine_ray
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import DestinationError, SourceError, StoreError
from wdstools.index import Index

Ray = dict[str, Any]


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    """The options that lead to one small cluster for all of these tests."""
    with raycluster.connected() as address:
        yield {"engine": "ray", "address": address}


def test_the_same_bytes(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_tree(tmp_path / "in", 3, 20, 3000)
    (tmp_path / "in/n00/nowhere.jpg").symlink_to("gone")
    options = {"maxcount": 7, "splits": (("train", 0.7), ("val", 0.3)), "by": "cls", "on_error": "skip"}
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    wanted = go("in", "wanted", **options)
    found = go("in", "out", **ray, **options)
    assert_same(tmp_path / "out", tmp_path / "wanted")
    assert (found.samples, found.shards, found.skipped) == (wanted.samples, wanted.shards, wanted.skipped)
    assert go("in", "out", **options).complete


def test_shards_and_manifests(ray: Ray, tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    go(tmp_path / "in", tmp_path / "a", maxcount=4)
    put(tmp_path / "in", {"m.csv": "path,caption\nn00/img_000.JPEG,one\nn01/img_002.JPEG,two\n"})
    for source, more in ((tmp_path / "a/in.wdsindex", {"drop": frozenset({"cls"})}), (tmp_path / "in/m.csv", {})):
        go(source, tmp_path / f"ray-{source.stem}", maxcount=1, shuffle=True, **ray, **more)
        go(source, tmp_path / f"local-{source.stem}", maxcount=1, shuffle=True, **more)
        assert_same(tmp_path / f"ray-{source.stem}", tmp_path / f"local-{source.stem}")


def test_a_bad_file_is_told_and_the_rest_goes_on_later(ray: Ray, tmp_path: Path) -> None:
    class_tree(tmp_path / "in", 2, 20)
    path = tmp_path / "in/n01/img_003.JPEG"
    data = path.read_bytes()

    def change(plan: object) -> None:
        path.write_bytes(data + b"more")

    with pytest.raises(SourceError, match=f"{path}: changed while it was packed: {len(data)} bytes when listed"):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), Options(maxcount=2, **ray), planned=change)
    put(tmp_path / "in", {"n01/img_003.JPEG": data})
    go(tmp_path / "in", tmp_path / "out", maxcount=2, **ray)
    go(tmp_path / "in", tmp_path / "wanted", maxcount=2)
    assert_same(tmp_path / "out", tmp_path / "wanted")


def test_killed_workers(ray: Ray, tmp_path: Path) -> None:
    put(tmp_path / "in", {f"{i:04d}.bin": os.urandom(500_000) for i in range(900)})
    go(tmp_path / "in", tmp_path / "wanted", maxcount=10)
    killed, over = [], threading.Event()

    def kill() -> None:
        while not over.wait(0.005) and len(killed) < 5:
            for pid in raycluster.workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                time.sleep(0.2)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        go(tmp_path / "in", tmp_path / "out", maxcount=10, **ray)
    finally:
        over.set()
        thread.join()
    assert killed
    assert_same(tmp_path / "out", tmp_path / "wanted")


SUBSETS: list[dict[str, Any]] = [
    {"where": "cls = 1"},
    {"sort_by": "key", "descending": True},
    {"sample": 7, "seed": 3, "splits": (("a", 0.5), ("b", 0.5))},
    {"join": ("w.csv",), "where": "loss > 2", "sort_by": "loss", "lift": ("loss",)},
    {"where": "cls = 1", "drop": frozenset({"cls"})},
]


def test_subsets(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_tree(tmp_path / "in")
    put(
        tmp_path,
        {"w.csv": "key,loss\n" + "".join(f"n{c:02d}/img_{i:03d},{c * i}\n" for c in range(3) for i in range(5))},
    )
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    go("in", "all", maxcount=4)
    for number, options in enumerate(SUBSETS):
        go("all/in.wdsindex", f"ray-{number}", maxcount=2, **ray, **options)
        go("all/in.wdsindex", f"local-{number}", maxcount=2, **options)
        assert_same(tmp_path / f"ray-{number}", tmp_path / f"local-{number}")


def archives(root: Path) -> list[str]:
    class_tree(root / "in")
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        for path in sorted((root / "in").rglob("*.JPEG")):
            archive.write(path, str(path.relative_to(root / "in")))
    with tarfile.open(root / "n.tar", "w") as outer:
        for folder in sorted((root / "in").iterdir()):
            with tarfile.open(root / f"{folder.name}.tar", "w") as inner:
                inner.add(folder, ".")
            outer.add(root / f"{folder.name}.tar", f"{folder.name}.tar")
    return ["z.zip", "n.tar"]


def test_archives(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in archives(tmp_path):
        out = source.replace(".", "-")
        go(source, f"ray-{out}", maxcount=2, **ray)
        go(source, f"local-{out}", maxcount=2)
        assert_same(tmp_path / f"ray-{out}", tmp_path / f"local-{out}")

        def change(plan: object, source: str = source) -> None:
            path = tmp_path / source
            put(tmp_path, {"new": path.read_bytes()[:-1] + b"x"}, age=30)
            (tmp_path / "new").rename(path)

        with pytest.raises(SourceError, match=f"{source}: changed while it was packed"):
            convert(source, f"changed-{out}", Options(maxcount=2, **ray), planned=change)
        assert not shards(tmp_path / f"changed-{out}")


MODULE = """
import os
import warnings
import words_of_a_test

def mixed(sample):
    "None, itself, or several: 0 to 3 by its key; one fails, one is no sample."
    number = int(sample["__key__"])
    if number == 17:
        raise KeyError("oh")
    if number == 18:
        return 3
    if 20 <= number < 25:
        return None
    wanted = words_of_a_test.WORDS[number % 3].encode()
    return [{**sample, "txt": sample["txt"] + wanted, "cls": k} for k in range(number % 4)]

def slow(sample):
    import time
    time.sleep(0.004)
    return {**sample, "n.json": len(sample["txt"]), "at.txt": open("beside.txt").read()}

def same(sample):
    return sample

def dies(sample):
    os._exit(3)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder has the module, another one on sys.path what it imports."""
    put(tmp_path / "here", {"recipes_on_ray.py": MODULE, "beside.txt": "beside"})
    put(tmp_path / "there", {"words_of_a_test.py": "WORDS = ['a', 'b', 'c']\n"})
    put(tmp_path / "in", {f"{i:03d}.txt": f"text {i} " for i in range(40)})
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "there"))
    return tmp_path


def both(source: str, out: str, ray: Ray, **options: Any) -> Any:
    """The summaries of both engines, which have made the same files."""
    found = go(source, f"../{out}", **ray, **options)
    wanted = go(source, f"../{out}-local", workers=1, **options)
    assert_same(Path(f"../{out}"), Path(f"../{out}-local"))
    assert (found.samples, found.shards, found.skipped) == (wanted.samples, wanted.shards, wanted.skipped)
    assert go(source, f"../{out}", **options).complete
    return found


def test_samples_that_become_none_one_or_several(ray: Ray, here: Path) -> None:
    options: Ray = {"map": "recipes_on_ray:mixed", "maxcount": 5, "on_error": "skip"}
    summary = both("../in", "out", ray, **options)
    assert [(item.key, item.reason) for item in summary.skipped] == [
        ("017", "the map failed"), ("018", "the map gave no sample"),
    ]  # fmt: skip
    wanted = {
        f"{i:03d}" + (f"_{k}" if i % 4 > 1 else ""): {"txt": f"text {i} {'abc'[i % 3]}".encode(), "cls": b"%d" % k}
        for i in range(40)
        if i not in (17, 18, *range(20, 25))
        for k in range(i % 4)
    }
    assert samples(here / "out") == wanted
    index = Index.load(here / "out/in.wdsindex")
    held = [samples(here / "out", f"in-{s:06d}") for s in range(8)]
    assert [{int(key[:3]) // 5 for key in found} for found in held] == [{s} - {4} for s in range(8)]
    assert (len(index), index.lifted(), len(index.shards)) == (len(wanted), ["cls"], 8)
    with pytest.raises(SourceError, match=r"(?s)sample '017': the map failed: KeyError: 'oh' .*recipes_on_ray.py:"):
        go("../in", "../stop", **ray, **{**options, "on_error": "stop"})


def test_smaller_images(ray: Ray, here: Path) -> None:
    image_tree(here / "images", each=9)
    put(here / "images", {"n0/broken.jpg": b"broken"})
    summary = both("../images", "out", ray, resize=24, maxcount=4, on_error="skip", splits=(("a", 0.6), ("b", 0.4)))
    assert summary.reasons() == {"not a good image": 1}
    assert summary.skipped[0].file == "../images/n0/broken.jpg"


def test_of_shards_and_a_manifest(ray: Ray, here: Path) -> None:
    class_tree(here / "tree")
    go("../tree", "../shards", maxcount=4)
    put(here / "tree", {"m.csv": "path,words\n" + "".join(f"n00/img_{i:03d}.JPEG,w{i}\n" for i in range(4))})
    same: Ray = {"map": "recipes_on_ray:same", "maxcount": 3, "resize": 8, "resize_fields": frozenset({"none"})}
    wheres = [("../shards/tree.wdsindex", "cls > 0"), ("../tree/m.csv", "words <> 'w1'")]
    for number, (source, where) in enumerate(wheres):
        more: Ray = {"drop": frozenset({"cls"}), "rename": (("jpeg", "jpg"),)} if number == 0 else {}
        both(source, f"out{number}", ray, **same, where=where, **more)
    assert {name for fields in samples(here / "out0").values() for name in fields} == {"jpg"}
    assert (len(keys(here / "out0")), len(keys(here / "out1"))) == (10, 3)


def test_killed_workers_and_another_engine(ray: Ray, here: Path) -> None:
    """Begun here and broken off, refused for a difference, finished on Ray although workers are killed."""
    put(here / "in", {f"{i:04d}.txt": os.urandom(9_000) for i in range(200)})
    options: Ray = {"map": "recipes_on_ray:slow", "maxcount": 10, "workers": 1}
    out, killed, over = here / "out", list[int](), threading.Event()
    go("../in", "../wanted", **options)

    def stop(samples: int, nbytes: int) -> None:
        if out.is_dir() and len(shards(out)) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert("../in", "../out", Options(**options), progress=stop)
    (out / "in-000001.tar").unlink()
    there = len(shards(out))
    with pytest.raises(DestinationError, match=r"this is another: --maxcount was 10 and is 11\."):
        go("../in", "../out", **ray, **{**options, "maxcount": 11})
    kept = (here / "in/0016.txt").read_bytes()
    put(here / "in", {"0016.txt": b"other"})
    with pytest.raises(DestinationError, match=r"in-00000[0-9].tar is the first shard that differs: 10 samples of"):
        go("../in", "../out", **ray, **options)
    put(here / "in", {"0016.txt": kept})

    def kill() -> None:
        while not over.wait(0.01) and len(killed) < 2:
            for pid in raycluster.workers()[:1] if len(shards(out)) > there + len(killed) else []:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert go("../in", "../out", **options, **ray).kept == there > 2
    finally:
        over.set()
        thread.join()
    assert len(killed) == 2
    assert_same(out, here / "wanted")


def test_an_interrupted_driver(ray: Ray, here: Path) -> None:
    """Tasks end before it does, and leave nothing that is not whole."""
    put(here / "in", {f"{i:04d}.txt": "text" for i in range(900)})

    def stop(samples: int, nbytes: int) -> None:
        raise KeyboardInterrupt

    options: Ray = {"map": "recipes_on_ray:slow", "maxcount": 150, **ray}
    with pytest.raises(KeyboardInterrupt):
        convert("../in", "../out", Options(**options), progress=stop)
    before = everything(here / "out")
    assert 1 <= len(shards(here / "out")) < 4
    assert not [name for name in before if name.endswith(".tmp")]
    time.sleep(0.3)
    assert everything(here / "out") == before


def test_a_map_that_ends_its_process(ray: Ray, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_ray, "RETRIES", 1)
    with pytest.raises(StoreError, match=r"in-00000[0-9].tar: ray lost its task 2 times, or --map recipes_on_ray:dies"):
        go("../in", "../out", map="recipes_on_ray:dies", maxcount=20, **ray)


def test_other_tools_on_the_machines(ray: Ray, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was changed since, or a Pillow of another version, is refused."""

    def change(plan: object) -> None:
        put(here / "here", {"recipes_on_ray.py": MODULE + "# changed\n"})

    with pytest.raises(SourceError, match=r"map's module is another on .* than where the job was planned"):
        convert("../in", "../out", Options(map="recipes_on_ray:same", maxcount=9, **ray), planned=change)
    image_tree(here / "images")
    monkeypatch.setattr(description, "tools", lambda options: {"pillow": "1.7.8"})  # not where the tasks are
    with pytest.raises(SourceError, match=r"pillow is another on .* than where the job was planned: .* and 1.7.8"):
        go("../images", "../out", resize=9, maxcount=9, **ray)


def test_what_has_no_plan(here: Path) -> None:
    """Without a cluster: nothing gets that far."""
    for options, wanted in (
        (["--map", "recipes_on_ray:same"], "with --map cuts by the number of samples: give --maxcount"),
        (["--resize", "9"], "with --resize cuts by the number of samples: give --maxcount"),
        (["--resize", "9", "--maxcount", "9", "--maxsize", "1GB"], "by --maxcount alone, without --maxsize"),
    ):
        code, _, err = run("../in", "../out", "--engine", "ray", *options)
        assert (code, wanted in " ".join(err.split())) == (2, True), err
        given = {name[2:]: int(v) if v.isdigit() else v for name, v in zip(options[::2], options[1::2], strict=True)}
        given |= {"maxsize": 10**9} if "maxsize" in given else {}
        with pytest.raises(SourceError, match=wanted):
            go("../in", "../out", engine="ray", **given)
    pq.write_table(pa.table({"txt": ["a", "b"], "bin": [b"a", b"b"]}), "t.parquet")
    for source in ("t.parquet", "pipe:cat x.tar"):
        with pytest.raises(SourceError, match="needs samples that are listed before they are read, and these come one"):
            go(source, "../out", engine="ray", map="recipes_on_ray:same", maxcount=9)
    assert not (here / "out").exists()


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    class_tree(tmp_path / "in")
    code, _, err = run(tmp_path / "in", tmp_path / "out", "--engine", "ray", "--address", "127.0.0.1:1")
    assert code == 1
    assert "ray at 127.0.0.1:1: cannot be reached or started" in err
