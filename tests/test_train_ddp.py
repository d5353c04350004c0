"""Two ranks in every regime by both engines; resume on other ranks; what a plain loop makes of its settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("hydra")

import ranks  # noqa: E402

from bench.train import ddp, run  # noqa: E402
from bench.train.regimes import counts  # noqa: E402
from bench.train.settings import load  # noqa: E402
from wdstools.errors import StateError  # noqa: E402

COUNTS = (1003, 993)  # with batch 8: both ranks have a short batch at the end; only one of them has one
REGIMES = ("exact", "resample", "uneven", "padded")
ENGINES = ("ddp", "lightning")
ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.timeout(240),  # the first waits for all of two ranks
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("shards")
    return {n: ranks.make(folder / str(n), n) for n in (*COUNTS, 20)}


def halves(engine: str) -> list[str]:
    return [f"engine={engine}", "epochs=2", "checkpoint_every=10"]


@pytest.fixture(scope="module")
def first(shards: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """20 steps on one rank, of 16 samples each, by both engines."""
    out = tmp_path_factory.mktemp("first")
    return {
        engine: ranks.trained(
            ranks.overrides(shards[993], shards[20], out / engine, *halves(engine), "batch_size=16", "max_steps=20")
        )
        | {"checkpoint": out / engine / "checkpoints" / "last.ckpt"}
        for engine in ENGINES
    }


@pytest.fixture(scope="module")
def both(
    shards: dict[int, Path], first: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """What each of two ranks saw: one torchrun goes through all of it, in one process group."""
    folder = tmp_path_factory.mktemp("both")
    jobs = []
    for engine in ENGINES:
        for regime in REGIMES:
            for n in COUNTS if regime == "uneven" else COUNTS[:1]:
                epochs = 2 if n == 993 else 1
                more = (f"engine={engine}", f"regime={regime}", f"epochs={epochs}")
                name = f"{engine}-{regime}-{n}"
                jobs.append((name, ranks.overrides(shards[n], shards[20], folder / name, *more)))
        more = (*halves(engine), f"resume='{first[engine]['checkpoint']}'", "max_steps=40")
        jobs.append((f"{engine}-second", ranks.overrides(shards[993], shards[20], folder / f"{engine}-second", *more)))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.ranks"]
    said = folder / "said"
    with open(said, "w") as file:
        process = subprocess.Popen([*command, str(folder / "jobs.json")], cwd=ROOT, stdout=file, stderr=file)
        try:
            code = process.wait(150)
        finally:  # torchrun, asked to end, ends its ranks
            process.terminate()
            process.wait()
    assert code == 0, said.read_text()[-4000:]
    found = {name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)] for name, _ in jobs}
    for engine in ENGINES:
        found[f"{engine}-second"][0]["checkpoint"] = folder / f"{engine}-second" / "checkpoints" / "last.ckpt"
    return found


def promised(n: int, regime: str) -> list[tuple[int, int]]:
    return counts(n, 8, 2, regime)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("regime", REGIMES)
def test_every_rank_gets_what_its_regime_promises(
    both: dict[str, list[dict[str, Any]]], engine: str, regime: str
) -> None:
    found = both[f"{engine}-{regime}-1003"]
    assert [(sum(map(len, r["seen"])), len(r["seen"])) for r in found] == promised(1003, regime)
    keys = Counter(key for r in found for batch in r["seen"] for key in batch)
    if regime == "uneven":
        assert len(keys) == 1003
        assert set(keys.values()) == {1}
    elif regime == "exact":
        assert len(keys) == 1003 // 16 * 16
        assert set(keys.values()) == {1}
    elif regime == "padded":
        assert len(keys) == 1003
        assert sum(keys.values()) == 1008
        assert max(keys.values()) == 2
    else:
        assert len(keys) < sum(keys.values()) == 992


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rank_that_runs_out_waits_for_the_other(both: dict[str, list[dict[str, Any]]], engine: str) -> None:
    """Of 993 samples, the last is rank 1's alone, in each of two epochs."""
    found = both[f"{engine}-uneven-993"]
    assert promised(993, "uneven") == [(496, 62), (497, 63)]
    assert [len(r["seen"]) for r in found] == [2 * 62, 2 * 63]
    assert [r["steps"] for r in found] == [2 * 63] * 2
    orders = []
    for epoch in (0, 1):
        order = [key for r, n in zip(found, (62, 63), strict=True) for b in r["seen"][epoch * n :][:n] for key in b]
        assert len(set(order)) == len(order) == 993
        orders.append(order)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("name", [f"{regime}-1003" for regime in REGIMES] + ["uneven-993"])
