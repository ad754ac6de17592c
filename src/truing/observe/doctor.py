"""The doctor: every metric against its healthy range, and the over-optimisation alarms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from truing.errors import ConfigError
from truing.observe.folder import RunFolder, StageRun, number, read_run
from truing.observe.gaming import gaming
from truing.observe.metrics import METRICS, lookup
from truing.observe.monitor import Finding, overoptimisation, series, values_of

FEWEST_LATE = 5
SEVERITIES = ("error", "warning", "info")


def doctor(folder: str | Path) -> list[Finding]:
    """Everything that looks wrong with a run, the worst first; an empty list is a clean bill.

    Each metric is held against the table of `metrics`, PPO also against `monitor.overoptimisation` and twice its KL
    target; what the run itself recorded as findings is repeated. Names start with the stage: ``ppo/policy/clip_share``.

    Raises:
        DataError: the folder is missing or is no run folder.
    """
    return examine(read_run(folder))


def examine(run: RunFolder) -> list[Finding]:
    """`doctor` for a run that was read already."""
    findings = []
    for stage in run.stages:
        found = [*_recorded(stage), *_non_finite(stage), *_ranges(stage)]
        if stage.method in ("ppo", "grpo"):
            found += overoptimisation(stage.events)
            found += gaming(stage.events)
            found += _kl(stage, run.kl_target(stage.name))
        findings += [Finding(f"{stage.name}/{f.name}", f.severity, f.message, f.step) for f in found]
    unique = {(f.name, f.message): f for f in findings}
    return sorted(unique.values(), key=lambda f: (SEVERITIES.index(f.severity), f.name))


def _recorded(stage: StageRun) -> list[Finding]:
    found = []
    for event in stage.of_kind("finding"):
        values = values_of(event)
        severity = values.get("severity")
        found.append(
            Finding(str(values.get("name", "finding")), severity if severity in SEVERITIES else "warning", str(values.get("message", "")), event["step"])
        )
    return found


def _non_finite(stage: StageRun) -> list[Finding]:
    places: dict[str, list[tuple[int, str]]] = {}
    for step, name, text in stage.non_finite():
        places.setdefault(name, []).append((step, text))
    return [
        Finding(
            name,
            "error",
            f"was not a finite number at {len(bad)} step{'s' * (len(bad) > 1)}, first {bad[0][1]} at step {bad[0][0]}; figures and means leave these out",
            bad[0][0],
        )
        for name, bad in places.items()
    ]


def _ranges(stage: StageRun) -> list[Finding]:
    logged = {n for e in stage.of_kind("metrics") for n in values_of(e)}
    at_the_end = {n for e in stage.of_kind("result") for n in values_of(e) if n in METRICS} - logged
    found = []
    for name in sorted(logged | at_the_end):
        try:
            healthy = lookup(name).healthy
        except ConfigError as error:
            found.append(Finding(name, "info", str(error)))
            continue
        steps, values = series(stage.events, name, "result" if name in at_the_end else "metrics")
        if healthy is None or not len(values):
            continue
        if healthy.when == "every":
            bad = [i for i, v in enumerate(values.tolist()) if v not in healthy]
            if bad:
                first = bad[0]
                often = f"{len(bad)} of {len(values)} steps"
                message = f"was {values[first]:.4g} at step {steps[first]} and outside its range ({healthy.range}) at {often}: {healthy.advice}"
                found.append(Finding(name, healthy.severity, message, int(steps[first])))
            continue
        late = values[-max(FEWEST_LATE, len(values) // 10) :]
        middle = float(np.median(late))
        if middle not in healthy:
            of = f" (median of the last {len(late)} values)" if len(late) > 1 else ""
            message = f"ended at {middle:.4g}{of}, outside its range ({healthy.range}): {healthy.advice}"
            found.append(Finding(name, healthy.severity, message, int(steps[-1])))
    return found


def _kl(stage: StageRun, target: float | None) -> list[Finding]:
    steps, values = series(stage.events, "kl/sequence")
    if number(target) is None or not target or len(values) < FEWEST_LATE:
        return []
    late = float(np.median(values[-max(FEWEST_LATE, len(values) // 10) :]))
    if late <= 2 * target:
        return []
    message = f"ended at {late:.3g} nats per sequence, more than twice its target of {target:g}: raise kl.coef, shorten kl.horizon or lower lr"
    return [Finding("kl/target", "warning", message, int(steps[-1]))]
