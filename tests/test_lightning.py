"""DataModule and DataWait in real Trainers: epochs, checkpoints anywhere, two processes, what a step waits for."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from indexing import build_of, labelled, save

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402

from wdstools.dataset import Dataset  # noqa: E402
from wdstools.errors import StateError  # noqa: E402
from wdstools.lightning import DataModule, DataWait  # noqa: E402
from wdstools.plan import Plan  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:.*The number of training batches .* is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*Starting from v1.9.0, `tensorboardX` has been removed"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
]
COUNT, BATCH = 53, 4
STEPS = COUNT // BATCH


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("shards")
    files = labelled([str(i) for i in range(COUNT)])
    return Dataset(save(build_of(folder, [files[:60], files[60:]]), folder / "t.wdsindex"))


def number(sample: dict[str, Any]) -> int:
    return int(sample["cls"])


class Model(LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append((self.trainer.current_epoch, batch.tolist()))
        return self.weight.sum() + batch.float().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch.tolist())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch.tolist())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def module(dataset: Dataset, **options: Any) -> DataModule:
    return DataModule(train=dataset, **{"batch_size": BATCH, "seed": 5, "transform": number} | options)


def trainer(folder: Path, **options: Any) -> Trainer:
    given: dict[str, Any] = {
        "max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(**given | options)


def epochs(first: int, end: int) -> list[tuple[int, list[int]]]:
    plan = Plan(COUNT, seed=5, batch_size=BATCH)
    return [(e, rows.tolist()) for e in range(first, end) for rows in plan.with_epoch(e).batches()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_is_epochs(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    model = Model()
    data = module(dataset, num_workers=workers, val=dataset[:10], val_options={"batch_size": 3})
    trainer(tmp_path).fit(model, data)
    assert model.seen == epochs(0, 3)
    once = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert model.validated == once[:2] + once * 3  # the sanity check, then every epoch the same


@pytest.mark.parametrize(("workers", "limit"), [(0, None), (0, 9), (2, None)])
def test_checkpoints_anywhere_go_on_exactly(dataset: Dataset, tmp_path: Path, workers: int, limit: int | None) -> None:
    """In an epoch, behind its last batch, at its end, with a validation amidst."""
    limits = {} if limit is None else {"limit_train_batches": limit}
    whole = [(e, batch) for e in range(3) for _, batch in epochs(e, e + 1)[:limit]]
    steps = len(whole) // 3
    every = ModelCheckpoint(tmp_path, "step-{step}", every_n_train_steps=1, save_top_k=-1)
    ends = ModelCheckpoint(tmp_path, "end-{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    more = {"val_check_interval": 4, "enable_checkpointing": True, **limits}
    first = Model()
    trainer(tmp_path, callbacks=[every, ends], **more).fit(first, module(dataset, val=dataset[:5]))
    assert first.seen == whole
    stops = {f"step-step={step}": step for step in (1, 5, steps - 1, steps, steps + 3, 2 * steps)}
    stops |= {f"end-epoch={epoch}": (epoch + 1) * steps for epoch in range(2)}
    if workers:
        stops = {name: stops[name] for name in ("step-step=5", "end-epoch=0")}
    for name, step in stops.items():
        second = Model()
        more["enable_checkpointing"] = False
        data = module(dataset, val=dataset[:5], num_workers=workers)
        trainer(tmp_path, **more).fit(second, data, ckpt_path=tmp_path / f"{name}.ckpt")
        assert second.seen == whole[step:], name


def test_a_checkpoint_of_other_data_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    stop = trainer(tmp_path, max_steps=5)
    stop.fit(Model(), module(dataset))
    stop.save_checkpoint(tmp_path / "a.ckpt")
    for data, told in (
        (module(dataset, seed=6), "seed is 5 in the state and 6 here"),
        (module(dataset[:50]), "n is 53"),
    ):
        with pytest.raises(StateError, match=told):
            trainer(tmp_path).fit(Model(), data, ckpt_path=tmp_path / "a.ckpt")


def test_a_training_that_max_steps_ended(dataset: Dataset, tmp_path: Path) -> None:
    """The Trainer counts the epoch as read; its rest comes first all the same."""
    stop = trainer(tmp_path, max_steps=5)
    stop.fit(Model(), module(dataset))
    stop.save_checkpoint(tmp_path / "a.ckpt")
    model = Model()
    trainer(tmp_path).fit(model, module(dataset), ckpt_path=tmp_path / "a.ckpt")
    assert [batch for _, batch in model.seen] == [batch for _, batch in epochs(0, 2)[5:]]


def test_fit_again(dataset: Dataset, tmp_path: Path) -> None:
    model, data = Model(), module(dataset)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, data)
    fit.fit_loop.max_epochs = 2
    fit.fit(model, data)
    assert model.seen == epochs(0, 2)


def test_test_and_what_is_lacking(dataset: Dataset, tmp_path: Path) -> None:
    model = Model()
    trainer(tmp_path).test(model, module(dataset, test=dataset[:6], resample=True), verbose=False)
    assert model.validated == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(ValueError, match="no test="):
        trainer(tmp_path).test(model, module(dataset), verbose=False)
    with pytest.raises(ValueError, match="no train="):
        trainer(tmp_path).fit(model, DataModule(batch_size=4))
    lone = module(dataset)
    assert len(lone.train_dataloader()) == STEPS
    assert lone.state_dict()["train"]["step"] == 0
    assert DataModule(batch_size=1).state_dict() == {}


def test_overfitting_reads_the_same_batches(dataset: Dataset, tmp_path: Path) -> None:
    model = Model()
    trainer(tmp_path, overfit_batches=2, max_epochs=2, limit_val_batches=0).fit(model, module(dataset))
    assert [batch for _, batch in model.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


SCRIPT = """
import json, sys
sys.path[:0] = [{tests!r}]
from lightning.pytorch.callbacks import ModelCheckpoint
from test_lightning import Model, module, trainer
import wdstools

