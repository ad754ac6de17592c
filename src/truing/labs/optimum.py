"""Does PPO reach the policy that it should? A language so small that the answer is known, for every place of the divergence.

What is maximised is ``E[r] - coef * KL(pi || ref)``, and over *all* policies its maximum is ``pi* = ref * exp(r / coef) / Z``. Sign or size of the
divergence, a mask, the place of the score, an advantage or a ratio that is wrong moves the end elsewhere; the lab measures how far from pi* a run of the pipeline's own stage ends,
by writing down every completion. Source: Korbak et al. 2022 (arXiv 2205.11275); Rafailov et al. 2023 (arXiv 2305.18290), equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from truing.config import KL, Frozen, Lora
from truing.labs import optimum_draw
from truing.labs.lab import Cell, Check, Findings, Table
from truing.labs.optimum_loop import Trained, by_groups, by_hand, by_stage, not_scaled, one_late, own_step_only
from truing.labs.optimum_world import World, measure, world
from truing.labs.tabular import enough, over_seeds, said

SEEDS = 3
PLACES: dict[str, str] = {"reward": "k1 in the reward", "loss_k2": "k2 in the loss", "loss_k3": "k3 in the loss"}
NEAR, FAR = 0.05, 0.15
SLOW = 0.15  # where 400 single updates are not the end of the road
TIMES = 10  # how often a run is measured

# What is changed, in words -> the options of the stage
VARIANTS: dict[str, dict[str, Any]] = {
    "temperature 0.7": {"temperature": 0.7},
    "temperature 0.7, k3 in the loss": {"temperature": 0.7, "place": "loss_k3"},
    "LoRA of rank 16": {"lora": Lora(rank=16, alpha=32.0), "lr": 1e-2},
    "value head on the policy": {"value": "shared"},
    "one update a rollout": {"epochs": 1, "minibatches": 1},
    "no penalty for being cut off": {"scores": {"missing_eos": None, "timeout": None}},
}
# What is wrong, in words -> where the divergence is, and the step that is
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "k2 in the loss, of each token alone": ("loss_k2", {"change": own_step_only}),
    "k3 in the loss, of each token alone": ("loss_k3", {"change": own_step_only}),
    "k2 in the loss, beside whitened advantages": ("loss_k2", {"change": not_scaled}),
    "the divergence with the other sign": ("reward", {"sign": -1.0}),
    "the score one place after the last token": ("reward", {"change": one_late}),
}
# A row of the group methods, in words -> its settings and the place of its divergence. Without a critic the gradient is noisier, so runs
# are twice as long as PPO's, and one with a single update a rollout (steps: 4) four times.
_CLIPPED = {"ratio": "token", "clip": "surrogate", "clip_low": 0.2, "clip_high": 0.2}
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "RLOO, one plain update a rollout": ("reward", {"preset": "rloo", "epochs": 1, "minibatches": 1, "lr": 1e-2, "steps": 4}),
    "RLOO, clipped": ("reward", {"preset": "rloo", **_CLIPPED}),
    "GRPO centred, k2 in the loss": ("loss_k2", {"preset": "dr_grpo"}),
    "GRPO centred, k3 in the loss": ("loss_k3", {"preset": "dr_grpo"}),
    "REINFORCE++": ("reward", {"preset": "reinforce++"}),
}
AS_WRITTEN = {
    "GRPO as written: over the spread, k3 of each token": ("token_k3", {"preset": "grpo"}),
    "GRPO centred, k3 of each token": ("token_k3", {"preset": "dr_grpo"}),
}


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "variants", "groups", "wrong"] = Field("main", description="variants: other settings that must reach the same optimum; groups: the critic-free methods; wrong: steps made wrong that must miss it")
    words: Annotated[int, Field(ge=2, le=4)] = Field(3, description="words of the language, beside the end")
    longest: Annotated[int, Field(ge=2, le=4)] = Field(3, description="tokens after which a completion is cut off")
    coef: Annotated[float, Field(ge=0.1, le=2)] = Field(0.3, description="reward per nat; rewards lie between -1 and 1")
    steps: Annotated[int, Field(ge=2, le=10_000)] = Field(100, description="rollouts of each run")
    batch: Annotated[int, Field(ge=16, le=65_536)] = Field(512, description="completions a rollout")

    @model_validator(mode="after")
    def _whole(self) -> Options:
        if self.batch % 4:
            raise ValueError(f"batch={self.batch} is not a multiple of 4, the minibatches of a rollout; use one")
        return self

    @property
    def every(self) -> int:
        """Rollouts between two measurements of a run."""
        return max(1, self.steps // TIMES)


EXPECTED = {
    "main": "wherever the divergence stands, PPO ends at ref * exp(r / coef) / Z: within 0.05 of it in total variation, with its reward and its divergence",
    "variants": "another temperature, LoRA, a shared value head, one update a rollout, no price for being cut off: each has a closed form of its own, and is within 0.05 of it",
    "groups": "RLOO, GRPO that is only centred, and REINFORCE++ end within 0.05 of the same optimum without a value model (plain RLOO with a single update a rollout is still on its way, within 0.15); GRPO as its paper writes it, over each group's spread and with a divergence of single tokens, ends elsewhere",
    "wrong": "one step made wrong, and the run ends elsewhere, more than 0.15 away: a divergence of single tokens, one that is not scaled with the advantages, the other sign, a score that lands on padding",
}  # fmt: skip


def expectation(options: Options) -> str:
    return EXPECTED[options.exercise]


def run(options: Options, seeds: Sequence[int]) -> Findings:
    enough("optimum", seeds)
    return {"main": main, "variants": variants, "groups": groups, "wrong": wrong}[options.exercise](options, seeds)


def trained(options: Options, seed: int, train: Callable[[World, int], Trained], place: str = "reward", **changes: Any) -> Trained:
    """One run in a world of its own."""
    stage = {"steps": options.steps, "batch_size": options.batch, "save_every": options.every, "kl": KL(coef=options.coef, target=None, place=place), **changes}
    with world(seed, words=options.words, longest=options.longest, **stage) as w:
        return train(w, seed)


# -- main ---------------------------------------------------------------------------------------------------------------


def main(options: Options, seeds: Sequence[int]) -> Findings:
    runs = {name: [trained(options, seed, by_stage, place) for seed in seeds] for place, name in PLACES.items()}
    table = _table("Where PPO ends, and the closed form", runs, seeds)
    checks = [_near(name, group) for name, group in runs.items()] + [_gained(name, group) for name, group in runs.items()]
    return Findings(checks, [table], {"optimum": optimum_draw.main(runs, NEAR)}, _values(runs))


def _near(name: str, runs: Sequence[Trained], near: float = NEAR) -> Check:
    """Over the prompts together: half the sum of absolute differences of the joint distribution of prompt and completion."""
    apart = over_seeds(r.end.apart.mean() for r in runs)
    worst = max(float(r.end.apart.mean()) for r in runs)
    return Check(f"{name}: within {near:g} of the closed form, on every seed", f"total variation {said(apart, 3)}, at most {worst:.3f}", worst < near)


def _gained(name: str, runs: Sequence[Trained]) -> Check:
    """The objective's gap to its maximum is ``coef * KL(pi || pi*)``: not below 0."""
    left = over_seeds(r.end.short.mean() / r.curve[0].short.mean() for r in runs)
    return Check(f"{name}: less than a twentieth of what E[r] - coef KL can gain is left", f"{100 * left.mean:.1f}% [{100 * left.low:.1f}, {100 * left.high:.1f}]", -1e-6 < left.low and left.high < 0.05)


