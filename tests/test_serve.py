"""The real server, as a process, over real connections."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import rcnet
from rcnet.cost.counting import macs
from rcnet.deploy.denoise import denoise_pixels

IMAGES = Path(__file__).parent / "images"
STARTING = 90  # seconds, on a busy machine


class Server:
    """`rcnet serve` with these arguments, on a free port."""

    def __init__(self, *arguments, stderr=subprocess.PIPE, **environment):
        command = [sys.executable, "-m", "rcnet", "serve", *arguments, "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
        )
        line = self.process.stdout.readline()
        assert "at http://" in line, self.process.communicate()
        self.url = line.split()[-1]
        self.client = self.new_client()

    def new_client(self):
        return httpx.Client(base_url=self.url, timeout=60, verify=False)  # certificates would take 40 ms to load

    def post(self, path, data, **options):
        return self.client.post(path, content=data, **options)

    def worker(self):
        """The process that computes."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "rcnet.serve.worker"], capture_output=True, text=True)
        return int(found.stdout.split()[0])

    def connect(self):
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def end(self, sign=signal.SIGTERM):
        self.client.close()
        self.process.send_signal(sign)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def server():
    server = Server(
        *("r3_fast.photo", "r2.cifar10", "--slo", "20s", "--max-pixels", "200000", "--max-mb", "1", "--requests", "32"),
        *("--patience", "1", "--precision", "fp32"),
    )
    yield server
    status, _, err = server.end()
    assert (status, re.sub(r"worker \d+ .*\n", "", err)) == (0, "")


def picture(side=64, mode="RGB"):
    return Image.open(IMAGES / "cat.png").convert(mode).resize((side, side))


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_denoised_image_is_that_of_the_library(server):
    image = np.asarray(picture())
    session = rcnet.optimize(rcnet.load("r3_fast.photo"), precision="fp32")
    wanted, level = denoise_pixels(session, image, 2, sigma=15, strength=0.8)
    answer = server.post("/v1/denoise?steps=2&sigma=15&strength=0.8", encoded(picture()))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert np.abs(pixels_of(answer.content).astype(int) - wanted).max() <= 1
    assert answer.headers["rcnet-model"] == "r3_fast.photo"
    assert answer.headers["rcnet-setting"] == "2"
    assert float(answer.headers["rcnet-level"]) == pytest.approx(level, rel=0.02)
    assert float(answer.headers["rcnet-macs"]) == pytest.approx(macs(rcnet.load("r3_fast.photo"), 2, (64, 64)))
    assert 0 <= float(answer.headers["rcnet-queue-ms"]) < float(answer.headers["rcnet-compute-ms"]) + 20_000
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("kind", "accept", "sent"),
    [
        ("PNG", None, "image/png"),
        ("JPEG", None, "image/jpeg"),
        ("WebP", None, "image/png"),
        ("PNG", "image/jpeg", "image/jpeg"),
        ("JPEG", "image/webp, application/x-npy;q=0.5", "application/x-npy"),
        ("PNG", "text/html, */*", "image/png"),
    ],
)
def test_formats(server, kind, accept, sent):
    answer = server.post("/v1/denoise?steps=1", encoded(picture(), kind), headers={"accept": accept} if accept else {})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == sent
    shape = np.load(io.BytesIO(answer.content)).shape if "npy" in sent else pixels_of(answer.content).shape
    assert shape == (64, 64, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, ">u2"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_arrays(server, dtype, shape):
    values = np.random.default_rng(0).random(shape)
    array = (values if np.dtype(dtype).kind == "f" else values * np.iinfo(dtype).max).astype(dtype)
    answer = server.post("/v1/denoise?steps=1", npy(np.asfortranarray(array)))
    assert answer.status_code == 200, answer.text
    result = np.load(io.BytesIO(answer.content))
    assert result.shape == (20, 30, shape[2] if len(shape) > 2 else 1)
    assert result.dtype == (np.float32 if np.dtype(dtype).kind == "f" else np.dtype(dtype).newbyteorder("="))


def test_alpha_and_json(server):
    answer = server.post("/v1/denoise", encoded(picture(40, "RGBA")), headers={"accept": "application/json"}).json()
    result = pixels_of(base64.b64decode(answer["png"]))
    assert result.shape == (40, 40, 4)
    assert (answer["width"], answer["height"], answer["model"], answer["setting"]) == (40, 40, "r3_fast.photo", "3")
    jpeg = server.post("/v1/denoise", encoded(picture(40, "RGBA")), headers={"accept": "image/jpeg"})
    assert jpeg.status_code == 422
    assert "ask for image/png" in jpeg.json()["detail"]


def test_classes(server):
    answer = server.post("/v1/classify?top=3", encoded(picture(200), "WebP"))
    assert answer.headers["rcnet-setting"] == answer.json()["setting"]
    classes = answer.json()["classes"]
    assert classes[0]["name"] == "cat"
    assert [c["probability"] for c in classes] == sorted((c["probability"] for c in classes), reverse=True)
    gray = server.post("/v1/classify", npy((np.asarray(picture(50, "L")) * 257.0 / 65535).astype(np.float32)))
    assert gray.status_code == 200, gray.text


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"x")


