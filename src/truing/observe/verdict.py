"""The verdict: did it work? One sentence with its interval, and the numbers it rests on.

The judge is independent: its scores were never trained on; or it checks answers, and prompts that were held out are enough. It is the score that the evaluation names (``verdict_score``),
else the one called "gold", else the first one beside the proxy. "It worked" needs the judge's 95% interval above zero and none of the caveats below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from truing.observe.doctor import examine
from truing.observe.folder import RunFolder, number, read_run
from truing.observe.monitor import judges_of, series, values_of

LENGTHS = (0.6, 1.5)
"""Mean length over the before model's outside this range makes scores hard to compare (Singhal et al. 2023)."""
DISTINCT_FLOOR = 0.5
"""Distinct-n below this multiple of the before model's counts as collapse into repetition."""
CORRELATION_DROP = 0.2
"""Rank correlation of proxy and judge that fell by more: the proxy no longer measures what the judge does."""
INTERVAL = ("mean", "low", "high")
CHANGE = (*INTERVAL, "sd_units", "sd_low", "sd_high")


def verdict(folder: str | Path) -> dict[str, Any]:
    """What `truing report RUN --json` prints: the sentence and its numbers, as plain JSON values (a missing one is None).

    Keys: ``run``, ``verdict`` (the sentence; ``headline`` is it without the caveats), ``worked`` (True, False, or None when nothing can be said), ``caveats``,
    ``judge`` (its name), ``judges`` (name -> before, after, mean, low, high, sd_units, sd_low, sd_high; ``proxy`` is
    among them), ``gold`` and ``proxy`` (the same entries again), ``win_rate``, ``kl`` (nats per sequence), ``length``,
    ``eos_share``, ``distinct_1``, ``distinct_2``, ``proxy_judge_correlation`` (Spearman over the samples, before and
    after), ``reward_accuracy``, ``criteria``, ``seconds`` (stage -> s, and total), ``memory_peak_mib``, ``prompts``,
    ``samples_per_prompt``, ``verified`` (the judge checks answers: its score is the share of right ones), ``findings``, ``notes``.

    A pipeline that compared several models has these numbers for each in ``runs``, a list of such records with a ``name``;
    those of the whole are then None or empty, ``verdict`` and ``headline`` say all of it name by name, and ``worked`` is
    True when every run worked, False when none did, and None otherwise. For a single comparison there is no key ``runs``.

    Raises:
        DataError: the folder is missing or is no run folder.
    """
    return judge(read_run(folder))


def judge(run: RunFolder) -> dict[str, Any]:
    """`verdict` for a run that was read already."""
    views = run.compared()
    return _several(run, views) if views else _single(run)


def _several(run: RunFolder, views: Mapping[str, RunFolder]) -> dict[str, Any]:
    found = [{"name": name, **_single(view)} for name, view in views.items()]
    judges = {f["judge"] for f in found}
    every = {f["worked"] for f in found}
    whole = _single(run)
    return {
        **whole,
        "judge": judges.pop() if len(judges) == 1 else None,
        "reward_accuracy": next((f["reward_accuracy"] for f in found if f["reward_accuracy"]), None),
        "memory_peak_mib": max((m for f in (whole, *found) if (m := f["memory_peak_mib"]) is not None), default=None),
        "worked": every.pop() if len(every) == 1 else None,
        "headline": " ".join(f"{f['name']}: {f['headline']}" for f in found),
        "verdict": " ".join(f"{f['name']}: {f['verdict']}" for f in found),
        "notes": [*run.notes, *(f"{f['name']}: {note}" for f in found for note in f["notes"])],
        "runs": found,
    }


