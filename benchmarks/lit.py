"""The same endpoint with LitServe, one worker: what `benchmarks.serving` compares with where LitServe is installed.

    pip install litserve
    python -m benchmarks.lit r3_fast.bsd-gray-25 --steps 3,3,2 --port 8002

The image comes as base64 in JSON, as LitServe's own examples send it.
"""

import base64
import io
import math
from typing import Any

import litserve
import numpy as np
from fastapi import Response

from benchmarks.page import options


class Denoiser(litserve.LitAPI):
    """One image at a time."""

    def __init__(self, model: str, steps: str) -> None:
        super().__init__(api_path="/v1/denoise")
        self.model, self.steps = model, steps

    def setup(self, device: str) -> None:
        from rcnet.deploy.sessions import open_session
        from rcnet.setting import Setting

        self.session = open_session(self.model, precision="auto", threads=1, megapixels=math.inf)  # as the server's worker
        self.setting = Setting.parse(self.steps, len(self.session.settings[0]))

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(base64.b64decode(request["image"]))))

    def predict(self, noisy: np.ndarray) -> np.ndarray:
        from rcnet.deploy.denoise import denoise_pixels

        return denoise_pixels(self.session, noisy[..., None], self.setting)[0]

    def encode_response(self, clean: np.ndarray) -> Response:
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(clean[..., 0]).save(stream, "PNG")
        return Response(stream.getvalue(), media_type="image/png")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    api: Any = Denoiser(args.model, args.steps)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
