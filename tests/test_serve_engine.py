import asyncio
import contextlib
import dataclasses
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import starlette.requests
from PIL import Image

import rcnet
from rcnet.deploy.denoise import denoise_pixels
from rcnet.deploy.torch_session import TorchSession
from rcnet.errors import InputError
from rcnet.models.files import find
from rcnet.serve.cluster import scale
from rcnet.serve.decoder import Decoders
from rcnet.serve.engine import Engine, Terms
from rcnet.serve.handler import Failure, RequestHandler, RequestInfo
from rcnet.serve.models import denoise
from rcnet.serve.policies import slack
from rcnet.serve.requests import Refused
from rcnet.serve.served import Served, Work
from rcnet.serve.settings import Limits
from rcnet.serve.worker import Plan
from rcnet.setting import Setting

IMAGES = Path(__file__).parent / "images"
ONE = Setting.of(1, 3)


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def engine(loop):
    engine = Engine([Plan(("r3_fast.photo", "r2.cifar10"), precision="fp32", threads=1)], slack, 30.0)
    loop.run_until_complete(engine.start())
    yield engine
    loop.run_until_complete(engine.stop())


def cat(side=64):
    return np.asarray(Image.open(IMAGES / "cat.png").convert("RGB").resize((side, side)))


def test_results_are_those_of_the_library(engine, loop):
    model = rcnet.optimize(rcnet.load("r3_fast.photo"), precision="fp32")
    wanted, level = denoise_pixels(model, cat(), 1, sigma=20, strength=0.5)
    work = Work(cat(), sigma=20, strength=0.5)

    async def several():
        deadline = engine.clock() + 30
        return await asyncio.gather(*(engine.submit("r3_fast.photo", work, deadline, Terms(ONE)) for _ in range(3)))

    for answer in loop.run_until_complete(several()):
        assert answer.setting == ONE
        assert np.abs(answer.result.pixels.astype(int) - wanted).max() <= 1
        assert answer.result.level == pytest.approx(level, rel=0.02)
    answer = loop.run_until_complete(engine.submit("r2.cifar10", Work(cat(200), top=3), engine.clock() + 30))
    assert answer.result.classes[0][0] == "cat"
    assert len(answer.result.classes) == 3
    assert answer.setting == (4, 4)


