"""Builds the wheel and the sdist into dist/, and uses each in a new environment, from another folder, as a stranger would.

python tools/dist.py [--constraints constraints.txt] [--only wheel]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
COMMANDS = (
    ["models", "--json"],
    ["denoise", "--demo", "-o", "demo.png"],
    ["denoise", "demo.png", "-o", "clean.png", "--steps", "1"],
    ["doctor"],
)


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
        pip = [scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(constraints), str(package)], check=True)
        for command in COMMANDS:
            print(f"{package.name}: rcnet {' '.join(command)}", flush=True)
            subprocess.run([scripts / "rcnet", *command], cwd=home, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--only", choices=["wheel", "sdist"], help="use only this one")
    args = parser.parse_args()
    for package in build():
        print(f"{package.name}: {package.stat().st_size / 1e6:.2f} MB", flush=True)
        if args.only != ("sdist" if package.suffix == ".whl" else "wheel"):
            use(package, args.constraints.resolve())
    print("dist: works")


if __name__ == "__main__":
    main()
