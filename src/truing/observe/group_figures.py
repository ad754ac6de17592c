"""The figures of the group methods: what is solved, what can still be learned from, and how often k attempts hold a right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing.observe.folder import StageRun, number
from truing.observe.monitor import judges_of, series
from truing.observe.step_figures import parts_panel, time_panel
from truing.observe.svg import BLUE, GREEN, MUTED, ORANGE, PURPLE, Axis, Line, Panel

_COLOURS = (ORANGE, GREEN, PURPLE, MUTED)


def group_panels(stage: StageRun, note: str) -> list[Panel]:
    """One stage's figures; what was not logged stays empty and is left out by the caller."""

    def line(name: str, label: str = "", colour: str = BLUE) -> Line:
        return Line(*series(stage.events, name), label, colour)

    judges = [line(name, name.removeprefix("monitor/"), colour) for name, colour in zip(judges_of(stage.events), _COLOURS, strict=False)]
    tests = [line("part/visible_tests", "visible tests", BLUE), line("part/hidden_tests", "hidden tests", ORANGE)]
    return [
        Panel("reward", "Reward", f"Mean over everything that was sampled, so prompts that are dropped or sampled again count too. {note}", "step",
              [Axis("reward", [line("reward/proxy", "reward"), *judges])]),
        Panel("tests", "Visible and hidden tests", f"Only visible tests are rewarded. A gap that opens means that the policy learns the tests and not the task. {note}", "step",
              [Axis("share of tests passed", [x for x in tests if len(x.y)], percent=True)]),
        Panel("groups", "What the groups still teach", f"A group whose completions are all right, or all wrong, has no gradient. {note}", "step", [
            Axis("share of groups", [line("groups/varied_share", "varied"), line("groups/solved_share", "all right", GREEN), line("groups/hopeless_share", "all wrong", ORANGE)], percent=True),
        ]),
        *parts_panel(stage, note),
        Panel("kl", "Distance from the reference", f"Logged when a penalty holds the policy to its reference. {note}", "step", [Axis("KL, nats per sequence", [line("kl/sequence")], from_zero=False)]),
        Panel("length", "Length and repetition", f"Reward that is bought with length, or loops, shows here. {note}", "step", [
            Axis("tokens in a completion", [line("tokens/mean")]),
            Axis("share", [line("tokens/eos_share", "ends by itself"), line("text/repetition", "repeated word pairs", ORANGE)], percent=True),
        ]),
        Panel("update", "Size of the updates", f"Entropy near zero: exploration is over. {note}", "step", [
            Axis("entropy, nats per token", [line("policy/entropy")]),
            Axis("outside the clip range", [line("policy/clip_share")], percent=True),
        ]),
        *time_panel(stage),
    ]  # fmt: skip


def attempts_panels(evaluation: Mapping[str, Any]) -> list[Panel]:
    """pass@k and majority@k of both models against k, with intervals over prompts, for each verified score."""
    found = []
    for name, table in _tables(evaluation, "pass_at").items():
        axes = [_axis("share solved by one of k samples", table)]
        votes = _tables(evaluation, "majority_at").get(name)
        if votes:
            axes.append(_axis("share solved by the majority of k", votes))
        caption = "Bars: 95% intervals over prompts. A policy that learned solves more prompts at every k; one that was only sharpened meets the other curve at large k."
        found.append(Panel(f"attempts-{name}", f"Attempts that solve a prompt: {name}", caption, "k, samples a prompt", axes))
    return found


def _axis(label: str, table: Mapping[str, Any]) -> Axis:
    lines = []
    for shift, (which, colour) in enumerate((("before", MUTED), ("after", BLUE))):
        rows = [(k, r) for k, r in table.get(which, {}).items() if isinstance(r, Mapping) and all(number(r.get(x)) is not None for x in ("mean", "low", "high"))]
        if rows:
            at = [i + 0.08 * (2 * shift - 1) for i in range(len(rows))]
            mean, low, high = ([float(r[x]) for _, r in rows] for x in ("mean", "low", "high"))
            lines.append(Line(at, mean, which, colour, marks="o", trend=False, low=low, high=high))
    ticks = [(float(i), str(k)) for i, k in enumerate(table.get("before", {}))]
    return Axis(label, lines, percent=True, ticks=ticks)


def _tables(evaluation: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    raw = evaluation.get(key)
    return {str(name): table for name, table in raw.items() if isinstance(table, Mapping)} if isinstance(raw, Mapping) else {}
