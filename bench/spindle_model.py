"""What a disk costs, without any disk: a head, a platter and a queue in virtual time.

The parameters are those of a 7200 rpm desktop or nearline disk: average seek for reading 8.5 ms (Hitachi Deskstar
7K1000.C, OEM specification, 4.5.2.1), single-track seek 1 ms, full stroke 16 ms, half a revolution 4.17 ms, 200 MB/s in
the outer zone (Seagate Barracuda ST1000DM010: 210). Seeks follow the curve of Ruemmler and Wilkes ("An introduction to
disk drive modeling", 1994): a square root for short distances, a line for long ones. Positions and lengths are bytes,
times are seconds.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Iterator
from typing import Literal

Order = Literal["batch", "greedy", "fifo"]
AGED = 0.5  # a greedy drive serves a request that has waited as long as this first, as mq-deadline does with a read


@dataclasses.dataclass(frozen=True)
class Disk:
    """One drive.

    `queue`: how many requests it sees at once (NCQ). `order`: how it chooses among them.
      batch: what has arrived is served in one sweep of ascending positions; what arrives meanwhile is for the next
             sweep (FSCAN; mq-deadline with its batches of 16 does about the same).
      greedy: the one that the head reaches first, and so a stream that always has a request waiting keeps the head
             until another request is AGED (shortest positioning time first).
      fifo: as they come.
    `segment`: the bytes of the drive's cache that one stream gets: an idle head reads on as far as this, and what
    it has passed over is there at once.
    """

    rate: float = 200e6
    rpm: float = 7200
    track_to_track: float = 0.0010
    average_seek: float = 0.0085
    full_stroke: float = 0.0160
    capacity: float = 1e12
    queue: int = 32
    order: Order = "batch"
    segment: int = 4 << 20

    @property
    def revolution(self) -> float:
        return 60 / self.rpm

    def seek(self, distance: float) -> float:
        """The time to move the head over `distance` bytes, in either direction, and to settle."""
        if not distance:
            return 0.0
        # a + b sqrt(x) + c x with x in [0, 1]: the mean over random pairs of positions is a + 8/15 b + c/3
        a, reach = self.track_to_track, self.full_stroke - self.track_to_track
        b = (self.average_seek - a - reach / 3) * 5
        x = min(abs(distance) / self.capacity, 1.0)
        return a + b * math.sqrt(x) + (reach - b) * x

    def rotation(self, position: float, time: float) -> float:
        """How long a head that has settled at `time` waits until `position` comes round."""
        angle = position / (self.rate * self.revolution) - time / self.revolution
        return (angle - math.floor(angle)) * self.revolution


@dataclasses.dataclass(eq=False)
class Request:
    """A read of `nbytes` from `position`, from the moment `arrival` on; `done` is set when the drive takes it up."""

    arrival: float
    position: int
    nbytes: int
    done: float | None = None


class Spindle:
    """One head: requests are put in with `submit`, `advance` decides all that has begun by a point of time."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.free = 0.0  # when the head is done with its last request
        self.head = int(disk.capacity / 2)  # the byte behind the last one read; at first it rests in the middle
        self.passed = self.head  # the head has passed over [passed, head) without a seek
        self.seeks = 0
        self.bytes = 0
        self.busy = 0.0
        self.pending: list[Request] = []
        self._sweep: list[Request] = []

    def submit(self, request: Request) -> None:
        self.pending.append(request)

    def advance(self, now: float) -> list[Request]:
        """Take up every request whose turn comes at or before `now`; returns them, each with its `done`."""
        taken = []
        while self.pending:
            start = max(self.free, min(request.arrival for request in self.pending))
            if start > now:
                break
            request = self._choose(start)
            self.pending.remove(request)
            self._serve(request, start)
            taken.append(request)
        return taken

    def _choose(self, start: float) -> Request:
        """The next of those that are here at `start`."""
        here = [request for request in self.pending if request.arrival <= start][: self.disk.queue]
        if self.disk.order == "fifo":
            return min(here, key=lambda request: request.arrival)
        if self.disk.order == "greedy":
            oldest = min(here, key=lambda request: request.arrival)
            if start - oldest.arrival >= AGED:
                return oldest
            return min(here, key=lambda request: self._cost(request, start)[0])
        if not self._sweep:
            ahead = sorted(here, key=lambda request: request.position)
            behind = [request for request in ahead if request.position < self.passed]
            self._sweep = [*ahead[len(behind) :], *behind]
        return self._sweep.pop(0)

    def _reach(self, start: float) -> float:
        """How far the head has read on by `start`, having been idle."""
        return min(self.head + max(start - self.free, 0.0) * self.disk.rate, self.head + self.disk.segment)

    def _cost(self, request: Request, start: float) -> tuple[float, bool]:
        """The time from `start` to the end of the request, and whether it takes a seek."""
        disk, end = self.disk, request.position + request.nbytes
        reach = self._reach(start)
        if max(self.passed, self.head - disk.segment) <= request.position:
            passing = max(end - reach, 0.0) / disk.rate
        else:
            passing = math.inf
        seek = disk.seek(request.position - self.head)
        seeking = seek + disk.rotation(request.position, start + seek) + request.nbytes / disk.rate
        return (passing, False) if passing <= seeking else (seeking, True)

    def _serve(self, request: Request, start: float) -> None:
        cost, sought = self._cost(request, start)
        end = request.position + request.nbytes
        if sought:
            self.passed, self.head = request.position, end
            self.seeks += 1
        else:
            self.head = max(self.head, end, int(self._reach(start)))
        self.free = request.done = start + cost
        self.bytes += request.nbytes
        self.busy += cost


