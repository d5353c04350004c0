"""The command `wds-shard` as a process: its options, what it says, its exit codes; killed, interrupted, out of disk."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import resource
import signal
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from convert_helpers import (
    COMMAND,
    class_tree,
    everything,
    hidden,
    image_tree,
    jpeg,
    keys,
    put,
    run,
    samples,
    shards,
)
from helpers import make_tar, samples_of

from wdstools.cli.shard import command
from wdstools.errors import StoreError
from wdstools.index import Index


def call(*args: str | Path) -> Result:
    """The command in this process: errors of ours come as exceptions."""
    return CliRunner().invoke(command, list(map(str, args)))


def good(*args: str | Path) -> str:
    result = call(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    class_tree(tmp_path / "in", classes=3, each=10)
    return tmp_path / "in"


def test_the_plain_case(tree: Path, tmp_path: Path) -> None:
    code, out, err = run(tree, tmp_path / "out/train-%06d.tar")
    assert (code, out) == (0, "")
    assert err.startswith("wds-shard: 1 shards, 30 samples, ")
    assert "samples/s" in err
    assert len(err.splitlines()) == 1  # no bar: stderr is no terminal
    assert sorted(everything(tmp_path / "out")) == ["classes.json", "train-000000.tar", "train.wdsindex"]
    code, out, err = run(tree, tmp_path / "out/train-%06d.tar")
    assert (code, out) == (0, "")
    assert "is complete: 1 shards, 30 samples" in err


def test_help() -> None:
    began = time.monotonic()
    code, out, err = run("--help")
    assert time.monotonic() - began < 5
    assert (code, err) == (0, "")
    assert "$ wds-shard imagenet/train out/train-%06d.tar" in out
    assert out.count("$ wds-shard") == 5  # and one behind a pipe
    options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    assert len(options) > 25
    assert all(name in out for name in options)
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))
    assert run("-h")[1] == out


def test_json(tree: Path, tmp_path: Path) -> None:
    found = json.loads(good(tree, tmp_path / "out", "--json", "--maxcount", "20", "--workers", "2", "--sync"))
    assert found.pop("seconds") >= 0
    assert found == {
        "shards": 2,
        "samples": 30,
        "nbytes": sum(p.stat().st_size for p in shards(tmp_path / "out")),
        "kept": 0,
        "complete": False,
        "indexes": [str(tmp_path / "out/in.wdsindex")],
        "skipped": {},
    }
    assert json.loads(good(tree, tmp_path / "out", "--json", "--maxcount", "20"))["complete"]


@pytest.mark.parametrize(
    ("text", "nbytes"), [("9kB", 9000), ("8KiB", 8192), ("0.01 MB", 10_000), ("7777", 7777), ("9k", 9000)]
)
def test_maxsize(tree: Path, tmp_path: Path, text: str, nbytes: int) -> None:
    good(tree, tmp_path / "out", "--maxsize", text)
    sizes = [p.stat().st_size for p in shards(tmp_path / "out")]
    assert max(sizes) <= nbytes
    assert sum(sizes[:2]) > nbytes


def test_maxcount(tree: Path, tmp_path: Path) -> None:
    good(tree, tmp_path / "out", "--maxcount", "7")
    assert [len(samples(tmp_path / "out", p.name)) for p in shards(tmp_path / "out")] == [7, 7, 7, 7, 2]


def test_shuffle_and_seed(tree: Path, tmp_path: Path) -> None:
    for name, options in {"a": ["--no-shuffle"], "b": ["--shuffle"], "c": [], "d": ["--seed", "5"]}.items():
        good(tree, tmp_path / name, *options)
    assert keys(tmp_path / "a") == sorted(keys(tmp_path / "a"))
    assert keys(tmp_path / "b") == keys(tmp_path / "c")
    assert len({tuple(keys(tmp_path / name)) for name in "abcd"}) == 3


def test_split_and_by(tree: Path, tmp_path: Path) -> None:
    good(tree, tmp_path / "out", "--split", "train=0.8, val=.2", "--by", "cls")
    train, val = (samples(tmp_path / "out", name) for name in ("train", "val"))
    assert sorted(s["cls"] for s in val.values()) == [b"0", b"0", b"1", b"1", b"2", b"2"]
    assert len(train) == 24
    good(tree, tmp_path / "x-%d.tar", "--split", "a=0.5,b=0.5")
    assert len(samples(tmp_path, "x-a-") | samples(tmp_path, "x-b-")) == 30


def test_layout_and_keys(tree: Path, tmp_path: Path) -> None:
    put(tree, {"readme.txt": b"x"})
    assert "--layout" in str(call(tree, tmp_path / "out").exception)
    good(tree, tmp_path / "flat", "--layout", "flat", "--keys", "number")
    assert keys(tmp_path / "flat") == [f"{i:06d}" for i in range(31)]
    good(tree, tmp_path / "classes", "--layout", "classes")
    assert len(keys(tmp_path / "classes")) == 30


def test_dotted_fields(tmp_path: Path) -> None:
    put(tmp_path / "in", {"a.0.jpg": b"0", "a.1.jpg": b"1"})
    good(tmp_path / "in", tmp_path / "out", "--dotted-fields")
    assert samples(tmp_path / "out") == {"a": {"0.jpg": b"0", "1.jpg": b"1"}}


def test_paths_on_stdin(tree: Path, tmp_path: Path) -> None:
    names = [os.path.relpath(p, tmp_path) for p in sorted(tree.rglob("*.JPEG"))][:4]
    for number, (options, end) in enumerate(((["-0"], "\0"), (["--null"], "\0"), ([], "\n"))):
        out = tmp_path / f"out{number}"
        code, _, err = run("-", out, *options, stdin=os.fsencode(end.join(names) + end), cwd=tmp_path)
        assert code == 0, err
        assert keys(out) == [name.removesuffix(".JPEG") for name in names]
    assert run("-", tmp_path / "x", stdin=b"")[0] == 1


def test_manifest_options(tmp_path: Path) -> None:
    put(
        tmp_path, {"i/a.png": b"image", "i/b.png": b"mask", "set.csv": "n,im,mask,note,x\nk1,i/a.png,i/b.png,hello,5\n"}
    )
    given = [
        "--files",
        "im",
        "--files",
        "mask=seg.png",
        "--inline",
        "note",
        "--key-column",
        "n",
        "--column",
        "json:x,note",
    ]
    good(tmp_path / "set.csv", tmp_path / "out", *given)
    assert samples(tmp_path / "out") == {
        "k1": {"png": b"image", "seg.png": b"mask", "note": b"hello", "json": b'{"x": 5}'}
    }
    assert Index.load(tmp_path / "out/set.wdsindex").lifted() == ["json:x", "note"]


def test_column(tree: Path, tmp_path: Path) -> None:
    good(tree, tmp_path / "out", "--column", "cls", "--column", ".jpeg")
    assert Index.load(tmp_path / "out/in.wdsindex").lifted() == ["cls", "jpeg"]
    assert "every index has a column" in str(call(tree, tmp_path / "x", "--column", "shard").exception)


def test_reshard_options(tree: Path, tmp_path: Path) -> None:
    good(tree, tmp_path / "old/a-%03d.tar", "--maxcount", "9")
    source = tmp_path / "old/a-{000..003}.tar"
    good(source, tmp_path / "new", "--rename", "jpeg=jpg", "--drop", "cls")
    assert {f for s in samples(tmp_path / "new").values() for f in s} == {"jpg"}
    good(source, tmp_path / "kept", "--keep", "cls,jpeg", "--rename", "cls=label", "--rename", "jpeg=x")
    assert {f for s in samples(tmp_path / "kept").values() for f in s} == {"label", "x"}


def test_resize_options(tmp_path: Path) -> None:
    put(tmp_path / "in", {"a.jpg": jpeg(80, 60), "a.thumb.jpg": jpeg(40, 40)})
    good(tmp_path / "in", tmp_path / "out", "--resize", "30", "--quality", "30", "--resize-fields", "jpg")
    found = samples(tmp_path / "out")["a"]
    assert found["thumb.jpg"] == jpeg(40, 40)
    good(tmp_path / "in", tmp_path / "fine", "--resize", "30", "--quality", "99")
    fine = samples(tmp_path / "fine")["a"]
    assert len(found["jpg"]) < len(fine["jpg"])
    assert len(fine["thumb.jpg"]) != len(jpeg(40, 40))


def test_dry_run_writes_nothing(tree: Path, tmp_path: Path) -> None:
    out = good(tree, tmp_path / "new/t-%d.tar", "--dry-run", "--maxcount", "8")
    assert out.startswith(f"{tmp_path}/new/t-%d.tar: 4 shards, 30 samples, ")
    plan = json.loads(good(tree, tmp_path / "new", "--dry-run", "--json", "--split", "a=0.5,b=0.5", "--no-shuffle"))
    assert (plan["state"], plan["shuffle"], plan["skipped"]) == ("fresh", False, [])
    assert [t["split"] for t in plan["targets"]] == ["a", "b"]
    assert sum(t["samples"] for t in plan["targets"]) == 30
    assert "images made smaller" in good(tree, tmp_path / "new", "--dry-run", "--resize", "9")
    assert "as many samples as the stream has" in good("pipe:cat x.tar", tmp_path / "new", "--dry-run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    wanted = json.loads(good(tree, tmp_path / "out", "--dry-run", "--json"))["targets"][0]
    assert json.loads(good(tree, tmp_path / "out", "--json"))["nbytes"] == wanted["nbytes"]
    before = everything(tmp_path / "out")
    assert "all of it is there already" in good(tree, tmp_path / "out", "--dry-run")
    assert call(tree, tmp_path / "out", "--dry-run", "--maxcount", "3").exit_code == 1
    good(tree, tmp_path / "out", "--dry-run", "--maxcount", "3", "--overwrite")
    assert everything(tmp_path / "out") == before


def test_on_error(tree: Path, tmp_path: Path) -> None:
    (tree / "n01/img_003.JPEG").unlink()
    (tree / "n01/img_003.JPEG").symlink_to("nowhere")
    code, _, err = run(tree, tmp_path / "out", "--on-error", "stop")
    assert code == 1
    assert err == f"wds-shard: {tree}/n01/img_003.JPEG: no such file or directory: a dangling link?\n"
    code, out, err = run(tree, tmp_path / "out", "--on-error", "skip", "--json")
    assert code == 0
    assert "1 left out (see skipped.jsonl): 1 no such file or directory" in err
    assert json.loads(out)["skipped"] == {"no such file or directory": 1}
    line = json.loads((tmp_path / "out/skipped.jsonl").read_text())
    assert line == {
        "key": "n01/img_003", "file": f"{tree}/n01/img_003.JPEG", "reason": "no such file or directory", "set": "in",
    }  # fmt: skip
    assert "left out: 1" in good(tree, tmp_path / "x", "--dry-run", "--on-error", "skip")


def test_overwrite(tree: Path, tmp_path: Path) -> None:
    good(tree, tmp_path / "out", "--maxcount", "5")
    code, _, err = run(tree, tmp_path / "out", "--maxcount", "10")
    assert code == 1
    assert "--maxcount was 5 and is 10" in err
    assert "--overwrite" in err
    good(tree, tmp_path / "out", "--maxcount", "10", "--overwrite")
    assert len(shards(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    "args",
    [
        [], ["in"], ["in", "out", "more"],
        ["in", "out", "--maxcount", "0"], ["in", "out", "--maxsize", "5XB"], ["in", "out", "--maxsize", "0"],
        ["in", "out", "--split", "train=0.9"], ["in", "out", "--split", "a=0.5,a=0.5"], ["in", "out", "--split", "a"],
        ["in", "out", "--split", "a=1,b=0"], ["in", "out", "--quality", "101"], ["in", "out", "--resize", "0"],
        ["in", "out", "--rename", "a"], ["in", "out", "--rename", "a="], ["in", "out", "--files", "=x"],
        ["in", "out", "--on-error", "ignore"], ["in", "out", "--lift", "cls"], ["in", "out", "--workers", "0"],
        ["in", "out", "--layout", "x"], ["in", "out", "--keys", "x"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(args: list[str]) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert "Error" in result.stderr


def test_exit_codes(tree: Path, tmp_path: Path) -> None:
    assert run(tree, tmp_path / "out", "--maxsize", "none")[0] == 2
    for args in ((tmp_path / "gone", tmp_path / "out"), (tree, tmp_path / "a.tar"), (tree, "s3://b/x-%d.tar")):
        code, out, err = run(*args)
        assert (code, out) == (1, "")
        assert err.startswith("wds-shard: ")
        assert "Traceback" not in err
    (tmp_path / "file").write_text("")
    code, _, err = run(tree, tmp_path / "file/x-%d.tar")
    assert code == 1
    assert "Traceback" not in err


def test_zero_samples(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code, _, err = run(tmp_path / "in", tmp_path / "out")
    assert (code, err) == (1, f"wds-shard: {tmp_path}/in: no files to make samples of\n")
    (tmp_path / "e.tar").write_bytes(make_tar([]))
    code, _, err = run(tmp_path / "e.tar", tmp_path / "out")
    assert code == 1
    assert not (tmp_path / "out").exists()


def start(*args: str | Path, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **more
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    out, err = process.communicate(timeout=60)
    assert out == b""
    return process.returncode, err.decode()


KILLED = {
    "copies": ["--maxcount", "5", "--workers", "2"],
    "splits": ["--maxcount", "9", "--split", "train=0.8,val=0.2", "--by", "cls"],
    "images": ["--maxcount", "30", "--workers", "2", "--resize", "24"],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", KILLED)
def test_kill_9_at_any_moment(tmp_path: Path, options: str) -> None:
    image_tree(tmp_path / "in", classes=4, each=100)
    args = KILLED[options]
    began = time.monotonic()
    assert run(tmp_path / "in", tmp_path / "whole/t-%06d.tar", *args)[0] == 0
    whole, seconds = everything(tmp_path / "whole"), time.monotonic() - began
    seed = random.randrange(10**6)
    print(f"seed {seed}, {seconds:.2f} s undisturbed")  # noqa: T201
    rng = random.Random(seed)
    for number in range(3):
        out = tmp_path / f"out{number}"
        process = start(tmp_path / "in", out / "t-%06d.tar", *args)
        time.sleep(rng.uniform(0.3 * seconds, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
        left = sorted(everything(out)) if out.exists() else []
        code, _, err = run(tmp_path / "in", out / "t-%06d.tar", *args)
        assert code == 0, (left, err)
        assert everything(out) == whole, left


def wait_for_shards(process: subprocess.Popen[bytes], out: Path) -> None:
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end and not (out.exists() and shards(out)):
        time.sleep(0.002)


@pytest.mark.parametrize(
    "options", [["--workers", "2", "--sync"], ["--workers", "2", "--resize", "24"]], ids=["copies", "images"]
)
def test_ctrl_c(tmp_path: Path, options: list[str]) -> None:
    image_tree(tmp_path / "in", classes=4, each=150)
    for number in range(10):  # until the signal comes before the end
        out = tmp_path / f"out{number}"
        process = start(tmp_path / "in", out, *options, "--maxcount", "3")
        wait_for_shards(process, out)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        code, err = finish(process)
        if code:
            break
    assert code == 130
    assert err.splitlines() == ["wds-shard: stopped; the same command again goes on from here", "Interrupted"]
    assert 0 < len(shards(out)) <= 200
    assert not [path for path in out.iterdir() if path.suffix == ".wdsindex"], "it was not done"
    assert not [name for name in hidden(out) if name.endswith(".tmp")]
    for path in shards(out):
        samples_of(path.read_bytes())  # whole
    assert run(tmp_path / "in", out, *options, "--maxcount", "3")[0] == 0
    assert run(tmp_path / "in", tmp_path / "whole", *options, "--maxcount", "3")[0] == 0
    assert everything(out) == everything(tmp_path / "whole")


def test_two_at_once(tmp_path: Path) -> None:
    image_tree(tmp_path / "in", classes=4, each=150)
    out = tmp_path / "out"
    first = start(tmp_path / "in", out, "--maxcount", "3", "--workers", "1", "--sync")
    wait_for_shards(first, out)
    os.kill(first.pid, signal.SIGSTOP)
    assert first.poll() is None
    try:
        code, _, err = run(tmp_path / "in", out, "--maxcount", "2")
        more = run(tmp_path / "in", out, "--maxcount", "9", "--overwrite")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    for number, text in ((code, err), (more[0], more[2])):
        assert number == 1
        assert "another wds-shard is at work on this destination" in text
    assert finish(first)[0] == 0
    assert len(samples(out)) == 600


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    put(tmp_path / "in", {f"n/{i}.bin": bytes(30_000) for i in range(20)})

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    code, err = finish(start(tmp_path / "in", tmp_path / "out", preexec_fn=limit))
    assert code == 1
    assert "a file may not be so large" in err
    assert "run the same command again" in err
    assert shards(tmp_path / "out") == []
    assert hidden(tmp_path / "out") == [".in.wdsjob"]
    assert run(tmp_path / "in", tmp_path / "out")[0] == 0
    assert len(samples(tmp_path / "out")) == 20


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    image_tree(tmp_path / "in", classes=4, each=10)
    fifo = tmp_path / "in.tar"
    os.mkfifo(fifo)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    process = subprocess.Popen([*COMMAND, f"pipe:cat {fifo}", tmp_path / "out", "--maxcount", "5"], stderr=slave)
    os.close(slave)
    data = make_tar([(f"{i:03d}.bin", bytes(200_000)) for i in range(40)])
    with open(fifo, "wb", buffering=0) as pipe:
        for at in range(0, len(data), len(data) // 8):
            pipe.write(data[at : at + len(data) // 8])
            time.sleep(0.35)  # the bar appears after two seconds
    said = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        said += chunk
    os.close(master)
    assert process.wait(20) == 0
    text = said.decode()
    assert "writing: " in text
    assert " samples/s" in text
    assert " MB/s" in text


def test_a_subset_of_shards(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tree, tmp_path / "a/x-%06d.tar", "--checksum", "sample", "--verify")[0] == 0
    (tmp_path / "t.csv").write_text("key,loss\n" + "".join(f"{k},{i}\n" for i, k in enumerate(keys(tmp_path / "a"))))
    (tmp_path / "recipe_of_the_command.py").write_text("def same(sample):\n    return sample\n")
    monkeypatch.chdir(tmp_path)
    chosen = ["--join", tmp_path / "t.csv", "--where", "loss > 1", "--sort-by", "loss", "--desc", "--sample", "3"]
    assert run(tmp_path / "a", tmp_path / "b", *chosen)[0] == 0
    code, _, err = run(tmp_path / "a", tmp_path / "c", *chosen, "--map", "recipe_of_the_command:same", "--workers", "1")
    assert code == 0, err
    assert len(keys(tmp_path / "b")) == 3
    assert samples(tmp_path / "b") == samples(tmp_path / "c")
    assert (
        keys(tmp_path / "b")
        == keys(tmp_path / "c")
        == sorted(keys(tmp_path / "b"), key=keys(tmp_path / "a").index)[::-1]
    )


def test_a_cluster_that_is_not_there(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = call(tree, tmp_path / "none", "--engine", "ray", "--address", "127.0.0.1:1")
    assert isinstance(done.exception, StoreError)
    assert "ray at 127.0.0.1:1: cannot be reached" in str(done.exception)
    assert list(tmp_path.glob("none/*.tar")) == []


def test_every_option_is_tried() -> None:
    text = Path(__file__).read_text()
    for parameter in command.params:
        for name in [*parameter.opts, *parameter.secondary_opts]:
            assert f'"{name}"' in text or not name.startswith("-"), name
