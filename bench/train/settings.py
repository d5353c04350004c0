"""What can be set: the schema of the YAML files in conf/, and load(), which composes them as the command line does."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).with_name("conf")
LONGEST = 200  # characters of a folder's name

CHOICES = {
    "model": ("tiny", "cnn", "resnet18", "resnet50"),
    "optimizer": ("adamw", "sgd"),
    "loader": ("indexed", "stream", "webdataset", "imagefolder", "litdata", "synthetic"),
    "regime": ("exact", "resample", "uneven", "padded"),
    "engine": ("lightning", "ddp"),
    "launcher": ("local", "torchrun", "ssh", "ray"),
    "precision": ("32", "bf16", "16"),
    "device": ("auto", "cpu", "cuda"),
    "logger": ("tensorboard", "wandb", "none"),
    "decoder": ("pillow", "simplejpeg", "nvjpeg", "raw"),
    "source.kind": ("folder", "wds-serve", "nginx", "s3", "gcs", "pipe-curl", "pipe-fread"),
    "data.make": ("digits", "pictures", None),
}
AT_LEAST = {
    "epochs": 1, "batch_size": 1, "workers": 0, "ranks": 1, "prefetch": 0, "max_steps": 1, "checkpoint_every": 1,
    "log_every": 1, "block": 1, "data.classes": 2, "data.size": 1, "data.count": 1,
}  # fmt: skip


@dataclass
class Data:
    """The samples: shards of an image and the number of its class. See conf/data/."""

    name: str = "digits"
    train: str = MISSING  # a folder, an index, a set behind wds-serve, or a brace pattern of shards
    val: str | None = None  # the same; null: val_part of train, chosen by the hash of the key
    val_part: float = 0.1
    image: str = "png"  # the fields
    label: str = "cls"
    classes: int = 10
    size: int = 28  # pixels, of the side of the square that the model is given
    channels: int = 1
    augment: bool = False
    make: str | None = None  # what is made in the folder `train` where nothing is there
    count: int = 1000  # samples that `pictures` makes


@dataclass
class Source:
    """Where the shards are read from. See conf/source/."""

    kind: str = "folder"
    endpoint: str = ""
    prefix: str = ""


@dataclass
class Settings:
    """Everything that decides a run. See conf/config.yaml, which says what each is."""

    seed: int = 0
    epochs: int = 5
    max_steps: int | None = None
    batch_size: int = 64
    workers: int = 2
    model: str = "cnn"
    optimizer: str = "adamw"
    lr: float = 0.002
    weight_decay: float = 0.01
    loader: str = "indexed"
    block: int = 1
    decoder: str = "pillow"
    prefetch: int = 2
    regime: str = "exact"
    engine: str = "lightning"
    launcher: str = "local"
    hosts: str = ""
    ranks: int = 1
    address: str = "auto"
    precision: str = "32"
    channels_last: bool = False
    compile: bool = False
    device: str = "auto"
    resume: str | None = None
    checkpoint_every: int | None = None
    logger: str = "tensorboard"
    log_every: int = 10
    out: str | None = None
    data: Data = field(default_factory=Data)
    source: Source = field(default_factory=Source)


class WrongSettings(ValueError):
    """A setting that is unknown, or whose value is none that it can have."""


def register() -> None:
    """Tell Hydra the schema and what conf/ calls: before hydra.main() or compose()."""
    ConfigStore.instance().store(name="schema", node=Settings)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("or", lambda value, other: other if value is None else value, replace=True)


def load(overrides: list[str]) -> Settings:
    """Return the settings of a command line without running anything. Raises WrongSettings."""
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return checked(compose("config", overrides))
    except WrongSettings:
        raise
    except Exception as error:  # Hydra's errors have no base class of their own
        raise WrongSettings(f"{error.__cause__ or error}") from error


def checked(config: DictConfig) -> Settings:
    """Return a composed configuration as Settings. Raises WrongSettings: what is wrong, and the choices there are."""
    try:
        settings = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise WrongSettings(str(error)) from error
    assert isinstance(settings, Settings)
    for name, choices in CHOICES.items():
        if (value := _value(settings, name)) not in choices:
            told = ", ".join("null" if choice is None else choice for choice in choices)
            raise WrongSettings(f"{name}={value}: one of {told}")
    for name, least in AT_LEAST.items():
        value = _value(settings, name)
        if value is not None and value < least:
            raise WrongSettings(f"{name}={value}: at least {least}")
    if settings.data.channels not in (1, 3):
        raise WrongSettings(f"data.channels={settings.data.channels}: 1 or 3")
    if not 0 < settings.data.val_part < 1:
        raise WrongSettings(f"data.val_part={settings.data.val_part}: more than 0 and less than 1")
    if not settings.lr > 0:
        raise WrongSettings(f"lr={settings.lr}: more than 0")
    return settings


def plain(settings: Settings) -> dict[str, Any]:
    """Return settings as dicts, strings and numbers."""
    found = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


def folder_name(overrides: str) -> str:
    """Return the name of the folder of a sweep's run: its overrides, of paths the last part, not too long, and no two
    the same."""
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", re.sub(r"[^,=]*/", "", overrides)) or "defaults"
    if safe == overrides and len(safe) <= LONGEST:
        return safe
    return f"{safe[:LONGEST]}-{blake2b(os.fsencode(overrides), digest_size=4).hexdigest()}"


def _value(settings: Settings, name: str) -> Any:
    found: Any = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found
