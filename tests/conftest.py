"""What the tests share: hypothesis without deadlines, the same examples in every run of CI, what a process holds."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "wdstools", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", parent=settings.get_profile("wdstools"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "wdstools")


# A process keeps what it has first seen of these, so that they cannot be set for a test alone.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

MAY_SKIP = "may_skip(reason): in CI too this test may be skipped, for this reason"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MAY_SKIP)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # behind a `&`; programs would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI"):
        config.pluginmanager.register(NoSilentSkips(), "no-silent-skips")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests over Ceph, which takes a while to start and is large to install, are run where they are asked for."""
    if "ceph" not in config.getoption("markexpr"):
        asked = [item for item in items if item.get_closest_marker("ceph") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(asked)])
        items[:] = asked


def pytest_collection_finish() -> None:
    """What has been imported by now stays: half a million objects, which every later collection would look at again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain of what is there when the interpreter ends


class NoSilentSkips:
    """Where CI is set, a test that did not run fails the session, unless it is marked with may_skip: an extra that is
    not installed, or a mark that was meant for a day, must not take tests away in silence."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # in the report, which pytest-xdist brings from the process that has the item
        marks = item.iter_markers("may_skip")
        report.may_skip = any(mark.args and isinstance(mark.args[0], str) for mark in marks)  # type: ignore[attr-defined]
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)  # a module that skips itself

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and not getattr(report, "may_skip", False):
            expected = getattr(report, "wasxfail", None)
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[report.nodeid] = reason if expected is None else f"xfail: {expected}"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.skipped:
            terminalreporter.section("skipped in CI", red=True)
            for nodeid, reason in sorted(self.skipped.items()):
                terminalreporter.line(f"{nodeid}: {reason}")
            terminalreporter.line('run them, or mark them with @pytest.mark.may_skip("reason")')


def held() -> tuple[int, int, int]:
    """Descriptors, threads of Python, threads of the kernel."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(os.listdir("/proc/self/task"))


def no_more(after: tuple[int, ...], before: tuple[int, ...]) -> bool:
    """Whether nothing that is counted has grown."""
    return all(a <= b for a, b in zip(after, before, strict=True))


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Poll until a condition holds; false where it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves as many descriptors and threads as it found."""
    before = held()
    yield
    # a thread of the kernel may outlive its join() for a moment
    wait_until(lambda: no_more(held(), before), 2)
    after = held()
    assert no_more(after, before), (before, after)
