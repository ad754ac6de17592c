"""The single instructions of `instructions`, under the names of IFEval (Zhou et al. 2023, arXiv:2311.07911), each a test of a text.

A row of that benchmark works as it is. Where its tests need a library or are wider than their wording, these differ:

- sentences are counted by a small splitter here, by NLTK's Punkt there: they differ on unusual abbreviations;
- english_capital and english_lowercase look at the letters only, not at the language;
- keywords are texts, not patterns (the benchmark's are plain words, for which both agree);
- an empty text follows nothing, as there;
- a star with nothing after it on its line is no bullet;
- words in capitals are runs of letters, digits, apostrophes and hyphens here, NLTK's tokens there.

Besides, relations may also be "at most", "more than" and "exactly", and five names are added: length_constraints:number_characters,
startend:start_checker, change_case:title_case, detectable_format:number_lines, keywords:any.
Every test takes time linear in the text, so that none can be made to hang.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from truing.errors import MissingExtraError
from truing.rewards.verifiers.reading import BadColumn

Arguments = Mapping[str, Any]
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "less than": lambda found, n: found < n, "at least": lambda found, n: found >= n, "at most": lambda found, n: found <= n,
    "more than": lambda found, n: found > n, "exactly": lambda found, n: found == n,
}  # fmt: skip


# What is counted

def words(text: str) -> int:
    r"""Runs of letters, digits and underscores, as IFEval counts them: "don't" is two."""
    return len(re.findall(r"\w+", text))


_ABBREVIATIONS = frozenset("mr mrs ms dr prof st jr sr inc ltd co vs etc e.g i.e fig vol al dept approx".split())


def sentences(text: str) -> int:
    """Stretches that end in . ! or ? (with closing quotes), before a blank or the end. Not after Mr., a single letter, or inside 3.14.

    >>> sentences("Dr. A. Smith paid 3.50. Why? He said: \\"Go!\\" Then left")
    4
    """
    count, rest, end = 0, 0, len(text.rstrip())
    for match in re.finditer(r"(?<![.!?])[.!?]++[\"'”’)\]]*+(?=\s|$)", text):
        before = text[max(rest, match.start() - 24) : match.start()].split()
        last = before[-1].strip("\"'“‘([").lower() if before else ""
        if text[match.start()] == "." and match.end() < end and (last in _ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i")):
            continue
        if text[rest : match.start()].strip():
            count += 1
        rest = match.end()
    return count + bool(re.search(r"\w", text[rest:]))


def bullets(text: str) -> int:
    """Lines that begin with "-", or with one "*" and something after it."""
    lines = (line.lstrip() for line in text.split("\n"))
    return sum(line.startswith("-") or (line.startswith("*") and len(line) > 1 and line[1] != "*") for line in lines)


def highlights(text: str) -> int:
    """``*stretches*`` between stars on one line with something in them; a ``**stretch**`` counts as IFEval counts it."""
    single = sum(bool(found.strip("*").strip()) for found in re.findall(r"\*[^\n*]*\*", text))
    return single + sum(bool(found[2:-2].strip()) for found in re.findall(r"\*\*[^\n*]*\*\*", text))


def placeholders(text: str) -> int:
    return len(re.findall(r"\[[^\[\]\n]*\]", text))


def capital_words(text: str) -> int:
    return sum(word.isupper() for word in re.findall(r"[\w'’-]+", text))


# How arguments are read

def _number(arguments: Arguments, name: str) -> int:
    value = arguments.get(name)
    if isinstance(value, float) and value.is_integer():  # a column of numbers and nulls comes out of a table as floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadColumn(f"{name} is {value!r}; write a whole number")
    return value


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadColumn(f"{name} is {value!r}; write a text")
    return value.strip()


def _texts(arguments: Arguments, name: str) -> list[str]:
    value = arguments.get(name)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise BadColumn(f"{name} is {value!r}; write a list of texts")
    return [v.strip() for v in value]


def _counted(count: Callable[[str], int], number: str, relation: str | None) -> Callable[[str, Arguments], bool]:
    """count(text) stands in the relation to the number; a fixed relation where the instruction has no argument for it."""

    def holds(text: str, arguments: Arguments) -> bool:
        return _related(count(text), arguments, number, relation or "relation")

    return holds


def _related(found: int, arguments: Arguments, number: str, relation: str) -> bool:
    word = relation if relation in RELATIONS else arguments.get(relation)
    if word not in RELATIONS:
        raise BadColumn(f"{relation} is {word!r}; use one of {', '.join(RELATIONS)}")
    return RELATIONS[word](found, _number(arguments, number))


# The tests that are more than a count

def _times(text: str, keyword: str) -> int:
    return text.lower().count(keyword.lower())


def _keyword_frequency(text: str, arguments: Arguments) -> bool:
    return _related(_times(text, _text(arguments, "keyword")), arguments, "frequency", "relation")


def _letter_frequency(text: str, arguments: Arguments) -> bool:
    letter = _text(arguments, "letter")
    if len(letter) != 1:
        raise BadColumn(f"letter is {letter!r}; write one character")
    return _related(_times(text, letter), arguments, "let_frequency", "let_relation")


def _forbidden(text: str, arguments: Arguments) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in _texts(arguments, "forbidden_words"))


def _paragraphs(text: str, arguments: Arguments) -> bool:
    """Paragraphs between ``***``; none but the first and the last may be empty, and those do not count."""
    found = [p.strip() for p in text.split("***")]
    return all(found[1:-1]) and sum(map(bool, found)) == _number(arguments, "num_paragraphs")


def _first_word(text: str, arguments: Arguments) -> bool:
    found = text.split("\n\n")
    filled = sum(bool(p.strip()) for p in found)
    nth = _number(arguments, "nth_paragraph")
    if not 1 <= nth <= filled or not found[nth - 1].strip():
        return False
    first = re.split(r"[.,?!'\"]", found[nth - 1].split()[0].lstrip("'").lstrip('"'))[0].lower()
    return filled == _number(arguments, "num_paragraphs") and first == _text(arguments, "first_word").lower()


def _postscript(text: str, arguments: Arguments) -> bool:
    marker = _text(arguments, "postscript_marker")
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(pattern, text.lower()) is not None


def _sections(text: str, arguments: Arguments) -> bool:
    marks = re.findall(re.escape(_text(arguments, "section_spliter")) + r"\s?\d+", text)
    return len(marks) >= _number(arguments, "num_sections")


def _constrained(text: str, arguments: Arguments) -> bool:
    options = _texts(arguments, "options") if arguments.get("options") else ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    return any(option in text for option in options)


def _json(text: str, arguments: Arguments) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _titled(line: str) -> bool:
    first, last = line.find("<<"), line.rfind(">>")
    return 0 <= first < last - 2 and bool(line[first:last].lstrip("<").rstrip(">").strip())


def _two(text: str, arguments: Arguments) -> bool:
    found = [r.strip() for r in text.split("******")]
    filled = [r for r in found if r]
    return all(found[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def _quoted(text: str, arguments: Arguments) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _title_case(text: str, arguments: Arguments) -> bool:
    first = [word[0] for word in re.findall(r"[^\W\d_][\w'’-]*", text)]
    return bool(first) and all(letter == letter.upper() for letter in first)


def _language(text: str, arguments: Arguments) -> bool:
    try:
        langdetect = importlib.import_module("langdetect")
    except ImportError as error:
        raise MissingExtraError("language:response_language needs the package langdetect; pip install langdetect, or leave these rows out") from error
    langdetect.DetectorFactory.seed = 0  # it draws random numbers
    try:
        return bool(langdetect.detect(text) == _text(arguments, "language"))
    except langdetect.LangDetectException:
        return True  # too little to tell, as in IFEval


CONSTRAINTS: dict[str, Callable[[str, Arguments], bool]] = {
    "keywords:existence": lambda t, a: all(_times(t, k) for k in _texts(a, "keywords")),
    "keywords:any": lambda t, a: any(_times(t, k) for k in _texts(a, "keywords")),
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _language,
    "length_constraints:number_words": _counted(words, "num_words", None),
    "length_constraints:number_sentences": _counted(sentences, "num_sentences", None),
    "length_constraints:number_characters": _counted(len, "num_characters", None),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _counted(placeholders, "num_placeholders", "at least"),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _counted(bullets, "num_bullets", "exactly"),
    "detectable_format:number_lines": _counted(lambda t: sum(bool(line.strip()) for line in t.split("\n")), "num_lines", None),
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _counted(highlights, "num_highlights", "at least"),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda t, a: any(map(_titled, t.split("\n"))),
    "combination:two_responses": _two,
    "combination:repeat_prompt": lambda t, a: t.strip().lower().startswith(_text(a, "prompt_to_repeat").lower()),
    "startend:start_checker": lambda t, a: t.strip().lower().startswith(_text(a, "start_phrase").lower()),
    "startend:end_checker": lambda t, a: t.strip().strip('"').lower().endswith(_text(a, "end_phrase").lower()),
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": lambda t, a: _related(capital_words(t), a, "capital_frequency", "capital_relation"),
    "change_case:english_capital": lambda t, a: t.isupper(),
    "change_case:english_lowercase": lambda t, a: t.islower(),
    "change_case:title_case": _title_case,
    "punctuation:no_comma": lambda t, a: "," not in t,
}