WEBP = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16000).to_bytes(3, "little") * 2
REFUSED = [
    ("/v1/denoise", b"", 415, "empty; valid: PNG, JPEG, WebP, npy"),
    ("/v1/denoise", b"GIF89a", 415, "not an image of a known format"),
    ("/v1/denoise", b"/etc/passwd", 415, "not an image"),
    ("/v1/denoise", b"http://127.0.0.1/x.png", 415, "not an image"),
    ("/v1/denoise", encoded(picture())[:600], 422, "truncated"),
    ("/v1/denoise", png_header(100_000, 100_000), 413, "100000x100000 pixels and this server takes at most 200000"),
    ("/v1/denoise", WEBP, 413, "16001x16001 pixels"),
    ("/v1/denoise", npy(np.zeros((2, 3, 4, 5), np.uint8)), 422, r"shape \[2, 3, 4, 5\]: give"),
    ("/v1/denoise", npy(np.full((4, 4), np.nan)), 422, r"not in \[0, 1\]"),
    ("/v1/denoise", npy(np.array([[print]], object), allow_pickle=True), 422, "object of shape"),
    ("/v1/denoise", npy(np.zeros((9, 9), np.uint8))[:-1], 422, "80 bytes of values and 81 announced"),
    ("/v1/denoise", b"\x93NUMPY\x01\0\xff\xff", 422, "damaged header"),
    ("/v1/denoise", encoded(picture(500)), 413, "500x500 pixels"),
    ("/v1/denoise", b"\xff\xd8\xff" + bytes(1 << 20), 413, "bytes and this server takes at most 1048576"),
    ("/v1/denoise?steps=9", b"", 422, "r3_fast.photo has no setting 9: valid: 1, 2, 3"),
    ("/v1/denoise?sigma=-1", b"", 422, "sigma: input should be greater than or equal to 0"),
    ("/v1/denoise?sigma=nan", b"", 422, "sigma: "),
    ("/v1/denoise?strength=3", b"", 422, "strength: input should be less"),
    ("/v1/denoise?deadline_ms=1e9", b"", 422, "deadline_ms: give at most 60000"),
    ("/v1/denoise?deadline_ms=nan", b"", 422, "deadline_ms: "),
    ("/v1/denoise?model=r2.cifar10", b"", 404, "valid: r3_fast.photo"),
    ("/v1/classify?model=r2.cifar1", b"", 404, "did you mean 'r2.cifar10'"),
    ("/v1/classify?top=0", b"", 422, "top: "),
    ("/v1/denoise?deadline_ms=0.001", encoded(picture()), 413, "give a later deadline"),
    ("/nothing", b"", 404, "Not Found"),
    ("/healthz", b"", 405, "Method Not Allowed"),
]


