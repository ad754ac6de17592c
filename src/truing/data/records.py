"""Which format a row has, and the record it stands for.

| format                | columns                                             |
|-----------------------|-----------------------------------------------------|
| `messages`            | messages: [{role, content}, ...]                    |
| `sharegpt`            | conversations: [{from, value}, ...]                 |
| `alpaca`              | instruction, output, optional input                 |
| `prompt-completion`   | prompt, completion (each a string or a message list)|
| `preference`          | prompt, chosen, rejected                            |
| `preference-implicit` | chosen, rejected: message lists with a common start |
| `hh-rlhf`             | chosen, rejected: "\\n\\nHuman: ...\\n\\nAssistant: ..." |
| `unpaired`            | prompt, completion, label                           |
| `question-answer`     | question, answer (GSM8K; the result after "####")   |
| `prompt`              | prompt                                              |

`id` and `system` may stand in any of them, `margin` in preferences.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from truing.data.problems import BadRow
from truing.types import Demonstration, Judged, Message, Messages, Preference, Prompt, Record

Kind = Literal["sft", "preference", "prompts", "judged"]

TURN_LIMIT = 1000
"""Most messages in one conversation."""

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "tool": "tool"}
_PREFERENCES = ("preference", "preference-implicit", "hh-rlhf")
_CONVERSATIONS = ("messages", "sharegpt", "alpaca", "prompt-completion", "question-answer")

COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "preference-implicit": ("chosen", "rejected"),
    "hh-rlhf": ("chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt": ("prompt",),
    "question-answer": ("question", "answer"),
}
SERVES: dict[Kind, tuple[str, ...]] = {
    "sft": _CONVERSATIONS,
    "preference": _PREFERENCES,
    "prompts": ("prompt", *_CONVERSATIONS, *_PREFERENCES, "unpaired"),
    "judged": ("unpaired",),
}


def detect(row: Mapping[str, Any]) -> str | None:
    """The format of a row by its columns, the richest first; None when it is none of them."""
    keys = row.keys()
    if {"chosen", "rejected"} <= keys:
        if "prompt" in keys:
            return "preference"
        if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
            return "hh-rlhf" if "Human:" in row["chosen"] else None
        return "preference-implicit"
    for name in ("messages", "sharegpt", "alpaca", "unpaired", "prompt-completion", "prompt", "question-answer"):
        if keys >= set(COLUMNS[name]):
            return name
    return None


def optional_columns(format: str) -> frozenset[str]:
    """Columns that a row of this format may have or lack, whatever the other rows do."""
    own = {"alpaca": {"input"}}.get(format, {"margin"} if format in _PREFERENCES else set())
    return frozenset({"id", "system"} | own)


def unused_columns(columns: frozenset[str], format: str, kind: Kind) -> tuple[str, ...]:
    """Columns of the file that no record will carry. Prompts carry everything (`Prompt.extra`)."""
    return () if kind == "prompts" else tuple(sorted(columns - set(COLUMNS[format]) - optional_columns(format)))


def to_record(row: Mapping[str, Any], format: str, kind: Kind, source: str, default_id: str) -> Record:
    """One row as the record of its kind. Raises BadRow (without a place) when it breaks a rule."""
    id = _id(row.get("id"), default_id)
    if kind == "prompts":
        messages = _with_system(_prompt_of(row, format), row)
        used = {"messages", "conversations", "instruction", "input", "prompt", "question"} & ({*COLUMNS[format]} | optional_columns(format))
        extra = {k: v for k, v in row.items() if k not in used | {"id", "system"}}
        if format == "question-answer":
            extra = _gold(extra)
        return Prompt(_check_prompt(messages), id, source, extra)
    if kind == "sft":
        messages = _with_system(_conversation_of(row, format), row)
        _check_turns(messages)
        _check_prompt(messages[: next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))])
        if messages[-1].role != "assistant":
            raise BadRow("no_completion", f"the conversation ends with a {messages[-1].role} turn, so nothing is there to imitate; end it with an assistant turn")
        return Demonstration(messages, id, source)
    if kind == "judged":
        prompt = _with_system(_side(row["prompt"], "prompt"), row)
        completion = _check_completion(_side(row["completion"], "completion"), "completion")
        _check_turns(_check_prompt(prompt) + completion)
        return Judged(prompt, completion, _label(row["label"]), id, source)
    prompt, chosen, rejected = _pair_of(row, format)
    prompt = _with_system(prompt, row)
    margin = _margin(row.get("margin"))
    if _plain(chosen) == _plain(rejected):
        raise BadRow("identical_pair", f"chosen and rejected are the same ({_short(chosen)}), so the row says nothing; drop it")
    _check_prompt(prompt)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        _check_turns(prompt + _check_completion(side, name))
    return Preference(prompt, chosen, rejected, id, source, margin)


# The parts of a row

def _conversation_of(row: Mapping[str, Any], format: str) -> Messages:
    if format == "messages":
        return _messages(row["messages"], "messages")
    if format == "sharegpt":
        return _messages(row["conversations"], "conversations")
    if format == "alpaca":
        return (_instruction(row), Message("assistant", _text(row["output"], "output")))
    if format == "question-answer":
        return (Message("user", _text(row["question"], "question")), Message("assistant", _text(row["answer"], "answer")))
    return _side(row["prompt"], "prompt") + _side(row["completion"], "completion")


def _prompt_of(row: Mapping[str, Any], format: str) -> Messages:
    if format in ("messages", "sharegpt"):
        messages = _conversation_of(row, format)
        return messages[:-1] if messages and messages[-1].role == "assistant" else messages
    if format == "alpaca":
        return (_instruction(row),)
    if format == "question-answer":
        return (Message("user", _text(row["question"], "question")),)
    return _pair_of(row, format)[0] if format in ("preference-implicit", "hh-rlhf") else _side(row["prompt"], "prompt")


def _gold(extra: dict[str, Any]) -> dict[str, Any]:
    """What verifiers read. A row that names no verifier has a number as its answer, as in GSM8K: the text after the last "####".

    The text before it, the worked solution, is then the column `solution`.
    """
    if extra.get("verifier") is not None:
        return extra
    worked, mark, result = _text(extra["answer"], "answer").rpartition("####")
    return {**extra, **({"solution": worked.strip()} if mark else {}), "answer": result.strip(), "verifier": "numeric"}


def _pair_of(row: Mapping[str, Any], format: str) -> tuple[Messages, Messages, Messages]:
    if format == "preference":
        prompt = _side(row["prompt"], "prompt")
        # several well-known sets repeat the prompt at the head of both conversations
        chosen, rejected = (_without_prompt(_side(row[name], name), prompt) for name in ("chosen", "rejected"))
        return prompt, chosen, rejected
    if format == "hh-rlhf":
        chosen, rejected = (_transcript(row[name], name) for name in ("chosen", "rejected"))
    else:
        chosen, rejected = (_messages(row[name], name) for name in ("chosen", "rejected"))
    if _plain(chosen) == _plain(rejected):
        raise BadRow("identical_pair", f"chosen and rejected are the same ({_short(chosen[-1:])}), so the row says nothing; drop it")
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if common == 0:
        raise BadRow("no_common_prompt", f"chosen starts with {_short(chosen[:1])}, rejected with {_short(rejected[:1])}; both must begin with the same prompt, or add a prompt column")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if common < len(side) and side[common].role != "assistant":
            raise BadRow("no_common_prompt", f"{name} parts from the other at a {side[common].role} turn (message {common + 1}); the two may only differ from an assistant turn on")
    return chosen[:common], chosen[common:], rejected[common:]


def _without_prompt(side: Messages, prompt: Messages) -> Messages:
    return side[len(prompt) :] if side[: len(prompt)] == prompt else side


def _instruction(row: Mapping[str, Any]) -> Message:
    instruction = _text(row["instruction"], "instruction")
    if not instruction.strip():
        raise BadRow("empty_prompt", "instruction is empty; write what is asked")
    more = _text(row["input"], "input") if row.get("input") is not None else ""
    return Message("user", f"{instruction}\n\n{more}" if more.strip() else instruction)


def _side(value: Any, name: str) -> Messages:
    """A prompt or completion: a string is one turn of the user or the assistant."""
    if isinstance(value, str):
        return (Message("user" if name == "prompt" else "assistant", value),)
    if isinstance(value, list):
        return _messages(value, name)
    raise BadRow("wrong_type", f"{name} is {_kind(value)}; write a string or a list of messages")


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list):
        hint = " (CSV cannot hold lists; use .jsonl or .parquet)" if isinstance(value, str) else ""
        raise BadRow("wrong_type", f"{name} is {_kind(value)}; write a list of messages{hint}")
    if not value:
        raise BadRow("empty_prompt", f"{name} is an empty list; write at least one message")
    if len(value) > TURN_LIMIT:
        raise BadRow("too_many_turns", f"{name} has {len(value):,} messages; the limit is {TURN_LIMIT:,}. Split the conversation")
    return tuple(_message(item, f"message {i} of {name}") for i, item in enumerate(value, 1))


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow("wrong_type", f"{place} is {_kind(item)}; write {{\"role\": ..., \"content\": ...}}")
    keys = {k for k, v in item.items() if v is not None}
    role_key, content_key = ("from", "value") if "from" in keys else ("role", "content")
    missing = {role_key, content_key} - keys
    extra = keys - {role_key, content_key}
    if missing or extra:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"has {', '.join(sorted(extra))}, which is not used"
        raise BadRow("message_keys", f"{place} {what}; a message is {{\"role\": ..., \"content\": ...}}")
    role, content = item[role_key], _text(item[content_key], f"{content_key} in {place}")
    known = _SHAREGPT if role_key == "from" else dict(zip(ROLES, ROLES, strict=True))
    if role not in known:
        close = difflib.get_close_matches(str(role), known, n=1) or [_SHAREGPT.get(str(role), "")]
        hint = f"did you mean {close[0]!r}?" if close[0] else f"use one of {', '.join(known)}"
        raise BadRow("unknown_role", f"{place} has {role_key} {role!r}; {hint}")
    return Message(known[role], content)


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _transcript(text: Any, name: str) -> Messages:
    """Anthropic's hh-rlhf: turns in one string. Blanks around each turn belong to the notation."""
    value = _text(text, name)
    parts = _TURN.split(value)
    if parts[0].strip() or len(parts) < 3:
        raise BadRow("malformed_transcript", f"{name} starts with {value[:30]!r}; a transcript starts with '\\n\\nHuman:' and alternates with '\\n\\nAssistant:'")
    if len(parts) // 2 > TURN_LIMIT:
        raise BadRow("too_many_turns", f"{name} has {len(parts) // 2:,} turns; the limit is {TURN_LIMIT:,}. Split the conversation")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True))


