"""The lock of a bucket: of several that take it over at once one does, and clocks say nothing."""

from __future__ import annotations

import contextlib
import json
import threading
import time

import pytest
from test_convert_bucket import Bucket, bucket, servers  # noqa: F401 - fixtures

from wdstools.convert import lock, place
from wdstools.errors import DestinationError

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
GONE = {"nonce": "x", "host": "elsewhere", "machine": "m", "pid": 1, "started": "1", "began": "2001-01-01T00:00Z"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.3)
    monkeypatch.setattr(lock, "WATCH", 1.5)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_only_the_version_that_was_read_is_replaced(bucket: Bucket, scheme: str) -> None:  # noqa: F811
    url = bucket(scheme) + "/.x.wdslock"
    store, name = place.bucket(url)
    place.write(url, b"one")
    _, was = place.read_version(url) or pytest.fail("nothing there")
    assert store.replace(name, b"two", was) is True
    if scheme == "gs":
        return  # its emulator does not heed the condition
    assert store.replace(name, b"three", was) is False
    assert place.read(url) == b"two"
    _, was = place.read_version(url) or pytest.fail("nothing there")
    place.remove(url)
    assert store.replace(name, b"four", was) is False
    assert place.read(url) is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scheme", ["s3", "az"])
@pytest.mark.parametrize("force", [False, True])
def test_of_many_that_take_over_one_does(bucket: Bucket, scheme: str, force: bool) -> None:  # noqa: F811
    url = bucket(scheme) + "/.x.wdslock"
    place.write(url, json.dumps(GONE).encode())
    ready, taken, refused = threading.Barrier(4), list[lock.Lock](), list[str]()

    def take() -> None:
        ready.wait()
        try:
            taken.append(lock.Lock(url, force))
        except DestinationError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for held in taken:
        with contextlib.suppress(DestinationError):
            held.check()
    assert len([held for held in taken if not held._lost]) == 1
    assert force or (len(taken), len(refused)) == (1, 3)  # with force, one takes the place of the other
    for held in taken:
        held.close()
    assert place.read(url) is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("jump", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_clock_that_jumps(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:  # noqa: F811
    """Of the owner and of who waits, again and again: the lock is neither lost nor taken over."""
    url = bucket("s3") + "/.x.wdslock"
    now, gmtime = time.time, time.gmtime
    held = lock.Lock(url)
    jumped = [0.0]
    monkeypatch.setattr(lock.time, "time", lambda: now() + jumped[0])
    monkeypatch.setattr(lock.time, "gmtime", lambda *at: gmtime(*(at or (now() + jumped[0],))))
    for turn in range(3):
        jumped[0] = jump if turn % 2 == 0 else -jump / 2
        with pytest.raises(DestinationError, match="another wds-shard is at work"):
            lock.Lock(url)
        held.check()
    held.close()


@pytest.mark.usefixtures("quick")
def test_a_slow_renewal_does_not_undo_a_takeover(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """It is taken over between the look and the write of its renewal."""
    url = bucket("s3") + "/.x.wdslock"
    held = lock.Lock(url)
    replace = place.replace

    def slow(*args: object) -> bool:
        monkeypatch.setattr(place, "replace", replace)
        place.write(url, json.dumps({**GONE, "nonce": "y"}).encode())
        return replace(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(place, "replace", slow)
    until = time.monotonic() + 10
    while b'"y"' not in (place.read(url) or b"") and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)
    assert json.loads(place.read(url) or b"{}")["nonce"] == "y"
    with pytest.raises(DestinationError, match="has taken this destination over"):
        held.check()
    held.close()
    assert json.loads(place.read(url) or b"{}")["nonce"] == "y"
