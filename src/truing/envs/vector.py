"""Several environments stepped together, for learners: terminated and truncated stay apart, and no transition is lost or made up.

Gymnasium's vector environments reset on the step *after* an episode's end by default, and that step is a transition that nobody
took; or they reset on the same step, and then the observation they return belongs to the next episode. `Step` names both:
``observation`` is what to act on next, ``next_observation`` is where the action led, the last observation of its episode where that ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from truing.errors import ConfigError, NonFiniteError
from truing.seeds import stream

Array = NDArray[Any]
_FLAT = (Box, Discrete, MultiBinary, MultiDiscrete)  # spaces whose elements are one array


class Episode(NamedTuple):
    """An episode that has ended: which environment, the undiscounted sum of its rewards, its number of steps."""

    environment: int
    total: float
    length: int


class Step(NamedTuple):
    """What one action in each of N environments led to.

    The arrays are new at every step and never written again; where no episode ended, ``observation`` and ``next_observation``
    are one and the same array. Example: CartPole falls in environment 0, whose next episode begins at once::

        Step(observation=[[.01, ...], [.3, ...]], reward=[1., 1.], next_observation=[[2.4, ...], [.3, ...]],
             terminated=[True, False], truncated=[False, False], episodes=(Episode(environment=0, total=31.0, length=31),))
    """

    observation: Array
    """``[N, ...]``: to act on next; the first of the next episode where one ended."""
    reward: NDArray[np.float64]
    """``[N]``."""
    next_observation: Array
    """``[N, ...]``: the episode's own next state, whose value a truncated episode bootstraps from."""
    terminated: NDArray[np.bool_]
    """``[N]``: the task ended; nothing follows, so the discount is 0. Both flags can be True; then this one counts."""
    truncated: NDArray[np.bool_]
    """``[N]``: the episode was cut, at a time limit for example; its future still has value."""
    episodes: tuple[Episode, ...]
    """The episodes that ended in this step, in the order of the environments."""


