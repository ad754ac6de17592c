"""Episodes of several turns: the model speaks, an environment answers, until one of them is done.

What is sampled stays token for token; what the environment says goes into `Rollout.heard`, where nothing can train on it and no
return can break at it. Each turn is a call of `sample` on the sequences so far, so every log-probability is the sampler's own,
and the prefix is computed again each turn: an episode of k equal turns reads about k / 2 times what one long turn would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from truing.config import Sampling
from truing.data.problems import BadRow
from truing.data.template import Renderer
from truing.envs.text import TextEnvironment, Turn
from truing.errors import ConfigError, ModelError
from truing.models.roles import Role
from truing.rollout.hosting import Failed, Host, ask
from truing.rollout.sampler import sample
from truing.rollout.spoken import between
from truing.rollout.stopping import plain_text
from truing.seeds import stream
from truing.types import Message, Messages, Prompt, Rollout, Score, Status

Environments = Callable[[], TextEnvironment]
"""Makes the environment of one episode; `open_text_environment` gives one."""


class Episodes(NamedTuple):
    """What `play` collects, one entry an episode.

    Attributes:
        rollout: the sampled tokens, and what was heard between them; ``finished_B`` is True where the episode ended by itself, not
            because of a limit on turns or tokens.
        outcomes: what each environment made of its episode; an environment that raised or hung gives a status and no number.
        transcripts: what was said and heard, for people.
        openings: the messages each episode began with: the prompt's, and what the environment added.
    """

    rollout: Rollout
    outcomes: list[Score]
    transcripts: list[str]
    openings: list[Messages]


@dataclass(frozen=True)
class Limits:
    """Where episodes are cut off. ``step_seconds`` bounds each call of an environment; None does not.

    ``max_new_tokens`` holds for a turn, ``max_total_tokens`` for all that is sampled in an episode, ``max_length`` for the whole
    sequence, which also stays within the model's context.
    """

    max_new_tokens: int
    max_turns: int = 8
    max_total_tokens: int | None = None
    max_length: int | None = None
    step_seconds: float | None = 60.0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_turns", "max_total_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} leaves no room for a turn; use 1 or more")
        if self.step_seconds is not None and not self.step_seconds > 0:
            raise ConfigError(f"step_seconds={self.step_seconds} leaves an environment no time; use more than 0, or null for no limit")


@dataclass
class _Episode:
    """One episode as it goes on."""

    prompt: Prompt
    number: int
    host: Host
    opening: Messages = ()
    start: list[int] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    logp: list[torch.Tensor] = field(default_factory=list)
    heard: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    sequence: list[int] = field(default_factory=list)
    roles: tuple[str, ...] = ()
    transcript: list[str] = field(default_factory=list)
    last_score: Score | None = None
    outcome: Score | None = None
    finished: bool = False

    def end(self, outcome: Score | None, finished: bool = False) -> None:
        """The episode is over. What no later token reads is no part of its sequence."""
        self.outcome, self.finished = _checked(outcome), finished
        if self.heard and self.heard[-1][0] == len(self.said):
            self.heard.pop()
        self.host.end()

    def fail(self, failure: Failed) -> None:
        self.end(failure.score())


def play(
    role: Role, prompts: Sequence[Prompt], environments: Environments | Sequence[Environments], renderer: Renderer, limits: Limits, *,
    temperature: float, seed: int, step: int, purpose: str = "sample", samples: Sequence[int] | None = None, version: int = 0,
    batch_size: int = 256, stop_ids: Sequence[int] | None = None, at_once: int = 1, sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> Episodes:  # fmt: skip
    """Play every prompt once.

    Args:
        role: the policy; its weights as they are now.
        prompts: one an episode (repeat a prompt for several).
        environments: makes an environment for every episode; or one such maker an episode.
        renderer: the tokenizer's, with which prompts and what is heard are written.
        seed, purpose, step, samples: what the randomness of each episode is a function of, its turns apart; the first turn's is that of
            `sample`, so an episode of one turn is bit for bit what `sample` gives.
        stop_ids: tokens that end a turn; by default the renderer's.
        sampling: truncation of the distribution, and texts that end a turn as a stop token does: the environment answers, and in the
            sequence the turn is closed as the template closes it, by tokens that are heard.
        at_once: environments that are asked at the same time. More than one helps those that wait (for a service, say), and needs
            environments that share nothing.

    A turn that is cut off ends its episode, as does a sequence without room for one more token. The environment then says what that is
    worth (`TextEnvironment.cut`). An environment that raises or is late ends its own episode with a status; others go on.

    Raises BadRow for a prompt that does not fit or cannot be rendered (`opening` finds these when data is read), ConfigError for
    limits or a temperature that cannot be meant, RewardError when too many environments hang for good.
    """
    makers: list[Environments] = [environments] * len(prompts) if callable(environments) else list(environments)
    numbers = list(range(len(prompts))) if samples is None else list(samples)
    if not prompts or len(makers) != len(prompts) or len(numbers) != len(prompts):
        raise ConfigError(f"play needs as many environments ({len(makers)}) and samples ({len(numbers)}) as prompts ({len(prompts)}), and one at least")
    stops = renderer.stop_ids if stop_ids is None else stop_ids
    cap = min(limits.max_length or math.inf, role.backbone.context or math.inf)
    episodes = [_Episode(p, n, Host(make)) for p, n, make in zip(prompts, numbers, makers, strict=True)]
    try:
        _begin(episodes, renderer, limits, cap, seed, purpose, step, at_once)
        going, turn = episodes, 0
        while going:
            drawn_for = purpose if turn == 0 else f"{purpose}/turn-{turn}"
            rooms = [_room(e, limits, cap) for e in going]
            turns: dict[int, tuple[str, bool]] = {}
            for room in sorted(set(rooms), reverse=True):
                part = [e for e, r in zip(going, rooms, strict=True) if r == room]
                drawn = sample(
                    role, [e.sequence for e in part], max_new_tokens=room, temperature=temperature, stop_ids=stops, seed=seed, step=step, purpose=drawn_for,
                    samples=[e.number for e in part], version=version, batch_size=batch_size, sampling=sampling, decode=plain_text(renderer.tokenizer),
                )  # fmt: skip
                turns |= _add(part, drawn, renderer)
            turn += 1
            _answer([e for e in going if e.outcome is None], turns, renderer, limits, at_once, stops)
            full = [e for e in going if e.outcome is None and (turn >= limits.max_turns or _room(e, limits, cap) < 1)]
            _cut(full, [""] * len(full), limits, at_once)
            going = [e for e in going if e.outcome is None]
    finally:
        for e in episodes:
            e.host.end()
    return _collected(episodes, temperature, version, sampling)


def opening(environments: Environments, prompt: Prompt, renderer: Renderer, max_length: int, answer: int = 1, context: int | None = None) -> list[int]:
    """The token ids an episode of this prompt begins with; for checking a file of prompts before anything is sampled.

    Raises BadRow where `Renderer.prompt` does, for the prompt as the environment opens it; and what the environment raises.
    """
    environment = environments()
    try:
        messages = environment.reset(prompt, 0)
    finally:
        environment.close()
    return renderer.prompt(replace(prompt, messages=prompt.messages if messages is None else tuple(messages)), max_length, answer, context)


def _begin(episodes: list[_Episode], renderer: Renderer, limits: Limits, cap: float, seed: int, purpose: str, step: int, at_once: int) -> None:
    """Reset every environment and write its opening. One that fails keeps a turn on the plain prompt: its row must hold something."""
    asked = [(e.prompt, stream(seed, f"{purpose}/environment", step, e.number)) for e in episodes]
    for e, messages in zip(episodes, ask([e.host for e in episodes], "reset", asked, limits.step_seconds, at_once), strict=True):
        if isinstance(messages, Failed):
            e.fail(messages)
        elif messages is not None and not (isinstance(messages, Sequence) and messages and all(isinstance(m, Message) for m in messages)):
            e.fail(Failed(Status.CRASHED, f"the environment's reset gave {messages!r:.80}, not messages or None"))
            messages = None
        e.opening = e.prompt.messages if messages is None or isinstance(messages, Failed) else tuple(messages)
        e.start = renderer.prompt(replace(e.prompt, messages=e.opening), int(cap) if cap < math.inf else 1 << 40)
        e.sequence, e.roles = list(e.start), tuple(m.role for m in e.opening)


def _room(e: _Episode, limits: Limits, cap: float) -> int:
    """How many tokens the next turn may have."""
    total = math.inf if limits.max_total_tokens is None else limits.max_total_tokens - len(e.said)
    return int(min(limits.max_new_tokens, total, cap - len(e.sequence)))


def _add(part: list[_Episode], drawn: Rollout, renderer: Renderer) -> dict[int, tuple[str, bool]]:
    """The sampled turn goes into each episode; its text and whether it ended by itself, by the episode's id()."""
    for e, ids, logp in zip(part, drawn.said(), drawn.sampler_logp_BT, strict=True):
        e.said += ids
        e.sequence += ids
        e.logp.append(logp[: len(ids)])
        e.roles = (*e.roles, "assistant")
        e.transcript.append(renderer.tokenizer.decode(ids, skip_special_tokens=True))
    return {id(e): (e.transcript[-1], bool(finished)) for e, finished in zip(part, drawn.finished_B.tolist(), strict=True)}


