"""Tables of samples: what the columns become, and rows that make no sample."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from convert_helpers import fields_of, go, listed, put, samples

from wdstools.errors import SourceError

ROWS = [
    {"image": "img/a.jpg", "caption": 'a cat, "tabby"', "cls": "3", "score": "0.50"},
    {"image": "img/b.png", "caption": "two\nlines", "cls": "4", "score": "1"},
]
JSONS = [{"caption": ROWS[0]["caption"], "score": 0.5}, {"caption": ROWS[1]["caption"], "score": 1}]


def csv_text(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    lines = [list(rows[0])] + [list(row.values()) for row in rows]
    quoted = [['"' + str(cell).replace('"', '""') + '"' for cell in line] for line in lines]
    return "".join(delimiter.join(line) + "\n" for line in quoted).encode()


def parquet(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    ".csv": lambda path, rows: path.write_bytes(csv_text(rows, ",")),
    ".tsv": lambda path, rows: path.write_bytes(csv_text(rows, "\t")),
    ".jsonl": lambda path, rows: path.write_text(
        "".join(json.dumps({**row, "score": float(row["score"])}) + "\n" for row in rows)
    ),
    ".parquet": lambda path, rows: pq.write_table(
        pa.Table.from_pylist([{**row, "score": float(row["score"])} for row in rows]), path
    ),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return put(tmp_path, {"img/a.jpg": b"jpg of a", "img/b.png": b"png of b"})


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_samples(table: Path, kind: str) -> None:
    path = table / f"set{kind}"
    WRITERS[kind](path, ROWS)
    listing, _ = listed(path)
    assert (listing.kind, listing.name, listing.shuffle) == ("manifest", "set", False)
    found = fields_of(listing)
    assert [json.loads(sample.pop("json")) for sample in found.values()] == JSONS
    assert found == {"img/a": {"jpg": b"jpg of a", "cls": b"3"}, "img/b": {"png": b"png of b", "cls": b"4"}}
    go(path, table / "out")
    assert samples(table / "out") == fields_of(listing)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_row_without_its_file(table: Path, kind: str) -> None:
    path = table / f"set{kind}"
    WRITERS[kind](path, [*ROWS, {**ROWS[0], "image": "img/gone.jpg"}, {**ROWS[0], "image": ""}])
    with pytest.raises(SourceError, match=r"row 3: .*img/gone.jpg: no such file or directory"):
        listed(path)
    listing, faults = listed(path, on_error="skip")
    assert len(listing.entries) == 2
    assert [s.reason for s in faults.skipped] == ["no such file or directory", "no file in its row"]
    assert [s.file.split("set")[1].split(": ")[1] for s in faults.skipped] == ["row 3", "row 4"]


def test_inlined_text_is_what_stands_in_the_table(table: Path) -> None:
    (table / "set.csv").write_text(
        "image,txt,cls,n,flag,empty\nimg/a.jpg,1.50,007,1.50,true,\nimg/b.png,2,1e3,2,false,\n"
    )
    found = fields_of(listed(table / "set.csv")[0])
    assert (found["img/a"]["txt"], found["img/a"]["cls"]) == (b"1.50", b"007")
    assert found["img/b"]["cls"] == b"1e3"
    assert json.loads(found["img/a"]["json"]) == {"n": 1.5, "flag": True, "empty": None}
    assert json.loads(found["img/b"]["json"]) == {"n": 2.0, "flag": False, "empty": None}


def test_numbers_stay_numbers_only_where_all_of_them_are(table: Path) -> None:
    (table / "set.csv").write_text("image,a,b,c\nimg/a.jpg,1,1,01\nimg/b.png,-2,x,2\n")
    found = fields_of(listed(table / "set.csv")[0])
    assert [json.loads(s["json"]) for s in found.values()] == [
        {"a": 1, "b": "1", "c": "01"},
        {"a": -2, "b": "x", "c": "2"},
    ]


def test_an_empty_cell_is_no_field(table: Path) -> None:
    (table / "set.csv").write_text("image,txt\nimg/a.jpg,\nimg/b.png,yes\n")
    assert fields_of(listed(table / "set.csv")[0]) == {
        "img/a": {"jpg": b"jpg of a"},
        "img/b": {"png": b"png of b", "txt": b"yes"},
    }


def test_columns_by_name(table: Path) -> None:
    put(table, {"m/a.png": b"mask"})
    (table / "set.csv").write_text("name,image,mask,note\nfirst,img/a.jpg,m/a.png,hello\n")
    given: dict[str, Any] = {
        "files": (("image", "jpg"), ("mask", "seg.png")),
        "inline": ("note",),
        "key_column": "name",
    }
    assert fields_of(listed(table / "set.csv", **given)[0]) == {
        "first": {"jpg": b"jpg of a", "seg.png": b"mask", "note": b"hello"}
    }
    for option in ({"files": (("gone", ""),)}, {"inline": ("gone",)}, {"key_column": "gone"}, {"by": "gone"}):
        with pytest.raises(SourceError, match="no column 'gone'; it has name, image, mask, note"):
            listed(table / "set.csv", **option)


def test_two_files_for_one_field(table: Path) -> None:
    (table / "set.csv").write_text("x,y\nimg/a.jpg,img/a.jpg\n")
    with pytest.raises(
        SourceError, match=r"row 1: .*two files for one field: field 'jpg'; name the fields: --files y="
    ):
        listed(table / "set.csv")
    (table / "set.csv").write_text("id,image,cls\n1,img/a.jpg,2\n")
    with pytest.raises(SourceError, match="field 'cls' is a file and a column"):
        listed(table / "set.csv", files=(("image", "cls"),), inline=("cls",))


def test_keys(table: Path) -> None:
    (table / "set.jsonl").write_text('{"id": 7, "image": "img/a.jpg"}\n\n{"id": 7, "image": "img/b.png"}\n')
    with pytest.raises(SourceError, match=r"two samples with one key: '7'; .*--keys number"):
        listed(table / "set.jsonl")
    assert len(listed(table / "set.jsonl", keys="number")[0].entries) == 2
    for key, reason in (
        ("a.b", "the key has a dot"),
        ("../x", "leaves its folder"),
        ("/x", "leaves"),
        ("\ud800", "UTF-8"),
    ):
        (table / "set.jsonl").write_text(json.dumps({"id": key, "image": "img/a.jpg"}))
        with pytest.raises(SourceError, match=reason):
            listed(table / "set.jsonl")
    (table / "set.jsonl").write_text('{"id": null, "txt": "x"}\n')
    with pytest.raises(SourceError, match="row 1: no key in its row"):
        listed(table / "set.jsonl")
    (table / "set.jsonl").write_text('{"txt": "x"}\n')
    with pytest.raises(SourceError, match="nothing to make keys of"):
        listed(table / "set.jsonl")


def test_absolute_paths_lose_what_leads_to_the_manifest(table: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    away = put(tmp_path_factory.mktemp("away"), {"c.jpg": b"c"})
    (table / "set.jsonl").write_text(
        json.dumps({"f": f"{table}/img/a.jpg"}) + "\n" + json.dumps({"f": f"{away}/c.jpg"})
    )
    assert list(fields_of(listed(table / "set.jsonl")[0])) == sorted(["img/a", f"{away}/c"[1:]])


def test_json_gathers_what_no_field_takes(table: Path) -> None:
    rows = [{"id": "k", "json": {"a": 1}, "b": float("nan"), "c": [1, {"d": None}], "é": "ü"}]
    (table / "set.jsonl").write_text(json.dumps(rows[0]))
    found = fields_of(listed(table / "set.jsonl")[0])["k"]["json"]
    assert json.loads(found) == {"a": 1, "b": None, "c": [1, {"d": None}], "é": "ü"}
    assert "é".encode() in found
    (table / "set.jsonl").write_text(json.dumps({"id": "k", "json": {"b": 1}, "b": 2}))
    with pytest.raises(
        SourceError, match="row 1: a value that is no field: 'b' is a column and a name in column 'json'"
    ):
        listed(table / "set.jsonl")
    (table / "set.jsonl").write_text(json.dumps({"id": "k", "json": "[1]", "b": 2}))
    with pytest.raises(SourceError, match="no JSON object"):
        listed(table / "set.jsonl")


def test_values_of_parquet(table: Path) -> None:
    columns = {"id": ["a"], "cls": pa.array([3], pa.int8()), "when": [date(2024, 5, 1)], "raw": [b"\0\1"]}
    parquet(table / "set.parquet", {**columns, "image": ["img/a.jpg"]})
    with pytest.raises(SourceError, match="column of bytes has no place in json: make it a field with --inline"):
        listed(table / "set.parquet")
    parquet(table / "set.parquet", columns)
    assert listed(table / "set.parquet")[0].kind == "parquet"  # no table of paths, but of samples
    found = fields_of(listed(table / "set.parquet", inline=("raw",))[0])["a"]
    assert (found["raw"], found["cls"], json.loads(found["json"])) == (b"\0\1", b"3", {"when": "2024-05-01"})
    parquet(table / "set.parquet", {"id": ["a", "b"], "cls": [3.0, None]})  # as pandas writes ints with a gap
    with pytest.raises(SourceError, match="row 2: no field in its row"):
        listed(table / "set.parquet")
    assert fields_of(listed(table / "set.parquet", on_error="skip")[0]) == {"a": {"cls": b"3"}}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "not a table"),
        ("a.csv", b"image,txt\n", "no rows"),
        ("a.csv", b"image,txt\nimg/a.jpg\n", "not a table: .*Expected 2 columns, got 1"),
        ("a.csv", b"image,image\nimg/a.jpg,x\n", "two columns are called 'image'"),
        ("a.csv", b"image\nimg/\xff.jpg\n", "not a table: .*UTF8"),
        ("a.csv", b"image\nelsewhere/a.jpg\n", "no column of its first row names a file below .*--files"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": \n', "row 2: not JSON: Expecting value"),
        ("a.jsonl", b"[1]\n", "row 1: not a JSON object"),
        ("a.parquet", b"PAR1 is not enough", "not a parquet file"),
        (
            "a.jsonl",
            b'{"image": "img/a.jpg", "n": 1}\n{"image": 3}\n',
            "row 2: no file in its row: column 'image' is 3",
        ),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": "img/a\\u0000.jpg"}\n', "row 2: .*a NUL in the path"),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": "img/\\ud800.jpg"}\n', "row 2: .*not UTF-8"),
        ("a.jsonl", b'{"id": "x", "txt": "\\ud800"}\n', "row 1: a value that is no field"),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": "img"}\n', "row 2: .*no extension"),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": "img/x.1.jpg"}\n', "row 2: .*the key has a dot"),
    ],
)
def test_broken_manifests(table: Path, name: str, data: bytes, message: str) -> None:
    (table / name).write_bytes(data)
    with pytest.raises(SourceError, match=message) as error:
        listed(table / name)
    assert str(table / name) in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "reasons"),
    [
        (
            "a.csv",
            b"image,txt\nimg/a.jpg,x\nimg/b.png\nimg/b.png,y,z\n",
            ["a row with too few or too many columns"] * 2,
        ),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": \n7\n', ["not JSON", "not a JSON object"]),
        ("a.jsonl", b'{"image": "img/a.jpg"}\n{"image": "img/gone.jpg"}\n', ["no such file or directory"]),
    ],
)
def test_bad_rows_are_left_out(table: Path, name: str, data: bytes, reasons: list[str]) -> None:
    (table / name).write_bytes(data)
    listing, faults = listed(table / name, on_error="skip")
    assert [e.key for e in listing.entries] == ["img/a"]
    assert [s.reason for s in faults.skipped] == reasons


def test_a_byte_order_mark_is_no_part_of_a_name(table: Path) -> None:
    for name, data in (("a.csv", "image\nimg/a.jpg\n"), ("a.jsonl", '{"image": "img/a.jpg"}\n')):
        (table / name).write_text(data, encoding="utf-8-sig")
        assert list(fields_of(listed(table / name)[0])) == ["img/a"]


def test_the_column_that_by_names(table: Path) -> None:
    (table / "set.csv").write_text("image,who\nimg/a.jpg,x\nimg/b.png,y\n")
    assert [e.group for e in listed(table / "set.csv", by="who")[0].entries] == ["x", "y"]


def test_newest_is_the_time_of_the_youngest_file(table: Path) -> None:
    (table / "set.csv").write_text("image\nimg/a.jpg\nimg/b.png\n")
    os.utime(table / "img/b.png", ns=(5, 8_000_000_000))
    os.utime(table / "img/a.jpg", ns=(5, 7_000_000_000))
    assert listed(table / "set.csv")[0].newest == (8_000_000_000, str(table / "img/b.png"))
