"""Python functions of the texts as scorers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truing.errors import ConfigError, RewardError
from truing.rewards import answers
from truing.rewards.build import LOCAL
from truing.rewards.completions import Completions, failed
from truing.rewards.lines import Lines
from truing.rewards.process import START, Died, Process, Refused
from truing.rewards.worker import find, plain, told
from truing.types import Score, Status


class Function:
    """``function(prompts, completions) -> numbers``, called once a batch in this process; what it raises marks the batch as crashed."""

    def __init__(self, name: str, function: Callable[..., Any], lines: Lines | None = None) -> None:
        self.name, self.function, self.lines = name, function, lines

    def __call__(self, batch: Completions) -> list[Score]:
        try:
            values = plain(self.function(list(batch.prompts), list(batch.texts)))
        except (Exception, SystemExit) as error:  # a reward's own failure is data, whatever it raised
            return [failed(Status.CRASHED, f"{self.name}: {told(error)}")] * len(batch)
        return answers.scores(values, batch, self.name, self.lines)


class Isolated:
    """The same in a process of its own, within `timeout` seconds a batch.

    A batch that takes longer is marked TIMED_OUT, one in which the process dies or the function raises CRASHED with the reason;
    the next batch gets a fresh process. So the function should be pure: what it keeps between batches may be lost.
    """

    def __init__(self, name: str, target: str, timeout: float, lines: Lines | None = None) -> None:
        self.name, self.timeout, self.lines = name, timeout, lines
        self.process = Process(target)

    def __call__(self, batch: Completions) -> list[Score]:
        try:
            answer = self.process.ask(list(batch.prompts), list(batch.texts), self.timeout)
        except TimeoutError:
            return [failed(Status.TIMED_OUT, f"{self.name} took longer than {self.timeout:g} s for {len(batch)} completions")] * len(batch)
        except (Died, Refused, OSError) as error:
            return [failed(Status.CRASHED, f"{self.name}: {error}")] * len(batch)
        if "raised" in answer:
            return [failed(Status.CRASHED, f"{self.name}: {answer['raised']}")] * len(batch)
        if "values" not in answer:
            raise RewardError(f"reward {self.name}: its process answered {str(answer)[:100]}")
        return answers.scores(answer["values"], batch, self.name, self.lines)

    def close(self) -> None:
        self.process.close()


def text_function(target: str, name: str, timeout: float | None, lines: Lines | None) -> Function | Isolated:
    """The scorer of ``module:function``. Raises ConfigError when it cannot be imported."""
    if target.startswith("<local>:"):
        if target not in LOCAL:
            raise ConfigError(f"reward {target!r} lived in the Python process that made it; run that script again, or put the function into a module and write module:function")
        return Function(name, LOCAL[target], lines)
    if timeout is None:
        try:
            return Function(name, find(target), lines)
        except Exception as error:  # importing a person's module can raise anything
            raise _cannot(target, told(error)) from error
    scorer = Isolated(name, target, timeout, lines)
    try:
        scorer.process.start()
    except Refused as error:
        raise _cannot(target, str(error)) from None
    except TimeoutError:
        raise _cannot(target, f"its module was not imported within {START:g} s") from None
    except Died as error:
        raise _cannot(target, str(error)) from None
    return scorer


def _cannot(target: str, why: str) -> ConfigError:
    remedy = "run from the folder that holds it, or put that folder on PYTHONPATH" if "ModuleNotFoundError" in why else "write package.module:function"
    return ConfigError(f"scorer {target!r} cannot be imported ({why}); {remedy}")
