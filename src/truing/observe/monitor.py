"""Sanity of the texts, and the over-optimisation alarm.

Over-optimisation (Gao et al. 2023, 2210.10760): the proxy that is trained goes on rising while an independent judge
stops or falls. A policy can also buy reward with length (Singhal et al. 2023, 2310.03716) or by repeating itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from truing.errors import ConfigError
from truing.observe.metrics import CORRELATION

LENGTH_FACTOR = 1.5
"""Alarm when the mean length exceeds this multiple of the first steps' mean."""
CORRELATION_DROP = 0.2
"""Alarm when the rank correlation of reward and judge has fallen by more than this."""
FIRST = 5
"""Steps whose mean stands for the reference: the policy has hardly moved."""
RECENT = 10
"""Steps whose mean stands for now."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a person should know about a run: ``severity`` is info, warning or error; ``step`` where it was first seen."""

    name: str
    severity: Literal["info", "warning", "error"]
    message: str
    step: int | None = None

    def values(self) -> dict[str, Any]:
        """The ``values`` of a "finding" event."""
        return {k: v for k, v in asdict(self).items() if k != "step"}


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams divided by n-grams, over lowercased whitespace-separated words (Li et al. 2016, 1510.03055).

    N-grams do not cross texts. ``distinct_n(["a b a b"], 2)`` is 2/3: "a b", "b a", "a b". It falls as more text is
    counted, so only sets of about the same size compare. Without a single n-gram (every text shorter than n words)
    it is 0.0, the value of total collapse.

    Raises:
        ConfigError: n < 1.
    """
    if n < 1:
        raise ConfigError(f"distinct_n: n={n} must be at least 1")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def repetition(text: str, n: int = 2) -> float:
    """Share of the text's n-grams that repeat an earlier one: 0 none, near 1 a loop; 0.0 for a text shorter than n words.

    ``repetition("good film good film good film")`` is 3/5: of the five word pairs, three were seen before.

    Raises:
        ConfigError: n < 1.
    """
    if n < 1:
        raise ConfigError(f"repetition: n={n} must be at least 1")
    return 1.0 - distinct_n([text], n) if len(text.split()) >= n else 0.0


def values_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an event holds beside its kind and step, whether written flat or under the key ``values``."""
    inner = event.get("values")
    return inner if isinstance(inner, Mapping) else {k: v for k, v in event.items() if k not in ("kind", "step")}


def series(events: Iterable[Mapping[str, Any]], name: str, kind: str = "metrics") -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric, in step order, finite values only; of a step logged twice the last one counts."""
    found: dict[int, float] = {}
    for event in events:
        value = values_of(event).get(name) if event.get("kind") == kind else None
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[int(event["step"])] = float(value)
    steps = sorted(found)
    return np.array(steps, dtype=int), np.array([found[s] for s in steps], dtype=float)


def slope(steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Least-squares slope per step and its standard error; needs three points or more, at two different steps or more."""
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0:
        raise ConfigError(f"slope: {len(x)} points at {len(set(x.tolist()))} different steps do not define a slope with an error; give 3 or more")
    centred = x - x.mean()
    spread = float((centred**2).sum())
    b = float((centred * y).sum()) / spread
    residual = y - y.mean() - b * centred
    return b, math.sqrt(float((residual**2).sum()) / (len(x) - 2) / spread)


