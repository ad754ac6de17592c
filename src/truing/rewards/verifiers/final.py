r"""Where the final answer of a completion stands. One rule for all verifiers of answers:

**Every answer that a completion marks as final counts, and all of them must be right.**

Marks are ``\boxed{42}``, ``<answer>42</answer>``, ``#### 42`` and "The answer is 42" (with its kin: "Answer: 42", a headline
"Final answer"). A mark in which nothing can be read is passed over; one that holds several values is an answer that nobody
gave. So to try several answers, or to list all numbers, earns nothing, wherever in the list the right one stands.

Without any mark the text's last statement is read, each verifier says how. A text that ends in a question states nothing.
What stands before ``</think>`` is thought, not said, and is never read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Read = TypeVar("Read")

LONGEST = 2000  # characters of an answer that are looked at

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)", re.S | re.I)
_HASHES = re.compile(r"####[ \t]*(.*)")
_BOX = re.compile(r"\\f?boxed\s*")
_ANSWER = re.compile(r"\b[aA](?:nswer|NSWER)\b")
_IS = re.compile(
    r"(?:\s+(?:to|for)\s+(?:the|this|your)\s+\w+)?(?:\*\*)?(?:\s+(?:is(?:n['’]t)?|are|was|would\s+be|will\s+be|must\s+be|should\s+be|equals)\b(?:\*\*)?\s*[:=]?|\s*[:=])[ \t]*", re.I
)
_NOT = re.compile(r"not\b", re.I)
_HEAD = re.compile(r"[ \t#*_]*(?:final[ \t]+)?", re.I)  # a headline: this, the word answer, and nothing more on the line
_NOTHING = re.compile(r"[ \t*_]*$", re.M)
_FRAME = " \t\r*_:$"  # of a line that only opens a frame for the answer on the next
_MARKS = ("\\boxed", "\\fbox", "<answer>", "####", "</answer>")
_OPENS = ("\\[", "\\(", "$$", "\\begin{align*}", "```")
# A full stop that ends a sentence: blanks or the end behind it, and before it no initial and no short form.
_STOP = re.compile(r"(?<!\b[A-Z])(?<!\bSt)(?<!\bMt)(?<!\bMr)(?<!\bDr)(?<!\bMs)(?<!\bMrs)(?<!\bNo)(?<!\bvs)(?<!\bapprox)[.!?](?=[*_]*(?:\s|$))")


class Several(Exception):
    """What should be one answer holds several different ones."""


def said(text: str) -> str:
    """The text without what was only thought.

    >>> said("<think>5? no, 6</think> It is 6.")
    ' It is 6.'
    """
    return text.rpartition("</think>")[2] if "</think>" in text else text.partition("<think>")[0] if "<think>" in text else text


def marked(text: str) -> list[str]:
    r"""What stands in each mark, in the order of the kinds of marks.

    >>> marked("The answer is 41. No: \\boxed{42}, so\n#### 43")
    ['42', '43', '41']
    >>> marked("It is 42.")
    []
    """
    found: list[str] = []
    if "<answer>" in text or "<ANSWER>" in text:
        found += [_bare(m[1]) for m in _TAG.finditer(text)]
    if "box" in text:
        found += _boxes(text)
    if "####" in text:
        found += [line for m in _HASHES.finditer(text) if (line := _bare(m[1])) and (_value(line) or not text[m.end() :].strip())]
    if "nswer" in text or "NSWER" in text:
        found += _spoken(text)
    return [f[:LONGEST] for f in found]


def finals(text: str, read: Callable[[str], Read | None], unmarked: Callable[[str], Sequence[Read]]) -> list[Read]:
    """The final answers, each as `read` reads it, which raises Several for more than one in a mark. Empty when there is none, or one is several.

    `unmarked` reads a text without marks.
    """
    text = said(text)
    try:
        if marks := marked(text):
            return [value for mark in marks if mark and (value := read(mark)) is not None]
        return [] if text.rstrip(" \t\r\n*_\"'").endswith("?") else list(unmarked(text))
    except Several:
        return []


def sentences(text: str) -> Iterator[str]:
    """The statements of a text, the last first; never empty ones.

    >>> list(sentences("It costs 3.50. So 2 cost\\n7.00!"))
    ['7.00', 'So 2 cost', 'It costs 3.50']
    """
    for line in reversed(text.splitlines()):
        starts = [0, *(m.end() for m in _STOP.finditer(line))]
        for start, end in zip(reversed(starts), reversed([*starts[1:], len(line) + 1]), strict=True):
            if sentence := line[start:end].strip().rstrip(".!*_ ").lstrip("*_ "):
                yield sentence


def sentence(text: str) -> str:
    """The first sentence, without its full stop.

    >>> sentence("St. Petersburg. I hope it is correct.")
    'St. Petersburg'
    """
    stop = _STOP.search(text)
    return (text[: stop.start()] if stop else text).strip()


def _boxes(text: str) -> list[str]:
    found, at = [], 0
    while (m := _BOX.search(text, at)) is not None:
        at = m.end()
        if text[at : at + 1] == "{":
            at = closing(text, at)
            inner = text[m.end() + 1 : at]
        else:  # \boxed 7, as TeX reads it: the next word
            inner = text[at : at + 80].partition("\n")[0].partition(" ")[0].rstrip(".$")
        found.append(_bare(_BOX.sub("", inner)))
    return found


def closing(text: str, at: int) -> int:
    """Where the brace at `at` closes; the end of the line when it never does."""
    depth = 0
    for m in _BRACE.finditer(text, at):
        depth += (m[0] == "{") - (m[0] == "}")
        if depth == 0:
            return m.start()
    end = text.find("\n", at)
    return len(text) if end < 0 else end


_BRACE = re.compile(r"(?<!\\)[{}]")


def _says(text: str) -> list[tuple[int, int]]:
    """Where "the answer is" stands: from its word answer to what is behind it."""
    found = []
    for m in _ANSWER.finditer(text):
        if is_ := _IS.match(text, m.end()):
            found.append((m.start(), is_.end()))
        elif (nothing := _NOTHING.match(text, m.end())) and _HEAD.fullmatch(text, text.rfind("\n", 0, m.start()) + 1, m.start()):
            found.append((m.start(), nothing.end()))
    return found


def _spoken(text: str) -> list[str]:
    """What stands behind "the answer is": to the end of the sentence, or the next line when there is nothing on this one."""
    found = []
    places = _says(text)
    for i, (_, start) in enumerate(places):
        rest = text[start : places[i + 1][0] if i + 1 < len(places) else len(text)]
        if _NOT.match(text, start) or text[:start].rstrip()[-3:] in ("n't", "n’t"):
            found.append("")  # said, and no answer
            continue
        line = next((stripped for line in rest.splitlines() if (stripped := line.strip(_FRAME)) and stripped not in _OPENS), "") if rest.strip() else ""
        line = sentence(_whole(line, rest)).rstrip("*_ ") if line else ""
        if line and not any(mark in line for mark in _MARKS):
            found.append(line)
    return found


def _whole(line: str, rest: str) -> str:
    """The line with the frame that `strip` took from its ends; a whole matrix when one begins in it."""
    if "\\begin{" in line and "\\end{" not in line:
        start = rest.find(line)
        return rest[start : rest.find("\\end{", start) + 40].partition("\n\n")[0] if "\\end{" in rest else line
    start = rest.find(line)
    opened = "$" if rest[max(0, start - 1) : start] == "$" else ""
    return opened + line + ("$" if rest[start + len(line) : start + len(line) + 1] == "$" else "")


def _bare(mark: str) -> str:
    """A mark's text without a "The answer is" inside it."""
    mark = mark.strip()
    says = _says(mark) if "nswer" in mark else []
    return mark[says[0][1] :].strip() if says else mark


def _value(line: str) -> bool:
    """Whether a line behind #### is an answer rather than a headline."""
    return line[0] in "-+−$€£¥\\(.[{<" or line[0].isdigit()
