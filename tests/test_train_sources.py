"""The sources of the training program: an epoch from a real server of each kind is the epoch from the folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench.train.loaders import make  # noqa: E402
from bench.train.sources import KINDS, locate, random_access  # noqa: E402
from tests.freading import program  # noqa: E402
from tests.servers import Servers, ask  # noqa: E402
from tests.serving import Live, serving  # noqa: E402
from tests.train_data import COUNT, settings, told, write  # noqa: E402

ROOT = Path(__file__).parent.parent
REMOTE = [kind for kind in KINDS if kind != "folder"]
STREAMS = ["stream", "webdataset"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sources") / "train")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    started = Servers(tmp_path_factory.mktemp("servers"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def served(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("served"), shards) as live:
        yield live


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys of S3, and the programs that an installation puts on the PATH."""
    folder = tmp_path_factory.mktemp("bin")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from wdstools.cli.cat import main; main()"
    (folder / "wds-cat").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    (folder / "wds-cat").chmod(0o755)
    (folder / "fread").symlink_to(program())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "k")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("PATH", str(folder), prepend=":")
        yield


@pytest.fixture
def source(request: pytest.FixtureRequest, shards: Path, servers: Servers, served: Live) -> dict[str, str]:
    """The options of a source, whose server has the shards and their index."""
    return options(request.param, shards, servers, served)


def options(kind: str, shards: Path, servers: Servers, served: Live) -> dict[str, str]:
    found = {"kind": kind}
    if kind == "wds-serve":
        return found | {"endpoint": served.url}
    if kind in ("nginx", "pipe-curl"):
        server = servers.get("http")
        if not (server.root / "some folder").exists():
            (server.root / "some folder").symlink_to(shards)
        return found | {"endpoint": server.url, "prefix": "some%20folder"}
    if kind in ("s3", "gcs"):
        server = servers.get({"s3": "s3", "gcs": "gs"}[kind])
        servers.kept(f"{kind} shards", lambda: put(kind, server.url, shards))
        return found | {"endpoint": server.url, "prefix": "bucket/a/b"}
    return found


def put(kind: str, url: str, shards: Path) -> None:
    for path in shards.iterdir():
        if kind == "s3":
            ask("PUT", f"{url}/bucket/a/b/{path.name}", path.read_bytes())
        else:
            place = f"{url}/upload/storage/v1/b/bucket/o?uploadType=media&name=a%2Fb%2F{path.name}"
            ask("POST", place, path.read_bytes())


@pytest.fixture(scope="module")
def expected(shards: Path) -> set[tuple[str, int, str]]:
    found = told(make(settings(shards), "train"))
    assert COUNT // 2 < len(found) == len(set(found)) < COUNT
    return set(found)


@pytest.mark.parametrize("loader", STREAMS)
@pytest.mark.parametrize("source", REMOTE, indirect=True)
def test_an_epoch_from_a_server_is_that_from_the_folder(
    source: dict[str, str], loader: str, shards: Path, expected: Any
) -> None:
    workers = 1 if source["kind"] == "s3" and loader == "stream" else 0
    found = told(make(settings(shards, loader=loader, workers=workers, **source), "train"))
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("source", [kind for kind in REMOTE if not kind.startswith("pipe")], indirect=True)
def test_the_order_of_the_index_is_that_of_the_folder(source: dict[str, str], shards: Path) -> None:
    workers = 1 if source["kind"] == "s3" else 0
    here, there = (make(settings(shards, workers=workers, **given), "train") for given in ({}, source))
    assert told(there) == told(here)
    batches = iter(here)
    got = told([next(batches) for _ in range(2)])
    there.load_state_dict(here.state_dict())
    assert told(there) == told(batches)  # a state moves from a source to another
    assert got


@pytest.mark.parametrize("kind", ["pipe-curl", "pipe-fread"])
@pytest.mark.parametrize("loader", ["indexed", "imagefolder", "litdata"])
def test_pipes_have_no_random_access(kind: str, loader: str, shards: Path) -> None:
    given = settings(shards, loader=loader, kind=kind, endpoint="http://127.0.0.1:1")
    assert locate(given, "train").index is None
    with pytest.raises(ValueError, match=f"loader={loader} needs random access, which source={kind} does not"):
        make(given, "train") if loader != "litdata" else random_access(locate(given, "train"), loader, kind)


def test_names(shards: Path, tmp_path: Path) -> None:
    pattern = "elsewhere/train-{000000..000003}.tar"
    there = settings(pattern, kind="nginx", endpoint="http://h:1/", prefix="/a/b/")
    assert locate(there, "train").shards == [f"http://h:1/a/b/train-00000{i}.tar" for i in range(4)]
    there.data.val = "val-{0..1}.tar"
    assert locate(there, "val").shards == ["http://h:1/a/b/val-0.tar", "http://h:1/a/b/val-1.tar"]
    served = settings(pattern, kind="wds-serve", endpoint="http://h:1")
    assert locate(served, "train").index == "http://h:1/train"
    assert locate(settings(shards), "train").shards == sorted(map(str, shards.glob("*.tar")))
    assert locate(settings(shards / "train.wdsindex"), "val").shards == sorted(map(str, shards.glob("*.tar")))
    odd = tmp_path / "a{b,c} d"
    write(odd, 4, 2)
    assert len(told(make(settings(odd, workers=0, val=str(odd)), "train"))) == 4
    assert len(told(make(settings(odd, workers=0, val=str(odd), loader="stream"), "train"))) == 4


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"kind": "ftp"}, "source.kind is none of folder, wds-serve"),
        ({"kind": "nginx"}, "source=nginx needs source.endpoint=http"),
        ({"kind": "wds-serve"}, "source=wds-serve needs source.endpoint"),
        ({"kind": "pipe-curl"}, "source=pipe-curl needs source.endpoint"),
        ({"kind": "s3"}, "source=s3 needs source.prefix=BUCKET"),
        ({"kind": "gcs"}, "source=gcs needs source.prefix=BUCKET"),
        ({"train": ""}, "data.train names no shards"),
    ],
)
def test_what_is_missing_is_told(given: dict[str, str], match: str, shards: Path) -> None:
    with pytest.raises(ValueError, match=match):
        locate(settings(given.pop("train", shards), **given), "train")


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.tar is in this folder"):
        locate(settings(tmp_path), "train")
    with pytest.raises(ValueError, match='part is "train" or "val"'):
        locate(settings(tmp_path), "test")


def test_an_unreachable_server_is_an_error(shards: Path) -> None:
    from tests.servers import free_port
    from wdstools.errors import WdsError

    given = settings(shards, kind="nginx", endpoint=f"http://127.0.0.1:{free_port()}", workers=0)
    with pytest.raises(WdsError, match=r"train"):
        make(given, "train")
