"""Who a process is: given, from torch.distributed, from the environment; and notes on what a transform raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wdstools.workers import rank_and_world, transformed, worker_and_workers


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_ranks_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_and_world() == (2, 4)
    assert rank_and_world(0, 2) == (0, 2)
    for half in ((1, None), (None, 1)):
        with pytest.raises(ValueError, match="give rank and world together"):
            rank_and_world(*half)
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ValueError, match="RANK='x' and WORLD_SIZE='4' of the environment are no numbers"):
        rank_and_world()


def test_ranks_of_a_process_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They count for more than the environment."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert rank_and_world() == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    assert rank_and_world() == (2, 4)


def test_nothing_is_loaded() -> None:
    code = (
        "import sys, wdstools.workers as w\n"
        "print(w.rank_and_world(), w.worker_and_workers(), {'torch', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "(0, 1) (0, 1) set()\n"
    assert worker_and_workers() == (0, 1)


def test_what_a_transform_raises() -> None:
    assert transformed(len, {"a": 1}) == 1
    for sample, told in (({"__key__": "k", "__url__": "u"}, "'k' of u"), (3, "None of None")):
        with pytest.raises(ZeroDivisionError) as raised:
            transformed(lambda _: 1 // 0, sample)
        assert raised.value.__notes__ == [f"in transform, of sample {told}"]
