"""The command `shardsum` as a process, and what `wdstools.cli.common` does for every command."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator
from pathlib import Path

import braceexpand
import pytest
from commands import Call, caller
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import labelled, touch, write_shards

from wdstools import build
from wdstools.cli.common import human

SHARDSUM = [sys.executable, "-c", "from wdstools.cli.shardsum import main; main()"]
TRAIN = [f"train-{i:06d}.tar" for i in range(147)]


def shardsum(*args: str | bytes, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    done = subprocess.run([*SHARDSUM, *args], input=stdin, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def lines(names: list[str], end: str = "\n") -> bytes:
    return os.fsencode("".join(name + end for name in names))


def test_arguments_and_stdin_give_the_same() -> None:
    expected = (0, b"train-{000000..000146}.tar\n", b"")
    assert shardsum(*TRAIN) == expected
    assert shardsum(stdin=lines(TRAIN)) == expected
    assert shardsum(stdin=lines(TRAIN)[:-1]) == expected
    assert shardsum("-0", stdin=lines(TRAIN, "\0")) == expected


def test_empty_stdin_prints_nothing() -> None:
    assert shardsum() == (0, b"", b"")
    assert shardsum(stdin=b"\n\n") == (0, b"", b"")
    code, out, err = shardsum("--json")
    assert (code, err) == (0, b"")
    assert json.loads(out) == {"patterns": [], "count": 0, "missing": [], "duplicates": []}


def test_missing_is_a_report() -> None:
    names = [name for name in TRAIN if name not in TRAIN[3:5] + TRAIN[9:10]]
    assert shardsum("--missing", stdin=lines(names)) == (0, b"train-{000003..000004}.tar\ntrain-000009.tar\n", b"")
    assert shardsum("--missing", stdin=lines(TRAIN)) == (0, b"", b"")


def test_json() -> None:
    code, out, err = shardsum("--json", "é-1", "é-2", "b c", "é-4", "é-2")
    assert (code, err) == (0, b"")
    assert json.loads(out) == {
        "patterns": [r"b\ c", "é-{1..2}", "é-4"],
        "count": 4,
        "missing": ["é-3"],
        "duplicates": ["é-2"],
    }
    assert "é".encode() in out


def test_duplicates_are_told_on_stderr() -> None:
    code, out, err = shardsum("a", "a", "b")
    assert (code, out) == (0, b"a\nb\n")
    assert err == b"shardsum: 1 name(s) given more than once, such as 'a'\n"


def test_names_that_are_no_utf8() -> None:
    names = [b"\xff-0", b"\xff-1"]
    assert shardsum(*names) == (0, b"\xff-{0..1}\n", b"")
    assert shardsum(stdin=b"\n".join(names)) == (0, b"\xff-{0..1}\n", b"")
    code, out, _ = shardsum("--json", stdin=b"\n".join(names))
    assert code == 0
    assert os.fsencode(json.loads(out)["patterns"][0]) == b"\xff-{0..1}"


@settings(max_examples=15, deadline=None)
@given(st.sets(st.text("ab01 {},\\$'\"\n:é", min_size=1, max_size=6), max_size=20))
def test_nul_separated_names_come_back(names: set[str]) -> None:
    code, out, err = shardsum("-0", "--json", stdin=lines(sorted(names), "\0"))
    assert (code, err) == (0, b"")
    summary = json.loads(out)
    assert summary["count"] == len(names)
    assert sorted(n for pattern in summary["patterns"] for n in braceexpand.braceexpand(pattern)) == sorted(names)


def test_wrong_usage() -> None:
    code, out, err = shardsum("--no-such-option")
    assert (code, out) == (2, b"")
    assert b"--no-such-option" in err
    assert b"Usage: shardsum" in err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_has_examples(flag: str) -> None:
    code, out, err = shardsum(flag)
    assert (code, err) == (0, b"")
    assert b"ls /data/imagenet | shardsum" in out


def in_shell(script: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "--norc", "-c", script, "bash", *SHARDSUM]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("flag", ["", "--json", "--missing"])
def test_closed_pipe_is_silent(flag: str) -> None:
    scattered = lines([f"train-{i:06d}.tar" for i in range(0, 60_000, 2)])
    done = in_shell(f'"$@" {flag} | head -1; echo "${{PIPESTATUS[0]}}"', scattered)
    first, code = done.stdout.splitlines()
    assert (code, done.stderr) == (b"0", b"")
    assert first == {"": b"train-000000.tar", "--json": b"{", "--missing": b"train-000001.tar"}[flag]


def test_closed_pipe_is_silent_for_the_last_bytes() -> None:
    done = in_shell('{ sleep 0.3; "$@" a --help; echo "$?" >&2; } | true')
    assert done.stderr == b"0\n"
    done = in_shell('{ sleep 0.3; "$@" a; echo "$?" >&2; } | true')
    assert done.stderr == b"0\n"


def test_stdout_that_fails() -> None:
    done = in_shell('"$@" a > /dev/full')
    assert (done.returncode, done.stderr) == (1, b"shardsum: No space left on device\n")
    done = in_shell('"$@" a >&-')
    assert (done.returncode, done.stderr) == (1, b"shardsum: stdout is closed\n")
    done = in_shell('"$@" <&-')
    assert (done.returncode, done.stderr) == (1, b"shardsum: stdin is closed\n")


def test_interrupt() -> None:
    with subprocess.Popen(SHARDSUM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * 300_000)  # more than a pipe holds: when it is written, the command is reading
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        process.stdin = None
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"Interrupted\n")


# ------------------------------------------------------------------------------------------------------ cli/common


def run_body(body: str) -> tuple[int, bytes, bytes]:
    """Run a command whose body is `body`."""
    code = "import os, sys, click, wdstools.errors as e\nfrom wdstools.cli.common import *\n"
    code += "@click.command('demo')\ndef command():\n" + textwrap.indent(body, "    ") + "\nrun(command)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


BROKEN_SOCKET = "a, b = os.pipe(); os.close(a); print('x'); os.write(b, b'x')"


@pytest.mark.parametrize(
    ("body", "code", "out", "err"),
    [
        ("emit(['a', 'b'])", 0, b"a\nb\n", b""),
        ("click.echo('1'); emit(['2']); print('3')", 0, b"1\n2\n3\n", b""),
        ("emit_json({'a': [1]})", 0, b'{\n  "a": [\n    1\n  ]\n}\n', b""),
        ("return 1", 1, b"", b""),
        ("return 'text'", 0, b"", b""),
        ("click.get_current_context().exit(3)", 3, b"", b""),
        ("raise e.UrlError('no such thing')", 1, b"", b"demo: no such thing\n"),
        ("print('x'); raise e.TruncatedError('cut', 'a.tar', 512)", 1, b"x\n", b"demo: a.tar: cut at byte 512\n"),
        ("open('/no/such/file')", 1, b"", b"demo: /no/such/file: No such file or directory\n"),
        (BROKEN_SOCKET, 1, b"x\n", b"demo: Broken pipe\n"),
        ("raise click.ClickException('bad')", 1, b"", b"Error: bad\n"),
        ("raise click.Abort()", 130, b"", b"Interrupted\n"),
        ("raise KeyboardInterrupt", 130, b"", b"Interrupted\n"),
    ],
)
def test_run_turns_outcomes_into_exit_codes(body: str, code: int, out: bytes, err: bytes) -> None:
    assert run_body(body) == (code, out, err)


def test_run_leaves_bugs_their_traceback() -> None:
    code, _, err = run_body("1 / 0")
    assert code == 1
    assert b"Traceback" in err
    assert b"ZeroDivisionError" in err


PROGRESS = "with progress(10, 'shards', 'index') as bar:\n    AGE\n    bar.update(5)\n    bar.update(5)"
OLD = "vars(bar).update({name: vars(bar).get(name, 0) - 10 for name in ('start_t', 'last_print_t')})"


@pytest.mark.parametrize(
    ("age", "disable", "shown"), [("pass", "", False), (OLD, "", True), (OLD, ", disable=True", False)]
)
def test_progress_on_a_terminal_after_two_seconds(age: str, disable: str, shown: bool) -> None:
    body = PROGRESS.replace("AGE", age).replace("'index'", "'index'" + disable)
    code = "from wdstools.cli.common import progress\n" + body
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))
    try:
        subprocess.run([sys.executable, "-c", code], stderr=theirs, timeout=60, check=True)
        os.write(theirs, b"end")
        seen = b""
        while not seen.endswith(b"end"):  # a terminal hands out what it has, in pieces
            seen += os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"index" in seen and b"5/10 " in seen) is shown
    assert shown or seen == b"end"


def test_progress_is_silent_off_a_terminal() -> None:
    assert run_body(PROGRESS.replace("AGE", OLD)) == (0, b"", b"")


def test_start_is_light() -> None:
    heavy = "{'numpy', 'tqdm', 'json', 'torch', 'pyarrow', 'fsspec', 'webdataset', 'urllib.parse', 'wdstools.urls'}"
    code = f"import sys, wdstools.cli.shardsum; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------------------------------------------------- shardsum -l


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    yield from caller("wdstools.cli.shardsum", capfdbinary, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """out/: train, with a gap and an index, and val, without."""
    (tmp_path / "out").mkdir()
    train = write_shards(tmp_path / "out", [labelled(["1", "2"], prefix=f"p{i}/") for i in range(4)], "train-%06d.tar")
    os.unlink(train.pop(2))
    build.build(train).save(tmp_path / "out" / "train.wdsindex")
    write_shards(tmp_path / "out", [[("a.jpg", b"x" * 5000)]], "val-%d.tar")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


TABLE = """\
shards  samples  members    bytes  fields       missing                index  names
     3        6       12  30.7 kB  cls 1 bytes  out/train-000002.tar   fresh  out/train-{000000..000001}.tar
                                   txt 4 bytes                                out/train-000003.tar
     1        1        1  10.2 kB  jpg 5.0 kB   -                      none   out/val-0.tar
