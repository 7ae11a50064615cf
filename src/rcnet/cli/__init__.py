"""The command line: parse, call the library, print. Each command loads torch only when it runs."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from rcnet.cli.classify import classify
from rcnet.cli.data import data
from rcnet.cli.denoise import denoise
from rcnet.cli.evaluate import evaluate
from rcnet.cli.export import export
from rcnet.cli.figures import figures
from rcnet.cli.models import models
from rcnet.cli.profile import profile
from rcnet.cli.serve import serve
from rcnet.cli.study import study
from rcnet.cli.train import train
from rcnet.errors import InputError

app = App(
    name="rcnet",
    help="Compact networks with a cost dial: denoise and classify images, train, evaluate. More steps cost more and do better.",
    version=lambda: version("rcnet"),
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
)
COMMANDS: dict[str, Callable[..., None]] = {
    "denoise": denoise,
    "classify": classify,
    "models": models,
    "profile": profile,
    "eval": evaluate,
    "train": train,
    "data": data,
    "export": export,
    "serve": serve,
    "figures": figures,
    "study": study,
}
for name, command in COMMANDS.items():
    app.command(command, name=name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except InputError as error:
        fail(error)
    except BrokenPipeError:  # the reader of our output, e.g. head, has gone
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except CycloptsError as error:
        fail(f"{' '.join(str(error).split())} (see rcnet {' '.join([*(error.command_chain or []), '--help'])})")
    except KeyboardInterrupt:
        print("rcnet: interrupted", file=sys.stderr)
        sys.exit(130)


def fail(message: object) -> None:
    rank = f" (process {os.environ['RANK']})" if "TORCHELASTIC_RUN_ID" in os.environ else ""
    print(f"rcnet{rank}: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)