class Array:
    """Spindles as one device: a single one, RAID-0, or RAID-5 (left-symmetric; a read passes over the parity).

    `chunk`: the bytes on one spindle before the next one follows.
    """

    def __init__(self, disk: Disk, spindles: int = 1, raid: int | None = None, chunk: int = 512 << 10) -> None:
        if raid not in (None, 0, 5):
            raise ValueError(f"RAID {raid}: only 0 and 5 are modelled")
        if spindles < {None: 1, 0: 2, 5: 3}[raid] or (raid is None and spindles > 1):
            raise ValueError(f"{spindles} spindles as RAID {raid}: none takes 1, RAID 0 at least 2, RAID 5 at least 3")
        self.spindles = [Spindle(disk) for _ in range(spindles)]
        self.raid, self.chunk = raid, chunk

    def place(self, position: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
        """Where bytes of the device lie: (spindle, position on it, nbytes), pieces of at most a chunk."""
        k, chunk, end = len(self.spindles), self.chunk, position + nbytes
        while position < end:
            if self.raid is None:
                yield 0, position, end - position
                return
            number, inside = divmod(position, chunk)
            row, column = divmod(number, k if self.raid == 0 else k - 1)
            if self.raid == 5:
                column = (k - 1 - row % k + 1 + column) % k  # the data begins behind the parity
            n = min(chunk - inside, end - position)
            yield column, row * chunk + inside, n
            position += n

    def split(self, arrival: float, position: int, nbytes: int) -> list[tuple[Spindle, Request]]:
        """The requests that one read of the device turns into: what continues on a spindle is one request."""
        parts: dict[int, list[Request]] = {}
        for index, where, n in self.place(position, nbytes):
            mine = parts.setdefault(index, [])
            if mine and mine[-1].position + mine[-1].nbytes == where:
                mine[-1].nbytes += n
            else:
                mine.append(Request(arrival, where, n))
        return [(self.spindles[index], request) for index, mine in parts.items() for request in mine]


def simulate(array: Array, streams: list[Iterator[tuple[int, int]]], depth: int = 1, think: float = 0.0) -> list[float]:
    """Readers side by side: each keeps `depth` reads outstanding, and sends the next one `think` seconds after the
    oldest is complete, as kernel read-ahead does with 2. Returns when each was done."""
    finished = [0.0] * len(streams)
    events: list[tuple[float, int, Callable[[float], None]]] = []
    ticket = iter(range(1 << 62))
    waiting: dict[Request, tuple[int, list[Request]]] = {}

    def at(time: float, call: Callable[[float], None]) -> None:
        heapq.heappush(events, (time, next(ticket), call))

    def wake(spindle: Spindle) -> Callable[[float], None]:
        def call(now: float) -> None:
            for request in spindle.advance(now):
                assert request.done is not None
                at(request.done, complete(request))
                at(request.done, wake(spindle))

        return call

    def complete(request: Request) -> Callable[[float], None]:
        def call(now: float) -> None:
            stream, parts = waiting.pop(request)
            parts.remove(request)
            if not parts:
                finished[stream] = now
                at(now + think, send(stream))

        return call

    def send(stream: int) -> Callable[[float], None]:
        def call(now: float) -> None:
            read = next(streams[stream], None)
            if read is None:
                return
            split = array.split(now, *read)
            parts = [request for _, request in split]
            for spindle, request in split:
                waiting[request] = stream, parts
                spindle.submit(request)
                at(now, wake(spindle))

        return call

    for stream in range(len(streams)):
        for _ in range(depth):
            at(0.0, send(stream))
    while events:
        now, _, call = heapq.heappop(events)
        call(now)
    return finished
