"""rcnet serve"""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from rcnet.errors import InputError, unknown


def serve(
    models: Annotated[list[str], Parameter(name="MODEL")],
    /,
    *,
    slo: str = "2s",
    least: Annotated[list[str] | None, Parameter(negative="")] = None,
    policy: str = "slack",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: Annotated[list[str] | None, Parameter(negative="")] = None,
    threads: int = 0,
    precision: str = "auto",
    queue: int = 256,
    batch: int = 8,
    max_mb: int = 32,
    max_pixels: int = 4_000_000,
    requests: int = 64,
    patience: float = 10.0,
    token_file: Path | None = None,
    root_path: str = "",
    log: Literal["none", "text", "json"] = "none",
    allow_host: Annotated[list[str] | None, Parameter(negative="")] = None,
    ray: Annotated[bool, Parameter(negative="")] = False,
    replicas: str | None = None,
) -> None:
    """Serve networks over HTTP, at the best settings that answer everybody in time.

    Under load the server lowers the cost of its networks before it is late; what
    even the least settings would make late is refused at once. SIGTERM finishes
    what is in progress. The page at / shows it; /openapi.json says the rest.

    Examples::

      rcnet serve r3_fast.photo
      rcnet serve r3_fast.photo r2.cifar10 --slo 500ms
      curl --data-binary @photo.png http://127.0.0.1:8000/v1/denoise -o clean.png
      curl --data-binary @cat.png http://127.0.0.1:8000/v1/classify

    Parameters
    ----------
    models
        Bundled weights (see rcnet models), exported .onnx files or files of weights.
    slo
        The objective: in which time answers are promised, e.g. 150ms or 2s.
    least
        The least setting that the policy may take, e.g. 2, or r2.cifar10=3 for one of several models.
    policy
        slack, the best with which all that wait are in time; hysteresis, which changes seldom; fixed, the largest; least; or a
        function of your own as package.module:function.
    host
        Address to listen on. Other machines reach the server only if you name another than the default, which needs a token.
    port
        0 takes a free one.
    device
        A worker process for each, e.g. cuda:0. The first GPU unless given, or the processor.
    threads
        Threads of the processor for each worker; one per core unless given.
    precision
        fp32, bf16, which needs torch, or auto: what was measured to be faster.
    queue
        Requests that may wait.
    batch
        Images computed at once, at most.
    max_mb
        Largest body in megabytes.
    max_pixels
        Largest image.
    requests
        Requests at once, at most.
    patience
        Seconds in which a body has to arrive.
    token_file
        File with a token that clients must send as Authorization: Bearer TOKEN. RCNET_TOKEN, unless given.
    root_path
        The path under which a proxy shows the server, e.g. /denoise.
    log
        A line per request to stderr: none, text or json. Warnings are always there.
    allow_host
        A name by which clients address the server, beside localhost, IP addresses and --host. Others are refused, since a web
        page may point its own name at this machine.
    ray
        Serve on the Ray cluster that RAY_ADDRESS names, or on one of this machine alone.
    replicas
        With --ray: how many engines, 1 unless given, e.g. 2, or 1-8 for as many as the load needs.
    """
    from rcnet.runtime.budget import parse_budget

    objective = parse_budget(slo)
    if not objective.timed:
        raise InputError(f"--slo {slo} is not valid: give a time, e.g. 150ms or 2s")
    if replicas is not None and not ray:
        raise InputError("--replicas is for --ray: without it, give several --device")
    if root_path and not root_path.startswith("/"):
        raise InputError(f"--root-path {root_path} is not valid: start it with /")
    if not patience > 0:
        raise InputError(f"--patience {patience:g} is not valid: give seconds above 0")
    for name, value, lowest in (("threads", threads, 0), ("queue", queue, 1), ("batch", batch, 1)):
        check(name, value, lowest)
    for name, value in (("max-mb", max_mb), ("max-pixels", max_pixels), ("requests", requests)):
        check(name, value, 1)
    try:
        from rcnet.serve import run
        from rcnet.serve.settings import Limits, Settings
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'rcnet[serve]'") from error
    from rcnet.deploy.sessions import default_device
    from rcnet.device import PRECISIONS
    from rcnet.serve.served import name_of

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    for each in device or [] if not ray else []:  # with Ray the replicas have them
        check_device(each)
    settings = Settings(
        models=models,
        objective=objective.amount / 1000,
        policy=policy,
        least=read_least(least or [], [name_of(source) for source in models]),
        host=host,
        port=port,
        devices=device or [default_device()],
        threads=threads,
        precision=precision,
        queue=queue,
        batch=batch,
        limits=Limits(body=max_mb << 20, pixels=max_pixels, requests=requests, patience=patience),
        token=read_token(token_file),
        hosts=allow_host or (),
        root_path=root_path.rstrip("/"),
        log=log,
    )
    if not ray:
        asyncio.run(run.serve(settings, run.engine_of(settings)))
        return
    from rcnet.serve import cluster

    asyncio.run(cluster.serve(settings, *read_replicas(replicas or "1")))


def read_replicas(text: str) -> tuple[int, int]:
    """`2`, or `1-8`: the least and the most."""
    low, _, high = text.partition("-")
    try:
        found = int(low), int(high or low)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise InputError(f"--replicas {text} is not valid: give a number, e.g. 2, or a range, e.g. 1-8")
    return found


def check(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise InputError(f"--{name} {value} is not valid: give a whole number from {lowest}")


def read_least(given: list[str], names: list[str]) -> dict[str, str]:
    """By model: `2` is for all, `NAME=2` for one."""
    found: dict[str, str] = {}
    for text in given:
        name, _, setting = text.rpartition("=")
        if name and name not in names:
            raise InputError(f"--least {text} names no model that is served: valid: {', '.join(names)}")
        found |= {each: setting for each in ([name] if name else names)}
    return found


def read_token(file: Path | None) -> str:
    """The token of a file, or of RCNET_TOKEN; none where neither is given."""
    if file is None and "RCNET_TOKEN" not in os.environ:
        return ""
    token = (file.read_bytes().decode("latin-1") if file else os.environ["RCNET_TOKEN"]).strip()
    if not token or not token.isascii() or not token.isprintable():
        raise InputError(f"{file or 'RCNET_TOKEN'} holds no token: put one into it, of letters, digits and signs of ASCII")
    return token


def check_device(name: str) -> None:
    """`InputError` unless it is here; it is not touched, as the worker may need it for itself."""
    from rcnet.deploy.sessions import torch_devices
    from rcnet.runtime.onnx import devices

    valid = devices()
    if name not in valid:
        valid = list(dict.fromkeys([*valid, *torch_devices()]))
    if name not in valid:
        raise InputError(f"--device {name} is not there: valid: {', '.join(valid)}")