def _single(run: RunFolder) -> dict[str, Any]:
    notes = list(run.notes)
    data = _Reader(run.evaluation, notes)
    judges = _judges(data)
    chosen = data.get("verdict_score", optional=True)
    name = next((n for n in (chosen, "gold", *judges) if isinstance(n, str) and n in judges and n != "proxy"), None)
    out: dict[str, Any] = {
        "run": run.name,
        "judge": name,
        "judges": judges,
        "gold": judges.get(name) if name else None,
        "proxy": judges.get("proxy"),
        "win_rate": {n: data.numbers("win_rate", n, keys=INTERVAL) for n in data.mapping("win_rate", optional=True)},
        "kl": data.numbers("kl_sequence", keys=(*INTERVAL, "target")),
        "length": {**data.pair("tokens_mean"), "ratio": data.number("length_ratio")},
        **{key: data.pair(key) for key in ("eos_share", "distinct_1", "distinct_2")},
        "proxy_judge_correlation": _correlation(run.evaluation, name),
        "reward_accuracy": _finite(data.mapping("reward_accuracy", optional=True)) or None,
        "criteria": _criteria(data),
        "verified": name is not None and name in data.mapping("pass_at", optional=True),
        "prompts": data.number("prompts"),
        "samples_per_prompt": data.number("samples_per_prompt"),
        "seconds": _seconds(run, data),
        "memory_peak_mib": _memory(run),
        "findings": [{"name": f.name, "severity": f.severity, "message": f.message, "step": f.step} for f in examine(run)],
        "notes": notes,
    }
    out["caveats"] = _caveats(out)
    out["worked"], out["headline"] = _headline(out, run)
    joined = "; and ".join(out["caveats"])
    joint = "; but " if out["headline"].startswith("It worked") else "; "
    out["verdict"] = out["headline"].removesuffix(".") + joint + joined + "." if joined else out["headline"]
    return out


class _Reader:
    """Lenient access to evaluation.json: what is missing or no finite number is None, and noted once."""

    def __init__(self, data: dict[str, Any] | None, notes: list[str]) -> None:
        self.data, self.notes = data, notes

    def get(self, *path: str, optional: bool = False) -> Any:
        node: Any = self.data
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is None and self.data is not None and not optional:
            self._note(f"evaluation.json has no value {'.'.join(path)}")
        return node

    def number(self, *path: str, optional: bool = False) -> float | None:
        value = self.get(*path, optional=optional)
        if value is not None and number(value) is None:
            self._note(f"evaluation.json: {'.'.join(path)}={str(value)[:40]!r} is not a finite number")
        return number(value)

    def mapping(self, *path: str, optional: bool = False) -> dict[str, Any]:
        value = self.get(*path, optional=optional)
        if value is not None and not isinstance(value, Mapping):
            self._note(f"evaluation.json: {'.'.join(path)} is a {type(value).__name__}, not an object")
        return dict(value) if isinstance(value, Mapping) else {}

    def numbers(self, *path: str, keys: tuple[str, ...]) -> dict[str, float | None]:
        return {key: self.number(*path, key, optional=key == "target") for key in keys}

    def pair(self, key: str) -> dict[str, float | None]:
        return {"before": self.number("before", key), "after": self.number("after", key)}

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _judges(data: _Reader) -> dict[str, dict[str, float | None]]:
    names = {**data.mapping("difference"), **data.mapping("after", "scores")}
    return {
        n: {"before": data.number("before", "scores", n), "after": data.number("after", "scores", n), **data.numbers("difference", n, keys=CHANGE)}
        for n in names
    }


def _criteria(data: _Reader) -> list[dict[str, Any]]:
    rows = data.get("criteria", optional=True)
    if rows is None:
        return []
    if not isinstance(rows, list):
        data.notes.append(f"evaluation.json: criteria is a {type(rows).__name__}, not a list")
        return []
    found = []
    for i, row in enumerate(rows):
        if isinstance(row, Mapping) and "name" in row and isinstance(row.get("holds"), bool):
            found.append(_finite({k: row.get(k) for k in ("name", "measured", "threshold", "holds")}))
        else:
            data.notes.append(f"evaluation.json: criteria[{i}] needs a name and holds (true or false)")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def texts(evaluation: Mapping[str, Any] | None, side: str) -> list[Mapping[str, Any]]:
    """Every completion of one side ("before" or "after") of the evaluation's rows; malformed ones are left out."""
    rows = (evaluation or {}).get("rows")
    found = []
    for row in rows if isinstance(rows, list) else []:
        items = row.get(side) if isinstance(row, Mapping) else None
        found += [t for t in items if isinstance(t, Mapping)] if isinstance(items, list) else []
    return found


