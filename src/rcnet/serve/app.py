"""The server: HTTP in front of an engine."""

import asyncio
import base64
import hmac
import mimetypes
from collections import Counter
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from rcnet.errors import InputError
from rcnet.serve import codec
from rcnet.serve.decoder import Decoders
from rcnet.serve.engine import Engine
from rcnet.serve.handler import Failure, RequestHandler, as_headers, drop_body, facts, failure_of
from rcnet.serve.load import make_load
from rcnet.serve.middleware import MetricsMiddleware
from rcnet.serve.requests import Refused
from rcnet.serve.schemas import BODY, HEADERS, IMAGE, Class, Classified, DenoisedImage, Load, ModelInfo, model_info, problems
from rcnet.serve.settings import Settings
from rcnet.version import __version__

PAGE = {
    "": "serve/page/index.html",
    "page.js": "serve/page/page.js",
    "picture.js": "serve/page/picture.js",
    "page.css": "serve/page/page.css",
    "sample.png": "assets/cameraman.png",
}
ABOUT = (
    "Runs networks with a cost dial on images; each task has a path. A setting is a position of that dial. Unless a client names "
    "one, the server chooses the best with which all requests meet its objective; a request that would be late even at the least "
    "setting is refused at once."
)
REFUSALS = problems(400, 401, 404, 406, 408, 413, 415, 422, 429, 503)
Model = Annotated[str | None, Query(max_length=200, description="One of `GET /v1/models`, or the first for the task.")]
Steps = Annotated[str | None, Query(max_length=100, description="A setting of the model, e.g. 2; default: the policy's.")]
Sigma = Annotated[float | None, Query(ge=0, le=255, description="The noise level in levels of 255, if it is known.")]
Levels = Annotated[
    str | None,
    Query(description="The header rcnet-levels of the answer for another part of the same picture."),
]
Strength = Annotated[float, Query(ge=0, le=2, description="Multiplies the noise level; 1 as trained, less keeps some noise.")]
Top = Annotated[int, Query(ge=1, le=100, description="The number of classes to return.")]
DeadlineMs = Annotated[float | None, Query(gt=0, description="Milliseconds until the answer is due; default: the objective.")]


async def check_parameters(request: Request) -> None:
    """`Failure` for a parameter in the URL that the path does not take, or that is given twice."""
    valid = [field.alias for field in request.scope["route"].dependant.query_params]
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in valid:
            raise Failure(422, f"{name[:100]}: no such parameter; valid: {', '.join(valid) or 'none'}")
        if count > 1:
            raise Failure(422, f"{name}: given {count} times; give it once")


