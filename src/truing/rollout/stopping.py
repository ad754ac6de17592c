"""When a completion is over: at a stop token, or once its text holds a stop string. Nothing is cut off or encoded again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from truing.errors import ConfigError

Decode = Callable[[list[list[int]]], list[str]]
"""The texts of lists of token ids, special tokens written out."""

CHARACTER = 4  # bytes, and so tokens, of the longest character
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what bytes of a character that is not complete yet are decoded to


def plain_text(tokenizer: Any) -> Decode:
    """The tokenizer's texts as they are: special tokens written out, no blank added or taken away."""
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False, "spaces_between_special_tokens": False}
    return lambda rows: list(tokenizer.batch_decode(rows, **plain))


class Stops:
    """What ends the completions of one request.

    A stop string may lie across tokens, begin or end inside one, and share characters with byte tokens: it is looked for in the text
    of a row's last tokens, as many as the longest string has bytes and one more (no token that says anything says less than a byte).
    Only rows whose newest token can end a string are decoded.

    Args:
        ids: tokens that end a completion.
        texts: strings that end a completion, none of them empty.
        decode: lists of ids to texts, see `plain_text`.

    Raises ConfigError for an empty text, and for texts without ``decode``.
    """

    def __init__(self, ids: Sequence[int], texts: Sequence[str] = (), decode: Decode | None = None) -> None:
        if isinstance(texts, str):
            raise ConfigError(f"stop={texts!r} is one string; write a list of them, [{texts!r}]")
        if "" in texts:
            raise ConfigError("stop has an empty string, which every completion holds from the start; write the text that ends one")
        if texts and decode is None:
            raise ConfigError(
                f"stop strings {list(texts)} are looked for in text, and there is nothing to decode tokens with; give decode, for example plain_text(tokenizer)"
            )
        self.ids, self.texts = torch.tensor(list(ids), dtype=torch.long), tuple(texts)
        self._decode = decode
        self._tokens = 1 + max((len(t.encode()) for t in self.texts), default=0)
        self._tails: dict[int, deque[int]] = {}
        self._says: dict[int, str] = {}  # what each token seen so far says by itself

    def stopped(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Whether each completion is over, ``[b]``.

        Args:
            rows: ``[b]`` numbers of the rows in the whole request, each at most once.
            tokens: ``[b]`` what each has just drawn; to be called with every token of a row, in order.
        """
        if self.ids.device != tokens.device:
            self.ids = self.ids.to(tokens.device)
        over = torch.isin(tokens, self.ids)
        if self._decode is not None and self.texts:
            over |= torch.tensor(self._holds(rows.tolist(), tokens.tolist(), self._decode), dtype=torch.bool, device=tokens.device)
        return over

    def _holds(self, rows: list[int], tokens: list[int], decode: Decode) -> list[bool]:
        new = sorted({t for t in tokens if t not in self._says})
        self._says.update(zip(new, self._texts_of([[t] for t in new], decode), strict=True))
        asked: list[int] = []
        windows: list[list[int]] = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            says = self._says[token]
            if says:
                self._tails.setdefault(row, deque(maxlen=self._tokens)).append(token)
                if UNFINISHED in says or any(text[-1] in says for text in self.texts):
                    own = list(self._tails[row])
                    for start in range(min(CHARACTER, len(own))):  # the tail may begin inside a character: then also from the next token on
                        asked.append(place)
                        windows.append(own[start:])
                        if UNFINISHED not in self._says[own[start]]:
                            break
        found = [False] * len(rows)
        for place, said in zip(asked, self._texts_of(windows, decode), strict=True):
            if any(text in said for text in self.texts):
                found[place] = True
                self._tails.pop(rows[place], None)
        return found

    @staticmethod
    def _texts_of(lists: list[list[int]], decode: Decode) -> list[str]:
        """What these tokens say in the middle of a text. Some tokenizers drop the blank before the first word they decode, so each
        list is decoded after its own first token, whose text is then taken off; but a piece of a character, which has no blank, would spoil it."""
        if not lists:
            return []
        alone = decode([[own[0]] for own in lists])
        both = decode([own if UNFINISHED in first else [own[0], *own] for own, first in zip(lists, alone, strict=True)])
        return [said if UNFINISHED in first else said[len(first) :] for said, first in zip(both, alone, strict=True)]
