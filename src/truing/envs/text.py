"""Environments that are talked with: a task, what the model says, what it is told, until the episode is over.

One instance is one episode and holds all of its state. What it does is a function of the prompt, of the seed that `reset` gets,
and of what was said; so an episode can be played again, beside any neighbours, and comes out the same.

>>> from truing.types import Message, Prompt
>>> environment = open_text_environment("guess(high=10)")()
>>> environment.reset(Prompt((Message("user", "Find my number."),), "p1", "prompts.jsonl:1", {"answer": 7}), seed=0)[0].content
'Find my number.\\n\\nIt is a whole number from 1 to 10. Say one number; you are told whether mine is higher or lower. You have 4 guesses.'
>>> environment.step("5?").heard
(Message(role='user', content='Higher.'),)
>>> environment.step("It is 7.")
Turn(heard=(), done=True, score=Score(value=1.0, parts={'environment': 1.0, 'guesses': 2.0}, status=<Status.OK: 'ok'>, spread=()), truncated=False)
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truing.disk import write_atomic
from truing.errors import ConfigError, DataError
from truing.types import Message, Messages, Prompt, Score, Status

BUILT_IN: dict[str, str] = {
    "calculator": "truing.envs.text_calculator:Calculator",
    "guess": "truing.envs.text_guess:Guess",
}
ADAPTERS: dict[str, str] = {  # "name:what it runs(options)"
    "gymnasium": "truing.envs.text_gymnasium:GymnasiumText",
    "verifiers": "truing.envs.text_verifiers:VerifiersText",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What an environment answers.

    Attributes:
        heard: what the model is told: messages, which the chat template renders, or a text that is put into the sequence as it stands
            (for models without a template). After the last turn it is shown to people only.
        done: the episode is over.
        score: what the episode is worth so far; the last one given counts, and the one at the end is needed.
        truncated: it is over because of a limit of the environment's own (a count of steps) and not because of anything the model did.
    """

    heard: Messages | str = ()
    done: bool = False
    score: Score | None = None
    truncated: bool = False


