"""`wds-serve`: shards over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wdstools.cli.common import emit, emit_json, run, talk, tell_log

if TYPE_CHECKING:
    from wdstools.serve.settings import Settings

_FILE = click.Path(exists=True, dir_okay=False)


def _options(context: click.Context, option: click.Parameter, value: str | None) -> dict[str, Any]:
    import json

    try:
        found = json.loads(value or "{}")
    except ValueError as error:
        raise click.BadParameter(f"is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise click.BadParameter('write an object, such as {"endpoint_url": "http://host:9000"}')
    return found


def _cors(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not value.isascii() or not value.isprintable() or " " in value or not value):
        raise click.BadParameter("write one origin, such as https://example.org, or *")
    return value


@click.command(
    "wds-serve",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  $ wds-serve ./shards
  http://127.0.0.1:8080/train-{000000..000146}.tar
  $ wds-serve /data/imagenet /data/laion --host 0.0.0.0 --processes 4
  $ wds-serve s3://bucket/shards --cache /nvme/cache:200GB
  $ wds-serve imagenet=/data/in1k/train.wdsindex --port 0 --json
  $ wds-serve /data/imagenet --port 8080 --nginx > wds-serve.conf""",
)
@click.argument("sources", nargs=-1, required=True, metavar="[NAME=]SOURCE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free.")
@click.option("--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="On one port.")
@click.option("--cache", metavar="FOLDER:SIZE", help="Keep blocks of remote objects here, such as /nvme/cache:200GB.")
@click.option("--storage-options", metavar="JSON", callback=_options, help="For remote sources, as fsspec takes them.")
@click.option("--token", envvar="WDS_TOKEN", metavar="TEXT", help="Ask for it: Bearer or ?token=.  [env: WDS_TOKEN]")
@click.option(
    "--access-key", envvar="WDS_ACCESS_KEY", metavar="ID", help="S3: check signatures.  [env: WDS_ACCESS_KEY]"
)
@click.option("--secret-key", envvar="WDS_SECRET_KEY", metavar="TEXT", help="With --access-key.  [env: WDS_SECRET_KEY]")
@click.option("--tls-cert", type=_FILE, metavar="PEM", help="Serve https with this chain of certificates.")
@click.option("--tls-key", type=_FILE, metavar="PEM", help="Its key.")
@click.option("--cors", metavar="ORIGIN", callback=_cors, help="Let pages of this origin read; * for all.")
@click.option("--access-log", metavar="FILE", help="A line for every answer; - for stderr.")
@click.option("--no-samples", "samples", is_flag=True, default=True, flag_value=False, help="Serve only bytes.")
@click.option(
    "--annotations",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A .csv or .parquet whose columns are joined to samples by its column key.",
)
@click.option("--thumbnails", metavar="FOLDER", help="Keep thumbnails here, beside those in memory.")
@click.option(
    "--query-seconds", type=click.FloatRange(0.1), default=10.0, show_default=True, help="That a query may take."
)
@click.option("--max-connections", type=click.IntRange(1), default=4096, show_default=True, help="Of each process.")
@click.option("--idle", type=click.FloatRange(0.1), default=75.0, show_default=True, help="Seconds between requests.")
@click.option(
    "--slow",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="Seconds until a client that stalls is given up.",
)
@click.option("--drain", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to end at SIGTERM.")
@click.option("--nginx", is_flag=True, help="Print an nginx configuration for these options, and do nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print what is served as JSON.")
def command(
    sources: tuple[str, ...], nginx: bool, as_json: bool, tls_key: str | None, idle: float, slow: float, **given: Any
) -> None:
    """Serve shards over HTTP, to plain clients and to those of S3 and GCS, on one port.

    SOURCE: a folder, an index (.wdsindex) or a remote prefix (s3://bucket/prefix). Each is a bucket under the last part
    of its name, or NAME; a single one is at / as well.

    Prints the brace patterns to train from, plain and behind curl. SIGTERM ends it once what is under way is sent.
    """
    from wdstools.serve.settings import Settings
    from wdstools.serve.tree import name_sources

    if (given["tls_cert"] is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if (given["access_key"] is None) != (given["secret_key"] is None):
        raise click.UsageError("--access-key and --secret-key go together")
    if given["token"] == "" or given["access_key"] == "" or given["secret_key"] == "":
        raise click.UsageError("an empty token or key keeps nobody out: leave the option away")
    settings = Settings(
        sources=name_sources(sources),
        tls_key=tls_key,
        idle_timeout=idle,
        send_timeout=slow,
        head_timeout=min(slow, 15.0),
        **given,
    )
    if nginx:
        from wdstools.serve.nginxconf import config

        emit(config(settings).splitlines())
        return
    tell_log()
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.guarded:
        talk(f"everybody who reaches {settings.host} can read what is served; --token keeps others out")
    _serve(settings, as_json)


def _serve(settings: Settings, as_json: bool) -> None:
    try:
        from wdstools.serve.server import bind, serve
    except ModuleNotFoundError as error:
        raise click.UsageError(f'{error}; pip install "wdstools[serve]"') from error
    if settings.processes == 1:
        from wdstools.serve.metrics import Metrics

        sock = bind(settings.host, settings.port, shared=False)
        port = sock.getsockname()[1]
        serve(settings, sock, Metrics(), lambda server: _tell(server.app.tree, settings, port, as_json))
        return
    from wdstools.serve.processes import Supervisor
    from wdstools.serve.tree import Tree

    supervisor = Supervisor(settings)
    tree = Tree(settings.sources, settings.storage_options)
    supervisor.run(lambda: _tell(tree, settings, supervisor.port, as_json))


def _tell(tree: Any, settings: Settings, port: int, as_json: bool) -> None:
    """Print what is served, now that it is."""
    import sys

    from wdstools.serve.links import links

    found = links(tree, settings, port)
    talk(f"serving {', '.join(name for name, _ in settings.sources)} at {found['url']}")
    for source in found["sources"]:
        if "error" in source:  # an http server, say
            talk(f"{source['error']}; its objects are served by their names")
    if as_json:
        emit_json(found)
    else:
        for source in found["sources"]:
            emit([*source.get("patterns", ()), *source.get("pipes", ())])
    sys.stdout.flush()


def main() -> None:
    """The entry point."""
    run(command)
