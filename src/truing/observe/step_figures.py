"""Two figures of single steps: where their time goes, and what their reward is made of."""

from __future__ import annotations

import numpy as np

from truing.observe.folder import StageRun
from truing.observe.monitor import series, values_of
from truing.observe.svg import BLUE, BRONZE, GREEN, MUTED, ORANGE, PURPLE, Axis, Bars, Line, Panel

PHASES = {"generate": BLUE, "trunk": GREEN, "score": ORANGE, "reference": PURPLE, "update": BRONZE}  # in the order of a step
OTHER = "other"
MOST_BARS = 30
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BRONZE)
_LONGEST = 20  # characters of a part's name beside its line


def timeline(stage: StageRun) -> dict[str, np.ndarray]:
    """Seconds of each phase at every step that says how long it took, under its name; ``step``; and ``other``, what no phase counts.

    Empty when no step logged both its own time and a phase's.
    """
    steps, whole = series(stage.events, "seconds/step", "timing")
    found = {}
    for name in PHASES:
        at = dict(zip(*(a.tolist() for a in series(stage.events, f"seconds/{name}", "timing")), strict=True))
        if at:
            found[name] = np.array([max(0.0, at.get(s, 0.0)) for s in steps.tolist()])
    if not len(steps) or not found:
        return {}
    return {"step": steps, **found, OTHER: np.maximum(0.0, whole - sum(found.values()))}


def time_panel(stage: StageRun) -> list[Panel]:
    """The median step as one labelled bar, and up to thirty evenly spaced steps below it on the same scale."""
    seconds = timeline(stage)
    if not seconds:
        return []
    steps, parts = seconds.pop("step"), seconds
    whole = np.sum(list(parts.values()), axis=0)
    median = int(np.argsort(whole, kind="stable")[(len(steps) - 1) // 2])
    total = float(whole[median]) or 1.0
    shown = np.unique(np.linspace(0, len(steps) - 1, MOST_BARS).round().astype(int)) if len(steps) > MOST_BARS else np.arange(len(steps))
    colours = {**PHASES, OTHER: MUTED}
    beside = [(f"{name} {_seconds(float(s[median]))}, {s[median] / total:.0%}", colours[name]) for name, s in parts.items()]
    bars = [Bars([str(steps[i]) for i in rows], [(name, colours[name], s[rows].tolist()) for name, s in parts.items()], text) for rows, text in ((np.array([median]), []), (shown, beside))]
    which = f"{len(shown)} of {len(steps)} steps, evenly spaced" if len(shown) < len(steps) else "every step"
    axes = [
        Axis(f"the median step takes {_seconds(total)}", [], bars=bars[0], height=52),
        Axis(which, [], bars=bars[1], height=70 + 5.2 * max(len(shown), 14)),
    ]
    caption = f"Phases in their order; numbers: the median step, {steps[median]}. Other is what no phase counts: checkpoints, the event log, bookkeeping."
    return [Panel("time", "Where the time of a step goes", caption, "seconds", axes)]


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 100 else f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def parts_panel(stage: StageRun, note: str) -> list[Panel]:
    """The named parts of a composed reward against step, when there are two or more; of many the five that vary most."""
    names = sorted({n for e in stage.of_kind("metrics") for n in values_of(e) if n.startswith("part/")})
    found = {n: series(stage.events, n) for n in names}
    moving = sorted((n for n in names if len(found[n][0])), key=lambda n: (-float(np.ptp(found[n][1])), n))[: len(_COLOURS)]
    if len(moving) < 2:
        return []
    label = lambda n: n if len(n) <= _LONGEST else n[: _LONGEST - 1] + "\u2026"  # noqa: E731
    lines = [Line(*found[n], label(n.removeprefix("part/")), colour) for n, colour in zip(sorted(moving), _COLOURS, strict=False)]
    left_out = f" The {len(names) - len(moving)} that vary least are left out." if len(names) > len(moving) else ""
    caption = f"Mean of each part of the reward over the step's completions.{left_out} A part that moves while the others stand is what the policy found cheapest to change. {note}"
    return [Panel("parts", "Parts of the reward", caption, "step", [Axis("score", lines)])]
