"""The records that flow through Truing, in the order they flow.

Legend of shape suffixes used everywhere: B batch (sequences), T time (completion tokens, right-padded), N packed
tokens of a batch, G group, V vocabulary, D width.

``trained`` is True where a token counts in the loss; there is no second mask with the opposite meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Status(StrEnum):
    """How a score came to be. Only OK and WRONG carry a value that may be trained on."""

    OK = "ok"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    NON_FINITE = "non_finite"

    @property
    def usable(self) -> bool:
        return self in (Status.OK, Status.WRONG)


@dataclass(frozen=True, slots=True)
class Score:
    """One reward: its value, the named parts it was made of, and how it came to be.

    ``Score(0.8, {"rm": 1.0, "excess_tokens(150)": 20.0})`` is what ``rm - 0.01 * excess_tokens(150)`` makes: parts are as they were
    before sign and weight. A failed one keeps ``value = nan`` and a status that says why; it is left out of every mean and counted.

    ``spread`` is empty when the value stands at the completion's last token; else it holds one number a completion token,
    and they add up to the value.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    status: Status = Status.OK
    spread: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is system, user, assistant or tool."""

    role: str
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation to imitate: every assistant turn of it is trained.

    ``source`` is ``file:line`` (or ``hub-id#row``), for messages to people.
    """

    messages: Messages
    id: str
    source: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt; ``chosen`` was judged better, by ``margin`` when the data says so."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    id: str
    source: str
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something to answer. ``extra`` holds the row's other columns (a gold answer, say), for verifiers."""

    messages: Messages
    id: str
    source: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """One completion with a thumb up (True) or down (False): unpaired feedback."""

    prompt: Messages
    completion: Messages
    label: bool
    id: str
    source: str


Record = Demonstration | Preference | Prompt | Judged


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised sequence. ``trained[i]`` is True where predicting ``ids[i]`` counts in the loss.

    Example: ids ``[u1 u2 a1 a2 end]`` with trained ``[F F T T T]``: the completion and its end-of-turn token.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    id: str = ""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A tokenised preference: both sequences are prompt + completion."""

    chosen: Tokens
    rejected: Tokens
    margin: float = 0.0
    id: str = ""


class Truncation(Protocol):
    """Which part of the distribution tokens were drawn from; `truing.config.Sampling` is one, and says what its fields mean."""

    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a sampler produced, token for token; nothing in it was decoded and re-encoded.

    Attributes:
        prompts: the prompt's token ids, one list a sequence.
        completion_BT: sampled token ids, right-padded with ``pad``; the end-of-turn token is included when sampled.
        trained_BT: True at real completion tokens (the end-of-turn token counts), False at padding.
        sampler_logp_BT: the sampler's own log-probability of each token *at the temperature and truncation used*; 0 at padding.
        finished_B: True where the completion ended by itself (an end-of-turn token), False where it was cut off.
        temperature: the logits were divided by this.
        version: the weight version (number of updates) that made it.
        heard: what an environment said in between, one tuple a sample of ``(k, ids)``: these tokens stand before the k-th sampled one
            (from 0). They are part of the state, never of the action: no tensor here has a place for them, so they are not trained
            on and break no return. Empty when nobody spoke.
        truncation: which tokens could be drawn at all; None for every one.

    Example: a sample said ``[a b]``, was told ``[x y z]`` and said ``[c]``: completion ``[a b c]``, heard ``((2, (x, y, z)),)``.
    """

    prompts: list[list[int]]
    completion_BT: Tensor
    trained_BT: Tensor
    sampler_logp_BT: Tensor
    finished_B: Tensor
    temperature: float
    version: int
    heard: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...] = ()
    truncation: Truncation | None = None

    @property
    def lengths_B(self) -> Tensor:
        return self.trained_BT.sum(-1)

    def select(self, rows: list[int]) -> Rollout:
        """The rollout of some of the samples."""
        return Rollout(
            [self.prompts[i] for i in rows], self.completion_BT[rows], self.trained_BT[rows], self.sampler_logp_BT[rows], self.finished_B[rows],
            self.temperature, self.version, tuple(self.heard[i] for i in rows) if self.heard else (), self.truncation,
        )  # fmt: skip

    def said(self) -> list[list[int]]:
        """What each sample said: its sampled tokens, without padding."""
        return [row[:n] for row, n in zip(self.completion_BT.tolist(), self.lengths_B.tolist(), strict=True)]

    def turns(self) -> list[list[list[int]]]:
        """What each sample said, turn by turn: its sampled tokens, cut where something was heard."""
        out = []
        for b, said in enumerate(self.said()):
            cuts = [0, *(k for k, _ in (self.heard[b] if self.heard else ())), len(said)]
            out.append([said[a:z] for a, z in zip(cuts, cuts[1:], strict=False)])
        return out

    def sequences(self) -> list[list[int]]:
        """Everything each sample read and said, in order: prompt, completion, and what was heard in between."""
        out = []
        for b, (prompt, said) in enumerate(zip(self.prompts, self.said(), strict=True)):
            row, done = list(prompt), 0
            for k, ids in self.heard[b] if self.heard else ():
                row += [*said[done:k], *ids]
                done = k
            out.append(row + said[done:])
        return out

    def places(self) -> list[list[int]]:
        """Where in its sequence each sampled token stands."""
        out = []
        for b, (prompt, n) in enumerate(zip(self.prompts, self.lengths_B.tolist(), strict=True)):
            place = list(range(len(prompt), len(prompt) + n))
            for k, ids in self.heard[b] if self.heard else ():
                place[k:] = [p + len(ids) for p in place[k:]]
            out.append(place)
        return out
