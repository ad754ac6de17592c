"""The mutation run finds what it is for: a list of the wrong versions of small programs, and a whole run over a made-up package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mutations import applied, mutations

HERE = Path(__file__).parent


def changed(source: str) -> list[str]:
    """The text of every mutated statement."""
    tree = ast.parse(source)
    before = ast.unparse(tree)
    found = mutations(tree)
    for mutation in found:
        with applied(mutation):
            assert ast.unparse(tree) != before
            compile(ast.fix_missing_locations(tree), "made-up", "exec")
    assert ast.unparse(tree) == before  # every change was undone
    return [m.now for m in found]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("y = a + b", ["y = a - b"]),
        ("y = -x", ["y = x"]),
        ("y = x @ w", ["y = x * w"]),
        ("y = a < b", ["y = a <= b", "y = a >= b"]),
        ("y = a and b", ["y = a or b", "y = b", "y = a"]),
        ("y = x.clamp(min=0)", ["y = x.clamp()", "y = x", "y = x.clamp(min=1)"]),
        ("y = torch.minimum(a, b)", ["y = torch.maximum(a, b)", "y = a"]),
        ("y = max(a, b)", ["y = min(a, b)", "y = a"]),
        ("y = x.max(-1)", ["y = x.min(-1)", "y = x.max(1)", "y = x.max(-2)"]),
        ("y = x.sum()", ["y = x.mean()"]),
        ("y = f(a, b)", ["y = f(b, a)"]),
        ("y = targets.detach()", ["y = targets"]),
        ("y = a if c else b", ["y = a if False else b", "y = a if True else b"]),
        ("y = np.where(c, a, b)", ["y = np.where(a, c, b)", "y = np.where(c, b, a)", "y = a", "y = b"]),
        ("y = x[1:]", ["y = x[:]", "y = x[2:]"]),
        ("EPS = 1e-8", ["EPS = 2e-08"]),
        ("zero = 0.0", ["zero = 1.0"]),
        ("class A:\n    size: int = 3", ["size: int = 4"]),
        ("@property\ndef f(x, n=2, *, k=-1.5):\n    pass", [f"def f(x, n={n}, *, k={k})" for n, k in ((3, -1.5), (2, 1.5), (2, -3.0))]),
        ("def f(x):\n    x = g(x)\n    y = h(x)", ["pass"]),  # losing y would be noticed; losing the new x perhaps not
        ("def f(x):\n    check(x)\n    x[0] = y\n    x += z", ["pass", "pass", "pass", "x[1] = y", "x -= z"]),
        ("if n > 1:\n    raise ValueError(f'{n + 1} is {2 * n}')", ["if False", "if True", "if n >= 1", "if n <= 1", "if n > 2"]),
        ("for i in s:\n    if i: break", ["if False", "if True", "continue"]),
        ("while a:\n    continue", ["while False", "break"]),
        ("y = [x for x in s if x]", ["y = [x for x in s]"]),
    ],
)
def test_what_is_changed(source: str, wrong: list[str]) -> None:
    assert sorted(changed(source)) == sorted(wrong)


@pytest.mark.parametrize(
    "source",
    [
        '"""Words 1 + 1."""',
        "import math",
        "from torch import Tensor",
        "x: Literal[1, 2]",
        "def f(x: Literal[1] = y) -> Literal[2]:\n    '''1 + 1'''",
        "@retry(3)\ndef f():\n    pass",
        "@dataclass(frozen=True)\nclass A(B[1]):\n    pass",
        "raise ValueError(1 + 1)",
        "y = f'{a + 1} of {b}'",
        "if TYPE_CHECKING:\n    x = 1",
        "Number = TypeVar('Number', float, int)",
    ],
)
def test_what_changes_no_number_is_left_alone(source: str) -> None:
    assert changed(source) == []


SHAPES = """
LIMIT = 10

def area(width, height=2):
    if width < 0:
        raise ValueError("negative")
    return min(width * height, LIMIT)
"""
STRONG = """
import pytest
from toy.shapes import area

@pytest.mark.parametrize("width, expected", [(3, 6), (4, 8), (6, 10), (0, 0)])
def test_area(width, expected):
    assert area(width) == expected

def test_refused():
    with pytest.raises(ValueError):
        area(-0.5)
"""
UNDONE = """
[[mutant]]
at = "shapes"
was = "LIMIT = 10"
now = "LIMIT = 11"
why = "made up, so that an excuse can be tried"
"""


def mutate(folder: Path, tests: str, excuses: str = "") -> tuple[int, str]:
    for name, text in {"toy/__init__.py": "", "toy/shapes.py": SHAPES, "tests/test_toy.py": tests, "excuses.toml": excuses}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    command = [sys.executable, str(HERE / "mutate.py"), "--package", "toy", "--name", "toy", "--tests", "tests/*.py", "--excuses", "excuses.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})
    return done.returncode, done.stdout + done.stderr


def test_a_run_finds_what_the_tests_miss(tmp_path: Path) -> None:
    # 11 -> LIMIT; height=3; if False, True, <=, >=, 0 -> 1; /, max, min(...) -> its first argument
    code, text = mutate(tmp_path, STRONG)
    assert (code, text.splitlines()[-1].split(", seconds")[0]) == (0, "mutants 10, killed 10 (0 by the time limit), survived 0, excused 0"), text
    code, text = mutate(tmp_path, STRONG.replace("(6, 10), ", ""))  # no test comes near the limit
    assert code == 1
    assert "SURVIVED shapes.py:2 shapes\n    - LIMIT = 10\n    + LIMIT = 11" in text
    assert "+ return width * height" in text
    assert "killed 8 (0 by the time limit), survived 2," in text
    code, text = mutate(tmp_path, STRONG.replace("(6, 10), ", ""), UNDONE)
    assert code == 1 and "survived 1, excused 1" in text and "STALE" not in text
    code, text = mutate(tmp_path, STRONG, UNDONE)
    assert code == 1 and "survived 0, excused 0" in text and "STALE EXCUSE at shapes" in text


def test_a_run_stops_when_the_unbroken_tests_fail(tmp_path: Path) -> None:
    code, text = mutate(tmp_path, STRONG.replace("(3, 6)", "(3, 7)"))
    assert code == 1 and "the unbroken tests fail" in text
