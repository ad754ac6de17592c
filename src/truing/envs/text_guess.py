"""``guess``: find a number; after each guess the model hears whether it is higher or lower."""

from __future__ import annotations

import re
from typing import Any

from truing.envs.text import TextEnvironment, Turn, after_prompt, earned, told, whole
from truing.errors import ConfigError, DataError
from truing.seeds import stream
from truing.types import Messages, Prompt, Score

_NUMBER = re.compile(r"(?<![\w.,-])-?\d{1,12}(?![\w]|[.,]\d)")


class Guess(TextEnvironment):
    """The number stands in the row's column ``answer``; the last whole number of what is said is the guess.

    Finding it with the k-th guess is worth ``1 - cost * (k - 1)``, not finding it 0. Halving the range finds any of n numbers within
    ``floor(log2 n) + 1`` guesses: 4 for 10. Luck alone, with all guesses different, finds it with probability guesses / n: 0.4 there.

    Args:
        low, high: the range; both ends belong to it.
        guesses: after so many wrong ones the episode is over. A turn without a number is one of them.
        cost: of every guess after the first.
        explain: say the rules after the prompt.
    """

    def __init__(self, low: int = 1, high: int = 10, guesses: int = 4, cost: float = 0.0, explain: bool = True) -> None:
        if not low < high:
            raise ConfigError(f"guess: low={low} and high={high} leave nothing to find; make high larger")
        if guesses < 1 or not 0 <= cost * (guesses - 1) <= 1:
            raise ConfigError(f"guess: guesses={guesses}, cost={cost}: use 1 guess or more, and a cost from 0 to 1 / (guesses - 1), so that finding it is worth something")
        self.low, self.high, self.guesses, self.cost, self.explain = low, high, guesses, cost, explain
        self.answer, self.made = low, 0

    def reset(self, prompt: Prompt, seed: int) -> Messages | None:
        self.answer = whole(prompt.extra, "answer", prompt.source)
        if not self.low <= self.answer <= self.high:
            raise DataError(f"{prompt.source}: column 'answer' is {self.answer}, outside {self.low} to {self.high}; correct it, or set guess(low=..., high=...)")
        rules = (
            f"It is a whole number from {self.low} to {self.high}. Say one number; you are told whether mine is higher or lower. "
            f"You have {self.guesses} guess{'es' if self.guesses > 1 else ''}."
        )
        return after_prompt(prompt, rules) if self.explain else None

    def step(self, said: str) -> Turn:
        self.made += 1
        numbers = _NUMBER.findall(said)
        if numbers and int(numbers[-1]) == self.answer:
            return Turn(done=True, score=earned(1.0 - self.cost * (self.made - 1), guesses=float(self.made)))
        if self.made >= self.guesses:
            return Turn(done=True, score=self.cut(""))
        if not numbers:
            return told(f"Say one whole number from {self.low} to {self.high}.")
        return told("Higher." if self.answer > int(numbers[-1]) else "Lower.")

    def cut(self, said: str) -> Score:
        return earned(0.0, guesses=float(self.made))

    def tasks(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Every number of the range in turn, from a random one on."""
        size = self.high - self.low + 1
        start = stream(seed, "guess") % size
        return [{"id": f"guess-{i}", "prompt": "Find my number.", "answer": self.low + (start + i) % size} for i in range(count)]
