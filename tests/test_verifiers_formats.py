"""Format tags, JSON, regular expressions, instructions: what they accept, what they refuse, and that none of them can be made to hang."""

from __future__ import annotations

import json
import sys
import time

import pytest

from truing.errors import MissingExtraError
from truing.rewards.verifiers import constraints
from truing.rewards.verifiers.constraints import CONSTRAINTS
from truing.rewards.verifiers.json_schema import DEEPEST, NotJson, depth, strict
from truing.rewards.verifiers.limits import processor_time
from truing.rewards.verifiers.verifier import open_verifier
from truing.types import Status

BOMB, SLOW = "(a+)+$", "a" * 42 + "!"  # 2**42 ways to divide the letters, and none of them matches


@pytest.fixture(scope="module")
def regex():
    verifier = open_verifier("regex")
    yield verifier
    verifier.bounded.close()


@pytest.fixture(scope="module")
def schema():
    verifier = open_verifier("json")
    yield verifier
    verifier.bounded.close()


def one(verifier, text, row):
    (score,) = verifier([text], [row])
    assert list(score.parts)[0] == verifier.name or not score.status.usable
    return score


# Tags ------------------------------------------------------------------------------------------------------------------

TAGS = {"tags": ["think", "answer"], "answer": "7"}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<think>so</think><answer>7</answer>", 1),
        (" \n<think>so</think>\n\n<answer> 7 </answer>\n", 1),
        ("<think>so</think><answer>7</answer>!", 2 / 3),  # both tags, but something after them: 2 of the 3 demands
        ("<answer>7</answer><think>so</think>", 2 / 3),
        ("<think>so</think>", 1 / 3),
        ("<think> </think><answer>7</answer>", 1 / 3),
        ("<think>so</think><answer>7</answer><answer>8</answer>", 1 / 3),
        ("</think>so<think><answer>7</answer>", 1 / 3),  # closed before it is opened
        ("<Think>so</Think><answer>7</answer>", 1 / 3),
        ("7", 0),
        ("", 0),
    ],
)
def test_tags_stand_once_in_order_and_alone(text, share):
    verifier = open_verifier("format")
    strict_, partial = one(verifier, text, TAGS), one(verifier, text, {**TAGS, "credit": "share"})
    assert strict_.value == (share == 1) and partial.value == pytest.approx(share) == strict_.parts["tags"]
    assert strict_.status == partial.status == (Status.OK if share == 1 else Status.WRONG)


def test_tags_prove_themselves():
    verifier = open_verifier("format")
    for row in (TAGS, {"tags": ["answer"]}, {"tags": ["a", "b", "c"], "answer": "<b>"}):
        assert one(verifier, verifier.gold(row), row).value == 1
        assert len(verifier.wrong(row)) >= 7 and all(one(verifier, w, row).value == 0 for w in verifier.wrong(row))
    assert verifier.answer("<think>so</think><answer> 7 </answer>", TAGS) == "7"


@pytest.mark.parametrize("tags", ["think", [], ["a", "a"], ["<a>"], [""], [1], None])
def test_broken_tags_are_the_rows_fault(tags):
    score = one(open_verifier("format"), "x", {"tags": tags})
    assert score.status is Status.UNPARSED and "tags" in next(iter(score.parts))


# JSON ------------------------------------------------------------------------------------------------------------------

PERSON = {"schema": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]}, "answer": {"age": 3}}


