"""`lean` and `coq`: the completion is a proof of the row's statement, checked by the installed prover.

A prover's language is also one to program in, and has ways to say "believe me". So a proof may not hold the words by which it could end
the statement and begin something else, run code, or assume what it should prove; and the prover is asked afterwards what the
theorem rests on. The words are refused wherever they stand, in comments too.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from truing.errors import ConfigError
from truing.rewards.completions import failed
from truing.rewards.verifiers.final import said as spoken
from truing.rewards.verifiers.programs import Done, run
from truing.rewards.verifiers.reading import BadColumn, gold_text, last_tag, number, text
from truing.rewards.verifiers.verifier import Row
from truing.types import Score, Status

SECONDS = 60.0
LONGEST = 2**16  # characters of a proof

_FENCED = re.compile(r"```\w*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)


class Prover(ABC):
    """Columns: ``statement``, and optionally ``preamble`` (imports and definitions that come before it), ``axioms`` (a list of names that the
    proof may rest on besides the prover's own) and ``seconds`` (60). The completion, or what stands in its last ``<answer>`` or in one
    Markdown fence around it, is the proof.

    A proof that is refused, wrong or too slow is `WRONG`. When the prover does not accept the preamble and the statement with the
    proof left open, the row is at fault: `UNPARSED`.
    """

    name: str
    program: str
    remedy: str
    forbidden: re.Pattern[str]
    columns = ("statement",)

    def __init__(self) -> None:
        found = shutil.which(self.program)
        if found is None:
            raise ConfigError(f"the verifier {self.name} needs the program {self.program}, which is not on PATH; {self.remedy}, or take the rows that name it out")
        self.found = found
        self.opens: dict[tuple[str, str], str] = {}  # (preamble, statement) -> why the prover does not take them; "" when it does

    def __call__(self, texts: Sequence[str], rows: Sequence[Row]) -> list[Score]:
        return [self._score(t, row) for t, row in zip(texts, rows, strict=True)]

    def _score(self, said: str, row: Row) -> Score:
        try:
            seconds, statement = number(row, "seconds", SECONDS, 3600), self._statement(row)
            allowed = _names(row)
        except BadColumn as error:
            return failed(Status.UNPARSED, f"{self.name}: {error}")
        proof = proof_in(said)
        value = 0.0
        if proof and len(proof) <= LONGEST and not self.forbidden.search(proof):
            done = self._run(self.source(row, statement, proof), seconds)
            value = float(done.code == 0 and self.closed(done.output, allowed))
        if not value:
            why = self._broken(row, statement, seconds)
            if why:
                return failed(Status.UNPARSED, f"{self.name}: {self.program} does not take the row's statement: {why}")
        return Score(value, {self.name: value}, Status.OK if value else Status.WRONG)

    def _broken(self, row: Row, statement: str, seconds: float) -> str:
        key = str(row.get("preamble") or ""), statement
        if key not in self.opens:
            done = self._run(self.open_source(row, statement), seconds)
            self.opens[key] = "" if done.code == 0 else (done.output.strip().splitlines() or ["it did not end in time"])[0][:160]
        return self.opens[key]

    def _run(self, source: str, seconds: float) -> Done:
        with tempfile.TemporaryDirectory(prefix=f"truing-{self.name}-") as folder:
            file = Path(folder, "Proof" + self.suffix)
            file.write_text(source, encoding="utf-8")
            return run([self.found, file.name], Path(folder), seconds)

    def _statement(self, row: Row) -> str:
        statement = text(row, "statement").strip()
        if not self.theorem.search(statement):
            raise BadColumn(f"statement is {statement[:60]!r}; {self.usage}")
        return statement

    def gold(self, row: Row) -> str | None:
        return gold_text(row)

    def wrong(self, row: Row) -> Sequence[str]:
        return ("", *self.cheats)

    def answer(self, text: str, row: Row) -> str | None:
        return proof_in(text) or None

    suffix: str
    theorem: re.Pattern[str]
    usage: str
    cheats: tuple[str, ...]

    @abstractmethod
    def source(self, row: Row, statement: str, proof: str) -> str:
        """The file to check, which ends by asking what the theorem rests on."""

    @abstractmethod
    def open_source(self, row: Row, statement: str) -> str:
        """The same with the proof left open, which the prover must take."""

    @abstractmethod
    def closed(self, output: str, allowed: frozenset[str]) -> bool:
        """Whether the prover said, last, that the theorem rests on nothing but what is allowed."""


class Lean(Prover):
    """Lean 4: ``theorem two : 1 + 1 = 2`` is the statement, ``by rfl`` or a term the proof. The axioms propext, Classical.choice and Quot.sound are allowed."""

    name, program, suffix = "lean", "lean", ".lean"
    remedy = "install Lean 4 (elan)"
    forbidden = re.compile(
        r"\b(?:sorry|sorryAx|admit|axiom|axioms|native_decide|ofReduceBool|reduceBool|trustCompiler|unsafe|opaque|constant|theorem|lemma|def|abbrev|example|instance|structure|inductive|class|namespace|"
        r"section|import|open|export|macro|macro_rules|syntax|elab|elab_rules|notation|infix|infixl|infixr|prefix|postfix|attribute|set_option|run_tac|run_cmd|run_elab|run_meta|eval|initialize|"
        r"builtin_initialize|implemented_by|extern|csimp|variable|universe|mutual|private|protected|noncomputable|IO|unsafeIO|dbg_trace|debug|Lean|by_elab|declare_syntax_cat|simproc|deriving|local|scoped)\b|#|@\[|skipKernelTC"
    )
    theorem = re.compile(r"^\s*(?:theorem|lemma)\s+(?P<name>[^\s(:{\[]+)")
    usage = "write theorem NAME ... : ..., without := and a proof"
    cheats = ("by sorry", "by admit", "by native_decide", "trivial\naxiom cheat : False", "by exact cheat", "by\n  run_tac pure ()", "/-")
    own = frozenset({"propext", "Classical.choice", "Quot.sound"})

    def source(self, row: Row, statement: str, proof: str) -> str:
        return f"{row.get('preamble') or ''}\n{statement} :=\n{proof}\n\n#print axioms {self._named(statement)}\n"

    def open_source(self, row: Row, statement: str) -> str:
        return f"{row.get('preamble') or ''}\n{statement} :=\nsorry\n"

    def closed(self, output: str, allowed: frozenset[str]) -> bool:
        match = re.search(r"'\S+' (?:does not depend on any axioms|depends on axioms: \[(?P<names>[^\]]*)\])\s*$", output)
        return match is not None and {n.strip() for n in (match["names"] or "").split(",") if n.strip()} <= self.own | allowed

    def _named(self, statement: str) -> str:
        match = self.theorem.search(statement)
        return match["name"] if match else ""


class Coq(Prover):
    """Coq (Rocq): ``Theorem two : 1 + 1 = 2.`` is the statement, tactics the proof, with or without ``Proof.`` and ``Qed.`` around them. No axioms are allowed but the row's."""

    name, program, suffix = "coq", "coqc", ".v"
    remedy = "install Coq"
    forbidden = re.compile(
        r"\b(?:Admitted|admit|give_up|Axioms?|Parameters?|Hypothes[ie]s|Variables?|Conjecture|Context|Abort|Declare|Require|Import|Export|Load|Add|Redirect|Extraction|Drop|Cd|Pwd|Print|Eval|Compute|Search|"
        r"Check|Set|Unset|Local|Global|Theorem|Lemma|Definition|Fixpoint|CoFixpoint|Inductive|Record|Module|Section|End|Instance|Notation|Ltac2?|Tactic|Reserved|Goal|Example|Fact|Remark|Corollary|"
        r"Proposition|Program|Obligation|Next|Defined|Save|Restart|Undo|Back|Reset|Fail|Time|Timeout|bypass_check|Primitive|Register|Opaque|Transparent|Hint|Canonical|Coercion|Scheme|From|Comments)\b|#\["
    )
    theorem = re.compile(r"^\s*(?:Theorem|Lemma|Corollary|Proposition|Fact|Remark)\s+(?P<name>[\w']+)[^\0]*\.$")
    usage = "write Theorem NAME : ... . with its dot and without a proof"
    cheats = ("Admitted.", "admit.", "Qed.\nAxiom cheat : False.", "Abort.", "(*")

    def source(self, row: Row, statement: str, proof: str) -> str:
        bare = re.sub(r"^Proof\.|\bQed\.$", "", proof).strip()
        match = self.theorem.search(statement)
        return f"{row.get('preamble') or ''}\n{statement}\nProof.\n{bare}\nQed.\nPrint Assumptions {match['name'] if match else ''}.\n"

    def open_source(self, row: Row, statement: str) -> str:
        return f"{row.get('preamble') or ''}\n{statement}\nProof.\nAdmitted.\n"

    def closed(self, output: str, allowed: frozenset[str]) -> bool:
        if output.rstrip().endswith("Closed under the global context"):
            return True
        _, said, rest = output.rpartition("Axioms:\n")
        named = {line.split(":")[0].strip() for line in rest.splitlines() if line and not line[0].isspace()}
        return bool(said) and bool(named) and named <= allowed


def proof_in(said: str) -> str:
    """The proof: of "Here it is: <answer>by rfl</answer>" it is "by rfl". Lean's ``:=`` before it is left out."""
    said = spoken(said)
    tagged = last_tag(said, "answer")
    bare = (said if tagged is None else tagged).strip()
    fenced = _FENCED.fullmatch(bare)
    return (fenced[1] if fenced else bare).strip().removeprefix(":=").strip()


def _names(row: Row) -> frozenset[str]:
    value = row.get("axioms") or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadColumn(f"axioms is {value!r}; write a list of names")
    return frozenset(value)
