"""What the tests share: hypothesis without deadlines, the same examples in every run of CI, what a process holds."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "wdstools", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", parent=settings.get_profile("wdstools"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "wdstools")


def held() -> tuple[int, int, int]:
    """Descriptors, threads of Python, threads of the kernel."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task"))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Poll until a condition holds; false where it never does."""
    ready = threading.Event()
    for _ in range(int(seconds * 100)):
        if condition():
            return True
        ready.wait(0.01)
    return condition()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves as many descriptors and threads as it found."""
    before = held()
    yield
    # a thread of the kernel may outlive its join() for a moment
    wait_until(lambda: held() <= before, 2)
    after = held()
    assert all(a <= b for a, b in zip(after, before, strict=True)), (before, after)
