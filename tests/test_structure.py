"""The rooms of the package and the one direction of imports; what an interpreter loads; what sources may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wdstools

ROOT = Path(wdstools.__file__).parent
NATIVE = Path(__file__).parent.parent / "native"

# urls and braces are one room: urls shows the public names of braces as its own.
ROOMS = [
    ["errors"],
    ["urls", "tar", "plan", "columns", "compression"],
    ["samples", "encode", "storage", "soundness", "query", "decode"],
    ["index", "extract"],
    ["build", "reader", "sets", "views"],
    ["writer", "dataset", "summary", "interop"],
    ["convert", "doctor"],
    ["loader", "compat", "serve"],
    ["cli", "lightning"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
MODULES = {  # of rooms that are more than one module
    "urls": "braces pipes",
    "plan": "deal mix permute",
    "storage": "store storebase ranges inflight retrying failures passing"
    " remote clients obstores credentials fsspecs uploads httpclient httpfolders cache blocks",
    "index": "shardtable indexfile rowbatches",
    "build": "merge checksums shardindex comparison",
    "writer": "openshard shardnames",
    "dataset": "access fetching finding served",
    "loader": "sampler parcel streaming shardorder workers",
    "compat": "gopen",
}
SAME_ROOM = {module: room for room, modules in MODULES.items() for module in modules.split()}
CORE = "_core"  # the C extension stands below all of them
HEAVY = ["torch", "pyarrow", "numpy", "fsspec", "webdataset", "duckdb", "click", "obstore", "PIL", "tqdm"]

Sources = dict[str, str]  # module name without "wdstools.", source


def sources() -> Sources:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path.read_text()
    return found


def room(module: str) -> str:
    top = module.split(".")[0]
    return SAME_ROOM.get(top, top)


def imports(name: str, source: str, modules: set[str]) -> Iterator[tuple[str, int]]:
    """What a module imports from the package, wherever in it: ("" for the package itself, line)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "wdstools":
                    yield alias.name.partition(".")[2], node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield f"relative import of {node.module}", node.lineno
            elif node.module == "wdstools":
                for alias in node.names:
                    yield (alias.name if alias.name in modules | {CORE} else ""), node.lineno
            elif node.module and node.module.startswith("wdstools."):
                base = node.module.partition(".")[2]
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield (inner if inner in modules else base), node.lineno


def violations(given: Sources) -> list[str]:
    """What breaks the table, one line each."""
    modules = set(given)
    found: list[str] = []
    edges: dict[str, set[str]] = {}
    for name, source in given.items():
        if name == "":
            continue  # the package only points at modules; what it loads is tested below
        if room(name) not in LEVEL:
            found.append(f"{name}: a room that is not in the table")
            continue
        for target, line in imports(name, source, modules):
            where = f"{name}:{line}"
            if target == CORE:
                continue
            if target not in modules or target == "":
                found.append(f"{where}: imports from the package, or what is no module: {target!r}")
            elif room(target) not in LEVEL:
                found.append(f"{where}: imports {target}, a room that is not in the table")
            else:
                edges.setdefault(name, set()).add(target)
                if room(target) != room(name) and LEVEL[room(target)] >= LEVEL[room(name)]:
                    found.append(f"{where}: imports {target}, which is not below it")
    found += [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]
    return found


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def test_every_module_imports_downwards_only() -> None:
    assert len(sources()) > 15
    assert violations(sources()) == []


GOOD = {
    "": "from wdstools.errors import WdsError",
    "errors": "",
    "urls": "from wdstools.errors import UrlError\nfrom wdstools.braces import x",
    "braces": "from wdstools import errors",
    "tar": "from wdstools import _core",
    "cli": "",
    "cli.common": "def f():\n    from wdstools.tar import walk",
    "cli.index": "from wdstools.cli.common import run\nfrom wdstools.cli import common\nimport wdstools.tar",
}
BAD: dict[str, Sources] = {
    "upward": {"errors": "from wdstools.tar import walk"},
    "upward in a function": {"errors": "def f():\n    import wdstools.tar"},
    "upward through the package": {"errors": "from wdstools import tar"},
    "same level": {"tar": "from wdstools.urls import x"},
    "to a package": {"tar": "from wdstools.cli.common import run"},
    "from the package": {"cli.common": "from wdstools import stream"},
    "the package": {"cli.common": "import wdstools"},
    "relative": {"cli.index": "from .common import run"},
    "unknown room": {"extras": ""},
    "import of what is not there": {"cli.common": "from wdstools.nowhere import x"},
    "cycle in a room": {"braces": "from wdstools.urls import y"},
    "cycle in a package": {"cli.common": "from wdstools.cli.index import x"},
}


