"""`truing plan`: what a recipe will need, before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from truing.cli import show
from truing.cli.progress import duration
from truing.cli.run import RUNS, RunsDir, Set

if TYPE_CHECKING:
    from truing.plan import Plan, StagePlan

Json = Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory to fit into, 8GiB say.  \\[default: what is available now]", show_default=False)]
Time = Annotated[bool, typer.Option("--time/--no-time", help="Time a few pieces of each stage (seconds); without, no model is loaded.")]
Items = Annotated[bool, typer.Option("--items", help="Show what the memory of each stage is made of.")]


WIDTH = 160  # a table is as wide as its cells; a narrow window wraps lines, and no number is cut off


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")], set_: Set = None, memory: Memory = None, time: Time = True, items: Items = False,
    runs_dir: RunsDir = RUNS, json: Json = False,
) -> None:  # fmt: skip
    """Say what a recipe will need of memory and time before it is run, and what to change where it does not fit. Nothing is written."""
    from truing.config import load_recipe
    from truing.plan import plan as make
    from truing.plan.available import size

    available = size(memory) if memory is not None else None
    found = make(load_recipe(recipe, set_ or ()), runs=runs_dir, available=available, time=time, tell=lambda name: show.say(f"planning {name} ..."))
    if json:
        show.as_json(as_values(found))
    else:
        _print(found, items)


def as_values(found: Plan) -> dict[str, Any]:
    """All numbers: MiB and seconds."""
    whole = [s.whole for s in found.stages]
    total = [sum(w[k] for w in whole if w) for k in range(3)] if all(whole) else None
    return {
        "recipe": found.name,
        "memory_mib": found.room,
        "memory_source": found.there.source,
        "peak_mib": found.peak,
        "fits": all(map(found.fits, found.stages)),
        "seconds": _spread(total),
        "stages": {s.name: _stage(found, s) for s in found.stages},
    }


def _stage(found: Plan, s: StagePlan) -> dict[str, Any]:
    t = s.timing
    return {
        "method": s.method,
        "model": s.model,
        "steps": s.steps,
        "notes": list(s.notes),
        "peak_mib": s.memory.peak,
        "peak_in": s.memory.highest_phase,
        "fits": found.fits(s),
        "room_mib": found.room - s.memory.peak,
        "phases_mib": {name: {item: n / 2**20 for item, n in held.items()} for name, held in s.memory.phases.items()},
        "seconds": _spread(s.whole),
        "seconds_a_step": _spread(t.step) if t else None,
        "seconds_by_phase": {name: _spread(value) for name, value in t.phases.items()} if t else None,
        "seconds_opening": t.opening if t else None,
        "seconds_a_checkpoint": t.every[0] if t else None,
        "tokens_a_completion": _spread(t.tokens) if t and t.tokens else None,
        "measured_on": t.basis if t else None,
        "advice": [
            {"settings": dict(a.change.settings), "set": a.change.text(s.name), "peak_mib": a.peak, "fits": a.fits, "same_result": a.change.same, "time": a.change.cost,
             "seconds_a_step": _after(s, a.change.times)} for a in s.advice
        ],
    }  # fmt: skip


def _spread(value: Any) -> dict[str, float] | None:
    return None if value is None else dict(zip(("expected", "low", "high"), value, strict=True))


def _after(s: StagePlan, times: Any) -> float | None:
    """Seconds a step after a change, by arithmetic from what was measured."""
    return sum(value.seconds * times.get(name, 1.0) for name, value in s.timing.phases.items()) if s.timing else None


# -- for people ----------------------------------------------------------------------------------------------------------
def _print(found: Plan, items: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    write = lambda text="": console.print(text, markup=False)  # noqa: E731
    write(f"{found.name}: {len(found.stages)} stage{'s' * (len(found.stages) > 1)}; {_mib(found.room)} of memory {found.there.source}")
    write()
    console.print(_memory(found))
    if any(s.timing for s in found.stages):
        console.print(_time(found))
    for s in found.stages:
        for note in s.notes:
            write(f"{s.name}: {note}")
        if s.timing:
            write(f"{s.name}: timed on {s.timing.basis}")
    for s in found.stages if items else ():
        write(f"\n{s.name}\n{s.memory}")
    write()
    for s in found.stages:
        _advise(write, console, found, s)
    if all(map(found.fits, found.stages)):
        worst = max(found.stages, key=lambda s: s.memory.peak)
        tight = " That is less than the plan may be off (15%)." if found.room < 1.15 * worst.memory.peak else ""
        write(f"It fits: the highest peak is {_mib(worst.memory.peak)} ({worst.name}), {_mib(found.room - worst.memory.peak)} are left.{tight}")


def _table(*columns: str) -> Any:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    return made


def _memory(found: Plan) -> Any:
    made = _table("stage", "model", "peak", "in", "left")
    made.columns[1].justify = made.columns[3].justify = "left"
    for s in found.stages:
        left = found.room - s.memory.peak
        made.add_row(s.name, s.model, _mib(s.memory.peak), s.memory.highest_phase, _mib(left) if left >= 0 else f"{_mib(-left)} too much")
    return made


def _time(found: Plan) -> Any:
    names = list(dict.fromkeys(name for s in found.stages if s.timing for name in s.timing.phases))
    made = _table("seconds a step", *names, "in all", "steps", "time", "between")
    for s in found.stages:
        if s.timing is None:
            continue
        cells = [_seconds(s.timing.phases[name].seconds) if name in s.timing.phases else "" for name in names]
        whole = s.whole
        ends = [_duration(whole.seconds), f"{_duration(whole.low)} - {_duration(whole.high)}"] if whole else ["", ""]
        made.add_row(s.name, *cells, _seconds(s.timing.step.seconds), "" if s.steps is None else f"{s.steps:,}", *ends)
    whole_of = [s.whole for s in found.stages]
    if len(found.stages) > 1 and all(whole_of):
        total: list[float] = [sum(w[k] for w in whole_of if w) for k in range(3)]
        made.add_row("the recipe", *[""] * (len(names) + 2), _duration(total[0]), f"{_duration(total[1])} - {_duration(total[2])}")
    return made


def _advise(write: Any, console: Any, found: Plan, s: StagePlan) -> None:
    if found.fits(s):
        return
    write(f"{s.name} does not fit: its peak is {_mib(s.memory.peak)}, {_mib(found.room)} are there.")
    if not s.advice:
        write("No setting lowers it: use a smaller model, or more memory.")
        return
    if not any(a.fits for a in s.advice):
        write("No setting makes it fit; use a smaller model, or more memory. These lower the peak:")
    made = _table("change", "peak", "fits", "time", "result")
    made.columns[3].justify = made.columns[4].justify = "left"
    for a in s.advice:
        after = _after(s, a.change.times) if a.change.times else None
        more = f" (about {_seconds(after)} s a step)" if after is not None else ""
        made.add_row(a.change.text(s.name), _mib(a.peak), "yes" if a.fits else "no", a.change.cost + more, "the same" if a.change.same else "another")
    console.print(made)
    write()


def _mib(n: float) -> str:
    return f"{n / 1024:,.1f} GiB" if n >= 10 * 1024 else f"{n:,.0f} MiB"


def _seconds(n: float) -> str:
    return f"{n:.0f}" if n >= 100 else f"{n:.3g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


