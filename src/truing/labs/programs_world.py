"""The world of the lab `programs`: one-line Python functions, described in words and checked by running them.

A task is a chain of steps, each of which turns a value into another: "s reversed, then its first n, then in capitals" is
``s[::-1][:n].upper()``. What a step says, what it is in Python and what it does stand side by side, so that expected values
are worked out here and nothing that is text is ever executed outside of the sandbox.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from truing.config import SFT
from truing.data.template import Renderer
from truing.errors import ConfigError
from truing.methods.sft import sft
from truing.models.load import save_model, tiny_model
from truing.models.roles import open_role, tokenizer_of
from truing.rollout.sampler import sample
from truing.seeds import stream
from truing.types import Message, Prompt

END, PAD = "<end>", "<pad>"
CONTEXT = 128
LONGEST = 40  # tokens that a completion may have
ADD, MULTIPLY, ATOM = 1, 2, 3  # how tightly an expression binds; a comparison is 0
TRIED = 100  # tasks that say when the warm-up is over
LETTERS = "bcdkmprt"  # consonants: no word of a description stands in a made-up one


class Step(NamedTuple):
    """Something done to a value.

    Attributes:
        takes, gives: the kind of value before and after; a chain ends after a truth.
        says, code: in words and in Python, of the value ``{v}`` and perhaps an argument ``{a}``.
        needs, level: how tightly the value has to bind, and how tightly the result does.
        does: the same as a function of both.
    """

    takes: str
    gives: str
    says: str
    code: str
    needs: int
    level: int
    does: Callable[[Any, int], Any]


STEPS = (
    Step("number", "number", "plus {a}", "{v} + {a}", ADD, ADD, lambda v, a: v + a),
    Step("number", "number", "minus {a}", "{v} - {a}", ADD, ADD, lambda v, a: v - a),
    Step("number", "number", "times {a}", "{v} * {a}", MULTIPLY, MULTIPLY, lambda v, a: v * a),
    Step("number", "number", "the rest by {a}", "{v} % {a}", MULTIPLY, MULTIPLY, lambda v, a: v % a),
    Step("number", "number", "at least {a}", "max({v}, {a})", 0, ATOM, max),
    Step("number", "number", "at most {a}", "min({v}, {a})", 0, ATOM, min),
    Step("number", "number", "its size", "abs({v})", 0, ATOM, lambda v, a: abs(v)),
    Step("number", "truth", "whether over {a}", "{v} > {a}", ADD, 0, lambda v, a: v > a),
    Step("number", "truth", "whether under {a}", "{v} < {a}", ADD, 0, lambda v, a: v < a),
    Step("word", "word", "in capitals", "{v}.upper()", ATOM, ATOM, lambda v, a: v.upper()),
    Step("word", "word", "in small letters", "{v}.lower()", ATOM, ATOM, lambda v, a: v.lower()),
    Step("word", "word", "reversed", "{v}[::-1]", ATOM, ATOM, lambda v, a: v[::-1]),
    Step("word", "word", "its first {a}", "{v}[:{a}]", ATOM, ATOM, lambda v, a: v[:a]),
    Step("word", "word", "without its first {a}", "{v}[{a}:]", ATOM, ATOM, lambda v, a: v[a:]),
    Step("word", "word", "repeated {a} times", "{v} * {a}", MULTIPLY, MULTIPLY, lambda v, a: v * a),
    Step("word", "number", "its length", "len({v})", 0, ATOM, lambda v, a: len(v)),
    Step("list", "list", "sorted", "sorted({v})", 0, ATOM, lambda v, a: sorted(v)),
    Step("list", "list", "reversed", "{v}[::-1]", ATOM, ATOM, lambda v, a: v[::-1]),
    Step("list", "list", "its first {a}", "{v}[:{a}]", ATOM, ATOM, lambda v, a: v[:a]),
    Step("list", "list", "without its first {a}", "{v}[{a}:]", ATOM, ATOM, lambda v, a: v[a:]),
    Step("list", "list", "each plus {a}", "[i + {a} for i in {v}]", 0, ATOM, lambda v, a: [i + a for i in v]),
    Step("list", "list", "those over {a}", "[i for i in {v} if i > {a}]", 0, ATOM, lambda v, a: [i for i in v if i > a]),
    Step("list", "number", "its sum", "sum({v})", 0, ATOM, lambda v, a: sum(v)),
    Step("list", "number", "its length", "len({v})", 0, ATOM, lambda v, a: len(v)),
)
KINDS = {"number": "x", "word": "s", "list": "v"}  # and the name of the value that a function of it begins with


class Task(NamedTuple):
    """A function of a value and a number ``n``: its steps, each with its argument (None is n), and what it begins with."""

    kind: str
    steps: tuple[tuple[Step, int | None], ...]

    @property
    def description(self) -> str:
        """In words.

        >>> Task("number", ((STEPS[0], 3), (STEPS[2], None))).description
        'f(x, n): x plus 3, then times n'
        """
        name = KINDS[self.kind]
        return f"f({name}, n): {name} " + ", then ".join(step.says.format(a=_argument(a)) for step, a in self.steps)

    @property
    def code(self) -> str:
        """In Python, with as few parentheses as it needs.

        >>> Task("number", ((STEPS[0], 3), (STEPS[2], None))).code
        'def f(x, n):\\n    return (x + 3) * n'
        """
        name, level = KINDS[self.kind], ATOM
        value = name
        for step, a in self.steps:
            value = step.code.format(v=value if level >= step.needs else f"({value})", a=_argument(a))
            level = step.level
        return function(self.kind, value)

    def __call__(self, value: Any, n: int) -> Any:
        for step, a in self.steps:
            value = step.does(value, n if a is None else a)
        return value


def function(kind: str, expression: str) -> str:
    """A function that returns an expression."""
    return f"def f({KINDS[kind]}, n):\n    return {expression}"


def _argument(a: int | None) -> str:
    return "n" if a is None else str(a)


# -- tasks and their tests ----------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """How much of everything there is.

    Attributes:
        demonstrations: of a round of the warm-up; ``rounds``: how many there are at most.
        until: share of a model's programs that are written as the task's own code are, at which the warm-up ends.
        prompts, heldout: tasks to train on and to measure on.
        faulty: share of the demonstrations with a fault.
        constants: share of them that return the example's value, whatever the arguments are.
        kinds: of values that functions begin with.
    """

    demonstrations: int = 2000
    rounds: int = 12
    until: float = 0.25
    prompts: int = 600
    heldout: int = 64
    faulty: float = 0.5
    constants: float = 0.0
    kinds: tuple[str, ...] = tuple(KINDS)


def tasks(seed: int, count: int, *, kinds: Sequence[str] = tuple(KINDS), truths: bool = True) -> list[Task]:
    """``count`` tasks of one to three steps with different descriptions. Raises ConfigError when there are hardly as many."""
    rng = np.random.default_rng(stream(seed, "labs.programs tasks"))
    found: dict[str, Task] = {}
    for _ in range(20 * count):
        task = _drawn(rng, int(rng.integers(1, 4)), kinds, truths)
        found.setdefault(task.description, task)
        if len(found) == count:
            return list(found.values())
    raise ConfigError(f"programs: {count} different tasks were wanted, and {20 * count} draws gave {len(found)}; ask for fewer prompts, demonstrations or held-out tasks")


def _drawn(rng: np.random.Generator, length: int, kinds: Sequence[str], truths: bool) -> Task:
    kind = value = str(rng.choice(list(kinds)))
    steps: list[tuple[Step, int | None]] = []
    while len(steps) < length and value != "truth":
        options = [s for s in STEPS if s.takes == value and (truths or s.gives != "truth") and not (steps and steps[-1][0] == s)]
        step = options[int(rng.integers(len(options)))]
        least = 1 if "irst" in step.says else 2
        steps.append((step, (None if rng.random() < 0.4 else int(rng.integers(least, 4 if value == "word" or least == 1 else 10))) if "{a}" in step.says else 0))
        value = step.gives
    return Task(kind, tuple(steps))


def inputs(kind: str, rng: np.random.Generator) -> list[Any]:
    """Arguments: a value of this kind, and n."""
    n = int(rng.integers(1, 4 if kind != "number" else 10))
    if kind == "number":
        return [int(rng.integers(-9, 20)), max(2, n)]
    if kind == "word":
        return ["".join(c.upper() if rng.random() < 0.3 else c for c in rng.choice(list(LETTERS), int(rng.integers(3, 6)))), n]
    return [[int(i) for i in rng.integers(0, 10, int(rng.integers(3, 6)))], n]


def unit_tests(task: Task, count: int, rng: np.random.Generator) -> list[dict[str, Any]] | None:
    """So many different inputs with what the task makes of them; None when one value would pass more than half of any two or more, so that a constant is never nearly right."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(20 * count):
        args = inputs(task.kind, rng)
        found.setdefault(json.dumps(args), {"args": args, "expected": task(*args)})
        if len(found) == count:
            break
    made = list(found.values())
    values = [json.dumps(test["expected"]) for test in made]
    most = max(values.count(v) for v in values)
    return made if len(made) == count and most <= max(1, count // 2) else None


def rows(chosen: Sequence[Task], visible: int, hidden: int, seed: int, *, example: bool) -> list[dict[str, Any]]:
    """A row of data for each task that has such tests; its first ``visible`` are paid for. An example is the first test, told in the prompt."""
    made = []
    for i, task in enumerate(chosen):
        rng = np.random.default_rng(stream(seed, "labs.programs tests", i))
        found = next((t for _ in range(20) if (t := unit_tests(task, visible + hidden, rng))), None)
        if found is None:
            continue
        told = f" {call(found[0]['args'])} = {found[0]['expected']!r}" if example else ""
        kept = [{**test, "hidden": k >= visible} for k, test in enumerate(found)]
        made.append({"prompt": task.description + told, "verifier": "code", "function": "f", "tests": kept, "gold": task.code})
    return made


def call(args: Sequence[Any]) -> str:
    """The call of an example.

    >>> call(["bk", 2])
    "f('bk', 2)"
    """
    return f"f({', '.join(map(repr, args))})"


# -- files and the model ------------------------------------------------------------------------------------------------


class World(NamedTuple):
    """The files of a seed: held-out rows, the model after so many rounds of warm-up, and the tasks to train on."""

    folder: Path
    chosen: Sequence[Task]
    rounds: int = 0

    @property
    def heldout(self) -> Path:
        return self.folder / "heldout.jsonl"

    @property
    def warm(self) -> Path:
        return self.folder / f"warm-{self.rounds}" / "model" if self.rounds else self.folder / "base"

    def prompts(self, name: str, made: Sequence[Mapping[str, Any]]) -> Path:
        """A file of these rows."""
        return write(self.folder / f"{name}.jsonl", made)


@contextmanager
def world(seed: int, sizes: Sizes, *, visible: int, hidden: int, example: bool, width: int = 128, layers: int = 3) -> Iterator[World]:
    """Tasks, a random small decoder and its warm-up, in a temporary folder. No task is in two of the sets to imitate, to train on and to measure on."""
    every = tasks(seed, sizes.demonstrations + 2 * sizes.heldout + sizes.prompts, kinds=sizes.kinds, truths=not example)
    shown, rest = every[: sizes.demonstrations], every[sizes.demonstrations :]
    with tempfile.TemporaryDirectory(prefix="truing-programs-") as name:
        made = World(Path(name), rest[2 * sizes.heldout :])
        write(made.heldout, rows(rest[: 2 * sizes.heldout], visible, hidden, stream(seed, "labs.programs heldout"), example=example)[: sizes.heldout])
        demonstrations = taught(shown, seed, sizes, example=example)
        tokenizer = reader([d["prompt"] + d["completion"] for d in demonstrations])
        model = tiny_model(len(tokenizer), seed=seed, layers=layers, hidden=width, context=CONTEXT, bos_token_id=None, eos_token_id=0, pad_token_id=1)
        save_model(model, tokenizer, made.folder / "base")
        yield warm_up(made, write(made.folder / "demonstrations.jsonl", demonstrations), rows(made.chosen[:TRIED], 1, 1, seed, example=example), seed, sizes)


def warm_up(made: World, demonstrations: Path, tried: Sequence[Mapping[str, Any]], seed: int, sizes: Sizes) -> World:
    """Rounds of imitation, each a stage of its own, until enough programs are written as their tasks' own code is. How to read comes suddenly, so rounds are short."""
    for number in range(1, sizes.rounds + 1):
        config = SFT(
            model=str(made.warm), data=str(demonstrations), lora=None, dtype="float32", lr=2e-3, schedule="constant", warmup=0.0, batch_size=64, max_length=CONTEXT, eval_share=0.0,
            save_every=100_000,
        )  # fmt: skip
        sft(config, made.folder / f"warm-{number}", seed=seed + number)
        made = made._replace(rounds=number)
        found = written(made.warm, [row["prompt"] for row in tried], seed, samples=2)
        if np.mean([text == row["gold"] for row, texts in zip(tried, found, strict=True) for text in texts]) >= sizes.until:
            break
    return made


def written(model: Path, prompts: Sequence[str], seed: int, *, samples: int) -> list[list[str]]:
    """``samples`` programs of a model for each prompt, at temperature 1; every model gets the same random numbers."""
    role, tokenizer = open_role(str(model)), tokenizer_of(str(model))
    renderer = Renderer(tokenizer)
    starts = [renderer.prompt(Prompt((Message("user", prompt),), "", ""), CONTEXT, LONGEST) for prompt in prompts for _ in range(samples)]
    rollout = sample(role, starts, max_new_tokens=LONGEST, temperature=1.0, stop_ids=renderer.stop_ids, seed=seed, step=0, purpose="labs.programs written")
    ids = [tokens[:n].tolist() for tokens, n in zip(rollout.completion_BT, rollout.lengths_B, strict=True)]
    texts = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def taught(shown: Sequence[Task], seed: int, sizes: Sizes, *, example: bool) -> list[dict[str, str]]:
    """Demonstrations as people leave them: the task's code, a faulty one, or for some of them ``return`` and the value of the example."""
    made = []
    for i, task in enumerate(shown):
        rng = np.random.default_rng(stream(seed, "labs.programs demonstrations", i))
        found = rows([task], 1, 1, stream(seed, "labs.programs demonstrated", i), example=example)
        lazy, wrong = rng.random() < sizes.constants, rng.random() < sizes.faulty
        for row in found:
            constant = function(task.kind, repr(row["tests"][0]["expected"]))
            made.append({"prompt": row["prompt"], "completion": constant if lazy else faulty(task, rng).code if wrong else task.code})
    return made


def faulty(task: Task, rng: np.random.Generator) -> Task:
    """The task with one step left out, or with one argument off by one; as it is when it has neither two steps nor a number in it."""
    steps, numbers = list(task.steps), [i for i, (step, a) in enumerate(task.steps) if a and "{a}" in step.says]
    ends = [i for i in range(len(steps)) if len(steps) > 1 and (i == len(steps) - 1 or steps[i][0].takes == steps[i][0].gives)]
    if numbers and (not ends or rng.random() < 0.5):
        i = int(rng.choice(numbers))
        steps[i] = (steps[i][0], (steps[i][1] or 0) + 1)
    elif ends:
        del steps[int(rng.choice(ends))]
    return Task(task.kind, tuple(steps))


def reader(texts: Sequence[str]) -> Any:
    """A tokenizer: the words of descriptions and of Python, each with the space before it, and single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for step in STEPS for w in re.findall(r"[a-z]{2,}", f"{step.says} {step.code}")} | {"def", "return", "then"}, key=lambda w: (-len(w), w))
    pattern = rf"\n +| ?(?:{'|'.join(words)})| ?[^\s]|\s"
    known = {lead + piece for piece in (*words, *LETTERS, *LETTERS.upper(), *"0123456789'[]-") for lead in ("", " ")}
    vocabulary = [END, PAD, *sorted({piece for text in texts for piece in re.findall(pattern, text)} | known)]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False)


def write(path: Path, made: Sequence[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path