class TextEnvironment:
    """What every environment does; subclasses write `step`, and what else they need.

    Methods are called one at a time, in one thread that is this episode's own. What they raise ends the episode with a status and
    no score: DataError and ConfigError say that the row is at fault (UNPARSED), everything else is a crash (CRASHED).
    """

    def reset(self, prompt: Prompt, seed: int) -> Messages | None:
        """Begin. Returns the messages to open with, the prompt's among them; None leaves the prompt as it is.

        What the task *is* comes from the prompt's row, so that all samples of one prompt meet the same task; `seed` differs from
        sample to sample, and is for noise.
        """
        return None

    def step(self, said: str) -> Turn:
        """Answer what the model said, which is text without control tokens."""
        raise NotImplementedError(f"{type(self).__name__} has no step(said); write one that returns a Turn")

    def cut(self, said: str) -> Score:
        """The worth of an episode that ran out of turns or tokens; `said` is the part of a turn that was cut off, empty between turns."""
        return earned(0.0)

    def close(self) -> None:
        """The episode is over; give back what it holds."""

    def tasks(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Rows of prompts that this environment can be played on, for those that can make their own."""
        raise ConfigError(f"{type(self).__name__} makes no tasks of its own; write a file of prompts for it")


def earned(value: float, **parts: float) -> Score:
    """A score of an episode: OK at full credit (1 or more), else WRONG; its first part is named "environment", as the reward is."""
    return Score(value, {"environment": value, **parts}, Status.OK if value >= 1 else Status.WRONG)


def told(text: str, role: str = "user") -> Turn:
    """A turn that goes on."""
    return Turn((Message(role, text),))


def after_prompt(prompt: Prompt, text: str) -> Messages:
    """The prompt's messages with a text after the last one's content; a user turn that is added when the last is not one."""
    *before, last = prompt.messages
    if last.role != "user":
        return (*prompt.messages, Message("user", text))
    return (*before, Message("user", f"{last.content}\n\n{text}" if last.content else text))


def whole(row: Mapping[str, Any], column: str, source: str) -> int:
    """A row's whole number. Raises DataError."""
    value = row.get(column)
    try:
        if isinstance(value, bool) or float(value) != int(value):  # type: ignore[arg-type]
            raise ValueError
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{source}: column {column!r} is {value!r}, and this environment needs a whole number there") from None


@dataclass(frozen=True)
class Opened:
    """A named environment with its options; calling it makes the environment of one episode."""

    name: str
    made_by: type[TextEnvironment]
    arguments: tuple[str, ...]
    options: Mapping[str, Any]

    def __call__(self) -> TextEnvironment:
        return self.made_by(*self.arguments, **self.options)

    def tasks(self, count: int, seed: int = 0) -> list[dict[str, Any]]:
        """Rows of prompts of its own making. Raises ConfigError for an environment that makes none."""
        environment = self()
        try:
            return environment.tasks(count, seed)
        finally:
            environment.close()

    def write_tasks(self, path: Path | str, count: int, seed: int = 0) -> Path:
        """The same as a file of prompts, one JSON object a line."""
        lines = [json.dumps(row, ensure_ascii=False) for row in self.tasks(count, seed)]
        write_atomic(Path(path), ("\n".join(lines) + "\n").encode())
        return Path(path)


def open_text_environment(text: str) -> Opened:
    """The environment that a text names, made once to see that its options are right.

    ``calculator``, ``guess(high=100)``, ``my_module:MyEnvironment(level=2)``, ``gymnasium:FrozenLake-v1(actions=["left", "down"])``,
    ``verifiers:my_taskset``. Values are written as in Python or JSON; nothing in the text is executed.

    Raises ConfigError for a name that does not exist, options it does not have or values it refuses; MissingExtraError for an
    adapter whose package is not installed.
    """
    name, options = _read(text)
    kind, colon, rest = name.partition(":")
    adapted = bool(colon) and kind in ADAPTERS
    if not colon and name not in BUILT_IN:
        close = difflib.get_close_matches(name, [*BUILT_IN, *ADAPTERS], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(BUILT_IN)}, {', '.join(f'{a}:NAME' for a in ADAPTERS)} and module:Class"
        raise ConfigError(f"environment {text!r} does not exist; {hint}")
    found = _find(ADAPTERS[kind] if adapted else BUILT_IN.get(name, name), text)
    opened = Opened(name, found, (rest,) if adapted else (), options)
    known = {n: p for n, p in inspect.signature(found).parameters.items() if p.kind is not p.VAR_KEYWORD}
    wrong = [o for o in options if o not in known] if len(known) == len(inspect.signature(found).parameters) else []
    if wrong:
        raise ConfigError(f"environment {name!r} has no option {wrong[0]!r}; it has {', '.join(list(known)[adapted:]) or 'none'}")
    try:
        opened().close()
    except TypeError as error:  # an option is missing
        raise ConfigError(f"environment {text!r} cannot be made: {error}") from error
    return opened


def _find(place: str, text: str) -> type[TextEnvironment]:
    module, _, name = place.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"environment {text!r}: {place} cannot be imported ({error}); check its name, and that the module can be found from here") from error
    if not (isinstance(found, type) and issubclass(found, TextEnvironment)):
        raise ConfigError(f"environment {text!r}: {place} is no environment; make it a subclass of truing.envs.text.TextEnvironment")
    return found


def _read(text: str) -> tuple[str, dict[str, Any]]:
    """``name(key=value, ...)`` as (name, {key: value})."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("write options as key=value")
        return name.strip(), {str(k.arg): ast.literal_eval(_Plain().visit(k.value)) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"environment {text!r}: the options cannot be read ({error}); write them as in calculator(turns=3, role='tool')") from None


class _Plain(ast.NodeTransformer):
    """JSON's words for what Python calls True, False and None."""

    WORDS = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(self.WORDS[node.id]) if node.id in self.WORDS else node
