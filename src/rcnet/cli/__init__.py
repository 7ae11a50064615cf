"""The command line: parse, call the library, print. Each command loads torch only when it runs."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from rcnet.cli.denoise import denoise
from rcnet.cli.evaluate import evaluate
from rcnet.cli.models import models
from rcnet.cli.train import train
from rcnet.errors import InputError

app = App(
    name="rcnet",
    help="Compact networks with a cost dial: denoise images, train, evaluate. More steps cost more and do better.",
    version=lambda: version("rcnet"),
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
)
for command, name in ((denoise, "denoise"), (models, "models"), (evaluate, "eval"), (train, "train")):
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
    print(f"rcnet: {message}", file=sys.stderr)
    sys.exit(2)
