"""rcnet doctor"""

import json
from collections.abc import Mapping
from typing import Any

from rcnet.cli.text import Json, table
from rcnet.errors import InputError


def doctor(*, json_output: Json = False) -> None:
    """Print what a bug report needs, and test rcnet on a bundled image.

    Prints versions, processor, runtimes, extras and how to install them,
    the cache, and the result of a self-test of some seconds. Exit status 0:
    no problem; 2: a test failed. Nothing private is printed.

    Examples::

      rcnet doctor
      rcnet doctor --json > doctor.json
      rcnet doctor | tee report.txt         for a bug report

    Parameters
    ----------
    json_output
        Print JSON.
    """
    from rcnet.deploy.doctor import examine

    report = examine()
    print(json.dumps(report, indent=1) if json_output else "\n\n".join(_section(name, part) for name, part in report.items()))
    broken = [name for name, part in report.items() if "failed" in part or part.get("passed") is False]
    if broken:
        raise InputError(f"problems found: {', '.join(broken)}; put the output of rcnet doctor into a bug report")


def _section(name: str, part: Mapping[str, Any]) -> str:
    """One part of the report, as text."""
    title = name.replace("_", "-")
    if "failed" in part:
        return f"{title}: FAILED: {part['failed']}"
    if name == "self_test":
        rows = [
            (
                r["runtime"],
                r["steps"],
                f"{r['psnr']:.2f}",
                f"{r['expected']:.2f}",
                f"{r['ms']:.0f}",
                "" if r["passed"] else "WRONG",
            )
            for r in part["rows"]
        ]
        verdict = f"{'passed' if part['passed'] else 'FAILED'} in {part['seconds']} s"
        about = f"{part['weights']}, of {len(part['read'])} sets of weights"
        return f"{title}: {verdict}, {about}\n{table(('runtime', 'steps', 'PSNR dB', 'expected', 'ms', ''), rows)}"
    if not part:
        return f"{title}: none"
    width = max(map(len, part))
    return "\n".join([title, *(f"  {key.ljust(width)}  {_value(value)}" for key, value in part.items())])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):  # an extra
        found = ", ".join(f"{package} {version}" for package, version in value["packages"].items() if version)
        missing = ", ".join(package for package, version in value["packages"].items() if not version)
        return found if not missing else f"not installed ({missing}): {value['get']}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
