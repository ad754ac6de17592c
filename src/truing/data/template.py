"""Records as token ids, with a `trained` mask that is right by construction.

A sequence is put together from parts whose origin is known: the template's own text, tokenised with its control tokens,
and each message's content, tokenised as ordinary text, so that ``<|im_end|>`` inside a message never becomes the
control token. What is trained is what the model has to write when it answers: everything from the end of the
generation prompt to the end-of-turn token, both contents and that token included. Role headers, prompts and the newline
after the end-of-turn token are not. Token ids are never searched for to find the turns.

The price is that no token spans the border of two parts. Where a tokenizer would merge across it (SmolLM2: an answer
that starts with two blanks), these ids differ from ``apply_chat_template(tokenize=True)``; the text is the same, and
training and generation use the same ids: the ids of a prompt are a prefix of the ids of its demonstration.

A sequence ends with its last trained token: what a template writes after the last end-of-turn token (a newline) is left
out, as a sampled completion does not have it either, and a reward model reads both at their last token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from truing.data.formats import prompt_of
from truing.data.layout import DATE, DropsSystem, Layout, Roles, Template
from truing.data.problems import BadRow
from truing.errors import ModelError
from truing.types import Demonstration, Judged, Message, Messages, Preference, Prompt, TokenPair, Tokens


@dataclass(frozen=True, slots=True)
class _Part:
    ids: list[int]
    trained: int
    """How many of the first ids are trained."""


class Renderer:
    """Turns records into tokens for one tokenizer.

    Padding plays no part: masks come from lengths, so a tokenizer whose pad token is its eos token (SmolLM2) still
    learns to stop. A tokenizer without a chat template gets plain prompt + completion + eos, one turn of each.

    Attributes:
        stop_ids: the token ids that end a generation: the template's end-of-turn token, and the model's eos.

    Raises:
        ModelError: no chat template and no eos token; a template that never closes the assistant's turn with a special
            token, whose generation prompt is not what it writes before an answer, or that rewrites contents.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._template = Template(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
        added = tokenizer.added_tokens_decoder.items()
        template_text = self._template.text if self._template else ""
        # added tokens that are not special but that the template writes (<tool_response>) could be forged just as well
        self._control = {i: t.content for i, t in added if i in self._special or (t.content in template_text and not t.content.isspace())}
        longest_first = sorted(filter(None, self._control.values()), key=len, reverse=True)
        if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            self._control.pop(tokenizer.unk_token_id, None)  # stands for a character the vocabulary lacks, and controls nothing
        self._forged = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._after_newline = self._needs_newline()
        self._pieces: dict[tuple[str, bool], list[int]] = {}
        eos = tokenizer.eos_token_id
        if self._template:
            end = self._find_end_of_turn()
            self.stop_ids: tuple[int, ...] = (end,) if eos in (None, end) else (end, eos)
        elif eos is None:
            raise ModelError("the tokenizer has neither a chat template nor an eos token, so a model could never learn to stop; set one")
        else:
            self.stop_ids = (eos,)

    # The four entries

    def prompt(self, record: Prompt, max_length: int, answer: int = 1, context: int | None = None) -> list[int]:
        """Token ids to generate from, the generation prompt included.

        Raises BadRow (prompt_too_long) when an ``answer`` of that many tokens would not fit below ``max_length``, or into the model's ``context``.
        """
        ids = self._prompt_ids(record.messages, record.source)
        if answer == 1:
            self._check_room(ids, max_length, record.source)
        elif len(ids) + answer > max_length:
            why = f"the prompt has {len(ids)} tokens, and max_length={max_length} must hold max_new_tokens={answer} more; raise max_length, lower max_new_tokens or shorten the prompt"
            raise BadRow("prompt_too_long", why, record.source)
        if context is not None and len(ids) + answer > context:
            why = f"the prompt has {len(ids)} tokens, and the model's context of {context} must hold {answer} more; shorten the prompt or lower max_new_tokens"
            raise BadRow("prompt_too_long", why, record.source)
        return ids

    def demonstration(self, record: Demonstration, max_length: int) -> Tokens:
        """A conversation with every assistant turn trained; what exceeds ``max_length`` is cut off at the end.

        Raises BadRow (nothing_to_train) when no trained token is left.
        """
        tokens = self._tokens(record.messages, 0, record.source, record.id, max_length)
        if not tokens.ids:
            raise BadRow("nothing_to_train", f"the prompt alone fills max_length={max_length} tokens, so nothing is left to train; raise max_length or shorten it", record.source)
        # a prefix of itself by construction of the layouts; this raises where a template breaks that
        self._prefix(record.messages, len(prompt_of(record)), record.source)
        return tokens

    def completion(self, prompt: Messages, completion: Messages, max_length: int, source: str = "", id: str = "") -> Tokens:
        """Prompt and completion as one sequence, trained in the completion only; cut off at the end to ``max_length``.

        Raises BadRow (prompt_too_long) when no token of the completion would fit.
        """
        self._prefix(prompt + completion, len(prompt), source)
        self._check_room(self._prompt_ids(prompt, source), max_length, source)
        return self._tokens(prompt + completion, len(prompt), source, id, max_length)

    def pair(self, record: Preference, max_length: int) -> TokenPair:
        """Both sides of a preference. Raises BadRow (prompt_too_long, identical_after_truncation)."""
        chosen, rejected = (self.completion(record.prompt, side, max_length, record.source, record.id) for side in (record.chosen, record.rejected))
        if chosen.ids == rejected.ids:
            raise BadRow("identical_after_truncation", f"chosen and rejected differ only after max_length={max_length} tokens; raise max_length", record.source)
        return TokenPair(chosen, rejected, record.margin or 0.0, record.id)

    def judged(self, record: Judged, max_length: int) -> Tokens:
        """The judged completion after its prompt. Raises BadRow (prompt_too_long)."""
        return self.completion(record.prompt, record.completion, max_length, record.source, record.id)

    def names_control_token(self, text: str) -> bool:
        """Whether a text contains the name of a control token, which will be written in ordinary tokens."""
        return self._forged.search(text) is not None

    # Putting parts together

    def _tokens(self, messages: Messages, first: int, source: str, id: str, max_length: int) -> Tokens:
        ids: list[int] = []
        trained: list[bool] = []
        for part in self._parts(messages, first, source):
            ids += part.ids
            trained += [True] * part.trained + [False] * (len(part.ids) - part.trained)
        end = max((i + 1 for i, on in enumerate(trained[:max_length]) if on), default=0)
        return Tokens(tuple(ids[:end]), tuple(trained[:end]), id)

    def _parts(self, messages: Messages, first: int, source: str, generation: bool = False) -> list[_Part]:
        """The sequence's parts; assistant turns before ``first`` are not trained."""
        if self._template is None:
            prompt, answer = self._plain(messages, source)
            text = self._text_ids(answer.content, source, first=True)
            return [_Part(self._plain_prompt(prompt, source), 0), _Part(text, len(text)), _Part([self.stop_ids[0]], 1)]
        layout = self._layout(messages, generation, source)
        contents = layout.contents(messages)
        self._check_text(messages, layout, contents, generation, source)
        parts: list[_Part] = []
        open_turn = False
        for i, piece in enumerate(layout.pieces):
            last = i == len(messages)
            answers = not last and messages[i].role == "assistant"
            cut = len(self._before_answer(messages, i, piece)) if answers else 0
            # a blank before a content is one token with its first word, as in all text, except where a prompt ends
            lead = len(piece) if last else max(cut, len(piece.rstrip(" ")))
            cut = cut if answers else lead
            head = self._template_ids(piece[:cut], first=i == 0)
            parts.append(_Part(head, self._through_end_of_turn(head) if open_turn else 0))
            open_turn = answers and i >= first
            between = self._template_ids(piece[cut:lead], first=False)
            text = [] if last else self._text_ids(piece[lead:] + contents[i], source, first=i == lead == 0)
            parts += [_Part(part, len(part) if open_turn else 0) for part in (between, text)]
        return parts

    def _prompt_ids(self, messages: Messages, source: str) -> list[int]:
        if self._template is None:
            return self._plain_prompt(self._plain((*messages, Message("assistant", "")), source)[0], source)
        return [i for part in self._parts(messages, len(messages), source, generation=True) for i in part.ids]

    def _before_answer(self, messages: Messages, i: int, piece: str) -> str:
        """What the template writes last when it is asked for answer ``i``; ``piece`` is what it writes before the answer itself."""
        asked = self._chat.question(tuple(m.role for m in messages[:i])) if i else ""
        if not piece.startswith(asked):
            raise ModelError(
                f"the chat template asks for an answer with {asked!r} but writes {piece!r} before the answer itself, so training would not match generation; use a template in which the two agree"
            )
        return asked

    def _prefix(self, messages: Messages, n: int, source: str) -> None:
        """Raise ModelError unless the rendering of the first ``n`` messages as a prompt begins that of all of them."""
        if self._template is None:
            return
        asked, whole = self._layout(messages[:n], True, source), self._layout(messages, False, source)
        if asked.pieces[:n] != whole.pieces[:n] or asked.trims != whole.trims[:n]:
            raise ModelError("the chat template writes a prompt differently once its answer is there, so training would not match generation; use a template that writes each turn independently of later ones")
        self._before_answer(messages, n, whole.pieces[n])

    def _check_room(self, prompt_ids: list[int], max_length: int, source: str) -> None:
        if len(prompt_ids) > max_length - 1:
            raise BadRow("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens and max_length={max_length} must also hold an answer; raise max_length or shorten the prompt", source)

    def _layout(self, messages: Messages, generation: bool, source: str) -> Layout:
        roles: Roles = tuple(m.role for m in messages)
        try:
            return self._chat.layout(roles, generation)
        except DropsSystem as error:
            raise BadRow("template_drops_system", str(error), source) from error
        except ModelError as error:
            raise BadRow("template_refuses", str(error), source) from error

    def _check_text(self, messages: Messages, layout: Layout, contents: list[str], generation: bool, source: str) -> None:
        """Raise BadRow unless our parts, put together, are exactly what the template renders for the real contents."""
        ours = layout.pieces[0] + "".join(c + p for c, p in zip(contents, layout.pieces[1:], strict=True))
        if ours != self._chat.render(messages, generation):
            raise BadRow("template_rewrites_content", "the chat template changes the content of this row (it reacts to something in the text, such as a <think> block); remove that from the text or use another template", source)

    @property
    def _chat(self) -> Template:
        if self._template is None:
            raise ModelError("the tokenizer has no chat template")
        return self._template

    # Tokens

    def _template_ids(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if (text, first) not in self._pieces:
            self._pieces[text, first] = self._encode(text, first, split_special_tokens=False)
        return self._pieces[text, first]

    def _text_ids(self, text: str, source: str, first: bool = False) -> list[int]:
        """Ordinary text. A control token's name in it is spelled out in ordinary tokens."""
        if not text:
            return []
        ids = self._encode(text, first, split_special_tokens=True)
        if self._control.keys().isdisjoint(ids):
            return ids
        # the tokenizer obeyed a control token all the same: cut each name after its first letter, so that none is left whole
        cuts = [0, *(m.start() + 1 for m in self._forged.finditer(text)), len(text)]
        ids = [i for n, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)) if a < b for i in self._encode(text[a:b], first and n == 0, split_special_tokens=True)]
        forged = self._control.keys() & set(ids)
        if forged:
            name = self._control[min(forged)]
            raise BadRow("control_token_in_text", f"the text contains {name!r}, which this tokenizer cannot write as ordinary text; remove it", source)
        return ids

    def _encode(self, text: str, first: bool, split_special_tokens: bool) -> list[int]:
        lead = "\n" if self._after_newline and not first else ""
        ids = list(self.tokenizer(lead + text, add_special_tokens=False, split_special_tokens=split_special_tokens).input_ids)
        return ids[len(self._newline) :] if lead else ids

    def _needs_newline(self) -> bool:
        """Whether the tokenizer puts a blank before the first word of every text (SentencePiece): parts from the middle are then encoded after a newline, which is taken off again."""
        self._newline = list(self.tokenizer("\n", add_special_tokens=False).input_ids)
        alone = list(self.tokenizer("a", add_special_tokens=False).input_ids)
        after = list(self.tokenizer("\na", add_special_tokens=False).input_ids)
        return bool(self._newline) and after[: len(self._newline)] == self._newline and after[len(self._newline) :] != alone

    def _through_end_of_turn(self, ids: list[int]) -> int:
        """How many ids belong to the answer that was just written: through the end-of-turn token, or none if another comes first."""
        n = next((i + 1 for i, token in enumerate(ids) if token in self._special), 0)
        return n if n and ids[n - 1] in self.stop_ids else 0

    def _find_end_of_turn(self) -> int:
        """The token that closes an answer: the first special one after its content, in a rendered probe."""
        roles: Roles = ("user", "assistant")
        closing = self._chat.layout(roles, False).pieces[-1]
        ids = self._template_ids(closing, first=False)
        end = next((i for i in ids if i in self._special), None)
        if end is None:
            raise ModelError(f"the chat template ends an answer with {closing!r}, which has no special token, so a model could never learn to stop; add the eos token to the template")
        self._prefix((Message("user", "a"), Message("assistant", "a")), 1, "the chat template")
        if self._chat.marked:
            self._check_markers()
        return end

    def _check_markers(self) -> None:
        """Raise ModelError where the template's own {% generation %} markers leave the answer out."""
        chat = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c d e"}]
        out = self.tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True, date_string=DATE)
        marked = [i for i, on in zip(out["input_ids"], out["assistant_masks"], strict=True) if on]
        if "c d e" not in self.tokenizer.decode(marked):
            raise ModelError("the chat template's {% generation %} markers do not enclose the assistant's content; correct the template")

    # Without a template

    def _plain(self, messages: Messages, source: str) -> tuple[Message, Message]:
        if [m.role for m in messages] != ["user", "assistant"]:
            roles = ", ".join(m.role for m in messages[:6])
            raise BadRow("no_chat_template", f"the tokenizer has no chat template, so only one prompt and one completion can be written, not the turns {roles}; use an instruct model's tokenizer", source)
        return messages[0], messages[1]

    def _plain_prompt(self, prompt: Message, source: str) -> list[int]:
        bos = self.tokenizer.bos_token_id
        starts = list(self.tokenizer("a").input_ids)[:1]
        return ([bos] if bos is not None and starts == [bos] else []) + self._text_ids(prompt.content, source, first=True)
