"""Makes the files that ONNX Runtime runs, of all bundled weights, and the list of architectures: src/rcnet/weights/*.onnx and
networks.json. Run it whenever bundled weights, their recorded results or the export have changed; a minute.

python tools/onnx_files.py [NAME ...]
"""

import json
import sys

import rcnet
from rcnet.models import bundled
from rcnet.replacing import replacing
from rcnet.tasks.catalogue import describe_architecture


def main() -> None:
    files = bundled()
    for name in sys.argv[1:] or files:
        path = rcnet.export(rcnet.load(name), files[name].with_suffix(".onnx"), half=True)
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")
    rows = [describe_architecture(name) for name in rcnet.list_models()]
    with replacing(next(iter(files.values())).with_name("networks.json")) as temporary:
        temporary.write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
