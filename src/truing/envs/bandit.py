"""One decision, then it is over: the k-armed bandit, and the task whose answer is action 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from truing.envs.table import Tabular, certain, finite, to_mdp, whole
from truing.errors import ConfigError
from truing.maths.planning import Mdp
from truing.seeds import stream


class Bandit(gymnasium.Env):
    """The k-armed bandit. Arm a pays ``N(means[a], noise^2)``; an episode is one pull, which terminates. The observation is always 0.

    The means are drawn from ``N(centre, spread^2)`` as a function of ``problem`` alone, so that environments side by side, and the one an agent is tried
    out on, are the same bandit; ``reset(seed=...)`` fixes the luck of the pulls.

    Args:
        arms: k, 10 in the textbook's testbed; left out where ``means`` are given.
        means: the true value of each arm, ``[k]``, instead of drawn ones.
        problem: which of the drawn problems, 0 or more.
        centre, spread: mean and standard deviation of the drawn means.
        noise: standard deviation of a reward about its arm's mean; 0 makes rewards certain.

    Source: Sutton and Barto, 2nd ed., section 2.3.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, arms: int = 10, means: Sequence[float] | None = None, problem: int = 0, centre: float = 0.0, spread: float = 1.0, noise: float = 1.0, render_mode: str | None = None):
        if render_mode is not None:
            raise ConfigError(f"render_mode={render_mode!r}: a bandit has nothing to draw; use None")
        given = None if means is None else [finite(f"means[{a}]", m) for a, m in enumerate(means)]
        if given == []:
            raise ConfigError("means=(): a bandit has one arm or more")
        self.arms = whole("arms", arms, 1) if given is None else len(given)
        self.noise, centre, spread = finite("noise", noise), finite("centre", centre), finite("spread", spread)
        for name, value in (("spread", spread), ("noise", self.noise)):
            if value < 0:
                raise ConfigError(f"{name}={value}: it is a standard deviation; use 0 or more")
        luck = np.random.default_rng(stream(whole("problem", problem, 0), "bandit.problem"))
        self.means: NDArray[np.float64] = luck.normal(centre, spread, self.arms) if given is None else np.array(given)
        """The true values q*(a) ``[k]``."""
        self.render_mode = render_mode
        self.observation_space, self.action_space = Discrete(1), Discrete(self.arms)
        self._waiting = False

    @property
    def best(self) -> int:
        """The arm of the highest mean, the first of equals."""
        return int(self.means.argmax())

    def mdp(self) -> Mdp:
        """State 0 is before the pull, state 1, terminal, after it; the expected reward of arm a is ``means[a]``."""
        return to_mdp([[certain(1, float(m)) for m in self.means], []])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self._waiting = True
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if not isinstance(action, int | np.integer) or not 0 <= action < self.arms:
            raise ValueError(f"Bandit: arm {action!r} does not exist; arms are the integers 0 to {self.arms - 1}")
        if not self._waiting:
            raise ResetNeeded("Bandit: an episode is one pull; call reset() before the next")
        self._waiting = False
        return 0, float(self.np_random.normal(self.means[action], self.noise)), True, False, {}


class PickTwo(Tabular):
    """The smallest task there is: one state, ``actions`` actions, reward 1 for action 2 and 0 for any other, then it is over.

    A uniform policy earns 1 / actions; the optimum is 1. State 0 is before the choice, state 1, terminal, after it.

    Args:
        actions: 3 or more, 4 by default.
    """

    def __init__(self, actions: int = 4, render_mode: str | None = None):
        super().__init__([[certain(1, float(a == 2)) for a in range(whole("actions", actions, 3))], []], 0, render_mode)

    def text(self) -> str:
        """Whether the choice was made."""
        return "choose\n" if self.state == 0 else "chosen\n"
