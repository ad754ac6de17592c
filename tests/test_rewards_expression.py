"""Reward expressions as text: what is read, what is refused and how, and that Python and YAML say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing import rewards as r
from truing.config import PPO, Recipe, parse_yaml
from truing.errors import ConfigError
from truing.pipeline import _resolved
from truing.rewards import build, expression, grammar
from truing.rewards.grammar import Atom, Combination, Name, Node, Number, Operation

RM, EXCESS = Name("rm"), Atom("excess_tokens", (150,))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a word stands for depends on the folder one is in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_text_is_read_with_the_usual_precedence() -> None:
    assert expression.parse("rm - 0.01 * excess_tokens(150)") == Operation("-", (RM, Operation("*", (Number(0.01), EXCESS))))
    a, b, c = Name("a"), Name("b"), Name("c")
    assert expression.parse("a - b - c") == Operation("-", (Operation("-", (a, b)), c))
    assert expression.parse("a - (b - c)") == Operation("-", (a, Operation("-", (b, c))))
    assert expression.parse("-a * b") == Operation("*", (Operation("-", (a,)), b))
    assert expression.parse("-(a * -2) / +3") == Operation("/", (Operation("-", (Operation("*", (a, Number(-2.0))),)), Number(3.0)))
    assert expression.parse("minimum(a, b)") == Combination("minimum", (a, b))
    assert expression.parse("clip(mean(a, b, c) - 1.0 * std(a, b, c), low=-1, high=2)").bounds == (-1.0, 2.0)  # type: ignore[union-attr]
    assert expression.parse("repetition()") == expression.parse("repetition(n=2)") == Atom("repetition", (2,))
    assert expression.parse("rm\n  - 1") == expression.parse("rm - 1")  # a folded YAML text


def test_python_writes_the_texts_that_yaml_holds() -> None:
    rm = r.learned("runs/x/reward/model")
    cases = {
        'learned("runs/x/reward/model") - 0.01 * excess_tokens(150)': rm - 0.01 * r.excess_tokens(150),
        'minimum(learned("a/b"), learned("c/d"))': r.minimum("a/b", Path("c/d")),
        "mean(tokens(), cut_off(), 1) - 1 * std(tokens(), cut_off())": r.mean(r.tokens(), r.cut_off(), 1) - 1.0 * r.std(r.tokens(), r.cut_off()),
        '0.7 * learned("a/b") + 0.3 * learned("c/d")': 0.7 * r.learned("a/b") + 0.3 * r.learned("c/d"),
        "clip(-soft_overlong(100, 20), -1, 1)": r.clip(-r.soft_overlong(100, 20), -1, 1),
        "(1 - repetition(2)) / (2 + tokens())": (1 - r.repetition()) / (2 + r.tokens()),
        'maximum(http("https://host/s", 5), function("pack.age:name"))': r.maximum(r.http("https://host/s", timeout=5), "pack.age:name"),
        "0 + tokens() + cut_off()": sum([r.tokens(), r.cut_off()]),
    }
    for text, made in cases.items():
        assert str(made) == text and r.parse(text) == made and r.parse(text).tree == made.tree
        assert PPO(prompts="p.jsonl", reward=made).reward == text and type(PPO(prompts="p.jsonl", reward=made).reward) is str


def trees() -> st.SearchStrategy[Node]:
    numbers = st.floats(allow_nan=False, allow_infinity=False).map(Number)
    whole = st.integers(0, 10**6)
    text = st.text(max_size=12).filter(str.strip)
    atoms = st.one_of(st.builds(lambda n: Atom("excess_tokens", (n,)), whole), st.builds(lambda t: Atom("learned", (t,)), text), st.just(Atom("tokens")))
    leaves = st.one_of(numbers, atoms, st.sampled_from(["rm", "é", "judge_2"]).map(Name))

    def larger(below: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        return st.one_of(
            st.builds(lambda s, a, b: Operation(s, (a, b)), st.sampled_from("+-*/"), below, below),
            st.builds(grammar.negative, below),
            st.builds(lambda k, p: Combination(k, tuple(p)), st.sampled_from(["minimum", "maximum", "mean", "std"]), st.lists(below, min_size=2, max_size=3)),
            st.builds(lambda x, low: Combination("clip", (x,), (low, low + 1)), below, st.floats(-1e6, 1e6)),
        )

    return st.recursive(leaves, larger, max_leaves=8)


@given(trees())
def test_every_tree_comes_back_from_its_text(tree: Node) -> None:
    assert expression._Reader(grammar.write(tree)).tree() == tree


def test_what_a_whole_text_stands_for(empty_folder: Path) -> None:
    assert expression.parse("http://localhost:8000/score") == Atom("http", ("http://localhost:8000/score", None))
    assert expression.parse("pack.age:function") == Atom("function", ("pack.age:function",))
    assert expression.parse("org/name") == expression.parse('learned("org/name")') == Atom("learned", ("org/name",))
    assert expression.parse("reports/rm-v2") == Atom("learned", ("reports/rm-v2",))
    assert expression.parse("../runs/rm") == Atom("learned", ("../runs/rm",))
    assert expression.parse("helpful / safe") == Operation("/", (Name("helpful"), Name("safe")))  # blanks around the sign
    assert expression.parse("rm/2") == Operation("/", (Name("rm"), Number(2.0)))
    assert expression.parse("rm-v2") == Operation("-", (Name("rm"), Name("v2")))
    (empty_folder / "rm-v2").mkdir()
    assert expression.parse("rm-v2") == Atom("learned", ("rm-v2",))  # an existing path wins
    assert expression.parse('"rm-v2" - 1') == Operation("-", (Atom("learned", ("rm-v2",)), Number(1.0)))
    assert expression.parse('"pack:f" - 1').parts[0] == Atom("function", ("pack:f",))  # type: ignore[union-attr]


def test_stages_are_found_and_replaced_by_their_folders(empty_folder: Path) -> None:
    ready = {"rm": "runs/x/rm/model", "judge-2": "runs/x/judge-2/model"}
    assert expression.resolve("rm", ready) == "runs/x/rm/model" and expression.resolve("judge-2", ready) == "runs/x/judge-2/model"
    assert expression.resolve("rm - 0.01 * excess_tokens(150)", ready) == 'learned("runs/x/rm/model") - 0.01 * excess_tokens(150)'
    assert expression.resolve('minimum(rm, "judge-2")', ready) == 'minimum(learned("runs/x/rm/model"), learned("runs/x/judge-2/model"))'
    for untouched in ("pack:function", "other/folder", "http://host/x", "2.0*tokens()"):
        assert expression.resolve(untouched, ready) == untouched
    assert expression.names('rm - learned("judge-2") * "pack:f" + tokens()') == {"rm", "judge-2"}
    assert expression.names("pack:f") == set() and expression.names("org/name") == {"org/name"}
    with pytest.raises(ConfigError, match="'rmm' is neither an earlier stage nor a folder; did you mean 'rm'"):
        expression.resolve("2 * rmm", ready)
    (empty_folder / "rmm").mkdir()
    assert expression.resolve("2 * rmm", ready) == "2 * rmm" and expression.folders("2 * rmm + tokens()") == {"rmm"}
    assert expression.opened("2 * rmm") == Operation("*", (Number(2.0), Atom("learned", ("rmm",))))


def test_a_pipeline_resolves_expressions_and_says_which_stage_comes_too_late() -> None:
    stages = {
        "rm": {"method": "reward", "data": "d"}, "rm-2": {"method": "reward", "data": "d"},
        "ppo": {"prompts": "p", "reward": 'rm - 0.1 * "rm-2"', "monitors": {"worst": 'minimum(rm, learned("rm-2"))'}, "value_model": "rm"},
        "late": {"method": "reward", "data": "d"},
    }  # fmt: skip
    recipe = Recipe.model_validate({"name": "x", "stages": stages})
    ready = {name: f"runs/{name}/model" for name in ("rm", "rm-2")}
    found = _resolved("ppo", recipe.stages["ppo"], ready, list(stages))
    assert found.reward == 'learned("runs/rm/model") - 0.1 * learned("runs/rm-2/model")'  # type: ignore[attr-defined]
    assert found.monitors == {"worst": 'minimum(learned("runs/rm/model"), learned("runs/rm-2/model"))'}  # type: ignore[attr-defined]
    assert found.value_model == "runs/rm/model" and found.scores == recipe.stages["ppo"].scores  # type: ignore[attr-defined, union-attr]
    for reward, message in {
        "late - 1": "stages.ppo.reward='late' names a stage that has not run by then; put 'late' before 'ppo'",
        "rn - 1": "stages.ppo.reward: .*'rn' is neither an earlier stage nor a folder; did you mean 'rm'",
        "rm - excess_token(1)": "stages.ppo.reward: .*position 6: 'excess_token' .*did you mean 'excess_tokens'",
    }.items():
        changed = recipe.stages["ppo"].model_copy(update={"reward": reward})
        with pytest.raises(ConfigError, match=message):
            _resolved("ppo", changed, ready, list(stages))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rm - 0.01 * excess_token(150)", "position 13: 'excess_token' is not a function of rewards; did you mean 'excess_tokens'"),
        ("é - minimun(a)", "position 5: 'minimun' .*did you mean 'minimum'"),
        ("rm ** 2", "position 1: .* sign that is not known"),
        ("a if b else c", "is not understood"),
        ("a.b(c)", "is not understood"),
        ("[a, b]", "is not understood"),
        ("a < b", "is not understood"),
        ("f'{a}'", "is not understood"),
        ("lambda: 1", "is not understood"),
        ("__import__('os').system('true')", "is not understood"),
        ("(a := b)", "is not understood"),
        ("True * a", "True is not a number"),
        ("1j * a", "1j is not a number"),
        ("1e999 * a", "not a finite number"),
        ("tokens - 3", r"position 1: 'tokens' is a function; write tokens\(...\)"),
        ("a +", "does not fit there"),
        ("pack:f - 1", r'put a function in quotes: function\("module:name"\)'),
        ("http://host/x - 1", r'write an address as http\("http://...'),
        ("", "names nothing"),
        ("  ", "names nothing"),
        ("a\0b", "cannot be read|does not fit"),
        ("excess_tokens()", r"n is missing; write excess_tokens\(n\)"),
        ("excess_tokens(1.5)", "whole number"),
        ("excess_tokens(-1)", "whole number, 0 or more"),
        ("excess_tokens(1, 2)", "takes 1 arguments and was given 2"),
        ("excess_tokens(m=1)", "n is missing"),
        ("excess_tokens(1, n=1)", "given twice"),
        ("repetition(0)", "1 or more"),
        ("soft_overlong(20, 100)", "margin=100 exceeds max_tokens=20"),
        ("learned(3)", "must be a text in quotes"),
        ("learned(a)", "'a' is not a number|must be a text"),
        ("function('f')", "write package.module:function"),
        ("http('ftp://x')", "is not an address"),
        ("http('http://host:99999')", "is not an address"),
        ("http('http://me:secret@host')", "TRUING_REWARD_TOKEN"),
        ("http('http://host', timeout=0)", "must be above 0"),
        ("clip(a, 1, 0)", "low=1 is not below high=0"),
        ("clip(a, 1)", r"other arguments than clip\(x, low, high\)"),
        ("clip(a, b, 1)", "'b' is not a number"),
        ("std(a)", "give it 2 or more"),
        ("minimum()", "give it 1 or more"),
        ("mean(*a)", "spreads a list"),
        ("mean(a, weight=2)", "takes parts only"),
        ("(" * 5000, "5000 characters"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read|does not fit|nested"),
        ("-" * 100 + "a", "nested more than 60 deep"),
        ("3", "is a constant"),
        ("no_such", "is no folder here"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_place_and_remedy(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        expression.opened(text)
    assert "secret" not in str(caught.value)


def test_python_refuses_what_would_silently_be_something_else() -> None:
    a, b = r.learned("a"), r.learned("b")
    for wrong in (lambda: max(a, b), lambda: min(a, b), lambda: sorted([a, b])):  # the order of texts is not that of scores
        with pytest.raises(ConfigError, match="use minimum"):
            wrong()
    with pytest.raises(ConfigError, match="True is not a number"):
        a * True
    with pytest.raises(ConfigError, match="not a finite number"):
        a + float("nan")
    with pytest.raises(ConfigError, match="neither a function nor module:name"):
        r.function(3)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="has no 'absent'"):
        r.absent  # noqa: B018


def importable(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def test_functions_are_written_by_name_and_lambdas_by_one_of_this_process() -> None:
    assert r.function(importable) == 'function("test_rewards_expression:importable")'
    first, second = (lambda p, c: [1.0]), (lambda p, c: [2.0])
    one, again, two = r.function(first), r.function(first), r.function(second)
    assert one == again != two and "<local>:lambda" in one
    assert [build.LOCAL[str(x.tree.arguments[0])] for x in (one, two)] == [first, second]  # type: ignore[union-attr]
    assert r.parse(str(one - r.tokens())).tree == (one - r.tokens()).tree


def test_parts_have_short_names_that_differ() -> None:
    def names(text: str) -> list[str]:
        return list(grammar.labels(grammar.atoms(expression.parse(text))).values())

    assert names('learned("runs/film/reward/model") - 0.01 * excess_tokens(150)') == ["reward", "excess_tokens(150)"]
    assert names('learned("a/reward/model") + learned("b/reward/model") + learned("org/judge")') == ["a/reward", "b/reward", "judge"]
    assert names('"one:f" + "two:f" + "two:g" + http("https://host:8000/score/?key=1")') == ["one:f", "two:f", "g", "host:8000/score"]
    assert names('http("http://h/s?a=1") + http("http://h/s?a=2")') == ['http("http://h/s?a=1")', 'http("http://h/s?a=2")']
    assert names("tokens() + tokens() + repetition() + repetition(3)") == ["tokens()", "repetition(2)", "repetition(3)"]  # one atom, one name
    assert names('learned("model") + learned("tokens()")') == ["model", "tokens()"]


def test_the_guide_s_examples_are_what_recipes_read() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text()
    written = [line for block in re.findall(r"```yaml\n(.*?)```", guide, re.S) for line in re.findall(r"^\s*(?:reward|worst|lexicon): .*", block, re.M)]
    ready = {name: f"runs/{name}/model" for name in ("rm", "helpful", "safe", "rm_a", "rm_b", "rm_c")}
    assert len(written) >= 8
    for line in written:
        (text,) = parse_yaml(line.strip()).values()
        assert isinstance(expression.opened(expression.resolve(text, ready)), Node)
    for word in grammar.WORDS:
        assert re.search(rf"\| .*`{word}\(", guide), word  # each has its row


def test_writing_a_reward_imports_no_torch() -> None:
    code = "from truing import rewards as r; import sys; e = r.learned('x') - 0.01 * r.excess_tokens(3); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    light = "import truing.rewards.worker, sys; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