class VectorSteps:
    """N environments with the same spaces, stepped in turn. Wrappers, their time limits included, stay as they are.

    The first `reset` seeds environment i with ``stream(seed, "environment", i)``, cut to 31 bits, which every environment accepts; later resets
    continue each environment's own random numbers, as Gymnasium's do. Equal seeds and actions give equal steps.

    Args:
        environments: one Gymnasium environment each; observations and actions are Box, Discrete, MultiDiscrete or MultiBinary.
        seed: of the first reset.

    Raises ConfigError when there is no environment, one appears twice, spaces differ, or a space is not one array; NonFiniteError, naming environment and
    step, when a reward, an observation or a given action is NaN or infinite.
    """

    def __init__(self, environments: Sequence[gymnasium.Env], seed: int):
        if not environments:
            raise ConfigError("environments is empty; give one or more")
        self.environments = tuple(environments)
        self.count = len(self.environments)
        self.single_observation_space = self.environments[0].observation_space
        self.single_action_space = self.environments[0].action_space
        self._refuse_mixed()
        self.observation_space = batch_space(self.single_observation_space, self.count)
        self.action_space = batch_space(self.single_action_space, self.count)
        self.action_space.seed(stream(seed, "random actions") % 2**31)
        self.seeds = tuple(stream(seed, "environment", i) % 2**31 for i in range(self.count))
        self._shape = (self.count, *(self.single_observation_space.shape or ()))
        self._dtype = self.single_observation_space.dtype
        self._floating = np.issubdtype(self._dtype, np.floating)
        self._action_shape = (self.count, *(self.single_action_space.shape or ()))
        self._action_kinds = "f" if np.issubdtype(self.single_action_space.dtype, np.floating) else "iub"
        self._steps = [env.step for env in self.environments]  # bound once: the loop below runs millions of times
        self._totals, self._lengths = [0.0] * self.count, [0] * self.count
        self._taken = -1  # steps since the reset

    def reset(self) -> Array:
        """Begin an episode in every environment; the first observations ``[N, ...]``. The first call seeds them."""
        seeds = self.seeds if self._taken < 0 else (None,) * self.count
        self._totals, self._lengths, self._taken = [0.0] * self.count, [0] * self.count, 0
        observation = np.empty(self._shape, self._dtype)
        for i, seed in enumerate(seeds):
            self._begin(i, observation, seed)
        return observation

    def step(self, actions: ArrayLike) -> Step:
        """Take one action ``[N, ...]`` in each environment; where an episode ends, the next begins within the same step."""
        actions = np.asarray(actions)
        if actions.shape != self._action_shape or actions.dtype.kind not in self._action_kinds or self._taken < 0:
            self._refuse(actions)
        if self._action_kinds == "f" and not np.isfinite(actions).all():
            self._refuse_infinite(actions, "action", "the policy has diverged; lower its learning rate")
        self._taken += 1
        arrived = np.empty(self._shape, self._dtype)
        rewards, terminated, truncated, ended = [], [], [], []
        for i, (step, action) in enumerate(zip(self._steps, actions, strict=True)):
            observed, reward, over, cut, _ = step(action)
            if np.shape(observed) != self._shape[1:]:
                self._refuse_shape(i, "step()", observed)
            arrived[i] = observed
            rewards.append(reward)
            terminated.append(over)
            truncated.append(cut)
            self._totals[i] += reward
            self._lengths[i] += 1
            if over or cut:
                ended.append(i)
        reward = np.array(rewards, np.float64)
        if reward.shape != (self.count,):
            raise ConfigError(f"step {self._taken}: rewards of shape {reward.shape[1:]}; an environment's reward is one number: return float(reward)")
        # One number says whether all are finite. It can overflow though they are, so the search for the culprit decides.
        if not isfinite(sum(rewards)):
            self._refuse_infinite(reward, "reward", "mend the environment or its reward wrapper")
        if self._floating and not isfinite(np.vdot(arrived, arrived)):
            self._refuse_infinite(arrived, "observation", "mend the environment or its observation wrapper")
        observation = arrived
        episodes: tuple[Episode, ...] = ()
        if ended:
            observation = arrived.copy()
            episodes = tuple(Episode(i, float(self._totals[i]), self._lengths[i]) for i in ended)
            for i in ended:
                self._totals[i], self._lengths[i] = 0.0, 0
                self._begin(i, observation, None)
        return Step(observation, reward, arrived, np.array(terminated, np.bool_), np.array(truncated, np.bool_), episodes)

    def within_bounds(self, actions: Array) -> Array:
        """Actions ``[N, ...]`` clipped to the bounds of a Box; others as they are."""
        return np.clip(actions, self.single_action_space.low, self.single_action_space.high) if isinstance(self.single_action_space, Box) else actions

    def close(self) -> None:
        for env in self.environments:
            env.close()

    def __enter__(self) -> VectorSteps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, i: int, into: Array, seed: int | None) -> None:
        first, _ = self.environments[i].reset(seed=seed)
        if np.shape(first) != self._shape[1:]:
            self._refuse_shape(i, "reset()", first)
        into[i] = first
        if self._floating and not np.isfinite(into[i]).all():
            self._refuse_infinite(into, "first observation", "mend the environment's reset()")

    def _refuse_shape(self, i: int, where: str, observation: Any) -> None:
        raise ConfigError(f"environment {i}: {where} returned an observation of shape {np.shape(observation)}; its observation_space has {self._shape[1:]}")

    def _refuse_mixed(self) -> None:
        if len({id(env.unwrapped) for env in self.environments}) < self.count:
            raise ConfigError("one environment appears twice; the callable must make a new one at each call")
        for i, env in enumerate(self.environments):
            for name, space, first in (
                ("observation_space", env.observation_space, self.single_observation_space),
                ("action_space", env.action_space, self.single_action_space),
            ):
                if not isinstance(space, _FLAT):
                    remedy = "wrap the environment in gymnasium.wrappers.FlattenObservation" if name == "observation_space" else "use an environment whose action is one array"
                    raise ConfigError(f"environment {i}: {name}={space} is not one array; {remedy}")
                if space != first:
                    raise ConfigError(f"environment {i}: {name}={space} differs from environment 0's {first}; all must be equal")

    def _refuse(self, actions: Array) -> None:
        if self._taken < 0:
            raise ConfigError("step() before reset(): call reset() for the first observations")
        wanted = f"{self._action_shape} of {self.single_action_space.dtype}"
        raise ValueError(f"actions have shape {actions.shape} of {actions.dtype}; {self.count} actions of {self.single_action_space} are {wanted}")

    def _refuse_infinite(self, values: Array, what: str, remedy: str) -> None:
        bad = ~np.isfinite(values)
        if bad.any():
            place = np.argwhere(bad)[0]
            inside = f"[{', '.join(map(str, place[1:]))}]" if len(place) > 1 else ""
            raise NonFiniteError(f"environment {place[0]}, step {self._taken}: {what}{inside} is {values[tuple(place)]}; {remedy}")


def make(environment: str | Callable[[], gymnasium.Env], count: int, seed: int = 0, **options: Any) -> VectorSteps:
    """``count`` environments from a Gymnasium id (``"CartPole-v1"``, ``"truing.envs:truing/GridWorld-v0"``) or a callable that makes one.

    Args:
        options: given to ``gymnasium.make`` (``max_episode_steps=100``) or to the callable.

    Raises ConfigError for an unknown id, an option the environment does not have, count below 1, or a callable that makes something else.

    >>> steps = make("truing.envs:truing/PickTwo-v0", 2)
    >>> steps.reset().tolist()
    [0, 0]
    >>> taken = steps.step([2, 3])
    >>> taken.reward.tolist(), taken.next_observation.tolist(), taken.observation.tolist()  # both ended in state 1; the next begin in 0
    ([1.0, 0.0], [1, 1], [0, 0])
    >>> taken.episodes
    (Episode(environment=0, total=1.0, length=1), Episode(environment=1, total=0.0, length=1))
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ConfigError(f"count={count!r}: use a whole number of 1 or more environments")
    made = [_one(environment, options) for _ in range(count)]
    return VectorSteps(made, seed)


def _one(environment: str | Callable[..., gymnasium.Env], options: dict[str, Any]) -> gymnasium.Env:
    if not isinstance(environment, str):
        made = environment(**options)
        if not isinstance(made, gymnasium.Env):
            raise ConfigError(f"the callable made a {type(made).__name__}; it must make one gymnasium.Env at each call, not a vector of them")
        return made
    try:
        return gymnasium.make(environment, **options)
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        raise ConfigError(f"environment {environment!r} with options {options}: {error}") from error
