"""Shards that look odd and are valid: nothing may be lost or refused."""

from __future__ import annotations

from .build import (
    A_SAMPLE,
    B_SAMPLE,
    END,
    GOOD,
    SHARD,
    A,
    Attack,
    B,
    base256,
    header,
    longname,
    member,
    pad,
    pax,
    record,
)


def _valid(data: bytes, *samples: dict[str, bytes]) -> Attack:
    return Attack(data, None, samples=samples)


def _one(name: str, **fields: bytes) -> dict[str, bytes]:
    return {"__key__": name.encode("utf-8", "surrogateescape"), **fields}


def build() -> dict[str, Attack]:
    v7 = {"magic": bytes(8)}
    long = b"d/" + b"n" * 240
    extra = {
        "v7": _valid(
            member(b"a.cls", b"0", b"\0", **v7) + member(b"a.jpg", b"1", b"\0", **v7) + END,
            _one("a", cls=b"0", jpg=b"1"),
        ),
        "v7_directory": _valid(
            member(b"d/", b"", b"\0", **v7) + member(b"d/a.cls", b"0", b"\0", **v7) + END, _one("d/a", cls=b"0")
        ),
        "base256_size": _valid(header(b"a.cls", base256(3)) + pad(b"abc") + END, _one("a", cls=b"abc")),
        "size_in_spaces": _valid(header(b"a.cls", b"         3 \0") + pad(b"abc") + END, _one("a", cls=b"abc")),
        "size_without_terminator": _valid(header(b"a.cls", b"000000000003") + pad(b"abc") + END, _one("a", cls=b"abc")),
        "size_empty": _valid(header(b"a.cls", bytes(12)) + END, _one("a", cls=b"")),
        "signed_checksum": _valid(header("é.cls".encode(), 1, signed=True) + pad(b"0") + END, _one("é", cls=b"0")),
        "name_of_100_bytes": _valid(member(b"n" * 96 + b".cls", b"0") + END, _one("n" * 96, cls=b"0")),
        "prefix_and_name_full": _valid(
            member(b"n" * 96 + b".cls", b"0", prefix=b"p" * 155) + END, _one("p" * 155 + "/" + "n" * 96, cls=b"0")
        ),
        "name_not_utf8": _valid(member(b"\xff\xfe.cls", b"0") + END, _one("\udcff\udcfe", cls=b"0")),
        "long_name_gnu": _valid(longname(long + b".cls") + member(b"cut", b"0") + END, _one(long.decode(), cls=b"0")),
        "long_name_gnu_not_terminated": _valid(
            member(b"././@LongLink", long + b".cls", b"L", magic=b"ustar  \0") + member(b"cut", b"0") + END,
            _one(long.decode(), cls=b"0"),
        ),
        "long_name_pax": _valid(
            pax(record(b"path", long + b".cls")) + member(b"cut", b"0") + END, _one(long.decode(), cls=b"0")
        ),
        "pax_path_newline": _valid(
            pax(record(b"path", b"x\ny.cls")) + member(b"cut", b"0") + END, _one("x\ny", cls=b"0")
        ),
        "pax_path_with_equals": _valid(
            pax(record(b"path", b"x=y=.cls")) + member(b"cut", b"0") + END, _one("x=y=", cls=b"0")
        ),
        "pax_size": _valid(
            pax(record(b"size", b"600")) + header(b"a.cls", 0) + pad(b"z" * 600) + END, _one("a", cls=b"z" * 600)
        ),
        "pax_empty": _valid(pax() + member(b"a.cls", b"0") + END, _one("a", cls=b"0")),
        "pax_unknown_keywords": _valid(
            pax(record(b"SCHILY.xattr.user.a", b"\0\xff\n"), record(b"mtime", b"1.5")) + member(b"a.cls", b"0") + END,
            _one("a", cls=b"0"),
        ),
        "pax_just_under_1_mib": _valid(
            pax(record(b"comment", b"c" * ((1 << 20) - 2048))) + member(b"a.cls", b"0") + END, _one("a", cls=b"0")
        ),
        "pax_global_comment": _valid(
            pax(record(b"comment", b"git"), kind=b"g") + A + pax(record(b"comment", b"2"), kind=b"g") + B + END,
            A_SAMPLE,
            B_SAMPLE,
        ),
        "links_and_devices_between": _valid(
            A
            + b"".join(member(b"l.jpg", b"", kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6"))
            + b"".join(header(b"l.jpg", 77, kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6"))
            + B
            + END,
            A_SAMPLE,
            B_SAMPLE,
        ),
        "contiguous_file": _valid(member(b"a.cls", b"0", b"7") + END, _one("a", cls=b"0")),
        "unknown_type_with_payload": _valid(A + member(b"v.jpg", b"v" * 600, b"V") + B + END, A_SAMPLE, B_SAMPLE),
        "metadata_in_a_sample": _valid(
            member(b"a.cls", b"0")
            + member(b"__meta__", b"1")
            + member(b"__x__/a.cls", b"2")
            + member(b"a.jpg", b"3")
            + END,
            _one("a", cls=b"0", jpg=b"3"),
        ),
        "sparse_without_a_field_name": _valid(
            A + header(b"sparse", 512, b"S") + b"d" * 512 + B + END, A_SAMPLE, B_SAMPLE
        ),
        "only_an_end_marker": _valid(END),
        "zeros_to_the_record": _valid(SHARD + bytes(10240 - len(SHARD) % 10240), *GOOD),
        "zeros_that_end_in_half_a_block": _valid(SHARD + bytes(100), *GOOD),
        "empty_field_name": _valid(member(b"foo.", b"0") + END, {"__key__": b"foo", "": b"0"}),
        "empty_payloads": _valid(member(b"a.cls") + member(b"a.jpg") + END, _one("a", cls=b"", jpg=b"")),
    }
    return {f"valid_{name}": attack for name, attack in extra.items()}
