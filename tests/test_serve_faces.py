"""The S3 and GCS faces, asked by the clients that people use, and by hand where these are too polite."""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import boto3
import botocore.exceptions
import pytest
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving import Live, serving
from wdstools.serve.blobs import Blob, Files
from wdstools.serve.buckets import Bucket, Entry, FolderBucket
from wdstools.serve.listing import from_token, page, token
from wdstools.serve.request import Request
from wdstools.serve.sigv4 import verify
from wdstools.store import open_store

DATA = random.Random(3).randbytes(100_000)
KEY, SECRET = "AKIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEYS = sorted(
    ["a.tar", "b/x.tar", "b/y/z.tar", "b.tar", "b-0.tar", "train 1+é.tar", "odd/%41&<b>'\".tar"]
    + [f"many/s-{i:03d}.tar" for i in range(25)]
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "shards"
    for number, key in enumerate([*KEYS, ".hidden", "b/.git/x", "empty-dir/.keep", "a.tar.part"]):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(DATA[number:])
    return folder


def data_of(key: str) -> bytes:
    return DATA[KEYS.index(key) :]


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("log"), root) as server:
        yield server


@pytest.fixture(scope="module")
def locked(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Only with a signature."""
    with serving(tmp_path_factory.mktemp("log"), root, "--access-key", KEY, "--secret-key", SECRET) as server:
        yield server


def s3_client(url: str, key: str | None = KEY, secret: str = SECRET, version: str | None = None) -> Any:
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, signature_version=version)
    if key is None:
        config = config.merge(Config(signature_version=UNSIGNED))
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="eu-west-1",
        aws_access_key_id=key or "",
        aws_secret_access_key=secret,
        config=config,
    )


@pytest.fixture(params=["open", "signed"])
def s3(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "open":
        client = s3_client(request.getfixturevalue("live").url, None)
    else:
        client = s3_client(request.getfixturevalue("locked").url)
    yield client
    client.close()


def test_boto3_lists(s3: Any) -> None:
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["shards"]
    s3.head_bucket(Bucket="shards")
    assert s3.get_bucket_location(Bucket="shards")["LocationConstraint"] is None
    for kind in ("list_objects_v2", "list_objects"):
        for size in (1, 4, 1000):
            pages = s3.get_paginator(kind).paginate(Bucket="shards", PaginationConfig={"PageSize": size})
            found = [entry for one in pages for entry in one.get("Contents", ())]
            assert [entry["Key"] for entry in found] == KEYS
        assert [entry["Size"] for entry in found] == [len(data_of(key)) for key in KEYS]
        folded = []
        for one in s3.get_paginator(kind).paginate(Bucket="shards", Delimiter="/", PaginationConfig={"PageSize": 2}):
            folded += [entry["Key"] for entry in one.get("Contents", ())]
            folded += [entry["Prefix"] for entry in one.get("CommonPrefixes", ())]
        assert sorted(folded) == ["a.tar", "b-0.tar", "b.tar", "b/", "many/", "odd/", "train 1+é.tar"]
    assert s3.list_objects_v2(Bucket="shards", Prefix="b/")["KeyCount"] == 2
    assert s3.list_objects_v2(Bucket="shards", StartAfter="many/s-023.tar", Prefix="many/")["KeyCount"] == 1


def test_boto3_reads(s3: Any) -> None:
    for key in KEYS:
        got = s3.get_object(Bucket="shards", Key=key)
        assert got["Body"].read() == data_of(key)
        head = s3.head_object(Bucket="shards", Key=key)
        assert (head["ContentLength"], head["ETag"]) == (len(data_of(key)), got["ETag"])
    part = s3.get_object(Bucket="shards", Key="a.tar", Range="bytes=10-19")
    assert (part["Body"].read(), part["ContentRange"]) == (DATA[10:20], f"bytes 10-19/{len(DATA)}")
    listed = s3.list_objects_v2(Bucket="shards")["Contents"][0]
    assert listed["ETag"] == s3.head_object(Bucket="shards", Key="a.tar")["ETag"]


@pytest.mark.parametrize(
    ("call", "args", "code"),
    [
        ("get_object", {"Bucket": "shards", "Key": "none.tar"}, "NoSuchKey"),
        ("get_object", {"Bucket": "shards", "Key": ".hidden"}, "NoSuchKey"),
        ("get_object", {"Bucket": "none", "Key": "a.tar"}, "NoSuchBucket"),
        ("get_object", {"Bucket": "shards", "Key": "a.tar", "Range": "bytes=100000-"}, "InvalidRange"),
        ("get_object", {"Bucket": "shards", "Key": "a.tar", "IfMatch": '"x"'}, "PreconditionFailed"),
        ("get_object", {"Bucket": "shards", "Key": "a.tar", "VersionId": "1"}, "NoSuchVersion"),
        ("head_object", {"Bucket": "shards", "Key": "none.tar"}, "404"),
        ("list_objects_v2", {"Bucket": "none"}, "NoSuchBucket"),
        ("head_bucket", {"Bucket": "none"}, "404"),
        ("list_objects_v2", {"Bucket": "shards", "ContinuationToken": "!"}, "InvalidArgument"),
        ("list_objects_v2", {"Bucket": "shards", "MaxKeys": -1}, "InvalidArgument"),
        ("get_bucket_acl", {"Bucket": "shards"}, "NotImplemented"),
        ("put_object", {"Bucket": "shards", "Key": "a.tar", "Body": b"x"}, "MethodNotAllowed"),
        ("delete_object", {"Bucket": "shards", "Key": "a.tar"}, "MethodNotAllowed"),
    ],
)
def test_boto3_errors(s3: Any, call: str, args: dict[str, Any], code: str) -> None:
    with pytest.raises(botocore.exceptions.ClientError) as failed:
        getattr(s3, call)(**args)
    assert failed.value.response["Error"]["Code"] == code


def test_who_is_not_known_gets_nothing(locked: Live) -> None:
    for key, secret, code in (
        (None, "", "AccessDenied"),
        ("other", SECRET, "InvalidAccessKeyId"),
        (KEY, "x", "SignatureDoesNotMatch"),
    ):
        client = s3_client(locked.url, key, secret)
        with pytest.raises(botocore.exceptions.ClientError) as failed:
            client.get_object(Bucket="shards", Key="a.tar")
        assert failed.value.response["Error"]["Code"] == code
        client.close()
    for path in ("/a.tar", "/shards/a.tar", "/", "/shards?list-type=2", "/storage/v1/b", "/-/metrics"):
        assert locked.ask(path).status == 401, path
    assert locked.ask("/a.tar", Authorization="AWS4-HMAC-SHA256 rubbish").status == 400


def test_presigned_urls(locked: Live) -> None:
    client = s3_client(locked.url, version="s3v4")
    url = client.generate_presigned_url("get_object", Params={"Bucket": "shards", "Key": "train 1+é.tar"}, ExpiresIn=60)
    with urllib.request.urlopen(url, timeout=10) as reply:
        assert reply.read() == data_of("train 1+é.tar")
    for wrong in (
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace("Expires=60", "Expires=6000"),
        url + "&x=y",
        url.replace("train", "trein"),
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=99999999"),
    ):
        target = wrong.removeprefix(locked.url)
        assert locked.ask(target).status in (400, 403), wrong
    assert locked.ask(url.removeprefix(locked.url), "HEAD").status == 403  # signed for GET
    client.close()


def signed(when: datetime.datetime, target: str = "/shards/a.tar?x=1&y=%2F", **headers: str) -> Request:
    """A request that botocore signed, at some time."""
    ask = AWSRequest("GET", f"http://localhost{target}", headers={"Host": "localhost", **headers})
    auth = S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1")
    import botocore.auth

    real = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda remove_tzinfo=True: when.replace(tzinfo=None)
    try:
        auth.add_auth(ask)
    finally:
        botocore.auth.get_current_datetime = real
    found = {name.lower().encode(): value.encode() for name, value in ask.headers.items()}
    return Request("GET", target.encode(), found)


NOW = datetime.datetime(2026, 5, 4, 12, 0, tzinfo=datetime.UTC)


def test_signatures_age() -> None:
    request = signed(NOW)
    for minutes, code in (
        (0, None),
        (14, None),
        (-14, None),
        (16, "RequestTimeTooSkewed"),
        (-16, "RequestTimeTooSkewed"),
    ):
        assert verify(request, KEY, SECRET, NOW.timestamp() + minutes * 60) == code


def test_nothing_that_is_signed_can_be_changed() -> None:
    def check(request: Request) -> str | None:
        return verify(request, KEY, SECRET, NOW.timestamp())

    assert check(signed(NOW)) is None
    assert check(signed(NOW, "/a%20b/%C3%A9?prefix=a%20b&delimiter=%2F&empty=")) is None
    request = signed(NOW)
    for change in (
        {"method": "HEAD"},
        {"target": b"/shards/b.tar?x=1&y=%2F"},
        {"target": b"/shards/a.tar?x=1"},
        {"target": b"/shards/a.tar?x=1&y=%2F&z=1"},
    ):
        changed = Request(**{"method": request.method, "target": request.target, "headers": request.headers} | change)
        assert check(changed) == "SignatureDoesNotMatch"
    for name, value, code in (
        (b"host", b"elsewhere", "SignatureDoesNotMatch"),
        (b"x-amz-date", b"20260504T120001Z", "SignatureDoesNotMatch"),
        (b"x-amz-date", b"20260505T120000Z", "AuthorizationHeaderMalformed"),
        (b"x-amz-copy-source", b"/other", "AccessDenied"),
        (b"x-amz-content-sha256", hashlib.sha256(b"x").hexdigest().encode(), "XAmzContentSHA256Mismatch"),
        (b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD", "SignatureDoesNotMatch"),
        (
            b"authorization",
            request.headers[b"authorization"].replace(b"/s3/", b"/ec2/"),
            "AuthorizationHeaderMalformed",
        ),
        (b"authorization", request.headers[b"authorization"][:-1], "AuthorizationHeaderMalformed"),
        (b"authorization", request.headers[b"authorization"].replace(b"host;", b""), "AccessDenied"),
    ):
        assert check(Request("GET", request.target, request.headers | {name: value})) == code, name
    body = Request("GET", request.target, request.headers, body=b"x")
    assert check(body) == "XAmzContentSHA256Mismatch"


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_header_breaks_the_check(header: bytes, query: bytes) -> None:
    for headers in ({b"authorization": header}, {b"authorization": b"AWS4-HMAC-SHA256 " + header}, {}):
        assert verify(Request("GET", b"/?X-Amz-" + query.replace(b"#", b""), headers), KEY, SECRET) is not None


def test_an_expired_url_is_refused() -> None:
    ask = AWSRequest("GET", "http://localhost/shards/a.tar", headers={"Host": "localhost"})
    S3SigV4QueryAuth(Credentials(KEY, SECRET), "s3", "us-east-1", expires=100).add_auth(ask)
    target = str(ask.url).removeprefix("http://localhost").encode()
    request = Request("GET", target, {b"host": b"localhost"})
    now = time.time()
    for seconds, code in ((0, None), (99, None), (103, "AccessDenied"), (-1000, "RequestTimeTooSkewed")):
        assert verify(request, KEY, SECRET, now + seconds) == code


class Names(Bucket):
    """A bucket with these keys, the naive way."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__("b", "b")
        self._keys = sorted(set(keys))

    def find(self, key: str) -> Blob | None:
        return None

    def entries(self, prefix: str, after: str, flat: bool) -> Iterator[Entry]:
        yield from (Entry(key, 1, "e", 0) for key in self._keys if key.startswith(prefix) and key > after)


part = st.text("ab-./0", min_size=1, max_size=4)


def naive_listing(keys: list[str], prefix: str, delimiter: str) -> list[str]:
    found = set()
    for key in keys:
        if key.startswith(prefix):
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            found.add(key if at < 0 else key[: at + len(delimiter)])
    return sorted(found)


def walk(bucket: Bucket, prefix: str, delimiter: str, most: int) -> list[str]:
    found: list[str] = []
    after = ""
    while True:
        one = page(bucket, prefix, delimiter, after, most)
        names = sorted([entry.key for entry in one.objects] + one.prefixes)
        assert len(names) <= most
        found += names
        if one.last is None:
            return found
        assert from_token(token(one.last)) == one.last == names[-1]
        after = one.last


@given(st.lists(part), st.text("ab/.", max_size=3), st.sampled_from(["", "/", "-", "a", "ab"]), st.integers(1, 4))
def test_pages_are_the_naive_listing(keys: list[str], prefix: str, delimiter: str, most: int) -> None:
    assert walk(Names(keys), prefix, delimiter, most) == naive_listing(keys, prefix, delimiter)


component = st.text("ab0-é", min_size=1, max_size=2).map(lambda text: text)
key = st.lists(component, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60)
@given(
    st.lists(key, max_size=8),
    st.sampled_from(["", "a", "a/", "b/a", "0"]),
    st.sampled_from(["", "/", "-"]),
    st.integers(1, 3),
)
def test_folders_are_listed_as_the_naive_listing(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], prefix: str, delimiter: str, most: int
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    made = []
    for name in keys:
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"")
            made.append(name)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a file and a folder of one name
    bucket = FolderBucket("b", str(folder), Files())
    for _ in range(2):
        assert walk(bucket, prefix, delimiter, most) == naive_listing(made, prefix, delimiter)


