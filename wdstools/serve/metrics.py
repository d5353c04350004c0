"""Counters that all processes of a server share, in one piece of memory: each adds to its own row, and /-/metrics, from
whichever process it comes, tells their sums."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left

BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)  # seconds
STATUSES = (
    200,
    204,
    206,
    301,
    304,
    400,
    401,
    403,
    404,
    405,
    408,
    411,
    412,
    413,
    414,
    416,
    431,
    500,
    501,
    502,
    503,
    505,
)
OTHER = "other"

NAMES = [
    *(f"status_{status}" for status in (*STATUSES, OTHER)),
    *(f"le_{bound}" for bound in (*BUCKETS, "inf")),
    "bytes",
    "microseconds",
    "connections",
    "accepted",
    "turned_away",
    "aborted",
]
_AT = {name: number for number, name in enumerate(NAMES)}
ROW = 8 * len(NAMES)


class Metrics:
    """`fd`: shared memory for `rows` processes, of which this is number `row`; None: its own."""

    def __init__(self, fd: int | None = None, row: int = 0, rows: int = 1) -> None:
        self._map = mmap.mmap(-1 if fd is None else fd, ROW * rows)
        self._all = memoryview(self._map).cast("q")
        self._mine = self._all[row * len(NAMES) : (row + 1) * len(NAMES)]
        self._mine[_AT["connections"]] = 0  # of a process that was here before
        self._statuses = {status: _AT[f"status_{status}"] for status in STATUSES}

    def add(self, name: str, count: int = 1) -> None:
        self._mine[_AT[name]] += count

    def note(self, status: int, nbytes: int, seconds: float) -> None:
        """Count an answer."""
        mine = self._mine
        mine[self._statuses.get(status, _AT["status_other"])] += 1
        mine[_BYTES] += nbytes
        mine[_MICROSECONDS] += int(seconds * 1e6)
        mine[_FIRST + bisect_left(BUCKETS, seconds)] += 1

    def total(self, name: str) -> int:
        return sum(self._all[_AT[name] :: len(NAMES)].tolist())

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        lines = ["# HELP wds_serve_requests_total Answers by status.", "# TYPE wds_serve_requests_total counter"]
        for status in (*STATUSES, OTHER):
            if count := self.total(f"status_{status}"):
                lines.append(f'wds_serve_requests_total{{status="{status}"}} {count}')
        name = "wds_serve_request_seconds"
        lines += [f"# HELP {name} From the end of a request to the end of its answer.", f"# TYPE {name} histogram"]
        count = 0
        for bound in (*BUCKETS, "inf"):
            count += self.total(f"le_{bound}")
            lines.append(f'{name}_bucket{{le="{"+Inf" if bound == "inf" else bound}"}} {count}')
        lines += [f"{name}_sum {self.total('microseconds') / 1e6}", f"{name}_count {count}"]
        for key, kind, help_text in (
            ("bytes", "counter", "Bytes handed to the kernel, heads included."),
            ("connections", "gauge", "Connections that are open."),
            ("accepted", "counter", "Connections that were opened."),
            ("turned_away", "counter", "Connections that were closed because there were too many."),
            ("aborted", "counter", "Answers that were closed short."),
        ):
            full = f"wds_serve_{key}" if kind == "gauge" else f"wds_serve_{key}_total"
            lines += [f"# HELP {full} {help_text}", f"# TYPE {full} {kind}", f"{full} {self.total(key)}"]
        return "\n".join(lines) + "\n"


_BYTES, _MICROSECONDS, _FIRST = _AT["bytes"], _AT["microseconds"], _AT[f"le_{BUCKETS[0]}"]


def shared(rows: int) -> int:
    """The descriptor of memory for so many processes."""
    fd = os.memfd_create("wds-serve-metrics", 0)
    os.ftruncate(fd, ROW * rows)
    return fd
