"""The schemas of the server's answers, and the parts of its OpenAPI document on bodies, headers and refusals."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from rcnet.serve import codec
from rcnet.serve.engine import Engine
from rcnet.serve.served import Served


class Problem(BaseModel):
    """Why there is no result."""

    detail: str = Field(description="One sentence: what was wrong, and what is valid.")


class Setting(BaseModel):
    """One position of the dial."""

    setting: str = Field(description="The value for `steps`.")
    macs_per_pixel: float
    psnr: float | None = Field(None, description="Measured PSNR in dB, the mean of the results in the file of weights.")
    error: float | None = Field(None, description="Measured error in percent.")
    offered: bool = Field(description="Whether the policy may choose it; clients may name any.")


class ModelInfo(BaseModel):
    """A served network."""

    name: str
    task: str = Field(description="The last part of its path: /v1/TASK.")
    gives: Literal["image", "classes"]
    channels: int
    noise_level: bool = Field(description="Whether it takes `sigma`.")
    parameters: int
    precision: str
    size: int = Field(description="Side in pixels to which images are resized; 0: they are not.")
    classes: list[str]
    settings: list[Setting]


class Load(BaseModel):
    """The load of the server. Counts are since its start."""

    objective_ms: float
    waiting: int
    load_ms: float = Field(description="Milliseconds until everything that waits or runs would be done at the least settings.")
    slowness: float = Field(description="The time of a call relative to that at the start.")
    restarts: int
    settings: dict[str, str] = Field(description="The last setting of each model.")
    served: dict[str, dict[str, int]] = Field(description="Images by model and setting.")
    refused: int
    demonstration: Literal["off", "idle", "running"] = Field(description="Whether `POST /v1/load` is available.")


class Class(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Facts(BaseModel):
    """How a result was computed."""

    model: str
    setting: str
    macs: float = Field(description="Multiply-accumulates for this image.")
    queue_ms: float = Field(description="Milliseconds in the queue.")
    compute_ms: float = Field(description="Milliseconds of computing the whole batch.")
    batch: int = Field(description="Images in that batch.")


class Classified(Facts):
    """The likeliest classes, in descending order."""

    classes: list[Class]


class DenoisedImage(Facts):
    """A denoised image in JSON."""

    level: float = Field(description="The noise that was found, in levels of 255.")
    levels: str = Field("", description="The judge's levels of white and of coarse noise, from black to white each.")
    width: int
    height: int
    png: str = Field(description="The image as PNG, in base64.")


def model_info(about: Served, engine: Engine) -> ModelInfo:
    """An entry of `GET /v1/models`."""
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
    return ModelInfo.model_validate({**about._asdict(), "settings": settings})


BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"file": BINARY["schema"]}, "required": ["file"]}}
BODY = {
    "requestBody": {
        "required": True,
        "description": "One image; its first bytes tell the format. npy: uint8, uint16 or float in [0, 1]; [H, W] or [H, W, 3].",
        "content": {**dict.fromkeys([*codec.TYPES.values(), "application/octet-stream"], BINARY), "multipart/form-data": FORM},
    }
}
HEADERS = {
    f"rcnet-{name.replace('_', '-')}": {"description": field.description or name, "schema": {"type": "string"}}
    for name, field in [*Facts.model_fields.items(), *((key, DenoisedImage.model_fields[key]) for key in ("level", "levels"))]
}
IMAGE = {
    "description": "The image in the format of the Accept header, by default in that of the request.",
    "headers": HEADERS,
    "content": {codec.TYPES[kind]: BINARY for kind in ("PNG", "JPEG", "npy")},
}
RETRY = {"Retry-After": {"description": "Seconds to wait before the next try.", "schema": {"type": "integer"}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The client disconnected while it sent the body."},
    401: {"description": "No token, or a wrong one."},
    404: {"description": "No such model, or none for this task."},
    406: {"description": "The Accept header names no format that is offered."},
    408: {"description": "The body took too long to arrive."},
    409: {"description": "Load is already running, or this server creates none."},
    413: {"description": "Too many bytes or pixels, or more work than an idle server can do by the deadline."},
    415: {"description": "Not an image of a known format."},
    422: {"description": "A damaged image or an invalid parameter."},
    429: {
        "description": "Too busy: late even at the least setting, or too many requests.",
        "headers": RETRY,
    },
    503: {"description": "Admitted but not computed in time, or no worker is up.", "headers": RETRY},
}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """These answers without a result, for the OpenAPI document."""
    return {code: {"model": Problem, **PROBLEMS[code]} for code in codes}
