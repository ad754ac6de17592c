"""`sat`: a formula holds under the assignment given, or cannot hold by the proof given. Both are checked, neither is searched for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from truing.rewards.completions import failed
from truing.rewards.verifiers import cnf
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.programs import run
from truing.rewards.verifiers.reading import BadColumn, gold_text, last_tag, number, text
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

BUDGET = 20_000_000  # literals that a proof may make the checker look at
LONGEST = 2**20  # characters of a completion
SECONDS = 20.0


class Sat:
    """The column ``cnf`` is a formula in DIMACS. The completion (or what stands in its last ``<answer>``) is in the competitions' notation:

    - ``v 1 -2 3 0``: an assignment, on one or more such lines; every clause must have a literal that it makes true;
    - ``s UNSATISFIABLE`` and then the clauses of a DRAT proof, one a line, each ending in 0, the empty clause (``0``) among them.

    Lines ``c ...`` and ``s SATISFIABLE`` may stand there. A proof is first checked here, by unit propagation (RUP); one that needs
    more (RAT steps) is given to ``drat-trim`` where it is installed, for at most ``seconds`` (20). A proof that is too long to check proves nothing.
    """

    name = "sat"
    columns = ("cnf",)

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, said: str, row: Row) -> Score:
        try:
            formula, seconds = cnf.parse(text(row, "cnf")), number(row, "seconds", SECONDS, 600)
        except (BadColumn, cnf.NotDimacs) as error:
            return failed(Status.UNPARSED, f"sat: cnf: {error}")
        try:
            value = float(_holds(formula, said, seconds))
        except (cnf.NotDimacs, cnf.TooMuch):
            value = 0.0
        return Score(value, {"sat": value}, Status.OK if value else Status.WRONG)

    def gold(self, row: Row) -> str | None:
        """The row's ``answer``; else what a small solver finds within bounds, and None when it finds nothing."""
        answer, formula = gold_text(row), cnf.parse(text(row, "cnf"))
        if answer is not None:
            return answer
        try:
            found, steps = cnf.solve(formula, BUDGET // 20)
        except cnf.TooMuch:
            return None
        if found is None:
            return "s UNSATISFIABLE\n" + "\n".join(" ".join(map(str, (*step, 0))) for step in steps)
        return "s SATISFIABLE\nv " + " ".join(map(str, sorted(found, key=abs))) + " 0"

    def wrong(self, row: Row) -> Sequence[str]:
        n = cnf.parse(text(row, "cnf")).variables
        both = " ".join(f"{i} -{i}" for i in range(1, n + 1))
        return ("", "s SATISFIABLE", "s UNSATISFIABLE", "s UNSATISFIABLE\nd 1 0", f"v {both} 0", f"v {both} 0\ns UNSATISFIABLE\n0", f"v {n + 1} 0", "v " + "9" * 5000 + " 0")

    def answer(self, text: str, row: Row) -> str | None:
        lines = _lines(text)
        return "UNSATISFIABLE" if "s UNSATISFIABLE" in lines else "SATISFIABLE" if any(line.startswith("v") for line in lines) else None


def _lines(said: str) -> list[str]:
    said = spoken(said)
    tagged = last_tag(said, "answer")
    lines = (line.strip() for line in (said if tagged is None else tagged).splitlines())
    return [line for line in lines if line and line != "c" and not line.startswith("c ")]


def _holds(formula: cnf.Cnf, said: str, seconds: float) -> bool:
    if len(said) > LONGEST:
        return False
    lines = _lines(said)
    values = [line for line in lines if line.split()[0] == "v"]
    steps = [line for line in lines if line.split()[0] not in ("v", "s")]
    if "s UNSATISFIABLE" not in lines:
        return bool(values) and not steps and cnf.satisfies(formula, cnf.assignment(values))
    if values or "s SATISFIABLE" in lines:
        return False
    added = cnf.proof(steps)
    if () not in added or any(abs(n) > formula.variables + len(added) for step in added for n in step):
        return False
    return cnf.refutes(formula, added, BUDGET) or _drat_trim(formula, steps, seconds)


def _drat_trim(formula: cnf.Cnf, steps: Sequence[str], seconds: float) -> bool:
    """What ``drat-trim FORMULA PROOF`` says, where it is installed."""
    program = shutil.which("drat-trim")
    if program is None or not steps:
        return False
    with tempfile.TemporaryDirectory(prefix="truing-drat-") as folder:
        problem, certificate = Path(folder, "formula.cnf"), Path(folder, "proof.drat")
        problem.write_text(formula.text())
        certificate.write_text("\n".join(steps) + "\n")
        done = run([program, str(problem), str(certificate), "-t", str(int(seconds) + 1)], Path(folder), seconds)
    return done.ended and "s VERIFIED" in done.output.split("\n")
