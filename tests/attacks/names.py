"""Sound tars whose members do not make samples."""

from __future__ import annotations

from wdstools.errors import DuplicateFieldError, InterleavedError, UnsupportedError

from .build import A_SAMPLE, END, A, Attack, B, header, longname, member, pax, record

DUPLICATE = {
    "same_name": b"b.jpg",
    "upper_case": b"b.JPG",
    "mixed_case": b"b.jPg",
    "reserved_key": b"b.__key__",
    "reserved_url": b"b.__url__",
    "reserved_local_path": b"b.__local_path__",
    "reserved_key_upper_case": b"b.__KEY__",
    "reserved_key_kelvin_sign": "b.__\u212aey__".encode(),
}


def build() -> dict[str, Attack]:
    attacks = {}
    first = A + member(b"b.jpg", b"1")
    for name, text in DUPLICATE.items():
        data = first + member(text, b"2") + END
        attacks[f"duplicate_{name}"] = Attack(data, DuplicateFieldError, len(first), "", (A_SAMPLE,), keys_only=True)
    umlauts = A + member("b.É".encode(), b"1")
    attacks["duplicate_unicode_case"] = Attack(
        umlauts + member("b.é".encode(), b"2") + END, DuplicateFieldError, len(umlauts), "", (A_SAMPLE,), keys_only=True
    )
    for name, text in {"pax": pax(record(b"path", b"b.jpg")), "longname": longname(b"b.jpg")}.items():
        data = first + text + member(b"c.jpg", b"2") + END
        attacks[f"duplicate_by_{name}"] = Attack(
            data, DuplicateFieldError, len(first + text), "", (A_SAMPLE,), keys_only=True
        )
    comes_back = A + B
    for name, again in {"twice": A, "other_field": member(b"a.txt", b"x"), "folded": member(b"a.CLS", b"0")}.items():
        attacks[f"interleaved_{name}"] = Attack(
            comes_back + again + END, InterleavedError, len(comes_back), "comes back", (A_SAMPLE,), keys_only=True
        )
    pairs = member(b"x.jpg", b"1") + member(b"y.jpg", b"2")
    attacks["interleaved_by_field"] = Attack(
        pairs + member(b"x.cls", b"1") + member(b"y.cls", b"2") + END,
        InterleavedError,
        len(pairs),
        "comes back",
        ({"__key__": b"x", "jpg": b"1"},),
        keys_only=True,
    )
    # The map of an old GNU sparse member: one extent of 512 bytes at 0, real size 5120.
    extent = b"%011o\0%011o\0" % (0, 512)
    old = header(b"b.bin", 512, b"S", magic=b"ustar  \0", patch={386: extent, 483: b"%011o\0" % 5120}) + b"d" * 512
    attacks["sparse_old_gnu"] = Attack(A + old + B + END, UnsupportedError, len(A), "sparse", (A_SAMPLE,), True)
    chain = header(b"b.bin", 512, b"S", magic=b"ustar  \0", patch={386: extent, 482: b"\1", 483: b"%011o\0" % 5120})
    chain += bytes(504) + b"\1" + bytes(7) + bytes(512) + b"d" * 512
    attacks["sparse_old_gnu_extended"] = Attack(
        A + chain + B + END, UnsupportedError, len(A), "sparse", (A_SAMPLE,), True
    )
    versions = {
        "0_0": (record(b"GNU.sparse.size", b"5120"), record(b"GNU.sparse.numblocks", b"1")),
        "0_1": (record(b"GNU.sparse.size", b"5120"), record(b"GNU.sparse.map", b"0,512")),
        "1_0": (
            record(b"GNU.sparse.major", b"1"),
            record(b"GNU.sparse.minor", b"0"),
            record(b"GNU.sparse.name", b"b.bin"),
            record(b"GNU.sparse.realsize", b"5120"),
        ),
    }
    for name, records in versions.items():
        head = A + pax(*records)
        data = head + member(b"GNUSparseFile.0/b.bin", b"1\n0\n512\n") + B + END
        attacks[f"sparse_pax_{name}"] = Attack(data, UnsupportedError, len(head), "sparse", (A_SAMPLE,), True)
    return attacks
