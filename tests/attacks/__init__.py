"""Malformed shards, each with the error that it must give. `test_attacks.py` sends them through every way in."""

from __future__ import annotations

from . import ends, headers, names, paxes, valid
from .build import Attack

ATTACKS: dict[str, Attack] = {
    **headers.build(),
    **paxes.build(),
    **ends.build(),
    **names.build(),
    **valid.build(),
}

__all__ = ["ATTACKS", "Attack"]
