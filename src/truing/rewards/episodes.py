"""The reward ``environment()``: what the environment made of the episode."""

from __future__ import annotations

from truing.errors import RewardError
from truing.rewards.completions import Completions
from truing.types import Score


class Outcome:
    """The environment's own score of each episode, one part named "environment"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, batch: Completions) -> list[Score]:
        if len(batch.outcomes) != len(batch):
            raise RewardError("environment() is what an environment gives for an episode, and none is set; set `environment`, or use another reward")
        return list(batch.outcomes)
