"""Folders and lists of paths: which files make which sample, and what is wrong with the others."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from convert_helpers import class_tree, fields_of, go, listed, put, samples
from helpers import make_tar

from wdstools.errors import SourceError


def reasons(source: Path, **options: object) -> dict[str, str]:
    """What is left out of a source: {file, relative: reason}."""
    _, faults = listed(source, on_error="skip", **options)
    return {os.path.relpath(item.file, source): item.reason for item in faults.skipped}


def test_class_folders(tmp_path: Path) -> None:
    wanted = class_tree(tmp_path)
    listing, _ = listed(tmp_path)
    assert (listing.kind, listing.shuffle, listing.name) == ("classes", True, tmp_path.name)
    assert listing.classes == {"n00": 0, "n01": 1, "n02": 2}
    assert fields_of(listing) == wanted
    assert [e.key for e in listing.entries] == sorted(wanted)
    assert {e.group for e in listing.entries} == {0, 1, 2}


def test_classes_are_numbered_in_sorted_order_and_may_have_folders(tmp_path: Path) -> None:
    put(tmp_path, {"dog/a.png": b"1", "cat/deep/er/b.jpg": b"2", "Zebra/c.jpg": b"3"})
    listing, _ = listed(tmp_path)
    assert listing.classes == {"Zebra": 0, "cat": 1, "dog": 2}
    assert fields_of(listing) == {
        "Zebra/c": {"jpg": b"3", "cls": b"0"},
        "cat/deep/er/b": {"jpg": b"2", "cls": b"1"},
        "dog/a": {"png": b"1", "cls": b"2"},
    }


def test_flat_files_that_share_a_name_are_one_sample(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"1", "a.JSON": b"{}", "a.seg.png": b"2", "b.jpg": b""})
    listing, _ = listed(tmp_path)
    assert (listing.kind, listing.shuffle, listing.classes) == ("flat", False, None)
    assert fields_of(listing) == {"a": {"jpg": b"1", "json": b"{}", "seg.png": b"2"}, "b": {"jpg": b""}}


def test_flat_layout_of_folders(tmp_path: Path) -> None:
    put(tmp_path, {"x/a.jpg": b"1", "y/a.jpg": b"2"})
    assert fields_of(listed(tmp_path, layout="flat")[0]) == {"x/a": {"jpg": b"1"}, "y/a": {"jpg": b"2"}}


def test_folders_and_files_at_the_top_are_ambiguous(tmp_path: Path) -> None:
    put(tmp_path, {"x/a.jpg": b"1", "readme.txt": b"2"})
    with pytest.raises(SourceError, match=r"folders \(x\) and files \(readme.txt\).*--layout"):
        listed(tmp_path)
    assert list(fields_of(listed(tmp_path, layout="classes")[0])) == ["x/a"]
    assert list(fields_of(listed(tmp_path, layout="flat")[0])) == ["readme", "x/a"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no files to make samples of"):
        listed(tmp_path)
    with pytest.raises(SourceError, match=r"no class folders.*--layout flat"):
        listed(tmp_path, layout="classes")
    with pytest.raises(SourceError, match="no such file or folder"):
        listed(tmp_path / "gone")


def test_an_empty_class_folder(tmp_path: Path) -> None:
    put(tmp_path, {"a/x.jpg": b"1", "c/y.jpg": b"2"})
    (tmp_path / "b").mkdir()
    with pytest.raises(SourceError, match=r"/b: empty class folder.*--on-error skip"):
        listed(tmp_path)
    assert reasons(tmp_path) == {"b": "empty class folder"}
    assert listed(tmp_path, on_error="skip")[0].classes == {"a": 0, "b": 1, "c": 2}  # numbers do not depend on files


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.JPG", "a.jpg"], "two files for one field"),
        (["a.cls"], "two files for one field"),
        (["IMG_2024.05.01.jpg"], "the key has a dot"),
        (["a.0.jpg"], "the key has a dot"),
        (["README"], "no extension"),
        (["end."], "no extension"),
        (["a._x"], "a field that begins with _"),
        (["a.\udcff"], "a name that is not UTF-8"),
        (["\udce9.jpg"], "a name that is not UTF-8"),
    ],
)
def test_names_that_make_no_sample(tmp_path: Path, names: list[str], reason: str) -> None:
    put(tmp_path, {"n/good.jpg": b"", **{f"n/{name}": b"x" for name in names}})
    with pytest.raises(SourceError) as error:
        listed(tmp_path)
    assert reason in str(error.value)
    assert names[-1] in str(error.value) or repr(names[-1])[1:-1] in str(error.value)
    found, faults = listed(tmp_path, on_error="skip")
    assert [e.key for e in found.entries] == ["n/good"]
    assert {s.reason for s in faults.skipped} == {reason}


def test_dotted_fields_and_numbered_keys(tmp_path: Path) -> None:
    put(tmp_path, {"a.0.jpg": b"0", "a.1.jpg": b"1"})
    assert fields_of(listed(tmp_path, dotted=True)[0]) == {"a": {"0.jpg": b"0", "1.jpg": b"1"}}
    put(tmp_path / "n", {"IMG_2024.05.01.jpg": b"0", "\udcff.jpg": b"1", "plain.jpg": b"2"})
    go(tmp_path / "n", tmp_path / "out", keys="number")
    assert samples(tmp_path / "out") == {"000000": {"jpg": b"0"}, "000001": {"jpg": b"2"}, "000002": {"jpg": b"1"}}


def test_hidden_files_and_litter_are_no_samples(tmp_path: Path) -> None:
    put(tmp_path, {"n/a.jpg": b"1", "n/.hidden.jpg": b"", "n/Thumbs.db": b"", ".git/x.jpg": b"", "desktop.ini": b""})
    assert list(fields_of(listed(tmp_path)[0])) == ["n/a"]


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    put(tmp_path, {"n/good.jpg": b"1"})
    os.mkfifo(tmp_path / "n/fifo.jpg")
    (tmp_path / "n/dangling.jpg").symlink_to("nowhere")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as plug:
        os.chdir(tmp_path / "n")  # a socket's address is short
        try:
            plug.bind("plug.jpg")
        finally:
            os.chdir(here)
        assert reasons(tmp_path) == {
            "n/fifo.jpg": "not a regular file",
            "n/plug.jpg": "not a regular file",
            "n/dangling.jpg": "no such file or directory",
        }
    with pytest.raises(SourceError, match=r"(fifo|plug|dangling).jpg: (not a regular|no such file)"):
        listed(tmp_path)


def test_a_bad_file_takes_its_whole_sample_with_it(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"1", "a.json": b"{}", "b.jpg": b"2"})
    (tmp_path / "a.txt").symlink_to("nowhere")
    assert list(fields_of(listed(tmp_path, on_error="skip")[0])) == ["b"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = put(tmp_path / "in", {"n/a.jpg": b"1", "n/sub/b.jpg": b"2"})
    put(tmp_path / "other", {"c.jpg": b"3"})
    (root / "n/link.jpg").symlink_to("a.jpg")
    (root / "n/away").symlink_to(tmp_path / "other")
    assert list(fields_of(listed(root)[0])) == ["n/a", "n/away/c", "n/link", "n/sub/b"]
    (root / "n/sub/up").symlink_to(root / "n")
    (tmp_path / "other/round").symlink_to(tmp_path / "other")
    (root / "self").symlink_to(".")
    with pytest.raises(SourceError, match="a link to a folder above it"):
        listed(root)
    circle = "a link to a folder above it"
    assert reasons(root) == {"n/sub/up": circle, "n/away/round": circle, "self": circle}
    assert list(fields_of(listed(root, on_error="skip")[0])) == ["n/a", "n/away/c", "n/link", "n/sub/b"]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and no right to read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        else:
            (folder / "closed").chmod(0o755)
        shutil.rmtree(folder)


def test_unreadable_folders_and_files(unprivileged: Path) -> None:
    put(unprivileged / "in", {"n/a.jpg": b"1", "closed/b.jpg": b"2", "n/secret.jpg": b"3"})
    (unprivileged / "in/closed").chmod(0)
    (unprivileged / "in/n/secret.jpg").chmod(0)
    with pytest.raises(SourceError, match="closed/: permission denied"):
        go(unprivileged / "in", unprivileged / "out")
    summary = go(unprivileged / "in", unprivileged / "out", on_error="skip")
    assert samples(unprivileged / "out") == {"n/a": {"jpg": b"1", "cls": b"1"}}
    assert summary.reasons() == {"permission denied": 2}
    (unprivileged / "in/closed").chmod(0o755)
    (unprivileged / "in/closed/b.jpg").chmod(0o644)
    with pytest.raises(SourceError, match=r"secret.jpg: permission denied"):
        go(unprivileged / "in", unprivileged / "again")


STRANGE = [
    "ünï",
    "日本",
    "a b",
    "new\nline",
    "tab\t",
    "q'\"",
    "back\\slash",
    "{1,2}",
    "%d",
    "-",
    "x" * 150,
    "$HOME",
    "*",
]


def test_strange_names_come_through(tmp_path: Path) -> None:
    wanted = {name: {"jpg": name.encode()} for name in STRANGE}
    deep = "/".join(["folder" * 20] * 5) + "/" + "y" * 200  # far more than ustar holds
    wanted[deep] = {"jpg": b"deep"}
    put(tmp_path / "in", {f"{key}.jpg": fields["jpg"] for key, fields in wanted.items()})
    go(tmp_path / "in", tmp_path / "out", layout="flat")
    assert samples(tmp_path / "out") == wanted


def test_newest_is_the_time_of_the_youngest_file(tmp_path: Path) -> None:
    put(tmp_path, {"n/a.jpg": b"1", "n/b.jpg": b"2", "n/c.jpg": b"3"})
    os.utime(tmp_path / "n/b.jpg", ns=(5, 7_000_000_000))
    os.utime(tmp_path / "n/a.jpg", ns=(5, 8_000_000_000))
    os.utime(tmp_path / "n/c.jpg", ns=(5, 1 << 62))  # in 2116: a date that says nothing
    assert listed(tmp_path)[0].newest == (8_000_000_000, f"{tmp_path}/n/a.jpg")


def test_paths_from_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"x/a.jpg": b"1", "x/a.txt": b"t", "y/b.jpg": b"2"})
    monkeypatch.chdir(tmp_path / "x")
    listing, _ = listed("-", ["a.jpg", f"{tmp_path}/x/a.txt"])
    assert fields_of(listing) == {"a": {"jpg": b"1", "txt": b"t"}}
    monkeypatch.chdir(tmp_path)
    assert list(fields_of(listed("-", ["./y/../y/b.jpg", "x/a.jpg"])[0])) == ["x/a", "y/b"]


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["x/a.jpg", "x/a.jpg"], "two files for one field"),
        (["x/gone.jpg"], "no such file or directory"),
        (["x"], "not a regular file"),
        (["../{tmp}/x/a.jpg"], "a key that leaves its folder"),
        (["x/README"], "no extension"),
    ],
)
def test_bad_paths_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], reason: str) -> None:
    put(tmp_path, {"x/a.jpg": b"1", "x/README": b"", "good.jpg": b"2"})
    monkeypatch.chdir(tmp_path)
    paths = [path.format(tmp=tmp_path.name) for path in paths]
    with pytest.raises(SourceError, match=reason):
        listed("-", paths)
    listing, faults = listed("-", [*paths, "good.jpg"], on_error="skip")
    assert [e.key for e in listing.entries] == ["good"]
    assert [s.reason for s in faults.skipped] == [reason]


def test_an_empty_list_of_paths() -> None:
    with pytest.raises(SourceError, match="stdin: no files"):
        listed("-", [])


def test_folders_of_shards_are_no_samples(tmp_path: Path) -> None:
    """As data sets on the hub have them, a folder for each split."""
    put(tmp_path / "in", {"train/train-000000.tar": make_tar([("a.txt", b"1")]), "val/val-000000.tar": b"x"})
    with pytest.raises(SourceError, match=r"in: train/train-000000\.tar would be a sample with a whole tar in it"):
        go(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    go(tmp_path / "in/train", tmp_path / "shards")
    assert list(samples(tmp_path / "shards")) == ["a"]
    go(tmp_path / "in", tmp_path / "packed", layout="classes")
    assert sorted(samples(tmp_path / "packed")) == ["train/train-000000", "val/val-000000"]