def create_app(engine: Engine, decoders: Decoders, settings: Settings, demonstration: bool = False) -> FastAPI:
    """The application for a started engine and started decoders.

    Args:
        demonstration: whether clients may create load (`POST /v1/load`); for a server on loopback.
    """
    handler = RequestHandler(engine, decoders, settings.limits)
    engine.each = handler.metrics.batch
    bearer = HTTPBearer(auto_error=False, description="Needed if the server was started with a token.")

    async def authorized(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        if settings.token and not hmac.compare_digest((given.credentials if given else "").encode(), settings.token.encode()):
            raise Failure(401, "this server needs a token: send it as Authorization: Bearer TOKEN", reason="token")

    app = FastAPI(title="rcnet", version=__version__, description=ABOUT, docs_url=None, redoc_url=None)
    app.add_middleware(MetricsMiddleware, handler=handler, settings=settings)  # type: ignore[arg-type]
    _add_handlers(app, handler)
    guarded: dict[str, Any] = {"dependencies": [Depends(authorized), Depends(check_parameters)]}

    for task, gives in {about.task: about.gives for about in engine.models.values()}.items():
        route = {"path": f"/v1/{task}", "summary": f"{task.capitalize()} an image", "openapi_extra": BODY, **guarded}
        (_add_images if gives == "image" else _add_classes)(app, handler, task, route)

    @app.get("/v1/models", **guarded, responses=problems(401, 422))
    async def models() -> list[ModelInfo]:
        """The served networks, with the cost and quality of their settings."""
        return [model_info(about, engine) for about in engine.models.values()]

    loads: set[asyncio.Task[None]] = set()

    @app.get("/v1/load", **guarded, responses=problems(401, 422))
    async def load() -> Load:
        """How busy the server is."""
        return handler.load("running" if loads else "idle" if demonstration else "off")

    @app.post("/v1/load", **guarded, status_code=202, responses=problems(401, 409, 422))
    async def load_start(model: Model = None) -> Load:
        """Create load for some seconds, for a demonstration; only if the server listens on loopback."""
        if loads or not demonstration:
            raise Failure(409, "load is already running" if loads else "this server creates none: it is not on loopback")
        name = model if model in engine.models else next(iter(engine.models))
        task = asyncio.create_task(make_load(engine, name))
        loads.add(task)
        task.add_done_callback(loads.discard)
        return handler.load("running")

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """Whether the server answers."""
        return "ok\n"

    @app.get("/readyz", response_class=PlainTextResponse, responses=problems(503))
    async def readyz() -> str:
        """Whether the server accepts requests: a worker is up, and the server is not stopping."""
        if not engine.ready:
            raise Failure(503, "the server is stopping" if engine.stopping else "no worker is up", 1.0, "down")
        return "ok\n"

    @app.get("/metrics", **guarded, response_class=PlainTextResponse, responses=problems(401, 422))
    async def metrics() -> Response:
        """Metrics in the format of Prometheus."""
        return Response(handler.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _add_page(app)
    return app


def _add_images(app: FastAPI, handler: RequestHandler, task: str, route: dict[str, Any]) -> None:
    """The path of a task whose networks return images."""

    @app.post(
        **route,
        description="An image of the same size.",
        response_class=Response,
        responses={200: {"model": DenoisedImage, **IMAGE}, **REFUSALS},
    )
    async def image(
        request: Request,
        model: Model = None,
        steps: Steps = None,
        sigma: Sigma = None,
        strength: Strength = 1.0,
        levels: Levels = None,
        deadline_ms: DeadlineMs = None,
    ) -> Response:
        about = handler.admit(request, task, model, steps, deadline_ms)
        if sigma is not None and not about.noise_level:
            raise InputError(f"{about.name} takes no noise level: leave out sigma")
        accept = request.headers.get("accept", "")
        codec.answer_kind(accept, "", codec.ANSWERS)
        picture = await handler.picture(request, about)
        kind = codec.answer_kind(accept, picture.kind, codec.ANSWERS)
        work = codec.work_of(picture, sigma=sigma, strength=strength, levels=levels_of(levels))
        answer = await handler.compute(request, about, work, kind)
        height, width = answer.result.pixels.shape[:2]
        fields = facts(about, answer, height * width * about.planes(work)) | {"level": round(answer.result.level, 3)}
        fields |= {"levels": ",".join(f"{level:.4g}" for level in answer.result.levels)} if answer.result.levels else {}
        data = await handler.encode(picture, answer, "PNG" if kind == "JSON" else kind)
        if kind == "JSON":
            png = base64.b64encode(data).decode()
            return JSONResponse(DenoisedImage(**fields, width=width, height=height, png=png).model_dump())
        return Response(data, headers=as_headers(fields), media_type=codec.TYPES[kind])


def levels_of(text: str | None) -> tuple[float, ...] | None:
    """The levels in the text of `rcnet-levels`, or `InputError`."""
    if text is None:
        return None
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if len(levels) % 2 or len(levels) < 4 or not all(0 <= level <= 255 for level in levels):
        raise InputError(f"levels={text!r} is not valid: give the header rcnet-levels, an even number of levels from 0 to 255")
    return levels


def _add_classes(app: FastAPI, handler: RequestHandler, task: str, route: dict[str, Any]) -> None:
    """The path of a task whose networks return classes."""

    @app.post(**route, description="The likeliest classes.", responses={200: {"headers": HEADERS}, **REFUSALS})
    async def classes(
        request: Request,
        response: Response,
        model: Model = None,
        steps: Steps = None,
        top: Top = 1,
        deadline_ms: DeadlineMs = None,
    ) -> Classified:
        about = handler.admit(request, task, model, steps, deadline_ms)
        codec.answer_kind(request.headers.get("accept", ""), "", {"application/json": "JSON"})
        picture = await handler.picture(request, about)
        answer = await handler.compute(request, about, codec.work_to_classify(picture, top), "JSON")
        fields = facts(about, answer, about.size**2)
        response.headers.update(as_headers(fields))
        return Classified(**fields, classes=[Class(name=name, probability=value) for name, value in answer.result.classes])


def _add_handlers(app: FastAPI, handler: RequestHandler) -> None:
    """Answers every error with one sentence."""

    async def failed(request: Request, error: Exception) -> Response:
        failure = failure_of(error)
        if failure.reason == "busy":
            await handler.delay_refusal(request.scope["rcnet"])
        if failure.status != 408:
            await drop_body(request)
        handler.metrics.rejection(failure.reason)
        return JSONResponse({"detail": str(failure)}, failure.status, failure.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        first = error.errors()[0]  # type: ignore[attr-defined]
        return await failed(request, Failure(422, f"{first['loc'][-1]}: {first['msg'][:1].lower()}{first['msg'][1:]}"))

    async def other(request: Request, error: Exception) -> Response:
        await drop_body(request)
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)  # type: ignore[attr-defined]

    for kind in (Failure, Refused, InputError, ClientDisconnect):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _add_page(app: FastAPI) -> None:
    for path, file in PAGE.items():
        data, kind = (resources.files("rcnet") / file).read_bytes(), mimetypes.guess_type(file)[0]

        def page(data: bytes = data, kind: str | None = kind) -> Response:
            return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

        app.add_api_route(f"/{path}", page, include_in_schema=False, response_class=Response)
