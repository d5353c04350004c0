"""Shards that stop too soon or go on too long."""

from __future__ import annotations

from wdstools.errors import HeaderError, TrailingError, TruncatedError

from .build import A_SAMPLE, B_SAMPLE, END, GOOD, SHARD, A, Attack, B, member

NO_END = "no end-of-archive marker"
BODY = SHARD[: -len(END)]


def _cut(data: bytes, text: str) -> Attack:
    return Attack(data, TruncatedError, len(data), text, GOOD)


def build() -> dict[str, Attack]:
    lone = A + bytes(512)
    return {
        "empty_file": _cut(b"", "empty, not even an end marker"),
        "no_end_marker": _cut(BODY, NO_END),
        "one_zero_block_at_eof": _cut(BODY + bytes(512), NO_END),
        "end_marker_one_byte_short": _cut(SHARD[:-1], NO_END),
        "only_one_zero_block": _cut(bytes(512), NO_END),
        "one_zero_byte": _cut(b"\0", NO_END),
        "cut_in_first_header": _cut(SHARD[:100], NO_END),
        "cut_in_a_header": _cut(SHARD[: len(A) + 300], NO_END),
        "cut_between_samples": _cut(A, NO_END),
        "cut_between_members": _cut(SHARD[: len(A) + 1024], NO_END),
        "cut_after_a_header": _cut(SHARD[: len(A) + 512], "truncated in a member"),
        "cut_in_a_payload": _cut(SHARD[: len(A) + 1024 + 512 + 300], "truncated in a member"),
        "cut_in_the_padding": _cut(SHARD[: len(A) + 1023], "truncated in a member"),
        "cut_in_the_last_padding": _cut(BODY[:-1], "truncated in a member"),
        "lone_zero_block": Attack(lone + B + END, HeaderError, len(A), "lone zero block", (A_SAMPLE,)),
        "lone_zero_block_first": Attack(bytes(512) + SHARD, HeaderError, 0, "lone zero block"),
        "lone_zero_block_then_garbage": Attack(
            lone + b"\1" * 512 + END, HeaderError, len(A), "lone zero block", (A_SAMPLE,)
        ),
        "bytes_after_the_end": Attack(SHARD + b"x", TrailingError, len(SHARD), "bytes after the end", GOOD),
        "bytes_late_after_the_end": Attack(
            SHARD + bytes(70_001) + b"x" + bytes(9), TrailingError, len(SHARD) + 70_001, "bytes after the end", GOOD
        ),
        "concatenated_tars": Attack(A + END + B + END, TrailingError, len(A + END), "bytes after", (A_SAMPLE,)),
        "concatenated_with_record_padding": Attack(
            A + B + bytes(10240) + member(b"c.png") + END, TrailingError, len(A + B) + 10240, "", (A_SAMPLE, B_SAMPLE)
        ),
        "empty_tar_then_a_tar": Attack(END + SHARD, TrailingError, len(END), "bytes after"),
    }