def test_a_listing_as_it_is_written(live: Live) -> None:
    answer = live.ask("/shards?list-type=2&prefix=odd/&max-keys=1")
    assert answer.headers["content-type"] == "application/xml"
    tree = ElementTree.fromstring(answer.body)
    ns = {"s": "http://s3.amazonaws.com/doc/2006-03-01/"}
    assert tree.findtext("s:Contents/s:Key", None, ns) == "odd/%41&<b>'\".tar"
    assert tree.findtext("s:IsTruncated", None, ns) == "false"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", tree.findtext("s:Contents/s:LastModified", "", ns))
    encoded = live.ask("/shards?list-type=2&prefix=odd/&encoding-type=url").body
    assert b"<Key>odd/%2541%26%3Cb%3E&#x27;%22.tar</Key>" in encoded or b"%2541%26%3Cb%3E" in encoded
    error = ElementTree.fromstring(live.ask("/shards/none.tar").body)
    assert (error.findtext("Code"), error.findtext("Key")) == ("NoSuchKey", "none.tar")


def test_s3fs(locked: Live) -> None:
    import s3fs

    files = s3fs.S3FileSystem(
        key=KEY,
        secret=SECRET,
        endpoint_url=locked.url,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={"s3": {"addressing_style": "path"}},
    )
    assert files.find("shards") == [f"shards/{key}" for key in KEYS]
    assert sorted(files.ls("shards/b", detail=False)) == ["shards/b/x.tar", "shards/b/y"]
    for key in ("a.tar", "train 1+é.tar", "odd/%41&<b>'\".tar"):
        assert files.cat_file(f"shards/{key}") == data_of(key)
    assert files.cat_file("shards/a.tar", start=5, end=20) == DATA[5:20]
    with files.open("shards/b/x.tar", block_size=10_000) as file:
        file.seek(50_000)
        assert file.read(10) == data_of("b/x.tar")[50_000:50_010]
    assert not files.exists("shards/none.tar")
    with pytest.raises(FileNotFoundError):
        files.cat_file("shards/none.tar")


