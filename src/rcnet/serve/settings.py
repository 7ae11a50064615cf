"""The settings of a server."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rcnet.serve import logs


@dataclass(frozen=True)
class Limits:
    """Limits on what clients may ask for.

    Attributes:
        body: bytes.
        pixels: per image; this also bounds the wait for the request that is computed before.
        requests: read, computed or written at once.
        patience: seconds for a body to arrive: 32 MiB at 27 Mbit/s.
        deadline: the latest one, in seconds.
    """

    body: int = 32 << 20
    pixels: int = 4_000_000
    requests: int = 64
    patience: float = 10.0
    deadline: float = 60.0


@dataclass(frozen=True)
class Settings:
    """The settings of a server; see `rcnet serve --help`.

    Attributes:
        objective: seconds in which an answer is promised.
        token: clients must send it as `Authorization: Bearer TOKEN`; empty: no token is needed.
        hosts: names of the server besides `host`, `localhost` and IP addresses.
        root_path: the path at which a proxy serves the application, whether it strips that or not.
    """

    models: Sequence[str]
    objective: float
    policy: str = "slack"
    least: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    devices: Sequence[str] = ("cpu",)
    threads: int = 0
    precision: str = "auto"
    queue: int = 256
    batch: int = 8
    limits: Limits = field(default_factory=Limits)
    token: str = ""
    hosts: Sequence[str] = ()
    root_path: str = ""
    log: logs.Format = "none"