class Noting(Model):
    def on_train_end(self):
        with open(f"{{folder}}/{{self.name}}-{{self.trainer.global_rank}}.json", "w") as file:
            json.dump([self.seen, self.validated], file)

def fit(name, epochs, checkpoint):
    model, dataset = Noting(), wdstools.open(folder + "/t.wdsindex")
    model.name = name
    every = ModelCheckpoint(folder, "{{step}}", every_n_train_steps=9, save_top_k=-1)
    data = module(dataset, batch_size=2, num_workers=1, val=dataset[:5])
    options = dict(max_epochs=epochs, enable_checkpointing=True, callbacks=[every])
    trainer(folder, devices=2, strategy="ddp_fork", **options).fit(model, data, ckpt_path=checkpoint)

if __name__ == "__main__":
    folder = sys.argv[1]
    fit("first", 1, None)
    fit("second", 2, folder + "/step=9.ckpt")
"""


def test_two_processes(dataset: Dataset, tmp_path: Path) -> None:
    """Each has its part; from a checkpoint in the midst of an epoch two go on, and so does one."""
    index = save(build_of(tmp_path, [labelled([str(i) for i in range(COUNT)])]), tmp_path / "t.wdsindex")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]

    def together(name: str) -> list[tuple[int, list[int]]]:
        seen = [json.loads((tmp_path / f"{name}-{rank}.json").read_text())[0] for rank in range(2)]
        return [(parts[0][0], list(itertools.chain(*(part[1] for part in parts)))) for parts in zip(*seen, strict=True)]

    assert together("first") == epochs(0, 1)
    assert together("second") == epochs(0, 2)[9:]
    validated = [json.loads((tmp_path / f"first-{rank}.json").read_text())[1] for rank in range(2)]
    assert [batches[:2] for batches in validated] == [[[0, 1], [4, 0]], [[2, 3], [1, 2]]]  # padded: equally many
    alone = Model()
    trainer(tmp_path, max_epochs=2).fit(alone, module(Dataset(index)), ckpt_path=tmp_path / "step=9.ckpt")
    assert alone.seen == epochs(0, 2)[9:]


class Slow:
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> int:
        time.sleep(0.03 if i == 7 else 0.003)
        return i


def test_data_wait(tmp_path: Path) -> None:
    wait = DataWait()
    assert wait.summary() == {"steps": 0, "median": 0.0, "p99": 0.0, "share": 0.0}
    save = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    logger = CSVLogger(tmp_path)
    data = DataModule(train=Slow(), val=Slow(), batch_size=2, shuffle=False)
    options: dict[str, Any] = {"enable_checkpointing": True, "logger": logger, "log_every_n_steps": 1}
    trainer(tmp_path, callbacks=[wait, save], max_epochs=2, **options).fit(Model(), data)
    found = wait.summary()
    assert 14 <= found["steps"] <= 18  # of 20, those behind a checkpoint are not counted
    assert 0.006 < found["median"] < 0.03 < found["p99"] < 1
    assert 0 < found["share"] < 1
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert {"data_wait", "data_wait/median", "data_wait/p99", "data_wait/share"} <= set(lines[0].split(","))


def test_nothing_in_the_package_loads_it() -> None:
    code = "import sys, wdstools, wdstools.loader; wdstools.iterable; print('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
