"""The house rules that a reader should not have to remember. Each rule is a function of source text, and is shown to catch a made-up offence."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "truing"

# What each room may import, written in the order data flows. "" is the package's own __init__.
BASE = {"", "types", "errors", "config", "disk", "assets", "seeds", "allocator", "native"}
CORE = BASE | {"maths", "data", "models", "envs", "rewards"}
MAY_IMPORT: dict[str, set[str]] = {
    "": {"api"},
    "types": set(),
    "errors": set(),
    "config": {"errors"},
    "disk": {"errors"},
    "assets": {"errors", "disk"},
    "seeds": {"errors"},
    "allocator": {"errors"},
    "native": {"errors", "assets"},
    "maths": {"types", "errors", "native"},
    "data": BASE | {"maths"},
    "models": BASE | {"maths"},
    "envs": BASE | {"maths"},
    "rewards": BASE | {"maths", "data", "models"},
    "observe": {"types", "errors", "config", "disk", "maths"},  # reads records and files, so that a report never loads a model
    "rollout": CORE,
    "learn": CORE | {"rollout", "observe"},
    "methods": CORE | {"rollout", "learn", "observe"},
    "pipeline": CORE | {"rollout", "learn", "observe", "methods"},
    "plan": CORE | {"rollout", "learn", "methods", "pipeline"},  # above the methods, whose own functions it times
    "api": CORE | {"observe", "pipeline"},
    "labs": CORE | {"rollout", "learn", "observe", "methods", "pipeline"},
    "demo": CORE | {"rollout", "learn", "observe", "methods", "pipeline"},
    "__main__": {"cli", "allocator", "errors"},
    "cli": CORE | {"rollout", "learn", "observe", "methods", "pipeline", "plan", "labs", "demo"},
    "web": {"types", "errors", "config", "disk", "observe"},
    "backends": CORE | {"rollout", "learn"},
}
HEAVY = {"torch", "transformers", "pyarrow", "matplotlib", "datasets", "scipy", "numpy", "accelerate", "safetensors", "gguf", "pandas", "gymnasium"}
LIGHT = ("truing", "truing.config", "truing.errors", "truing.types", "truing.cli")  # what `truing --help` loads
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FILE_LINES = 400
FUNCTION_LINES = 80
# The one program that is made to run a model's text as code; it is handed into the sandbox and runs nowhere else.
RUNS_CODE = {"truing.rewards.sandbox.server": ("exec", "compile")}
LONG_FUNCTIONS: dict[str, str] = {}  # "truing.room.file.function": why it may be longer


# The rules ------------------------------------------------------------------------------------------------------------


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(module: str, tree: ast.AST, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Every module that ``module`` imports, lazily or not, as (line, absolute name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parent = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            if base == "truing":  # `from truing import rewards` names a room, `from truing import __version__` does not
                yield from ((node.lineno, f"truing.{a.name}" if a.name in MAY_IMPORT else "truing") for a in node.names)
            else:
                yield node.lineno, base


def wrong_way(module: str, tree: ast.AST, is_package: bool = False) -> list[str]:
    room = room_of(module)
    if room not in MAY_IMPORT:
        return [f"{module}: room {room!r} is not in MAY_IMPORT; say in this test what it may import"]
    found = []
    for line, name in imports(module, tree, is_package):
        if name == "truing" or name.startswith("truing."):
            target = room_of(name)
            if target != room and target not in MAY_IMPORT[room]:
                found.append(f"{module}:{line}: {room or 'truing'} may not import {name}")
    return found


def heavy_at_import(module: str, tree: ast.Module) -> list[str]:
    if not any(module == light or (light == "truing.cli" and module.startswith("truing.cli.")) for light in LIGHT):
        return []
    top = ast.Module([n for n in _at_import(tree) if isinstance(n, ast.Import | ast.ImportFrom)], [])
    return [f"{module}:{line}: imports {name}; move it into the function that needs it" for line, name in imports(module, top) if name.split(".")[0] in HEAVY]


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not function bodies, not `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_import(node)


def dangerous(module: str, tree: ast.AST) -> list[str]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append((node.lineno, "bare assert; raise an error that names the value and the remedy"))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} if isinstance(node, ast.Import) else {node.module or ""}
            found += [(node.lineno, f"{n} can run any code when it loads") for n in names if n.split(".")[0] in PICKLES]
            if isinstance(node, ast.ImportFrom) and node.module == "torch" and any(a.name in ("load", "save") for a in node.names):
                found.append((node.lineno, "torch.load and torch.save are pickle"))
        elif isinstance(node, ast.Call):
            found += [(node.lineno, problem) for problem in _dangerous_call(node) if ast.unparse(node.func) not in RUNS_CODE.get(module, ())]
    return [f"{module}:{line}: {problem}" for line, problem in found]


def _dangerous_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
        yield f"{name}() runs text as code"
    if name in ("torch.load", "torch.save"):
        yield f"{name} is pickle; use safetensors"
    if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        yield f"{name} builds objects; use truing.config.parse_yaml"
    for keyword in node.keywords:
        if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def too_long(module: str, source: str, tree: ast.AST) -> list[str]:
    lines = source.count("\n")
    found = [f"{module}: {lines} lines, over {FILE_LINES}: two ideas share a room"] if lines > FILE_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and f"{module}.{node.name}" not in LONG_FUNCTIONS:
            first = node.body[1] if len(node.body) > 1 and ast.get_docstring(node, clean=False) is not None else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{module}:{node.lineno}: {node.name} has {length} lines after its docstring, over {FUNCTION_LINES}")
    return found


def undocumented(module: str, tree: ast.Module) -> list[str]:
    if room_of(module) != "maths":
        return []
    return [
        f"{module}:{node.lineno}: {node.name} has no docstring"
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other while being imported. ``graph`` has module -> modules."""
    done: set[str] = set()
    found = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return found


