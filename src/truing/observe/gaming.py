"""Signs that a checked reward is being gamed: hidden tests that lag, loops, and a reward earned with form instead of answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from truing.observe.monitor import FIRST, RECENT, Finding, series, values_of

GAP = 0.1
"""Alarm when visible tests go this much better than hidden ones."""
REPEATED = 0.2
"""Alarm when the share of repeated word pairs has risen by this much."""
TRADED = 0.05
"""Alarm when one part of the reward has risen and another has fallen by more than this."""

NO_MERIT = frozenset("visible_tests hidden_tests timed_out calls calls_refused guesses turns".split())
"""Parts that tell something of a completion and are neither good nor bad."""


def gaming(events: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """The alarms of a stage with a checked reward; each compares the mean of 10 steps with that of the first 5, beyond two standard errors.

    *Hidden tests.* ``reward/hidden_gap`` above 0.1: an error, for hidden tests differ from visible ones in nothing but being known.
    *Loops.* ``text/repetition`` has risen by more than 0.2.
    *Form for answers.* The reward rises, a part of it that is a share (of right answers, of kept formats) with it, and another such
    part falls by more than 0.05: what is cheap was bought with what was meant. (How long completions grow is `monitor.overoptimisation`'s.)
    """
    rows = [e for e in events if e.get("kind") == "metrics"]
    return [f for f in (_gap(rows), _loops(rows), *_traded(rows)) if f]


def change(rows: list[Mapping[str, Any]], name: str) -> list[tuple[int, float, float, float]]:
    """(step, mean of the first steps, mean of the last ones, standard error of their difference) at every step that has enough of both."""
    steps, values = series(rows, name)
    found = []
    for end in range(FIRST + RECENT, len(values) + 1):
        first, last = values[:FIRST], values[end - RECENT : end]
        error = math.hypot(*(float(part.std(ddof=1)) / math.sqrt(len(part)) for part in (first, last)))
        found.append((int(steps[end - 1]), float(first.mean()), float(last.mean()), error))
    return found


def _gap(rows: list[Mapping[str, Any]]) -> Finding | None:
    steps, gaps = series(rows, "reward/hidden_gap")
    for end in range(FIRST, len(gaps) + 1):
        last = gaps[max(0, end - RECENT) : end]
        if float(last.mean()) - GAP > 2 * float(last.std(ddof=1)) / math.sqrt(len(last)):
            message = (
                f"by step {steps[end - 1]} programs pass {100 * float(last.mean()):.0f} points more of the visible tests than of the hidden ones: "
                "they answer the tests, not the task. Read samples/, reward hidden tests, or write more of them"
            )
            return Finding("gaming/hidden_tests", "error", message, int(steps[end - 1]))
    return None


def _loops(rows: list[Mapping[str, Any]]) -> Finding | None:
    for step, first, last, error in change(rows, "text/repetition"):
        if last - first - REPEATED > 2 * error:
            message = f"repeated word pairs rose from {first:.0%} to {last:.0%} by step {step}: completions run in loops. Read samples/, and subtract repetition(2) from the reward"
            return Finding("gaming/repetition", "warning", message, step)
    return None


def _traded(rows: list[Mapping[str, Any]]) -> list[Finding]:
    parts = {n for e in rows for n in values_of(e) if n.startswith("part/") and n[5:] not in NO_MERIT}
    names = sorted(n for n in parts if all(0 <= v <= 1 for v in series(rows, n)[1].tolist()))  # shares: of right answers, of kept formats
    moved = {name: {step: (first, last, error) for step, first, last, error in change(rows, name)} for name in (*names, "reward/proxy")}
    found = []
    for worse in names:
        for step in sorted(moved[worse]):
            first, last, error = moved[worse][step]
            gained = moved["reward/proxy"].get(step)
            if gained is None or not (first - last - TRADED > 2 * error and gained[1] - gained[0] > 2 * gained[2]):
                continue
            rise = {n: moved[n][step][1] - moved[n][step][0] for n in names if step in moved[n] and moved[n][step][1] - moved[n][step][0] - TRADED > 2 * moved[n][step][2]}
            if rise:
                better = max(rise, key=lambda n: (rise[n], n))
                message = (
                    f"by step {step} the reward rose while its part {worse[5:]} fell from {first:.2f} to {last:.2f} and {better[5:]} rose by {rise[better]:.2f}: "
                    f"{better[5:]} is bought at the price of {worse[5:]}. Weigh them differently, or pay for {better[5:]} only where {worse[5:]} is earned"
                )
                found.append(Finding(f"gaming/{worse[5:]}", "warning", message, step))
                break
    return found

