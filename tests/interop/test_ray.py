"""Replicas on a Ray cluster of this machine that are pressed, killed and hung."""

import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..test_serve import Server, encoded, metric, milliseconds, picture, wait

ray = pytest.importorskip("ray", reason="ray is not installed: make interop")
STARTING, OBJECTIVE = 300, 60  # seconds, for a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home, log = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as errors:
        server = Server(
            *("r3_fast.photo", "--ray", "--replicas", "2", "--slo", f"{OBJECTIVE}s", "--device", "cpu", "--log", "json"),
            *("--allow-host", "scans.example"),
            stderr=errors,
            HOME=str(home),
        )
    server.log = log
    yield server
    left = replicas(server)
    status, out, _ = server.end()
    assert status == 0
    assert "rcnet" not in out  # one line said that it was ready; Ray says that a worker died
    assert not any(alive(pid) for pid in left)
    assert {path.name for path in home.iterdir()} <= {".ray", ".cache"}  # of Ray, and of rcnet's measurements


def processes():
    """(id, parent, command) of all."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    return [(int(pid), int(parent), name) for pid, parent, name in (line.split(None, 2) for line in table.splitlines())]


def replicas(server):
    """The processes of replicas, which are descendants of the server's."""
    family, rows = {server.process.pid}, processes()
    for _ in rows:
        family |= {pid for pid, parent, _ in rows if parent in family}
    return [pid for pid, _, name in rows if pid in family and name.startswith("ray::Replica")]


def alive(pid):
    return any(pid == other for other, _, name in processes() if "ray::" in name)


def two_up(server):
    wait(lambda: len(replicas(server)) == 2 and server.client.get("/readyz").status_code == 200, STARTING)


def ask(server, count, path, side):
    """The status and seconds of so many requests at once."""
    data = encoded(picture(side))

    def one(_):
        with server.new_client() as client:
            started = time.monotonic()
            answer = client.post(path, content=data)
            return answer.status_code, time.monotonic() - started

    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(one, range(count))


def test_what_cannot_be_in_time_is_refused_at_once_and_nothing_waits_inside_ray(server):
    alone = milliseconds(server, 192)
    answers = list(ask(server, 100, f"/v1/denoise?steps=3&deadline_ms={8 * alone}", 192))
    assert {status for status, _ in answers} <= {200, 429, 503}
    assert {200, 429} <= {status for status, _ in answers}
    assert 1000 * max(seconds for _, seconds in answers) < 25 * alone  # all of them would take 50 times as long


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_no_admitted_request_is_lost_or_late_with_a_replica(server, sign):
    def restarts():
        return server.client.get("/v1/load").json()["restarts"]

    two_up(server)
    before, failed = restarts(), metric(server, "rcnet_rejections_total", reason="failed")
    pid, answers = replicas(server)[0], []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: answers.extend(ask(server, 40, "/v1/denoise", 128)))
        wait(lambda: server.client.get("/v1/load").json()["served"]["r3_fast.photo"] != {} or asked.done(), 120)
        wait(lambda: server.client.get("/v1/load").json()["waiting"] or asked.done(), 120)
        os.kill(pid, sign)
        asked.result()
    while restarts() == before:  # it had nothing to do, so that nobody knows yet
        answers += ask(server, 4, "/v1/denoise", 64)
    assert {status for status, _ in answers} <= {200, 429, 503}
    assert sum(status == 200 for status, _ in answers) > 20
    assert max(seconds for _, seconds in answers) < OBJECTIVE
    assert metric(server, "rcnet_rejections_total", reason="failed") == failed
    wait(lambda: not alive(pid), STARTING)
    two_up(server)
    assert f"worker {pid} " in server.log.read_text()


def test_answers_refusals_and_the_log_are_those_of_any_server(server):
    headers = {"accept": "image/jpeg", "host": "scans.example", "x-request-id": "mine-1"}
    answer = server.post("/v1/denoise?steps=1", encoded(picture()), headers=headers)
    assert (answer.status_code, answer.headers["content-type"], answer.headers["rcnet-setting"]) == (200, "image/jpeg", "1")
    bad = server.post("/v1/denoise?steps=9", b"")
    assert (bad.status_code, bad.json()["detail"]) == (422, "r3_fast.photo has no setting 9: valid: 1, 2, 3")
    assert server.post("/v1/denoise", b"", headers={"host": "evil.example"}).status_code == 421
    entries = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [entry["status"] for entry in entries if entry.get("request_id") == "mine-1"] == [200]


def test_more_replicas_than_the_machine_has_cores_are_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"the replicas need 4000 CPUs and this machine has"):
        Server("r2.cifar10", "--ray", "--replicas", "4000", HOME=str(tmp_path))