# Names of machines and hosts are spelt in pieces here, because this file is searched too.
_TOP = r"(?<![\w.~-])/"
_PLACES = [
    _TOP + "work/", _TOP + r"tmp/w\b", _TOP + "root/", _TOP + r"home/(?!user\b|me\b)\w", _TOP + "opt/" + "(?:pypi|wheels)", r"\.\./" + "shared", r"\." + "library/",
]  # fmt: skip
_REGISTRIES = ("pypi org", "pythonhosted org", "npmjs (?:org|com)", "deb debian org", "proxy golang org", "crates io", "download pytorch org")
_HOSTS = [name.replace(" ", r"\.") for name in _REGISTRIES]
_NOT_HERE = re.compile("|".join(_PLACES + _HOSTS))


def machine_names(name: str, text: str) -> list[str]:
    lines = enumerate(text.splitlines(), 1)
    return [f"{name}:{number}: names a machine's path or a registry's host: {m[0]}" for number, line in lines for m in _NOT_HERE.finditer(line)]


def dead_links(name: str, text: str) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target) and not (ROOT / name).parent.joinpath(target.split("#")[0]).exists():
            found.append(f"{name}: links to {target}, which does not exist")
    return found


# The tree -------------------------------------------------------------------------------------------------------------


@cache
def sources() -> dict[str, tuple[str, ast.Module, bool]]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        found[".".join(parts[:-1] if is_package else parts)] = (text, ast.parse(text, str(path)), is_package)
    return found


