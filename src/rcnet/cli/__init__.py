"""The command line: parse, call the library, print. A command imports torch only when it runs."""

import inspect
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

from rcnet.cli.classify import classify
from rcnet.cli.convert import convert
from rcnet.cli.data import data
from rcnet.cli.denoise import denoise
from rcnet.cli.doctor import doctor
from rcnet.cli.evaluate import evaluate
from rcnet.cli.export import export
from rcnet.cli.figures import figures
from rcnet.cli.judge import judge
from rcnet.cli.models import models
from rcnet.cli.profile import profile
from rcnet.cli.run import run
from rcnet.cli.serve import serve
from rcnet.cli.train import train
from rcnet.errors import Diverged, InputError, needs_torch
from rcnet.version import __version__

app = App(
    name="rcnet",
    help="Compact networks with a cost dial: denoise and classify images, train, evaluate. More steps cost more and do better. "
    "Start with rcnet denoise --demo; when something fails, rcnet doctor.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=()),
)
COMMANDS: dict[str, Callable[..., None]] = {
    "denoise": denoise,
    "classify": classify,
    "run": run,
    "models": models,
    "profile": profile,
    "eval": evaluate,
    "train": train,
    "judge": judge,
    "convert": convert,
    "data": data,
    "export": export,
    "serve": serve,
    "figures": figures,
    "doctor": doctor,
}
GUIDES = {
    "denoise": "docs/use.md",
    "classify": "docs/use.md",
    "run": "docs/use.md",
    "models": "docs/use.md",
    "profile": "docs/deploy.md",
    "eval": "docs/training.md",
    "train": "docs/training.md",
    "judge": "docs/training.md",
    "convert": "docs/convert.md",
    "data": "docs/training.md",
    "export": "docs/deploy.md",
    "serve": "docs/serving.md",
    "figures": "docs/study.md",
    "doctor": "CONTRIBUTING.md",
}
PIPE = "./-"  # stands for a lone hyphen, which the parser takes for an option


def flowing(doc: str) -> str:
    """The docstring with each parameter's description on one line, as plain help keeps line breaks."""
    block = re.compile(r"(?:^ {4}\S.*(?:\n|$))+", re.MULTILINE)
    return block.sub(lambda lines: f"    {' '.join(lines[0].split())}\n", inspect.cleandoc(doc))


for name, command in COMMANDS.items():
    command.__doc__ = flowing(command.__doc__ or "")
    app.command(command, name=name, help_epilogue=f"Guide: {GUIDES[name]}")
app.register_install_completion_command(help="Let the shell complete commands and options: bash, zsh, fish or powershell.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 1 a bug or a diverged training, 2 bad input (one line on stderr), 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # file names may have characters that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with needs_torch():
            app(
                [PIPE if argument == "-" else argument for argument in given],
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
    except InputError as error:
        fail(with_next(str(error), given), 1 if isinstance(error, Diverged) else 2)
    except BrokenPipeError:  # the reader of the output, e.g. head, has exited
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except CycloptsError as error:
        fail(with_next(str(error), error.command_chain or ()))
    except KeyboardInterrupt:
        print("rcnet: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if out_of_memory(error):
            fail("out of memory: use a smaller batch, tile or image, or accumulate=2 in a recipe")
        traceback.print_exc()
        print(
            "rcnet: this is a bug in rcnet: please report it with the lines above and the output of rcnet doctor",
            file=sys.stderr,
        )
        sys.exit(1)


def out_of_memory(error: Exception) -> bool:
    """Whether the memory of the processor or of a device ran out."""
    texts = ("can't allocate memory", "not enough memory")  # of torch's RuntimeErrors
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in texts)
    )


def with_next(message: str, given: Sequence[str]) -> str:
    """The message with the page of the guide, and with a helpful command unless it names one."""
    if not given or given[0] not in COMMANDS:
        return f"{message} (see rcnet --help)"
    named = re.search(r"\brcnet [a-z]|\bpip install", message)
    return f"{message} (see {'' if named else f'rcnet {given[0]} --help, '}{GUIDES[given[0]]})"


def fail(message: object, status: int = 2) -> None:
    rank = f" (process {os.environ['RANK']})" if "TORCHELASTIC_RUN_ID" in os.environ else ""
    line = f"rcnet{rank}: {' '.join(str(message).split())}"
    print(line, file=sys.stderr)
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's own report then gives this line as the root cause
        Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": {"timestamp": f"{time.time():.0f}"}}}))
    sys.exit(status)
