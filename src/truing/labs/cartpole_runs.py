"""What the cart-pole's exercises share: their options, and how a training is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from truing.config import Frozen
from truing.labs.canvas import MUTED, moving_mean
from truing.labs.tabular import over_seeds
from truing.maths.stats import Interval
from truing.methods.control import Trained
from truing.methods.policy_gradient import WINDOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
CAP = 500.0  # steps after which CartPole-v1 cuts an episode, and so the most one can earn
SOLVED = 475.0  # mean return of 100 episodes from which CartPole-v1 counts as solved


class Options(Frozen):
    """What ``--set`` may change."""

    exercise: Literal["main", "reinforce", "baselines", "published", "continuous"] = Field(
        "main",
        description="main: REINFORCE, actor-critic and PPO side by side; reinforce: to the cap, episode by episode; baselines: what a baseline does to the gradient's variance; "
        "published: PPO on three tasks beside the published numbers; continuous: PPO with Gaussian actions on a pendulum",
    )
    total_steps: Annotated[int, Field(ge=1000)] | None = Field(
        None,
        description="environment steps of each run; null = 100,000, and in published those of the row. Not in reinforce and baselines, which count episodes",
    )
    episodes: Annotated[int, Field(ge=110)] | None = Field(
        None, description="in reinforce: of each run, null = 1,000; in baselines: whose gradients are compared, null = 800"
    )
    environment: Literal["CartPole-v1", "Acrobot-v1", "MountainCar-v0"] | None = Field(None, description="in published: this task only; null = all")

    @model_validator(mode="after")
    def _is_used(self) -> Options:
        counted = self.exercise in ("reinforce", "baselines")
        if counted and self.total_steps is not None:
            raise ValueError(f"total_steps={self.total_steps} changes nothing in the exercise {self.exercise}, which counts episodes; set episodes")
        if not counted and self.episodes is not None:
            raise ValueError(f"episodes={self.episodes} changes nothing in the exercise {self.exercise}, which counts steps; set total_steps")
        if self.environment is not None and self.exercise != "published":
            raise ValueError(f"environment={self.environment} changes nothing in the exercise {self.exercise}; it belongs to exercise=published")
        return self


class Reached(NamedTuple):
    """When the mean of the last `WINDOW` training episodes first reached a level: after how many steps, and episodes."""

    steps: int
    episodes: int


def reached(trained: Trained, level: float) -> Reached | None:
    """None where it never did."""
    means = moving_mean(trained.returns, WINDOW)
    found = np.flatnonzero(means[WINDOW - 1 :] >= level)
    return Reached(trained.steps[found[0] + WINDOW - 1], int(found[0]) + WINDOW) if len(found) else None


def highest(trained: Trained) -> float:
    """The largest mean of `WINDOW` training episodes in a row."""
    return float(moving_mean(trained.returns, WINDOW)[WINDOW - 1 :].max()) if len(trained.returns) >= WINDOW else float("nan")


def by_step(trained: Trained, at: Array, width: int = WINDOW) -> Array:
    """The mean return of the last ``width`` episodes that had ended after so many environment steps, ``[len(at)]``; of the first one before it ended."""
    last = np.searchsorted(trained.steps, at, side="right") - 1
    return np.asarray(moving_mean(trained.returns, width)[np.maximum(last, 0)])


def late(trained: Trained, share: float = 0.2) -> float:
    """The mean return of the training episodes that ended in the last ``share`` of the steps; of the last one where none did."""
    since = np.asarray(trained.steps) > (1 - share) * trained.steps[-1]
    return float(np.asarray(trained.returns)[since].mean())


def over(values: Sequence[float]) -> Interval | float:
    """The interval over seeds; the number itself where there is one seed."""
    return over_seeds(values) if len(values) > 1 else float(values[0])


def told(value: Interval | float, digits: int = 0) -> str:
    """An interval, or a number, in words.

    >>> told(Interval(1.0, 0.904, 1.1), 1), told(12.0)
    ('1.0 [0.9, 1.1]', '12')
    """
    if isinstance(value, Interval):
        return f"{value.mean:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"
    return f"{value:,.{digits}f}"


def cap(axes: Axes, text: str = "the cap: 500 steps", level: float = CAP, *, under: bool = False, left: bool = False) -> None:
    """A dashed, named line."""
    axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        text, (0.01 if left else 0.99, level), xycoords=("axes fraction", "data"), xytext=(0, -3 if under else 3), textcoords="offset points",
        ha="left" if left else "right", va="top" if under else "bottom", color=MUTED, fontsize=9,
    )  # fmt: skip
