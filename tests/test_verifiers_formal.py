"""Certificates: SAT assignments and proofs against picosat, models checked by z3, and what is asked of Lean, Coq and drat-trim."""

from __future__ import annotations

import itertools
import os
import random
import time

import pycosat
import pytest

from truing.errors import ConfigError
from truing.rewards.verifiers import cnf
from truing.rewards.verifiers.formal_proofs import Coq, Lean, proof_in
from truing.rewards.verifiers.formal_smt import Unreadable, values
from truing.rewards.verifiers.verifier import open_verifier
from truing.types import Status

# (x1 or x2)(x1 or -x2)(-x1 or x2) holds for x1 = x2 = 1 alone; with (-x1 or -x2) it cannot hold
HOLDS = {"cnf": "c one model\np cnf 2 3\n1 2 0 1 -2 0\n-1 2 0\n"}
CANNOT = {"cnf": "p cnf 2 4\n1 2 0\n1 -2 0\n-1 2 0\n-1 -2 0\n"}


def one(verifier, text, row):
    return verifier([text], [row])[0]


def reason(score):
    return next(iter(score.parts))


# SAT -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "text", "value"),
    [
        (HOLDS, "s SATISFIABLE\nv 1 2 0", 1),
        (HOLDS, "c so\nv 1\nv 2 0", 1),
        (HOLDS, "I set both. <answer>v 1 2</answer>", 1),
        (HOLDS, "v 1 -2 0", 0),
        (HOLDS, "v 1 0", 0),  # x2 is open, and the third clause with it
        (HOLDS, "v 1 -1 2 -2 0", 0),
        (HOLDS, "v 1 2 3 0", 0),  # there is no variable 3
        (HOLDS, "1 2 0", 0),
        (HOLDS, "v 1 two 0", 0),
        (HOLDS, "s UNSATISFIABLE\n0", 0),
        (HOLDS, "s UNSATISFIABLE\n-1 0\n0", 0),
        (CANNOT, "s UNSATISFIABLE\n1 0\n0", 1),  # not x1 makes x2 and not x2; then x1 makes x2 and not x2
        (CANNOT, "s UNSATISFIABLE\n1 0\nd 1 2 0\n0", 1),
        (CANNOT, "s UNSATISFIABLE", 0),  # says so, and shows nothing
        (CANNOT, "s UNSATISFIABLE\n0", 0),  # the empty clause does not follow by units alone
        (CANNOT, "1 0\n0", 0),
        (CANNOT, "s UNSATISFIABLE\ns SATISFIABLE\n1 0\n0", 0),
        (CANNOT, "v 1 2 0", 0),
        (CANNOT, "s UNSATISFIABLE\n" + "1 " * 10, 0),
    ],
)
def test_sat(row, text, value):
    score = one(open_verifier("sat"), text, row)
    assert (score.value, score.status, dict(score.parts)) == (value, Status.OK if value else Status.WRONG, {"sat": value})


@pytest.mark.parametrize("text", ["", "1 2 0", "p cnf 2 2\n1 0", "p cnf 1 1\n2 0", "p cnf 1 1\n1", "p cnf x 1\n1 0", "p cnf 1 1\none 0", 3])
def test_a_broken_formula_is_the_rows_fault(text):
    assert one(open_verifier("sat"), "v 1 0", {"cnf": text}).status is Status.UNPARSED


def formulas(n=120):
    rng = random.Random(3)
    for _ in range(n):
        variables = rng.randint(2, 8)
        clauses = [tuple(rng.choice((1, -1)) * v for v in rng.sample(range(1, variables + 1), min(variables, rng.choice((1, 2, 3, 3, 3))))) for _ in range(int(variables * rng.uniform(2, 6)))]
        yield rng, cnf.Cnf(variables, tuple(clauses))


def test_sat_agrees_with_picosat_and_with_trying_everything():
    verifier, counts = open_verifier("sat"), {True: 0, False: 0}
    for rng, formula in formulas():
        row = {"cnf": formula.text()}
        assert cnf.parse(row["cnf"]) == formula
        satisfiable = pycosat.solve(map(list, formula.clauses)) != "UNSAT"
        counts[satisfiable] += 1
        gold = verifier.gold(row)
        assert one(verifier, gold, row).value == 1 and ("UNSATISFIABLE" in gold) == (not satisfiable)
        assert not any(one(verifier, w, row).value for w in verifier.wrong(row))
        for signs in itertools.islice(itertools.product((1, -1), repeat=formula.variables), 16):
            literals = [s * v for s, v in zip(signs, range(1, formula.variables + 1), strict=True)]
            right = all(any(n in literals for n in clause) for clause in formula.clauses)
            assert one(verifier, f"v {' '.join(map(str, literals))} 0", row).value == right
        if satisfiable:  # no made-up proof convinces the checker of what is false
            for _ in range(5):
                steps = [tuple(rng.choice((1, -1)) * v for v in rng.sample(range(1, formula.variables + 1), rng.randint(1, 2))) for _ in range(6)]
                assert not cnf.refutes(formula, [*steps, ()], 10**6)
    assert min(counts.values()) > 20