def test_the_checker_takes_what_is_good() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize("what", BAD)
def test_the_checker_finds(what: str) -> None:
    assert violations(GOOD | BAD[what]) != []


def test_what_the_package_names_exists() -> None:
    for name in wdstools.__all__:
        assert getattr(wdstools, name) is not None
    assert {"open", "stream", "tar", "errors"} <= set(dir(wdstools))
    with pytest.raises(AttributeError, match="nothing"):
        wdstools.nothing  # noqa: B018


def loaded(code: str) -> set[str]:
    """The top-level modules of a fresh interpreter after some code."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*{{m.split('.')[0] for m in sys.modules}})"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(out.stdout.split())


def test_import_is_light() -> None:
    assert loaded("import wdstools, wdstools.errors, wdstools.urls, wdstools.tar, wdstools.samples") & {*HEAVY} == set()


def test_stream_loads_no_arrow_or_numpy() -> None:
    assert loaded("import wdstools; wdstools.stream") & {*HEAVY} == set()


def test_shardsum_starts_without_arrow_or_numpy() -> None:
    assert loaded("import wdstools.cli.shardsum") & {*HEAVY} - {"click"} == set()


def test_a_local_set_loads_no_http() -> None:
    assert loaded("import wdstools; wdstools.open") & {"http", "ssl"} == set()


def test_dataset_loads_no_torch_or_webdataset() -> None:
    assert loaded("import wdstools; wdstools.open; wdstools.ShardWriter") & {"torch", "webdataset", "fsspec"} == set()


def foreign(name: str, source: str) -> Iterator[str]:
    """The foreign modules that a source imports, by statement or by a literal importlib.import_module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize(
    ("module", "only"), [("webdataset", {"compat"}), ("torch", {"loader"}), ("lightning", {"lightning"})]
)
def test_only_one_room_imports(module: str, only: set[str]) -> None:
    assert {room(name) for name, source in sources().items() if module in foreign(name, source)} <= only


def calls(source: str) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}


def test_the_library_does_not_print_or_sleep() -> None:
    assert "print" in calls("print(1)")
    assert "time.sleep" in calls("import time; time.sleep(1)")
    for name, source in sources().items():
        found = calls(source) & {"time.sleep", "sleep"} | (calls(source) & {"print"} if room(name) != "cli" else set())
        assert not found, (name, found)


def of_all(given: set[str], module: str = "random") -> set[str]:
    """Calls of a module's functions, which share one state; not of its classes."""
    return {call for call in given if call.startswith(f"{module}.") and call.split(".")[1][0].islower()}


def test_the_library_leaves_the_generator_of_the_program_alone() -> None:
    assert of_all(calls("random.uniform(1, 2); random.SystemRandom().random()")) == {"random.uniform"}
    for name, source in sources().items():
        assert not of_all(calls(source)), name
        assert "random" not in {n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)}, name


def test_the_library_does_not_assert() -> None:
    for name, source in sources().items():
        assert not [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assert)], name


def code_of(path: Path) -> str:
    """C without comments and strings."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"'

    def blank(match: re.Match[str]) -> str:
        return match[0] if match[0].endswith('.h"') else " "  # what is included stays

    return re.sub(pattern, blank, path.read_text(), flags=re.S)


def test_only_the_seam_includes_python() -> None:
    found = {p.name for p in NATIVE.glob("*.[ch]") if re.search(r'#\s*include\s*[<"]Python\.h[>"]', code_of(p))}
    assert "module.h" in found
    assert {n for n in found if n not in ("module.c", "module.h") and not re.fullmatch(r"py_\w+\.c", n)} == set()


def test_only_the_seam_uses_python() -> None:
    found = {p.name for p in NATIVE.glob("*.[ch]") if re.search(r"\bPy[A-Z_]\w*|\"module\.h\"", code_of(p))}
    assert {n for n in found if n not in ("module.c", "module.h") and not re.fullmatch(r"py_\w+\.[ch]", n)} == set()


def test_the_tar_walker_allocates_nothing_and_does_no_io() -> None:
    banned = r"\b(malloc|calloc|realloc|free|strdup|alloca|read|pread|write|open|fopen|printf|exit|abort)\s*\("
    for name in ("tar.c", "tar.h"):
        assert re.findall(banned, code_of(NATIVE / name)) == [], name
    assert re.findall(banned, code_of(NATIVE / "sample.c")) != []  # the pattern does find some
