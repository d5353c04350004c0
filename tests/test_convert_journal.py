"""One job on one destination: what it leaves behind at any moment, and what the next run makes of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from convert_helpers import class_tree, everything, go, hidden, image_tree, put, samples, shards

from wdstools.convert import journal, place
from wdstools.convert.description import difference
from wdstools.convert.destination import Target
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import DestinationError
from wdstools.index import Index

# Every call that changes a folder, and the moments in between, is a place to die: the child does it at the nth.
KILLED_AT_EVERY_STEP = textwrap.dedent(
    """
    import os, shutil, signal, sys
    sys.path.insert(0, sys.argv[4])
    from convert_helpers import everything
    from wdstools.convert.local import convert
    from wdstools.convert.options import Options
    source, out, options = sys.argv[1], sys.argv[2], Options(**eval(sys.argv[3]))

    def dying(n):
        left = [n]
        def wrap(name):
            call = getattr(os, name)
            def wrapped(*args, **kwargs):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return call(*args, **kwargs)
            setattr(os, name, wrapped)
        for name in ("replace", "unlink", "ftruncate", "pwrite", "fsync", "makedirs", "open"):
            wrap(name)

    def forked(n):
        pid = os.fork()
        if pid == 0:
            if n is not None:
                dying(n)
            code = 1
            try:
                convert(source, out, options)
                code = 0
            except BaseException as error:
                print(repr(error))
            finally:
                sys.stdout.flush()
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    from pathlib import Path
    assert forked(None) == 0
    wanted = everything(Path(out))
    n, code = 0, -9
    while code == -9:
        shutil.rmtree(out)
        code = forked(n)
        if code == -9 and n % 3 == 0:  # and the run that goes on is killed too, a little later
            forked(n % 5)
        assert forked(None) == 0, n
        found = everything(Path(out))
        assert found == wanted, (n, sorted(found), sorted(wanted), [k for k in found if found[k] != wanted.get(k)])
        n += 1
    print(n, code)
    """
)


@pytest.mark.parametrize(
    "options",
    [
        {"maxcount": 4, "workers": 1},
        {"maxcount": 4, "workers": 1, "splits": (("train", 0.7), ("val", 0.3)), "by": "cls", "resize": 16},
        {"maxcount": 5, "workers": 1, "resize": 16, "maxsize": 10**9},
        {"maxcount": 4, "workers": 1, "on_error": "skip"},
    ],
    ids=["copies", "splits", "images by size", "skipped"],
)
def test_killed_before_every_single_step(tmp_path: Path, options: dict[str, Any]) -> None:
    image_tree(tmp_path / "in", each=5)
    if "on_error" in options:
        (tmp_path / "in/n1/nowhere.jpg").symlink_to("gone")
    program = [sys.executable, "-c", KILLED_AT_EVERY_STEP, tmp_path / "in", tmp_path / "out", repr(options)]
    done = subprocess.run(
        [*program, Path(__file__).parent], capture_output=True, text=True, timeout=100, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps, last = map(int, done.stdout.split()[-2:])
    assert steps > 20, done.stdout
    assert last == 0


class Interrupt:
    """Ctrl-C after so many samples."""

    def __init__(self, samples: int) -> None:
        self.left = samples

    def __call__(self, samples: int, nbytes: int) -> None:
        self.left -= samples
        if self.left < 0:
            raise KeyboardInterrupt


def interrupted(source: Path, out: Path, after: int = 20, **options: Any) -> None:
    given = Options(**{"maxcount": 2, "workers": 1, "resize": 16, **options})
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), str(out), given, progress=Interrupt(after))
    assert shards(out)
    assert not [name for name in hidden(out) if name.endswith(".tmp")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    image_tree(tmp_path / "in", each=30)
    return tmp_path / "in"


DONE = {"maxcount": 2, "workers": 1, "resize": 16}


def test_an_interrupted_job_goes_on(tree: Path, tmp_path: Path) -> None:
    interrupted(tree, tmp_path / "out")
    assert hidden(tmp_path / "out")[-1] == ".in.wdsjob"
    before = {p.name: p.stat().st_ino for p in shards(tmp_path / "out")}
    summary = go(tree, tmp_path / "out", **DONE)
    assert summary.kept == len(before) > 0
    after = {p.name: p.stat().st_ino for p in shards(tmp_path / "out")}
    assert {name: after[name] for name in before} == before  # not written again
    assert hidden(tmp_path / "out") == []
    go(tree, tmp_path / "whole", **DONE)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maxcount": 3}, "--maxcount was 2 and is 3"),
        ({"seed": 1}, "--seed was 0 and is 1"),
        ({"shuffle": False}, "--shuffle was True and is False"),
        ({"quality": 50}, "--quality was 90 and is 50"),
        ({"resize": None}, "--resize was 16 and is not given"),
        ({"lift": ("json:x",)}, "--column was"),
        ({"keys": "number"}, "--keys was path and is number"),
    ],
)
def test_another_job_is_refused_with_the_difference(
    tree: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    interrupted(tree, tmp_path / "out")
    before = everything(tmp_path / "out")
    with pytest.raises(
        DestinationError, match=f"an unfinished job is there, and this is another: .*{message}.*--overwrite"
    ):
        go(tree, tmp_path / "out", **{**DONE, **change})
    assert everything(tmp_path / "out") == before
    go(tree, tmp_path / "out", **DONE)
    with pytest.raises(
        DestinationError, match=f"a finished job is there, and this is another: .*{message}.*--overwrite"
    ):
        go(tree, tmp_path / "out", **{**DONE, **change})
    go(tree, tmp_path / "out", **{**DONE, **change, "overwrite": True})
    go(tree, tmp_path / "new", **{**DONE, **change})
    assert everything(tmp_path / "out") == everything(tmp_path / "new")


def test_what_makes_no_difference(tree: Path, tmp_path: Path) -> None:
    interrupted(tree, tmp_path / "out")
    assert go(tree, tmp_path / "out", **{**DONE, "workers": 3, "sync": True, "on_error": "skip"}).kept > 0
    assert go(tree, tmp_path / "out", **{**DONE, "workers": 2}).complete


@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_source(tree: Path, tmp_path: Path, finished: bool) -> None:
    def start(name: str) -> Path:
        if finished:
            go(tree, tmp_path / name, **DONE)
        else:
            interrupted(tree, tmp_path / name)
        return tmp_path / name

    out = start("out")
    data = (tree / "n0/3.jpg").read_bytes()
    put(tree, {"n0/new.jpg": data})
    with pytest.raises(DestinationError, match=r"the source had 60 samples of .* bytes and has 61 of"):
        go(tree, out, **DONE)
    (tree / "n0/new.jpg").rename(tree / "n1/31.jpg")
    (tree / "n0/3.jpg").unlink()
    with pytest.raises(DestinationError, match="names or sizes in the source are not what they were"):
        go(tree, out, **DONE)
    go(tree, out, **DONE, overwrite=True)
    assert go(tree, out, **DONE).complete


@pytest.mark.parametrize("finished", [False, True])
def test_a_file_changed_without_a_new_size(tree: Path, tmp_path: Path, finished: bool) -> None:
    if finished:
        go(tree, tmp_path / "out", **DONE)
    else:
        interrupted(tree, tmp_path / "out")
    path = tree / "n0/3.jpg"
    path.write_bytes(path.read_bytes()[::-1][::-1])
    with pytest.raises(DestinationError, match=r"n0/3.jpg: was changed after .*--overwrite"):
        go(tree, tmp_path / "out", **DONE)
    summary = go(tree, tmp_path / "out", **DONE, overwrite=True)
    assert (summary.kept, summary.complete) == (0, False)


def test_overwriting_goes_on_where_it_was_stopped(tree: Path, tmp_path: Path) -> None:
    go(tree, tmp_path / "out", maxcount=7)
    interrupted(tree, tmp_path / "out", overwrite=True)
    assert go(tree, tmp_path / "out", **DONE, overwrite=True).kept > 0
    assert go(tree, tmp_path / "out", **DONE, overwrite=True).kept == 0  # it was finished: all anew


BY_SIZE = {"maxsize": 10**9}  # then they are packed by what is written


@pytest.mark.parametrize("by", [{}, BY_SIZE], ids=["by count", "by size"])
@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "part gone", "part garbage", "part of another"])
def test_a_damaged_shard_is_written_anew(tree: Path, tmp_path: Path, damage: str, by: dict[str, Any]) -> None:
    done = DONE | by
    go(tree, tmp_path / "whole", **done)
    out = tmp_path / "out"
    interrupted(tree, out, **by)
    shard, part = out / "in-000001.tar", out / ".in-000001.tar.part"
    if damage in ("shorter", "longer"):
        os.truncate(shard, shard.stat().st_size + (512 if damage == "longer" else -512))
    elif damage == "gone":
        shard.unlink()
    elif damage == "part garbage":
        part.write_bytes(part.read_bytes()[:100])
    elif damage == "part of another":
        part.write_bytes((out / ".in-000000.tar.part").read_bytes())
    else:
        part.unlink()
        with pytest.raises(DestinationError, match=r"in-000001.tar: this job did not write it"):
            go(tree, out, **done)
        shard.unlink()
    others = len([path for path in shards(out) if path != shard])
    assert go(tree, out, **done).kept == (1 if by else others)
    assert everything(out) == everything(tmp_path / "whole")


def test_strangers_in_the_destination(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(out, {"in-000007.tar": b"precious"})
    with pytest.raises(DestinationError, match=r"in-000007.tar: is there already.*--overwrite"):
        go(tree, out)
    assert everything(out) == {"in-000007.tar": b"precious"}
    put(out, {"other-000000.tar": b"precious"})
    go(tree, out, overwrite=True)
    assert [p.name for p in shards(out)] == ["in-000000.tar", "other-000000.tar"]
    assert (out / "other-000000.tar").read_bytes() == b"precious"


def test_strangers_among_shards_of_a_job(tree: Path, tmp_path: Path) -> None:
    interrupted(tree, tmp_path / "out")
    put(tmp_path / "out", {"in-000099.tar": b"precious"})
    with pytest.raises(DestinationError, match=r"in-000099.tar: this job did not write it"):
        go(tree, tmp_path / "out", **DONE)
    go(tree, tmp_path / "out", **DONE, overwrite=True)
    assert not (tmp_path / "out/in-000099.tar").exists()


def test_a_complete_set_that_was_touched(tree: Path, tmp_path: Path) -> None:
    go(tree, tmp_path / "out", **DONE)
    put(tmp_path / "out", {"in-000099.tar": b"precious"})
    with pytest.raises(DestinationError, match=r"in-000099.tar: is not one of the shards"):
        go(tree, tmp_path / "out", **DONE)
    (tmp_path / "out/in-000099.tar").unlink()
    (tmp_path / "out/in-000003.tar").unlink()
    with pytest.raises(DestinationError, match=r"in-000003.tar: was changed or removed"):
        go(tree, tmp_path / "out", **DONE)


def test_an_index_of_somebody_else(tree: Path, tmp_path: Path) -> None:
    go(tree, tmp_path / "out", **DONE)
    index = Index.load(tmp_path / "out/in.wdsindex")
    index.metadata = {}
    index.save(tmp_path / "out/in.wdsindex")
    with pytest.raises(DestinationError, match="this job did not write it"):
        go(tree, tmp_path / "out", **DONE)


def job(folder: Path, **more: Any) -> journal.Job:
    return journal.Job([Target("", f"{folder}/a-%d.tar")], {"fingerprint": "1", "version": 1}, False, **more)


def test_a_destination_has_one_job_at_a_time(tmp_path: Path) -> None:
    first = job(tmp_path).open()
    with pytest.raises(DestinationError, match=r"\.a\.wdsjob: another wds-shard is at work"):
        job(tmp_path).open()
    first.close()
    second = job(tmp_path).open()
    assert second.state == "resume"
    second.close(remove=True)
    assert everything(tmp_path) == {}


def test_a_dry_look_writes_nothing(tmp_path: Path) -> None:
    assert job(tmp_path / "new").open(dry=True).state == "fresh"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\xff"])
def test_a_journal_that_was_cut_short(tmp_path: Path, text: str) -> None:
    (tmp_path / ".a.wdsjob").write_text(text, encoding="latin-1")
    one = job(tmp_path).open()
    assert one.state == "fresh"
    one.close()
    assert json.loads((tmp_path / ".a.wdsjob").read_text())["fingerprint"] == "1"


def test_difference_of_what_is_damaged() -> None:
    assert "another version" in difference({"version": 0}, {"version": 1, "options": {}, "source": {}})
    assert difference({"version": 1}, {"version": 1, "options": {}, "source": {}}) == "its record is damaged"


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(str(tmp_path / "f"), b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        place.write(str(tmp_path / "f"), b"new")
    assert everything(tmp_path) == {"f": b"old"}


def test_two_sets_with_other_class_numbers_cannot_share_a_folder(tmp_path: Path) -> None:
    class_tree(tmp_path / "one", classes=3)
    class_tree(tmp_path / "two", classes=4)
    go(tmp_path / "one", tmp_path / "out")
    with pytest.raises(DestinationError, match=r"classes.json: is there with other classes"):
        go(tmp_path / "two", tmp_path / "out")
    class_tree(tmp_path / "three", classes=3, each=2)
    go(tmp_path / "three", tmp_path / "out")
    assert len(samples(tmp_path / "out", "one")) == 15
    (tmp_path / "out/classes.json").write_text("garbage")
    with pytest.raises(DestinationError, match=r"classes.json"):
        go(tmp_path / "one", tmp_path / "out")
