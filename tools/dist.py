"""Builds the wheel and the sdist into dist/, and uses each in a new environment without torch, from another folder, as a stranger
would.

python tools/dist.py [--constraints constraints.txt] [--only wheel]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
WHEEL, INSTALLED = 8e6, 200 * 2**20  # bytes at most: of the wheel, and of what `pip install rcnet` adds to an environment
COMMANDS = (
    "--help",
    "models --json",
    "denoise small.png",
    "denoise small.png -o own.png --model mine.onnx --steps 1",
    "denoise small.png -o quick.png --budget 10GMAC",
    "denoise small.png -o fast.png --budget 10min",
    "denoise --demo -o demo.png",
    "classify small.png --top 3",
    "profile r3_fast.gray --size 64x64",
    "doctor",
)
SMALL = """
import rcnet
from pathlib import Path
from PIL import Image
Image.open(Path(rcnet.__file__).parent / "assets" / "cameraman.png").crop((80, 60, 240, 180)).save("small.png")
"""
ARRAY = """
import sys, numpy, rcnet
assert rcnet.denoise(numpy.zeros((40, 50, 3), "uint8"), steps=1, sigma=5).shape == (40, 50, 3)
sys.exit("torch" in sys.modules)
"""


def build() -> list[Path]:
    """The wheel and the sdist, and nothing else in dist/."""
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    return sorted(DIST.iterdir(), reverse=True)


def use(package: Path, constraints: Path) -> None:
    """Installs the package in a new environment and runs the commands there."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        scripts = home / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        pip = [scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
        before = size(home / "venv")
        subprocess.run([*pip, str(package)], check=True)
        installed = size(home / "venv") - before
        print(f"{package.name}: {installed / 2**20:.0f} MiB installed", flush=True)
        if installed > INSTALLED:
            sys.exit(f"more than {INSTALLED / 2**20:.0f} MiB are installed")
        (file,) = (home / "venv").rglob("r3_fast.photo.onnx")
        shutil.copy(file, home / "mine.onnx")
        subprocess.run([scripts / "python", "-c", SMALL], cwd=home, check=True)
        for command in COMMANDS:
            started = time.perf_counter()
            subprocess.run([scripts / "rcnet", *command.split()], cwd=home, check=True, stdout=subprocess.DEVNULL)
            print(f"{package.name}: rcnet {command} ({time.perf_counter() - started:.2f} s)", flush=True)
        subprocess.run([scripts / "python", "-c", ARRAY], cwd=home, check=True)
        refused = subprocess.run([scripts / "rcnet", "train", "r3", "--data", "."], cwd=home, capture_output=True, text=True)
        if refused.returncode != 2 or "pip install 'rcnet[torch]'" not in refused.stderr:
            sys.exit(f"rcnet train without torch says: {refused.stderr}")
        subprocess.run([*pip, f"{package}[serve]"], check=True)
        serve(scripts, home)


def serve(scripts: Path, home: Path) -> None:
    """Starts the server of two networks, sends a picture, and ends it."""
    started = time.perf_counter()
    command = [scripts / "rcnet", "serve", "r3_fast.photo", "mine.onnx", "--port", "0", "--slo", "60s"]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()  # type: ignore[union-attr]
            print(f"{line.strip()} ({time.perf_counter() - started:.2f} s)", flush=True)
            for model in ("r3_fast.photo", "mine"):
                url = f"{line.split()[-1]}/v1/denoise?model={model}"
                if answer(urllib.request.Request(url, (home / "small.png").read_bytes())) != "image/png":
                    sys.exit(f"{url} gives no PNG")
        finally:
            server.terminate()
    if server.returncode not in (0, -15):
        sys.exit(f"the server ended with {server.returncode}")


def answer(request: urllib.request.Request) -> str:
    """The type of what a server answers, which may begin to listen a moment after it says where."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(request) as response:
                return str(response.headers["content-type"])
        except ConnectionError:
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
        time.sleep(0.1)
    raise SystemExit("the server does not listen")


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--only", choices=["wheel", "sdist"], help="use only this one")
    args = parser.parse_args()
    for package in build():
        print(f"{package.name}: {package.stat().st_size / 1e6:.2f} MB", flush=True)
        if package.suffix == ".whl" and package.stat().st_size > WHEEL:
            sys.exit(f"the wheel has more than {WHEEL / 1e6:.0f} MB")
        if args.only != ("sdist" if package.suffix == ".whl" else "wheel"):
            use(package, args.constraints.resolve())
    print("dist: works")


if __name__ == "__main__":
    main()
