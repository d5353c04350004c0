"""wds-shard into buckets: the same bytes as in a folder, whatever breaks on the way; one job at a time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from convert_helpers import COMMAND, class_tree, everything, go, image_tree, put, samples, shards
from faultproxy import proxied
from servers import Servers

import wdstools
from wdstools.convert import lock, place
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import DestinationError, SourceError, StoreError
from wdstools.store import Stores
from wdstools.writer import ShardFile

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp, on gcsfs
SCHEMES = ["s3", "gs", "az"]
MB = 1 << 20


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


Bucket = Callable[[str], str]


@pytest.fixture
def bucket(servers: Servers, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Bucket:
    """A function of a scheme: an empty prefix in a bucket, reachable by the environment."""

    def made(scheme: str) -> str:
        server = servers.get(scheme)
        if scheme == "s3":
            reach_s3(monkeypatch, server.url)
        elif scheme == "gs":
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
            monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        else:
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.options["connection_string"])
        monkeypatch.setattr(place, "_stores", Stores())
        return f"{scheme}://bucket/{random.getrandbits(40):x}"

    return made


def reach_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setattr(place, "_stores", Stores())


def objects(folder: str) -> dict[str, bytes]:
    return {name: place.read(f"{folder}/{name}") or b"" for name in place.names(folder)}


def assert_same(folder: str, local: Path) -> None:
    found, wanted = objects(folder), everything(local)
    assert sorted(found) == sorted(wanted)
    assert [name for name in found if found[name] != wanted[name]] == []


def uploads(folder: str) -> int:
    """Uploads that nobody completed."""
    store, path = place.bucket(folder + "/")
    return store.abandon(path, lambda name: True)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "PART", 5 * MB)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_bytes_as_in_a_folder(bucket: Bucket, scheme: str, tmp_path: Path) -> None:
    class_tree(tmp_path / "in", 3, 20, 9000)
    (tmp_path / "in/n00/nowhere.jpg").symlink_to("gone")
    out = bucket(scheme)
    options = {"maxcount": 16, "splits": (("train", 0.7), ("val", 0.3)), "by": "cls", "on_error": "skip"}
    wanted = go(tmp_path / "in", tmp_path / "out", **options)
    found = go(tmp_path / "in", out, **options)
    assert_same(out, tmp_path / "out")
    assert (found.samples, found.shards, found.nbytes) == (wanted.samples, wanted.shards, wanted.nbytes)
    assert go(tmp_path / "in", out, **options).complete
    with pytest.raises(DestinationError, match=r"a finished job is there, and this is another: .*--maxcount was 16"):
        go(tmp_path / "in", out, **{**options, "maxcount": 15})
    go(tmp_path / "in", out, **{**options, "maxcount": 15, "overwrite": True})
    go(tmp_path / "in", tmp_path / "new", **{**options, "maxcount": 15})
    assert_same(out, tmp_path / "new")
    assert len(list(wdstools.open(f"{out}/train.wdsindex"))) == 42


def test_images_and_streams_too(bucket: Bucket, tmp_path: Path) -> None:
    image_tree(tmp_path / "in", each=8)
    out = bucket("s3")
    go(tmp_path / "in", f"{out}/a-%03d.tar", maxcount=5, resize=16)
    go(tmp_path / "in", tmp_path / "out/a-%03d.tar", maxcount=5, resize=16)
    assert_same(out, tmp_path / "out")
    go(f"{out}/a-{{000..003}}.tar", tmp_path / "again/a-%03d.tar", maxcount=5)
    assert samples(tmp_path / "again") == samples(tmp_path / "out")


@pytest.mark.usefixtures("small_parts")
def test_a_shard_of_many_parts_leaves_no_memory_behind(bucket: Bucket, tmp_path: Path) -> None:
    rng = random.Random(3)
    files = {f"n{i % 2}/{i:03d}.bin": rng.randbytes(rng.randrange(600_000)) for i in range(150)}
    files["n0/big.bin"] = rng.randbytes(12 * MB)
    put(tmp_path / "in", files)
    out = bucket("s3")
    go(tmp_path / "in", out, lift=("cls",), workers=2)
    go(tmp_path / "in", tmp_path / "out", lift=("cls",), workers=2)
    assert_same(out, tmp_path / "out")
    assert uploads(out) == 0


def test_strangers_and_other_jobs(bucket: Bucket, tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    out = bucket("s3")
    place.write(f"{out}/in-000007.tar", b"precious")
    with pytest.raises(DestinationError, match=r"in-000007.tar: is there already.*--overwrite"):
        go(tmp_path / "in", out)
    assert objects(out) == {"in-000007.tar": b"precious"}
    place.write(f"{out}/other-000000.tar", b"precious")
    go(tmp_path / "in", out, overwrite=True)
    assert sorted(objects(out)) == ["classes.json", "in-000000.tar", "in.wdsindex", "other-000000.tar"]


def test_a_shard_that_was_removed_is_told(bucket: Bucket, tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    out = bucket("s3")
    go(tmp_path / "in", out, maxcount=5)
    place.remove(f"{out}/in-000001.tar")
    with pytest.raises(DestinationError, match=r"in-000001.tar: was changed or removed"):
        go(tmp_path / "in", out, maxcount=5)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a-%d.tar", "pipe:cat >a-%d.tar", "hf://x/a-%d.tar"])
def test_what_cannot_be_written_to(url: str, tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    with pytest.raises(DestinationError, match="local folders and to buckets"):
        go(tmp_path / "in", url)


FAULTS = ["500", "503", "reset", "cut", "lost"]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("seed", range(3))
def test_faults_take_and_double_nothing(
    bucket: Bucket, servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    put(tmp_path / "in", {f"n{i % 2}/{i:03d}.bin": rng.randbytes(300_000) for i in range(40)})
    go(tmp_path / "in", tmp_path / "out", maxcount=25)
    out = bucket("s3")

    def draw(line: str) -> str:
        time.sleep(rng.random() / 100)
        return rng.choice(FAULTS) if rng.random() < 0.25 else ""

    with proxied(servers.get("s3").port, draw) as proxy:
        reach_s3(monkeypatch, proxy.url)
        for _ in range(10):
            try:
                go(tmp_path / "in", out, maxcount=25)
                break
            except StoreError:
                continue
        assert sum(count for fault, count in proxy.counts.items() if fault) > 5, proxy.counts
    reach_s3(monkeypatch, servers.get("s3").url)
    assert go(tmp_path / "in", out, maxcount=25).complete
    assert_same(out, tmp_path / "out")
    assert uploads(out) == 0


def is_completion(line: str) -> bool:
    return line.startswith("POST") and "uploadId=" in line


@pytest.mark.usefixtures("small_parts")
def test_every_completion_is_lost(
    bucket: Bucket, servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What says that an object is whole is done, and its answer never comes."""
    put(tmp_path / "in", {f"{i:03d}.bin": random.Random(i).randbytes(2 * MB) for i in range(4)})
    go(tmp_path / "in", tmp_path / "out", maxcount=3)
    out, seen = bucket("s3"), set[str]()

    def draw(line: str) -> str:
        if not is_completion(line) or line in seen:
            return ""
        seen.add(line)
        return "lost"

    with proxied(servers.get("s3").port, draw) as proxy:
        reach_s3(monkeypatch, proxy.url)
        go(tmp_path / "in", out, maxcount=3)
        assert proxy.counts["lost"] > 1
        assert_same(out, tmp_path / "out")


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_fails_is_no_object(bucket: Bucket, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    out = bucket("s3")
    with proxied(servers.get("s3").port, lambda line: "403" if "partNumber=2" in line else "") as proxy:
        reach_s3(monkeypatch, proxy.url)
        store, path = place.bucket(f"{out}/x")
        with pytest.raises(StoreError, match="403"):
            store.upload(path, iter([bytes(6 * MB)] * 3), 5 * MB)
        assert uploads(out) == 0
        with pytest.raises(ZeroDivisionError):
            store.upload(path, (bytes(6 * MB // (2 - i)) for i in range(4)), 5 * MB)
        assert (objects(out), uploads(out)) == ({}, 0)


def start(source: Path, out: str, *options: str) -> subprocess.Popen[bytes]:
    program = [*COMMAND, str(source), out, *options]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ))


def test_killed_and_run_again(bucket: Bucket, tmp_path: Path) -> None:
    rng = random.Random(1)
    put(tmp_path / "in", {f"n{i % 2}/{i:03d}.bin": rng.randbytes(400_000) for i in range(120)})
    go(tmp_path / "in", tmp_path / "out", maxsize=20 * MB)
    out = bucket("s3")
    for delay in (0.9, 1.3):
        process = start(tmp_path / "in", out, "--maxsize", "20MiB")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    store, path = place.bucket(f"{out}/in-000000.tar")
    store._clients.fsspec()._s3(
        "create_multipart_upload", path, Bucket="bucket", Key=path
    )  # as one that was killed leaves
    go(tmp_path / "in", out, maxsize=20 * MB)
    assert_same(out, tmp_path / "out")
    assert uploads(out) == 0


def test_another_machine_goes_on(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is the owner's while it changes; once it does not for long enough, the owner is gone."""
    monkeypatch.setattr(lock, "WATCH", 2.0)
    class_tree(tmp_path / "in")
    go(tmp_path / "in", tmp_path / "out", maxcount=3)
    out = bucket("s3")

    class Stop(Exception):
        pass

    def stop(samples: int, nbytes: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        convert(str(tmp_path / "in"), out, Options(maxcount=3, workers=1), progress=stop)
    assert ".in.wdsjob" in place.names(out)
    other = {"nonce": "x", "host": "elsewhere", "machine": "m", "pid": 1, "started": "1", "began": "2001-01-01T00:00Z"}
    place.write(f"{out}/.in.wdslock", json.dumps(other).encode())
    began = time.monotonic()
    summary = go(tmp_path / "in", out, maxcount=3)
    assert time.monotonic() - began > 1.9
    assert summary.kept
    assert_same(out, tmp_path / "out")


def test_the_second_job_is_refused(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.2)
    class_tree(tmp_path / "in")
    url = f"{bucket('s3')}/.in.wdslock"
    folder = url.rpartition("/")[0]
    held = lock.Lock(url)
    with pytest.raises(DestinationError, match=f"another wds-shard is at work .*process {os.getpid()} on .*, since 20"):
        go(tmp_path / "in", folder)
    held.check()
    go(tmp_path / "in", folder, overwrite=True)
    with pytest.raises(DestinationError, match=r"was removed|has taken this destination over"):  # by the last beat
        held.check()
    held.close()


def test_who_lost_the_lock_commits_nothing(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_tree(tmp_path / "in")
    out = bucket("s3")

    def robbed(self: ShardFile, *args: object) -> None:
        place.write(f"{out}/.in.wdslock", b'{"nonce": "another", "pid": 7, "host": "h"}')

    from wdstools.convert.upload import UploadedShard

    write = UploadedShard.write

    def slow(self: UploadedShard, key: str, fields: object) -> int:
        robbed(self)  # type: ignore[arg-type]
        return write(self, key, fields)  # type: ignore[arg-type]

    monkeypatch.setattr(UploadedShard, "write", slow)
    with pytest.raises(DestinationError, match=r"has taken this destination over .process 7 on h"):
        go(tmp_path / "in", out)
    assert not [name for name in place.names(out) if name.endswith((".tar", ".part"))]


def upload_tree(root: Path, folder: str) -> None:
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        place.write(f"{folder}/{path.relative_to(root)}", path.read_bytes())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["classes", "flat"])
def test_a_tree_in_a_bucket(bucket: Bucket, scheme: str, layout: str, tmp_path: Path) -> None:
    class_tree(tmp_path / "in", 3, 7, 900)
    put(
        tmp_path / "in", {"n00/img_000.txt": b"two", "n02/deep/er.bin": b"deep", "n02/empty.bin": b"", "n02/.hid": b"1"}
    )
    source = bucket(scheme) + "/in"
    upload_tree(tmp_path / "in", source)
    options = {"layout": layout, "maxcount": 5, "shuffle": True}
    go(source, tmp_path / "out", **options)
    go(tmp_path / "in", tmp_path / "wanted", **options)
    assert samples(tmp_path / "out") == samples(tmp_path / "wanted")
    assert [p.name for p in shards(tmp_path / "out")] == [p.name for p in shards(tmp_path / "wanted")]
    found = [p.read_bytes() for p in shards(tmp_path / "out")]
    assert (found == [p.read_bytes() for p in shards(tmp_path / "wanted")]) is True
    assert go(source, tmp_path / "out", **options).complete


def test_an_object_that_changes_between_plan_and_read(bucket: Bucket, tmp_path: Path) -> None:
    source = bucket("s3") + "/in"
    class_tree(tmp_path / "in", 2, 4)
    upload_tree(tmp_path / "in", source)
    name = "n01/img_002.JPEG"
    data = place.read(f"{source}/{name}") or b""

    def change(plan: object) -> None:
        place.write(f"{source}/{name}", data[::-1])

    with pytest.raises(SourceError, match=rf"{name}: changed while it was packed: {len(data)} bytes, version .* now"):
        convert(source, str(tmp_path / "out"), Options(maxcount=3), planned=change)
    with pytest.raises(DestinationError, match="names or sizes in the source are not what they were"):
        go(source, tmp_path / "out", maxcount=3)
    place.write(f"{source}/{name}", data)
    summary = convert(source, str(tmp_path / "skip"), Options(on_error="skip"), planned=change)
    assert [item.reason for item in summary.skipped] == ["changed while it was packed"]
    assert summary.samples == 7


def test_shards_in_a_prefix(bucket: Bucket, tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    out = bucket("s3")
    go(tmp_path / "in", out + "/set", maxcount=4)
    go(out + "/set", tmp_path / "out", maxcount=4)
    go(tmp_path / "in", tmp_path / "wanted", maxcount=4)
    assert samples(tmp_path / "out") == samples(tmp_path / "wanted")


def test_no_such_prefix(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no files to make samples of"):
        go(bucket("s3") + "/nowhere", tmp_path / "out")
