"""Metrics of the server, for Prometheus and for the page."""

from collections import Counter as Count
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rcnet.serve.engine import Engine
from rcnet.setting import Setting

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one server.

    Attributes:
        served: images by (model, setting).
        refused: requests without a result that would have had one at another time.
    """

    def __init__(self, engine: Engine) -> None:
        self.registry = one = CollectorRegistry()
        self.served: Count[tuple[str, Setting]] = Count()
        self.refused = 0
        times: Any = {"buckets": SECONDS, "registry": one}
        self._requests = Counter("rcnet_requests", "Requests, by status.", ["route", "model", "status"], registry=one)
        self._seconds = Histogram("rcnet_request_seconds", "From a request's header to its answer.", ["route"], **times)
        self._in_time = Counter("rcnet_in_time", "Results within the objective.", ["model"], registry=one)
        self._settings = Counter("rcnet_settings", "Images, by setting.", ["model", "setting"], registry=one)
        self._computing = Histogram("rcnet_compute_seconds", "Seconds of computing a batch.", ["model", "setting"], **times)
        self._rejections = Counter("rcnet_rejections", "Requests without a result, by reason.", ["reason"], registry=one)
        for name, text, value in [
            ("rcnet_queue_requests", "Waiting requests.", lambda: len(engine.scheduler.waiting)),
            ("rcnet_load_seconds", "Backlog at the least settings.", lambda: engine.scheduler.backlog(engine.clock())),
            ("rcnet_slowness", "Time of a call relative to that at the start.", lambda: engine.scheduler.costs.slow),
            ("rcnet_objective_seconds", "The latency objective.", lambda: engine.objective),
            ("rcnet_worker_restarts", "Restarts of workers that died.", lambda: engine.restarts),
        ]:
            Gauge(name, text, registry=one).set_function(value)

    def batch(self, model: str, setting: Setting, images: int, seconds: float) -> None:
        """Counts a computed batch."""
        self.served[model, setting] += images
        self._settings.labels(model, str(setting)).inc(images)
        self._computing.labels(model, str(setting)).observe(seconds)

    def request(self, route: str, model: str, status: int, seconds: float, objective: float | None) -> None:
        """Counts an answered request."""
        self._requests.labels(route, model, status).inc()
        self._seconds.labels(route).observe(seconds)
        if status == 200 and objective is not None and seconds <= objective:
            self._in_time.labels(model).inc()

    def rejection(self, reason: str) -> None:
        """Counts a request without a result."""
        self.refused += reason in ("busy", "late", "down", "failed")
        self._rejections.labels(reason).inc()

    def text(self) -> bytes:
        """All metrics in the format of Prometheus."""
        return generate_latest(self.registry)
