"""Which figures a stage's report holds, as panels made from its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from truing.observe.folder import RunFolder, StageRun, number
from truing.observe.group_figures import attempts_panels, group_panels
from truing.observe.metrics import CORRELATION
from truing.observe.monitor import judges_of, series
from truing.observe.step_figures import parts_panel, time_panel
from truing.observe.svg import BLUE, GREEN, MUTED, ORANGE, PURPLE, Axis, Line, Panel, window
from truing.observe.verdict import score_of, texts

_MONITOR_COLOURS = (ORANGE, GREEN, PURPLE, MUTED)


def panels(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any]) -> list[Panel]:
    """The figures of one stage; those whose metrics were not logged are left out."""
    make = {"sft": _sft, "reward": _reward, "ppo": _ppo, "grpo": _grpo, "evaluate": _evaluate}.get(stage.method)
    found = make(stage, run, verdict) if make else []
    whole = [Panel(f"{stage.name}-{p.key}", p.title, p.caption, p.xlabel, [a for a in p.axes if _has_data(a)]) for p in found]
    return [p for p in whole if p.axes]


def _has_data(axis: Axis) -> bool:
    return axis.bars is not None or any(len(line.y) for line in [*axis.lines, *([axis.right] if axis.right else [])])


def _line(stage: StageRun, name: str, label: str, colour: str = BLUE, *, trend: bool = True, dashed: bool = False) -> Line:
    x, y = series(stage.events, name)
    if not len(x):  # some numbers are measured once, at the end
        x, y = series(stage.events, name, "result")
    return Line(x, y, label, colour, trend=trend, dashed=dashed)


def _thin(stage: StageRun) -> str:
    steps = {e["step"] for e in stage.of_kind("metrics")}
    width = window(len(steps))
    return f"Thin: every step; thick: mean of {width} steps." if width > 1 else "Every step."


def _sft(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any]) -> list[Panel]:
    loss = Axis("loss, nats per trained token", [_line(stage, "loss", "training"), _line(stage, "eval/loss", "held out", ORANGE, trend=False)])
    stop = Axis("held-out share that ends by itself", [_line(stage, "eval/eos_share", "", trend=False)], percent=True)
    return [Panel("loss", "Loss and stopping", f"Held-out loss that rises while training loss falls is overfitting. {_thin(stage)}", "update", [loss, stop])]


def _reward(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any]) -> list[Panel]:
    loss = Axis(
        "loss, nats per pair",
        [_line(stage, "loss", "training"), _line(stage, "eval/loss", "held out", ORANGE, trend=False)],
        level=(float(np.log(2)), "coin flip"),
    )
    right = Axis(
        "pairs ranked as the person did", [_line(stage, "accuracy", "training"), _line(stage, "eval/accuracy", "held out", ORANGE, trend=False)], percent=True
    )
    found = [Panel("loss", "Loss and accuracy", f"A coin flip has a loss of log 2 and ranks half the pairs right. {_thin(stage)}", "update", [loss, right])]
    accuracy = verdict["reward_accuracy"]
    return [*found, *accuracy_panels(accuracy)] if isinstance(accuracy, Mapping) else found


def accuracy_panels(accuracy: Mapping[str, Any]) -> list[Panel]:
    """Accuracy by bucket of rating difference: reward model, human ceiling and gold judge."""
    raw = accuracy.get("buckets")
    buckets = [b for b in raw if isinstance(b, Mapping) and number(b.get("low")) is not None] if isinstance(raw, list) else []
    if not buckets:
        return []
    lines = []
    for shift, (key, label, colour, mark) in enumerate(
        [("human", "human ceiling", MUTED, "_"), ("gold", "gold judge", ORANGE, "D"), ("reward_model", "reward model", BLUE, "o")], start=-1
    ):
        points = [(i + 0.12 * shift * (mark != "_"), value) for i, b in enumerate(buckets) if (value := number(b.get(key))) is not None]
        lines.append(Line([x for x, _ in points], [y for _, y in points], label, colour, marks=mark, trend=False))
    ticks = [(float(i), _bucket(b)) for i, b in enumerate(buckets)]
    axis = Axis("pairs ranked as the mean rating does", lines, level=(0.5, "coin flip"), percent=True, ticks=ticks)
    pairs = ", ".join(f"{number(b.get('pairs')) or 0:.0f}" for b in buckets)
    caption = f"By difference of the two mean ratings; pairs in each bucket: {pairs}. Human ceiling: how often one rater agrees with the mean of the others."
    return [Panel("buckets", "Reward model, people and gold judge", caption, "difference of mean ratings", [axis])]


def _bucket(bucket: Mapping[str, Any]) -> str:
    low, high = number(bucket.get("low")), number(bucket.get("high"))
    return f"{low:g} to {high:g}" if high is not None else f"{low:g} and more"


def _ppo(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any]) -> list[Panel]:
    note = _thin(stage)
    target = verdict["kl"]["target"] or run.kl_target(stage.name)
    level = (target, f"target {target:g}") if target else None
    return [
        *_goodhart(stage, run, verdict, note),
        *parts_panel(stage, note),
        Panel("kl", "Distance from the reference", f"The controller raises the coefficient while KL is above its target. {note}", "step", [
            Axis("KL, nats per sequence", [_line(stage, "kl/sequence", "KL")], level=level, from_zero=False),
            Axis("coefficient of the KL penalty", [_line(stage, "kl/coef", "", trend=False)]),
        ]),
        Panel("length", "Length", f"A reward model often prefers longer texts; length that climbs with the score is a warning. {note}", "step", [
            Axis("tokens in a completion", [_line(stage, "tokens/mean", "")]),
            Axis("share that ends by itself", [_line(stage, "tokens/eos_share", "")], percent=True),
        ]),
        Panel("agreement", "Do the reward and the judges agree?", f"Rank correlation over the completions of a step. A judge peaks where it crosses zero: from there on a higher reward means a worse text. {note}", "step", [
            Axis("rank correlation with the reward", [
                _line(stage, name + CORRELATION, name.removeprefix("monitor/"), colour) for name, colour in zip(judges_of(stage.events), _MONITOR_COLOURS, strict=False)
            ], level=(0.0, "none")),
        ]),
        Panel("variety", "Variety", f"Entropy near zero, or few distinct word pairs, means that the policy repeats itself. {note}", "step", [
            Axis("entropy, nats per token", [_line(stage, "policy/entropy", "")]),
            Axis("distinct word pairs", [_line(stage, "text/distinct_2", "")], percent=True),
        ]),
        Panel("update", "Size of the updates", f"Large values mean steps too big for their samples. {note}", "step", [
            Axis("tokens outside the clip range", [_line(stage, "policy/clip_share", "")], percent=True),
            Axis("KL from the sampling policy, nats per token", [_line(stage, "policy/approx_kl", "")]),
        ]),
        Panel("critic", "Critic", f"1 explains the returns fully, 0 no better than a constant. {note}", "step", [
            Axis("explained variance of the returns", [_line(stage, "value/explained_variance", "")], level=(0.0, "constant")),
            Axis("value loss", [_line(stage, "value/loss", "")]),
        ]),
        *time_panel(stage),
    ]  # fmt: skip


def _grpo(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any]) -> list[Panel]:
    return group_panels(stage, _thin(stage))


def _evaluate(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any]) -> list[Panel]:
    return attempts_panels(stage.evaluation or {})


def _goodhart(stage: StageRun, run: RunFolder, verdict: Mapping[str, Any], note: str) -> list[Panel]:
    """Proxy and judges against step and against sqrt(KL): in standard deviations of the before model when known."""
    monitors = sorted(judges_of(stage.events), key=lambda n: (n != "monitor/gold", n))
    names = ["reward/proxy", *monitors[: len(_MONITOR_COLOURS)]]
    if not len(series(stage.events, "reward/proxy")[0]):
        return []
    spread = {n: _spread(run, verdict, n.rpartition("/")[2]) for n in names}
    standard = all(spread.values())
    lines, curves = [], []
    steps_kl, kl = series(stage.events, "kl/sequence")
    root = dict(zip(steps_kl.tolist(), np.sqrt(np.maximum(kl, 0.0)).tolist(), strict=True))
    for name, colour in zip(names, (BLUE, *_MONITOR_COLOURS), strict=False):
        label = "reward model" if name == "reward/proxy" else name.removeprefix("monitor/")
        x, y = series(stage.events, name)
        if not len(y):
            continue
        if standard:
            y = (y - y[: max(1, min(3, len(y)))].mean()) / spread[name]
        lines.append(Line(x, y, label, colour))
        at = [(root[s], v) for s, v in zip(x.tolist(), y.tolist(), strict=True) if s in root]
        curves.append((at, label, colour))
    scatter = [line for at, label, colour in curves for line in _curve(at, label, colour)]
    held = _held_out(verdict, names[:2]) if standard else []
    if standard:
        what = "change, standard deviations of the before model"
        units = "Change since the first three steps, in standard deviations of the before model's scores."
        axes = [Axis(what, [*scatter, *held]), Axis(what, lines)]
    else:  # the spread is unknown, so each keeps its own units and scale
        units = "Raw scores: reward model on the left scale, the first judge on the right."
        second = [line for line in scatter if line.colour == ORANGE and not line.marks]
        axes = [
            Axis("score", [s for s in scatter if s.colour == BLUE], right=second[0] if second else None),
            Axis("score", lines[:1], right=lines[1] if len(lines) > 1 else None),
        ]
    kl_note = " Dots: steps; lines: means of equally many steps in order of KL." + (" Bars: held-out prompts after training, 95% interval." if held else "")
    trouble = "The reward model is what PPO trains on; the others never are. A rising reward model with a falling judge is over-optimisation."
    return [
        Panel("goodhart-kl", "Reward model and independent judges against KL", f"{trouble} {units}{kl_note}", "square root of KL to the reference", axes[:1]),
        Panel("goodhart-step", "The same against time", f"{units} {note}", "step", axes[1:]),
    ]


def _curve(at: list[tuple[float, float]], label: str, colour: str) -> list[Line]:
    """Points, and the means of up to eight groups of them in the order of KL."""
    if not at:
        return []
    at = sorted(at)
    groups = [g for g in np.array_split(np.array(at), min(8, max(1, len(at) // 4))) if len(g)]
    means = np.array([g.mean(axis=0) for g in groups])
    points = Line([x for x, _ in at], [y for _, y in at], "", colour, marks=".", trend=False)
    return [points, Line(means[:, 0], means[:, 1], label, colour, trend=False)]


def _spread(run: RunFolder, verdict: Mapping[str, Any], judge: str) -> float | None:
    """Standard deviation of a judge's scores of the before model's completions, from the evaluation."""
    values = [v for t in texts(run.evaluation, "before") if (v := score_of(t, judge)) is not None]
    if len(values) >= 10 and np.std(values) > 0:
        return float(np.std(values, ddof=1))
    change = verdict["judges"].get(judge) or {}
    mean, units = change.get("mean"), change.get("sd_units")
    return mean / units if mean and units and mean / units > 0 else None


def _held_out(verdict: Mapping[str, Any], names: list[str]) -> list[Line]:
    kl = verdict["kl"]["mean"]
    found = []
    for name, colour in zip(names, (BLUE, *_MONITOR_COLOURS), strict=False):
        change = verdict["judges"].get(name.rpartition("/")[2]) or {}
        mean, low, high = (change.get(k) for k in ("sd_units", "sd_low", "sd_high"))
        if kl is not None and kl >= 0 and mean is not None and low is not None and high is not None:
            found.append(Line([kl**0.5], [mean], "", colour, marks="o", trend=False, low=[low], high=[high]))
    return found
