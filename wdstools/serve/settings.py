"""What a server is told to do: made by the command, handed to every process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """`sources`: (name, SOURCE) pairs; `token`, `access_key`, `secret_key`, `cors`, `access_log`, `tls_cert`,
    `tls_key`, `cache`: None for none; times in seconds."""

    sources: tuple[tuple[str, str], ...]
    host: str = "127.0.0.1"
    port: int = 0
    processes: int = 1
    token: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    cors: str | None = None
    access_log: str | None = None
    cache: str | None = None
    samples: bool = True  # whether there are routes for samples
    annotations: tuple[str, ...] = ()  # tables that are joined to every set, by key
    thumbnails: str | None = None  # folder
    query_seconds: float = 10.0
    storage_options: dict[str, Any] = field(default_factory=dict)
    max_connections: int = 4096
    head_timeout: float = 15.0  # for the head and the body of a request, from its first byte
    idle_timeout: float = 75.0  # between two requests
    send_timeout: float = 60.0  # without a byte that the client takes
    drain: float = 30.0  # for requests under way, when the server is stopped

    @property
    def guarded(self) -> bool:
        """Whether a request has to prove who it is from."""
        return self.token is not None or self.access_key is not None

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Settings:
        given = json.loads(text)
        given["sources"] = tuple((name, source) for name, source in given["sources"])
        given["annotations"] = tuple(given["annotations"])
        return cls(**given)