def _table(title: str, runs: dict[str, list[Trained]], seeds: Sequence[int], what: str = "PPO") -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, group in runs.items():
        ideal = [measure(one.optimum, one.logps[0], one.rewards, one.coef) for one in group]
        apart, reward, kl = (over_seeds(getattr(one.end, key).mean() for one in group) for key in ("apart", "reward", "kl"))
        best_reward, best_kl = (float(np.mean([getattr(i, key) for i in ideal])) for key in ("reward", "kl"))
        rows.append((name, over_seeds(one.curve[0].apart.mean() for one in group), apart, reward, best_reward, kl, best_kl))
    columns = (what, "TV before", "TV after", "E[r]", "of pi*", "KL(pi || ref), nats", "of pi*")
    return Table(f"{title}; {len(seeds)} seeds, TV = total variation to pi*", columns, rows)


def _values(runs: dict[str, list[Trained]]) -> dict[str, Any]:
    return {name: {"rollouts": group[0].at, "total_variation": [one.series("apart").tolist() for one in group], "worst_prompt": [float(one.end.apart.max()) for one in group]} for name, group in runs.items()}


# -- variants -----------------------------------------------------------------------------------------------------------


def variants(options: Options, seeds: Sequence[int]) -> Findings:
    runs = {name: [trained(options, seed, by_stage, **changes) for seed in seeds] for name, changes in VARIANTS.items()}
    table = _table("Other settings, each with a closed form of its own", runs, seeds)
    return Findings([_near(name, group) for name, group in runs.items()], [table], {"optimum-variants": optimum_draw.bars(runs, NEAR, "Other settings reach their optimum")}, _values(runs))


# -- groups -------------------------------------------------------------------------------------------------------------


def groups(options: Options, seeds: Sequence[int]) -> Findings:
    kl = lambda place: {"coef": options.coef, "place": place}  # noqa: E731
    longer = lambda row: {**row, "steps": options.steps * row.get("steps", 2)}  # noqa: E731
    runs = {name: [trained(options, seed, partial(by_groups, kl=kl(place), **longer(row))) for seed in seeds] for name, (place, row) in {**GROUPS, **AS_WRITTEN}.items()}
    table = _table("Where the critic-free methods end", runs, seeds, "method")
    checks = [_near(name, runs[name], SLOW if "one plain update" in name else NEAR) for name in GROUPS] + [_far(name, runs[name]) for name in list(AS_WRITTEN)[:1]]
    return Findings(checks, [table], {"optimum-groups": optimum_draw.bars(runs, NEAR, "Critic-free methods and the closed form")}, _values(runs))


# -- wrong --------------------------------------------------------------------------------------------------------------


def wrong(options: Options, seeds: Sequence[int]) -> Findings:
    runs = {name: [trained(options, seed, partial(by_hand, every=options.every, **step), place) for seed in seeds] for name, (place, step) in WRONG.items()}
    table = _table("One step made wrong", runs, seeds)
    return Findings([_far(name, group) for name, group in runs.items()], [table], {"optimum-wrong": optimum_draw.bars(runs, FAR, "One step made wrong")}, _values(runs))


def _far(name: str, runs: Sequence[Trained]) -> Check:
    apart = over_seeds(r.end.apart.mean() for r in runs)
    return Check(f"{name}: more than {FAR:g} from the closed form", f"total variation {said(apart, 3)}", apart.low > FAR)