def score_of(text: Mapping[str, Any], name: str | None) -> float | None:
    """The score that one judge gave one completion."""
    scores = text.get("scores")
    return number(scores.get(name)) if isinstance(scores, Mapping) else None


def _correlation(evaluation: Mapping[str, Any] | None, name: str | None) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for side in ("before", "after"):
        both = [(p, g) for t in texts(evaluation, side) if (p := score_of(t, "proxy")) is not None and (g := score_of(t, name)) is not None]
        out[side] = None
        if len(both) >= 10 and all(len(set(column)) > 1 for column in zip(*both, strict=True)):
            from scipy.stats import spearmanr

            out[side] = float(spearmanr([p for p, _ in both], [g for _, g in both]).statistic)
    return out


def _seconds(run: RunFolder, data: _Reader) -> dict[str, float | None]:
    """Seconds of each stage: what it says itself when complete, else the sum of its steps."""
    out: dict[str, float | None] = {}
    for stage in run.stages:
        own = number((stage.done or {}).get("seconds"))
        steps = series(stage.events, "seconds/step", "timing")[1]
        out[stage.name] = own if own is not None else float(steps.sum()) if len(steps) else None
    total = data.number("seconds_total", optional=True)
    out["total"] = total if total is not None else math.fsum(v for v in out.values() if v is not None) or None
    return out


def _memory(run: RunFolder) -> float | None:
    seen = [number((run.evaluation or {}).get("memory_peak_mib"))]
    for stage in run.stages:
        seen.append(number((stage.done or {}).get("peak_mib")))
        seen += [number(values_of(e).get("memory/peak_mib")) for e in stage.of_kind("timing")]
    return max((v for v in seen if v is not None), default=None)


def _rose(change: Mapping[str, float | None] | None) -> bool:
    """Whether the whole interval lies above zero."""
    return change is not None and (change["low"] or 0.0) > 0.0


def _caveats(out: Mapping[str, Any]) -> list[str]:
    """Reasons not to say "it worked" although the judge rose, each as a clause."""
    found = []
    gold, proxy = out["gold"], out["proxy"]
    if gold and _rose(proxy) and gold["low"] is not None and not _rose(gold):
        end = "fell" if (gold["high"] or 0.0) < 0 else "did not"
        found.append(f"the reward model's own score rose {_amount(proxy)}, while the independent judge {end}: the reward model was exploited")
    for key, words in (("distinct_2", "word pairs"), ("distinct_1", "words")) if not out["verified"] else ():
        before, after = out[key]["before"], out[key]["after"]
        if before and after is not None and after < DISTINCT_FLOOR * before:
            found.append(f"the texts collapsed into repetition: distinct {words} fell from {before:.2f} to {after:.2f}")
            break
    ratio = out["length"]["ratio"]
    if ratio is not None and not out["verified"] and not LENGTHS[0] <= ratio <= LENGTHS[1]:
        found.append(f"completions became {ratio:.2f} times as long, so part of the change may be length alone")
    kl = out["kl"]
    if kl["mean"] is not None and kl["target"] and kl["mean"] > 2 * kl["target"]:
        found.append(f"KL {kl['mean']:.3g} is more than twice its target of {kl['target']:g}")
    rank = out["proxy_judge_correlation"]
    if rank["before"] is not None and rank["after"] is not None and rank["before"] - rank["after"] > CORRELATION_DROP:
        found.append(
            f"the rank correlation of the reward model with the judge fell from {rank['before']:.2f} to {rank['after']:.2f}, "
            "so its score says less about quality than it did"
        )
    failed = [str(c["name"]) for c in out["criteria"] if not c["holds"]]
    if failed:
        found.append(f"{len(failed)} of {len(out['criteria'])} criteria failed ({', '.join(failed)})")
    return found


