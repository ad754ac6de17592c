"""What a chat template writes around the messages, found without looking at what people wrote.

The template is rendered with an unguessable word in place of each message's content, and cut at those words. What is
left is the template's own text: `pieces[0] content[0] pieces[1] content[1] ... pieces[n]`. Nothing in a user's text can
move a cut. The same rendering with blanks around each word shows which blanks the template trims.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from truing.errors import ModelError
from truing.types import Message, Messages

Roles = tuple[str, ...]
_LEFT, _RIGHT = "\n \t", "\t \n"
_TRIMS = {"": "", "\n": "\n", "blank": None}  # what str.strip is given; None strips every blank

DATE = "26 Jul 2024"
"""Given to templates that ask for ``date_string``: a prompt must not change with the day it is rendered on."""


class DropsSystem(ModelError):
    """The template does not show the model its system turn."""


@dataclass(frozen=True, slots=True)
class Layout:
    """``pieces`` has one element more than there are messages; ``trims[i]`` says what is stripped left and right of content i."""

    pieces: tuple[str, ...]
    trims: tuple[tuple[str, str], ...]

    def contents(self, messages: Messages) -> list[str]:
        """Each message's content as the template shows it."""
        return [_strip(_strip(m.content, left, str.lstrip), right, str.rstrip) for m, (left, right) in zip(messages, self.trims, strict=True)]


def _strip(text: str, trim: str, strip: Callable[[str, str | None], str]) -> str:
    return strip(text, _TRIMS[trim])


class Template:
    """A tokenizer's chat template as layouts, one for each sequence of roles. transformers renders it in an immutable sandbox."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._word = "Zq" + secrets.token_hex(16)
        self._layouts: dict[tuple[Roles, bool], Layout] = {}
        self._questions: dict[Roles, str] = {}
        self.text: str = tokenizer.get_chat_template()
        self.marked = re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None

    def render(self, messages: Messages, generation: bool) -> str:
        """The template's own rendering. Raises ModelError when the template refuses."""
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation, date_string=DATE))
        except Exception as error:  # templates raise whatever they like: jinja2 errors, TypeError, KeyError
            roles = ", ".join(m.role for m in messages[:6])
            raise ModelError(f"the chat template refuses the turns ({roles}{', ...' if len(messages) > 6 else ''}): {error}; change the data's turns or use another tokenizer") from error

    def layout(self, roles: Roles, generation: bool) -> Layout:
        """What surrounds the contents of messages with these roles. Raises ModelError, or DropsSystem."""
        known = self._layouts.get((roles, generation))
        if known is None:
            known = self._layouts[roles, generation] = self._measure(roles, generation)
        return known

    def question(self, roles: Roles) -> str:
        """What the template writes after the last content when it asks for an answer; cheaper than a layout."""
        if roles not in self._questions:
            self._questions[roles] = self._cut(roles, True, "", "")[-1]
        return self._questions[roles]

    def _measure(self, roles: Roles, generation: bool) -> Layout:
        bare = self._cut(roles, generation, "", "")
        padded = self._cut(roles, generation, _LEFT, _RIGHT)
        n = len(roles)
        lefts, rights = [""] * n, [""] * n
        for i in range(n + 1):
            # a padded piece is: what is left of the right pad before it, the bare piece, what is left of the left pad after it
            before = _pads(_RIGHT, str.rstrip) if i > 0 else {"": ""}
            after = _pads(_LEFT, str.lstrip) if i < n else {"": ""}
            fits = [(b, a) for b, x in before.items() for a, y in after.items() if padded[i] == x + bare[i] + y]
            if not fits:
                raise ModelError(f"the chat template rewrites the blanks around a {roles[min(i, n - 1)]} turn ({padded[i]!r} for {bare[i]!r}); use one that shows contents as they are, or trims them")
            if i > 0:
                rights[i - 1] = fits[0][0]
            if i < n:
                lefts[i] = fits[0][1]
        trims = zip(lefts, rights, strict=True)
        return Layout(bare, tuple(trims))

    def _cut(self, roles: Roles, generation: bool, left: str, right: str) -> tuple[str, ...]:
        words = [f"{self._word}{i}z" for i in range(len(roles))]
        text = self.render(tuple(Message(r, left + w + right) for r, w in zip(roles, words, strict=True)), generation)
        found = re.findall(self._word + r"\d+z", text)
        if found != words:
            missing = [r for r, w in zip(roles, words, strict=True) if w not in found]
            if "system" in missing:
                raise DropsSystem("the chat template drops the system turn: the model would never see it; move its text into the first user turn, or use another template")
            what = f"drops the {missing[0]} turn" if missing else "repeats or reorders turns"
            raise ModelError(f"the chat template {what} of a conversation with the roles {', '.join(roles[:6])}; use a template that shows every turn once, in order")
        return tuple(re.split(self._word + r"\d+z", text))


def _pads(pad: str, strip: Callable[[str, str | None], str]) -> dict[str, str]:
    """What remains of a pad under each trim."""
    return {name: _strip(pad, name, strip) for name in _TRIMS}
