"""Mutation run: break the mathematics in every small way and see that a test fails each time. ``make mutate`` runs it.

    python tests/mutate.py                  every file of src/truing/maths
    python tests/mutate.py planning kl      these files
    python tests/mutate.py --list kl        print the mutants, run nothing
    python tests/mutate.py --match 'clamp'  only mutants whose old or new text has these words

One run of the unbroken tests notes which lines each test reaches and how long it takes. Then every mutant gets a process of its
own, forked from one that holds the libraries but nothing of Truing; it imports the broken file in place of the real one, constants,
default values, classes and decorated functions included, and runs the tests that reach the broken line, fastest first, until one
fails. A mutant whose tests all pass *survived*. Survivors that provably change no number stand in mutants_excused.toml with the
reason; an excuse that excuses nothing is an error.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from mutations import Mutation, applied, mutations

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "truing.maths"
EXCUSES = Path(__file__).with_name("mutants_excused.toml")
EXCUSE_KEYS = {"at", "was", "now", "why"}
# Nothing that only helps a reader: a process lives for a quarter of a second.
PYTEST = ["-q", "-x", "--no-header", "--tb=no", "--assert=plain", "-m", "not slow", *("-p no:" + p for p in ("cacheprovider", "xdist", "unraisableexception"))]


@dataclass(frozen=True)
class Reached:
    """What one run of the tests showed: seconds of each test, and the tests that reach each line of each file ("" = any of it)."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]
    imported: list[str]

    def tests(self, path: Path, lines: Iterable[int]) -> list[str]:
        reached = self.lines.get(str(path), {})
        chosen = lines or reached
        return sorted({t for line in chosen for t in reached.get(line, ())}, key=lambda t: (self.seconds[t], t))


@dataclass(frozen=True)
class Mutant:
    module: str
    path: Path
    change: Mutation
    code: CodeType

    @property
    def at(self) -> str:
        return f"{self.module.rpartition('.')[2]}.{self.change.function}".strip(".")

    def __str__(self) -> str:
        return f"{self.path.name}:{self.change.line} {self.at}\n    - {self.change.was}\n    + {self.change.now}"


class _Selection:
    """A pytest plugin that keeps some tests, in their order."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.rank = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])


class _Watch:
    """A pytest plugin that names each test to coverage and takes its time."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds = coverage, Counter[str]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration


class _Finder(importlib.abc.MetaPathFinder):
    """Imports one module from a code object."""

    def __init__(self, module: str, path: Path, code: CodeType) -> None:
        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        self.module, self.loader, self.path = module, Loader(module, str(path)), path

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self.loader) if fullname == self.module else None


