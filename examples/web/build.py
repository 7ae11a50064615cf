"""Builds the page that denoises in the browser: a folder of static files, for any server of files.

    python examples/web/build.py                                        # writes examples/web/site
    python examples/web/build.py --model r3_fast.gray --serve 8080      # other weights; serves it, too

Needs `pip install rcnet onnx`, for weights that are not exported `'rcnet[onnx]'`, and npm the first time, for onnxruntime-web.
"""

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import onnx

import rcnet
from rcnet.about import SMOOTH
from rcnet.deploy.graphs import cut
from rcnet.deploy.sessions import onnx_file
from rcnet.runtime.levels import LEVELS, LOOK
from rcnet.runtime.onnx import OnnxSession
from rcnet.runtime.tiles import grid

HERE = Path(__file__).parent
LIBRARY = HERE / "onnxruntime-web"
VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "page.css", "page.js", "worker.js", "denoise.js")
PACKAGE = Path(rcnet.__file__).parent
SHARED = {"sample.png": "assets/cameraman.png", "picture.js": "serve/page/picture.js"}  # with the page of the server
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
SIDE = 256  # of the image that MACs are counted on, in pixels


def fetch() -> None:
    """Puts the files of onnxruntime-web from npm's package beside the page, if it is the package that this was written for."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"onnxruntime-web@{VERSION}"], cwd=folder, check=True)
        (package,) = Path(folder).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if found != SHA512:
            raise SystemExit(f"onnxruntime-web {VERSION} from npm is not the expected package: SHA-512 {found}")
        with tarfile.open(package) as archive:
            LIBRARY.mkdir(exist_ok=True)
            for name in RUNTIME:
                (LIBRARY / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())


def write_network(name: str, site: Path) -> None:
    """Writes one graph per setting, with all kernels in one file, and what the page has to know."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "network.onnx"
        net = OnnxSession(onnx_file(name) or rcnet.export(rcnet.load(name), whole, half=True))
        if net.about.task != "denoise":
            raise SystemExit(f"{name} does not denoise")
        if net.about.levels == 2 and not net.has_judge:
            raise SystemExit(f"{name} has no judge of noise, and the page asks nobody: rcnet judge trains one")
        kept = {"save_as_external_data": True, "location": "kernels.bin", "size_threshold": 2048}
        onnx.save(onnx.load_from_string(net.model), whole, **kept)
        shutil.copy(Path(folder) / "kernels.bin", site)
        for setting, output in net.outputs.items():
            (site / f"{setting.name}.onnx").write_bytes(cut(whole, output))
        if net.has_judge:
            (site / "judge.onnx").write_bytes(cut(whole, LEVELS))
    settings = [
        {
            "name": str(setting),
            "output": setting.name,
            "radius": net.about.radius(setting),
            "macs": net.macs(setting, (SIDE, SIDE)) / SIDE**2,
        }
        for setting in net.settings
    ]
    about = {"name": name, "channels": net.about.channels, "levels": net.about.levels, "multiple": net.about.multiple}
    about |= {"grid": grid(net.about), "smoothing": SMOOTH, "look": LOOK}
    (site / "model.json").write_text(json.dumps({**about, "settings": settings}, indent=1) + "\n")


def build(name: str, site: Path) -> None:
    if not LIBRARY.is_dir():
        fetch()
    site.mkdir(parents=True, exist_ok=True)
    for file in (*(HERE / part for part in PAGE), *(LIBRARY / part for part in RUNTIME)):
        shutil.copy(file, site)
    for file, there in SHARED.items():
        shutil.copy(PACKAGE / there, site / file)
    write_network(name, site)


class Handler(SimpleHTTPRequestHandler):
    """Serves files with the headers that a browser requires before it gives a page threads."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}  # noqa: RUF012

    def end_headers(self) -> None:
        for header, value in ISOLATED.items():
            self.send_header(header, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def server(site: Path, port: int) -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(site)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="r3_fast.photo", help="weights or an exported file of a denoiser")
    parser.add_argument("--site", type=Path, default=HERE / "site", help="the folder to write")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve it here until Ctrl-C")
    args = parser.parse_args()
    build(args.model, args.site)
    print(args.site)
    if args.serve is not None:
        with server(args.site, args.serve) as serving:
            print(f"http://127.0.0.1:{serving.server_port}", flush=True)
            serving.serve_forever()


if __name__ == "__main__":
    main()