def test_obstore_as_s3(locked: Live) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store(
        "shards",
        endpoint=locked.url,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    plain = [key for key in KEYS if key.isascii() and "%" not in key]
    found = [entry["path"] for entry in obstore.list(store).collect()]
    assert set(plain) <= set(found)
    assert len(found) == len(KEYS)
    assert bytes(obstore.get(store, "a.tar").bytes()) == DATA
    assert bytes(obstore.get_range(store, "a.tar", start=7, end=70)) == DATA[7:70]
    parts = obstore.get_ranges(store, "a.tar", starts=[0, 50_000], ends=[10, 50_010])
    assert [bytes(one) for one in parts] == [DATA[:10], DATA[50_000:50_010]]
    assert obstore.head(store, "a.tar")["size"] == len(DATA)
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "none.tar")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_our_own_store(live: Live, scheme: str) -> None:
    options = {"s3": {"anon": True, "endpoint_url": live.url}, "gs": {"token": "anon", "endpoint_url": live.url}}[
        scheme
    ]
    store, path = open_store(f"{scheme}://shards/a.tar", options)
    assert store.size(path).nbytes == len(DATA)
    assert [bytes(x) for x in store.read_ranges(path, [(5, 10), (0, 100_000), (99_000, 99_001)])] == [
        DATA[5:10],
        DATA,
        DATA[99_000:99_001],
    ]
    with store.open(path) as file:
        assert file.read() == DATA
    if scheme == "s3":
        assert store.list("b/", recursive=True) == ["b/x.tar", "b/y/z.tar"]


