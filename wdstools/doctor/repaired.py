"""What a repair did, and its report."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from wdstools.doctor.salvage import Salvage, Sample
from wdstools.doctor.survey import Survey

REPORT = "repair.json"


@dataclass(frozen=True)
class Lost:
    """What was not written. `shard`, `offset`: where it was; `member`, `key`: None where they are not known."""

    shard: str
    key: str | None
    member: str | None
    offset: int | None
    nbytes: int | None
    reason: str


@dataclass
class Repaired:
    """What a repair did. `shards`: the paths written; `dropped`: duplicates that were left out, by --keep; `renamed`:
    new keys; `partial`: keys of samples that were written without their damaged members; `won`: bytes of headers."""

    shards: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    samples: int = 0
    lost: list[Lost] = field(default_factory=list)
    dropped: list[Lost] = field(default_factory=list)
    renamed: list[dict[str, str]] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    won: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, folder: str) -> None:
        """Write the report into a folder."""
        with open(os.path.join(folder, REPORT), "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(self.to_json(), file, indent=1, ensure_ascii=False)
            file.write("\n")

    def lose_holes(self, saved: Salvage) -> None:
        """List the bytes of a shard in which members may have been."""
        for hole in saved.holes:
            if hole.hard and hole.end > hole.start:
                nbytes = hole.end - hole.start
                self.lost.append(Lost(saved.survey.url, None, hole.name, hole.start, nbytes, hole.reason))

    def lose_members(self, survey: Survey, sample: Sample, written: bool) -> None:
        """List the damaged members of a sample, and the others too where it is not written."""
        others = f"member {survey.name(next(iter(sample.bad)))!r} of it is damaged" if sample.bad else ""
        reasons = dict(sample.bad)
        if not written:
            reasons |= dict.fromkeys(sample.good, sample.why or others or "it is not whole")
        for member, reason in reasons.items():
            offset, nbytes = int(survey.headers[member]), int(survey.sizes[member])
            self.lost.append(Lost(survey.url, text(sample.key), survey.name(member), offset, nbytes, reason))

    def drop(self, survey: Survey, sample: Sample, keep: str | None) -> None:
        """List a sample whose key another has."""
        nbytes = sum(int(survey.sizes[member]) for member in sample.members)
        offset = int(survey.starts[sample.members[0]])
        reason = f"another sample has its key, and --keep {keep} prefers that"
        self.dropped.append(Lost(survey.url, text(sample.key), None, offset, nbytes, reason))


def text(raw: bytes) -> str:
    """Return the bytes of a key as a report has it."""
    return raw.decode("utf-8", "backslashreplace")
