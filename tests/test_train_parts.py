"""What stands around a training: models, data that is made, the record, tables of samples, loggers."""

from __future__ import annotations

import io
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import wdstools
from tests import trained
from tests.conftest import wait_until

from bench.train import digits, loggers, models, persample, record  # isort: skip
from bench.train.gpu import Utilisation
from bench.train.settings import Data, WrongSettings, load

pytestmark = trained.QUIET


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_resnets_have_the_shapes_of_torchvision(name: str, count: int) -> None:
    """The numbers of weights are those that torchvision tells of its own."""
    model = models.ResNet(name, 1000)
    assert sum(p.numel() for p in model.parameters()) == count
    names = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias", "fc.bias"}
    names |= {"layer2.0.downsample.0.weight", "layer3.0.downsample.1.num_batches_tracked"}
    assert names <= set(model.state_dict())
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
    strides = [m.stride for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert len(strides) == 7  # the stem, and in three layers a block and its shortcut


@pytest.mark.parametrize("name", ["tiny", "cnn", "resnet18"])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 40)])
def test_models_learn_a_batch(name: str, channels: int, size: int) -> None:
    torch.manual_seed(0)
    model = models.build(name, 3, channels)
    images, labels = torch.randn(6, channels, size, size), torch.arange(6) % 3
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_model_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="none of tiny, cnn, resnet18, resnet50"):
        models.build("vgg", 10, 3)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    chosen = load([f"data.train='{tmp_path}/digits'", "data.size=8"])
    digits.prepare(chosen)
    truth = sklearn.load_digits()
    dataset = wdstools.open(tmp_path / "digits", decode="rgb")
    assert len(dataset) == 1797
    for i in (0, 900, 1796):
        sample = dataset[f"digit-{i:04d}"]
        assert sample["cls"] == truth.target[i]
        assert np.array_equal(sample["png"][:, :, 0], np.round(truth.images[i] * 255 / 16).astype(np.uint8))
    assert len(dataset.where("cls = 3")) == (truth.target == 3).sum()
    before = sorted(os.stat(path).st_mtime_ns for path in (tmp_path / "digits").iterdir())
    digits.prepare(chosen)
    assert sorted(os.stat(path).st_mtime_ns for path in (tmp_path / "digits").iterdir()) == before


@pytest.mark.parametrize(("image", "channels"), [("jpg", 3), ("png", 1), ("pgm", 1), ("npy", 3)])
def test_pictures(image: str, channels: int) -> None:
    data = Data(image=image, count=40, size=24, channels=channels, classes=4)
    samples = list(digits.pictures(data))
    assert [sample["__key__"] for sample in samples] == [f"picture-{i:07d}" for i in range(40)]
    assert {sample["cls"] for sample in samples} == set(range(4))
    assert samples == list(digits.pictures(data))
    if image == "npy":
        assert np.load(io.BytesIO(samples[0]["npy"])).shape == (3, 24, 24)
    else:
        picture = Image.open(io.BytesIO(samples[0][image]))
        assert picture.size == (40, 32)
        assert picture.mode == ("RGB" if channels == 3 else "L")


def test_shards_are_made_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing() -> Any:
        yield {"__key__": "a", "cls": 1}
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        digits.write(tmp_path / "data", failing())
    assert list(tmp_path.iterdir()) == []
    chosen = load([f"data.train='{tmp_path}/made'", "data=pictures", "data.count=30", "data.size=8"])
    with ThreadPoolExecutor(4) as pool:  # as several ranks do
        list(pool.map(lambda _: digits.prepare(chosen), range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert len(wdstools.open(tmp_path / "made")) == 30


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "not a git repository" in record.commit(tmp_path)["unknown"]
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    assert record.commit(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert record.commit(tmp_path)["dirty"] is True
    monkeypatch.setenv("PATH", "/nowhere")
    assert "git" in record.commit(tmp_path)["unknown"]


def test_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = trained.make(tmp_path / "shards", 30)
    found = record.start(trained.settings(shards, tmp_path / "out"), tmp_path / "out", world=2)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == found == yaml.safe_load((tmp_path / "out/run.yaml").read_text())
    assert list(found) == ["settings", "command", "git", "data", "versions", "machine", "started"]
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["machine"]["world"] == 2
    told = found["data"]["train"]
    assert told["samples"] == 30
    trained.make(tmp_path / "others", 31)
    others = record.told(trained.settings(tmp_path / "others", tmp_path), "train")
    assert others["fingerprint"] != told["fingerprint"]
    curl = ["source=pipe-curl", "source.endpoint=http://127.0.0.1:9", "loader=stream"]
    pipe = trained.settings(shards, tmp_path, *curl)
    assert record.told(pipe, "val") == {"shards": 2, "fingerprint": "unknown: this source has no index"}
    assert record.told(trained.settings(shards, tmp_path, "loader=synthetic"), "val") == {"fingerprint": "synthetic"}


def test_json_has_no_nan(tmp_path: Path) -> None:
    record.write_json(tmp_path / "a.json", {"a": [1.5, float("nan"), "x"], "b": {"c": float("inf")}, "d": None})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, "x"], "b": {"c": None}, "d": None}


def collected(keys: list[str]) -> persample.Samples:
    samples = persample.Samples()
    for i in range(0, len(keys), 3):
        part = keys[i : i + 3]
        logits = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(int(key))) for key in part])
        samples.add(part, torch.tensor([int(key) % 4 for key in part]), logits)
    return samples


