"""Header blocks that are not."""

from __future__ import annotations

import random

from wdstools.errors import HeaderError, TruncatedError

from .build import A_SAMPLE, B_SAMPLE, END, GOOD, SHARD, A, Attack, B, base256, header, longname, member, pad


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _second(block: bytes, text: str, error: type[Exception] = HeaderError) -> Attack:
    """A good sample, then this."""
    return Attack(A + block + B + END, error, len(A), text, (A_SAMPLE,))


def _sparse_chain(blocks: int, ends: bool) -> bytes:
    """An old GNU sparse header whose map goes on in extension blocks."""
    more, last = bytearray(512), bytearray(512)
    more[504] = 1
    head = header(b"s.bin", 0, b"S", magic=b"ustar  \0", patch={482: b"\x01"})
    return head + bytes(more) * blocks + (bytes(last) if ends else b"")


def build() -> dict[str, Attack]:
    garbage = random.Random(1).randbytes(512)
    size = "bad size in a tar header"
    attacks = {
        "bad_checksum_first_header": Attack(_flip(SHARD, 3), HeaderError, 0, "bad tar header (checksum)"),
        "bad_checksum_third_header": Attack(_flip(SHARD, len(A) + 100), HeaderError, len(A), "checksum", GOOD[:1]),
        "checksum_field_empty": _second(_blank_checksum(b"\0" * 8), "checksum"),
        "checksum_field_letters": _second(_blank_checksum(b"abcdefg\0"), "checksum"),
        "checksum_field_negative": _second(_blank_checksum(b"\xff" * 8), "checksum"),
        "garbage_first": Attack(garbage + SHARD, HeaderError, 0, "checksum"),
        "garbage_between_members": _second(garbage, "checksum"),
        "not_a_tar_text": Attack(b"<html>404 Not Found</html>\n" * 100, HeaderError, 0, "checksum"),
        "not_a_tar_gzip": Attack(b"\x1f\x8b\x08" + garbage * 4, HeaderError, 0, "checksum"),
        "one_byte_missing_in_payload": Attack(SHARD[:600] + SHARD[601:], HeaderError, 1024, "checksum"),
        "one_byte_too_many_in_payload": Attack(SHARD[:600] + b"\0" + SHARD[600:], HeaderError, 1024, "checksum"),
        "size_letters": _second(header(b"b.cls", b"0000000000x\0"), size),
        "size_digit_eight": _second(header(b"b.cls", b"00000000008\0"), size),
        "size_minus": _second(header(b"b.cls", b"-0000000001\0"), size),
        "size_two_numbers": _second(header(b"b.cls", b"00001 00001\0"), size),
        "size_hex": _second(header(b"b.cls", b"0x000000010\0"), size),
        "size_underscore": _second(header(b"b.cls", b"0000000_010\0"), size),
        "size_0o": _second(header(b"b.cls", b"0o000000010\0"), size),
        "size_base256_negative": _second(header(b"b.cls", base256(-512)), size),
        "size_base256_minus_one": _second(header(b"b.cls", b"\xff" * 12), size),
        "size_base256_64_bits": _second(header(b"b.cls", base256(1 << 63)), size),
        "size_base256_88_bits": _second(header(b"b.cls", base256((1 << 88) - 1)), size),
        "size_base256_other_marker": _second(header(b"b.cls", b"\xc0" + bytes(11)), size),
        "size_over_2_62": _second(header(b"b.cls", base256((1 << 62) + 1)), "impossible member size"),
        "size_2_63_minus_1": _second(header(b"b.cls", base256((1 << 63) - 1)), "impossible member size"),
        "extension_size_letters": _second(header(b"x", b"abc\0", b"x"), size),
        "extension_over_1_mib": _second(header(b"x", (1 << 20) + 1, b"x"), "over 1 MiB"),
        "extension_of_2_62": _second(header(b"x", base256(1 << 62), b"L"), "over 1 MiB"),
        "extension_of_1_mib": _second(header(b"x", 1 << 20, b"g"), "over 1 MiB"),
        "sparse_chain_without_end": _second(_sparse_chain(2100, False), "over 1 MiB"),
    }
    endless = longname(b"y" * 60_000) * 20
    attacks["extension_chain_over_1_mib"] = _second(endless, "over 1 MiB")
    attacks["global_chain_over_1_mib"] = _second(member(b"g", b"", b"g") * 2100, "over 1 MiB")
    for name, block in {"longname": longname(b"b.cls"), "pax": member(b"x", b"", b"x")}.items():
        data = A + block
        attacks[f"{name}_before_the_end_marker"] = Attack(data + END, HeaderError, len(data), "without a member", GOOD)
        attacks[f"{name}_at_eof"] = Attack(data, TruncatedError, len(data), "no end-of-archive marker", GOOD)
    cut = A + header(b"x", 5000, b"L") + bytes(3000)
    attacks["longname_size_beyond_the_file"] = Attack(cut, TruncatedError, len(cut), "", GOOD)
    cut = A + _sparse_chain(3, False)
    attacks["sparse_chain_beyond_the_file"] = Attack(cut, TruncatedError, len(cut), "", GOOD)
    huge = A + header(b"b.jpg", base256(1 << 62)) + pad(b"data")
    attacks["member_of_2_62_bytes"] = Attack(huge, TruncatedError, len(huge), "truncated in a member", (A_SAMPLE,))
    large = A + B + header(b"c.jpg", base256(1 << 40)) + bytes(100_000)
    attacks["member_of_a_terabyte"] = Attack(
        large, TruncatedError, len(large), "truncated in a member", (A_SAMPLE, B_SAMPLE)
    )
    return attacks


def _blank_checksum(field: bytes) -> bytes:
    block = header(b"b.cls")
    return block[:148] + field + block[156:]