def _amount(change: Mapping[str, float | None]) -> str:
    """``by 0.82 standard deviations of the before model (95% interval 0.70 to 0.94)``, in the judge's own units when its spread is unknown."""
    sd = change["sd_units"] is not None
    mean, low, high = (change[k] for k in (("sd_units", "sd_low", "sd_high") if sd else INTERVAL))
    if mean is None:
        return "by an unknown amount"
    unit = "standard deviations of the before model" if sd else "points"
    return f"by {mean:.2f} {unit}" + (f" (95% interval {low:.2f} to {high:.2f})" if low is not None and high is not None else " (no interval recorded)")


def _headline(out: Mapping[str, Any], run: RunFolder) -> tuple[bool | None, str]:
    gold, caveats = out["gold"], out["caveats"]
    if run.evaluation is None:
        return None, "No verdict yet: the models were not compared on held-out prompts." + _so_far(run)
    if gold is None:
        moved = f" The reward model's own score moved {_amount(out['proxy'])}, which says nothing about true quality." if out["proxy"] else ""
        return None, "No verdict: no independent judge scored this run." + moved
    if gold["mean"] is None or gold["low"] is None or gold["high"] is None:
        return None, f"No verdict: evaluation.json lacks the change of {out['judge']} or its interval, so chance cannot be ruled out."
    on = f"on {out['prompts']:.0f} held-out prompts " if out["prompts"] else ""
    who = f"the independent {out['judge']} judge"
    ratio, kl = out["length"]["ratio"], out["kl"]
    at = f", at {kl['mean']:.3g} nats of KL per sequence" + (f" (target {kl['target']:g})" if kl["target"] else "") if kl["mean"] is not None else ""
    at += f", with completions {ratio:.2f} times as long" if ratio is not None else ""
    if out["verified"]:
        return _of_answers(out, gold, caveats, f"{on}the share of right answers ({out['judge']})", at)
    if gold["low"] > 0:
        return not caveats, f"{'It worked only in part' if caveats else 'It worked'}: {on}{who} rose {_amount(gold)}{at}."
    what = "fell" if gold["high"] < 0 else "did not clearly change"
    return False, f"It did NOT work: {on}{who} {what}, {_amount(gold).replace('by ', 'a change of ', 1)}{at}."


def _of_answers(out: Mapping[str, Any], gold: Mapping[str, Any], caveats: list[str], who: str, at: str) -> tuple[bool, str]:
    """The sentence about a score that is checked, not judged: shares, and percentage points."""
    points = f"{100 * gold['mean']:+.0f} points (95% interval {100 * gold['low']:+.0f} to {100 * gold['high']:+.0f})"
    moved = f"from {gold['before']:.0%} to {gold['after']:.0%}, {points}{at}" if gold["before"] is not None and gold["after"] is not None else f"{points}{at}"
    if gold["low"] > 0:
        return not caveats, f"{'It worked only in part' if caveats else 'It worked'}: {who} rose {moved}."
    return False, f"It did NOT work: {who} {'fell' if gold['high'] < 0 else 'did not clearly change'}, {moved}."


def _so_far(run: RunFolder) -> str:
    """What training shows without an evaluation: first and last tenth of the proxy and the monitors."""
    said = []
    for stage in run.stages:
        names = ["reward/proxy", *judges_of(stage.events)]
        for name in names if stage.method in ("ppo", "grpo") else []:
            values = series(stage.events, name)[1]
            if len(values) >= 2:
                tenth = max(1, len(values) // 10)
                said.append(f"{name} went from {np.mean(values[:tenth]):.3g} to {np.mean(values[-tenth:]):.3g}")
    return f" On the training prompts so far, {' and '.join(said)}." if said else ""
