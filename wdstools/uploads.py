"""Uploads to S3 that nobody completed: found and aborted by signed requests of our own.

obstore does not show them, and s3fs takes half a second of processor time to load: more than a hundred megabytes take
on their way. botocore signs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wdstools import failures
from wdstools.credentials import s3_config
from wdstools.errors import NotFoundError, StoreError
from wdstools.httpclient import HttpClient
from wdstools.retrying import Retries


def signs(options: Mapping[str, Any]) -> bool:
    """Whether requests can be signed here; where not, s3fs is to do it."""
    return not options.get("anon") and _botocore()


@functools.cache
def _botocore() -> bool:
    return importlib.util.find_spec("botocore") is not None


class Uploads:
    """Those of one bucket, `root` its URL. Every method is one attempt at each request."""

    def __init__(self, root: str, options: Mapping[str, Any], retries: Retries) -> None:
        self._root, self._bucket = root, urllib.parse.urlsplit(root).netloc
        self._config = s3_config(root, self._bucket, options, retries)
        endpoint = self._config.get("endpoint") or f"https://s3.{self._config['region']}.amazonaws.com"
        self._endpoint = endpoint.rstrip("/")
        self._http = HttpClient(self._endpoint, retries.patience)

    def abandon(self, prefix: str, mine: Callable[[str], bool]) -> int:
        """Abort the uploads to those paths of a prefix that `mine` takes, and return how many."""
        count = 0
        for path, upload in list(self._open(prefix)):
            if mine(path):
                with contextlib.suppress(NotFoundError):  # completed or aborted meanwhile
                    self._ask("DELETE", path, {"uploadId": upload})
                count += 1
        return count

    def _open(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield (path, id) of the uploads under way."""
        more: dict[str, str] = {}
        while True:
            text = self._ask("GET", "", {"uploads": "", "prefix": prefix, **more})
            try:
                page = ET.fromstring(text)
            except ET.ParseError as error:
                raise StoreError(f"{self._root}{prefix}: the list of uploads is no XML: {error}") from error
            for item in page.iterfind("{*}Upload"):
                yield item.findtext("{*}Key", ""), item.findtext("{*}UploadId", "")
            if page.findtext("{*}IsTruncated", "").strip() != "true":
                return
            before = more
            more = {"key-marker": page.findtext("{*}NextKeyMarker", "")}
            more["upload-id-marker"] = page.findtext("{*}NextUploadIdMarker", "")
            if more == before:
                raise StoreError(f"{self._root}{prefix}: the list of uploads does not end")

    def _ask(self, method: str, path: str, query: Mapping[str, str]) -> bytes:
        auth: Any = importlib.import_module("botocore.auth")
        requests: Any = importlib.import_module("botocore.awsrequest")
        name = f"/{self._bucket}" + (f"/{urllib.parse.quote(path, safe='/~')}" if path else "")
        request = requests.AWSRequest(method, self._endpoint + name, params=dict(query))
        auth.S3SigV4Auth(self._credentials(), "s3", self._config["region"]).add_auth(request)
        signed = request.prepare()
        try:
            return self._http.fetch(signed.url.removeprefix(self._endpoint), method, dict(signed.headers.items()))
        except StoreError as error:
            raise type(error)(f"{failures.hide(self._root + path)}: {error}") from error

    def _credentials(self) -> Any:
        make: Any = importlib.import_module("botocore.credentials").Credentials
        if (provide := self._config.get("credential_provider")) is not None:
            given = provide()
            return make(given["access_key_id"], given["secret_access_key"], given["token"])
        config, env = self._config, os.environ.get
        key = config.get("access_key_id") or env("AWS_ACCESS_KEY_ID")
        secret = config.get("secret_access_key") or env("AWS_SECRET_ACCESS_KEY")
        token = config.get("session_token") or (None if "access_key_id" in config else env("AWS_SESSION_TOKEN"))
        return make(key, secret, token)
