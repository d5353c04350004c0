"""`wdstools.urls` and `wdstools.braces` beside braceexpand, webdataset and bash."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import braceexpand
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from webdataset.shardlists import expand_urls

from wdstools import braces
from wdstools.errors import UrlError, WdsError
from wdstools.urls import (
    basename,
    collapse,
    dirname,
    duplicates,
    escape,
    expand,
    index_name,
    is_absolute,
    join,
    local_path,
    missing,
    relative,
    scheme,
)

NASTY = "ab019-_./ \t,{}$\\'\"`*?[]()<>|&;!#~:=%^@+é\u0663\u00a0"


def in_bash(patterns: Iterable[str]) -> list[str]:
    """What bash makes of the patterns, typed as they are."""
    done = subprocess.run(
        ["bash", "--norc", "-c", "printf '%s\\0' " + " ".join(patterns)],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "HOME": "/root", "PATH": os.environ["PATH"]},
        cwd="/",
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]


# ---------------------------------------------------------------------------------------------------------- expand


PIECES = ["{", "}", ",", "..", "\\", "\n", ":", "::", "$", "{1..3}", "{a,b}", "{000..011}", "{9..-2..3}"]
PIECES += ["{c..a}", "{Y..b}", "${UNSET}", "\u0663"]
PIECES += ["0", "1", "-", "05", "12", "a", "Z", "z", "train", ".tar", " ", "${A}", "${B}", "${C}"]
TOKENS = ["::", "${A}", "{1..3}", "0", "1", "9", "a", ".tar", "\\", ":"]


@pytest.fixture
def wds_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"A": "x{1..2}", "B": "${A}-${A}", "C": "s3://b::{"}.items():
        monkeypatch.setenv("WDS_" + name, value)
    monkeypatch.delenv("WDS_UNSET", raising=False)


@pytest.mark.usefixtures("wds_environment")
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_expand_is_webdatasets_on_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(braces, "MAX_NAMES", 3000)
    seen = {"same": 0, "refused": 0}

    @settings(max_examples=1500, deadline=None, database=None)
    @given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
    @example("}{")
    @example("}a{1..2}{")
    @example("{1..3\n}")
    @example("{{a,b},{1..2}c}")
    @example("{a,b{0..3}}")
    @example("{A..A}{Z..A..5}")
    @example("\\")
    @example("{0..10..0}")
    @example("{-05..5}")
    def check(text: str) -> None:
        try:
            ours = expand(text)
        except UrlError as error:
            assume("more than" not in str(error))
            seen["refused"] += 1
            with pytest.raises((AssertionError, braceexpand.UnbalancedBracesError)):
                expand_urls(text)
            return
        seen["same"] += 1
        assert ours == expand_urls(text)
        if "::" not in text and "${" not in text:
            assert ours == list(braceexpand.braceexpand(text))

    check()
    assert min(seen.values()) > 20


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train-{000..002}.tar", ["train-000.tar", "train-001.tar", "train-002.tar"]),
        ("{000..146..73}", ["000", "073", "146"]),
        ("{a..c}{2..1}", ["a2", "a1", "b2", "b1", "c2", "c1"]),
        ("{a,b{0..2}}::c", ["a", "b0", "b1", "b2", "c"]),
        ("pipe:awk '{print $1}' f", ["pipe:awk '{print $1}' f"]),
        (r"pipe:awk '\{print $1\,$2\}' std:\:out", ["pipe:awk '{print $1,$2}' std::out"]),
        ("", [""]),
        ("plain name", ["plain name"]),
    ],
)
def test_expand_examples(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names
    assert expand_urls(pattern) == names


def test_expand_takes_paths_and_iterables() -> None:
    assert expand(pathlib.Path("d/{0..1}")) == ["d/0", "d/1"]
    assert expand(["a{0..1}", pathlib.Path("b"), "c::d"]) == ["a0", "a1", "b", "c", "d"]
    assert expand(iter([])) == []


@pytest.mark.parametrize(
    "pattern",
    [
        "{1..10000001}",
        "{0..9999}{0..9999}",
        "{a,b}" * 24,
        "{1..999999999999999999999999999999}",
        "{1.." + "9" * 5000 + "}",
        "{" * 200 + "a,b" + "}" * 200,
        "a{b",
        "a}b",
        "${NO_SUCH_VARIABLE}",
    ],
)
def test_expand_refuses(pattern: str) -> None:
    with pytest.raises(UrlError):
        expand(pattern)


@pytest.mark.parametrize("pattern", ["{1..101}", "{0..9}{0..9}0::x", "{{1..60},{1..60}}", "{1..60}::{1..60}"])
def test_expand_counts_all_names(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(braces, "MAX_NAMES", 100)
    with pytest.raises(UrlError, match="more than 100"):
        expand(pattern)
    assert len(expand("{0..9}{0..9}")) == 100


def test_expand_refuses_variables_in_a_circle_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_LOOP", "x" * 99 + "${LOOP}" * 50)
    with pytest.raises(UrlError, match="circle"):
        expand("${LOOP}")

    class BytesPath:
        def __fspath__(self) -> Any:
            return b"x"

    with pytest.raises(UrlError, match="bytes"):
        expand(BytesPath())


# -------------------------------------------------------------------------------------------------------- collapse


def shard_names(prefix: str, suffix: str, width: int, numbers: set[int]) -> list[str]:
    return [f"{prefix}{number:0{width}d}{suffix}" for number in numbers]


def series_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    number = st.one_of(st.integers(0, 12), st.integers(95, 103), st.integers(9_998, 10_001), st.integers(0, 10**20))
    return st.builds(shard_names, text, text, st.integers(1, 5), st.sets(number, max_size=12))


def lists_of_names(alphabet: str) -> st.SearchStrategy[list[str]]:
    text = st.text(alphabet, max_size=6)
    tokens = st.lists(st.sampled_from(TOKENS), max_size=5).map("".join)
    parts = st.one_of(series_of(text), series_of(tokens), st.lists(text, max_size=4), st.lists(tokens, max_size=4))
    return st.lists(parts, max_size=4).map(lambda lists: [name for part in lists for name in part])


@settings(max_examples=600, deadline=None)
@given(lists_of_names(NASTY + "\n\r\x00\x1f\udc80"))
@example(["098", "099", "100", "999", "1000", "1001"])
@example(["a" + "9" * 18, "a1" + "0" * 18])
@example(["$0", "$1"])
@example(["", "0"])
def test_collapse_loses_nothing(names: list[str]) -> None:
    patterns = collapse(names)
    assert sorted(expand(patterns)) == sorted(set(names))
    assert sorted(name for pattern in patterns for name in expand_urls(pattern)) == sorted(set(names))
    assert sorted(name for pattern in patterns for name in braceexpand.braceexpand(pattern)) == sorted(set(names))
    if patterns and not any(name.endswith(":") for name in names):
        assert expand_urls("::".join(patterns)) == expand(patterns)
    assert collapse(reversed(names)) == patterns
    assert not set(expand(p for p in missing(names) if p.count("{") == 0)) & set(names)


@settings(max_examples=150, deadline=None)
@given(lists_of_names(NASTY + "\r").map(lambda names: [name for name in names if name]).filter(len))
@example([r"a\0", r"a\1", "~", "#1", "#2", "a::0", "a::1", "{,}", "${A}1", "${A}2"])
@example([f"a{number}" for number in range(2**63 - 2, 2**63 + 2)])
def test_collapse_holds_in_bash(names: list[str]) -> None:
    assert sorted(in_bash(collapse(names))) == sorted(set(names))


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(0, 1200), min_size=1), st.integers(1, 6))
def test_collapse_has_one_pattern_per_run(numbers: set[int], width: int) -> None:
    names = shard_names("train-", ".tar", width, numbers)
    ends = sum(n + 1 not in numbers for n in numbers)
    # where the numbers outgrow their padding, a run is cut once
    if width > 1:
        cuts = sum(n in numbers and n - 1 in numbers and n >= 10**width for n in [10**width])
        run = 10**width - 1
        while run in numbers:
            run -= 1
        ends += cuts and run + 1 < 10 ** (width - 1)
    patterns = collapse(names)
    assert len(patterns) == ends
    assert expand(patterns) == [f"train-{n:0{width}d}.tar" for n in sorted(numbers)]
    between = set(range(min(numbers), max(numbers) + 1)) - numbers
    assert expand(missing(names)) == [f"train-{n:0{width}d}.tar" for n in sorted(between)]


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        ([], []),
        (["a.tar"], ["a.tar"]),
        (expand("train-{000000..000003}.tar::train-000005.tar"), ["train-{000000..000003}.tar", "train-000005.tar"]),
        (expand("x{1..12}"), ["x{1..12}"]),
        (expand("x{08..12}"), ["x{08..12}"]),
        (expand("x{0..3}::x{00..03}"), ["x{0..3}", "x{00..03}"]),
        (expand("in-1k-train-{000000..000009}-of-000010.tar"), ["in-1k-train-{000000..000009}-of-000010.tar"]),
        (expand("x-{00..09}-of-10::x-{00..10}-of-11"), ["x-{00..09}-of-10", "x-{00..10}-of-11"]),
        (expand("rank{3,9}/shard-{00..12}.tar"), ["rank3/shard-{00..12}.tar", "rank9/shard-{00..12}.tar"]),
        (expand("r{0..1}/s{0..1}"), ["r0/s{0..1}", "r1/s{0..1}"]),
        (expand("{b,a}{9..11}.tar::a.tar::a{1..2}.txt"), ["a.tar", "a{9..11}.tar", "a{1..2}.txt", "b{9..11}.tar"]),
        (["a b0", "a b1"], [r"a\ b{0..1}"]),
        (["http://h/x?a=1", "http://h/x?a=2"], [r"http://h/x\?a={1..2}"]),
        (["v2/x", "v10/x", "v9/x"], ["v2/x", "v{9..10}/x"]),
    ],
)
def test_collapse_examples(names: list[str], patterns: list[str]) -> None:
    assert sorted(collapse(names)) == sorted(patterns)


def test_collapse_orders_by_prefix_then_number() -> None:
    names = ["b-0.tar", "a10-1.txt", "a2-7.tar", "a2-3.tar", "a2-30.tar"]
    assert collapse(names) == ["a2-3.tar", "a2-7.tar", "a2-30.tar", "a10-1.txt", "b-0.tar"]


def test_missing() -> None:
    assert missing(expand("t-{000..002}.tar::t-{005..006}.tar::t-{008..010}.tar")) == ["t-{003..004}.tar", "t-007.tar"]
    assert missing(["t-97", "t-103"]) == ["t-{98..102}"]
    assert missing(["t-097", "t-1003"]) == ["t-{098..999}", "t-{1000..1002}"]
    assert missing(["t-0", "t-999999999999999999"]) == ["t-{1..999999999999999998}"]
    assert missing([r"a b-1", "a b-4"]) == [r"a\ b-{2..3}"]
    assert missing(["a.tar"]) == missing([]) == []


def test_duplicates_and_escape() -> None:
    assert duplicates(["b", "a", "b", "c", "a", "b"]) == ["b", "a"]
    assert escape("a{b,c}::d e") == r"a\{b,c\}:\:d\ e"
    assert escape("s3://b/train-000000.tar") == "s3://b/train-000000.tar"
    for take in (collapse, missing):
        with pytest.raises(UrlError, match="one name"):
            take("train-0.tar")


# ------------------------------------------------------------------------------------------------------------ URLs


@pytest.mark.parametrize(
    ("url", "kind", "path", "folder", "name"),
    [
        ("x.tar", "file", "x.tar", "", "x.tar"),
        ("a/b:c/x:y.tar", "file", "a/b:c/x:y.tar", "a/b:c", "x:y.tar"),
        ("2024-01-01T00:00:00.tar", "file", "2024-01-01T00:00:00.tar", "", "2024-01-01T00:00:00.tar"),
        ("s3:x.tar", "file", "s3:x.tar", "", "s3:x.tar"),
        ("/x.tar", "file", "/x.tar", "/", "x.tar"),
        ("/d/%41#?.tar", "file", "/d/%41#?.tar", "/d", "%41#?.tar"),
        ("file:///d/%41%20b.tar", "file", "/d/A b.tar", "file:///d", "%41%20b.tar"),
        ("file:///x.tar", "file", "/x.tar", "file:///", "x.tar"),
        ("FILE://localhost/x.tar", "file", "/x.tar", "FILE://localhost", "x.tar"),
        ("file:/d/x.tar", "file", "/d/x.tar", "file:/d", "x.tar"),
        ("s3://b/d/x#1?.tar", "s3", None, "s3://b/d", "x#1?.tar"),
        ("s3://b/x.tar", "s3", None, "s3://b", "x.tar"),
        ("gs://b", "gs", None, "gs://b", ""),
        ("az://c/d/", "az", None, "az://c/d", ""),
        ("HTTPS://h:80/d/x.tar?sig=/a#/b", "https", None, "HTTPS://h:80/d", "x.tar"),
        ("http://h?x=/y", "http", None, "http://h", ""),
        ("hf://datasets/x/y.tar", "hf", None, "hf://datasets/x", "y.tar"),
    ],
)
def test_parts_of_a_url(url: str, kind: str, path: str | None, folder: str, name: str) -> None:
    assert (scheme(url), local_path(url), dirname(url), basename(url)) == (kind, path, folder, name)


def test_pipe_is_no_place() -> None:
    command = "pipe:cat /d/x.tar"
    assert scheme(command) == "pipe"
    assert local_path(command) is None
    assert relative(command, "/d") == command
    for call in (dirname, basename, lambda url: join(url, "x"), lambda url: relative("/x", url)):
        with pytest.raises(UrlError):
            call(command)


@pytest.mark.parametrize("url", ["file://host/x.tar", "file:///x%00.tar"])
def test_local_path_refuses(url: str) -> None:
    with pytest.raises(UrlError):
        local_path(url)


@pytest.mark.parametrize(
    ("base", "name", "url"),
    [
        ("", "x.tar", "x.tar"),
        ("d", "e/x.tar", "d/e/x.tar"),
        ("d/", "./x.tar", "d/x.tar"),
        ("/", "x.tar", "/x.tar"),
        ("/d", "..x/y...tar", "/d/..x/y...tar"),
        ("/d", "%2e%2e/x", "/d/%2e%2e/x"),
        ("s3://b", "x.tar", "s3://b/x.tar"),
        ("s3://b/d/", "x.tar", "s3://b/d/x.tar"),
        ("file://", "x.tar", "file:///x.tar"),
        ("https://h/d?token=/a", "x.tar?sig=../1", "https://h/d/x.tar?sig=../1"),
    ],
)
def test_join(base: str, name: str, url: str) -> None:
    assert join(base, name) == url


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *((base, name) for base in ("", "/d", "s3://b/d", "https://h/d") for name in ("", "./", "/x", ".//x", "..")),
        *((base, name) for base in ("", "/d", "gs://b") for name in ("../x", "a/..", "a/../x", "s3://c/x", "pipe:rm")),
        *((base, name) for base in ("", "/d", "gs://b") for name in ("file:x", "a\0")),
        *((base, name) for base in ("https://h/d", "file:///d") for name in ("%2e%2e/x", "a/%2E./x", "%2Fx", "%00")),
        ("https://h/d", "a%2f..%2fx"),
        ("https://h/d", "?x"),
    ],
)
def test_join_refuses(base: str, name: str) -> None:
    with pytest.raises(WdsError):
        join(base, name)


COMPONENT = st.text("ab.%2e: ~#", max_size=4).map(lambda text: text + "x")


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(
        ["", "d", "./d", "../d", "/", "/d//e/", "file:///d", "file:///", "s3://b", "gs://b/p/", "https://h/p"]
    ),
    st.lists(COMPONENT, min_size=1, max_size=3).map("/".join),
)
def test_join_and_relative_are_inverse(base: str, name: str) -> None:
    try:
        url = join(base, name)
    except UrlError:
        plain = unquote(name)
        assert is_absolute(name) or is_absolute(plain) or (base.startswith("http") and name[0] == "#")
        return
    assert relative(url, base) == name
    if not base.startswith("http"):
        assert join(dirname(url), basename(url)) == url


@settings(max_examples=500, deadline=None)
@given(*[st.text("ab./", max_size=8)] * 2)
def test_join_never_leaves_its_folder(base: str, name: str) -> None:
    try:
        path = join(base, name)
    except UrlError:
        return
    inside = os.path.relpath(os.path.join("/r/s", path), os.path.join("/r/s", base))
    assert inside != ".." and not inside.startswith("../")  # noqa: PT018


@pytest.mark.parametrize(
    ("url", "base", "name"),
    [
        ("./d//x.tar", "d", "x.tar"),
        ("/d/x.tar", "/d/", "x.tar"),
        ("file:///d/a%20b.tar", "/d", "a b.tar"),
        ("/e/x.tar", "/d", "/e/x.tar"),
        ("/dd/x.tar", "/d", "/dd/x.tar"),
        ("/d/../x.tar", "/d", "/d/../x.tar"),
        ("/d/pipe:x", "/d", "/d/pipe:x"),
        ("s3://b/d/x.tar", "s3://b/d", "x.tar"),
        ("s3://bb/x.tar", "s3://b", "s3://bb/x.tar"),
        ("s3://b/x.tar", "/d", "s3://b/x.tar"),
        ("/d/x.tar", "s3://b", "/d/x.tar"),
        ("https://h/d/x.tar?sig=1", "https://h/d", "x.tar?sig=1"),
    ],
)
def test_relative(url: str, base: str, name: str) -> None:
    assert relative(url, base) == name


@pytest.mark.parametrize(
    ("url", "base"), [("x.tar", "d"), ("x.tar", "/d"), ("d/../../x", "d"), ("x.tar", "s3://b"), ("d", "d")]
)
def test_relative_refuses_what_would_change_its_meaning(url: str, base: str) -> None:
    with pytest.raises(UrlError):
        relative(url, base)


@pytest.mark.parametrize(
    ("shards", "name"),
    [
        ("train-{000000..000146}.tar", "train.wdsindex"),
        ("/d/imagenet-1k-train-{000000..000009}.tar.gz", "/d/imagenet-1k-train.wdsindex"),
        ("s3://b/d/train_{0..12}.tgz", "s3://b/d/train.wdsindex"),
        ("s3://b/train.{1..2}.TAR.ZST", "s3://b/train.wdsindex"),
        ("x-{000000..000001}-of-000002.tar", "x.wdsindex"),
        ("x-000000-of-000002.tar", "x.wdsindex"),
        ("foo.tar", "foo.wdsindex"),
        ("train-000000.tar", "train.wdsindex"),
        ("train00000.tar", "train.wdsindex"),
        ("cifar10.tar", "cifar10.wdsindex"),
        ("d/cifar{10..11}.tar", "d/cifar.wdsindex"),
        ("d/{train,val}-{0..3}.tar", "d/d.wdsindex"),
        ("d/train{,val}-{0..3}.tar", "d/d.wdsindex"),
        ("d/{000..003}.tar", "d/d.wdsindex"),
        ("{train,val}.tar", "shards.wdsindex"),
        ("/{000..003}.tar", "/shards.wdsindex"),
        ("s3://b/{train,val}.tar", "s3://b/shards.wdsindex"),
        ("/d/rank{00..03}/shard-{0..3}.tar", "/d/shard.wdsindex"),
        ("/d/{train,val}/{0..3}.tar", "/d/d.wdsindex"),
        ("{/a,/b}/x-{0..3}.tar", "/x.wdsindex"),
        ("{/a/,}x-{0..3}.tar", "x.wdsindex"),
        ("{a,/b}/x-{0..3}.tar", "x.wdsindex"),
        ("{s3,gs}://b/x-{0..3}.tar", "x.wdsindex"),
        ("s3://b/{,a/}x-{0..3}.tar", "s3://b/x.wdsindex"),
        ("https://h/d/x-{0..3}.tar?sig=1", "https://h/d/x.wdsindex"),
        ("pipe:cat x-{0..3}.tar", "shards.wdsindex"),
    ],
)
def test_index_name(shards: str, name: str) -> None:
    assert index_name(shards) == name
    assert index_name(collapse(expand(shards))) == name


def test_index_name_refuses_no_shards() -> None:
    with pytest.raises(UrlError):
        index_name([])


def test_import_is_light() -> None:
    heavy = "{'numpy', 'click', 'torch', 'pyarrow', 'fsspec', 'webdataset', 'braceexpand', 'urllib.parse'}"
    code = f"import sys, wdstools.urls; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