def _answer(going: list[_Episode], turns: dict[int, tuple[str, bool]], renderer: Renderer, limits: Limits, at_once: int, stops: Sequence[int]) -> None:
    """Every environment answers what was said; a turn that was cut off is the last."""
    short = [e for e in going if not turns[id(e)][1]]
    _cut(short, [turns[id(e)][0] for e in short], limits, at_once)
    asked = [e for e in going if turns[id(e)][1]]
    said = [(turns[id(e)][0],) for e in asked]
    for e, turn in zip(asked, ask([e.host for e in asked], "step", said, limits.step_seconds, at_once), strict=True):
        if isinstance(turn, Failed):
            e.fail(turn)
            continue
        try:
            _hear(e, turn, renderer, stops)
        except (BadRow, ModelError) as error:
            e.fail(Failed(Status.UNPARSED, f"what the environment said cannot be written: {error}"))


def _hear(e: _Episode, turn: Any, renderer: Renderer, stops: Sequence[int]) -> None:
    if not isinstance(turn, Turn) or not (isinstance(turn.heard, str) or all(isinstance(m, Message) for m in turn.heard)):
        e.fail(Failed(Status.CRASHED, f"the environment's step gave {turn!r:.80}, not a Turn of messages or text"))
        return
    e.transcript += [turn.heard] if isinstance(turn.heard, str) else [f"[{m.role}] {m.content}" for m in turn.heard]
    e.last_score = turn.score if turn.score is not None else e.last_score
    if turn.done:
        e.end(e.last_score, finished=not turn.truncated)
        return
    ids = between(renderer, e.roles, turn.heard, closed=e.said[-1] in stops)
    if ids:
        e.heard.append((len(e.said), tuple(ids)))
        e.sequence += ids
    if not isinstance(turn.heard, str):
        e.roles = (*e.roles, *(m.role for m in turn.heard))


