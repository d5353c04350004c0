"""Several processes on one port: started, watched, started again where one dies, stopped together.

The kernel deals connections out (SO_REUSEPORT). A worker whose stdin ends has lost its supervisor, and stops.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

from wdstools.errors import StoreError
from wdstools.serve.metrics import shared
from wdstools.serve.server import bind
from wdstools.serve.settings import Settings

log = logging.getLogger("wdstools")

SOON = 1.0  # seconds that a worker has to live; one that dies sooner is started again only after as long
PATIENCE = 60.0  # seconds for a worker to start
GRACE = 5.0  # seconds after `drain` in which a worker has to be gone


class Worker:
    """One process. `number`: its row in the metrics."""

    def __init__(self, settings: Settings, number: int, memory: int) -> None:
        self.number, self.began = number, time.monotonic()
        command = [sys.executable, "-m", "wdstools.serve.worker", str(number), str(memory)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[memory], text=True, process_group=0
        )
        pipe = self.process.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # it died: whoever waits for it will see
                pipe.write(settings.dumps() + "\n")
                pipe.flush()

    def wait_until_it_listens(self) -> bool:
        out = self.process.stdout
        if out is None or not select.select([out], [], [], PATIENCE)[0]:
            return False
        return out.readline() == "ready\n"

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Supervisor:
    """The processes of a server."""

    def __init__(self, settings: Settings) -> None:
        # Bound, never listening: it holds the port, also a free one that the kernel chose.
        self._holder = bind(settings.host, settings.port, shared=True)
        self.port: int = self._holder.getsockname()[1]
        self._settings = replace(settings, port=self.port)
        self._memory = shared(settings.processes)
        self._workers: list[Worker] = []
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT. Raises StoreError: a process does not start."""
        wake, poke = os.pipe()
        os.set_blocking(poke, False)
        before = signal.set_wakeup_fd(poke)
        handlers = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            self._workers = [self._start(number) for number in range(self._settings.processes)]
            if not all(worker.wait_until_it_listens() for worker in self._workers) and not self._stopping:
                raise StoreError("a process did not start; what it said is above")
            if not self._stopping:
                ready()
            while not self._stopping:
                select.select([wake], [], [], 1.0)
                with contextlib.suppress(BlockingIOError):
                    os.set_blocking(wake, False)
                    os.read(wake, 4096)
                self._restart_dead()
        finally:
            self._end()
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for fd in (wake, poke, self._memory):
                os.close(fd)
            self._holder.close()

    def _start(self, number: int) -> Worker:
        return Worker(self._settings, number, self._memory)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _restart_dead(self) -> None:
        for i, worker in enumerate(self._workers):
            code = worker.process.poll()
            if code is None or self._stopping or time.monotonic() - worker.began < SOON:
                continue
            log.error("process %d ended with %d: it is started again", worker.process.pid, code)
            worker.close()
            self._workers[i] = self._start(worker.number)

    def _end(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
        deadline = time.monotonic() + self._settings.drain + GRACE
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.close()