@pytest.mark.parametrize(
    ("text", "row", "value", "parses"),
    [
        ('{"age": 3}', {}, 1, 1),
        (' {"age": 3, "name": "x"}\n', {}, 1, 1),
        ('{"age": -1}', {}, 0, 1),
        ('{"age": "3"}', {}, 0, 1),
        ('{"age": true}', {}, 0, 1),  # JSON Schema's integers are no booleans
        ('{"age": 3.0}', {}, 1, 1),  # and 3.0 is one, since draft 6
        ('{"age": 3, "age": 4}', {}, 0, 0),
        ('{"age": NaN}', {}, 0, 0),
        ('{"age": 1e999}', {}, 0, 0),
        ('{"age": 3} done', {}, 0, 0),
        ("{'age': 3}", {}, 0, 0),
        ('{"age": 3,}', {}, 0, 0),
        ("", {}, 0, 0),
        ("7" * 5000, {}, 0, 0),
        ("[" * 100_000, {}, 0, 0),
        ('{"a": ' * 70 + "1" + "}" * 70, {}, 0, 0),
        ('```json\n{"age": 3}\n```', {}, 1, 1),
        ('```\n{"age": 3}\n```', {}, 1, 1),
        ('So: ```json\n{"age": 3}\n```', {}, 0, 0),
        ('```json\n{"age": 3}\n```', {"fence": "forbid"}, 0, 0),
        ('{"age": 3}', {"fence": "require"}, 0, 0),
        ('I think. <answer>{"age": 3}</answer> So it is.', {"tag": "answer"}, 1, 1),
        ('{"age": 3}', {"tag": "answer"}, 0, 0),
    ],
)
def test_json_is_strict(schema, text, row, value, parses):
    score = one(schema, text, {**PERSON, **row})
    assert (score.value, score.parts["parses"], score.status) == (value, parses, Status.OK if value else Status.WRONG)


def test_json_proves_itself(schema):
    for row in (PERSON, {**PERSON, "tag": "answer"}, {**PERSON, "fence": "require"}, {"schema": json.dumps({"const": 1})}, {"schema": True}, {"schema": {"examples": ["a"]}}):
        gold = schema.gold(row)
        assert gold is None if row["schema"] is True else one(schema, gold, row).value == 1
        assert all(one(schema, w, row).value == 0 for w in schema.wrong(row))
    assert schema.answer('{"b": 1, "a": 2}', PERSON) == '{"a": 2, "b": 1}' and schema.answer("{", PERSON) is None


@pytest.mark.parametrize("bad", [{"type": "intger"}, "{", 3, {"$ref": "http://nowhere.invalid/x"}, {"type": "string", "pattern": "("}])
def test_a_broken_schema_is_the_rows_fault_and_no_network_is_asked(schema, bad):
    assert one(schema, '"x"', {"schema": bad}).status is Status.UNPARSED


def test_an_answer_that_is_no_json_is_the_rows_fault(schema):
    score = one(schema, '"x"', {"schema": True, "answer": "x"})
    assert score.status is Status.UNPARSED and "answer is no JSON" in next(iter(score.parts))


def test_depth_and_the_limits_of_json():
    assert [depth(v) for v in (1, [], [1], {"a": [1]}, [[], [[]]])] == [0, 1, 1, 2, 3]
    deepest = json.loads("[" * DEEPEST + "]" * DEEPEST)
    assert strict(json.dumps(deepest)) == deepest
    for text in ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), '"' + "a" * 2**20 + '"', "1 2", "-Infinity"):
        with pytest.raises(NotJson):
            strict(text)


# Regular expressions ---------------------------------------------------------------------------------------------------

DATE = r"\d{4}-\d\d-\d\d"


@pytest.mark.parametrize(
    ("text", "row", "value"),
    [
        ("2024-01-02", {}, 1),
        ("\n 2024-01-02 ", {}, 1),
        ("on 2024-01-02", {}, 0),
        ("on 2024-01-02", {"match": "search"}, 1),
        ("I say <answer>2024-01-02</answer>.", {"tag": "answer"}, 1),
        ("2024-01-02", {"tag": "answer"}, 0),
        ("", {}, 0),
        ("ABC", {"pattern": "abc", "flags": ["ignore_case"]}, 1),
        ("ABC", {"pattern": "abc"}, 0),
    ],
)
def test_regex(regex, text, row, value):
    score = one(regex, text, {"pattern": DATE, **row})
    assert (score.value, score.status) == (value, Status.OK if value else Status.WRONG)