def test_both_engines_come_to_the_same(both: dict[str, list[dict[str, Any]]], name: str) -> None:
    """In the second epoch of 993 too: with Join, the optimizer of the rank that ran out has to catch up."""
    for plain, lightning in zip(both[f"ddp-{name}"], both[f"lightning-{name}"], strict=True):
        assert plain["seen"] == lightning["seen"]
        assert plain["curve"] == pytest.approx(lightning["curve"], abs=1e-5)
        assert plain["weights"].keys() == lightning["weights"].keys()
        for weight, values in plain["weights"].items():
            assert values == pytest.approx(lightning["weights"][weight], abs=1e-5), weight
        for number in ("loss", "accuracy", "val_loss"):
            assert plain[number] == pytest.approx(lightning[number], abs=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_on_other_ranks_is_exact(
    both: dict[str, list[dict[str, Any]]],
    first: dict[str, dict[str, Any]],
    shards: dict[int, Path],
    tmp_path: Path,
    engine: str,
) -> None:
    """20 steps of 1 x 16, 20 of 2 x 8, and the rest of two epochs of 62 steps by 1 x 16, like one run of 1 x 16."""
    more = (*halves(engine), "batch_size=16")
    second = both[f"{engine}-second"]
    third = ranks.trained(
        ranks.overrides(shards[993], shards[20], tmp_path / "third", *more, f"resume='{second[0]['checkpoint']}'")
    )
    whole = ranks.trained(ranks.overrides(shards[993], shards[20], tmp_path / "whole", *more))
    middle = [a + b for a, b in zip(second[0]["seen"], second[1]["seen"], strict=True)]
    assert (len(first[engine]["seen"]), len(middle)) == (20, 20)
    assert first[engine]["seen"] + middle + third["seen"] == whole["seen"]
    assert len(whole["seen"]) == 124
    means = [(a + b) / 2 for a, b in zip(second[0]["curve"], second[1]["curve"], strict=True)]
    assert first[engine]["curve"] == pytest.approx(whole["curve"][:20], abs=1e-6)
    assert means == pytest.approx(whole["curve"][20:40], abs=1e-5)
    assert third["curve"] == pytest.approx(whole["curve"][40:], abs=1e-5)
    assert third["steps"] == whole["steps"] == 124


def settings(shards: dict[int, Path], out: Path, *more: str) -> Any:
    return load(ranks.overrides(shards[993], shards[20], out, "engine=ddp", *more))


def test_a_resumed_run_is_the_run(shards: dict[int, Path], tmp_path: Path) -> None:
    """On one rank, the weights are equal to the last bit, wherever the run was cut; at an epoch's end too."""
    given = ranks.overrides(shards[993], shards[20], tmp_path / "whole", "engine=ddp", "epochs=2", "batch_size=32")
    whole = ranks.trained(given)
    for steps in (7, 31):
        cut = ranks.overrides(shards[993], shards[20], tmp_path / str(steps), *given[-3:])
        begun = ranks.trained([*cut, f"max_steps={steps}"])
        rest = ranks.trained([*cut, "resume=auto"])
        assert begun["seen"] + rest["seen"] == whole["seen"]
        assert rest["weights"] == whole["weights"]
        assert begun["curve"] + rest["curve"] == whole["curve"]


def test_a_checkpoint_of_other_data_or_engine_is_refused(shards: dict[int, Path], tmp_path: Path) -> None:
    run.train(settings(shards, tmp_path / "a", "max_steps=3"))
    checkpoint = tmp_path / "a" / "checkpoints" / "last.ckpt"
    with pytest.raises(StateError, match="global_batch is 8 in the state and 16 here"):
        run.train(settings(shards, tmp_path / "b", f"resume='{checkpoint}'", "batch_size=16"))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is no checkpoint of engine=ddp: it has no accuracy, epoch"):
        run.train(settings(shards, tmp_path / "c", f"resume='{tmp_path / 'other.ckpt'}'"))


@pytest.mark.parametrize("precision", ["bf16", "32"])
def test_precision_and_layout(shards: dict[int, Path], tmp_path: Path, precision: str) -> None:
    """What it comes to is near what float32 comes to, and its weights are float32."""
    given = ("batch_size=32", "max_steps=20", "channels_last=true", f"precision={precision}")
    result = run.train(settings(shards, tmp_path / precision, "model=cnn", *given))
    assert result.steps == len(result.curve) == 20
    assert result.curve[-1] < result.curve[0]
    weights = torch.load(str(result.checkpoint), weights_only=True)["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    assert result.data_wait["steps"] == 20
    assert 0 < result.data_wait["share"] < 1


def test_no_checkpoint_half_written(shards: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full leaves the checkpoint that was there."""
    run.train(settings(shards, tmp_path, "max_steps=3"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    before = path.read_bytes()

    def full(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ddp.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        run.train(settings(shards, tmp_path, "max_steps=5", "resume=auto"))
    assert path.read_bytes() == before