@cache
def texts() -> dict[str, str]:
    """Every file that is or would be committed and can be read as text."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = [n for n in listed.stdout.split("\0") if n]
    else:  # not a git checkout, an unpacked source distribution for example
        below = (p for top in ("src", "tests", "docs") for p in (ROOT / top).rglob("*") if "__pycache__" not in p.parts)
        names = [str(p.relative_to(ROOT)) for p in below] + [p.name for p in ROOT.glob("*.*")]
    found = {}
    for name in names:
        path = ROOT / name
        if path.is_file():
            try:
                found[name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
    return found


def gather(rule) -> str:
    return "\n".join(problem for module, (text, tree, is_package) in sources().items() for problem in rule(module, text, tree, is_package))


def test_imports_go_one_way():
    assert len(sources()) > 10
    assert gather(lambda m, _, tree, p: wrong_way(m, tree, p)) == ""


def test_light_modules_import_nothing_heavy():
    assert gather(lambda m, _, tree, __: heavy_at_import(m, tree)) == ""


def test_no_import_cycles():
    known = sources()
    graph: dict[str, set[str]] = {}
    for module, (_, tree, is_package) in known.items():
        targets = set()
        for node in _at_import(tree):
            if isinstance(node, ast.ImportFrom):
                base = next(name for _, name in imports(module, ast.Module([node], []), is_package))
                # `from truing.learn import checkpoint` loads a module; its package's __init__ is loaded either way
                targets |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
            elif isinstance(node, ast.Import):
                targets |= {a.name for a in node.names}
        graph[module] = {t for t in targets if t in known}
    assert cycles(graph) == []


def test_nothing_dangerous():
    assert gather(lambda m, _, tree, __: dangerous(m, tree)) == ""


def test_files_and_functions_are_short():
    assert gather(lambda m, text, tree, __: too_long(m, text, tree)) == ""


def test_public_maths_is_documented():
    assert gather(lambda m, _, tree, __: undocumented(m, tree)) == ""


def test_no_machine_or_host_is_named():
    assert "\n".join(p for name, text in texts().items() for p in machine_names(name, text)) == ""


def test_links_in_documents_lead_somewhere():
    documents = {n: t for n, t in texts().items() if n.endswith(".md")}
    assert "README.md" in documents
    assert "\n".join(p for name, text in documents.items() for p in dead_links(name, text)) == ""


def test_the_allow_list_is_justified_and_used():
    functions = {f"{m}.{n.name}" for m, (_, tree, _) in sources().items() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    for name, why in LONG_FUNCTIONS.items():
        assert name in functions and len(why) > 20, f"{name}: {why!r}"


# Each rule catches what it is for --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("truing.maths.policy", "from truing.models import roles", True),
        ("truing.maths.policy", "from truing import models", True),
        ("truing.maths.policy", "from ..models import roles", True),
        ("truing.maths.policy", "def f():\n    import truing.learn.run", True),
        ("truing.observe.report", "from truing.learn.checkpoint import load", True),
        ("truing.config", "from truing.types import Score", True),
        ("truing.learn.update", "from truing.backends import ray", True),
        ("truing.cli.run", "from truing.web import app", True),
        ("truing.parlour.sofa", "import os", True),
        ("truing.maths.policy", "from truing.errors import ConfigError\nfrom . import kl", False),
        ("truing.methods.ppo", "from truing.learn.run import Run\nfrom truing import maths, __version__", False),
    ],
)
def test_wrong_way_catches(module, source, caught):
    assert bool(wrong_way(module, ast.parse(source))) is caught


def test_relative_imports_of_a_package_resolve_from_itself():
    assert [name for _, name in imports("truing.cli", ast.parse("from . import run\nfrom ..maths import kl"), is_package=True)] == ["truing.cli", "truing.maths"]
    assert [name for _, name in imports("truing.cli.run", ast.parse("from . import look\nfrom .look import x"))] == ["truing.cli", "truing.cli.look"]


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("truing.cli.run", "import torch", True),
        ("truing.config", "try:\n    from numpy import array\nexcept ImportError:\n    pass", True),
        ("truing.cli", "class A:\n    import transformers.utils", True),
        ("truing.cli.run", "def f():\n    import torch", False),
        ("truing.types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", False),
        ("truing.maths.kl", "import torch", False),
    ],
)
def test_heavy_at_import_catches(module, source, caught):
    assert bool(heavy_at_import(module, ast.parse(source))) is caught


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import pickle", True),
        ("from joblib import load", True),
        ("torch.load(path)", True),
        ("from torch import load", True),
        ("eval(text)", True),
        ("exec(text)", True),
        ("os.system('ls')", True),
        ("subprocess.run(text, shell=True)", True),
        ("yaml.load(text)", True),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", True),
        ("AutoModel.from_pretrained(name, trust_remote_code=flag)", True),
        ("numpy.load(path, allow_pickle=True)", True),
        ("assert x > 0", True),
        ("model.eval()\nre.compile(text)\nload_file(path)\nAutoModel.from_pretrained(name, trust_remote_code=False)", False),
    ],
)
def test_dangerous_catches(source, caught):
    assert bool(dangerous("truing.models.load", ast.parse(source))) is caught


def test_only_the_sandboxed_program_runs_text_as_code():
    (module,) = RUNS_CODE
    assert not dangerous(module, ast.parse("exec(compile(text, 'a', 'exec'))"))
    assert dangerous(module, ast.parse("eval(text)")) and dangerous(module, ast.parse("os.system(text)"))
    assert dangerous("truing.rewards.sandbox.sandbox", ast.parse("exec(text)"))


def test_too_long_catches():
    short = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    documented = 'def f():\n    """' + "line\n" * 100 + '    """\n' + "    x = 1\n" * FUNCTION_LINES
    assert too_long("truing.a.b", short, ast.parse(short)) == []
    assert too_long("truing.a.b", documented, ast.parse(documented)) == []
    assert too_long("truing.a.b", short + "    x = 1\n", ast.parse(short + "    x = 1\n"))
    assert too_long("truing.a.b", "x = 1\n" * FILE_LINES, ast.parse("")) == []
    assert too_long("truing.a.b", "x = 1\n" * (FILE_LINES + 1), ast.parse(""))


def test_undocumented_catches():
    assert undocumented("truing.maths.kl", ast.parse("def k1(x):\n    return x"))
    assert not undocumented("truing.maths.kl", ast.parse('def k1(x):\n    """log ratio."""\n\ndef _f():\n    pass'))
    assert not undocumented("truing.data.read", ast.parse("def k1(x):\n    return x"))


def test_cycles_catches():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a -> b -> c -> a"]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    "text",
    [
        "see /" + "work/main", "cd /tmp/" + "w", "x=/" + "root/.cache", "/home/" + "alice/x", "https://" + "pypi" + ".org/simple",
        "files." + "pythonhosted" + ".org", "../" + "shared/spec",
    ],
)  # fmt: skip
def test_machine_names_catches(text):
    assert machine_names("f", text)


@pytest.mark.parametrize("text", ["src/work/x.py", "/tmp/window", "the PyPI package", "/home/user/x", "pip install torch==2.13.0", "this framework/library"])
def test_machine_names_lets_pass(text):
    assert not machine_names("f", text)


def test_dead_links_catches():
    assert dead_links("README.md", "[a](docs/nowhere.md)")
    assert not dead_links("README.md", "[a](LICENSE) [b](https://example.com) [c](#top) [d](pyproject.toml#x)")