def _with_system(messages: Messages, row: Mapping[str, Any]) -> Messages:
    if row.get("system") is None:
        return messages
    system = _text(row["system"], "system")
    if not system.strip():
        return messages
    if messages and messages[0].role == "system":
        raise BadRow("two_systems", "the row has a system column and a system message; keep one")
    return (Message("system", system), *messages)


def _id(value: Any, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise BadRow("bad_id", f"id is {_kind(value)}; write a string or an integer")
    return str(value)


def _margin(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow("bad_score", f"margin is {_kind(value)}; write a number")
    if not math.isfinite(value) or value < 0:
        raise BadRow("bad_score", f"margin is {value}; write a finite number >= 0 (swap chosen and rejected if it is negative)")
    return float(value)


def _label(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRow("bad_label", f"label is {_kind(value)}; write true (good) or false (bad)")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong_type", f"{name} is {_kind(value)}; write a string")
    return value


# The order and content of turns

def _check_turns(messages: Messages) -> None:
    if len(messages) > TURN_LIMIT:
        raise BadRow("too_many_turns", f"the conversation has {len(messages):,} messages; the limit is {TURN_LIMIT:,}. Split it")
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise BadRow("system_not_first", f"message {i + 1} is a system turn; only the first message may be one")
        if i and message.role == messages[i - 1].role == "assistant":
            raise BadRow("two_assistants", f"messages {i} and {i + 1} are both assistant turns; join them or put the user's turn between")
        if not message.content.strip():
            rule = {"user": "empty_prompt", "assistant": "empty_completion"}.get(message.role, "empty_message")
            raise BadRow(rule, f"message {i + 1} ({message.role}) is empty; write it or drop the row")


def _check_prompt(messages: Messages) -> Messages:
    _check_turns(messages)
    if not any(m.role == "user" for m in messages):
        raise BadRow("empty_prompt", "no user turn comes before the answer; a prompt needs one")
    if messages[-1].role not in ("user", "tool"):
        raise BadRow("prompt_end", f"the prompt ends with a {messages[-1].role} turn; end it with the user's")
    return messages


def _check_completion(messages: Messages, name: str) -> Messages:
    if not messages or not any(m.content.strip() for m in messages if m.role == "assistant"):
        raise BadRow("empty_completion", f"{name} has no answer after the prompt; write it or drop the row")
    if messages[0].role != "assistant" or messages[-1].role != "assistant":
        raise BadRow("completion_role", f"{name} goes from a {messages[0].role} turn to a {messages[-1].role} turn; it must continue the prompt with the assistant's turns")
    return messages


def _plain(messages: Messages) -> list[tuple[str, str]]:
    return [(m.role, m.content.strip()) for m in messages]


def _short(messages: Messages) -> str:
    return repr(messages[-1].content[:40]) if messages else "nothing"


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {repr(value)[:40]}"