def in_child(work: Callable[[], int], cpu_seconds: int | None = None, log: Path | None = None) -> int:
    """The pid of a forked process that does the work and ends with its result. What it prints goes to the log."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    result = 70
    try:
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if cpu_seconds:  # of computing, not of waiting: a busy machine makes no mutant look like an endless loop
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        result = work()
        sys.stdout.flush()
    finally:
        os._exit(result)


def pytest_main(arguments: list[str], plugin: object) -> int:
    import pytest

    return int(pytest.main([*PYTEST, *arguments], plugins=[plugin]))


def measure(files: list[Path], tests: list[str], result: Path) -> int:
    """Run all tests once, unbroken, and write down what `Reached` holds."""
    import coverage

    # no settings of the project's own; the C tracer knows contexts on every supported Python
    cover = coverage.Coverage(data_file=None, config_file=False, include=[str(f) for f in files])
    watch = _Watch(cover)
    cover.start()
    code = pytest_main(tests, watch)
    cover.stop()
    data = cover.get_data()
    lines = {}
    for file in data.measured_files():
        by_line = {line: [t for t in who if t] for line, who in data.contexts_by_lineno(file).items()}
        lines[str(Path(file).resolve())] = {line: who for line, who in by_line.items() if who}
    result.write_text(json.dumps({"seconds": watch.seconds, "lines": lines, "imported": list(sys.modules)}))
    return code


def reach(files: list[Path], tests: list[str]) -> Reached:
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "reached.json"), Path(folder, "log")
        _, status = os.waitpid(in_child(lambda: measure(files, tests, result), log=log), 0)
        if status:
            sys.exit(f"{log.read_text()[-6000:]}\nmutate: the unbroken tests fail (see above); mend them first")
        found = json.loads(result.read_text())
    lines = {file: {int(line): who for line, who in by_line.items()} for file, by_line in found["lines"].items()}
    return Reached(found["seconds"], lines, found["imported"])


def preload(names: list[str]) -> None:
    """Import the libraries that the tests imported, so that each fork starts with them; nothing under test and no test."""
    site = tuple(p for p in sys.path if p.endswith("-packages"))
    for name in names:
        if name in sys.modules:
            continue
        try:
            spec = importlib.util.find_spec(name)
            if spec is not None and (spec.origin or "").startswith(site):
                importlib.import_module(name)
        except Exception:
            continue


def run(mutants: list[Mutant], reached: Reached, jobs: int, log: Path | None, report: Callable[[Mutant, str], None]) -> dict[int, str]:
    """What became of each mutant by its index: "killed", "timeout", "survived" or "unreached"; each is reported as it is known."""
    waiting = sorted(range(len(mutants)), key=lambda i: (mutants[i].module, mutants[i].change.line))[::-1]
    running: dict[int, int] = {}
    fates: dict[int, str] = {}

    def settle(index: int, fate: str) -> None:
        fates[index] = fate
        report(mutants[index], fate)

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index = waiting.pop()
                mutant = mutants[index]
                tests = reached.tests(mutant.path, mutant.change.lines)
                if not tests:
                    settle(index, "unreached")
                    continue

                def work(mutant: Mutant = mutant, tests: list[str] = tests) -> int:
                    sys.meta_path.insert(0, _Finder(mutant.module, mutant.path, mutant.code))
                    return pytest_main(sorted({t.split("::")[0] for t in tests}), _Selection(tests))

                running[in_child(work, math.ceil(2 + 4 * sum(reached.seconds[t] for t in tests)), log)] = index
            if running:
                pid, status = os.wait()
                index = running.pop(pid)
                if os.WIFSIGNALED(status):
                    settle(index, "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed")
                elif os.WEXITSTATUS(status) == 5:
                    sys.exit(f"mutate: no test was collected for {mutants[index]}")
                else:
                    settle(index, "killed" if os.WEXITSTATUS(status) else "survived")
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
    return fates


def make(module: str, path: Path) -> list[Mutant]:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    made = []
    for change in mutations(tree):
        with applied(change):
            made.append(Mutant(module, path, change, compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)))
    return made


def read_excuses(path: Path) -> list[dict[str, str]]:
    excuses = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []) if path.exists() else []
    for excuse in excuses:
        if set(excuse) != EXCUSE_KEYS or len(excuse["why"]) < 20:
            sys.exit(f"mutate: {path.name}: an excuse has the keys {sorted(EXCUSE_KEYS)} and a reason of some words; found {excuse}")
    return excuses


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mutate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", help="files of the package, for example planning; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once (default 2)")
    parser.add_argument("--match", default="", help="only mutants whose old or new text has these words")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--log", type=Path, help="write what the last test run printed here")
    parser.add_argument("--package", type=Path, default=ROOT / "src" / "truing" / "maths", help=argparse.SUPPRESS)
    parser.add_argument("--name", default=PACKAGE, help=argparse.SUPPRESS)
    parser.add_argument("--tests", default="tests/test_maths_*.py", help=argparse.SUPPRESS)
    parser.add_argument("--excuses", type=Path, default=EXCUSES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    paths = {p.stem: p.resolve() for p in sorted(options.package.glob("*.py")) if p.stem != "__init__"}
    if unknown := [f for f in options.files if f not in paths]:
        sys.exit(f"mutate: no file named {', '.join(unknown)}; known: {', '.join(paths)}")
    chosen = options.files or list(paths)
    mutants = [m for stem in chosen for m in make(f"{options.name}.{stem}", paths[stem]) if options.match in m.change.was or options.match in m.change.now]
    if options.list:
        print(*mutants, sep="\n")
        print(f"{len(mutants)} mutants")
        return 0
    tests = sorted(str(p.relative_to(Path.cwd())) for p in Path.cwd().glob(options.tests))
    if not tests:
        sys.exit(f"mutate: no file matches {options.tests} here; run it from the project's root")
    return report(mutants, chosen, [paths[stem] for stem in chosen], tests, options)


def report(mutants: list[Mutant], chosen: list[str], files: list[Path], tests: list[str], options: argparse.Namespace) -> int:
    begin = time.monotonic()
    reached = reach(files, tests)
    preload(reached.imported)
    gc.freeze()  # the libraries are not for the forks to sweep
    print(f"{len(mutants)} mutants of {', '.join(chosen)}; the {len(reached.seconds)} tests pass on the unbroken files", flush=True)
    excuses = read_excuses(options.excuses)
    excused, used = 0, set[int]()
    survivors = []
    done = 0

    def tell(mutant: Mutant, fate: str) -> None:
        nonlocal done, excused
        done += 1
        if fate in ("survived", "unreached"):
            match = [i for i, e in enumerate(excuses) if (e["at"], e["was"], e["now"]) == (mutant.at, mutant.change.was, mutant.change.now)]
            used.update(match)
            if match:
                excused += 1
            else:
                survivors.append(mutant)
                print(f"{fate.upper()} {mutant}", flush=True)
        if done % 100 == 0:
            print(f"  {done} of {len(mutants)} after {time.monotonic() - begin:.0f} s", flush=True)

    fates = run(mutants, reached, options.jobs, options.log, tell)
    counts = Counter(fates.values())
    whole = {e["at"] for e in excuses if (not options.files or e["at"].split(".")[0] in chosen) and not options.match}
    stale = [e for i, e in enumerate(excuses) if e["at"] in whole and i not in used]
    for excuse in stale:
        print(f"STALE EXCUSE at {excuse['at']}: no mutant with this text survived; remove it\n    - {excuse['was']}\n    + {excuse['now']}")
    for stem in chosen:
        here = [i for i, m in enumerate(mutants) if m.path.stem == stem]
        print(f"  {stem:14} {len(here):4} mutants, {sum(fates[i] in ('killed', 'timeout') for i in here):4} killed")
    killed = counts["killed"] + counts["timeout"]
    seconds = time.monotonic() - begin
    fate = f"killed {killed} ({counts['timeout']} by the time limit), survived {len(survivors)}, excused {excused}"
    print(f"mutants {len(mutants)}, {fate}, seconds {seconds:.0f}")
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