@pytest.mark.parametrize("row", [{"pattern": "("}, {"pattern": 3}, {"pattern": "a", "flags": ["loud"]}, {"pattern": "a", "match": "half"}, {"pattern": "a", "tag": "<"}])
def test_a_broken_pattern_is_the_rows_fault(regex, row):
    assert one(regex, "a", row).status is Status.UNPARSED


def test_a_regex_bomb_ends_and_the_control_says_whose_fault_it_is(regex):
    row = {"pattern": BOMB, "match": "search"}
    start = time.process_time()
    assert one(regex, SLOW, {**row, "answer": "aa"}).status is Status.WRONG  # the row's own answer is quick: the completion is at fault
    assert one(regex, SLOW, row).status is Status.WRONG  # and so is the empty text, without one
    assert one(regex, SLOW, {**row, "answer": SLOW}).status is Status.TIMED_OUT  # the row cannot even judge its own answer
    assert one(regex, "aaa", row).value == 1  # a fresh process answers
    assert time.process_time() - start < 1  # this process only waited


def test_a_bomb_in_a_schema_ends(schema):
    row = {"schema": {"type": "string", "pattern": BOMB}, "answer": '"aa"'}
    assert one(schema, json.dumps(SLOW), row).status is Status.WRONG
    assert one(schema, '"aaa"', row).value == 1


def test_regex_proves_itself_on_what_the_row_says(regex):
    row = {"pattern": DATE, "answer": "2024-01-02", "wrong": ["2024"]}
    assert (regex.gold(row), list(regex.wrong(row))) == ("2024-01-02", ["2024"])
    assert regex.gold({"pattern": DATE}) is None and regex.answer(" a ", row) == "a"


def test_what_is_only_thought_is_not_read(regex, schema):
    thought = "<think>A list, with 2 commas, {}</think>\n"
    assert one(regex, thought + "2024-01-02", {"pattern": DATE}).value == 1
    assert one(schema, thought + '{"age": 3}', PERSON).value == 1
    row = {"instructions": [{"kind": "punctuation:no_comma"}]}
    assert one(open_verifier("instructions"), thought + "ab", row).value == 1
    assert one(open_verifier("instructions"), thought, row).value == 0  # an empty answer follows nothing


def test_processor_time_leaves_quick_work_alone():
    with processor_time(5.0):
        assert sum(range(1000)) == 499500


# Instructions ----------------------------------------------------------------------------------------------------------