def _cut(episodes: list[_Episode], said: list[str], limits: Limits, at_once: int) -> None:
    """These episodes ran out of turns or tokens; their environments say what they are worth."""
    for e, score in zip(episodes, ask([e.host for e in episodes], "cut", [(s,) for s in said], limits.step_seconds, at_once), strict=True):
        if isinstance(score, Failed):
            e.fail(score)
        else:
            e.end(score)


def _checked(score: Any) -> Score:
    """A score with a part of the reward's own name first; what is no finite number is a failure, never a zero."""
    if not isinstance(score, Score):
        return Failed(Status.CRASHED, f"the environment ended the episode with {score!r:.80}, not a Score").score()
    if not score.status.usable:
        return score
    if not math.isfinite(score.value):
        return Failed(Status.NON_FINITE, f"the environment gave {score.value}").score()
    return Score(score.value, {"environment": score.value, **score.parts}, score.status)


def _collected(episodes: list[_Episode], temperature: float, version: int, sampling: Sampling) -> Episodes:
    lengths = torch.tensor([len(e.said) for e in episodes])
    shape = len(episodes), int(lengths.max())
    tokens, logp = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    for row, e in enumerate(episodes):
        tokens[row, : len(e.said)] = torch.tensor(e.said)
        logp[row, : len(e.said)] = torch.cat(e.logp)
    heard = tuple(tuple(e.heard) for e in episodes)
    rollout = Rollout(
        [e.start for e in episodes], tokens, torch.arange(shape[1]) < lengths[:, None], logp, torch.tensor([e.finished for e in episodes]), temperature,
        version, heard if any(heard) else (), sampling,
    )  # fmt: skip
    outcomes = [e.outcome if e.outcome is not None else _checked(None) for e in episodes]
    return Episodes(rollout, outcomes, ["\n".join(e.transcript) for e in episodes], [e.opening for e in episodes])
