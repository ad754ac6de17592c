"""Reinforcement learning with verifiable rewards: GRPO, RLOO and Dr. GRPO on tasks of reasoning-gym, and whether they taught the model or sharpened it.

A decoder of 170,000 weights is warmed up on worked answers until a quarter to a half of its answers are right, and then trained with nothing but the verifier's yes or no.
pass@k, the chance that one of k answers is right, tells two outcomes apart: where it rises for small k only, answers became likelier that the model could give before
(sharpened); where it rises for large k too, questions are solved that were out of reach (learned). Source: Shao et al. 2024 (arXiv 2402.03300); Yue et al. 2025 (arXiv 2504.13837).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from truing.config import Frozen
from truing.labs import verifiable_draw, verifiable_groups
from truing.labs.lab import Cell, Check, Findings, Table
from truing.labs.verifiable_runs import Measured, Study, study
from truing.labs.verifiable_world import TASKS
from truing.maths.stats import Interval

SEEDS = 3
METHODS: dict[str, str] = {"grpo": "GRPO", "rloo": "RLOO", "dr_grpo": "Dr. GRPO"}
ENOUGH = 0.15
WRONG = {"flipped": {"reward": "0 - verified()"}}


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "flipped", "groups"] = Field("main", description="flipped: a right answer costs; groups: how good a baseline G answers make")
    task: Literal["all", "palindrome_generation", "rotate_matrix", "spell_backward", "chain_sum"] = Field("all", description="one task, or all but chain_sum, which takes as long as the others together")
    method: Literal["all", "grpo", "rloo", "dr_grpo"] = Field("all", description="one method, or all; for main")
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = Field(None, description="rollouts of a run; null takes what each task needs, 200 or 500, and for flipped 50")
    batch: Annotated[int, Field(ge=4, le=65_536)] = Field(256, description="completions a rollout")
    group: Annotated[int, Field(ge=2, le=4096)] = Field(8, description="completions a prompt")
    until: Annotated[float, Field(gt=0, lt=1)] = Field(0.25, description="share of right answers at which the warm-up ends; a round that ends above twice of it, and above a half, is taken back")
    prompts: Annotated[int, Field(ge=1, le=100_000)] = Field(4000, description="questions of the reinforcement learning")
    heldout: Annotated[int, Field(ge=2, le=2000)] = Field(200, description="questions to measure on")
    samples: Annotated[int, Field(ge=1, le=4096)] = Field(64, description="answers to each of them")

    @model_validator(mode="after")
    def _whole(self) -> Options:
        if self.batch % self.group:
            raise ValueError(f"batch={self.batch} is not a multiple of group={self.group}; each group must be whole")
        return self

    @property
    def names(self) -> list[str]:
        return [name for name in TASKS if name != "chain_sum"] if self.task == "all" else [self.task]


EXPECTED = {
    "main": "on every task GRPO gains at least 15 points of held-out accuracy, RLOO and Dr. GRPO gain too, and more of it is sharpening than learning: pass@1 rises more than pass@64",
    "flipped": "with the reward's sign flipped the same runs unlearn: held-out accuracy falls on every task",
    "groups": "the variance of a group's mean reward is p (1 - p) / G: from 4 to 16 to 64 answers it falls fourfold each; fewer groups say nothing, p^G + (1 - p)^G of them",
}  # fmt: skip


def expectation(options: Options) -> str:
    return EXPECTED[options.exercise]


def run(options: Options, seeds: Sequence[int]) -> Findings:
    if options.exercise == "groups":
        return verifiable_groups.run(options.names, seeds, until=options.until, prompts=options.prompts, heldout=options.heldout)
    runs: Mapping[str, Mapping[str, Any]] = WRONG
    if options.exercise == "main":
        runs = {name: {"preset": name} for name in METHODS if options.method in ("all", name)}
    return findings(options, {name: Measured([once(options, name, seed, runs) for seed in seeds]) for name in options.names})


def once(options: Options, name: str, seed: int, runs: Mapping[str, Mapping[str, Any]]) -> Study:
    steps = options.steps or (TASKS[name].steps if options.exercise == "main" else 50)
    return study(name, seed, runs, samples=options.samples, prompts=options.prompts, heldout=options.heldout, until=options.until, steps=steps, batch_size=options.batch, group=options.group)


def findings(options: Options, measured: Mapping[str, Measured]) -> Findings:
    """Tables, checks and figures of what was measured."""
    tables = [_table(measured), _by_seed(measured)]
    if options.exercise == "flipped":
        checks = [_below(name, m) for name, m in measured.items()]
        return Findings(checks, tables, {"verifiable-flipped": verifiable_draw.curves(measured, {"flipped": "0 - verified()"}, "A right answer costs")}, _values(measured))
    names = {name: said for name, said in METHODS.items() if options.method in ("all", name)}
    checks = [_gains(name, m, method) for name, m in measured.items() for method in names]
    checks += [_sharpens(name, m, method) for name, m in measured.items() for method in names if method == next(iter(names))]
    figures = {
        "verifiable": verifiable_draw.curves(measured, names, "Held-out accuracy while training"),
        "verifiable-pass-at-k": verifiable_draw.passes(measured, names, "Learned or sharpened: pass@k before and after"),
    }
    return Findings(checks, tables, figures, _values(measured))


# -- checks and tables --------------------------------------------------------------------------------------------------


def _gains(name: str, m: Measured, method: str) -> Check:
    gain = m.gain(method)
    if method != "grpo":
        return Check(f"{name}: {METHODS[method]} gains", points(gain), gain.low > 0)
    return Check(f"{name}: GRPO gains at least {100 * ENOUGH:.0f} points of held-out accuracy", points(gain), gain.mean >= ENOUGH and gain.low > 0)


def _sharpens(name: str, m: Measured, method: str) -> Check:
    one, many = m.gain(method), m.gain(method, m.ks[-1])
    return Check(f"{name}: {METHODS[method]} raises pass@1 more than pass@{m.ks[-1]}", f"{points(one)} against {points(many)}: {m.kind(method)}", one.low > many.high)


def _below(name: str, m: Measured) -> Check:
    gain = m.gain("flipped")
    return Check(f"{name}: with the reward's sign flipped accuracy falls", points(gain), gain.high < 0)


def points(x: Interval) -> str:
    """A difference of shares in points.

    >>> points(Interval(0.25, 0.2, 0.301))
    '+25.0 [+20.0, +30.1]'
    """
    return f"{100 * x.mean:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def _table(measured: Mapping[str, Measured]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    first = next(iter(measured.values()))
    most = first.ks[-1]
    for name, m in measured.items():
        for label in m.studies[0].runs:
            rows.append((name, METHODS.get(label, label), m.before(), m.after(label), points(m.gain(label)), m.before(most), m.after(label, most), points(m.gain(label, most)), m.kind(label)))
    title = f"Held-out accuracy (pass@1) and pass@{most}, {len(first.studies)} seeds; gains in points"
    return Table(title, ("task", "method", "before", "after", "gain", f"pass@{most} before", "after", "gain", "it has"), rows)


def _by_seed(measured: Mapping[str, Measured]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, m in measured.items():
        for i, s in enumerate(m.studies):
            for label, r in s.runs.items():
                before, after = (float(m.passed(1, which)[i].mean()) for which in (None, label))
                rows.append((name, METHODS.get(label, label), s.seed, s.rounds, round(before, 3), round(after, 3), f"{100 * (after - before):+.1f}", round(r.seconds)))
    return Table("Seed by seed", ("task", "method", "seed", "rounds of warm-up", "before", "after", "gain", "seconds"), rows)


def _values(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Everything that the tables and figures are made of."""
    out: dict[str, Any] = {}
    for name, m in measured.items():
        curves = {label: [r.accuracy for r in (s.runs[label] for s in m.studies)] for label in m.studies[0].runs}
        out[name] = {
            "seeds": [s.seed for s in m.studies], "rounds": [s.rounds for s in m.studies], "samples": m.samples, "k": m.ks,
            "before": {"correct": [s.correct.astype(int).tolist() for s in m.studies], "pass": [m.before(k) for k in m.ks]},
            **{
                label: {
                    "at": m.studies[0].runs[label].at, "accuracy": curve, "correct": [s.runs[label].correct.astype(int).tolist() for s in m.studies],
                    "pass": [m.after(label, k) for k in m.ks], "gain": [m.gain(label, k) for k in m.ks], "seconds": [s.runs[label].seconds for s in m.studies],
                    "training": [[event["reward/proxy"] for event in s.runs[label].log] for s in m.studies],
                    "entropy": [[event.get("policy/entropy") for event in s.runs[label].log] for s in m.studies],
                }
                for label, curve in curves.items()
            },
        }  # fmt: skip
    return out