def test_a_proof_that_is_too_long_to_check_proves_nothing(monkeypatch):
    with pytest.raises(cnf.TooMuch):
        cnf.refutes(cnf.parse(CANNOT["cnf"]), [(1,), ()], 2)
    monkeypatch.setattr("truing.rewards.verifiers.formal_sat.BUDGET", 2)
    assert one(open_verifier("sat"), "s UNSATISFIABLE\n1 0\n0", CANNOT).status is Status.WRONG
    start = time.process_time()
    assert one(open_verifier("sat"), "v " + "1 " * 600_000, HOLDS).value == 0
    assert time.process_time() - start < 1


def test_the_row_may_bring_its_own_certificate():
    assert open_verifier("sat").gold({**HOLDS, "answer": "v 1 2 0"}) == "v 1 2 0"
    assert [open_verifier("sat").answer(t, HOLDS) for t in ("v 1 0", "s UNSATISFIABLE\n0", "x")] == ["SATISFIABLE", "UNSATISFIABLE", None]


def program(folder, name, body):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bin_(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "bin"


def test_what_units_cannot_show_goes_to_drat_trim(bin_, tmp_path):
    # "-1" does not follow by units from this formula; whether it may be added is for drat-trim to say
    row, text = {"cnf": "p cnf 3 2\n1 2 0\n-2 3 0\n"}, "s UNSATISFIABLE\n-1 0\nd 1 2 0\n0"
    verifier = open_verifier("sat")
    assert one(verifier, text, row).value == 0
    seen = tmp_path / "seen"
    program(bin_, "drat-trim", f'cat "$1" "$2" > {seen}; echo "$3 $4" >> {seen}; echo "s VERIFIED"')
    assert one(verifier, text, row).value == 1
    assert seen.read_text() == "p cnf 3 2\n1 2 0\n-2 3 0\n-1 0\nd 1 2 0\n0\n-t 21\n"
    program(bin_, "drat-trim", 'echo "s NOT VERIFIED"')
    assert one(verifier, text, row).value == 0
    program(bin_, "drat-trim", 'echo "s VERIFIED"; sleep 60')
    assert one(verifier, text, {**row, "seconds": 0.3}).status is Status.WRONG


# SMT -------------------------------------------------------------------------------------------------------------------

SUM = {"smt2": "(declare-const x Int)(declare-const y Int)(assert (= (+ x y) 10))(assert (> x (* 2 y)))"}  # y <= 3
MIXED = {"smt2": "(declare-const b (_ BitVec 8))(declare-const r Real)(declare-const |a b| Bool)(declare-const s String)(declare-const m (Array Int Int))"
         '(assert (and (= (bvmul b #x03) #x09) (= (* 3 r) 1.0) |a b| (= (str.len s) 3) (= (select m 1) 5)))'}  # fmt: skip


@pytest.fixture(scope="module")
def smt():
    verifier = open_verifier("smt")
    yield verifier
    verifier.bounded.close()
    verifier.solver.close()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(define-fun x () Int 9)(define-fun y () Int 1)", 1),
        ("(model ; z3's own notation\n (define-fun y () Int 3)\n (define-fun x () Int 7))", 1),
        ("so <answer>((define-fun x () Int 20) (define-fun y () Int (- 10)))</answer>", 1),
        ("(define-fun x () Int 6)(define-fun y () Int 4)", 0),
        ("(define-fun x () Int 9)", 0),  # y is left open
        ("(define-fun x () Int 9)(define-fun y () Int 1)(define-fun z () Int 1)", 0),
        ("(define-fun x () Int 9)(define-fun x () Int 9)(define-fun y () Int 1)", 0),
        ("(define-fun x () Int 9)(define-fun y () Int (- 10 x))", 0),  # a value is written out
        ("(define-fun x () Int 9)(define-fun y () Int (let ((q 1)) q))", 0),
        ("(define-fun x () Int 9)(define-fun y () String \"1\")", 0),
        ("(define-fun x () Int 9)(define-fun y () Int 1))(assert true)", 0),
        ("(define-fun x () Int 9)(define-fun y () Int 1)(reset)", 0),
        ("x = 9, y = 1", 0),
        ("sat", 0),
        ("", 0),
        ("(" * 100_000, 0),
        ("(define-fun x () Int " + "9" * 70_000 + ")", 0),
    ],
)
def test_smt_values(smt, text, value):
    score = one(smt, text, SUM)
    assert (score.value, score.status) == (value, Status.OK if value else Status.WRONG)