@contextlib.contextmanager
def held(*workers):
    """Worker processes that take jobs and compute nothing until the end of the block."""
    pids = [worker.pid for worker in workers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_requests_of_a_worker_that_is_killed_are_answered(engine, loop):
    async def kill():
        deadline = engine.clock() + 60
        with held(engine.workers[0]):
            tasks = [asyncio.create_task(engine.submit("r3_fast.photo", Work(cat(256)), deadline)) for _ in range(4)]
            await until(lambda: len(engine.scheduler.waiting) < len(engine._open) == 4)  # it has the first
            os.kill(engine.workers[0].pid, signal.SIGKILL)
            await until(lambda: math.isinf(engine.scheduler.free[0]))
        with pytest.raises(Refused, match="no worker is up"):
            await engine.submit("r3_fast.photo", Work(cat()), deadline)
        return await asyncio.gather(*tasks)

    before = engine.restarts
    answers = loop.run_until_complete(kill())
    assert all(answer.result.pixels.shape == (256, 256, 3) for answer in answers)
    assert engine.restarts == before + 1


def test_what_a_model_refuses_does_not_end_the_worker(engine, loop):
    before, seconds = engine.restarts, engine.scheduler.costs.seconds("r3_fast.photo", ONE, 1 << 20)
    for _ in range(10):
        with pytest.raises(InputError, match="this one has 4"):
            loop.run_until_complete(
                engine.submit("r3_fast.photo", Work(np.zeros((1024, 1024, 4), np.uint8)), engine.clock() + 30)
            )
    assert engine.restarts == before
    assert engine.scheduler.costs.seconds("r3_fast.photo", ONE, 1 << 20) == seconds  # that it fails soon says nothing of others


def test_a_cancelled_task_leaves_the_queue(engine, loop):
    async def cancel():
        deadline = engine.clock() + 30
        with held(engine.workers[0]):
            first = asyncio.create_task(engine.submit("r3_fast.photo", Work(cat(256)), deadline))
            await until(lambda: engine._open and not engine.scheduler.waiting)  # the worker has it
            second = asyncio.create_task(engine.submit("r3_fast.photo", Work(cat(32)), deadline + 1))
            await until(lambda: engine.scheduler.waiting)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            assert engine.scheduler.waiting == []
            assert len(engine._open) == 1
        return await first

    assert loop.run_until_complete(cancel()).result.pixels.shape == (256, 256, 3)


def test_the_engine_says_what_cannot_be_served(loop, engine):
    for names, says in [
        (("r3_fast.phot",), "did you mean 'r3_fast.photo'"),
        (("r2.cifar10", "x/r2.cifar10.safetensors"), "same name"),
    ]:
        broken = Engine([Plan(names)], slack, 1.0)
        with pytest.raises(InputError, match=says):
            loop.run_until_complete(broken.start())
        loop.run_until_complete(broken.stop())
    with pytest.raises(InputError, match="no setting 9: valid: 2, 3, 4"):
        engine.models["r2.cifar10"].dials("9")
    assert engine.models["r2.cifar10"].dials("3").offered == ((3, 3), (4, 4))


def test_a_worker_that_cannot_be_started_is_tried_until_it_can(loop, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rcnet.serve.engine.TRIES", 1)
    monkeypatch.setattr("rcnet.serve.engine.LONGEST", 0.1)
    file, away = tmp_path / "mine.safetensors", tmp_path / "away"
    shutil.copy(find("r2.cifar10"), file)

    async def lose_and_find():
        engine = Engine([Plan((str(file),), threads=1)], slack, 30.0)
        await engine.start()
        try:
            file.rename(away)
            asyncio.create_task(engine.submit("mine", Work(cat(32)), engine.clock() + 30)).add_done_callback(
                lambda t: t.exception()
            )
            os.kill(engine.workers[0].pid, signal.SIGKILL)
            await until(lambda: engine.failing)
            assert not engine.ready
            away.rename(file)
            await until(lambda: engine.ready and not engine.failing)
            return await engine.submit("mine", Work(cat(32)), engine.clock() + 30)
        finally:
            await engine.stop()

    assert loop.run_until_complete(lose_and_find()).result.classes
    assert f"no file of weights at {file}" in caplog.text  # why it could not be started


def test_a_gray_network_computes_each_channel_of_a_colour_picture(loop):
    about = Served("gray", "denoise", "image", {ONE: 10.0}, "", {}, {}, 1, 1, True, 0, (), "fp32")
    assert about.planes(Work(cat())) == 3
    assert about._replace(channels=3).planes(Work(cat())) == about._replace(gives="classes").planes(Work(cat())) == 1


def test_an_idle_worker_takes_the_requests_of_one_that_dies(loop):
    async def kill():
        engine = Engine([Plan(("r3_fast.photo",), threads=1)] * 2, slack, 30.0)
        await engine.start()
        try:
            never = asyncio.Event()
            for worker in engine.workers:  # whichever dies stays dead
                worker.load = lambda warm=True: never.wait()
            with held(*engine.workers):
                task = asyncio.create_task(engine.submit("r3_fast.photo", Work(cat(512)), engine.clock() + 60))
                await until(lambda: max(engine.scheduler.free) > 0 and engine._open and not engine.scheduler.waiting)
                busy = max(range(2), key=lambda place: engine.scheduler.free[place])
                os.kill(engine.workers[busy].pid, signal.SIGKILL)
            return await asyncio.wait_for(task, 40)
        finally:
            await engine.stop()

    assert loop.run_until_complete(kill()).result.pixels.shape == (512, 512, 3)


def test_replicas_are_added_under_load_and_taken_away_after_it(loop):
    async def load_and_rest():
        engine = Engine([Plan(("r2.cifar10",), threads=1)], slack, 30.0)
        await engine.start()
        scaling = asyncio.create_task(scale(engine, 1, 2, look=0.2, calm=5))

        async def press():
            while True:
                await engine.submit("r2.cifar10", Work(cat()), engine.clock() + 30)

        try:
            clients = [asyncio.create_task(press()) for _ in range(8)]
            await until(lambda: len(engine.workers) == 2 and not engine.workers[1].cold)  # it has computed
            second = engine.workers[1]
            for client in clients:
                client.cancel()
            await until(lambda: len(engine.workers) == 1 and second._process.poll() is not None)
            return await engine.submit("r2.cifar10", Work(cat()), engine.clock() + 30)
        finally:
            scaling.cancel()
            await engine.stop()

    assert loop.run_until_complete(load_and_rest()).result.classes


def test_a_network_that_does_not_say_how_far_it_sees_is_served_whole():
    model = rcnet.load("r3_fast.photo")
    model.about = dataclasses.replace(model.about, reach=None)
    pixels = np.tile(cat(), (9, 1, 1))
    (done,) = denoise(TorchSession(rcnet.optimize(model)), ONE, [Work(pixels)])
    assert done.pixels.shape == pixels.shape


def web_request(engine, client="127.0.0.1"):
    return starlette.requests.Request({"type": "http", "headers": [], "rcnet": RequestInfo(engine.clock(), client)})


def test_so_many_requests_at_once_are_taken_and_no_more(engine):
    handler = RequestHandler(engine, Decoders(100), Limits(requests=2))
    taken = [web_request(engine), web_request(engine)]
    for request in taken:
        handler.admit(request, "denoise", None, None, None)
    with pytest.raises(Failure, match="too many requests at once") as refused:
        handler.admit(web_request(engine), "denoise", None, None, None)
    assert (refused.value.status, refused.value.reason) == (429, "busy")
    handler.leave(taken[0].scope["rcnet"])
    handler.admit(web_request(engine), "denoise", None, None, None)
