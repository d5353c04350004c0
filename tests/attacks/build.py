"""Bytes of tar blocks, right or wrong on purpose."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Attack:
    """A shard, and what must come of it.

    error: the class, None where the shard is valid. offset: of the error, None where ways in may differ. text: part of
    the message. samples: the true samples; what is delivered before the error must be the first of them.
    keys_only: the tar is sound, and only its names are not, so that `walk` has nothing to say.
    """

    data: bytes
    error: type[Exception] | None
    offset: int | None = None
    text: str = ""
    samples: tuple[dict[str, bytes], ...] = ()
    keys_only: bool = False


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def base256(value: int, width: int = 12) -> bytes:
    return (value + (1 << 8 * width - 1 if value >= 0 else 1 << 8 * width)).to_bytes(width, "big")


def checksum(block: bytes, signed: bool = False) -> int:
    summed = block[:148] + b" " * 8 + block[156:]
    return sum(b - 256 if signed and b > 127 else b for b in summed)


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    patch: dict[int, bytes] | None = None,
    signed: bool = False,
) -> bytes:
    """One header block with a right checksum; size may be the 12 bytes of the field; patch: bytes by offset."""
    block = bytearray(BLOCK)
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    parts = {0: name, 100: b"0000644\0", 108: b"0000000\0", 116: b"0000000\0", 124: field, 136: b"00000000000\0"}
    for at, part in {**parts, 156: kind, 257: magic, 345: prefix, **(patch or {})}.items():
        block[at : at + len(part)] = part
    block[148:156] = b"%06o\0 " % checksum(bytes(block), signed)
    return bytes(block)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **options: object) -> bytes:
    return header(name, len(data), kind, **options) + pad(data)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record, with its right length."""
    rest = len(key) + len(value) + 3
    length = rest + 1
    while len(str(length)) + rest != length:
        length = len(str(length)) + rest
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    return member(b"././@PaxHeader", b"".join(records), kind)


def longname(name: bytes, kind: bytes = b"L") -> bytes:
    return member(b"././@LongLink", name + b"\0", kind, magic=b"ustar  \0")


def sample(key: str, index: int) -> tuple[bytes, dict[str, bytes]]:
    fields = {"cls": b"%d" % index, "jpg": bytes([65 + index]) * (300 + 400 * index)}
    data = b"".join(member(f"{key}.{ext}".encode(), value) for ext, value in fields.items())
    return data, {"__key__": key.encode(), **fields}


A, A_SAMPLE = sample("a", 0)
B, B_SAMPLE = sample("b", 1)
C, C_SAMPLE = sample("c", 2)
GOOD = (A_SAMPLE, B_SAMPLE, C_SAMPLE)
SHARD = A + B + C + END