def test_gcsfs(live: Live) -> None:
    """In a process of its own: gcsfs has to be told by the environment, before it is imported, to ask for no gRPC."""
    code = f"""
import gcsfs
files = gcsfs.GCSFileSystem(token="anon", endpoint_url={live.url!r}, project="p")
assert sorted(files.find("shards")) == {[f"shards/{key}" for key in KEYS]!r}
assert sorted(files.ls("shards/b", detail=False)) == ["shards/b/x.tar", "shards/b/y"], files.ls("shards/b")
import random
data = random.Random(3).randbytes(100_000)
assert files.cat_file("shards/a.tar") == data
assert files.cat_file("shards/a.tar", start=5, end=20) == data[5:20]
assert files.info("shards/a.tar")["size"] == len(data)
assert files.cat_file({"shards/" + KEYS[-1]!r}) == data[{KEYS.index(KEYS[-1])}:]
assert not files.exists("shards/none.tar")
try:
    files.cat_file("shards/none.tar")
except FileNotFoundError:
    print("all of it")
"""
    env = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "STORAGE_EMULATOR_HOST": live.url}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr[-3000:]


def test_obstore_as_gcs(live: Live) -> None:
    import obstore
    from obstore.store import GCSStore

    store = GCSStore(
        "shards", config={"base_url": live.url, "skip_signature": True}, client_options={"allow_http": True}
    )
    assert len(obstore.list(store).collect()) == len(KEYS)
    assert bytes(obstore.get(store, "a.tar").bytes()) == DATA
    assert bytes(obstore.get_range(store, "b/x.tar", start=7, end=70)) == data_of("b/x.tar")[7:70]
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "none.tar")


