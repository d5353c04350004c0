"""`pipe:` commands: every name is safe in every shell, by running them; braces survive; programs do not lie or hang."""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset as wds
from helpers import make_tar
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.shardlists import expand_urls

from tests.faultproxy import proxied
from tests.servers import Servers
from wdstools import pipes, stream, urls
from wdstools.errors import NotFoundError, UrlError

DATA = random.Random(3).randbytes(300_000)
HOSTILE = [
    "plain.tar", "a b.tar", "it's.tar", 'say "x".tar', "$(touch ran).tar", "`touch ran`.tar", "a;touch ran;.tar",
    "a\nb.tar", "$HOME.tar", "*.tar", "a&b|c>d<e.tar", "-n", "--help", "~", "#x", "!x!", "\\back\\slash\\", "{1,2}.tar",
    "{0..3}", "a::b.tar", "100%s.tar", "é\udcff.tar", "a'\"'b'", "(x)", "[a-z]?", "${WDS_NO}", "tab\there", "=x", "=",
]  # fmt: skip
STUBS = ["aws", "gcloud", "gsutil", "az", "ssh", "fread", "curl", "mbuffer"]
SHELLS = ["sh", "bash"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in front of the PATH: wds-cat, and an fread of five letters."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "fread", 'exec cat -- "$@"')
    package = Path(pipes.__file__).parent.parent
    code = f"import sys; sys.path.insert(0, {str(package)!r}); from wdstools.cli.cat import main; main()"
    script(folder / "wds-cat", f'exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"')
    monkeypatch.setenv("PATH", f"{folder}:/usr/local/bin:/usr/bin:/bin:/usr/sbin")
    return folder


@pytest.fixture
def stubs(programs: Path) -> Path:
    """Programs that write down how they were called."""
    for name in STUBS:
        script(programs / name, f'printf "%s\\0" "$0" "$@" > {shlex.quote(str(programs / "called"))}')
    return programs / "called"


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(url: str, shell: str = "sh") -> bytes:
    """As webdataset would, but with an error that tells."""
    assert url.startswith("pipe:")
    done = subprocess.run([shell, "-c", url[5:]], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, (url, done.stderr)
    return done.stdout


def one(pattern: str) -> str:
    """The only URL that a pattern stands for, to webdataset and to us."""
    (ours,) = urls.expand(pattern)
    if "\n" not in pattern:  # braceexpand's backslash does not reach a newline
        assert expand_urls(pattern) == [ours]
    return ours


# names


@pytest.mark.parametrize("via", ["cat", "fread", "mbuffer", None])
def test_hostile_files(via: str | None, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    for number, name in enumerate(HOSTILE):
        data = b"%d" % number * 1000
        Path(name).write_bytes(data)
        for folder in ("", "./", f"{tmp_path}/d/"):
            url = one(urls.pipe(urls.escape(folder + name), via))
            for shell in SHELLS if folder == "" else SHELLS[:1]:
                assert run(url, shell) == data, name
    assert not Path("ran").exists()


def test_hostile_files_through_wds_cat_and_a_buffer(programs: Path, tmp_path: Path) -> None:
    names = [f"{tmp_path}/{name}" for name in HOSTILE if "%" not in name][::3]
    for number, name in enumerate(names):
        Path(name).write_bytes(b"%d" % number * 1000)
        assert run(one(urls.pipe(urls.escape(name), "wds-cat"))) == b"%d" % number * 1000
        assert run(one(urls.pipe(urls.escape(name), "cat", buffer="1M"))) == b"%d" % number * 1000


def called(stubs: Path, url: str) -> list[str]:
    run(url)
    return stubs.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]


def test_every_program_gets_the_name(stubs: Path, tmp_path: Path) -> None:
    for name in HOSTILE:
        pattern = urls.escape(f"b/{name}")
        words = called(stubs, one(urls.pipe(f"s3://{pattern}", "aws")))
        assert (words[-2:], words[1:3]) == ([f"s3://b/{name}", "-"], ["s3", "cp"])
        words = called(stubs, one(urls.pipe(f"az://{pattern}", "az")))
        assert f"--name={name}" in words
        assert "--container-name=b" in words
        words = called(stubs, one(urls.pipe(f"http://h/{pattern}", "curl")))
        assert words[-2:] == ["--url", f"http://h/b/{name}"]
        words = called(stubs, one(urls.pipe(f"ssh://me@h:2222/{pattern}", "ssh")))
        assert words[-5:-1] == ["-p", "2222", "--", "me@h"]
        assert shlex.split(words[-1]) == ["cat", "--", f"/b/{name}"]
        if not set(name) & set("*?[]"):
            assert called(stubs, one(urls.pipe(f"gs://{pattern}", "gsutil")))[-2:] == ["cat", f"gs://b/{name}"]
            assert called(stubs, one(urls.pipe(f"gs://{pattern}", "gcloud")))[1:] == [
                "storage",
                "cat",
                f"gs://b/{name}",
            ]
        else:
            with pytest.raises(UrlError, match="wildcards"):
                urls.pipe(f"gs://{pattern}", "gsutil")
    assert called(stubs, urls.pipe("ssh://h/~/a b", "ssh"))[-1] == "cat -- 'a b'"
    assert "--account-name=acc" in called(stubs, urls.pipe("az://c@acc.blob.core.windows.net/n", "az"))


def test_a_shell_behind_ssh(programs: Path, tmp_path: Path) -> None:
    """The remote side has a shell too: what ssh hands to it is quoted twice."""
    script(programs / "ssh", 'for last; do :; done; exec sh -c "$last"')
    for name in HOSTILE:
        (tmp_path / name).write_bytes(name.encode("utf-8", "surrogateescape"))
        url = one(urls.pipe(f"ssh://h{urls.escape(str(tmp_path / name))}"))
        assert run(url) == name.encode("utf-8", "surrogateescape")


def test_options(stubs: Path) -> None:
    words = ["-H", "@a b", "{x,y}::z\\", "it's"]
    url = one(urls.pipe("http://h/x.tar", "curl", options=words))
    assert called(stubs, url)[-6:-2] == words
    assert called(stubs, urls.pipe("s3://b/x", "aws", options=["--profile", "p"]))[-4:] == [
        "--profile",
        "p",
        "s3://b/x",
        "-",
    ]
    assert called(stubs, urls.pipe("az://b/x", "az", options=["--auth-mode", "login"]))[-5:-3] == [
        "login", "--container-name=b",
    ]  # fmt: skip


# patterns

ALPHABET = st.sampled_from(
    ["a", "0", "{", "}", ",", "..", "1", "'", '"', "\\", "$", " ", "(", ";", ":", "*", "-", "/", "é"]
)


@example("\\", "curl")  # the last backslash means itself
@example("a\\\\\\", "ssh")
@example("{0,1}\\", "aws")
@given(st.lists(ALPHABET, max_size=14).map("".join), st.sampled_from(["curl", "aws", "ssh", "wds-cat", "cat", "cat|"]))
def test_quoting_and_expanding_commute(text: str, via: str) -> None:
    """What the pattern of commands expands to is the commands of what the pattern expands to."""
    head = {"curl": "http://h/", "aws": "s3://b/", "ssh": "ssh://h/"}.get(via, "./")
    buffer = "1M" if via.endswith("|") else None
    try:
        names = urls.expand(head + text)
        commands = urls.pipe(head + text, via.rstrip("|"), buffer=buffer, check=False)
    except UrlError:  # unbalanced, or :: in front of something that is no URL of this kind
        return
    if "::" in text:
        return
    words = [shlex.split(url[5:]) for url in urls.expand(commands)]
    found = [call[-2] if via == "aws" else call[-1] for call in words]
    if via == "ssh":
        found = [f"ssh://h{shlex.split(remote)[-1]}" for remote in found]
    assert found == names
    assert expand_urls(commands) == urls.expand(commands)


def test_a_pattern(programs: Path) -> None:
    url = urls.pipe("s3://b/train-{000000..000146}.tar", "wds-cat")
    assert url == "pipe:wds-cat --literal --timeout 30 's3://b/train-{000000..000146}.tar'"
    assert urls.expand(url)[146] == "pipe:wds-cat --literal --timeout 30 's3://b/train-000146.tar'"
    two = urls.pipe("/a/{0..1}.tar::/b c/{0..1}.tar", "cat")
    assert urls.expand(two) == [
        "pipe:cat '/a/0.tar'",
        "pipe:cat '/a/1.tar'",
        "pipe:cat '/b c/0.tar'",
        "pipe:cat '/b c/1.tar'",
    ]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("via", ["cat", "fread", "mbuffer", "wds-cat", "curl"])
def test_under_webdataset(via: str, programs: Path, servers: Servers, tmp_path: Path) -> None:
    folder = servers.get("http").root if via == "curl" else tmp_path
    for number in range(3):
        (folder / f"it's {number}.tar").write_bytes(make_tar([(f"{number}{k}.txt", b"x" * k) for k in range(5)]))
    base = f"{servers.get('http').url}/it's%20" if via == "curl" else f"{tmp_path}/it's "
    for buffer in (None, "1M"):
        pattern = urls.pipe(f"{base}{{0..2}}.tar", via, buffer=buffer)
        keys = [sample["__key__"] for sample in wds.WebDataset(pattern, shardshuffle=False)]
        assert keys == [f"{number}{k}" for number in range(3) for k in range(5)]
        assert [sample["__key__"] for sample in stream(pattern)] == keys


# programs


def test_what_is_chosen(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(url: str, **options: bool) -> str:
        return urls.pipe(url, **options)[5:].split()[0]

    want = {"/a/x.tar": "fread", "s3://b/x": "aws", "s3a://b/x": "aws", "gs://b/x": "gcloud", "az://b/x": "az"}
    want |= {
        "http://h/x": "wds-cat",
        "https://h/x": "wds-cat",
        "ssh://h/x": "ssh",
        "sftp://h/x": "wds-cat",
        "memory://x": "wds-cat",
    }
    assert {url: first(url, check=False) for url in want} == want
    monkeypatch.setattr(pipes, "_has", lambda name: name in {"cat", "wds-cat", "gsutil", "curl"})
    assert [first(url) for url in ("/a", "s3://b/x", "gs://b/x", "az://b/x")] == ["cat", "wds-cat", "gsutil", "wds-cat"]
    monkeypatch.setattr(pipes, "_has", lambda name: name == "curl")
    assert first("http://h/x") == "curl"


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for url, via in (("http://h/x", "curl"), ("/x", None), ("s3://b/x", "aws"), ("http://h/x", None)):
        with pytest.raises(NotFoundError, match="is not on the PATH: "):
            urls.pipe(url, via)
        assert urls.pipe(url, via, check=False).startswith("pipe:")
    script(tmp_path / "curl", "")
    with pytest.raises(NotFoundError, match="mbuffer is not on the PATH: apt-get install mbuffer"):
        urls.pipe("http://h/x", "curl", buffer="1M")


@pytest.mark.parametrize(
    ("url", "via", "text"),
    [
        ("http://h/x", "aws", "does not read"), ("/x", "curl", "choose fread, cat, wds-cat, mbuffer"),
        ("/x", "rsync", "known"), ("-", None, "no URL"), ("", None, "no URL"), ("pipe:cat x", None, "no URL"),
        ("file:///x", None, "the path"), ("s3://b/${X}", "aws", "variable"), ("{s3,gs}://b/x", None, "braces"),
        ("ssh://-oProxyCommand=x/y", "ssh", "write it as"), ("ssh://{a,b}/y", "ssh", "write it as"),
        ("ssh://h", "ssh", "write it as"), ("ssh://h:x/y", "ssh", "write it as"), ("az://c", "az", "write it as"),
        ("az://{a,b}/c", "az", "write it as"), ("a\0b", "cat", "NUL"), ("{-n,a}", "cat", "option"),
        ("\\-n", "cat", "option"), ("gs://b/*.tar", "gcloud", "wildcards"),
    ],
)  # fmt: skip
def test_refused(url: str, via: str | None, text: str) -> None:
    with pytest.raises(UrlError, match=text):
        urls.pipe(url, via, check=False)


def test_wrong_arguments() -> None:
    for options in ({"idle": 1}, {"retries": -1}, {"buffer": "1M; touch x"}, {"buffer": ""}):
        with pytest.raises(ValueError):
            urls.pipe("/x", "cat", **options)


@pytest.mark.parametrize("fault", ["", "503", "stall", "cut", "short", "403"])
def test_curl_never_writes_the_beginning_twice(fault: str, servers: Servers, programs: Path) -> None:
    """--retry with a stall time-out would, with exit status 0."""
    (servers.get("http").root / "x.tar").write_bytes(DATA)
    left = [fault]
    with proxied(servers.get("http").port, lambda line: left.pop() if left else "") as proxy:
        proxy.stall = 20
        began = time.monotonic()
        url = urls.pipe(f"{proxy.url}/x.tar", "curl", idle=2)
        done = subprocess.run(url[5:], shell=True, capture_output=True, timeout=30, check=False)
        assert time.monotonic() - began < 15
    if fault in ("", "503"):
        assert (done.returncode, done.stdout) == (0, DATA)
    else:
        assert done.returncode != 0
        assert DATA.startswith(done.stdout)
        assert b"curl: (" in done.stderr


def test_a_failure_in_front_of_a_buffer_is_a_failure(programs: Path, tmp_path: Path) -> None:
    url = urls.pipe(f"{tmp_path}/none", "cat", buffer="1M")
    done = subprocess.run(["sh", "-c", url[5:]], capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert b"No such file" in done.stderr


# templates


def test_templates(servers: Servers, programs: Path) -> None:
    root = servers.get("http").root
    for number in range(3):
        (root / f"t-{number}.tar").write_bytes(b"%d" % number)
    found = urls.expand_template(f"pipe:curl -s {servers.get('http').url}/%s", "t-{0..2}.tar")
    assert [run(url) for url in found] == [b"0", b"1", b"2"]
    assert urls.expand_template("http://h/%s?x=%s", ["{a,b}", "c"]) == [
        "http://h/a?x=a",
        "http://h/b?x=b",
        "http://h/c?x=c",
    ]


@pytest.mark.parametrize(
    "template",
    ["cat ./%s", "cat './%s'", 'cat "./%s"', "cat ./%s | cat", "echo \"it's\" > /dev/null; cat ./%s", "cat \\\n./%s",
     "cat ./'%s'", 'cat -- "./"%s', "cat 2>&1 ./%s",],
)  # fmt: skip
def test_hostile_names_in_templates(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name for name in HOSTILE if not name.startswith("-")]
    for name in names:
        Path(name).write_bytes(name.encode("utf-8", "surrogateescape"))
    for name, url in zip(names, urls.expand_template(f"pipe:{template}", map(urls.escape, names)), strict=True):
        for shell in SHELLS:
            assert run(url, shell) == name.encode("utf-8", "surrogateescape"), url
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("pipe:cat x", "a", "no %s"), ("pipe:cat $(echo %s)", "a", "quoting"), ("pipe:cat `echo %s`", "a", "quoting"),
        ('pipe:cat "$(echo %s)"', "a", "quoting"), ("pipe:cat <<E\n%s\nE", "a", "quoting"),
        ("pipe:cat \\%s", "a", "backslash"),
        ("pipe:cat ${X:-%s}", "a", "quoting"), ("pipe:cat $'%s'", "a", "quoting"), ("pipe:cat x # %s", "a", "quoting"),
        ("pipe:cat %s", "a\0", "NUL"), ("pipe:cat %s", "-n", "option"), ("pipe:cat '%s'", "-n", "option"),
    ],
)  # fmt: skip
def test_refused_templates(template: str, name: str, text: str) -> None:
    with pytest.raises(UrlError, match=text):
        urls.expand_template(template, [name])
