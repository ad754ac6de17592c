"""Several runs of one pipeline beside each other: what differs in their settings, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from truing.observe.folder import RunFolder, StageRun
from truing.observe.monitor import judges_of, series
from truing.observe.svg import BLUE, BRONZE, GREEN, ORANGE, PURPLE, Axis, Line, Panel
from truing.observe.verdict import score_of

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BRONZE)
ABSENT = "\u2013"
_MEASURED = ("inputs", "versions", "seed")  # what a stage's recipe adds to its options


class Sample(NamedTuple):
    """One held-out prompt: a text of the before model, and one of each run's, under their names."""

    prompt: str
    texts: list[tuple[str, Mapping[str, Any]]]
    changes: list[float | None]


def trained(run: RunFolder) -> list[StageRun]:
    """The stages that are drawn over one another: PPO stages with events."""
    return [s for s in run.stages if s.method in ("ppo", "grpo") and s.of_kind("metrics")]


def settings(run: RunFolder, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Options that are not the same in the recipes of these stages, each with its value in every one; empty when no two recipes can be read.

    All are read from the same place, so that like is compared with like: the stages' own recipes name folders where the pipeline's names stages.
    """
    own = {s.name: {k: v for k, v in s.options.items() if k not in _MEASURED} for s in run.stages}
    flat = [_flat(run.options(name) if all(run.lists(n) for n in names) else own.get(name, {})) for name in names]
    if sum(bool(f) for f in flat) < 2:
        return []
    keys = list(dict.fromkeys(k for f in flat for k in f))
    rows = [(key, [_plain(f[key]) if key in f else ABSENT for f in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def overlay(run: RunFolder, judge: str | None) -> list[Panel]:
    """Reward and judge, and length and KL, of up to five PPO stages against step: one colour a run, one scale for all. Nothing for fewer than two stages."""
    stages = trained(run)
    if len(stages) < 2:
        return []
    drawn = stages[: len(COLOURS)]
    shared = [n for n in judges_of(stages[0].events) if all(n in judges_of(s.events) for s in drawn)]
    wanted = (f"monitor/{judge}", "monitor/gold", *shared)
    chosen = next((n for n in wanted if n in shared), None)
    lines = lambda name: [Line(*series(s.events, name), s.name if len(s.name) <= 20 else s.name[:19] + "\u2026", c) for s, c in zip(drawn, COLOURS, strict=False) if len(series(s.events, name)[0])]  # noqa: E731
    more = f" {len(stages) - len(drawn)} further runs are left out." if len(stages) > len(drawn) else ""
    own = "Each run's reward is what it was trained on: where rewards differ in the settings, compare its course, not its height."
    reward = [Axis("reward, as trained", lines("reward/proxy")), *([Axis(f"{chosen.removeprefix('monitor/')}, never trained on", lines(chosen))] if chosen else [])]
    panels = [
        Panel("several-reward", "Reward and judge", f"On the training prompts. {own}{more}", "step", reward),
        Panel("several-length", "Length and distance", f"On the same scales.{more}", "step", [Axis("tokens in a completion", lines("tokens/mean")), Axis("KL, nats per sequence", lines("kl/sequence"))]),
    ]
    whole = [Panel(p.key, p.title, p.caption, p.xlabel, [a for a in p.axes if a.lines]) for p in panels]
    return [p for p in whole if p.axes]


def samples(runs: Mapping[str, RunFolder], judge: str | None) -> list[Sample]:
    """The prompts that every evaluation holds, with the first text of each side, from the largest change for the better in the last run to the largest for the worse.

    Empty when the evaluations do not share their prompts and the before model's first texts.
    """
    tables = [_first_texts(view.evaluation) for view in runs.values()]
    prompts = [p for p in tables[0] if all(p in t and t[p][0].get("text") == tables[0][p][0].get("text") for t in tables)] if tables else []
    found = []
    for prompt in prompts:
        before = tables[0][prompt][0]
        texts = [("before", before), *((name, t[prompt][1]) for name, t in zip(runs, tables, strict=True))]
        base = score_of(before, judge)
        changes = [None if base is None or (s := score_of(text, judge)) is None else s - base for _, text in texts[1:]]
        found.append(Sample(prompt, texts, changes))
    return sorted(found, key=lambda s: (-(s.changes[-1] or 0.0), s.prompt))


def _first_texts(evaluation: Mapping[str, Any] | None) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    rows = (evaluation or {}).get("rows")
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for row in rows if isinstance(rows, list) else []:
        sides = [row.get(side) for side in ("before", "after")] if isinstance(row, Mapping) else []
        first = [s[0] for s in sides if isinstance(s, list) and s and isinstance(s[0], Mapping)]
        if len(first) == 2:
            found.setdefault(str(row.get("prompt", "")), (first[0], first[1]))
    return found