def test_the_json_api_by_hand(live: Live) -> None:
    import json

    found: list[str] = []
    prefixes: list[str] = []
    more = ""
    while True:
        answer = live.ask(f"/storage/v1/b/shards/o?maxResults=3&delimiter=/&pageToken={more}")
        one = json.loads(answer.body)
        found += [item["name"] for item in one.get("items", ())]
        prefixes += one.get("prefixes", ())
        more = one.get("nextPageToken", "")
        if not more:
            break
    assert found == ["a.tar", "b-0.tar", "b.tar", "train 1+é.tar"]
    assert prefixes == ["b/", "many/", "odd/"]
    item = json.loads(live.ask("/storage/v1/b/shards/o/b%2Fx.tar").body)
    assert (item["name"], item["size"], item["bucket"]) == ("b/x.tar", str(len(data_of("b/x.tar"))), "shards")
    media = live.ask(
        item["mediaLink"].partition("localhost")[2] or item["mediaLink"].removeprefix(live.url), Range="bytes=3-5"
    )
    assert (media.status, media.body) == (206, data_of("b/x.tar")[3:6])
    assert live.ask("/storage/v1/b/shards/o/b%2Fx.tar?alt=media").body == data_of("b/x.tar")
    assert (
        json.loads(live.ask("/storage/v1/b/shards/o?startOffset=many/s-024.tar&prefix=many").body)["items"][0]["name"]
        == "many/s-024.tar"
    )
    for path in (
        "/storage/v1/b/shards/o/none",
        "/storage/v1/b/none/o",
        "/storage/v1/b/none",
        "/storage/v1/b/shards/o/.hidden",
    ):
        assert json.loads(live.ask(path).body)["error"]["code"] == 404
    for query in ("maxResults=0", "maxResults=x", "pageToken=!"):
        assert live.ask(f"/storage/v1/b/shards/o?{query}").status == 400
    assert json.loads(live.ask("/storage/v1/b").body)["items"][0]["name"] == "shards"
