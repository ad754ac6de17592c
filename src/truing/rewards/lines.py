"""Where the lines of a completion end, in tokens: rewards "at steps" stand there.

A line is a line of text that is not blank: ``[line for line in completion.split("\\n") if line.strip()]``. It ends with the token
that holds its newline; the last one ends with the completion's last token. A completion without text counts as one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truing.errors import ConfigError


class Lines:
    """Finds line ends for one tokenizer; remembers which tokens hold a newline."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ConfigError("rewards at the lines of a completion need the policy's tokenizer to find them; give find_scorer(..., tokenizer=...)")
        self.tokenizer = tokenizer
        self._holds: dict[int, bool] = {}

    def ends(self, ids: Sequence[int]) -> list[int]:
        """Index of the last token of each line; two lines that end within one token share it.

        Pieces between newlines are decoded whole, so characters of several tokens are not torn.
        """
        found: list[int] = []
        begun, start = "", 0
        for t, token in enumerate(ids):
            if self._newline(token):
                *done, begun = (begun + self._text(ids[start : t + 1])).split("\n")
                found += [t for line in done if line.strip()]
                start = t + 1
        if (begun + self._text(ids[start:])).strip() or not found:
            found.append(len(ids) - 1)
        found[-1] = len(ids) - 1
        return found

    def _newline(self, token: int) -> bool:
        if token not in self._holds:
            self._holds[token] = "\n" in self._text([token])
        return self._holds[token]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""
