"""``gymnasium:ENV_ID(...)``: any Gymnasium environment whose observations can be read and whose actions can be written."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import gymnasium
from gymnasium.spaces import Discrete, Text

from truing.envs.text import TextEnvironment, Turn, after_prompt, told, whole
from truing.errors import ConfigError
from truing.types import Messages, Prompt, Score, Status


class GymnasiumText(TextEnvironment):
    """Observations are heard, what is said is the action, the sum of the rewards is the score.

    The environment is reset with the row's column ``seed``, so that all samples of one prompt meet the same world; without the
    column, with a number made from the prompt's id. The first observation stands after the prompt.

    Termination and truncation stay apart: an environment that truncates gives a `Turn` that is ``truncated``, and the episode does
    not count as finished. When an episode is cut off because turns or tokens ran out, it has earned what it had collected.

    Args:
        id: as `gymnasium.make` takes it.
        actions: names of a Discrete action space, in order; without them the numbers themselves. The one named last in what is said,
            as a whole word and in any case, is the action. With a Text action space the whole of what is said is the action.
        observations: names of a Discrete observation space, in order. Any other observation is shown as ``str`` writes it.
        explain: say after the prompt which actions there are.
        options: of `gymnasium.make`: max_episode_steps, or the environment's own.

    An action that does not exist costs a turn, not a step: the model is told which there are.
    """

    def __init__(self, id: str, actions: Sequence[str] | None = None, observations: Sequence[str] | None = None, explain: bool = True, **options: Any) -> None:
        try:
            self.world = gymnasium.make(id, **options)
        except gymnasium.error.Error as error:
            raise ConfigError(f"environment gymnasium:{id} cannot be made: {error}") from error
        except TypeError as error:
            raise ConfigError(f"environment gymnasium:{id} does not take these options: {error}") from error
        self.id, self.explain = id, explain
        space = self.world.action_space
        if not isinstance(space, Text | Discrete):
            raise ConfigError(f"environment gymnasium:{id} has actions {space}, which cannot be said; use one with Text or Discrete actions, or wrap it in one")
        self.first = int(space.start) if isinstance(space, Discrete) else 0
        self.actions: list[str] | None = _names(id, "actions", actions, space) if isinstance(space, Discrete) else None
        seen = self.world.observation_space
        self.observations = None if observations is None else _names(id, "observations", observations, seen)
        self.first_seen = int(seen.start) if isinstance(seen, Discrete) else 0
        self.total, self.steps = 0.0, 0

    def reset(self, prompt: Prompt, seed: int) -> Messages | None:
        own = whole(prompt.extra, "seed", prompt.source) if prompt.extra.get("seed") is not None else _number(prompt.id)
        observation, _ = self.world.reset(seed=own)
        shown = self._shown(observation)
        if self.explain and self.actions is not None:
            shown += f"\nSay one of: {', '.join(self.actions)}."
        return after_prompt(prompt, shown)

    def step(self, said: str) -> Turn:
        action = self._action(said)
        if action is None:
            return told(f"That is no action. Say one of: {', '.join(self.actions)}." if self.actions is not None else "That is no action here.")
        observation, reward, terminated, truncated, _ = self.world.step(action)
        self.total += float(reward)
        self.steps += 1
        over = bool(terminated or truncated)
        return Turn(told(self._shown(observation)).heard, over, self.cut("") if over else None, truncated=bool(truncated and not terminated))

    def cut(self, said: str) -> Score:
        if not math.isfinite(self.total):
            return Score(math.nan, {f"gymnasium:{self.id} gave rewards that add up to {self.total}": math.nan}, Status.NON_FINITE)
        return Score(self.total, {"environment": self.total, "steps": float(self.steps)})

    def close(self) -> None:
        self.world.close()

    def tasks(self, count: int, seed: int) -> list[dict[str, Any]]:
        """The environment's seeds, one after the other, under an empty prompt."""
        return [{"id": f"{self.id}-{seed + i}", "prompt": "Play.", "seed": seed + i} for i in range(count)]

    def _shown(self, observation: Any) -> str:
        return str(observation) if self.observations is None else self.observations[int(observation) - self.first_seen]

    def _action(self, said: str) -> Any:
        if self.actions is None:
            action = said.strip()
            return action if action in self.world.action_space else None
        longest_first = sorted(self.actions, key=len, reverse=True)  # "turn left" before "left"
        found = re.findall("|".join(rf"(?<!\w){re.escape(a)}(?!\w)" for a in longest_first), said, re.IGNORECASE)
        return self.first + [a.lower() for a in self.actions].index(found[-1].lower()) if found else None


def _names(id: str, option: str, names: Sequence[str] | None, space: Any) -> list[str]:
    if not isinstance(space, Discrete):
        raise ConfigError(f"environment gymnasium:{id}: {option} names the elements of a Discrete space, and this one is {space}; leave the option out")
    if names is None:
        return [str(int(space.start) + i) for i in range(int(space.n))]
    if len(names) != space.n or len({n.lower() for n in names}) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"environment gymnasium:{id}: {option}={list(names)} must be {space.n} different names, one for each of {space}")
    return list(names)


def _number(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")