def test_the_table_of_two_ranks() -> None:
    """Each sample once, though the padded tail brings some of them again."""
    ranks = [[str(i) for i in range(0, 21, 2)] + ["0"], [str(i) for i in range(1, 21, 2)] + ["1", "2"]]
    table = persample.merged([collected(keys).parts() for keys in ranks], 7)
    assert table.equals(collected([str(i) for i in range(21)]).table(7))
    assert table.column("key").to_pylist() == sorted(str(i) for i in range(21))
    assert set(table.column("epoch").to_pylist()) == {7}


def test_tables_without_samples(tmp_path: Path) -> None:
    table = persample.Samples().table(0)
    assert len(table) == 0
    assert all(np.isnan(value) for value in persample.metrics(table).values())
    assert persample.save(table, tmp_path, 3) == tmp_path / "samples/epoch-003.parquet"
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["epoch-003.parquet"]
    assert table.schema.field("key").type == pa.string()


@pytest.mark.parametrize(
    ("overrides", "source"),
    [
        (["data.train='/a b/c'"], "'/a b/c'"),
        (["data.train='/a/t-{000..001}.tar'"], "/a"),
        (["data.train=/a", "data.val=/v"], "/v"),
        (
            ["data.train='/a/t-{000..001}.tar'", "source=s3", "source.prefix=b/p", "source.endpoint=http://h"],
            "s3://b/p",
        ),
    ],
)
def test_the_command_that_shows_samples(overrides: list[str], source: str) -> None:
    chosen = load(overrides)
    assert persample.serve_command(chosen, Path("/x/$y")) == f"wds-serve {source} --annotations '/x/$y'"


def test_tensorboard_has_the_metrics(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shards = trained.make(tmp_path / "shards")
    result = trained.train(shards, tmp_path / "out", "logger=tensorboard", "log_every=2")
    events = accumulator.EventAccumulator(str(tmp_path / "out/tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "samples_per_s", "data_wait", "data_wait/p99", "train_loss", "val_loss", "val_accuracy"} <= tags
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(2, result.steps + 1, 2))
    assert [event.value for event in losses] == pytest.approx(result.curve[1::2])
    assert [event.value for event in events.Scalars("val_loss")][-1] == pytest.approx(result.val_loss)


def test_wandb_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that nobody answers under, and a mode that would ask it."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "online")
    shards = trained.make(tmp_path / "shards")
    for name in ("a", "b"):
        trained.train(shards, tmp_path / name, "logger=wandb", "epochs=1")
        written = list((tmp_path / name / "wandb").glob("offline-run-*/*.wandb"))
        assert len(written) == 1
        assert wait_until(lambda written=written: written[0].stat().st_size > 1000), "a process writes it behind us"


def test_a_logger_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(WrongSettings, match="logger=wandb: pip install wandb"):
        loggers.make(load(["logger=wandb"]), tmp_path)
    assert loggers.make(load(["logger=none"]), tmp_path) is None


def test_no_gpu_is_no_number() -> None:
    with Utilisation(None) as gpu:
        pass
    assert gpu.summary() == {"gpu_not_measured": "no GPU is used"}
    if not torch.cuda.is_available():
        with Utilisation(None) as gpu:
            assert gpu.percents == []


@pytest.mark.slow
def test_digits_are_learnt(tmp_path: Path) -> None:
    """Five epochs, more than 95% of those that were left out."""
    pytest.importorskip("sklearn")
    options = [f"data.train='{tmp_path}/digits'", f"out='{tmp_path}/out'", "logger=none", "workers=0", "device=cpu"]
    from bench.train import run

    with trained.one_thread():
        result = run.train(load(options))
    assert result.val_accuracy is not None
    assert result.val_accuracy > 0.95
