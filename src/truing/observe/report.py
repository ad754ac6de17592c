"""The report: one self-contained HTML page, rebuilt from the run folder at any time.

Everything shown is treated as hostile text: it is escaped by the template, control and bidirectional characters are made
visible, and the page's policy forbids scripts, outside requests and any style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.disk import write_atomic
from truing.observe import side_by_side as beside
from truing.observe import verdict as verdicts
from truing.observe.folder import RunFolder, StageRun, read_run, read_samples
from truing.observe.metrics import TIMINGS, lookup
from truing.observe.monitor import series, values_of

HERE = Path(__file__).parent
SHOWN = 20
LONGEST = 2000
verdict = verdicts.verdict


def report(folder: str | Path) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    The page needs no network and no other file. It derives from the folder alone, so the same folder gives the same
    bytes; what is missing is said in it.

    Raises:
        DataError: the folder is missing or is no run folder.
        CheckpointError: the page cannot be written.
    """
    path = Path(folder) / "report.html"
    write_atomic(path, render(read_run(folder)).encode("utf-8", "replace"))
    return path


def render(run: RunFolder) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from truing.observe.figures import panels
    from truing.observe.svg import draw

    found = verdicts.judge(run)
    css = (HERE / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(visible=visible, short=short, signed=signed, seconds=seconds)
    views = run.compared()
    owner = {view.stages[0].name: (view, own) for view, own in zip(views.values(), found.get("runs", []), strict=True)}
    figures = {}
    for stage in run.stages:
        figures[stage.name] = [(p, Markup(draw(p))) for p in panels(stage, *owner.get(stage.name, (run, found)))]
    judged = [("", found, *_pairs(run, found["judge"]))] if not views else [(own["name"], own, *_pairs(view, own["judge"])) for view, own in zip(views.values(), found["runs"], strict=True)]
    together = beside.samples(views, found["judge"]) if views else []
    samples = any(rows for _, _, rows, _ in judged)
    columns = [view.stages[0].name for view in views.values()] or [s.name for s in beside.trained(run)]
    notes = found["notes"]
    return environment.get_template("report.html.jinja").render(
        run=run,
        verdict=found,
        css=Markup(css),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        figures=figures,
        judged=judged,
        together=_spread(together),
        shared=len(together),
        columns=list(views) or columns,
        settings=beside.settings(run, columns) if len(columns) > 1 else [],
        overlays=[(p, Markup(draw(p))) for p in beside.overlay(run, found["judge"])],
        training_samples=[] if samples else _training_samples(run, notes),
        sessions=[(stage.name, [_flat(values_of(e)) for e in stage.of_kind("session")]) for stage in run.stages if stage.of_kind("session")],
        phases=[(stage, *_phases(stage)) for stage in run.stages],
    )


def visible(text: Any, limit: int = LONGEST) -> str:
    """Text that cannot hide anything: control and format characters as ``[U+202E]``, cut after ``limit`` characters."""
    text = str(text)
    rest = len(text) - limit
    shown = "".join(c if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else f"[U+{ord(c):04X}]" for c in text[:limit])
    return shown + (f" ... ({rest} more characters)" if rest > 0 else "")


def short(value: Any) -> str:
    """A number for a table: three significant digits, or three decimals below 1; a dash when there is none."""
    if value is None:
        return "\u2013"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return visible(value, 200)
    size = abs(value)
    if isinstance(value, int) or 1000 <= size < 1e7:
        text = f"{value:,.0f}"
    elif size >= 1e7 or 0 < size < 1e-3:
        text = f"{value:.2g}"
    else:
        text = f"{value:#.3g}".rstrip(".") if size >= 1 else f"{value:.3f}"
    return "\u2212" + text[1:] if text.startswith("-") else text


def signed(value: Any) -> str:
    """`short`, with a plus before what is above zero."""
    return ("+" if isinstance(value, (int, float)) and value > 0 else "") + short(value)


def seconds(value: float | None) -> str:
    """``8 min 20 s``."""
    if value is None:
        return "\u2013"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _pairs(run: RunFolder, judge: str | None) -> tuple[list[dict[str, Any]], str]:
    """Before and after texts of about twenty prompts, and a sentence that says how they were picked."""
    found = []
    raw = (run.evaluation or {}).get("rows")
    for row in raw if isinstance(raw, list) else []:
        before, after = (
            ([t for t in side if isinstance(t, Mapping)] if isinstance(side := row.get(s), list) else [] for s in ("before", "after"))
            if isinstance(row, Mapping)
            else ([], [])
        )
        if before and after:
            pair = (verdicts.score_of(before[0], judge), verdicts.score_of(after[0], judge))
            change = pair[1] - pair[0] if pair[0] is not None and pair[1] is not None else None
            found.append({"prompt": row.get("prompt", ""), "before": before[0], "after": after[0], "change": change})
    if not found:
        return [], ""
    ranked = [r for r in found if r["change"] is not None]
    if not ranked:
        return _spread(found), f"{min(SHOWN, len(found))} of {len(found)} prompts, evenly spaced in the order of the evaluation; the first sample of each."
    ranked.sort(key=lambda r: (-r["change"], str(r["prompt"])))
    shown = _spread(ranked)
    better = sum(r["change"] > 0 for r in ranked)
    how = (
        f"from the largest rise to the largest fall, so the failures are here in proportion: the judge prefers the after text on {better} of all {len(ranked)}"
    )
    return (
        shown,
        f"Not picked by eye: all {len(ranked)} prompts were sorted by the change of the {judge} score of their first sample, "
        f"and {len(shown)} evenly spaced ones are shown, {how}.",
    )


def _spread(rows: list[Any]) -> list[Any]:
    """SHOWN of the rows, evenly spaced, the first and the last included."""
    if len(rows) <= SHOWN:
        return rows
    return [rows[round(i * (len(rows) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def _training_samples(run: RunFolder, notes: list[str]) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """Without an evaluation: the newest samples of each stage."""
    found = []
    for stage in run.stages:
        newest = read_samples(stage, notes)
        if newest:
            found.append((stage.name, newest[0], _spread(newest[1])))
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{prefix}{key}."))
        else:
            out[f"{prefix}{key}"] = value
    return out


def _phases(stage: StageRun) -> tuple[dict[str, float], float | None]:
    """Seconds of each phase summed over the stage, and its mean tokens per second."""
    names = sorted(n for n in TIMINGS if n.startswith("seconds/") and n != "seconds/step")
    sums = {lookup(n).name.removeprefix("seconds/"): float(series(stage.events, n, "timing")[1].sum()) for n in names}
    rates = series(stage.events, "tokens_per_second", "timing")[1]
    return {n: s for n, s in sums.items() if s > 0}, float(rates.mean()) if len(rates) else None
