"""Two replicas on a Ray cluster of this machine, one of which is killed under load. Runs where ray is installed."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from .test_serve import encoded, picture

ray = pytest.importorskip("ray")
if os.environ.get("RCNET_SLOW") != "1":
    pytest.skip("takes a minute or more: set RCNET_SLOW=1", allow_module_level=True)

STARTING = 600  # seconds, on a busy machine


def port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home, url = str(tmp_path_factory.mktemp("home")), f"http://127.0.0.1:{port()}"
    command = [sys.executable, "-m", "rcnet", "serve", "r3_fast.photo", "--ray", "--replicas", "2", "--slo", "20s"]
    command += ["--port", url.rpartition(":")[2], "--threads", "1", "--device", "cpu", "--allow-host", "scans.example"]
    environment = os.environ | {"HOME": home, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_raylet_start_wait_time_s": "300"}
    environment |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            end = time.monotonic() + STARTING
            while not ready(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(1)
            yield url, process.pid
        finally:
            process.terminate()
        assert process.wait(120) == 0


def ready(url):
    try:
        return httpx.get(f"{url}/readyz", timeout=20).status_code == 200
    except httpx.HTTPError:
        return False


def replicas(pid):
    """Processes of replicas, which are descendants of the server's."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {pid}
    for _ in rows:
        family |= {int(one) for one, parent, _ in rows if int(parent) in family}
    return [int(one) for one, _, name in rows if int(one) in family and "ray::ServeReplica:rcnet:Engine" in name]


def test_no_request_is_lost_with_a_replica(server):
    url, pid = server
    assert len(replicas(pid)) == 2
    data, statuses = encoded(picture(96)), []

    def ask(count):
        with httpx.Client(base_url=url, timeout=120) as client:
            for _ in range(count):
                statuses.append(client.post("/v1/denoise?steps=2", content=data).status_code)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(ask, 15) for _ in range(6)]
        while len(statuses) < 10:
            time.sleep(0.05)
        os.kill(replicas(pid)[0], signal.SIGKILL)
        for client in clients:
            client.result()
    assert len(statuses) == 90
    assert set(statuses) <= {200, 429, 503}
    assert statuses.count(200) > 80


def test_answers_pass_through_the_front(server):
    url, _ = server
    headers = {"accept": "image/jpeg", "host": "scans.example"}
    answer = httpx.post(f"{url}/v1/denoise?steps=1", content=encoded(picture()), headers=headers, timeout=60)
    assert (answer.status_code, answer.headers["content-type"], answer.headers["rcnet-setting"]) == (200, "image/jpeg", "1")
    bad = httpx.post(f"{url}/v1/denoise?steps=9", content=b"", timeout=60)
    assert (bad.status_code, "valid: 1; 2; 3" in bad.json()["detail"]) == (422, True)
    assert "default-src 'none'" in httpx.get(url, timeout=60).headers["content-security-policy"]
