"""rcnet models"""

import json

from rcnet.cli.text import Json


def models(*, json_output: Json = False) -> None:
    """List the networks and the bundled weights: cost and measured results a step.

    MACs are those of one image: 321x481 pixels (denoise) or 32x32 (classify).

    Examples::

      rcnet models
      rcnet models --json
      rcnet models --json | jq '.[] | select(.task == "denoise") | .name'

    Parameters
    ----------
    json_output
        Print JSON.
    """
    from rcnet.cli.text import count, table
    from rcnet.cost.catalogue import METRICS, describe_architecture, describe_weights
    from rcnet.models import bundled, list_models

    rows = [describe_architecture(name) for name in list_models()] + [describe_weights(name) for name in bundled()]
    if json_output:
        print(json.dumps(rows, indent=1))
        return
    lines = []
    for row in rows:
        for i, step in enumerate(row["steps"]):
            first = (row["name"], row["task"]) if i == 0 else ("", "")
            unit = METRICS[row["task"]][1]
            result = ", ".join(f"{value:.2f} {unit}, {data}" for data, value in step.get("results", {}).items())
            lines.append((*first, step["steps"], f"{step['parameters']:,}", count(step["macs"]), result))
    print(table(("name", "task", "steps", "parameters", "MACs", "result"), lines))
    print("\nA name with a dot is a set of trained weights: rcnet denoise (or classify) IN --model NAME --steps N")
