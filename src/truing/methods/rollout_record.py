"""What a step writes down of its completions, whatever learns from them: metrics, warnings and timings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from truing.config import GRPO, PPO, Sampling
from truing.learn.run import Run
from truing.methods.completions import Batch
from truing.observe.monitor import Finding, distinct_n, repetition
from truing.rewards.normalise import Normalised
from truing.types import Rollout, Score


def of_rollout(batch: Batch, scores: Sequence[Score], normalised: Normalised, monitored: Mapping[str, Sequence[Score]]) -> dict[str, float]:
    """The metrics of scored completions; `observe/metrics.py` defines each."""
    rollout, n = batch.rollout, len(batch)
    lengths = rollout.lengths_B.float()
    worth = torch.tensor([s.value for s in scores], dtype=torch.float64)
    parts = dict.fromkeys(name for s in scores for name in s.parts)
    return {
        "reward/proxy": float(worth.mean()),
        "reward/score_std": float((worth - worth[0]).std()) if n > 1 else 0.0,  # from the first, so that equal scores give exactly 0
        "reward/failed_share": len(batch.failed) / (n + len(batch.failed)),
        "reward/clipped_share": normalised.clipped_share,
        "reward/normaliser_mean": normalised.mean,
        "reward/normaliser_std": normalised.std,
        **{f"part/{name}": _mean_of([s.parts[name] for s in scores if name in s.parts]) for name in parts},
        **{f"monitor/{name}": mean for name, found in monitored.items() if (mean := _mean(found)) is not None},
        **{f"monitor/{name}_correlation": rank for name, found in monitored.items() if (rank := _correlation(scores, found)) is not None},
        "tokens/mean": float(lengths.sum()) / n,
        "tokens/std": float(lengths.std()) if n > 1 else 0.0,
        "tokens/eos_share": float(rollout.finished_B.float().mean()),
        "tokens/truncated_share": float((~rollout.finished_B).float().mean()),
        "text/repetition": sum(map(repetition, batch.texts.texts)) / n,
        **({"text/distinct_2": distinct_n(batch.texts.texts, 2)} if any(len(t.split()) > 1 for t in batch.texts.texts) else {}),  # one word is no pair
    }


def of_sampler(away_M: Tensor, sampling: Sampling) -> dict[str, float]:
    """How far the trainer's log-probabilities lie above the sampler's: ``away`` = log pi - log mu of each trained token.

    Under a truncation mu = pi / (what it kept), so log pi - log mu is the logarithm of what was kept, at most 0: only what lies above is
    a mismatch of the two programs.
    """
    if not sampling.truncates:
        return {"sampler/mismatch": float(away_M.abs().mean())}
    return {"sampler/mismatch": float(away_M.clamp(min=0).mean()), "sampler/kept": float(away_M.exp().mean())}


def truncated(values: Mapping[str, float], config: PPO | GRPO) -> list[Finding]:
    """What training on a truncated sample means, said once."""
    sampling = config.sampling
    if not sampling.truncates or "sampler/kept" not in values:
        return []
    which = ", ".join(f"{name}={value:g}" for name, value in sampling.model_dump(exclude_defaults=True, exclude={"stop"}).items())
    weight = "nothing corrects for that (sampler_cap: null)" if config.sampler_cap is None else "each token's loss has that weight (sampler_cap)"
    message = (
        f"{which}: completions are drawn from {values['sampler/kept']:.0%} of the policy's probability (sampler/kept) and {weight}; "
        "tokens outside are never tried, and kl/* are means over what was drawn; leave sampling out to train on the policy's own samples"
    )
    return [Finding("sampler/truncated", "warning", message)]


def warn(run: Run, step: int, values: Mapping[str, float], batch: Batch, monitored: Mapping[str, Sequence[Score]], told: Sequence[str], more: Sequence[Finding] = ()) -> list[str]:
    """Say at once, and once, what a person should not have to find in the report; returns everything that has been told by now."""
    found = {finding.name: finding.message for finding in more}
    if values["reward/score_std"] == 0 and step == 1 and len(batch) > 1:
        found["reward/equal"] = f"all rewards of the first rollout are {values['reward/proxy']:.4g}: nothing can be learned from equal rewards; look at samples/ and at the reward"
    if batch.failed:
        first = batch.failed[0]
        found["reward/failed"] = f"{len(batch.failed)} of {len(batch.failed) + len(batch)} rewards failed, the first with {first['status']}: {first['reason']}; they are left out, see samples/"
    for name, scores in monitored.items():
        bad = [s for s in scores if not s.status.usable]
        if bad:
            found[f"monitor/{name}"] = f"monitor {name} failed on {len(bad)} of {len(scores)} completions, the first with {bad[0].status.value}: {next(iter(bad[0].parts), '')}"
    for key, message in found.items():
        if key not in told:
            run.log("finding", step, Finding(key, "warning", message, step).values())
            if run.progress:
                run.progress.note(message)
    return sorted({*told, *found})


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"seconds/{name}"], self.last = self.laps.get(f"seconds/{name}", 0.0) + now - self.last, now

    def phases(self, rollout: Rollout) -> dict[str, float]:
        return {**self.laps, "tokens_per_second": float(rollout.lengths_B.sum()) / (time.perf_counter() - self.start)}


def _correlation(scores: Sequence[Score], judged: Sequence[Score]) -> float | None:
    """Spearman's rank correlation of the reward with a monitor over the completions that both could score; None where one is constant."""
    from scipy.stats import spearmanr

    pairs = [(s.value, j.value) for s, j in zip(scores, judged, strict=True) if j.status.usable]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean(scores: Sequence[Score]) -> float | None:
    usable = [s.value for s in scores if s.status.usable]
    return sum(usable) / len(usable) if usable else None
