"""PPO on CartPole-v1: Stable-Baselines3 and Truing, the same settings, in one run; and how long the tabular classics take.

    python -m benchmarks cartpole                # the row of the suite: about two minutes
    python benchmarks/classic.py --seeds 5       # with the tabular classics; JSON on stdout

Every training has a process and a thread of its own; the two systems take turns. Both train 100,000 environment steps
with the settings that the RL Zoo tuned for this task, then play 20 episodes with the most likely action. Timed is the
second training of the process, so that what is imported late (torch's optimisers bring their compiler) counts for
neither; ``first_seconds`` has the time of a first one of 512 steps. Evaluation is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

STEPS, EPISODES = 100_000, 20
SETTINGS = {"environments": 8, "length": 32, "batch": 256, "epochs": 20, "discount": 0.98, "lambda": 0.8, "lr": 1e-3, "clip": 0.2, "entropy": 0.0}


def truing(seed: int, steps: int) -> dict[str, Any]:
    from truing.methods.control import evaluate
    from truing.methods.ppo_control import PPOControl, ppo

    config = PPOControl(
        environment="CartPole-v1", total_steps=steps, environments=8, length=32, minibatches=1, epochs=20, discount=0.98, lam=0.8, lr=1e-3, schedule="linear",
        clip=0.2, clip_to_zero=True, entropy=0.0,
    )  # fmt: skip
    start = time.perf_counter()
    trained = ppo(config, seed)
    seconds = time.perf_counter() - start
    returns = evaluate(trained, "CartPole-v1", EPISODES, seed=seed)
    return {"seconds": seconds, "steps": len(trained.log) * 256, "return": statistics.mean(returns)}


def stable_baselines3(seed: int, steps: int) -> dict[str, Any]:
    import gymnasium
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    def falling(value: float) -> Any:
        return lambda left: left * value

    start = time.perf_counter()
    agent = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=seed), n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0,
        learning_rate=falling(1e-3), clip_range=falling(0.2), seed=seed, device="cpu", verbose=0,
    )  # fmt: skip
    agent.learn(steps)
    seconds = time.perf_counter() - start
    returns: Any = evaluate_policy(agent, Monitor(gymnasium.make("CartPole-v1")), n_eval_episodes=EPISODES, deterministic=True)
    return {"seconds": seconds, "steps": agent.num_timesteps, "return": float(returns[0])}


def bandits() -> None:
    """The ten-armed testbed: 2,000 problems of 1,000 pulls."""
    from truing.methods.bandit import EpsilonGreedy, play, testbed

    play(testbed(2_000, seed=0), EpsilonGreedy(epsilon=0.1), 1_000, seed=0)


def gridworld() -> None:
    """500 episodes of Q-learning."""
    import gymnasium

    from truing.methods.q_learning import learn

    learn(gymnasium.make("truing.envs:truing/GridWorld-v0"), episodes=500, alpha=0.1, discount=0.99, epsilon=0.1)


def seconds(work: Any, times: int = 5) -> list[float]:
    """Wall time of a piece of work, several times, after one that is not counted."""
    work()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


SYSTEMS = {"stable-baselines3": stable_baselines3, "truing": truing}


def alone(system: str, seed: int) -> dict[str, Any]:
    """One measurement in a fresh process with one thread."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--one", system, "--seed", str(seed)], stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def side_by_side(seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Every seed with each system in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for seed in range(seeds):
        for name in SYSTEMS:
            runs[name].append({"seed": seed, **alone(name, seed)})
            print(f"{name} seed {seed}: {runs[name][-1]['seconds']:.1f} s, return {runs[name][-1]['return']:.0f}", file=sys.stderr)
    return runs


def results(seeds: int) -> list[Any]:
    """The row of the suite."""
    from benchmarks.results import result

    runs = side_by_side(seeds)
    speed = {name: statistics.median(r["steps"] / r["seconds"] for r in rows) for name, rows in runs.items()}
    settings = {**SETTINGS, "steps": STEPS, "threads": 1, "seeds": seeds, "returns": {name: [r["return"] for r in rows] for name, rows in runs.items()}}
    return [
        result("cartpole", "networks", "ppo", f"PPO on CartPole-v1, {STEPS:,} steps", "speed", "env steps/s", speed["truing"], "Stable-Baselines3", speed["stable-baselines3"],
               rounds=seeds, settings=settings, versions=versions())
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        import torch

        torch.set_num_threads(1)
        first = SYSTEMS[given.one](given.seed, 512)
        print(json.dumps({**SYSTEMS[given.one](given.seed, STEPS), "first_seconds": first["seconds"]}))
        return

    runs = side_by_side(given.seeds)
    tabular = {"bandit testbed, 2,000 x 1,000": seconds(bandits), "GridWorld Q-learning, 500 episodes": seconds(gridworld)}
    speed = {name: statistics.median(r["steps"] / r["seconds"] for r in rows) for name, rows in runs.items()}
    print(json.dumps({
        "work": "PPO on CartPole-v1, 100,000 steps", "settings": SETTINGS, "steps_per_second": speed,
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(runs["stable-baselines3"], runs["truing"], strict=True)),
        "returns": {name: [r["return"] for r in rows] for name, rows in runs.items()},
        "tabular_seconds": {name: {"median": statistics.median(found), "runs": found} for name, found in tabular.items()}, "runs": runs, "versions": versions(),
    }, indent=2))  # fmt: skip


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("truing", "torch", "gymnasium", "stable-baselines3", "numpy")}


if __name__ == "__main__":
    main()
