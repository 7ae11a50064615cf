"""The server's log: one line per request, as text or JSON, with the ids that proxies and traces use for the request."""

import json
import logging
import re
import secrets
import time
from typing import Any, Literal

Format = Literal["none", "text", "json"]
ACCESS = logging.getLogger("rcnet.access")
_ID = re.compile(r"[\w.:/+=-]{1,128}")  # of a client: characters that cannot break a log line or a header
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")  # W3C traceparent


def configure(format: Format) -> None:
    """Sets up all loggers to write to stderr: warnings, and unless `none` one line per request."""
    if format == "none":
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    ACCESS.setLevel(logging.INFO)


def request_id(given: str | None) -> str:
    """The client's id, or a new one."""
    return given if given and _ID.fullmatch(given) else secrets.token_hex(8)


def trace_of(traceparent: str | None) -> dict[str, str]:
    """The ids of the trace and of the caller's span in a `traceparent` header; empty if it is missing or invalid.

    Example:
        >>> trace_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")["parent_span_id"]
        'b7ad6b7169203331'
    """
    found = _TRACE.fullmatch(traceparent or "")
    return {"trace_id": found[1], "parent_span_id": found[2]} if found else {}


def access(**facts: Any) -> None:
    """Logs one request."""
    if ACCESS.isEnabledFor(logging.INFO):
        ACCESS.info("%(client)s %(method)s %(path)s %(status)s %(ms)s ms %(request_id)s", facts, extra={"facts": facts})


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line; times are UTC."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {"time": f"{clock}.{record.msecs:03.0f}Z", "level": record.levelname.lower(), "logger": record.name}
        entry |= getattr(record, "facts", None) or {"message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)
