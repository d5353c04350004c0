"""Every attack through every way in: the error that it must give, and never a sample that is wrong or partial."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from attacks import ATTACKS, Attack
from helpers import URL, WAYS, items, reference, regular, samples_of, stream, take

from wdstools import _core, tar
from wdstools.errors import ShardError

attacked = pytest.mark.parametrize("attack", [pytest.param(a, id=name) for name, a in ATTACKS.items() if a.error])
sound = pytest.mark.parametrize("attack", [pytest.param(a, id=name) for name, a in ATTACKS.items() if not a.error])
ways = pytest.mark.parametrize("way", list(WAYS))


def check(error: Exception | None, attack: Attack) -> None:
    assert type(error) is attack.error, error
    assert isinstance(error, ShardError)
    assert error.url == URL
    assert attack.text in str(error)
    if attack.offset is not None:
        assert error.offset == attack.offset


def true_samples(attack: Attack) -> list[dict[str, Any]]:
    return [{**s, "__key__": s["__key__"].decode("utf-8", "surrogateescape"), "__url__": URL} for s in attack.samples]


@attacked
@ways
@pytest.mark.parametrize("views", [False, True])
def test_stream(attack: Attack, way: str, views: bool) -> None:
    got, error = stream(attack.data, way, views=views)
    check(error, attack)
    assert [dict(s) for s in items(got)] == true_samples(attack)[: len(got)]


@attacked
@pytest.mark.parametrize("block_bytes", [512, 700])
def test_stream_over_small_blocks(attack: Attack, block_bytes: int) -> None:
    got, error = stream(attack.data, "readinto", block_bytes=block_bytes)
    check(error, attack)
    assert got == true_samples(attack)[: len(got)]


@attacked
@ways
def test_scan(attack: Attack, way: str) -> None:
    with WAYS[way](attack.data) as source:
        with pytest.raises(ShardError) as caught:
            _core.scan(source, URL)
    check(caught.value, attack)


@attacked
@ways
def test_walk(attack: Attack, way: str) -> None:
    with WAYS[way](attack.data) as source:
        _, error = take(_core.Walker(source, URL))
    if attack.keys_only:
        assert error is None
    else:
        check(error, attack)


@attacked
def test_walk_of_a_path(attack: Attack, tmp_path: Any) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(attack.data)
    _, error = take(tar.walk(path))
    assert type(error) is (None.__class__ if attack.keys_only else attack.error)
    if error:
        assert str(path) in str(error)


@attacked
def test_the_stream_is_over_after_an_error(attack: Attack) -> None:
    with regular(attack.data) as fd:
        samples = _core.Stream(fd, URL)
        take(samples)
        assert next(samples, None) is None


@sound
@ways
@pytest.mark.parametrize("views", [False, True])
def test_valid(attack: Attack, way: str, views: bool) -> None:
    got = samples_of(attack.data, way, views=views)
    assert [dict(s) for s in items(got)] == true_samples(attack)


@sound
@pytest.mark.parametrize("block_bytes", [1, 7, 512, 700, 5000])
def test_valid_over_small_blocks(attack: Attack, block_bytes: int) -> None:
    data = attack.data if len(attack.data) < 100_000 or block_bytes > 100 else attack.data[-3000:]
    if data is attack.data:
        assert samples_of(data, "readinto", block_bytes=block_bytes) == true_samples(attack)
    else:  # the end of a long PAX header is no header
        assert stream(data, "readinto", block_bytes=block_bytes)[1] is not None


@sound
def test_valid_as_tarfile_says(attack: Attack) -> None:
    with tarfile.open(fileobj=io.BytesIO(attack.data)) as archive:
        want = [(m.name, m.offset_data, m.isreg() and not m.issparse()) for m in archive]
    for way in WAYS.values():
        with way(attack.data) as source:
            got = [(m[0], m[5], m[1] == "f") for m in _core.Walker(source, URL)]
        assert got == want


@sound
def test_valid_as_webdataset_says(attack: Attack) -> None:
    want = reference(attack.data)
    assert [dict(s) for s in items(samples_of(attack.data))] == want == true_samples(attack)


@sound
@ways
def test_valid_scan(attack: Attack, way: str) -> None:
    with WAYS[way](attack.data) as source:
        columns = _core.scan(source, URL)
    keys = b"".join(s["__key__"].encode("utf-8", "surrogateescape") for s in true_samples(attack))
    assert columns["keys"] == keys
    assert columns["nbytes"] == len(attack.data)
