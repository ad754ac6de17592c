"""Environments with known optima, registered with Gymnasium under ``truing/``.

>>> import gymnasium
>>> gymnasium.make("truing.envs:truing/GridWorld-v0", rows=3).unwrapped.action_space
Discrete(4)
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

# id -> (where the class is, the step after which Gymnasium truncates). The class's module is imported when the environment is made.
ENVIRONMENTS: dict[str, tuple[str, int | None]] = {
    "truing/GridWorld-v0": ("truing.envs.gridworld:GridWorld", 200),
    "truing/Cliff-v0": ("truing.envs.chains:Cliff", 10_000),
    "truing/RandomWalk-v0": ("truing.envs.chains:RandomWalk", None),
    "truing/Corridor-v0": ("truing.envs.chains:Corridor", 10_000),
    "truing/Bandit-v0": ("truing.envs.bandit:Bandit", None),
    "truing/PickTwo-v0": ("truing.envs.bandit:PickTwo", None),
}


def register_all() -> None:
    """Make the environments known to ``gymnasium.make``; calling it again changes nothing. Importing this package calls it."""
    for name, (place, limit) in ENVIRONMENTS.items():
        if name not in registry:
            register(name, entry_point=place, max_episode_steps=limit)


register_all()
