"""What Gymnasium itself says about the environments, and how they are registered."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import truing.envs
from truing.envs import ENVIRONMENTS
from truing.envs.gridworld import GridWorld

VARIANTS = [(name, {}) for name in ENVIRONMENTS] + [
    ("truing/GridWorld-v0", {"rows": 2, "columns": 7, "walls": [(0, 3)], "slip": 0.5}),
    ("truing/RandomWalk-v0", {"n": 19, "left_reward": -1.0}),
    ("truing/Bandit-v0", {"means": (0.0, 1.0, 2.0)}),
    ("truing/PickTwo-v0", {"actions": 3}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_gymnasium_finds_nothing_to_say(name, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name, **options).unwrapped)


def test_gymnasium_does_find_faults():
    class Broken(GridWorld):
        def observe(self, state):
            return np.float64(state)

    with warnings.catch_warnings(), pytest.raises((AssertionError, UserWarning)):
        warnings.simplefilter("error")
        check_env(Broken())


def test_registering_twice_changes_nothing():
    before = dict(gymnasium.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        truing.envs.register_all()
    assert gymnasium.registry == before
    assert all(gymnasium.registry[name].max_episode_steps == limit for name, (_, limit) in ENVIRONMENTS.items())


def test_a_fresh_process_finds_them_by_module_and_loads_no_more_than_it_needs():
    code = """
import sys, gymnasium, truing.envs
lazy = [m for m in ("torch", "truing.envs.gridworld", "truing.maths.planning") if m in sys.modules]
env = gymnasium.make("truing.envs:truing/GridWorld-v0", rows=2)
print(lazy, type(env.unwrapped).__name__, env.observation_space)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] GridWorld Discrete(8)\n"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_equal_seeds_give_equal_episodes(name):
    def play(seed):
        env = gymnasium.make(name)
        actions, seen = np.random.default_rng(0), [env.reset(seed=seed)[0]]
        for _ in range(50):
            observation, reward, terminated, truncated, _ = env.step(int(actions.integers(env.action_space.n)))
            seen += [observation, reward, terminated, truncated]
            if terminated or truncated:
                seen.append(env.reset()[0])
        return seen

    assert play(4) == play(4)
    if name in ("truing/Bandit-v0", "truing/RandomWalk-v0"):  # the ones that are random without slip
        assert play(4) != play(5)
