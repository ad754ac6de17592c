"""Text in another model's tokens: for scorers whose tokenizer is not the policy's, and for them alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from truing.data.template import Renderer
from truing.errors import ModelError
from truing.rewards.completions import Completions
from truing.types import Message

_NO_LIMIT = 10**9


class Tokens(NamedTuple):
    """Ids, and for each whether it is of the second text of a pair."""

    ids: list[int]
    kinds: list[int]


class Retokeniser:
    """Prompt and completion through the scorer's chat template; without one as a pair of texts (BERT), or one after the other.

    It knows what text functions know: the last message of the prompt and the completion's text. The names of control tokens in
    either are ordinary text. A completion that was cut off gets no end-of-turn token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pairs = not getattr(tokenizer, "chat_template", None) and getattr(tokenizer, "sep_token_id", None) is not None
        self._renderer = None if self.pairs else Renderer(tokenizer)

    def __call__(self, batch: Completions) -> list[Tokens]:
        return [self._one(p, c, done) for p, c, done in zip(batch.prompts, batch.texts, batch.finished, strict=True)]

    def _one(self, prompt: str, completion: str, finished: bool) -> Tokens:
        if self._renderer is None:
            found = self.tokenizer(prompt, completion, split_special_tokens=True, return_token_type_ids=True)
            return Tokens(list(found.input_ids), list(found.token_type_ids))
        rendered = self._renderer.completion((Message("user", prompt),), (Message("assistant", completion),), _NO_LIMIT)
        ids = list(rendered.ids)
        if not finished and ids[-1] in self._renderer.stop_ids:
            ids.pop()
        return Tokens(ids, [0] * len(ids))


def check_length(lengths: list[int], limit: int | None, name: str) -> None:
    """Raises ModelError when a sequence exceeds the scorer's context."""
    if limit and lengths and max(lengths) > limit:
        raise ModelError(f"reward {name}: a text of {max(lengths)} of its tokens exceeds its context of {limit}; lower max_length or max_new_tokens")
