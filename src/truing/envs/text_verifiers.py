"""``verifiers:TASKSET(...)``: an environment of the package verifiers, of version 0.4 or later.

The environment runs as it is, its own code in charge: here it only meets a model that answers when Truing's sampler has. Its
rubric (the task's rewards, with their weights) gives the score, what it sends the model is heard. Source: the package's
``verifiers.v1``, https://github.com/PrimeIntellect-ai/verifiers.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from truing.envs.text import TextEnvironment, Turn, whole
from truing.errors import ConfigError, DataError, MissingExtraError
from truing.types import Message, Messages, Prompt, Score


class VerifiersText(TextEnvironment):
    """The row's column ``task`` is the task's position in the taskset; `tasks` (and so `write_tasks`) makes such rows.

    Args:
        taskset: its id: an importable module that exports a Taskset, and perhaps an Env, in ``__all__``.
        env: the id of an environment to play it with, where it is not the taskset's own.
        seat: the agent the model plays; needed when the environment has several. The others need a model of their own in ``config``.
        config: further settings of the environment, as verifiers takes them.
        options: settings of the taskset.

    An environment whose tasks bring tools (MCP servers) or need a container is refused. Messages must be text.
    """

    def __init__(self, taskset: str, env: str = "", seat: str = "", config: dict[str, Any] | None = None, **options: Any) -> None:
        if not taskset:
            raise ConfigError("environment 'verifiers:' names no taskset; write verifiers:NAME")
        self.service = service()
        self.env = self.service.opened(taskset, env, seat, config or {}, options)
        self.episode: Any = None
        self.known = 0

    def reset(self, prompt: Prompt, seed: int) -> Messages | None:
        position = whole(prompt.extra, "task", prompt.source)
        task = self.env.task(position)
        if task is None:
            raise DataError(f"{prompt.source}: column 'task' is {position}, and the taskset has only {len(self.env.read)} tasks")
        self.episode = self.env.begin(task)
        asked = self.episode.wait()
        if asked is None:
            raise self.episode.failure() or DataError(f"{prompt.source}: the environment ended task {position} without asking the model anything")
        return self._heard(asked)

    def step(self, said: str) -> Turn:
        self.episode.say(said)
        asked = self.episode.wait()
        return Turn(self._heard(asked)) if asked is not None else Turn(done=True, score=self.episode.score())

    def cut(self, said: str) -> Score:
        if said:
            self.episode.say(said, "length")
        self.episode.refuse()
        return self.episode.score()

    def close(self) -> None:
        if self.episode is not None:
            self.episode.cancel()

    def tasks(self, count: int, seed: int) -> list[dict[str, Any]]:
        """The first `count` tasks of the taskset, or all of them."""
        self.env.task(count - 1)
        return [self.env.row(i) for i in range(min(count, len(self.env.read)))]

    def _heard(self, asked: list[dict[str, Any]]) -> Messages:
        """What is new since the last turn: what follows the messages that were known, and the model's own."""
        new = asked[self.known :]
        self.known = len(asked) + 1
        if not all(isinstance(m.get("content"), str) for m in new):
            raise ConfigError("the environment's messages are not all text, and only text can be written for this model")
        return tuple(Message(m["role"], m["content"]) for m in new)


def service() -> Any:
    """The part that needs the package. Raises MissingExtraError without it."""
    try:
        version = importlib.import_module("verifiers").__version__
        v1: ModuleType = importlib.import_module("verifiers.v1")
        found = hasattr(v1, "resolve_env_config") and hasattr(v1, "SingleAgentEnv")
    except ImportError as error:
        raise MissingExtraError(f"environments of verifiers need the package verifiers, 0.4 or later, which cannot be imported ({error}); pip install verifiers") from error
    if not found:
        raise MissingExtraError(f"environments of verifiers need version 0.4 or later, and {version} is installed; pip install -U verifiers")
    return importlib.import_module("truing.envs.text_verifiers_service").SERVICE
