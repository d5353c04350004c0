"""Requests out of bytes: the same however they are cut, and whatever has two readings refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving import get
from wdstools.serve.request import _KNOWN, MAX_BODY, MAX_HEAD, BadPath, Parser, Refused, Request, decode_path, pairs


def parse(*parts: bytes) -> list[Request | int]:
    """The requests in these parts of a stream, and the status of the refusal that ended it."""
    parser, found = Parser(), []
    try:
        for part in parts:
            parser.feed(part)
            while (request := parser.next()) is not None:
                found.append(request)
    except Refused as refused:
        return [*found, refused.status]
    return [*found, *([-1] if parser.amid else [])]


def test_a_request() -> None:
    (request,) = parse(get("/a/b.tar?x=1&y", "Range: bytes=0-1", "X: a", "x: b"))
    assert isinstance(request, Request)
    assert (request.method, request.path, request.query) == ("GET", "/a/b.tar", {"x": "1", "y": ""})
    assert request.headers == {b"host": b"localhost", b"range": b"bytes=0-1", b"x": b"a, b"}
    assert request.keep_alive
    assert request.base == "http://localhost"


numbers = st.from_regex(r"\A[0-9]{0,20}\Z")


@given(
    st.lists(
        st.tuples(
            numbers, numbers, st.sampled_from(["bytes={}-{}", "bytes={}", "bytes={}-{},{}-", "{}-{}", "bytes= {}-{}"])
        )
    )
)
def test_a_head_that_was_seen_before_is_read_as_a_new_one(drawn: list[tuple[str, str, str]]) -> None:
    for first, last, pattern in drawn:
        value = pattern.format(first, last, last)
        for head in (
            get("/a", f"Range: {value}", "X: y"),
            get("/a", f"X: Range: {value}"),
            get("/a", f"X: y\x00{value}"),
        ):
            found = parse(head)
            _KNOWN.clear()
            assert parse(head) == found
            if isinstance(found[0], Request) and b"range" in found[0].headers:
                assert found[0].header(b"range") == value.strip()


def test_headers_of_one_request_are_not_those_of_the_next() -> None:
    one, two = parse(get("/same") * 2)
    assert isinstance(one, Request)
    assert isinstance(two, Request)
    one.headers[b"x"] = b"y"
    (three,) = parse(get("/same"))
    assert isinstance(three, Request)
    assert two.headers == three.headers == {b"host": b"localhost"}


def test_keep_alive() -> None:
    kinds = [("1.1", [], True), ("1.1", ["Connection: close"], False), ("1.0", [], False)]
    for version, headers, expected in [*kinds, ("1.0", ["Connection: keep-alive"], True)]:
        (request,) = parse(get("/", *headers, version=version))
        assert isinstance(request, Request)
        assert request.keep_alive is expected


STREAM = get("/a") + get("/b", "Content-Length: 5", method="POST") + b"hello" + get("/c", "Content-Length: 0")


@given(st.lists(st.integers(0, len(STREAM))))
def test_cut_anywhere(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    found = parse(*(STREAM[a:b] for a, b in pairwise(places)))
    assert [(r.target, r.body) if isinstance(r, Request) else r for r in found] == [
        (b"/a", b""),
        (b"/b", b"hello"),
        (b"/c", b""),
    ]


REFUSED = {
    "both lengths": (get("/", "Content-Length: 3", "Transfer-Encoding: chunked") + b"abc", 400),
    "both lengths, the other way": (get("/", "Transfer-Encoding: chunked", "Content-Length: 3") + b"abc", 400),
    "chunked": (get("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n", 411),
    "chunks of a bad size": (get("/", "Transfer-Encoding: chunked", method="POST") + b"-1\r\n\r\n", 411),
    "chunked with a blank": (get("/", "Transfer-Encoding : chunked"), 400),
    "chunked, hidden": (get("/", "Transfer-Encoding: xchunked"), 400),
    "chunked twice": (get("/", "Transfer-Encoding: chunked, chunked"), 400),
    "two lengths": (get("/", "Content-Length: 3", "Content-Length: 3") + b"abc", 400),
    "two lengths that differ": (get("/", "Content-Length: 3", "Content-Length: 4") + b"abcd", 400),
    "a list of lengths": (get("/", "Content-Length: 3, 3") + b"abc", 400),
    "a length with a sign": (get("/", "Content-Length: +3") + b"abc", 400),
    "a negative length": (get("/", "Content-Length: -3") + b"abc", 400),
    "a length in hex": (get("/", "Content-Length: 0x3") + b"abc", 400),
    "a length without digits": (get("/", "Content-Length: "), 400),
    "a huge length": (get("/", f"Content-Length: {MAX_BODY + 1}"), 413),
    "a length past 64 bits": (get("/", "Content-Length: 18446744073709551617"), 400),
    "two hosts": (get("/", "Host: b"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two ranges": (get("/", "Range: bytes=0-1", "Range: bytes=2-3"), 400),
    "two authorizations": (get("/", "Authorization: a", "Authorization: b"), 400),
    "a folded line": (get("/", "X: a\r\n b"), 400),
    "a bare LF": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    "only bare LFs": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a bare CR": (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
    "a NUL": (get("/", "X: a\x00b"), 400),
    "a control character": (get("/", "X: a\x01b"), 400),
    "a blank before the colon": (get("/", "X : a"), 400),
    "no colon": (get("/", "X"), 400),
    "no name": (get("/", ": a"), 400),
    "a blank line first": (b"\r\n" + get("/"), 400),
    "absolute form": (get("http://localhost/"), 400),
    "a star": (get("*", method="OPTIONS"), 400),
    "an authority": (get("localhost:80", method="CONNECT"), 400),
    "no slash": (get("a"), 400),
    "a fragment": (get("/a#b"), 400),
    "a blank in the path": (get("/a b"), 400),
    "two blanks": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a tab": (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a byte past ASCII": (get("/\xe9"), 400),
    "lower case": (get("/", method="get"), 400),
    "an unknown method": (get("/", method="BREW"), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/3.7": (get("/", version="3.7"), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a long line": (get("/" + "a" * 9000), 414),
    "a line without an end": (b"GET /" + b"a" * 9000, 414),
    "a long header": (get("/", "X: " + "a" * MAX_HEAD), 431),
    "a header without an end": (b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD, 431),
    "many headers": (get("/", *(f"X{i}: a" for i in range(200))), 431),
    "many empty headers": (get("/", *["X:"] * 5000), 431),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    data, status = REFUSED[what]
    assert parse(data) == [status]
    assert parse(*(data[i : i + 1] for i in range(min(len(data), 2000))), data[2000:])[-1] == status  # byte by byte


def test_nothing_is_smuggled() -> None:
    """What follows a message that is refused is no request."""
    hidden = get("/hidden")
    for data, status in REFUSED.values():
        found = parse(get("/first") + data + hidden)
        assert [r.target if isinstance(r, Request) else r for r in found] in ([b"/first", status], [b"/first", 400])


def test_a_body_is_no_request() -> None:
    body = get("/inside")
    found = parse(get("/out", f"Content-Length: {len(body)}", method="POST") + body + get("/next"))
    assert [r.target for r in found if isinstance(r, Request)] == [b"/out", b"/next"]


def test_other_protocols_are_not_taken_up() -> None:
    offer = get("/a", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
    assert [r.target for r in parse(offer + get("/b")) if isinstance(r, Request)] == [b"/a", b"/b"]


ATTACKS = [
    b"/../a",
    b"/a/..",
    b"/a/../../b",
    b"/%2e%2e/a",
    b"/%2E%2e/a",
    b"/.%2e/a",
    b"/..%2fa",
    b"/a%2f..%2f..%2fb",
    b"/./a",
    b"/%2e/a",
    b"/a%00.tar",
    b"/a%0a",
    b"/a%7f",
    b"/..\\a",
    b"/..%5ca",
    b"/%5c",
    b"/%",
    b"/%2",
    b"/%zz",
    b"/%u002e",
]


@pytest.mark.parametrize("raw", ATTACKS)
def test_bad_paths(raw: bytes) -> None:
    with pytest.raises(BadPath):
        decode_path(raw)


@pytest.mark.parametrize(
    ("raw", "path"),
    [(b"/a%20b", "/a b"), (b"/%252e%252e/a", "/%2e%2e/a"), (b"/a+b", "/a+b"), (b"/...", "/..."), (b"/%c3%a9", "/é")],
)
def test_paths_are_decoded_once(raw: bytes, path: str) -> None:
    assert decode_path(raw) == path


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_refused(data: bytes) -> None:
    for found in (parse(data), parse(get("/a") + data)):
        for request in found:
            assert isinstance(request, Request) or request in (-1, 400, 411, 413, 414, 431, 505)


@given(st.binary(max_size=100))
def test_any_query_has_pairs(data: bytes) -> None:
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in pairs(data))


def test_queries_are_bounded() -> None:
    assert pairs(b"a=%C3%A9+b&a=2&&c") == [("a", "é b"), ("a", "2"), ("c", "")]
    assert len(pairs(b"a&" * 5000)) == 1000
