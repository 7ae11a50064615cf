"""rcnet data"""

import json
import shlex
from pathlib import Path

from rcnet.cli.text import Json


def data(
    name: str,
    /,
    *,
    out: Path = Path("data"),
    url: str | None = None,
    json_output: Json = False,
) -> None:
    """Download CIFAR-10, CIFAR-100 or BSDS500.

    An interrupted download is resumed when the command is run again; a
    complete one is not repeated. Every file is checked by its MD5.

    Examples::

      rcnet data cifar10
      rcnet data bsds500 --out /data
      rcnet data cifar100 --url https://mirror/cifar-100-binary.tar.gz

    Parameters
    ----------
    name
        cifar10, cifar100 or bsds500; of bsds500 the 232 training and
        68 test images of the paper are written to OUT/bsd.
    out
        Folder for the data.
    url
        Another URL of the same archive, e.g. if the official one is slow.
    json_output
        Print the result as JSON, and no progress bar.
    """
    from rcnet.data.download import get

    path = get(name, out, url, progress=not json_output)
    recipe, folder = ("r3_fast", path) if name == "bsds500" else (f"cifar_fast classification.dataset={name}", out)
    following = f"rcnet train {recipe} --data {shlex.quote(str(folder))}"
    if json_output:
        print(json.dumps({"name": name, "path": str(path), "next": following}, indent=1))
        return
    print(path)
    print(f"next: {following}")
