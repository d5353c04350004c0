"""Every command of the package: its help, its examples, what it loads before it has something to do."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = {
    "numpy",
    "pyarrow",
    "duckdb",
    "tqdm",
    "json",
    "torch",
    "PIL",
    "webdataset",
    "wdstools.index",
    "wdstools.dataset",
}


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command and subcommand, by the words that call it."""
    for name, target in SCRIPTS.items():
        module = import_module(target.partition(":")[0])
        found = [value for value in vars(module).values() if isinstance(value, click.Command) and value.name == name]
        assert len(found) == 1, target
        todo = [([name], found[0])]
        while todo:
            words, command = todo.pop()
            yield words, command
            if isinstance(command, click.Group):
                todo += [([*words, sub], child) for sub, child in command.commands.items()]


COMMANDS = {" ".join(words): command for words, command in commands()}


def help_of(words: str) -> str:
    command = COMMANDS[words]
    first, _, second = words.partition(" ")
    top = COMMANDS[first]
    parent = click.Context(top, info_name=first, **top.context_settings)
    return command.get_help(click.Context(command, parent, info_name=second) if second else parent)


def test_the_commands_are_found() -> None:
    assert set(SCRIPTS) <= set(COMMANDS)
    assert {"wds-index build", "wds-index ls", "wds-index get", "wds-index check"} < set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_help_says_what_it_does_with_an_example(words: str) -> None:
    text = help_of(words)
    assert text.startswith(f"Usage: {words} ")
    examples = text.partition("Examples:\n")[2]
    assert any(line.strip().startswith("$ ") and words in line for line in examples.splitlines()), text
    assert COMMANDS[words].get_short_help_str()
    assert "-h, --help" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_has_a_help_text(words: str) -> None:
    options = [p for p in COMMANDS[words].params if isinstance(p, click.Option)]
    assert [option.name for option in options if not (option.help or "").strip()] == []
    text = help_of(words)
    for option in options:
        assert option.opts[0] in text


@pytest.mark.parametrize("words", COMMANDS)
def test_the_options_of_the_examples_exist(words: str) -> None:
    """An example with an option that is gone would be wrong for years."""
    for line in help_of(words).partition("Examples:\n")[2].splitlines():
        for part in line.strip().removeprefix("$ ").split("|"):
            called = next((c for c in sorted(COMMANDS, key=len, reverse=True) if part.strip().startswith(c)), None)
            if called is None or not line.strip().startswith("$ "):
                continue
            known = {name for p in COMMANDS[called].params for name in (*p.opts, *p.secondary_opts)}
            used = [word for word in part.split() if word.startswith("-") and word not in ("-", "--", "-1")]
            assert [word for word in used if word not in known] == [], line


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_of_the_process_is_that_text(name: str) -> None:
    module = SCRIPTS[name].partition(":")[0]
    code = f"import sys; sys.argv = ['{name}', '--help']; from {module} import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == help_of(name).split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_loads_nothing_heavy(name: str) -> None:
    module = SCRIPTS[name].partition(":")[0]
    code = f"import sys, {module}; print(sorted({HEAVY} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert ast.literal_eval(out) == []


def test_the_readme_shows_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = [block for i, block in enumerate(readme.split("```")) if i % 2]
    for name in SCRIPTS:
        assert any(f"\n{name} " in block or f"| {name}" in block for block in blocks), name


def test_the_options_of_the_readme_exist() -> None:
    for line in (ROOT / "README.md").read_text().splitlines():
        called = next((c for c in sorted(COMMANDS, key=len, reverse=True) if line.startswith(f"{c} ")), None)
        if called is not None:
            known = {name for p in COMMANDS[called].params for name in (*p.opts, *p.secondary_opts)}
            used = [word for word in line.partition("#")[0].split() if word.startswith("-")]
            assert [word for word in used if word not in known] == [], line
