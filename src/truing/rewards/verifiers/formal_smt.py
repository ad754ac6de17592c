"""`smt`: the values given make the row's assertions hold; z3 checks them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from truing.errors import MissingExtraError
from truing.rewards.completions import failed
from truing.rewards.process import Died, Refused
from truing.rewards.verifiers.bounded import Bounded
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.reading import BadColumn, gold_text, last_tag, number, option, text
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

SECONDS = 10.0
SLACK = 20.0  # of the clock, for all that z3's own limit does not count
LONGEST = 2**16  # characters of a completion
NOTHING = '{"": ""}'  # no constant has this name
DEEPEST = 20  # brackets within each other in a value

_SPACE = re.compile(r"(?:\s++|;[^\n]*+)*+")
_TOKEN = re.compile(r'[()]|\|[^|\\]*+\||"(?:[^"]|"")*+"|[^\s()|";]++')
_VALUE = re.compile(r"\d+|\d+\.\d+|#b[01]+|#x[0-9a-fA-F]+|true|false|\"[^\"]*\"")
_HEADS = frozenset({"-", "/", "_", "as", "const", "store", "Array", "Int", "Real", "Bool", "String", "BitVec"})

Tree = str | list["Tree"]


class Unreadable(ValueError):
    """The completion gives no values."""


class Smt:
    """The column ``smt2`` declares constants and asserts things of them (SMT-LIB 2; no check-sat is needed).

    With ``goal: model`` (the default) the completion, or what stands in its last ``<answer>``, gives each constant that is asserted
    something of a value: ``(define-fun x () Int 3)``, one after the other, in ``(model ...)`` or not. Values are written out: numbers, (- 3),
    (/ 1 3), true, #b01, strings, arrays of these; nothing else is handed to z3. With ``goal: verdict`` it is ``sat`` or ``unsat``.

    What z3 cannot decide within ``seconds`` (10) is no zero: ``TIMED_OUT``.
    """

    name = "smt"
    columns = ("smt2",)

    def __init__(self) -> None:
        if find_spec("z3") is None:
            raise MissingExtraError("the verifier smt needs z3; pip install z3-solver")
        self.bounded = Bounded("truing.rewards.verifiers.smt_child:check", SECONDS, (0.0,))
        self.solver = Bounded("truing.rewards.verifiers.smt_child:solve", SECONDS, (0.0,))

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, said: str, row: Row) -> Score:
        try:
            item, seconds = _item(row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"smt: {error}")
        given = self._given(said, item["verdict"])
        # the control: no values at all, which costs z3 no more than reading the assertions
        found = self.bounded(item, given, "" if item["verdict"] else "{}", seconds + SLACK)
        if isinstance(found, Score):
            return found
        if found[0] < 0:
            return failed(Status.TIMED_OUT, f"smt: z3 could not decide within {seconds:g} s")
        return Score(found[0], {"smt": found[0]}, Status.OK if found[0] == 1 else Status.WRONG)

    def _given(self, said: str, verdict: bool) -> str:
        said = spoken(said)
        tagged = last_tag(said, "answer")
        bare = (said if tagged is None else tagged).strip()
        if verdict:
            return bare if bare in ("sat", "unsat") else ""
        try:
            return json.dumps(values(bare))
        except Unreadable:
            return NOTHING

    def gold(self, row: Row) -> str | None:
        """The row's ``answer``, else what z3 finds; None when it finds nothing in time. Raises BadColumn when no values can do."""
        if gold_text(row) is not None:
            return gold_text(row)
        item, seconds = _item(row)
        try:
            answer = self.solver.process.ask([json.dumps(item)], [""], seconds + SLACK)
        except (TimeoutError, Died, Refused, OSError):
            return None
        found = "".join(chr(int(c)) for c in answer["values"][0]) if "values" in answer else ""
        if found == "unsat" and not item["verdict"]:
            raise BadColumn("smt2 cannot hold, so no values make it hold; mend it, or ask for goal: verdict")
        return found or None

    def wrong(self, row: Row) -> Sequence[str]:
        if _item(row)[0]["verdict"]:
            right = self.gold(row)
            return ["", "sat unsat", "sat or unsat", *({"sat": ["unsat"], "unsat": ["sat"]}.get(right or "", []))]
        gold = self.gold(row) or "(define-fun x () Int 0)"
        return (
            "", "sat", "(model)", gold + "(assert false)", gold + gold, "(reset)", gold.replace("define-fun", "define-const"), "(declare-const zzz Int)" + gold,
            gold[:-1] + " (assert true))", re.sub(r"\)\s*$", "", gold), "(" * 10_000, "(define-fun x () Int (+ x 0))",
        )  # fmt: skip

    def answer(self, text: str, row: Row) -> str | None:
        given = self._given(text, _item(row)[0]["verdict"])
        return given if given not in ("", NOTHING) else None


def values(said: str) -> dict[str, str]:
    """The values that definitions give, name -> SMT-LIB. Raises Unreadable.

    >>> values("(model (define-fun x () Int (- 3)) (define-fun |a b| () Bool true))")
    {'a b': 'true', 'x': '(- 3)'}
    """
    trees = list(_trees(said))
    if len(trees) == 1 and isinstance(trees[0], list) and trees[0] and (trees[0][0] == "model" or isinstance(trees[0][0], list)):
        trees = trees[0][trees[0][0] == "model" :]
    found: dict[str, str] = {}
    for tree in trees:
        if not (isinstance(tree, list) and len(tree) == 5 and tree[0] == "define-fun" and isinstance(tree[1], str) and tree[2] == []):
            raise Unreadable("not a definition of a constant")
        name = tree[1].strip("|")
        if name in found:
            raise Unreadable(f"{name} is given twice")
        found[name] = _value(tree[4])
    if not found:
        raise Unreadable("no definitions")
    return dict(sorted(found.items()))


def _trees(said: str) -> Iterator[Tree]:
    if len(said) > LONGEST:
        raise Unreadable(f"more than {LONGEST} characters")
    open_: list[list[Tree]] = []
    position = _past_space(said, 0)
    while position < len(said):
        match = _TOKEN.match(said, position)
        if match is None:
            raise Unreadable("no SMT-LIB")
        position, token = _past_space(said, match.end()), match[0]
        if token == "(":
            open_.append([])
            if len(open_) > DEEPEST:
                raise Unreadable(f"more than {DEEPEST} levels")
            continue
        done: Tree = token
        if token == ")":
            if not open_:
                raise Unreadable("one bracket too many is closed")
            done = open_.pop()
        if open_:
            open_[-1].append(done)
        else:
            yield done
    if open_:
        raise Unreadable("a bracket is not closed")


def _past_space(said: str, position: int) -> int:
    """The next place with something on it; a comment goes from ; to the end of its line."""
    match = _SPACE.match(said, position)
    return match.end() if match else position


def _value(tree: Tree) -> str:
    """A value written out: no names of constants, no functions but those that write a number or an array."""
    if isinstance(tree, list):
        if not tree or (isinstance(tree[0], str) and tree[0] not in _HEADS):
            raise Unreadable("not a value")
        return f"({' '.join(_value(t) for t in tree)})"
    if not (_VALUE.fullmatch(tree) or tree in _HEADS or re.fullmatch(r"bv\d+", tree)):
        raise Unreadable("not a value")
    return tree


def _item(row: Row) -> tuple[dict[str, Any], float]:
    seconds = number(row, "seconds", SECONDS, 600)
    return {"smt2": text(row, "smt2"), "verdict": option(row, "goal", ("model", "verdict"), "model") == "verdict", "milliseconds": 1000 * seconds}, seconds
