"""The real server against clients that mean harm or are clumsy: what they send must not cost others their answers."""

import asyncio
import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import threading
import time
import tracemalloc

import pytest

from benchmarks import hostile
from rcnet.errors import InputError
from rcnet.serve import decoder
from rcnet.serve.codec import file_of
from rcnet.serve.decoder import Decoders
from rcnet.serve.requests import Refused

from .test_serve import STARTING, Server, burst, encoded, metric, picture, wait

OBJECTIVE = 30.0  # seconds: a crowded machine takes long for everything


@pytest.fixture(scope="module")
def server():
    server = Server(
        "r3_fast.photo", "--slo", f"{OBJECTIVE:g}s", "--requests", "16", "--patience", "60", "--allow-host", "Scans.example"
    )
    server.post("/v1/denoise", encoded(picture()))
    yield server
    status, _, err = server.end()
    assert status == 0
    assert "Traceback" not in err, err


@pytest.mark.parametrize(
    "data",
    [
        hostile.jpeg_of_scans(8, 8, 40_000),  # 680 KB
        hostile.jpeg_of_scans(1000, 1000, 99, refining=True)[:-2],  # within the limits, slow, and truncated
        hostile.png_of_texts(50_000),
        hostile.png_of_bombs(900),
    ],
    ids=["scans", "refining scans", "texts", "bombs"],
)
def test_an_honest_request_beside_ten_files_that_keep_decoders_busy_is_in_time(server, data):
    answers = []
    attack = threading.Thread(target=lambda: answers.extend(burst(server, 10, data=data)))
    attack.start()
    times = []
    while attack.is_alive() or not times:
        started = time.monotonic()
        answer = server.post("/v1/denoise", encoded(picture(96)))
        assert answer.status_code == 200, answer.text
        times.append(time.monotonic() - started)
    assert max(times) < OBJECTIVE
    assert {answer.status_code for answer in answers} <= {200, 422, 429, 413}


def test_decoders_are_ended_by_their_processor_time_and_for_files_that_wait(monkeypatch):
    slow, quick = hostile.jpeg_of_scans(2000, 2000, 99, refining=True), encoded(picture())

    async def decode():
        decoders = Decoders(4_000_000)
        await decoders.start()
        try:
            monkeypatch.setattr(decoder, "PREEMPT", 0.01)
            monkeypatch.setattr(decoder, "PREEMPT_PER_MEGAPIXEL", 0.0)
            until = time.perf_counter() + STARTING
            attack = [asyncio.create_task(decoders.decode(slow, 4_000_000, "a", until)) for _ in range(2)]
            await asyncio.sleep(0)
            assert (await decoders.decode(quick, 64 * 64, "a", until)).pixels.shape == (64, 64, 3)
            preempted = await asyncio.gather(*attack, return_exceptions=True)
            monkeypatch.setattr(decoder, "BUDGET", 0.01)
            monkeypatch.setattr(decoder, "BUDGET_PER_MEGAPIXEL", 0.0)
            with pytest.raises(InputError, match="takes too long to decode"):
                await decoders.decode(slow, 4_000_000, "a", until)
            monkeypatch.setattr(decoder, "BUDGET", 5.0)
            assert (await decoders.decode(quick, 64 * 64, "a", until)).pixels.shape == (64, 64, 3)
            with pytest.raises(Refused, match="not decoded in time"):
                await decoders.decode(slow, 4_000_000, "a", time.perf_counter() + 0.01)
            return preempted
        finally:
            await decoders.stop()

    assert "this image takes long to decode, and others wait" in map(str, asyncio.run(decode()))


def test_a_decoder_that_is_killed_is_replaced_and_none_outlives_the_server(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **named: started.append(popen(*args, **named)) or started[-1])
    quick = encoded(picture())

    async def decode():
        decoders = Decoders(4_000_000)
        await decoders.start()
        try:
            until = time.perf_counter() + STARTING
            os.kill(started[0].pid, signal.SIGKILL)
            decoders._ready.sort(key=lambda process: process.pid != started[0].pid)
            with pytest.raises(Refused, match="the decoder died over this image"):
                await decoders.decode(quick, 64 * 64, "a", until)
            assert (await decoders.decode(quick, 64 * 64, "a", until)).pixels.shape == (64, 64, 3)
            while len(started) == decoder.AT_ONCE + decoder.SPARE:
                await asyncio.sleep(0.001)
        finally:
            await decoders.stop()
        return [process.poll() for process in started]

    assert None not in asyncio.run(decode())


def test_what_cannot_fit_is_refused_by_its_header(server):
    damaged = hostile.png(1999, 1999)[:60] + bytes(1000)
    answer = server.post("/v1/denoise?deadline_ms=1", damaged)
    assert (answer.status_code, "allows 1:" in answer.json()["detail"]) == (413, True)
    assert server.post("/v1/denoise", damaged).status_code in (413, 422)  # 413 where even 10 s are too short