def judges_of(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ``monitor/<name>`` metrics that are judges' means, sorted: all but the correlations that belong to one of them."""
    names = {n for e in events if e.get("kind") == "metrics" for n in values_of(e) if n.startswith("monitor/")}
    return sorted(n for n in names if not (n.endswith(CORRELATION) and n.removesuffix(CORRELATION) in names))


def overoptimisation(events: Iterable[Mapping[str, Any]], window: int | None = None) -> list[Finding]:
    """The alarm: the proxy rises while a monitor does not, or ceases to rank the samples as the monitor does, or completions have grown long.

    *Slopes.* A window holds ``window`` steps (default: a quarter of the run, at least 10). The proxy *rises* when
    its least-squares slope exceeds two standard errors; a monitor *does not* when its slope is <= 0: a warning, and an error
    when it is below minus two standard errors. Either must hold at a quarter of a window of ends in a row (3 or more):
    without that patience noise alone sets off half of the healthy runs.

    *Ranks.* With ``monitor/<name>_correlation`` logged, a warning when its mean over 10 steps has fallen by more than 0.2
    from that of the first 5 (`widened` to their spread of rewards, when ``reward/score_std`` is logged), beyond two standard errors;
    and an error when it is no longer above zero. This comes first: along ``pi ~ ref * exp(reward / beta)`` the judge's
    mean has the derivative ``d E[judge] / d(1 / beta) = Cov(judge, reward)``, so the judge peaks where the two no longer
    go together, and the samples say so before the mean has turned.

    *Length.* The mean of 5 steps exceeds 1.5 times that of the first 5.

    Ranks and length use steps up to the alarm's own only: a run that is still going gives the same alarm as the finished one.
    The window of slopes is as long as the run makes it, because noise over few steps of a long run looks like a slope.

    Args:
        events: of one PPO stage, with ``reward/proxy``, any ``monitor/<name>`` and ``tokens/mean``.
        window: steps in a window of slopes, 3 or more.

    Returns:
        For each monitor at most one finding about slopes and two about ranks, and one for length, with the step at which the alarm went off.
    """
    if window is not None and window < 3:
        raise ConfigError(f"overoptimisation: window={window} is too short for a slope; use 3 or more")
    rows = [e for e in events if e.get("kind") == "metrics"]
    size = window or max(10, len(series(rows, "reward/proxy")[0]) // 4)
    found = [finding for name in judges_of(rows) for finding in (_diverges(rows, name, size), *_disagrees(rows, name))]
    return [f for f in (*found, _longer(*series(rows, "tokens/mean"))) if f]


def _diverges(rows: list[Mapping[str, Any]], name: str, size: int) -> Finding | None:
    proxy_at = dict(zip(*(a.tolist() for a in series(rows, "reward/proxy")), strict=True))
    steps, gold = series(rows, name)
    both = [(s, proxy_at[s], g) for s, g in zip(steps.tolist(), gold.tolist(), strict=True) if s in proxy_at]
    patience = max(3, size // 4)
    flat = falling = 0
    warning = None
    for end in range(size, len(both) + 1):
        x, p, g = (list(column) for column in zip(*both[end - size : end], strict=True))
        up, up_error = slope(x, p)
        side, side_error = slope(x, g)
        rises = up > 2 * up_error
        flat = flat + 1 if rises and side <= 0 else 0
        falling = falling + 1 if rises and side < -2 * side_error else 0
        if max(flat, falling) < patience:
            continue
        span = x[-1] - x[0]
        what = f"fell by {-side * span:.3g}" if falling >= patience else "did not rise"
        message = (
            f"from step {x[0]} to {x[-1]} the proxy rose by {up * span:.3g} while {name} {what}: the reward model is being exploited. "
            "Stop at an earlier checkpoint, raise the KL coefficient, or train the reward model on these samples"
        )
        if falling >= patience:
            return Finding(f"overoptimisation/{name}", "error", message, x[-1])
        warning = warning or Finding(f"overoptimisation/{name}", "warning", message, x[-1])
    return warning


def _disagrees(rows: list[Mapping[str, Any]], name: str) -> list[Finding]:
    steps, rank = series(rows, name + CORRELATION)
    if len(rank) < FIRST + RECENT:
        return []
    spread_at = dict(zip(*(a.tolist() for a in series(rows, "reward/score_std")), strict=True))
    spread = np.array([spread_at.get(s, math.nan) for s in steps.tolist()])
    start, start_error = _mean(rank[:FIRST])
    found: dict[str, Finding] = {}
    for end in range(FIRST + RECENT, len(rank) + 1):
        recent = slice(end - RECENT, end)
        now, error = _mean(rank[recent])
        narrower = float(spread[:FIRST].mean() / spread[recent].mean()) if spread[recent].mean() > 0 else math.nan
        fair = widened(now, narrower) if narrower > 1 else now
        before = f"over the completions of a step, the rank correlation of the reward with {name} was {start:.2f} at first and is {now:.2f} by step {steps[end - 1]}"
        remedy = "raise the KL coefficient, or train the reward model on these samples"
        if "lost" not in found and now <= 0 and start > 2 * start_error:
            message = f"{before}: a higher reward no longer means a better text. Stop at an earlier checkpoint, {remedy}"
            found["lost"] = Finding(f"overoptimisation/{name}{CORRELATION}", "error", message, int(steps[end - 1]))
        if "fallen" not in found and start - fair - CORRELATION_DROP > 2 * math.hypot(start_error, error):
            at = f" ({fair:.2f} at the spread of rewards there was at first)" if fair != now else ""
            message = f"{before}{at}: the reward says less about quality than it did. Watch the judge, {remedy}"
            found["fallen"] = Finding(f"overoptimisation/{name}{CORRELATION}", "warning", message, int(steps[end - 1]))
    return [found[key] for key in ("fallen", "lost") if key in found]


def widened(correlation: float, factor: float) -> float:
    """The correlation there would be if one variable spread ``factor`` times as wide and the line through the points and the scatter about it stayed.

    ``r k / sqrt(1 - r^2 + r^2 k^2)``. A policy that has found good texts draws rewards from a narrower range, and any noisy judge
    then correlates less with them although nothing was exploited. Source: Thorndike 1949, case 2.

    >>> round(widened(0.6, 4 / 3), 6)  # 0.8 / sqrt(0.64 + 0.64)
    0.707107
    """
    return correlation * factor / math.sqrt(1 - correlation**2 + (correlation * factor) ** 2)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error, from the scatter of the steps."""
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def _longer(steps: np.ndarray, tokens: np.ndarray) -> Finding | None:
    if len(steps) <= FIRST:
        return None
    start = float(tokens[:FIRST].mean())
    for end in range(2 * FIRST, len(steps) + 1):
        now = float(tokens[end - FIRST : end].mean())
        if start > 0 and now > LENGTH_FACTOR * start:
            message = (
                f"completions have grown from {start:.3g} to {now:.3g} tokens ({now / start:.2f} times) by step {steps[end - 1]}: "
                "part of the reward is bought with length. Compare scores at equal length, or penalise excess tokens"
            )
            return Finding("overoptimisation/length", "warning", message, int(steps[end - 1]))
    return None