def test_smt_proves_itself(smt):
    for row in (SUM, MIXED, {**SUM, "goal": "verdict"}, {"smt2": "(declare-const x Int)(assert (and (> x 1) (< x 1)))", "goal": "verdict"}):
        assert one(smt, smt.gold(row), row).value == 1
        assert [one(smt, w, row).status for w in smt.wrong(row)] == [Status.WRONG] * len(smt.wrong(row))
    third = "(define-fun b () (_ BitVec 8) #x03)(define-fun |a b| () Bool true)(define-fun s () String \"abc\")(define-fun m () (Array Int Int) (store ((as const (Array Int Int)) 0) 1 5))"
    assert one(smt, third + "(define-fun r () Real (/ 1 3))", MIXED).value == 1
    assert one(smt, third + "(define-fun r () Real 0.3333333333)", MIXED).value == 0


@pytest.mark.parametrize("row", [{"smt2": "(declare-const x Int"}, {"smt2": 3}, {"smt2": "(declare-fun f (Int) Int)(assert (= (f 1) 2))"}, {**SUM, "goal": "core"}, {**SUM, "seconds": 0}])
def test_broken_assertions_are_the_rows_fault(smt, row):
    assert one(smt, "(define-fun x () Int 1)", row).status is Status.UNPARSED


def test_what_no_values_can_do_and_what_z3_cannot_decide(smt):
    with pytest.raises(ValueError, match="cannot hold"):
        smt.gold({"smt2": "(declare-const x Int)(assert (and (> x 1) (< x 1)))"})
    cubes = "(assert (and (> x 2) (> y 2) (> z 2) (= (+ (* x x x) (* y y y)) (* z z z))))"
    row = {"smt2": "(declare-const x Int)(declare-const y Int)(declare-const z Int)" + cubes, "goal": "verdict", "seconds": 0.3}
    assert one(smt, "unsat", row).status is Status.TIMED_OUT  # true (Euler), but z3 does not find out: no zero for that


def test_definitions_are_read_as_trees():
    assert values('(define-fun s () String "a) (b")') == {"s": '"a) (b"'}
    assert values("; c\n(define-fun x () Int 1) ; d") == {"x": "1"}
    for text in ("", "()", "(define-fun f ((x Int)) Int 1)", "(define-fun x () Int)", "(define-fun x () Int 1", "define-fun x () Int 1)", "(define-fun x () Int y)", '(define-fun x () Int "'):
        with pytest.raises(Unreadable):
            values(text)


# Lean and Coq ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "program_"), [("lean", "lean"), ("coq", "coqc")])
def test_without_the_prover_the_refusal_says_what_to_do(name, program_, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"the verifier {name} needs the program {program_}, which is not on PATH; install .*, or take the rows that name it out"):
        open_verifier(name)


LEAN_ROW = {"statement": "theorem two : 1 + 1 = 2", "preamble": "-- before", "answer": "by rfl"}
LEAN_SAYS = "echo \"'two' does not depend on any axioms\""


def test_lean_is_given_a_file_that_ends_by_asking_for_axioms(bin_, tmp_path):
    seen = tmp_path / "seen"
    program(bin_, "lean", f'cp "$1" {seen}; env > {seen}.env; {LEAN_SAYS}')
    os.environ["SECRET_FOR_TEST"] = "hush"
    try:
        verifier = Lean()
        assert one(verifier, verifier.gold(LEAN_ROW), LEAN_ROW).value == 1
    finally:
        del os.environ["SECRET_FOR_TEST"]
    assert seen.read_text() == "-- before\ntheorem two : 1 + 1 = 2 :=\nby rfl\n\n#print axioms two\n"
    assert "hush" not in (tmp_path / "seen.env").read_text()
    refused = [w for w in verifier.wrong(LEAN_ROW) if w not in ("by exact cheat", "/-")]  # which only Lean itself finds wrong
    seen.unlink()
    assert len(refused) >= 6 and all(one(verifier, w, LEAN_ROW).status is Status.WRONG for w in refused)
    assert "cheat" not in seen.read_text()  # at most the statement with the proof left open was shown to it


