"""The shapes of the server's answers, and what its OpenAPI document says of bodies, headers and refusals."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from rcnet.serve import codec
from rcnet.serve.engine import Engine
from rcnet.serve.served import Served


class Problem(BaseModel):
    """Why there is no result."""

    detail: str = Field(description="One sentence: what was wrong, and what is valid.")


class Setting(BaseModel):
    """One place of the dial."""

    setting: str = Field(description="What `steps` takes.")
    macs_per_pixel: float
    psnr: float | None = Field(None, description="dB, measured: the mean of the results that came with the weights.")
    error: float | None = Field(None, description="Wrong answers in percent, measured.")
    offered: bool = Field(description="Whether the policy may take it; a client may name any.")


class ModelInfo(BaseModel):
    """A network that is served."""

    name: str
    task: str = Field(description="The last part of the path that images for it are sent to.")
    gives: Literal["image", "classes"]
    channels: int
    noise_level: bool = Field(description="Whether it takes `sigma`.")
    parameters: int
    precision: str
    size: int = Field(description="Side that images are resized to; 0: they stay as they are.")
    classes: list[str]
    settings: list[Setting]


class Load(BaseModel):
    """How busy the server is. Counts are since its start."""

    objective_ms: float
    waiting: int
    load_ms: float = Field(description="What waits and runs, at the least settings.")
    slowness: float = Field(description="How many times slower the machine is than at the start.")
    restarts: int
    settings: dict[str, str] = Field(description="The setting that each model took last.")
    served: dict[str, dict[str, int]] = Field(description="Images by model and setting.")
    refused: int
    demonstration: Literal["off", "idle", "running"] = Field(description="Whether `POST /v1/load` may be used now.")


class Class(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Facts(BaseModel):
    """How a result came about."""

    model: str
    setting: str
    macs: float = Field(description="Multiply-accumulates for this image.")
    queue_ms: float = Field(description="Milliseconds in the queue.")
    compute_ms: float = Field(description="Milliseconds of computing, of the batch that the image was in.")
    batch: int = Field(description="Images in that batch.")


class Classified(Facts):
    """The likeliest classes, the likeliest first."""

    classes: list[Class]


class DenoisedImage(Facts):
    """A denoised image in JSON."""

    level: float = Field(description="The noise that was found, in levels of 255.")
    levels: str = Field(
        "", description="What the judge found of white and of coarse noise, from black to white, where there is one."
    )
    width: int
    height: int
    png: str = Field(description="The image as PNG, in base64.")


def model_info(about: Served, engine: Engine) -> ModelInfo:
    """What `GET /v1/models` says of one."""
    offered = engine.scheduler.models[about.name].offered
    settings = [
        Setting(
            setting=str(setting),
            macs_per_pixel=work,
            offered=setting in offered,
            **({about.metric: about.results[setting]} if about.metric else {}),
        )
        for setting, work in about.macs.items()
    ]
    keys = ("name", "task", "gives", "channels", "noise_level", "parameters", "precision", "size")
    return ModelInfo(**{key: getattr(about, key) for key in keys}, classes=list(about.classes), settings=settings)


BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"file": BINARY["schema"]}, "required": ["file"]}}
BODY = {
    "requestBody": {
        "required": True,
        "description": "One image, its format found from its bytes. npy: uint8, uint16 or float in [0, 1]; [H, W] or [H, W, 3].",
        "content": {**dict.fromkeys([*codec.TYPES.values(), "application/octet-stream"], BINARY), "multipart/form-data": FORM},
    }
}
IMAGES = {codec.TYPES[kind]: BINARY for kind in ("PNG", "JPEG", "npy")}
HEADERS = {
    f"rcnet-{name.replace('_', '-')}": {"description": field.description or name, "schema": {"type": "string"}}
    for name, field in [*Facts.model_fields.items(), *((key, DenoisedImage.model_fields[key]) for key in ("level", "levels"))]
}
RETRY = {"Retry-After": {"description": "Seconds until another try may do.", "schema": {"type": "integer"}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The client went away while it sent the body."},
    401: {"description": "No token, or a wrong one."},
    404: {"description": "No such model, or none for this task."},
    406: {"description": "None of the formats of the Accept header can be sent."},
    408: {"description": "The body took too long to arrive."},
    409: {"description": "Load is being made already, or this server makes none."},
    413: {"description": "Too many bytes or pixels, or more work than even an idle server does by the deadline."},
    415: {"description": "Not an image that is known here."},
    422: {"description": "A damaged image, or a parameter that is not valid."},
    429: {"description": "Too busy: even the least setting would be too late, or too many requests at once.", "headers": RETRY},
    503: {"description": "Admitted and then not computed in time, or no worker is up.", "headers": RETRY},
}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Those answers without a result, for the OpenAPI document."""
    return {code: {"model": Problem, **PROBLEMS[code]} for code in codes}
