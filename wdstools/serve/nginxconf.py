"""An nginx configuration that serves the files of local folders itself, and passes everything else on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from wdstools import urls
from wdstools.errors import UrlError
from wdstools.serve.settings import Settings

_HEAD = """# wds-serve behind nginx: nginx serves the files, wds-serve the rest. Goes into the http block
# (/etc/nginx/conf.d/wds-serve.conf), whose workers must be allowed to read the folders.
upstream wds_serve { server %(upstream)s; keepalive 64; }

# 1: not a plain GET of a visible, finished file; so it is for wds-serve.
map "$request_method $request_uri" $wds_pass {
    default 1;
    "~^(GET|HEAD) /(?!storage/v1|download/)[^?]*[^?/]$" $wds_hidden;
}
map $uri $wds_hidden {
    default 0;
    "~(/\\.|//|\\.(part|tmp|partial)$)" 1;
}
%(guard)s
server {
    listen 8000;
    tcp_nopush off;  # on, it holds the last bytes of some answers back for 40 ms
    tcp_nodelay on;
    sendfile on;
    sendfile_max_chunk 2m;
    keepalive_requests 10000000;
    access_log off;
    open_file_cache max=1000 inactive=60s;
    open_file_cache_valid 1s;
    client_max_body_size 16m;

    location @wds_serve {
        proxy_pass http://wds_serve;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_buffering off;
        proxy_max_temp_file_size 0;
        proxy_read_timeout 300s;
    }
"""

_LOCATION = """
    location %(at)s {
        error_page 418 403 404 = @wds_serve;
        recursive_error_pages on;
        if (%(test)s) { return 418; }
        %(where)s "%(root)s/";
        disable_symlinks on from="%(root)s";
        default_type application/octet-stream;
    }
"""


def config(settings: Settings) -> str:
    """The text of a configuration. UrlError: a source whose name nginx cannot take."""
    guard = ""
    if settings.guarded:
        if settings.token is not None and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", settings.token):
            raise UrlError("the token has characters that mean something to nginx; take letters and digits")
        allowed = f'    "Bearer {settings.token}" $wds_pass;\n' if settings.token is not None else ""
        guard = "\n# Without the token: wds-serve refuses it, or knows the signature.\n"
        guard += f"map $http_authorization $wds_refer {{\n    default 1;\n{allowed}}}\n"
    upstream = f"{'127.0.0.1' if settings.host in ('', '0.0.0.0') else settings.host}:{settings.port}"
    text = _HEAD % {"upstream": upstream, "guard": guard}
    return text + "".join(_locations(settings)) + "}\n"


def _locations(settings: Settings) -> Iterator[str]:
    test = "$wds_refer" if settings.guarded else "$wds_pass"
    folders = []
    for name, source in settings.sources:
        path = urls.local_path(source) if urls.scheme(source) == "file" else None
        if path is not None and os.path.isdir(path):
            folders.append((name, os.path.realpath(path)))
    single = len(settings.sources) == 1 and folders
    if not single:
        yield "\n    location / { error_page 418 = @wds_serve; return 418; }\n"
    for name, root in folders:
        for text in (name, root):
            if re.search(r'["$\\\n{};]', text):
                raise UrlError(f"{text!r}: nginx cannot take this in a configuration")
        yield _LOCATION % {"at": f'"/{name}/"', "test": test, "where": "alias", "root": root}
        if single:
            yield _LOCATION % {"at": "/", "test": test, "where": "root", "root": root}
    yield "\n    location /-/ { error_page 418 = @wds_serve; return 418; }\n"
