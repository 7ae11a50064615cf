"""rcnet models"""

import json

from rcnet.cli.text import Json


def models(name: str | None = None, /, *, json_output: Json = False) -> None:
    """List networks and bundled weights: cost and first measured result per step count.

    MACs are those of one image: 321x481 pixels (denoise) or 32x32 (classify).

    Examples::

      rcnet models
      rcnet models r3_fast.color
      rcnet models --json | jq '.[] | select(.task == "denoise") | .name'

    Parameters
    ----------
    name
        Bundled weights or a file of weights, of which all results are shown.
    json_output
        Print JSON.
    """
    from rcnet.cli.text import count, table
    from rcnet.models import bundled, list_models
    from rcnet.setting import Setting
    from rcnet.tasks import TASKS
    from rcnet.tasks.catalogue import describe_architecture, describe_weights

    if name is None:
        rows = [describe_architecture(known) for known in list_models()] + [describe_weights(known) for known in bundled()]
    else:
        rows = [describe_architecture(name) if name in list_models() else describe_weights(name)]
    if json_output:
        print(json.dumps(rows if name is None else rows[0], indent=1))
        return
    lines = []
    for row in rows:
        for i, step in enumerate(row["steps"]):
            first = (row["name"], row["task"]) if i == 0 else ("", "")
            results = [f"{value:.2f} {TASKS[row['task']].unit}, {data}" for data, value in step.get("results", {}).items()]
            lines.append(
                (*first, Setting.of(step["steps"]), f"{step['parameters']:,}", count(step["macs"]), "".join(results[:1]))
            )
    print(table(("name", "task", "steps", "parameters", "MACs", "result"), lines))
    if name is None:
        print("\nNames with a dot are trained weights: rcnet denoise (or classify) IN --model NAME --steps N")
        print("For all results of one: rcnet models NAME")
    elif measured := dict.fromkeys(data for step in rows[0]["steps"] for data in step.get("results", {})):
        counts = [f"steps {Setting.of(step['steps'])}" for step in rows[0]["steps"]]
        values = [[step.get("results", {}).get(data) for step in rows[0]["steps"]] for data in measured]
        shown = [["" if value is None else f"{value:.2f}" for value in line] for line in values]
        print(f"\n{TASKS[rows[0]['task']].unit}:")
        print(table(("measured on", *counts), [(data, *line) for data, line in zip(measured, shown, strict=True)]))
    if name is None:
        return
    labels = {key: label for label, (key, _) in TASKS[rows[0]["task"]].columns.items()} if rows[0]["task"] in TASKS else {}
    for data in dict.fromkeys(data for step in rows[0]["steps"] for data in step.get("other_results", {})):
        found = [(step["steps"], step["other_results"][data]) for step in rows[0]["steps"] if data in step["other_results"]]
        lines = [(n, *(f"{value:.2f}" for value in values.values())) for n, values in found]
        print(f"\n{data}:")
        print(table(("steps", *(labels[key] for key in found[0][1])), lines))
