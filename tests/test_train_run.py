"""Trainings in this process: what comes of one, and going on exactly from wherever it was stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

import wdstools
from tests import trained
from tests.serving import serving
from tests.trained import BATCH, COUNT, naive_split, settings, train

from bench.train import loaders, run  # isort: skip
from bench.train.module import Classifier
from bench.train.settings import WrongSettings
from bench.train.stopping import Stopped

pytestmark = trained.QUIET


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.make(tmp_path_factory.mktemp("pictures") / "shards")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> run.Result:
    """A training of two epochs that nothing disturbed."""
    return train(shards, tmp_path_factory.mktemp("whole"))


def weights(result: run.Result) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(result.checkpoint, weights_only=False)["state_dict"]
    return found


def same(a: run.Result, b: run.Result) -> bool:
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


def test_what_comes_of_a_training(shards: Path, whole: run.Result, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = wdstools.open(shards)
    val = naive_split(dataset)
    steps = (COUNT - val) // BATCH
    assert (whole.steps, len(whole.curve)) == (2 * steps, 2 * steps)
    assert whole.data_wait["steps"] == 2 * steps
    assert whole.curve[0] != whole.curve[steps]
    out = Path(whole.out)
    saved = json.loads((out / run.RESULT).read_text())
    assert saved["curve"] == whole.curve
    assert saved["settings"]["data"]["train"] == str(shards)
    assert whole.samples_per_s is not None
    assert whole.samples_per_s > 0
    assert whole.gpu == {"gpu_not_measured": "no GPU is used"}
    record = next(iter(yaml.safe_load_all((out / "run.yaml").read_text())))
    assert record["data"]["train"]["samples"] == COUNT
    assert record["settings"]["batch_size"] == BATCH


def test_every_epoch_has_an_order_of_its_own(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    step = Classifier.training_step

    def noting(self: Classifier, batch: dict[str, Any], batch_idx: int) -> Any:
        seen.append(batch["key"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", noting)
    chosen = settings(shards, tmp_path, "epochs=3")
    run.train(chosen)
    feed = loaders.make(chosen, "train")
    plan = []
    for epoch in range(3):
        feed.set_epoch(epoch)
        plan += [batch["key"] for batch in feed]
    assert seen == plan
    assert len({tuple(seen[i]) for i in (0, len(seen) // 3, 2 * len(seen) // 3)}) == 3


def test_the_table_of_samples_is_the_models(shards: Path, whole: run.Result) -> None:
    """Key by key, against the model of the checkpoint on the samples themselves."""
    chosen = settings(shards, Path(whole.out))
    model = Classifier(chosen, Path(whole.out)).eval()
    model.load_state_dict(weights(whole))
    expected = {}
    with torch.no_grad():
        for batch in loaders.make(chosen, "val"):
            logits = model(batch["image"])
            losses = torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")
            for row in zip(batch["key"], batch["label"].tolist(), logits.argmax(1).tolist(), losses, strict=True):
                expected[row[0]] = row[1:]
    assert whole.samples is not None
    table = pq.read_table(whole.samples)
    assert table.column_names == ["key", "label", "prediction", "loss", "epoch"]
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == sorted(expected)
    for row in rows:
        label, prediction, loss = expected[row["key"]]
        assert (row["label"], row["prediction"], row["epoch"]) == (label, prediction, 1)
        assert row["loss"] == pytest.approx(float(loss), abs=1e-5)
    assert whole.val_loss == pytest.approx(sum(row["loss"] for row in rows) / len(rows), rel=1e-6)
    hits = sum(row["label"] == row["prediction"] for row in rows)
    assert whole.val_accuracy == pytest.approx(hits / len(rows))


def test_wds_serve_sorts_by_loss(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed line, as a shell takes it apart, with the real server."""
    result = train(shards, tmp_path / "a folder; (1)", "epochs=1")
    told = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("the worst samples: "))
    command, *arguments = shlex.split(told.removeprefix("the worst samples: "))
    assert command == "wds-serve"
    with serving(tmp_path, *arguments) as server:
        reply = server.ask("/-/samples?set=train&sort=loss&desc=1&limit=500")
    found = json.loads(reply.body)
    rows = pq.read_table(result.samples).sort_by([("loss", "descending")]).to_pylist()
    keys = [sample["key"] for sample in found["samples"]]
    assert keys[: len(rows)] == [row["key"] for row in rows]


class Boom(Exception):
    """What a test makes happen."""


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def boom() -> None:
    raise Boom


STEPS = (COUNT - 15) // BATCH


