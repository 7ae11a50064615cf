"""Malformed requests, and what the OpenAPI document promises, against the real server."""

import asyncio

import pytest

from benchmarks import fuzz

from .test_serve import Server, encoded, picture

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
hypothesis = pytest.importorskip("hypothesis")
given, settings = hypothesis.given, hypothesis.settings


OBJECTIVE = 30  # seconds: a crowded machine takes long for everything


@pytest.fixture(scope="module")
def server():
    server = Server(*fuzz.SERVER, "--slo", f"{OBJECTIVE}s")
    yield server
    status, _, err = server.end()
    assert status == 0
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
OPERATIONS = [
    *(("POST", path) for path in ("/v1/denoise", "/v1/classify")),
    *(("GET", path) for path in ("/v1/models", "/v1/load", "/healthz", "/readyz", "/metrics")),
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_documented(api, method, path):
    @settings(max_examples=40 if method == "POST" else 3, deadline=None, database=None, derandomize=True)
    @given(case=api[path][method].as_strategy())
    def check(case):
        case.call_and_validate(checks=CHECKS)

    check()


def test_malformed_requests(server):
    report = asyncio.run(fuzz.fuzz(server.url, server.process.pid, 300, objective=OBJECTIVE))
    assert report.wrong == []
    assert report.statuses.total() == 300
    assert {415, 422} <= {status for _, status in report.statuses}
    assert server.post("/v1/denoise", encoded(picture())).status_code == 200
