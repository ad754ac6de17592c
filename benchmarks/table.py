"""The results as Markdown, between two marks in docs/performance.md, and the figure of growth beside it.

    python -m benchmarks.table                  # both again, from benchmarks/results.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import growth
from benchmarks.models import NAMES
from benchmarks.results import Result, load
from benchmarks.side_by_side import ROOT

PAGE, FIGURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "growth.png"
BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.table writes what is between) -->", "<!-- benchmarks: end -->"
ORDER = ("decode", "decode-spread", "ppo", "grpo", "sft", "sft-padded", "sft-packed", "reward", "reward-mixed", "start-up", "growth", "cartpole")


def render(results: Sequence[Result]) -> str:
    """Two tables for each kind of processor, the last measured first; below them the growth."""
    if not results:
        return "Nothing has been measured yet: `make bench`."
    parts = [part for kind in _processors(results) for part in _of_one([r for r in results if r.processor == kind])]
    if any(r.row == "growth" for r in results):
        parts.append(f"![Time per token and memory over batch and length]({FIGURE.name})\n\nMemory is what the work needs beyond the libraries and the loaded model.")
    return "\n\n".join(parts)


def _processors(results: Sequence[Result]) -> list[str]:
    """Every kind, the last measured first; of one day, that which stands last."""
    last: dict[str, tuple[str, int]] = {}
    for i, r in enumerate(results):
        last[r.processor] = max(last.get(r.processor, ("", 0)), (r.measured, i))
    return sorted(last, key=lambda kind: last[kind], reverse=True)


def _of_one(results: Sequence[Result]) -> list[str]:
    """What has a peer, with its speed and memory side by side, and what has none."""
    rows = sorted(results, key=lambda r: (ORDER.index(r.row), NAMES.index(r.model) if r.model in NAMES else len(NAMES), r.peer or ""))
    goals = [r for r in rows if r.held is not None]
    parts = [f"{sum(bool(r.held) for r in goals)} of {len(goals)} goals are held. {_machine(rows)}"]
    beside = {(r.row, r.model, r.variant, r.peer): r for r in rows if r.peer and r.measure == "speed"}
    if beside:
        memory = {(r.row, r.model, r.variant, r.peer): r for r in rows if r.measure == "memory"}
        head = ("work", "model", "Truing", "beside", "its speed", "Truing's", "times as fast", "goal", "its peak, MiB", "Truing's", "share", "goal")
        parts.append(_table(head, _once([_beside(r, memory.get(key)) for key, r in beside.items()])))
    alone = [r for r in rows if not r.peer]
    if alone:
        parts.append(_table(("work", "model", "what", "figure", "goal"), _once([_alone(r) for r in alone])))
    return parts


def _beside(r: Result, memory: Result | None) -> list[str]:
    cells = [r.work, r.model, r.variant, r.peer or "", _number(r.peer_figure, r.unit), _number(r.truing_figure, r.unit), f"**{r.ratio:.2f}x**", _goal(r)]
    if memory is None:
        return [*cells, "", "", "", ""]
    return [*cells, _number(memory.peer_figure), _number(memory.truing_figure), f"{memory.ratio:.2f}x", _goal(memory)]


def _alone(r: Result) -> list[str]:
    what = r.variant if r.measure == "seconds" else f"{r.variant}: {r.measure}"
    return [r.work, r.model, what, _number(r.truing_figure, r.unit), _goal(r)]


def _once(rows: list[list[str]]) -> list[list[str]]:
    """The work and the model are named where they change."""
    return [[*("" if i and row[: k + 1] == rows[i - 1][: k + 1] else row[k] for k in range(2)), *row[2:]] for i, row in enumerate(rows)]


def _goal(r: Result) -> str:
    if r.goal is None:
        return ""
    return f"{r.goal}: {'not judged, the machine was busy' if r.held is None else 'held' if r.held else '**not held**'}"


def _number(x: float | None, unit: str = "") -> str:
    if x is None:
        return ""
    return f"{x:,.0f} {unit}".strip() if abs(x) >= 100 else f"{x:.3g} {unit}".strip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _machine(rows: Sequence[Result]) -> str:
    machines = {(m["processor"], m["processors"], m["system"]) for r in rows if (m := r.machine)}
    days = sorted({r.measured for r in rows})
    systems = "; ".join(f"{processor}, {count} processors, {system}" for processor, count, system in sorted(machines))
    return f"Measured {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''} on {systems}."


def put(page: str, tables: str) -> str:
    """The page with the tables between the marks. Raises ValueError when it has no marks."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no place for the table; put these two lines where it belongs: {BEGIN} {END}")
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END, 1)[1]}"


def write(results: Sequence[Result], page: Path = PAGE, figure: Path = FIGURE) -> None:
    page.write_text(put(page.read_text(), render(results)))
    growth.draw([r for r in results if r.processor in _processors([g for g in results if g.row == "growth"])[:1]], figure)


if __name__ == "__main__":
    found = load()
    write(found)
    print(f"{PAGE}: {len(found)} results", file=sys.stderr)
