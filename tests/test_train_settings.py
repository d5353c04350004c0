"""What can be set: defaults, groups, what is refused and how, folders of sweeps."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("hydra")

from bench.train.settings import AT_LEAST, CHOICES, CONF, Data, Settings, WrongSettings, folder_name, load, plain


def test_the_yaml_says_what_the_schema_says() -> None:
    """No default stands in two places with two values, and every choice is in the comments."""
    text = (CONF / "config.yaml").read_text()
    told = yaml.safe_load(text)
    schema = plain(Settings(data=Data(train="")))
    for name, value in told.items():
        if name not in ("defaults", "hydra"):
            assert str(schema[name]) == str(value), name
    assert set(schema) - set(told) == {"data", "source"}
    for name, choices in CHOICES.items():
        if "." not in name:
            line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
            assert all(choice in line for choice in choices if choice), line


@pytest.mark.parametrize("name", ["digits", "pictures"])
def test_data_groups(name: str) -> None:
    found = load([f"data={name}"]).data
    assert (found.name, found.make) == (name, name)
    assert load([f"data={name}", "data.val=/x", "data.size=64"]).data.size == 64


@pytest.mark.parametrize("kind", CHOICES["source.kind"])
def test_source_groups(kind: str) -> None:
    assert load([f"source={kind}", "source.endpoint=http://h:1"]).source.kind == kind


def test_overrides_have_types() -> None:
    found = load(["precision=16", "lr=1e-3", "max_steps=7", "compile=true", "resume=auto", "data.augment=true"])
    assert (found.precision, found.lr, found.max_steps, found.compile, found.resume) == ("16", 1e-3, 7, True, "auto")
    assert found.data.augment is True


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lodaer=stream", "lodaer"),
        ("data.nothing=1", "nothing"),
        ("loader=fast", "loader=fast: one of indexed, stream"),
        ("data.make=cats", "data.make=cats: one of digits, pictures, null"),
        ("precision=8", "precision=8: one of 32, bf16, 16"),
        ("data=cats", "digits\n"),
        ("source=ftp", "wds-serve"),
        ("epochs=many", "Integer"),
        ("epochs=0", "epochs=0: at least 1"),
        ("lr=0", "more than 0"),
        ("data.val_part=1", "less than 1"),
        ("data.channels=4", "1 or 3"),
        ("data=shards", "data.train"),
        ("epochs", "epochs"),
    ],
)
def test_what_is_wrong_is_named(override: str, told: str) -> None:
    with pytest.raises(WrongSettings, match=re.escape(told)):
        load([override])


def test_limits_and_choices_are_of_settings() -> None:
    names = {f.name for f in dataclasses.fields(Settings)}
    assert {name for name in {*CHOICES, *AT_LEAST} if "." not in name} <= names


@given(st.lists(st.text(max_size=60), max_size=4, unique=True))
def test_folders_of_sweeps_are_names_and_differ(overrides: list[str]) -> None:
    names = [folder_name(text) for text in overrides]
    assert len({name.casefold() for name in names}) >= len({text.casefold() for text in overrides if text})
    for name in names:
        assert name
        assert "/" not in name
        assert "\0" not in name
        assert len(name.encode()) <= 255


def test_a_folder_is_named_as_its_overrides() -> None:
    assert folder_name("lr=0.1,model=cnn") == "lr=0.1,model=cnn"
    assert re.fullmatch(r"data\.train=b,lr=0\.1-[0-9a-f]{8}", folder_name("data.train=/a/b,lr=0.1"))
    assert folder_name("data.train=/a/b") != folder_name("data.train=/c/b")
    assert folder_name("a" * 1000) != folder_name("a" * 1001)
