"""An evaluation on the screen: the folder of `recast evaluate` in, its numbers as text out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recast.run.reading import read_json, reading

_HEADS = {"by_events": "events of target", "by_history": "events before"}


def describe(folder: str | Path) -> str:
    """The means, whom the hits reach, and what else was looked at."""
    file = Path(folder) / "eval.json"
    with reading(file, "make it again with `recast evaluate`"):
        return _described(read_json(file, dict))


def _described(content: dict[str, Any]) -> str:
    lines = [f"{name}  {metric['value']}" for name, metric in content["metrics"].items()]
    lines += content.get("notes", [])
    shown = ("invalid_frac", "malformed_frac", "rows", "users")
    known = [key for key in shown if content.get(key) is not None]
    lines += [f"{key}  {content[key]}" for key in known]
    lines += [f"{name}  {value}" for name, value in content.get("thoughts", {}).items()]
    for name, task in content.get("tasks", {}).items():
        lines += ["", f"{name}: {task['rows']:,} rows of {task['users']:,} users"]
        lines += [f"  {key}  {metric['value']}" for key, metric in task["metrics"].items()]
    groups = content["breakdown"]
    for key, head in _HEADS.items():
        if key not in groups:  # rows of text have no known history
            continue
        names = [name for name in groups[key][0] if "@" in name]
        lines += ["", f"{head:<18}{'rows':>8}" + "".join(f"{n.upper():>10}" for n in names)]
        for group in groups[key]:
            last = "+" if group["most"] is None else f"-{group['most']}"
            values = ["-" if group[n] is None else f"{group[n]:.4f}" for n in names]
            row = f"{group['least']}{last}"
            lines.append(f"{row:<18}{group['rows']:>8,}" + "".join(f"{v:>10}" for v in values))
    lines += ["", f"Events of the target are those of {' + '.join(groups['events_of'])}."]
    coverage = content["coverage"]
    lines.append(
        f"coverage: {coverage['items']:,} of {coverage['of']:,} items "
        f"({100 * coverage['share']:.1f} %) are among the first {coverage['first']} of a row"
    )
    if chosen := content["alpha_chosen_on"]:
        curve = "  ".join(f"{a}: {value:.4f}" for a, value in chosen["ndcg@10"].items())
        lines.append(
            f"alpha {content['alpha']:g} was chosen on {chosen['rows']:,} validation rows; "
            f"their NDCG@10 by alpha: {curve}"
        )
    if exact := content["exact"]:
        counts = exact["elsewhere"].items()
        within = ", ".join(f"{count:,} within the first {k}" for k, count in counts)
        lines.append(
            f"beam against exact: of {exact['targets']:,} targets ({exact['rows']:,} rows) these "
            f"have another place in the whole catalogue: {within}"
        )
    return "\n".join(lines)
