"""How many times a second a model's code can be run for a reward: the sandbox's fork servers beside what one would write first.

    python benchmarks/sandbox.py                 # a minute or two; JSON on stdout
    python benchmarks/sandbox.py --runs 7 --executions 4000

Timed is a small function on a fresh input each time, value back and checked. ``plain`` is ``python -I -S -c`` an execution, with no
protection at all; ``fresh_A`` and ``fresh_B`` start and end a whole fork server an execution. These two run as many side by side as there are
processors. ``processor_ms`` is processor time an execution, this process and all it started, which tells more than the wall clock
on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from truing.errors import ConfigError
from truing.rewards.sandbox import Job, Sandbox

CODE = "def f(x):\n    total = 0\n    for i in range(x % 100):\n        total += i * i\n    return total"
PROCESSORS = len(os.sched_getaffinity(0))


def right(x: int) -> int:
    n = x % 100
    return (n - 1) * n * (2 * n - 1) // 6 if n else 0


def processor() -> float:
    return sum(u.ru_utime + u.ru_stime for u in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


def served(tier: str, executions: int) -> float:
    """Seconds for so many in one batch, the servers being up."""
    with Sandbox(tier) as sandbox:
        sandbox.run([Job(CODE, "f", [x]) for x in range(50)])
        start = time.perf_counter()
        outcomes = sandbox.run([Job(CODE, "f", [x]) for x in range(executions)])
        seconds = time.perf_counter() - start
    if [o.value for o in outcomes] != [right(x) for x in range(executions)]:
        raise SystemExit("a wrong value came out of the sandbox")
    return seconds


def each(one: Callable[[int], int], executions: int) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(PROCESSORS) as pool:
        found = list(pool.map(one, range(executions)))
    if found != [right(x) for x in range(executions)]:
        raise SystemExit("a wrong value came out")
    return time.perf_counter() - start


def plain(x: int) -> int:
    text = f"{CODE}\nprint(f({x}))"
    return int(subprocess.run([getattr(sys, "_base_executable", sys.executable), "-I", "-S", "-c", text], capture_output=True, check=True, env={}).stdout)


def fresh(tier: str) -> Callable[[int], int]:
    kept = Sandbox(tier, workers=1)
    kept.close()

    def one(x: int) -> int:
        from truing.rewards.sandbox.sandbox import _Batch

        single = object.__new__(Sandbox)
        single.__dict__ |= kept.__dict__ | {"_workers": []}
        try:
            return int(_Batch(single, [Job(CODE, "f", [x])]).run()[0].value)
        finally:
            single.close()

    return one


def measure(name: str, executions: int, runs: int) -> dict[str, Any]:
    work: Callable[[], float]
    if name.startswith("fresh"):
        one = fresh(name[-1])
        work = lambda: each(one, executions)  # noqa: E731
    elif name == "plain":
        work = lambda: each(plain, executions)  # noqa: E731
    else:
        work = lambda: served(name[-1], executions)  # noqa: E731
    before = processor()
    idle = processor() if not name.startswith("fork") else (served(name[-1], 0), processor())[1]
    started = idle - before  # processor time of starting and proving the fork servers, which is done once a run of Truing
    rates, costs = [], []
    for _ in range(runs):
        before = processor()
        rates.append(executions / work())
        costs.append(1000 * (processor() - before - started) / executions)
    return {
        "executions": executions, "per_second": round(statistics.median(rates), 1), "per_second_range": [round(min(rates), 1), round(max(rates), 1)],
        "processor_ms": round(statistics.median(costs), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each; the median is reported")
    parser.add_argument("--executions", type=int, default=2000, help="a run of the fork servers; the slow ways take a twentieth of it")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in ("fork_server_A", "fork_server_B", "fresh_A", "fresh_B", "plain"):
        try:
            found[name] = measure(name, args.executions if name.startswith("fork") else max(1, args.executions // 20), args.runs)
        except ConfigError as error:
            found[name] = {"refused": str(error)}
    try:
        with Sandbox() as sandbox:
            says = sandbox.describe()
    except ConfigError as error:
        says = str(error)
    print(json.dumps({"processors": PROCESSORS, "load_at_end": round(os.getloadavg()[0], 2), "python": platform.python_version(), "kernel": platform.release(), "sandbox": says, **found}, indent=2))


if __name__ == "__main__":
    main()
