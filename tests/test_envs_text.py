"""Text environments: what they hear, what they answer, what they give; expected numbers are worked out by hand."""

from __future__ import annotations

import doctest
import re
import runpy
import sys
import time
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Discrete, Text

from truing.data.formats import load
from truing.envs import text, text_arithmetic, text_verifiers
from truing.envs.text import Opened, TextEnvironment, Turn, after_prompt, earned, open_text_environment
from truing.envs.text_arithmetic import Refused, calculate, written
from truing.errors import ConfigError, DataError, MissingExtraError, TruingError
from truing.types import Message, Prompt, Score, Status

ROOT = Path(__file__).resolve().parent.parent


def prompt(text: str = "Go.", **row: Any) -> Prompt:
    return Prompt((Message("user", text),), "p1", "rows.jsonl:1", row)


def begun(name: str, **row: Any) -> TextEnvironment:
    environment = open_text_environment(name)()
    environment.reset(prompt(**row), 0)
    return environment


def heard(turn: Turn) -> str:
    assert not turn.done and turn.score is None and len(turn.heard) == 1 and isinstance(turn.heard[0], Message)
    return turn.heard[0].content


# Arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12*7", "84"), ("0.1 + 0.2", "0.3"), ("2/3", "0.6666666667"), ("1,234,567 - 1", "1234566"), ("-7 // 2", "-4"), ("7 % 3", "1"), ("2^10", "1024"),
        ("6 × 7 ÷ 2", "21"), ("2 + 3 =", "5"), ("(1 + 2) * -(3 - 5)", "6"), ("2 ** -2", "0.25"), ("9 ** 0.5", "3"), ("(-1) ** (10 ** 99)", "1"),
        ("0 ** 0", "1"), ("1e3", "1000"), ("10 ** 20 / 3", "3.333333333e+19"), ("-1/8", "-0.125"), ("5\n+\n1", None), ("1 / 10 ** 11", "1e-11"),
    ],
)  # fmt: skip
def test_what_is_calculated(text: str, value: str | None) -> None:
    if value is None:
        with pytest.raises(Refused):
            calculate(text)
    else:
        assert written(calculate(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "=", "1/0", "0 ** -1", "7 % 0", "9**9**9", "2 ** 1000", "(1/3) ** 300", "10**99 * 99", "9" * 150, "1e308 * 10", "1e-150", "9" * 300, "(-8) ** (1/3)",
        "(" * 90 + "1" + ")" * 90 + "*" * 9, "__import__('os').system('true')", "exec('1')", "a", "1 if 1 else 2", "[1][0]", "'a' * 9", "True", "1 < 2", "1j", "1_0", "0x10",
        "1 + ", "1 2", "1e400", "**2", "lambda: 1", "3(4)",
    ],
)  # fmt: skip
def test_what_is_refused_and_at_once(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(Refused):
        calculate(text)
    assert time.perf_counter() - start < 0.1


def test_fractions_are_exact() -> None:
    assert calculate("1/3 + 1/3 + 1/3") == 1 and calculate("0.1 * 3") == Fraction(3, 10)  # floats: 0.1 * 3 is 0.30000000000000004


# The calculator -------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_and_an_answer_ends_it() -> None:
    environment = begun("calculator", answer=89)
    assert environment.step("Let me see. <calc>12*7</calc>") == Turn((Message("user", "84"),))
    assert environment.step("and <calc>84+5</calc> <calc>1/0</calc>") == Turn((Message("user", "89\nError: division by zero."),))
    assert environment.step("<answer>89</answer>") == Turn(done=True, score=Score(1.0, {"environment": 1.0, "calls": 3.0, "calls_refused": 1.0}, Status.OK))


def test_the_form_of_chat_templates_is_answered_by_a_tool_turn() -> None:
    environment = begun("calculator", answer=84)
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12*7"}}\n</tool_call>'
    assert environment.step(call) == Turn((Message("tool", "84"),))
    assert environment.step(call.replace('{"expression": "12*7"}', '"{\\"expression\\": \\"3\\"}"')) == Turn((Message("tool", "3"),))
    assert heard(environment.step("<tool_call>12*7</tool_call>")).startswith("Error: a call is {")
    fixed = begun("calculator(role='user')", answer=84)
    assert fixed.step(call) == Turn((Message("user", "84"),))


@pytest.mark.parametrize(
    ("said", "row", "right"),
    [
        ("<answer>84</answer>", {"answer": 84}, True), ("It is 84.", {"answer": "84"}, True), ("12 * 7 = 84", {"answer": 84}, True), ("84 is 12 * 7", {"answer": 84}, False),
        ("<answer>-1,200</answer>", {"answer": -1200}, True), ("<answer>1/3</answer>", {"answer": "1/3"}, True), ("<answer>0.3333</answer>", {"answer": "1/3"}, False),
        ("<answer>0.3333</answer>", {"answer": "1/3", "tolerance": 0.001}, True), ("<answer>85</answer> no, <answer>84</answer>", {"answer": 84}, True),
        ("<answer>1 2 3 84 85</answer>", {"answer": 84}, False), ("", {"answer": 0}, False), ("I do not know", {"answer": 0}, False), ("<answer></answer> 84", {"answer": 84}, False),
        ("84.5", {"answer": 84}, False), ("<calc>84</calc><answer>84</answer>", {"answer": 84}, True),
    ],
)  # fmt: skip
def test_which_answer_is_right(said: str, row: dict[str, Any], right: bool) -> None:
    turn = begun("calculator", **row).step(said)
    assert turn.done and turn.score is not None and turn.score.value == float(right) and turn.score.status is (Status.OK if right else Status.WRONG)


def test_calls_run_out_and_a_cut_turn_may_hold_the_answer() -> None:
    environment = begun("calculator(calls=1)", answer=84)
    assert heard(environment.step("<calc>12*7</calc><calc>1</calc>")) == "84\nNo calls are left; write <answer> and the answer."
    assert environment.cut("").value == 0.0 and environment.cut("<answer>84</answer> and").value == 1.0
    assert environment.cut("it may be 84").value == 0.0  # a number in a sentence that was not finished is no answer


def test_the_calculators_tasks_are_prompts_with_right_answers(tmp_path: Path) -> None:
    path = open_text_environment("calculator").write_tasks(tmp_path / "rows.jsonl", 20, seed=1)
    prompts = load(str(path), "prompts").records
    assert len(prompts) == 20 and len({p.messages for p in prompts}) == 20
    for p in prompts:
        question = re.fullmatch(r"What is (\d+) \* (\d+) \+ (\d+)\?", p.messages[0].content)
        assert question is not None
        a, b, c = map(int, question.groups())
        assert p.extra["answer"] == a * b + c
        environment = open_text_environment("calculator")()
        opened = environment.reset(p, 0)
        assert opened is not None and opened[0].content.startswith(p.messages[0].content) and "<calc>" in opened[0].content
        told = heard(environment.step(f"<calc>{a}*{b}+{c}</calc>"))
        turn = environment.step(f"<answer>{told}</answer>")
        assert turn.score is not None and turn.score.value == 1.0


# The guessing game ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", range(1, 11))
def test_halving_finds_every_number_of_ten_within_four_guesses(answer: int) -> None:
    environment, low, high = begun("guess", answer=answer), 1, 10
    for _ in range(4):
        guess = (low + high) // 2
        turn = environment.step(f"Perhaps {guess}?")
        if turn.done:
            break
        low, high = (guess + 1, high) if heard(turn) == "Higher." else (low, guess - 1)
    assert turn.done and turn.score is not None and turn.score.value == 1.0 and guess == answer


def test_guesses_cost_and_run_out() -> None:
    environment = begun("guess(high=8, guesses=3, cost=0.25)", answer=8)
    assert heard(environment.step("no number")) == "Say one whole number from 1 to 8."
    assert environment.step("8").score == Score(0.75, {"environment": 0.75, "guesses": 2.0}, Status.WRONG)  # 1 - 0.25 * (2 - 1)
    lost = begun("guess(high=8, guesses=1)", answer=8)
    assert lost.step("7") == Turn(done=True, score=Score(0.0, {"environment": 0.0, "guesses": 1.0}, Status.WRONG))
    assert begun("guess", answer=3).step("1 2 3 4").done is False  # a list of all numbers guesses its last
    assert begun("guess", answer=3).step("3.5").done is False


@pytest.mark.parametrize(("row", "message"), [({}, "None"), ({"answer": "x"}, "'x'"), ({"answer": 2.5}, "2.5"), ({"answer": True}, "True"), ({"answer": 11}, "outside 1 to 10")])
def test_a_row_without_a_usable_answer_is_the_rows_fault(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        begun("guess", **row)
    if "answer" not in row or row["answer"] == "x":
        with pytest.raises(DataError, match="calculator needs one"):
            begun("calculator", **row)


def test_rules_follow_the_prompt() -> None:
    assert after_prompt(prompt("Go."), "Rules.") == (Message("user", "Go.\n\nRules."),)
    ends_with_answer = Prompt((Message("user", "a"), Message("assistant", "b")), "p", "f:1")
    assert after_prompt(ends_with_answer, "Rules.")[-1] == Message("user", "Rules.")
    assert open_text_environment("guess(explain=false)")().reset(prompt(answer=2), 0) is None


# Names and options ----------------------------------------------------------------------------------------------------


class Mine(TextEnvironment):
    def __init__(self, level: int = 1, name: str | None = "x", moves: list[str] | None = None) -> None:
        self.given = (level, name, moves)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("test_envs_text:Mine", (1, "x", None)), ("test_envs_text:Mine()", (1, "x", None)), ("test_envs_text:Mine(level=-2, name=null)", (-2, None, None)),
        (" test_envs_text:Mine(moves=['a', \"b)(\"], level=3) ", (3, "x", ["a", "b)("])),
    ],
)  # fmt: skip
def test_options_are_read_as_python_or_json(text: str, given: tuple[Any, ...]) -> None:
    opened = open_text_environment(text)
    assert isinstance(opened, Opened)
    made, other = opened(), opened()
    assert isinstance(made, Mine) and made.given == given and made is not other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calculater", "did you mean 'calculator'"), ("gym", "gymnasium"), ("xyzzy", "there are calculator, guess, gymnasium:NAME"), ("guess(hight=3)", "no option 'hight'; it has low, high"),
        ("guess(3)", "key=value"), ("guess(high=3", "cannot be read"), ("guess(high=__import__('os'))", "cannot be read"), ("guess(high=open('x').read())", "cannot be read"),
        ("guess(low=5, high=5)", "nothing to find"), ("guess(cost=0.5)", "cost from 0"), ("guess(guesses=0)", "guesses=0"), ("calculator(role='system')", "role='system'"),
        ("calculator(tolerance=-1)", "negative"), ("no_such_module:Thing", "cannot be imported"), ("test_envs_text:Nothing", "cannot be imported"),
        ("test_envs_text:prompt", "make it a subclass"), ("fractions:Fraction", "make it a subclass"), ("gymnasium:NoSuch-v0", "cannot be made"),
        ("gymnasium:CartPole-v1(levels=3)", "does not take these options"), ("gymnasium:Pendulum-v1", "cannot be said"), ("gymnasium:FrozenLake-v1(actions=['a'])", "4 different names"),
        ("gymnasium:FrozenLake-v1(actions=['a', 'b', 'A', 'c'])", "4 different names"), ("gymnasium:CartPole-v1(observations=['a'])", "leave the option out"), ("verifiers:", "verifiers"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(text: str, message: str) -> None:
    with pytest.raises(TruingError, match=re.escape(message)):
        open_text_environment(text)


def test_an_environment_without_tasks_says_so() -> None:
    with pytest.raises(ConfigError, match="write a file of prompts"):
        open_text_environment("test_envs_text:Mine").tasks(3)
    with pytest.raises(NotImplementedError, match="Mine has no step"):
        Mine().step("a")


# Gymnasium ------------------------------------------------------------------------------------------------------------

LAKE = 'gymnasium:FrozenLake-v1(actions=["left", "down", "right", "up"], is_slippery=false)'


def test_a_gymnasium_environment_is_played_by_name() -> None:
    """FrozenLake's 4x4 map is SFFF FHFH FFFH HFFG: down down right right down right reaches the goal, which pays 1."""
    environment = open_text_environment(LAKE)()
    assert environment.reset(prompt(seed=1), 0) == (Message("user", "Go.\n\n0\nSay one of: left, down, right, up."),)
    states = [heard(environment.step(said)) for said in ("down", "I go Down.", "not left but RIGHT", "right", "down")]
    assert states == ["4", "8", "9", "10", "14"]
    last = environment.step("right")
    assert (last.done, last.truncated, last.score) == (True, False, Score(1.0, {"environment": 1.0, "steps": 6.0}))
    environment.close()


def test_an_action_that_does_not_exist_is_told_and_is_no_step() -> None:
    environment = begun(LAKE)
    for said in ("jump", "rightly", ""):
        assert heard(environment.step(said)) == "That is no action. Say one of: left, down, right, up."
    assert environment.cut("").parts["steps"] == 0 and heard(environment.step("right")) == "1"
    hole = begun(LAKE)
    hole.step("right")
    fallen = hole.step("down")
    assert (fallen.done, fallen.truncated, fallen.score) == (True, False, Score(0.0, {"environment": 0.0, "steps": 2.0}))


def test_truncation_is_not_termination() -> None:
    environment = begun(LAKE[:-1] + ", max_episode_steps=2)")
    environment.step("left")
    cut = environment.step("left")
    assert (cut.done, cut.truncated) == (True, True)


def test_all_samples_of_a_prompt_meet_the_same_world() -> None:
    name = "gymnasium:Blackjack-v1(actions=['stick', 'hit'])"
    for row in ({"seed": 7}, {}):
        assert {str(open_text_environment(name)().reset(prompt(**row), seed)) for seed in range(8)}.__len__() == 1
    assert len({str(open_text_environment(name)().reset(prompt(seed=s), 0)) for s in range(8)}) > 1
    rows = open_text_environment(name).tasks(3, 5)
    assert [row["seed"] for row in rows] == [5, 6, 7]


class Spell(gymnasium.Env):  # type: ignore[type-arg]
    """Spell the word that is shown, letter by letter."""

    observation_space = Text(8)
    action_space = Text(1, charset="abc")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = "cab"
        return self.left, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        good = action == self.left[0]
        self.left = self.left[1:]
        return self.left, 0.5 * good, not self.left, False, {}


class Named(Spell):
    observation_space = Discrete(2, start=5)  # type: ignore[assignment]
    action_space = Discrete(2, start=-1)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return 5, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 6, float(action), False, False, {}


@pytest.fixture
def registered() -> Any:
    gymnasium.register("test/Spell-v0", Spell)
    gymnasium.register("test/Named-v0", Named)
    yield
    del gymnasium.registry["test/Spell-v0"], gymnasium.registry["test/Named-v0"]


def test_text_spaces_are_said_as_they_are(registered: None) -> None:
    environment = open_text_environment("gymnasium:test/Spell-v0")()
    assert environment.reset(prompt(), 0) == (Message("user", "Go.\n\ncab"),)
    assert heard(environment.step(" c ")) == "ab" and heard(environment.step("d")) == "That is no action here." and heard(environment.step("b")) == "b"
    assert environment.step("b").score == Score(1.0, {"environment": 1.0, "steps": 3.0})  # c and b were right, a was not: 0.5 + 0.5


def test_discrete_spaces_that_do_not_start_at_0(registered: None) -> None:
    environment = begun("gymnasium:test/Named-v0(actions=['down', 'still'], observations=['dark', 'light'])")
    assert heard(environment.step("down")) == "light" and environment.cut("").value == -1.0 and heard(environment.step("still")) == "light" and environment.cut("").value == -1.0


# verifiers ------------------------------------------------------------------------------------------------------------

INSTALLED = find_spec("verifiers") is not None

PLUGINS = '''
import verifiers.v1 as vf
__all__ = ["Adding", "AddingEnv"]

class Data(vf.TaskData):
    answer: int = 0

class Sum(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        return float(trace.last_reply.strip() == str(self.data.answer)) / 2

class Options(vf.TasksetConfig):
    top: int = 5

class Adding(vf.Taskset[Sum, Options]):
    def load(self):
        for i in range(self.config.top):
            yield Sum(Data(prompt=f"{i} + 1?", system_prompt="Add.", answer=i + 1), self.config.task)

class Config(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class AddingEnv(vf.Env[Config]):
    """Asks again until the number is right; a reply that is no number breaks it."""
    async def run(self, task, agents):
        async with agents.player.interaction(task) as game:
            segment = await game.turn()
            while not segment.terminated and int(segment.last_reply) != task.data.answer:
                segment = await game.turn("more" if int(segment.last_reply) < task.data.answer else "less")
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = PLUGINS.split("class Config(vf.EnvConfig)")[0].replace(', "AddingEnv"', "")
    (tmp_path / "truing_test_single.py").write_text(single)
    (tmp_path / "truing_test_multi.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.skipif(INSTALLED, reason="the package verifiers is installed")
def test_without_the_package_the_message_names_it() -> None:
    with pytest.raises(MissingExtraError, match="pip install verifiers"):
        open_text_environment("verifiers:gsm8k")


def test_an_older_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "verifiers" / "v1").mkdir(parents=True)
    (tmp_path / "verifiers" / "__init__.py").write_text("__version__ = '0.1.9'\n")
    (tmp_path / "verifiers" / "v1" / "__init__.py").write_text("")
    for name in [m for m in sys.modules if m.split(".")[0] == "verifiers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="0.1.9 is installed"):
        text_verifiers.service()
    for name in [m for m in sys.modules if m.split(".")[0] == "verifiers"]:
        del sys.modules[name]  # the made-up ones; monkeypatch puts back what was there before


def row_prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(tuple(Message(m["role"], m["content"]) for m in row["prompt"]), row["id"], "rows.jsonl:1", row)


@pytest.mark.skipif(not INSTALLED, reason="the package verifiers is not installed")
def test_a_verifiers_taskset_of_one_turn(plugins: None) -> None:
    opened = open_text_environment("verifiers:truing-test-single(top=3)")
    rows = opened.tasks(10)
    assert [row["task"] for row in rows] == [0, 1, 2] and rows[1]["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 1?"}]
    for said, value in ((" 2", 1.0), ("3", 0.0)):
        environment = opened()
        assert environment.reset(row_prompt(rows[1]), 0) == (Message("system", "Add."), Message("user", "1 + 1?"))
        # the rubric's only reward is 1/2 when right, with weight 2
        assert environment.step(said) == Turn(done=True, score=Score(value, {"environment": value, "right": value / 2}, Status.OK if value else Status.WRONG))
        environment.close()
    cut = opened()
    cut.reset(row_prompt(rows[1]), 0)
    assert cut.cut("2") == Score(1.0, {"environment": 1.0, "right": 0.5}, Status.OK)
    with pytest.raises(DataError, match="only 3 tasks"):
        opened().reset(prompt(task=3), 0)


@pytest.mark.skipif(not INSTALLED, reason="the package verifiers is not installed")
def test_a_verifiers_environment_of_several_turns(plugins: None) -> None:
    opened = open_text_environment("verifiers:truing-test-multi(seat='player')")
    rows = opened.tasks(5)
    environment = opened()
    environment.reset(row_prompt(rows[4]), 0)
    other = opened()
    other.reset(row_prompt(rows[0]), 0)  # two at a time
    assert heard(environment.step("1")) == "more" and heard(other.step("9")) == "less" and heard(environment.step("9")) == "less"
    assert environment.step("5").score == Score(1.0, {"environment": 1.0, "right": 0.5}, Status.OK)
    assert other.cut("1") == Score(1.0, {"environment": 1.0, "right": 0.5}, Status.OK)  # cut off in its turn: the environment still reads it
    between_turns = opened()
    between_turns.reset(row_prompt(rows[4]), 0)
    between_turns.step("1")
    assert between_turns.cut("").value == 0.0
    broken = opened()
    broken.reset(row_prompt(rows[4]), 0)
    with pytest.raises(RuntimeError, match="invalid literal"):
        broken.step("one")
    with pytest.raises(ConfigError, match="no agent 'judge'"):
        open_text_environment("verifiers:truing-test-multi(seat='judge')")
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_text_environment("verifiers:truing-test-nowhere")


# The documentation ----------------------------------------------------------------------------------------------------


def test_the_documents_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every ``python`` block of the page, one after the other as one script, prints what its comments say."""
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    expected = [line.partition("  # prints ")[2] for block in blocks for line in block.splitlines() if "  # prints " in line]
    assert len(blocks) >= 3 and len(expected) >= 3
    module = next(b for b in blocks if b.startswith("# my_environments.py"))
    (tmp_path / "my_environments.py").write_text(module)
    (tmp_path / "script.py").write_text("\n".join(b for b in blocks if b is not module))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_environments", raising=False)
    runpy.run_path("script.py")
    assert capsys.readouterr().out.splitlines() == expected
    assert len(load("rows.jsonl", "prompts").records) == 100


def test_the_examples_in_docstrings_are_true() -> None:
    for module in (text, text_arithmetic):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_scores_say_whether_credit_is_full() -> None:
    assert earned(1.0).status is Status.OK and earned(0.99, speed=2.0) == Score(0.99, {"environment": 0.99, "speed": 2.0}, Status.WRONG)
