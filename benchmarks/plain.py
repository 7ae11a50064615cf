"""The endpoint that people write around a model: FastAPI, a function, the network in it. What `benchmarks.serving` compares with.

python -m benchmarks.plain r3_fast.bsd-gray-25 --steps 3,3,2 --port 8001
"""

import io
import math
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from PIL import Image

from benchmarks.page import options
from rcnet.deploy.denoise import denoise_pixels
from rcnet.deploy.sessions import open_session
from rcnet.setting import Setting


async def body_of(request: Request) -> bytes:
    return await request.body()


def create_app(model: str, steps: str) -> FastAPI:
    app, session = FastAPI(), open_session(model, precision="auto", threads=1, megapixels=math.inf)  # as the server's worker
    setting = Setting.parse(steps, len(session.settings[0]))

    @app.post("/v1/denoise")
    def denoise(data: Annotated[bytes, Depends(body_of)]) -> Response:
        noisy = np.asarray(Image.open(io.BytesIO(data)))
        clean, _ = denoise_pixels(session, noisy[..., None], setting)
        stream = io.BytesIO()
        Image.fromarray(clean[..., 0]).save(stream, "PNG")
        return Response(stream.getvalue(), media_type="image/png")

    return app


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(create_app(args.model, args.steps), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
