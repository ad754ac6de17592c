"""What the shared trunk saves: seconds of one PPO step's phases, with adapters on the top k layers only; prints one JSON object.

    python benchmarks/trunk.py                             # smollm2-135m, 32 sequences of 32 + 32 random tokens (minutes)
    python benchmarks/trunk.py --layers 2,30 --rounds 5

For every k (the model is opened once for each): `trunk` is the frozen layers' one pass, `look` the pass of policy, reference and value model, `update` epochs x
minibatches optimiser steps. `recomputed` is look + update when no pass is made ahead: the frozen layers then run again
in every part of every epoch. With and without take turns; quote medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

import torch

from truing.config import PPO, Lora
from truing.learn.update import Learner
from truing.methods.completions import Batch, read
from truing.methods.ppo import look, update
from truing.methods.ppo_update import Seen, minibatches
from truing.methods.roles_of_ppo import Roles, open_roles
from truing.types import Rollout, Score


def flat(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that is never asked; scores are set below."""
    return [0.0] * len(completions)


def rollout(batch: int, prompt: int, new: int, vocabulary: int) -> Rollout:
    ids = torch.randint(3, vocabulary, (batch, prompt + new), generator=torch.Generator().manual_seed(0))
    real = torch.ones(batch, new, dtype=torch.bool)
    return Rollout(ids[:, :prompt].tolist(), ids[:, prompt:], real, torch.full((batch, new), -10.0), real[:, 0], 1.0, 0)


def step(config: PPO, roles: Roles, learner: Learner, made: Rollout, *, prepared: bool) -> dict[str, float]:
    """Seconds of each phase of one step on fixed tokens."""
    times, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = time.perf_counter() - began, time.perf_counter()

    texts = read(made, [""] * config.batch_size, roles, config)
    lap("trunk")
    if not prepared:
        texts.pack.trunk.clear()
    batch = Batch(made, texts)
    plan = [list(minibatches(len(batch), config.minibatches, 0, 1, epoch)) for epoch in range(config.epochs)]
    experience = look(batch, roles, config, plan[0], config.kl.coef, [Score(float(i % 3)) for i in range(len(batch))], learner.micro_tokens)
    lap("look")
    update(learner, roles, batch, experience, plan, config, Seen())
    lap("update")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", default="2,4,8,15,30")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ahead-only", action="store_true", help="leave out the run without a pass ahead")
    args = parser.parse_args()

    found: dict[int, dict[str, list[float]]] = {}
    for k in map(int, args.layers.split(",")):
        config = PPO(
            model=args.model, prompts="none", reward="trunk:flat", lora=Lora(layers=k), batch_size=args.batch, minibatches=args.minibatches, epochs=args.epochs,
            max_new_tokens=args.new, kl={"target": None}, scores={"timeout": None},
        )  # fmt: skip
        roles = open_roles(config, 0)
        learner = Learner(roles.parameters(), lr=1e-6, total=1000, micro_tokens=config.micro_tokens)
        made = rollout(args.batch, args.prompt, args.new, roles.policy.backbone.head_weight.shape[0])
        times: dict[str, list[float]] = defaultdict(list)
        for round_ in range(args.rounds + 1):  # the first is the warm-up
            ahead = step(config, roles, learner, made, prepared=True)
            again = None if args.ahead_only or not roles.policy.backbone.depth else step(config, roles, learner, made, prepared=False)
            if round_:
                for name, seconds in ahead.items():
                    times[name].append(seconds)
                if again:
                    times["recomputed"].append(again["look"] + again["update"])
        found[k] = times
    median = {k: {name: round(statistics.median(values), 3) for name, values in times.items()} for k, times in found.items()}
    whole = {k: sum(m[name] for name in ("trunk", "look", "update")) for k, m in median.items()}
    most = max(whole)
    print(json.dumps({
        "work": f"{args.batch} x ({args.prompt} + {args.new}) tokens, {args.epochs} epochs x {args.minibatches} minibatches", "model": args.model,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "rounds": args.rounds,
        "seconds": median, "step": {k: round(v, 3) for k, v in whole.items()}, f"speed_against_k_{most}": {k: round(whole[most] / v, 2) for k, v in whole.items()},
        "saved_by_computing_it_once": {k: round(1 - whole[k] / m["recomputed"], 3) for k, m in median.items() if "recomputed" in m},
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
