"""A process of several: `python -m wdstools.serve.worker NUMBER DESCRIPTOR`, with the settings as a line on stdin."""

from __future__ import annotations

import logging
import os
import sys

from wdstools.errors import WdsError
from wdstools.serve.metrics import Metrics
from wdstools.serve.server import Server, bind, serve
from wdstools.serve.settings import Settings


def main(number: int, memory: int) -> int:
    """Serve until told to stop, or until stdin ends: then nobody is there who could tell."""
    logging.basicConfig(format=f"wds-serve[{os.getpid()}]: %(message)s", level=logging.INFO)
    settings = Settings.loads(sys.stdin.readline())
    metrics = Metrics(memory, number, settings.processes)
    os.close(memory)

    def ready(server: Server) -> None:
        def orphaned() -> None:
            server.loop.remove_reader(0)
            server.stop()

        server.loop.add_reader(0, orphaned)
        os.write(1, b"ready\n")

    try:
        serve(settings, bind(settings.host, settings.port, shared=True), metrics, ready)
    except (WdsError, OSError) as error:
        logging.getLogger("wdstools").error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