# (name, arguments, a text that follows, one that does not). By hand from the instruction's wording.
CASES = [
    ("keywords:existence", {"keywords": ["red", "Blue"]}, "A blue and a red one", "A red one"),
    ("keywords:any", {"keywords": ["red", "blue"]}, "A red one", "A green one"),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, "Go, go", "Go"),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, "Go", "Go, go"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category", "A Cat!"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Eee", "ee"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "one two three", "one two three four"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "exactly"}, "one, two; three", "one two"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "more than"}, "a b c d", "a b c"),
    ("length_constraints:number_words", {"num_words": 2.0, "relation": "exactly"}, "a b", "a b c"),  # 2.0: what a table makes of 2 beside nulls
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "exactly"}, "Dr. A. Smith paid 3.50. Why?", "Yes. No. Maybe."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, 'He said: "Go!" Then he left... And came back', "One. Two."),
    ("length_constraints:number_characters", {"num_characters": 5, "relation": "at most"}, "abcde", "abcdef"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a *** *** b"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "a b\n\nSo, c", "So, c\n\na b"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] at place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. P.S. More", "Bye. PS More"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye. P. P. S more", "Bye. P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n**bold**", "* a\n* b\n* c"),
    ("detectable_format:number_lines", {"num_lines": 2, "relation": "exactly"}, "a\n\nb", "a\nb\nc"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}, "Section 1 a\nSection 2 b", "Section a\nSection 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1} so'),
    ("detectable_format:title", {}, "<<A poem>>\nlines", "<<>>\nlines"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, " say it. It.", "It. Say it."),
    ("startend:start_checker", {"start_phrase": "Well"}, "well, yes", "Oh well"),
    ("startend:end_checker", {"end_phrase": "The end."}, "So it goes. the end.", "The end. Really"),
    ("startend:quotation", {}, '"all of it"', '"some" of it'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "GO NOW please", "GO now please"),
    ("change_case:english_capital", {}, "GO 2 IT!", "GO 2 it!"),
    ("change_case:english_lowercase", {}, "go 2 it!", "go 2 It!"),
    ("change_case:title_case", {}, "The Old Man, 2 Cats", "The old Man"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("kind", "arguments", "follows", "does_not"), CASES, ids=[f"{c[0].split(':')[1]}-{i}" for i, c in enumerate(CASES)])
def test_each_instruction(kind, arguments, follows, does_not):
    verifier = open_verifier("instructions")
    row = {"instructions": [{"kind": kind, **arguments}], "answer": follows}
    assert one(verifier, follows, row).value == 1 and one(verifier, does_not, row).value == 0
    assert one(verifier, verifier.gold(row), row).value == 1
    assert all(one(verifier, w, row).value == 0 for w in verifier.wrong(row))


def test_every_instruction_is_tested():
    assert {c[0] for c in CASES} == set(CONSTRAINTS) - {"language:response_language"}


def test_a_row_of_ifeval_works_as_it_is():
    names = ["punctuation:no_comma", "length_constraints:number_words"]
    kwargs = [{"num_words": None, "relation": None}, {"num_words": 3.0, "relation": "at least", "keywords": None}]
    row = {"instruction_id_list": names, "kwargs": kwargs}
    verifier = open_verifier("instructions")
    scores = verifier(["one two three", "one, two", "one, two three"], [row] * 3)
    assert [s.value for s in scores] == [1, 0, 0] and [s.parts["followed"] for s in scores] == [1, 0, 0.5]
    assert [s.value for s in verifier(["one, two three", ""], [{**row, "credit": "share"}] * 2)] == [0.5, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "instructions is None"),
        ({"instructions": []}, "instructions is []"),
        ({"instructions": [{"kind": "punctuation:no_coma"}]}, "did you mean 'punctuation:no_comma'?"),
        ({"instructions": [{"kind": "length_constraints:number_words", "num_words": 3}]}, "relation is None; use one of less than"),
        ({"instructions": [{"kind": "length_constraints:number_words", "relation": "at least", "num_words": -1}]}, "num_words is -1; write a whole number"),
        ({"instructions": [{"kind": "keywords:existence", "keywords": "red"}]}, "keywords is 'red'; write a list"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "instruction_id_list names 1 and kwargs holds 0"),
        ({"instructions": [{"kind": "punctuation:no_comma"}], "credit": "half"}, "credit is 'half'; use one of all, share"),
    ],
)
def test_broken_instructions_are_the_rows_fault(row, message):
    score = one(open_verifier("instructions"), "x", row)
    assert score.status is Status.UNPARSED and message in next(iter(score.parts))


def test_a_language_needs_its_library():
    if "langdetect" in sys.modules:
        pytest.skip("langdetect is installed")
    row = {"instructions": [{"kind": "language:response_language", "language": "de"}]}
    with pytest.raises(MissingExtraError, match="pip install langdetect"):
        open_verifier("instructions")(["Guten Tag"], [row])


@pytest.mark.parametrize("piece", ["!", "a. ", "[", "*", "<<", "\n", "* \n", "<", "```", "Section ", '"', "P.", "***"])
def test_no_text_makes_an_instruction_slow(piece):
    text = piece * (200_000 // len(piece)) + "x"
    start = time.process_time()
    for kind, arguments, _, _ in CASES:
        CONSTRAINTS[kind](text, arguments)
    assert time.process_time() - start < 3  # about 0.3 s when linear, hours when quadratic


@pytest.mark.parametrize(("text", "n"), [("", 0), ("One", 1), ("One.", 1), ("One. Two", 2), ("e.g. this one.", 1), ("It costs 3.14 euros. Yes!", 2), ("What?! No...", 2), ("It was I. Then he came.", 2)])
def test_sentences(text, n):
    assert constraints.sentences(text) == n
