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

import braceexpand
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