@pytest.mark.parametrize(
    ("says", "code", "row", "value"),
    [
        ("'two' depends on axioms: [propext, Quot.sound]", 0, {}, 1),
        ("'two' depends on axioms: [propext, sorryAx]", 0, {}, 0),
        ("'two' depends on axioms: [Lean.ofReduceBool]", 0, {}, 0),
        ("'two' depends on axioms: [mine]", 0, {}, 0),
        ("'two' depends on axioms: [mine]", 0, {"axioms": ["mine"]}, 1),
        ("'two' does not depend on any axioms", 1, {}, 0),
        ("warning: declaration uses 'sorry'", 0, {}, 0),
        ("'two' does not depend on any axioms but said earlier", 0, {}, 0),
        ("", 0, {}, 0),
    ],
)
def test_what_lean_says_last_decides(bin_, says, code, row, value):
    program(bin_, "lean", f'grep -q "^sorry$" "$1" && exit 0\necho "{says}"; exit {code}')
    score = one(Lean(), "by rfl", {**LEAN_ROW, **row})
    assert (score.value, score.status) == (value, Status.OK if value else Status.WRONG)


def test_a_statement_that_lean_does_not_take_is_the_rows_fault(bin_):
    program(bin_, "lean", 'echo "Proof.lean:2:0: unknown identifier"; exit 1')
    score = one(Lean(), "by rfl", LEAN_ROW)
    assert score.status is Status.UNPARSED and "unknown identifier" in reason(score)
    assert one(Lean(), "by rfl", {"statement": "1 + 1 = 2"}).status is Status.UNPARSED


def test_a_slow_proof_is_ended(bin_):
    program(bin_, "lean", 'grep -q "^sorry$" "$1" && exit 0\nsleep 60 & sleep 60')
    start = time.monotonic()
    assert one(Lean(), "by rfl", {**LEAN_ROW, "seconds": 0.5}).status is Status.WRONG
    assert time.monotonic() - start < 20


COQ_ROW = {"statement": "Theorem two : 1 + 1 = 2.", "answer": "reflexivity."}


@pytest.mark.parametrize(
    ("says", "row", "value"),
    [
        ("Closed under the global context", {}, 1),
        ("Axioms:\nclassic : forall P : Prop, P \\/ ~ P", {}, 0),
        ("Axioms:\nclassic : forall P : Prop,\n  P", {"axioms": ["classic"]}, 1),
        ("Axioms:\nclassic : P\nmine : False", {"axioms": ["classic"]}, 0),
        ("", {}, 0),
    ],
)
def test_coq(bin_, tmp_path, says, row, value):
    seen = tmp_path / "seen"
    (tmp_path / "says").write_text(says + "\n")
    program(bin_, "coqc", f'grep -q Admitted "$1" && exit 0\ncp "$1" {seen}; cat {tmp_path / "says"}')
    verifier = Coq()
    for text in ("reflexivity.", "Proof. reflexivity. Qed.", "```coq\nProof.\nreflexivity.\nQed.\n```"):
        assert one(verifier, text, {**COQ_ROW, **row}).value == value
        assert seen.read_text() == "\nTheorem two : 1 + 1 = 2.\nProof.\nreflexivity.\nQed.\nPrint Assumptions two.\n"
    seen.unlink()
    assert all(one(verifier, w, COQ_ROW).status is Status.WRONG for w in verifier.wrong(COQ_ROW)[:-1]) and not seen.exists()  # refused before coqc sees them


@pytest.mark.parametrize("words", ["by sorry", "by simp; admit", "by exact sorryAx _", "by native_decide", "by\n  run_tac x", "set_option x true in rfl", "rfl\n#eval 1", "by have : Lean.Name := x; rfl"])
def test_lean_words_that_say_believe_me_are_refused(words):
    assert Lean.forbidden.search(words)


@pytest.mark.parametrize("words", ["by rfl", "by\n  induction n with\n  | zero => simp\n  | succ n ih => omega", "fun h => h.elim", "by decide", "by simp [Nat.add_comm]", "by sorry_free"])
def test_honest_lean_is_not_refused(words):
    assert not Lean.forbidden.search(words)


def test_the_proof_is_found():
    assert [proof_in(t) for t in ("by rfl", "Here: <answer>by rfl</answer>", ":= by rfl", "```lean\nby rfl\n```", "")] == ["by rfl"] * 4 + [""]