@pytest.mark.parametrize(("path", "body", "status", "says"), REFUSED)
def test_what_is_refused_with_a_sentence(server, path, body, status, says):
    answer = server.post(path, body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    assert re.search(says, answer.json()["detail"]), answer.json()


def test_a_format_that_cannot_be_sent(server):
    answer = server.post("/v1/denoise", encoded(picture()), headers={"accept": "image/avif"})
    assert answer.status_code == 406
    assert "image/png" in answer.json()["detail"]


def test_a_large_body_is_refused_before_it_is_read(server):
    with server.connect() as line:
        line.sendall(b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 413")
    many = (bytes(100_000) for _ in range(20))
    with contextlib.suppress(httpx.WriteError):  # it closed while we wrote
        assert server.post("/v1/denoise", many).status_code == 413


def test_a_slow_body_is_given_up(server):
    with server.connect() as line:
        line.sendall(b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\x89PNG")
        assert line.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost:"])
def test_a_connection_that_asks_nothing_is_closed(server, sent):
    with server.connect() as line:
        answer = b""
        line.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n" if sent else b"")
        while sent and not answer.endswith(b"ok\n"):
            answer += line.recv(10000)
        line.sendall(sent)
        started = time.monotonic()
        assert line.recv(1000) == b""
        assert time.monotonic() - started < 20  # a second, on an idle machine


def test_a_connection_that_goes_on_asking_is_kept(server):
    line = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    line.connect()
    first = line.sock
    for _ in range(15):
        line.request("GET", "/healthz")
        assert line.getresponse().read() == b"ok\n"
        assert line.sock is first
        time.sleep(0.1)  # for longer than the patience of a second, all in all
    line.close()


def test_a_camera_of_12_bits_is_classified_as_bright_as_it_is(server):
    image = np.asarray(picture(48).convert("L"))
    answers = [
        server.post("/v1/classify?top=10&steps=4&deadline_ms=20000", encoded(Image.fromarray(pixels))).json()["classes"]
        for pixels in (image, np.rint(image / 255 * 4095).astype(np.uint16))
    ]
    assert answers[0][0]["name"] == answers[1][0]["name"]
    assert answers[0][0]["probability"] == pytest.approx(answers[1][0]["probability"], abs=0.02)


def metric(server, name, **labels):
    text = server.client.get("/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def test_a_client_that_goes_away_frees_its_place(server):
    before = metric(server, "rcnet_rejections_total", reason="gone")
    body = encoded(picture(400))
    head = f"POST /v1/denoise?steps=3&deadline_ms=30000 HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    worker = server.worker()
    os.kill(worker, signal.SIGSTOP)  # it takes the first, and computes nothing
    try:
        lines = [server.connect() for _ in range(5)]
        for line in lines:
            line.sendall(head + body)
        wait(lambda: server.client.get("/v1/load").json()["waiting"] >= 1)  # before the worker counts as down
        for line in lines:
            line.close()
        wait(lambda: server.client.get("/v1/load").json()["waiting"] == 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    assert metric(server, "rcnet_rejections_total", reason="gone") >= before + 2


def wait(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def burst(server, count, path="/v1/denoise", data=None, **options):
    """The answers to so many requests at once; an exception where there was none."""
    data = data or encoded(picture(128))

    def ask(_):
        with server.new_client() as client:
            return client.post(path, content=data, **options)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


def test_too_much_is_refused_at_once_and_what_is_admitted_is_in_time(server):
    answers = burst(server, 24, f"/v1/denoise?steps=3&deadline_ms={milliseconds(server, 192) * 3}", encoded(picture(192)))
    assert {a.status_code for a in answers} <= {200, 429, 503, 413}
    refused = [a for a in answers if a.status_code in (429, 503)]
    assert refused
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)


def milliseconds(server, side):
    """What one picture takes here at the largest setting, and its way there and back."""
    server.post("/v1/denoise?steps=3", encoded(picture(side)))
    started = time.monotonic()
    server.post("/v1/denoise?steps=3", encoded(picture(side)))
    return math.ceil(1000 * (time.monotonic() - started))


def test_the_dial_is_turned_under_load_and_back(server):
    low = burst(server, 20, f"/v1/denoise?deadline_ms={6 * milliseconds(server, 256)}", encoded(picture(256)))
    taken = {a.headers["rcnet-setting"] for a in low if a.status_code == 200}
    assert taken
    assert taken != {"3"}
    wait(lambda: server.post("/v1/denoise", encoded(picture())).headers.get("rcnet-setting") == "3")


def test_no_request_is_lost_with_a_worker(server):
    before = server.client.get("/v1/load").json()["restarts"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answers = pool.submit(burst, server, 10, "/v1/denoise?deadline_ms=30000", encoded(picture(300)))
        wait(lambda: server.client.get("/v1/load").json()["waiting"] >= 2)
        os.kill(server.worker(), signal.SIGKILL)
        statuses = [a.status_code for a in answers.result()]
    assert set(statuses) <= {200, 503, 429}
    assert len(statuses) == 10
    wait(lambda: server.client.get("/readyz").status_code == 200, STARTING)
    assert server.client.get("/v1/load").json()["restarts"] == before + 1
    assert server.post("/v1/denoise?deadline_ms=20000", encoded(picture())).status_code == 200


def test_metrics_and_load(server):
    before = metric(server, "rcnet_requests_total", route="/v1/classify", status="200")
    server.post("/v1/classify?steps=3", encoded(picture()))
    assert metric(server, "rcnet_requests_total", route="/v1/classify", status="200") == before + 1
    assert metric(server, "rcnet_settings_total", model="r2.cifar10", setting="3") >= 1
    assert metric(server, "rcnet_request_seconds_count", route="/v1/classify") >= 1
    assert metric(server, "rcnet_queue_requests") == 0
    load = server.client.get("/v1/load").json()
    assert (load["objective_ms"], load["waiting"]) == (20_000, 0)
    assert load["served"]["r2.cifar10"]["3"] >= 1
    assert server.client.get("/healthz").text == "ok\n"


def test_models(server):
    first, second = server.client.get("/v1/models").json()
    assert (first["name"], first["task"], [s["setting"] for s in first["settings"]]) == (
        "r3_fast.photo",
        "denoise",
        ["1", "2", "3"],
    )
    assert (second["size"], second["classes"][3]) == (32, "cat")
    assert [s["error"] for s in second["settings"]] == sorted((s["error"] for s in second["settings"]), reverse=True)


def test_the_openapi_document_is_complete(server):
    document = server.client.get("/openapi.json").json()
    paths = {"/v1/denoise", "/v1/classify", "/v1/models", "/v1/load", "/healthz", "/readyz", "/metrics"}
    assert set(document["paths"]) == paths
    operation = document["paths"]["/v1/denoise"]["post"]
    assert {p["name"] for p in operation["parameters"]} == {"model", "steps", "sigma", "strength", "levels", "deadline_ms"}
    assert set(operation["requestBody"]["content"]) >= {"image/png", "image/jpeg", "image/webp", "application/x-npy"}
    assert set(operation["responses"]) == {"200", "400", "401", "404", "406", "408", "413", "415", "422", "429", "503"}
    assert set(operation["responses"]["200"]["content"]) == {"image/png", "image/jpeg", "application/x-npy", "application/json"}
    assert "rcnet-level" in operation["responses"]["200"]["headers"]
    assert "Retry-After" in operation["responses"]["429"]["headers"]
    text = json.dumps(document)
    assert {ref for ref in re.findall(r"#/components/schemas/(\w+)", text)} <= set(document["components"]["schemas"])


def test_the_page_may_load_nothing_from_elsewhere(server):
    answer = server.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)


@pytest.fixture(scope="module")
def guarded():
    return Server("r2.cifar10", "--policy", "fixed", "--log", "json", "--root-path", "/rc", RCNET_TOKEN="s3cret")


def test_a_token(guarded):
    cat = encoded(picture())
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic s3cret"},
        {"authorization": "Bearer s3cret\u00e9"},
    ):
        raw = {name: value.encode() for name, value in headers.items()}
        answer = guarded.post("/v1/classify", cat, headers=raw)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert guarded.client.get("/metrics").status_code == 401
    assert guarded.client.get("/healthz").status_code == 200
    answer = guarded.post("/v1/classify?deadline_ms=9000", cat, headers={"authorization": "Bearer s3cret"})
    assert answer.json()["setting"] == "4"


def test_a_path_in_front(guarded):
    headers = {"authorization": "Bearer s3cret"}
    for path in ("/v1/models", "/rc/v1/models"):  # of a proxy that takes it away, and of one that does not
        assert guarded.client.get(path, headers=headers).json()[0]["name"] == "r2.cifar10"
    assert guarded.client.get("/openapi.json").json()["servers"] == [{"url": "/rc"}]


def test_sigterm_finishes_what_is_in_progress(guarded):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        path, headers = "/v1/classify?deadline_ms=20000&steps=4", {"authorization": "Bearer s3cret"}
        answers = pool.submit(burst, guarded, 12, path, encoded(picture(400)), headers=headers)
        wait(lambda: guarded.client.get("/v1/load", headers=headers).json()["waiting"] >= 1)
        connected = guarded.connect()
        guarded.process.send_signal(signal.SIGTERM)
        wait(lambda: guarded.client.get("/readyz").status_code == 503)
        connected.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")  # on a connection from before
        ids = {"x-request-id": "mine-1", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
        assert guarded.client.get("/healthz?a%0Ab", headers=ids).headers["x-request-id"] == "mine-1"
        assert len(guarded.client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 16
        late = connected.makefile("rb").read().lower()
        status, _, err = guarded.end()
        assert {answer.status_code for answer in answers.result()} == {200}
    assert late.startswith(b"http/1.1 200")
    assert b"connection: close" in late
    assert status == 0
    entries = [json.loads(line) for line in err.splitlines()]
    (mine,) = [entry for entry in entries if entry.get("request_id") == "mine-1"]
    assert mine | {"time": "", "ms": 0} == {
        **{"time": "", "level": "info", "logger": "rcnet.access", "client": "127.0.0.1", "method": "GET", "path": "/healthz"},
        **{"status": 200, "ms": 0, "request_id": "mine-1", "trace_id": "ab" * 16, "parent_span_id": "cd" * 8},
    }
    answered = [entry for entry in entries if entry.get("path", "").startswith("/v1/classify") and entry["status"] == 200]
    assert [entry["pixels"] for entry in answered][-12:] == [160_000] * 12


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "MODEL"),
        (("r3_fast.photo", "--slo", "5"), "give a time"),
        (("r3_fast.photo", "--slo", "5GMAC"), "give a time"),
        (("r3_fast.photo", "--port", "-1"), "port -1 is not valid"),
        (("r3_fast.photo", "--port", "70000"), "port 70000 is not valid"),
        (("r3_fast.photo", "--host", "not.a.host.invalid"), "cannot listen on not.a.host.invalid:"),
        (("r3_fast.photo", "--policy", "slak"), "did you mean 'slack'"),
        (("r3_fast.photo", "--least", "r2=1"), "valid: r3_fast.photo"),
        (("r3_fast.photo", "--precision", "fp8"), "unknown precision"),
        (("r3_fast.photo", "--requests", "0"), "--requests 0"),
        (("r3_fast.photo", "--token-file", "none.txt"), "none.txt"),
        (("r3_fast.photo", "--patience", "0"), "--patience 0 is not valid"),
        (("r3_fast.photo", "--host", "0.0.0.0"), "--host 0.0.0.0 is open to other machines: give a token"),
        (("r3_fast.photo", "--root-path", "rc"), "--root-path rc is not valid: start it with /"),
        (("r3_fast.photo", "--replicas", "4"), "--replicas is for --ray"),
        (("r3_fast.photo", "--device", "gpu"), "--device gpu is not there"),
    ],
)
def test_what_the_command_refuses(refused, arguments, says):
    assert says in refused("serve", *arguments)


@pytest.mark.parametrize("token", ["", " \n", "s\u00e9same", "two\nlines"])
def test_a_token_that_nobody_could_send_is_refused(refused, monkeypatch, tmp_path, token):
    (tmp_path / "token").write_text(token)
    assert "holds no token" in refused("serve", "r3_fast.photo", "--token-file", tmp_path / "token")
    monkeypatch.setenv("RCNET_TOKEN", token)
    assert "RCNET_TOKEN holds no token" in refused("serve", "r3_fast.photo")


def test_the_board_shows_metrics_that_there_are(server):
    board = json.loads((Path(__file__).parent.parent / "docker/grafana/rcnet.json").read_text())
    shown = set(re.findall(r"rcnet_\w+", json.dumps([panel["targets"] for panel in board["panels"]])))
    families = {family.name for family in text_string_to_metric_families(server.client.get("/metrics").text)}
    assert len(shown) > 8
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in shown} <= families
