"""Samples through --map and --resize: in pools and in this thread the same, in order, each to what it becomes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from convert_helpers import jpeg, put

from wdstools.convert import transform
from wdstools.convert.entries import Entries, Entry
from wdstools.convert.images import Failure
from wdstools.convert.options import Options
from wdstools.convert.sources import Listing
from wdstools.convert.transform import Item
from wdstools.errors import SourceError

MODULE = """
def times(sample):
    number = int(sample["__key__"])
    if number == 5:
        raise ValueError("five")
    broken = {"png": b"broken"} if number == 6 else {}
    return [{**sample, **broken, "n": b"%d" % k} for k in range(number % 4)]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"recipes_to_transform.py": MODULE, "a.jpg": jpeg(40, 30)})
    monkeypatch.chdir(tmp_path)


def given() -> list[Item]:
    """Bytes, views of them, files, and what has failed before."""
    big = jpeg(50, 40)
    kinds = [{"jpg": big}, {"jpg": memoryview(big)}, {"jpg": ("a.jpg", len(jpeg(40, 30)))}]
    items: list[Item] = [(f"{i:03d}", dict(kinds[i % 3])) for i in range(40)]
    return [*items, ("040", Failure("x", "y", "z")), ("041", {"jpg": ("gone.jpg", 3)})]


@pytest.mark.parametrize(
    "options", [Options(workers=1), Options(resize=20, workers=2), Options(map="recipes_to_transform:times", resize=20)]
)
def test_here_as_in_pools(options: Options) -> None:
    with contextlib.ExitStack() as stack:
        one = list(transform.here(stack, options)(given()))
        many = list(transform.start(stack, options)(given()))
    assert one == many
    assert len(one) == 42  # a group for each sample
    assert one[40] == [("040", Failure("x", "y", "z"))]
    if options.map is not None:
        assert [len(group) for group in one[:8]] == [0, 1, 2, 3, 0, 1, 2, 3]
        assert isinstance(one[5][0][1], Failure)
        assert {type(fields) for _, fields in one[6]} == {Failure}
    if options.resize is not None:
        assert one[41] == [("041", Failure("gone.jpg", "no such file or directory", ""))]
        assert {len(fields["jpg"]) < len(jpeg(40, 30)) for _, fields in one[3] if isinstance(fields, dict)} == {True}


def test_what_cannot_be_read() -> None:
    """From a source that is read ahead, as one in a bucket."""

    def read(entry: Entry) -> dict[str, bytes]:
        if entry.key == "b":
            raise SourceError("s3://x/b.txt: changed while it was packed: 3 bytes when listed")
        return {"txt": b"text"}

    listing = Listing("flat", read=read, ahead=2)
    found = list(transform.read(listing, Entries(Entry(key, None, ("txt", key, 4)) for key in "abc")))
    wrong = Failure("s3://x/b.txt", "changed while it was packed", "3 bytes when listed")
    assert found == [("a", {"txt": b"text"}), ("b", wrong), ("c", {"txt": b"text"})]


def test_columns() -> None:
    fields = {"cls": b"1", "txt": b""}
    assert transform.columns(None, fields) == ("cls",)
    assert transform.columns(None, {"txt": b""}) == transform.columns((), fields) == ()
    assert transform.columns(("x",), fields) == ("x",)
