"""Formulas in conjunctive normal form: reading DIMACS, checking assignments and RUP proofs, and a small solver for gold answers.

A literal is a number: 3 is variable 3 true, -3 is variable 3 false. A clause is a tuple of literals, of which one must hold. Work is
counted in literals looked at, so that what is too much is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Clause = tuple[int, ...]


class NotDimacs(ValueError):
    """The text is no formula, assignment or proof; the message says where."""


class TooMuch(Exception):
    """The work allowed is used up."""


@dataclass(frozen=True)
class Cnf:
    variables: int
    clauses: tuple[Clause, ...]

    def text(self) -> str:
        return "\n".join([f"p cnf {self.variables} {len(self.clauses)}", *(" ".join(map(str, (*c, 0))) for c in self.clauses)]) + "\n"


def parse(text: str) -> Cnf:
    """DIMACS: ``p cnf VARIABLES CLAUSES``, then each clause as literals and a 0; lines that start with c are comments.

    >>> parse("p cnf 2 2\\n1 -2 0\\n2 0")
    Cnf(variables=2, clauses=((1, -2), (2,)))
    """
    header: tuple[int, int] | None = None
    numbers: list[int] = []
    for line in text.splitlines():
        parts = line.split()
        if not parts or parts[0] == "c" or line.startswith("%"):
            continue
        if parts[0] == "p":
            if header or len(parts) != 4 or parts[1] != "cnf" or not all(p.isdecimal() for p in parts[2:]):
                raise NotDimacs(f"{line[:60]!r} is no header; write one line p cnf VARIABLES CLAUSES")
            header = int(parts[2]), int(parts[3])
        else:
            numbers += _integers(parts)
    if header is None:
        raise NotDimacs("no header; start with p cnf VARIABLES CLAUSES")
    clauses = _clauses(numbers)
    if len(clauses) != header[1] or any(abs(v) > header[0] for c in clauses for v in c):
        raise NotDimacs(f"the header says {header[0]} variables and {header[1]} clauses; found {max((abs(v) for c in clauses for v in c), default=0)} and {len(clauses)}")
    return Cnf(header[0], clauses)


def _integers(parts: Iterable[str]) -> list[int]:
    try:
        return [int(p) for p in parts if len(p) < 12 or _too_long(p)]
    except ValueError as error:
        raise NotDimacs(f"{str(error)[:80]}; write literals as whole numbers") from error


def _too_long(part: str) -> bool:
    raise NotDimacs(f"{part[:20]}... is no literal")


def _clauses(numbers: Sequence[int]) -> tuple[Clause, ...]:
    found: list[Clause] = []
    clause: list[int] = []
    for n in numbers:
        if n:
            clause.append(n)
        else:
            found.append(tuple(clause))
            clause = []
    if clause:
        raise NotDimacs("the last clause has no 0 at its end")
    return tuple(found)


def assignment(lines: Sequence[str]) -> frozenset[int]:
    """The literals of ``v`` lines. Raises NotDimacs for what is none, or says a variable to be both."""
    literals = frozenset(n for line in lines for n in _integers(line.split()[1:]) if n)
    if any(-n in literals for n in literals):
        raise NotDimacs("a variable is both true and false")
    return literals


def satisfies(cnf: Cnf, literals: frozenset[int]) -> bool:
    """Whether every clause has a literal that holds. Variables that are not named help no clause; names beyond the formula's are refused.

    >>> satisfies(Cnf(2, ((1, -2), (2,))), frozenset({1, 2})), satisfies(Cnf(2, ((1, -2), (2,))), frozenset({1}))
    (True, False)
    """
    return all(abs(n) <= cnf.variables for n in literals) and all(any(n in literals for n in clause) for clause in cnf.clauses)


def proof(lines: Sequence[str]) -> list[Clause]:
    """The clauses that a DRAT proof adds. What it deletes (``d`` lines) is kept: more clauses prove no less."""
    return [clause for line in lines if not line.startswith("d ") for clause in _clauses(_integers(line.split()))]


class Propagation:
    """Unit propagation over clauses, with two watched literals a clause.

    A clause is watched by its first two literals; it is looked at only when one of these becomes false. Work is counted by `budget`.
    """

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.watched: dict[int, list[list[int]]] = {}
        self.value: dict[int, bool] = {}
        self.trail: list[int] = []
        self.broken = False  # a conflict without any decision: the clauses cannot hold

    def add(self, clause: Clause) -> None:
        """One more clause, at the level without decisions."""
        literals = list(dict.fromkeys(clause))
        if any(-n in literals for n in literals) or self.broken:
            return
        literals.sort(key=lambda n: self.value.get(n) is False)  # watch what is not false
        if not literals or self.value.get(literals[0]) is False:
            self.broken = True
            return
        if len(literals) == 1 or self.value.get(literals[1]) is False:
            self.broken = not self.assume([literals[0]])
        if len(literals) > 1:
            for n in literals[:2]:
                self.watched.setdefault(n, []).append(literals)

    def assume(self, literals: Iterable[int]) -> bool:
        """Set literals true and everything that follows; False at a conflict."""
        start = len(self.trail)
        for n in literals:
            if not self._set(n):
                return False
        while start < len(self.trail):
            if not self._visit(-self.trail[start]):
                return False
            start += 1
        return True

    def undo(self, length: int) -> None:
        for n in self.trail[length:]:
            del self.value[n], self.value[-n]
        del self.trail[length:]

    def _set(self, n: int) -> bool:
        if n not in self.value:
            self.value[n], self.value[-n] = True, False
            self.trail.append(n)
        return self.value[n]

    def _visit(self, false: int) -> bool:
        waiting, kept = self.watched.get(false, []), []
        for i, clause in enumerate(waiting):
            self.left -= len(clause)
            if self.left < 0:
                raise TooMuch
            if clause[0] == false:
                clause[0], clause[1] = clause[1], clause[0]
            if self.value.get(clause[0]) is not True:
                for k in range(2, len(clause)):
                    if self.value.get(clause[k]) is not False:
                        clause[1], clause[k] = clause[k], clause[1]
                        self.watched.setdefault(clause[1], []).append(clause)
                        break
                else:
                    kept.append(clause)
                    if not self._set(clause[0]):
                        self.watched[false] = kept + waiting[i + 1 :]
                        return False
                    continue
                continue
            kept.append(clause)
        self.watched[false] = kept
        return True


def refutes(cnf: Cnf, steps: Sequence[Clause], budget: int) -> bool:
    """Whether the steps prove that the formula cannot hold, each by reverse unit propagation (RUP; Goldberg and Novikov 2003).

    A step follows when setting all its literals false leads to a conflict by unit propagation alone. The proof is done when the
    clauses conflict without any assumption. Raises TooMuch.

    >>> refutes(Cnf(2, ((1, 2), (1, -2), (-1, 2), (-1, -2))), [(1,)], 1000)
    True
    >>> refutes(Cnf(2, ((1, 2), (1, -2), (-1, 2))), [(1,), ()], 1000)
    False
    """
    state = Propagation(budget)
    for clause in cnf.clauses:
        state.add(clause)
    for step in steps:
        if state.broken:
            return True
        level = len(state.trail)
        conflict = any(-n in step for n in step) or not state.assume([-n for n in step])
        state.undo(level)
        if not conflict:
            return False
        state.add(step)
    return state.broken


def solve(cnf: Cnf, budget: int) -> tuple[frozenset[int] | None, list[Clause]]:
    """(an assignment, []) or (None, a RUP proof), by trying (DPLL); for formulas as small as gold answers need. Raises TooMuch.

    The proof is the negation of each set of decisions that failed, the deepest first: it follows from its two halves.
    """
    state, steps = Propagation(budget), list[Clause]()
    for clause in cnf.clauses:
        state.add(clause)
    decisions: list[tuple[int, int, bool]] = []  # literal, length of the trail before it, whether its opposite has failed
    conflict = state.broken
    while True:
        if conflict:
            steps.append(tuple(-n for n, _, _ in decisions))
            while decisions and decisions[-1][2]:
                state.undo(decisions.pop()[1])
                steps.append(tuple(-n for n, _, _ in decisions))
            if not decisions:
                return None, steps
            literal, level, _ = decisions.pop()
            state.undo(level)
            decisions.append((-literal, level, True))
        else:
            free = next((n for n in range(1, cnf.variables + 1) if n not in state.value), None)
            if free is None:
                return frozenset(state.trail), []
            decisions.append((free, len(state.trail), False))
        state.left -= 1
        if state.left < 0:
            raise TooMuch
        conflict = not state.assume([decisions[-1][0]])