@pytest.mark.parametrize(
    ("method", "call", "what", "resumes_at"),
    [
        ("training_step", 4, term, 4),
        ("training_step", -1, term, -1),  # the last of the epoch: its validation is made up for
        ("validation_step", 1, term, -1),
        ("training_step", 4, boom, None),  # in a step: there is no checkpoint yet
        ("validation_step", 2, boom, -1),
    ],
)
def test_going_on_from_where_it_stopped(
    shards: Path, whole: run.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    method: str, call: int, what: Callable[[], None], resumes_at: int | None,
) -> None:  # fmt: skip
    steps = whole.steps // 2
    call, resumes_at = (steps if number == -1 else number for number in (call, resumes_at))
    with monkeypatch.context() as patched:
        original, calls = getattr(Classifier, method), []

        def disturbed(self: Classifier, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                what()
            return original(self, *arguments)

        patched.setattr(Classifier, method, disturbed)
        with pytest.raises((Stopped, Boom)) as stopped:
            train(shards, tmp_path)
    if what is term:
        assert stopped.value.code == 143  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if resumes_at is None:
        assert not (tmp_path / "checkpoints/last.ckpt").exists()
        resumes_at = 0
    result = train(shards, tmp_path, "resume=auto")
    assert result.curve == whole.curve[resumes_at:]
    assert same(result, whole)
    assert (result.val_loss, result.steps) == (whole.val_loss, whole.steps)
    assert sorted(os.listdir(tmp_path / "samples")) == ["epoch-000.parquet", "epoch-001.parquet"]
    assert len(list(yaml.safe_load_all((tmp_path / "run.yaml").read_text()))) == 2


def test_checkpoint_every_and_a_named_checkpoint(shards: Path, whole: run.Result, tmp_path: Path) -> None:
    first = train(shards, tmp_path / "a", "checkpoint_every=4", "max_steps=7")
    assert first.steps == 7
    second = train(shards, tmp_path / "b", f"resume='{first.checkpoint}'")
    assert first.curve + second.curve == whole.curve
    assert same(second, whole)


def test_folders_that_hold_a_run(shards: Path, whole: run.Result, tmp_path: Path) -> None:
    with pytest.raises(WrongSettings, match="resume=auto goes on with it"):
        train(shards, Path(whole.out))
    with pytest.raises(WrongSettings, match="no such file"):
        train(shards, tmp_path, "resume=/nothing.ckpt")
    again = train(shards, Path(whole.out), "resume=auto")  # nothing is left to do
    assert (again.steps, again.curve, again.val_loss) == (whole.steps, [], whole.val_loss)


def test_a_checkpoint_of_other_data(shards: Path, whole: run.Result, tmp_path: Path) -> None:
    with pytest.raises(wdstools.errors.StateError, match="seed is 0 in the state and 1 here"):
        train(shards, tmp_path, "seed=1", f"resume='{whole.checkpoint}'")


def test_a_loader_without_a_place_goes_on_between_epochs_only(shards: Path, tmp_path: Path) -> None:
    first = train(shards, tmp_path / "a", "loader=stream", "epochs=1")
    second = train(shards, tmp_path / "a", "loader=stream", "resume=auto")
    assert second.steps == 2 * first.steps
    train(shards, tmp_path / "b", "loader=stream", "max_steps=3")
    with pytest.raises(ValueError, match="loader=stream cannot resume in mid-epoch"):
        train(shards, tmp_path / "b", "loader=stream", "resume=auto")


def workers_of_this_process() -> list[int]:
    found = []
    for task in os.listdir("/proc/self/task"):
        found += [int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text().split()]
    return found


def test_a_worker_that_is_killed(
    shards: Path, whole: run.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(workers_of_this_process())
    with monkeypatch.context() as patched:
        step = Classifier.training_step

        def killing(self: Classifier, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 3:
                for pid in set(workers_of_this_process()) - before:
                    os.kill(pid, signal.SIGKILL)
            return step(self, batch, batch_idx)

        patched.setattr(Classifier, "training_step", killing)
        with pytest.raises((RuntimeError, ConnectionError, EOFError)) as killed:
            train(shards, tmp_path, "workers=1", "checkpoint_every=2")
    told = "\n".join([str(killed.value), *getattr(killed.value, "__notes__", [])])
    assert "is killed by signal: Killed" in told or "a worker died at step" in told
    result = train(shards, tmp_path, "workers=1", "resume=auto")
    assert result.curve == whole.curve[-len(result.curve) :]
    assert len(result.curve) >= whole.steps - 12
    assert same(result, whole)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_shard_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The error names it; once it is back, the training goes on as if nothing had been."""
    shards = trained.make(tmp_path / "shards")
    whole = train(shards, tmp_path / "whole", "epochs=1")
    lost = shards / "train-000003.tar"
    payload = lost.read_bytes()
    with monkeypatch.context() as patched:
        step = Classifier.training_step

        def losing(self: Classifier, batch: Any, batch_idx: int) -> Any:
            if self.trainer.global_step == 2:
                if how == "cut":
                    os.truncate(lost, 1024)
                else:
                    lost.unlink()  # who opened it goes on reading it: the validation opens it anew
            return step(self, batch, batch_idx)

        patched.setattr(Classifier, "training_step", losing)
        with pytest.raises((wdstools.WdsError, OSError), match=r"train-000003\.tar"):
            train(shards, tmp_path / "run", "epochs=1", "loader=indexed")
    stat = os.stat(shards / "train-000002.tar")
    lost.write_bytes(payload)
    os.utime(lost, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    result = train(shards, tmp_path / "run", "epochs=1", "resume=auto")
    left = len(result.curve)
    assert result.curve == whole.curve[whole.steps - left :]
    assert left < whole.steps if how == "cut" else left == 0
    assert result.val_loss == whole.val_loss


def test_in_a_thread_no_signals_are_taken(shards: Path, tmp_path: Path) -> None:
    found: list[run.Result] = []
    thread = threading.Thread(target=lambda: found.append(train(shards, tmp_path, "max_steps=1")))
    thread.start()
    thread.join()
    assert found[0].steps == 1


@pytest.mark.parametrize(
    "options", [["model=cnn", "precision=bf16", "channels_last=true"], ["optimizer=sgd", "lr=0.1"]]
)
def test_other_ways_to_compute(shards: Path, tmp_path: Path, options: list[str]) -> None:
    result = train(shards, tmp_path, "epochs=1", *options)
    assert result.curve[-1] < 5


def test_what_cannot_be_computed(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongSettings, match="precision=bf16 runs on a CPU"):
        train(shards, tmp_path, "precision=16")
    if not torch.cuda.is_available():
        with pytest.raises(WrongSettings, match="torch sees no GPU"):
            train(shards, tmp_path, "device=cuda")
