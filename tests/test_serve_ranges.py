"""What of an object a request asks for, against a naive reading of RFC 9110."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wdstools.serve.ranges import MOST_RANGES, Unsatisfiable, http_date, precondition, range_counts, spans

DAY = 24 * 3600 * 10**9
ETAG = b'"abc-1"'


def naive(header: str, nbytes: int) -> list[tuple[int, int]] | str | None:
    """One byte at a time."""
    if not header.startswith("bytes="):
        return None
    parts = [part.strip(" \t") for part in header[6:].split(",") if part.strip(" \t")]
    found = []
    for part in parts:
        match = re.fullmatch(r"(\d*)-(\d*)", part, re.ASCII)
        if match is None or not (match[1] or match[2]) or (match[1] and match[2] and int(match[2]) < int(match[1])):
            return None
        if not match[1]:
            have = [i for i in range(nbytes) if i >= nbytes - int(match[2])]
        else:
            have = [i for i in range(nbytes) if int(match[1]) <= i and (not match[2] or i <= int(match[2]))]
        if have:
            found.append((have[0], have[-1] + 1))
    return found or "nothing"


number = st.one_of(st.just(""), st.integers(0, 40).map(str), st.sampled_from(["007", "99999999999999999999999", "-1"]))
spec = st.builds("{}-{}".format, number, number)
blank = st.sampled_from(["", " ", "\t"])
header = st.lists(st.builds("{}{}{}".format, blank, spec, blank), min_size=1, max_size=4).map(
    lambda specs: "bytes=" + ",".join(specs)
)


@given(st.one_of(header, st.text("bytes=-,0123456789 \t", max_size=20)), st.integers(0, 30))
@example("bytes=0-0", 1)
@example("bytes=-0", 5)
@example("bytes=0-", 0)
def test_spans_are_those_of_the_naive_reading(text: str, nbytes: int) -> None:
    expected = naive(text, nbytes)
    try:
        found = spans(text.encode(), nbytes)
    except Unsatisfiable:
        assert expected == "nothing"
        return
    if found is None and isinstance(expected, list) and len(expected) > 1:
        ordered = sorted(expected)
        overlap = any(a[1] > b[0] for a, b in pairwise(ordered))
        assert overlap or sum(end - start for start, end in expected) >= nbytes
    elif found is None:
        assert expected is None or text == "bytes=" or not text[6:].strip(", \t")
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"bytes=0-9", [(0, 10)]),
        (b"bytes=90-", [(90, 100)]),
        (b"bytes=-10", [(90, 100)]),
        (b"bytes=-1000", [(0, 100)]),
        (b"bytes=99-1000000000000000000000000000", [(99, 100)]),
        (b"bytes=0-1,4-5", [(0, 2), (4, 6)]),
        (b"bytes=4-5,0-1", [(4, 6), (0, 2)]),
        (b"bytes=0-1,200-300", [(0, 2)]),
        (b"bytes=0-10,5-15", None),  # they overlap
        (b"bytes=0-49,50-99", None),  # no less than all of it
        (b"bytes=5-4", None),
        (b"bytes=a-b", None),
        (b"lines=0-1", None),
        (b"bytes=0-1;2-3", None),
        (b"bytes=" + b",".join([b"0-0"] * MOST_RANGES), None),
        (b"bytes=" + b"0-0," * 1_000_000, None),
    ],
)
def test_spans(text: bytes, expected: list[tuple[int, int]] | None) -> None:
    assert spans(text, 100) == expected


@pytest.mark.parametrize("text", [b"bytes=100-", b"bytes=100-200", b"bytes=-0", b"bytes=1000-,200-300"])
def test_nothing_of_it(text: bytes) -> None:
    with pytest.raises(Unsatisfiable):
        spans(text, 100)


OLD, SAME, NEW = (http_date(days * DAY) for days in (99, 100, 101))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({b"if-none-match": ETAG}, 304),
        ({b"if-none-match": b'W/"abc-1"'}, 304),
        ({b"if-none-match": b'"x", "abc-1"'}, 304),
        ({b"if-none-match": b"*"}, 304),
        ({b"if-none-match": b'"x"'}, None),
        ({b"if-none-match": b'"x"', b"if-modified-since": NEW}, None),  # the tag goes before the date
        ({b"if-modified-since": SAME}, 304),
        ({b"if-modified-since": OLD}, None),
        ({b"if-modified-since": b"yesterday"}, None),
        ({b"if-match": ETAG}, None),
        ({b"if-match": b'"x"'}, 412),
        ({b"if-match": b'W/"abc-1"'}, 412),
        ({b"if-match": ETAG, b"if-none-match": ETAG}, 304),
        ({b"if-unmodified-since": OLD}, 412),
        ({b"if-unmodified-since": SAME}, None),
    ],
)
def test_preconditions(headers: dict[bytes, bytes], expected: int | None) -> None:
    assert precondition(headers, ETAG, 100 * DAY + 5) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, True), (ETAG, True), (b'"x"', False), (b'W/"abc-1"', False), (SAME, True), (NEW, False), (b"x", False)],
)
def test_if_range(value: bytes | None, expected: bool) -> None:
    headers = {} if value is None else {b"if-range": value}
    assert range_counts(headers, ETAG, 100 * DAY) is expected
