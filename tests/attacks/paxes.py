"""PAX headers that a lenient reader would half understand."""

from __future__ import annotations

from wdstools.errors import HeaderError, TruncatedError

from .build import A_SAMPLE, END, A, Attack, member, pax, record

LENGTH, RECORD = "bad record length in a PAX header", "bad record in a PAX header"

BAD: dict[str, tuple[bytes, str]] = {
    "length_short": (b"10 path=b.jpg\n", RECORD),
    "length_long": (b"20 path=b.jpg\n", LENGTH),
    "length_one_over": (b"15 path=b.jpg\n", LENGTH),
    "length_one_under": (b"13 path=b.jpg\n", RECORD),
    "length_into_the_next": (b"17 path=b.jpg\n" + record(b"comment", b"x"), RECORD),
    "length_zero": (b"0 path=b.jpg\n", LENGTH),
    "length_of_itself_only": (b"2 \n", LENGTH),
    "length_negative": (b"-14 path=b.jpg\n", LENGTH),
    "length_hex": (b"0x0e path=b.jpg\n", LENGTH),
    "length_64_bits": (b"18446744073709551630 path=b.jpg\n", LENGTH),
    "length_of_many_digits": (b"9" * 400 + b" path=b.jpg\n", LENGTH),
    "no_length": (b"path=b.jpg\n", LENGTH),
    "no_space": (b"14path=b.jpg.\n", LENGTH),
    "only_digits": (b"14", LENGTH),
    "no_newline": (b"14 path=b.jpgx", RECORD),
    "no_equals": (b"14 path b.jpg\n", RECORD),
    "no_keyword": (b"10 =b.jpg\n", RECORD),
    "nul_in_path": (record(b"path", b"b.jpg\0.cls"), "NUL byte in a PAX path"),
    "nul_in_linkpath": (record(b"linkpath", b"a\0b"), "NUL byte in a PAX path"),
    "nul_in_sparse_name": (record(b"GNU.sparse.name", b"b.jpg\0.cls"), "NUL byte in a PAX path"),
    "nul_between_records": (record(b"comment", b"x") + b"\0" + record(b"path", b"b.jpg"), "NUL in a PAX header"),
    "nul_first": (b"\0" + record(b"path", b"b.jpg"), "NUL in a PAX header"),
    "size_letters": (record(b"size", b"12k"), "bad size in a PAX header"),
    "size_negative": (record(b"size", b"-1"), "bad size in a PAX header"),
    "size_float": (record(b"size", b"1.0"), "bad size in a PAX header"),
    "size_space": (record(b"size", b" 1"), "bad size in a PAX header"),
    "size_64_bits": (record(b"size", b"18446744073709551617"), "bad size in a PAX header"),
    "size_of_many_digits": (record(b"size", b"1" + b"0" * 300), "bad size in a PAX header"),
    "second_record_bad": (record(b"comment", b"x") + b"99 path=b.jpg\n", LENGTH),
}


def build() -> dict[str, Attack]:
    attacks = {}
    for name, (text, reason) in BAD.items():
        for kind in (b"x", b"X"):
            data = A + pax(text, kind=kind) + member(b"b.png", b"1") + END
            attacks[f"pax_{kind.decode()}_{name}"] = Attack(data, HeaderError, len(A), reason, (A_SAMPLE,))
    for name in ("path", "linkpath", "size"):
        data = A + pax(record(name.encode(), b"1"), kind=b"g") + member(b"b.png", b"1") + END
        attacks[f"global_{name}"] = Attack(data, HeaderError, len(A), "global PAX header that sets", (A_SAMPLE,))
    bad = pax(b"20 comment=x\n", kind=b"g")
    attacks["global_length"] = Attack(A + bad + member(b"b.png") + END, HeaderError, len(A), LENGTH, (A_SAMPLE,))
    second = pax(record(b"path", b"b.png")) + pax(b"20 path=c.png\n")
    data = A + second + member(b"b.png") + END
    attacks["second_pax_bad"] = Attack(data, HeaderError, len(A) + 1024, LENGTH, (A_SAMPLE,))
    data = A + pax(record(b"size", b"%d" % ((1 << 62) + 1))) + member(b"b.png") + END
    attacks["pax_size_over_2_62"] = Attack(data, HeaderError, len(A) + 1024, "impossible member size", (A_SAMPLE,))
    # The header says 1 byte, PAX says 600: whoever believes the header takes the payload for the next header.
    data = A + pax(record(b"size", b"600")) + member(b"b.png", b"1") + END
    attacks["pax_size_swallows_half_of_the_end"] = Attack(data, TruncatedError, len(data), "", (A_SAMPLE,))
    return attacks
