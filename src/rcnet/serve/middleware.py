"""Around the application: checks against other web pages, HEAD, security headers, metrics, the access log."""

import ipaddress
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rcnet.serve import logs
from rcnet.serve.handler import Failure, RequestHandler, RequestInfo
from rcnet.serve.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class MetricsMiddleware:
    """Counts and times requests, adds security headers, answers HEAD, and refuses requests from other web pages."""

    def __init__(self, app: ASGIApp, handler: RequestHandler, settings: Settings) -> None:
        self.app, self.handler, self.root_path = app, handler, settings.root_path
        self.hosts = {host.lower() for host in (settings.host, *settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        handler, clock = self.handler, self.handler.engine.clock
        client, given = scope["client"][0] if scope.get("client") else "", Headers(scope=scope)
        info, name = RequestInfo(clock(), client), logs.request_id(given.get("x-request-id"))
        scope["rcnet"], scope["root_path"] = info, self.root_path
        status, inner = 0, scope if scope["method"] != "HEAD" else {**scope, "method": "GET"}  # uvicorn sends no body then

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = SAFETY | {"x-request-id": name} | ({"connection": "close"} if handler.engine.stopping else {})
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in headers.items())]
            await send(message)

        try:
            if failure := foreign(scope["method"], given, self.hosts):
                handler.metrics.rejection(failure.reason)
                await JSONResponse({"detail": str(failure)}, failure.status)(scope, receive, watched)
            else:
                await self.app(inner, receive, watched)
        finally:
            handler.leave(info)
            route = getattr(inner.get("route"), "path", "other")
            seconds = clock() - info.arrived
            handler.metrics.request(route, info.model, status, seconds, info.window)
            trace = logs.trace_of(given.get("traceparent"))
            about = {"model": info.model, "pixels": info.pixels} if info.model else {}
            facts = {
                "method": scope["method"],
                "path": scope["raw_path"][:500].decode("latin-1"),
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            logs.access(request_id=name, client=client, **facts, **about, **trace)


def foreign(method: str, headers: Headers, hosts: Collection[str]) -> Failure | None:
    """The refusal of a request that another web page made a browser send, or may have; else None.

    A page can point its own name at this machine (DNS rebinding), but not an IP address.
    """
    host = headers.get("host", "")
    name = _split(f"//{host}").hostname or ""
    if not (name == "localhost" or name.endswith(".localhost") or name in hosts or address_of(name)):
        return Failure(421, f"this server is not {host[:100]!r}: start it with --allow-host for that name", reason="foreign")
    if method in ("GET", "HEAD", "OPTIONS"):
        return None
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if origin is not None and _split(origin).netloc != host:
        return Failure(403, "pages of other origins may not send this request", reason="foreign")
    if site not in ("none", "same-origin"):
        return Failure(403, "pages of other sites may not send this request", reason="foreign")
    return None


def _split(url: str) -> SplitResult:
    """The parts of a URL; empty if it is damaged."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a text, or None."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