def test_what_was_never_computed_lowers_nobody_elses_quality(server):
    before = server.client.get("/v1/load").json()["refused"]
    path, data = "/v1/denoise?deadline_ms=0.001", encoded(picture(900))
    statuses = {answer.status_code for _ in range(5) for answer in burst(server, 12, path, data)}
    assert server.post("/v1/denoise", encoded(picture())).headers["rcnet-setting"] == "3"
    assert statuses == {413}
    assert server.client.get("/v1/load").json()["refused"] == before


def slow_body(server, address="127.0.0.1"):
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=30, source_address=(address, 0))
    line.sendall(b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\x89PNG")
    return line


def test_slow_bodies_lock_nobody_out(server):
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(slow_body(server, "127.0.0.2")) for _ in range(66)]
        assert server.post("/v1/denoise", encoded(picture())).status_code == 200
        gone, _, _ = select.select(lines, [], [], 60)  # which was the oldest is the server's to say, as it read them
        assert gone
        assert all(line.recv(1000).startswith(b"HTTP/1.1 429") for line in gone)


def test_slow_bodies_of_one_address_give_way_to_its_other_requests(server):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(slow_body(server))
        wait(lambda: server.post("/v1/denoise", encoded(picture())).status_code == 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "localhost:1"}, 200),
        ({"host": "192.0.2.1"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"host": "Scans.Example:80"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_what_other_web_pages_make_a_browser_send_is_refused(server, headers, status):
    assert server.post("/v1/denoise", encoded(picture()), headers=headers).status_code == status
    if status != 200:
        assert server.post("/v1/load", b"", headers=headers).status_code == status
        assert list(server.post("/v1/load", b"", headers=headers).json()) == ["detail"]


def test_the_own_page_may_ask(server):
    assert server.post("/v1/denoise", encoded(picture()), headers={"origin": server.url}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_head(server, path):
    answer = server.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == server.client.get(path).headers["content-length"]


def test_a_form_with_one_file(server):
    data = encoded(picture())
    plain = server.post("/v1/denoise?steps=1", data)
    form = server.client.post("/v1/denoise?steps=1", files={"file": ("a.png", data, "image/png")})
    assert form.content == plain.content
    for wrong in ({"files": {"a": data, "b": data}}, {"files": {"a": data}, "data": {"sigma": "3"}}):
        answer = server.client.post("/v1/denoise", **wrong)
        assert (answer.status_code, "as curl -F file=@photo.png" in answer.text) == (422, True)


def test_a_form_of_many_parts_takes_little_memory():
    body = b"x--ab" * 300_000
    tracemalloc.start()
    with pytest.raises(InputError, match="must contain only one file"):
        file_of(body, "multipart/form-data; boundary=ab")
    assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/denoise?sigmas=3", "sigmas: no such parameter; valid: model, steps, sigma, strength, levels, deadline_ms"),
        ("/v1/denoise?steps=1&steps=2", "steps: given 2 times"),
        ("/v1/denoise?top=3", "top: no such parameter; valid: model, steps"),
    ],
)
def test_parameters_that_are_not_there_or_doubled(server, path, says):
    answer = server.post(path, encoded(picture()))
    assert (answer.status_code, says in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("accept", "sent"),
    [
        ("image/jpeg;q=0.1, image/png;q=0.9", "image/png"),
        ("image/png;q=0, */*", "image/png"),
        ("application/*", "application/x-npy"),
    ],
)
def test_what_is_preferred_is_sent(server, accept, sent):
    assert server.post("/v1/denoise?steps=1", encoded(picture()), headers={"accept": accept}).headers["content-type"] == sent


def test_a_worker_that_hangs_counts_as_down_and_is_replaced(server):
    assert server.post("/v1/denoise", encoded(picture())).status_code == 200
    os.kill(server.worker(), signal.SIGSTOP)
    answers = []

    def ask():
        started = time.monotonic()
        answers.append((server.post("/v1/denoise?deadline_ms=3000", encoded(picture())), time.monotonic() - started))

    asking = threading.Thread(target=ask)
    asking.start()
    wait(lambda: server.client.get("/readyz").status_code == 503)
    refused = server.post("/v1/denoise", encoded(picture()))
    assert (refused.status_code, refused.json()["detail"]) == (503, "no worker is up at the moment")
    asking.join()
    assert answers[0][0].status_code == 503
    assert answers[0][1] < 3 + OBJECTIVE
    wait(lambda: server.client.get("/readyz").status_code == 200, STARTING)
    assert server.post("/v1/denoise", encoded(picture())).status_code == 200
    assert metric(server, "rcnet_worker_restarts") == 1


def test_a_refusal_is_read_by_a_client_that_still_sends(server):
    host, port = server.url.removeprefix("http://").split(":")
    body = bytes(8 << 20)
    for _ in range(5):
        line = http.client.HTTPConnection(host, int(port), timeout=30)
        line.request("POST", "/v1/denoise?nothing=1", body)
        assert line.getresponse().status == 422
        line.close()