"""
COUNTED = b"shardsum: out/val-0.tar: counted from headers; `wds-index build` writes an index that is up to date\n"


def test_long(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("-l", "out")
    assert (done.code, [line.split() for line in done.lines]) == (0, [line.split() for line in TABLE.splitlines()])
    assert done.err == COUNTED
    heads = [done.lines[0].index(name) for name in ("fields", "missing", "index", "names")]
    for line, columns in (
        (1, ["cls", "out/train-000002", "fresh", "out/train-{"]),
        (3, ["jpg", "-", "none", "out/val"]),
    ):
        assert [done.lines[line].index(text, at) for text, at in zip(columns, heads, strict=True)] == heads
    monkeypatch.chdir(folder)
    assert [line.split()[-1] for line in call("--long").lines] == [
        "names", "train-{000000..000001}.tar", "train-000003.tar", "val-0.tar",
    ]  # fmt: skip


def test_long_json(call: Call, folder: Path) -> None:
    done = call("-l", "out", "--json")
    train, val = json.loads(done.out)["sets"]
    assert train["patterns"] == ["out/train-{000000..000001}.tar", "out/train-000003.tar"]
    assert (train["shards"], train["samples"], train["members"], train["nbytes"]) == (3, 6, 12, 30720)
    assert (train["counted"], train["missing"]) == ("index", ["out/train-000002.tar"])
    assert train["index"] == {"path": str(Path("out/train.wdsindex")), "state": "fresh"}
    assert val["fields"] == {"jpg": {"samples": 1, "nbytes": 5000, "mean": 5000.0}}
    assert (val["counted"], val["index"]["state"]) == ("headers", "none")


def test_long_of_what_has_changed(call: Call, folder: Path) -> None:
    touch(folder / "train-000000.tar")
    os.unlink(folder / "train-000001.tar")
    write_shards(folder, [labelled(["9"])], "train-%06d.tar", first=4)
    done = call("-l", "out")
    assert "stale: 1 changed, 1 new, 1 gone" in done.lines[1]
    assert done.lines[1].split()[:3] == ["3", "5", "10"]
    os.truncate(folder / "train-000003.tar", 700)
    done = call("-l", "out")
    assert done.code == 1
    assert done.lines[1].split()[:5] == ["?", "?", "?", "?", "broken"]
    assert done.lines[-1].split()[:3] == ["1", "1", "1"]
    assert b"shardsum: out/train-000003.tar: truncated in a member at byte 700\n" in done.err
    sets = json.loads(call("-l", "out", "--json").out)["sets"]
    assert "at byte 700" in sets[0]["error"]
    assert sets[1]["samples"] == 1


def test_long_takes_names_from_stdin(folder: Path) -> None:
    names = [f"out/{name}" for name in os.listdir(folder) if name.endswith(".tar")]
    code, out, err = shardsum("-l", "-", stdin=lines(names))
    assert (code, err) == (0, COUNTED)
    assert [line.split() for line in out.decode().splitlines()] == [line.split() for line in TABLE.splitlines()]


def test_long_says_what_is_wrong(call: Call, folder: Path) -> None:
    (folder.parent / "empty").mkdir()
    for args, code, text in [
        (["-l", "empty"], 1, b"shardsum: empty: no .tar in this folder\n"),
        (["-l", "nosuch.tar"], 1, b"nosuch.tar: No such file or directory"),
        (["-l", "out", "--missing"], 2, b"leave --missing out"),
    ]:
        done = call(*args)
        assert (done.code, text in done.err) == (code, True), done


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (999, "999 bytes"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (31_157_760, "31.2 MB"),
        (1.5e15, "1.5 PB"),
        (2e18, "2000 PB"),
    ],
)
def test_bytes_for_people(nbytes: float, text: str) -> None:
    assert human(nbytes) == text
