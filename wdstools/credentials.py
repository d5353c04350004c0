"""What obstore is told of a bucket: endpoint, region, account, credentials; out of our options and the environment."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any

from wdstools.errors import AccessError
from wdstools.retrying import Retries

Options = Mapping[str, Any]


def s3_config(root: str, bucket: str, options: Options, retries: Retries) -> dict[str, Any]:
    """What obstore is told about a bucket of S3: endpoint, region, and keys that are not in the environment."""
    config: dict[str, Any] = {}
    kwargs = options.get("client_kwargs") or {}
    profile = options.get("profile")
    session = None
    if options.get("anon"):
        config["skip_signature"] = True
    elif options.get("key"):
        config.update(access_key_id=options["key"], secret_access_key=options.get("secret"))
        if options.get("token"):
            config["session_token"] = options["token"]
    elif profile or not os.environ.get("AWS_ACCESS_KEY_ID"):
        session = _botocore(profile)
        if session is not None:
            config["credential_provider"] = _provider(root, session)
    scoped = session.get_scoped_config() if session is not None else {}
    env = os.environ.get
    endpoint = options.get("endpoint_url") or kwargs.get("endpoint_url")
    endpoint = endpoint or env("AWS_ENDPOINT_URL_S3") or env("AWS_ENDPOINT_URL") or scoped.get("endpoint_url")
    if endpoint:
        config["endpoint"] = endpoint
    region = kwargs.get("region_name") or env("AWS_REGION") or env("AWS_DEFAULT_REGION") or scoped.get("region")
    if not region:
        region = "us-east-1" if endpoint else _region(bucket, retries)
    config["region"] = region
    return config


def _botocore(profile: str | None) -> Any:
    """A session that knows profiles, SSO, roles and machines; None where botocore is not installed."""
    if importlib.util.find_spec("botocore") is None:
        return None
    return importlib.import_module("botocore.session").Session(profile=profile)


def _provider(root: str, session: Any) -> Any:
    """What obstore calls for credentials, again before they expire. AccessError: there are none."""
    try:
        credentials = session.get_credentials()
    except Exception as error:
        raise AccessError(f"{root}: {error}") from error
    if credentials is None:
        raise AccessError(
            f"{root}: no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or give storage_options={'anon': True} for a public bucket"
        )

    def provide() -> dict[str, Any]:
        from datetime import datetime

        frozen = credentials.get_frozen_credentials()  # renews them where they can be renewed
        lasting = getattr(credentials, "_expiry_time", None) is None
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": None if lasting else datetime.now(UTC) + timedelta(minutes=5),
        }

    return provide


def _region(bucket: str, retries: Retries) -> str:
    """Where a bucket of AWS lies: the answer to any request says it, also one that is refused."""
    import http.client

    host = f"{bucket}.s3.amazonaws.com" if "." not in bucket else "s3.amazonaws.com"
    connection = http.client.HTTPSConnection(host, timeout=min(retries.idle, 5.0))
    try:
        connection.request("HEAD", "/" if "." not in bucket else f"/{bucket}")
        return connection.getresponse().headers.get("x-amz-bucket-region") or "us-east-1"
    except (OSError, http.client.HTTPException):
        return "us-east-1"  # the read itself will say what is wrong
    finally:
        connection.close()


def gcs_config(options: Options) -> dict[str, Any]:
    """What obstore is told about a bucket of Google."""
    config: dict[str, Any] = {}
    token = options.get("token")
    endpoint = options.get("endpoint_url") or os.environ.get("STORAGE_EMULATOR_HOST")
    if endpoint:
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        config["base_url"] = endpoint.rstrip("/")
    if token == "anon" or (endpoint and token is None and not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")):
        config["skip_signature"] = True
    elif isinstance(token, dict):
        config["service_account_key"] = json.dumps(token)
    elif is_file(token):
        config["application_credentials"] = token
    return config


def azure_config(host: str, options: Options) -> dict[str, Any]:
    """What obstore is told about a container of Azure. Raises AccessError without an account."""
    container, _, account_host = host.partition("@")
    env = os.environ.get
    text = options.get("connection_string") or env("AZURE_STORAGE_CONNECTION_STRING") or ""
    parts = {k.lower(): v for k, _, v in (part.partition("=") for part in text.split(";"))}
    account = options.get("account_name") or parts.get("accountname") or account_host.partition(".")[0]
    account = account or env("AZURE_STORAGE_ACCOUNT_NAME") or env("AZURE_STORAGE_ACCOUNT")
    if not account:
        raise AccessError(f"az://{host}: no account: set AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING")
    config: dict[str, Any] = {"container_name": container, "account_name": account}
    if parts.get("blobendpoint"):
        config["endpoint"] = parts["blobendpoint"]
    key = options.get("account_key") or parts.get("accountkey")
    key = key or env("AZURE_STORAGE_ACCOUNT_KEY") or env("AZURE_STORAGE_KEY")
    sas = options.get("sas_token") or parts.get("sharedaccesssignature") or env("AZURE_STORAGE_SAS_TOKEN")
    if options.get("anon"):
        config["skip_signature"] = True
    elif key:
        config["account_key"] = key
    elif sas:
        config["sas_key"] = sas.lstrip("?")
    else:
        for name in ("tenant_id", "client_id", "client_secret"):
            if value := options.get(name) or env(f"AZURE_STORAGE_{name.upper()}"):
                config[name] = value
    return config


def is_file(token: Any) -> bool:
    """Say whether a token is the path of a file."""
    return isinstance(token, str) and os.path.isfile(token)
