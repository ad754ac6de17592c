"""The sandbox as a machine: nothing left behind, dead and hung fork servers, tiers that are refused, a self-test that sees a hole."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from truing.errors import ConfigError
from truing.rewards.sandbox import Job, Limits, Outcome, Ran, Sandbox, proof, seccomp, tiers, values
from truing.rewards.sandbox import sandbox as module
from truing.rewards.verifiers.code import Code
from truing.types import Status

DOUBLE = "def f(x):\n    return 2 * x"


def opened(tier: str, **options: object) -> Sandbox:
    try:
        return Sandbox(tier, **options)  # type: ignore[arg-type]
    except ConfigError as error:
        if any(lack in str(error) for lack in ("not known", "bubblewrap is not there", "no Landlock", "it needs Linux")):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module", params=["A", "B"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with opened(request.param, workers=2, limits=Limits(seconds=1.0, wall=5.0), patience=0.5) as found:
        yield found


def processes() -> dict[int, tuple[int, str, str]]:
    """Parent, state and name of every process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except OSError:
            continue
        found[int(stat.parent.name)] = (int(tail.split()[1]), tail.split()[0], head.partition("(")[2])
    return found


def below(pid: int) -> list[int]:
    """A process's descendants, nearest first."""
    table, found = processes(), [pid]
    for one in found:
        found += [child for child, (parent, _, _) in table.items() if parent == one]
    return found[1:]


def fork_server(launcher: int) -> int:
    """The nearest descendant of a launcher that is a Python."""
    return next(pid for pid in below(launcher) if b"-I\0-S\0" in Path(f"/proc/{pid}/cmdline").read_bytes() and b"bwrap" not in Path(f"/proc/{pid}/cmdline").read_bytes())


def held() -> tuple[int, list[int], list[str]]:
    """What could be left behind: descriptors, descendants (zombies too), temporary files."""
    return len(os.listdir("/proc/self/fd")), sorted(below(os.getpid())), sorted(n for n in os.listdir(tempfile.gettempdir()) if n.startswith("truing-canary"))


# Nothing left behind --------------------------------------------------------------------------------------------------


def leave_nothing(sandbox: Sandbox, runs: int) -> None:
    sandbox.run([Job(DOUBLE, "f", [1])])
    codes = [DOUBLE, "def f(x):\n    raise ValueError", "import os\nos._exit(1)", "def f(x):\n    import os\n    os.fork()", "def f(x):\n    import ctypes\n    ctypes.string_at(0)"]
    before, inside = held(), [len(os.listdir(f"/proc/{fork_server(w.pid)}/fd")) for w in sandbox.ready()] if os.geteuid() == 0 else []
    for _ in range(runs // 500):
        jobs = [Job(codes[i % 5], "f", [i]) if i % 7 else Job("print(input())", stdin=str(i)) for i in range(500)]
        outcomes = sandbox.run(jobs)
        assert [o.value for i, o in enumerate(outcomes) if i % 7 == 0] == [f"{i}\n" for i in range(0, 500, 7)]
        assert [o.value for i, o in enumerate(outcomes) if i % 7 and i % 5 == 0] == [2 * i for i in range(500) if i % 7 and i % 5 == 0]
    assert held() == before
    assert inside == ([len(os.listdir(f"/proc/{fork_server(w.pid)}/fd")) for w in sandbox.ready()] if os.geteuid() == 0 else [])
    assert not [pid for pid in below(os.getpid()) if processes().get(pid, (0, "", ""))[1] == "Z"]


def test_five_hundred_runs_leave_nothing_behind(sandbox: Sandbox) -> None:
    leave_nothing(sandbox, 500)


@pytest.mark.slow
def test_ten_thousand_runs_leave_nothing_behind(sandbox: Sandbox) -> None:
    leave_nothing(sandbox, 10_000)


@pytest.mark.parametrize("tier", ["A", "B"])
def test_closing_leaves_nothing_behind(tier: str) -> None:
    before, orphans = held(), {pid for pid, (parent, state, _) in processes().items() if parent == 1}
    for _ in range(3):
        with opened(tier, workers=1) as found:
            assert found.run([Job(DOUBLE, "f", [1])])[0].value == 2
            inside = set(below(os.getpid())) - set(before[1])
            assert len(inside) >= 2
    found = opened(tier, workers=2)
    del found  # without closing it
    assert held() == before and not inside & set(processes())
    new = {pid: row for pid, row in processes().items() if row[0] == 1 and pid not in orphans and row[2] in ("bwrap", "python3", "python3.11")}
    assert not new, new  # no zombie was left to process 1 either


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize("tier", ["A", "B"])
def test_nothing_outlives_a_run_that_was_killed(tier: str, busy: bool) -> None:
    opened(tier, workers=1).close()
    code = (
        "import sys, os, time\nfrom truing.rewards.sandbox import Sandbox, Job, Limits\n"
        f"s = Sandbox({tier!r}, workers=2, limits=Limits(seconds=60, wall=60))\nprint(*[w.pid for w in s.ready()], flush=True)\n"
        + ("s.run([Job('while True: pass')] * 4)" if busy else "time.sleep(60)")
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    launchers = [int(word) for word in parent.stdout.readline().split()]  # type: ignore[union-attr]
    deadline = time.monotonic() + 20
    while len([p for one in launchers for p in below(one)]) < (8 if tier == "A" else 4) - 2 * (not busy) and time.monotonic() < deadline:
        time.sleep(0.05)
    everything = {*launchers, *(pid for one in launchers for pid in below(one))}
    assert len(everything) >= 4 + 2 * busy  # launchers, fork servers, and what they run just now
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while left := {pid for pid in everything if processes().get(pid, (0, "Z", ""))[1] != "Z" and pid not in (os.getpid(),)}:
        assert time.monotonic() < deadline, [processes().get(pid) for pid in left]
        time.sleep(0.05)


# A fork server that dies or hangs -------------------------------------------------------------------------------------


def struck(sandbox: Sandbox, number: int, jobs: list[Job], after: float = 0.15) -> list[Outcome]:
    """Run jobs while each fork server of now is sent a signal."""
    servers = [fork_server(worker.pid) for worker in sandbox.ready()]

    def strike() -> None:
        time.sleep(after)
        for pid in servers:
            os.kill(pid, number)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        return sandbox.run(jobs)
    finally:
        thread.join()


SLOW = "import time\ndef f(x):\n    time.sleep(0.25)\n    return 2 * x"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_fork_server_is_noticed_and_its_jobs_are_run_again(sandbox: Sandbox, number: signal.Signals) -> None:
    before = held()[0]
    outcomes = struck(sandbox, number, [Job(SLOW, "f", [i]) for i in range(8)])
    assert [o.value for o in outcomes] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert held()[0] == before


@pytest.mark.parametrize(("number", "ran", "status"), [(signal.SIGKILL, Ran.LOST, Status.CRASHED), (signal.SIGSTOP, Ran.HUNG, Status.TIMED_OUT)])
@pytest.mark.parametrize("tier", ["A", "B"])
def test_one_lost_too_often_is_a_status_and_never_a_zero(tier: str, number: signal.Signals, ran: Ran, status: Status) -> None:
    with opened(tier, workers=1, limits=Limits(seconds=0.5, wall=1.0), patience=0.2, retries=0) as found:
        first, second = struck(found, number, [Job(SLOW, "f", [1]), Job(DOUBLE, "f", [2])])
        assert first.ran == ran and "lost 1 times" in first.note and second.value == 4
        row = {"function": "f", "tests": [{"args": [1], "expected": 2}]}
        server = fork_server(found.ready()[0].pid)
        threading.Timer(0.1, os.kill, (server, number)).start()
        good, bad = Code(found)([SLOW.replace("2 * x", "3 * x"), SLOW], [row, row])
        assert good.status == status and good.value != good.value and "lost" in next(iter(good.parts)), good
        assert bad.status == Status.OK and bad.value == 1


def test_a_sandbox_that_cannot_be_started_again_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("B", workers=1) as found:
        found.close()
        monkeypatch.setattr(found, "tier", tiers.Tier("B", "", ("/nowhere/python",), None, False))
        (outcome,) = found.run([Job(DOUBLE, "f", [1])])
        assert outcome.ran == Ran.LOST and "could not be started" in outcome.note and "No such file" in outcome.note


def test_an_interrupted_batch_does_not_answer_the_next(sandbox: Sandbox) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    kept = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Stop):
            sandbox.run([Job(SLOW, "f", [i]) for i in range(20)])
    finally:
        signal.signal(signal.SIGALRM, kept)
    assert [o.value for o in sandbox.run([Job(DOUBLE, "f", [i]) for i in range(6)])] == [0, 2, 4, 6, 8, 10]


# Order, groups, values ------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_side_by_side(sandbox: Sandbox) -> None:
    code = "import time\ndef f(x):\n    time.sleep(0.05 * (x % 3))\n    return x"
    assert [o.value for o in sandbox.run([Job(code, "f", [i], group=i // 4) for i in range(24)])] == list(range(24))
    clock = "import time\ndef f(x):\n    start = time.monotonic()\n    time.sleep(0.3)\n    return [start, time.monotonic()]"
    first, second = (o.value for o in sandbox.run([Job(clock, "f", [i], group=i) for i in range(2)]))
    assert min(first[1], second[1]) > max(first[0], second[0])  # they ran at the same time


def test_a_group_is_given_up_at_its_first_timeout(sandbox: Sandbox) -> None:
    code = "def f(x):\n    while x == 1: pass\n    return x"
    start = time.monotonic()
    outcomes = sandbox.run([Job(code, "f", [i], group=g) for g in (0, 1) for i in range(5)] + [Job(code, "f", [7])])
    assert [o.ran for o in outcomes] == ([Ran.VALUE] + [Ran.TIMED_OUT] * 4) * 2 + [Ran.VALUE]
    assert [o.value for o in sandbox.run([Job(DOUBLE, "f", [1], group=g) for g in (0, 0, 1, 1)])] == [2] * 4  # the next batch has groups of its own
    assert time.monotonic() - start < 8 * 1.0  # not 8 times its second, one a test that hangs


def test_a_busy_machine_makes_no_honest_code_late() -> None:
    """Processor time is what counts: code that waits is within its 0.2 s, on the clock it has 2 s, and code that works is cut off at 0.2 s."""
    with opened("B", workers=1, limits=Limits(seconds=0.2, wall=2.0)) as found:
        waits, works = found.run([Job("import time\ndef f(x):\n    time.sleep(0.5)\n    return x", "f", [1]), Job("def f(x):\n    while True: pass", "f", [1])])
        assert waits.value == 1 and waits.seconds >= 0.5
        assert works.ran == Ran.TIMED_OUT and works.seconds >= 0.2
        (waits,) = found.run([Job("import time\ndef f(x):\n    time.sleep(5)", "f", [1])])
        assert waits.ran == Ran.TIMED_OUT and 2.0 <= waits.seconds < 5.0


def test_large_jobs_and_answers_pass(sandbox: Sandbox) -> None:
    big = "x" * 900_000
    outcomes = sandbox.run([Job("def f(x):\n    return x", "f", [big]), Job("print(len(input()))", stdin="y" * 5_000_000), *(Job("def f(x):\n    return x", "f", [big + str(i)]) for i in range(9))])
    assert [o.value for o in outcomes] == [big, "5000000\n", *(big + str(i) for i in range(9))]


@pytest.mark.parametrize(
    ("returned", "wire"),
    [
        ("[1, 2.5, True, None, 'é\\ud800']", [1, 2.5, True, None, "é\ud800"]),
        ("(1, (2,))", {"$tuple": [1, {"$tuple": [2]}]}),
        ("{3}", {"$set": [3]}),
        ("{'a': 1}", {"a": 1}),
        ("{1: 'a', (2, 3): None}", {"$dict": [[1, "a"], [{"$tuple": [2, 3]}, None]]}),
        ("{'$set': [1]}", {"$dict": [["$set", [1]]]}),
        ("__import__('collections').Counter('aa')", {"a": 2}),
        ("10 ** 400", 10**400),
    ],
)
def test_values_come_out_as_they_are(sandbox: Sandbox, returned: str, wire: object) -> None:
    first, second = sandbox.run([Job(f"def f():\n    return {returned}", "f"), Job("def f(x):\n    return x", "f", [wire])])
    assert values.same(wire, first.value) and values.same(wire, second.value)  # and back in again


# Tiers --------------------------------------------------------------------------------------------------------------


def test_it_says_what_it_is(sandbox: Sandbox) -> None:
    text = sandbox.describe()
    assert text.startswith(f"sandbox tier {sandbox.tier.name} (") and "Landlock ABI" in text and "1 s (5 s on the clock) and 512 MB a run" in text
    assert f"self-test: {len(proof.NAMES)} attempts repelled" in text and ("bubblewrap" in text) == (sandbox.tier.name == "A")


def test_without_bubblewrap_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="not run at all.*tier A: bubblewrap is not there; install it"):
        Sandbox("A")
    with opened("B"):
        pass
    with Sandbox() as found:
        assert found.tier.name == "B" and "tier A was refused: bubblewrap is not there" in found.describe()


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    opened("B").close()
    monkeypatch.setenv("TRUING_SANDBOX", "B")
    with Sandbox(workers=1) as found:
        assert found.tier.name == "B"
    monkeypatch.setenv("TRUING_SANDBOX", "none")
    with pytest.raises(ConfigError, match="no sandbox tier 'none'; TRUING_SANDBOX and tier_name take A or B"):
        Sandbox()


def test_limits_that_cannot_be_are_refused() -> None:
    for limits in (Limits(seconds=0), Limits(memory=1 << 20), Limits(seconds=float("nan")), Limits(seconds=10)):
        with pytest.raises(ConfigError, match="give a run some seconds, no fewer on the clock, and 64 MB or more"):
            Sandbox(limits=limits)


NO_LANDLOCK = """
import ctypes, struct
code = struct.pack("=HBBIHBBIHBBIHBBI", 0x20, 0, 0, 0, 0x15, 0, 1, 444, 0x06, 0, 0, 0x50026, 0x06, 0, 0, 0x7FFF0000)
held = ctypes.create_string_buffer(code)
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(held)))
if libc.prctl(22, 2, ctypes.c_ulong(ctypes.addressof(filter)), 0, 0): raise SystemExit("no seccomp")
from truing.errors import ConfigError
from truing.rewards.verifiers.verifier import open_verifier
try:
    open_verifier("code")
except ConfigError as error:
    print(error)
"""


def test_where_nothing_holds_no_code_is_run() -> None:
    """On a kernel without Landlock (the call is filtered away) both tiers are refused, with the reason and before anything ran."""
    opened("B").close()
    done = subprocess.run([sys.executable, "-c", NO_LANDLOCK], capture_output=True, text=True, timeout=120)
    assert "a model's code cannot be run safely here, so it is not run at all" in done.stdout, done
    assert "tier A: " in done.stdout and "tier B: " in done.stdout and done.stdout.count("no Landlock") >= 1


def test_the_self_test_sees_a_filter_that_lets_all_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    opened("B").close()
    monkeypatch.setattr(module, "program", lambda: struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
    for name in ("A", "B"):
        with pytest.raises(ConfigError, match="it does not hold: code in it could"):
            Sandbox(name, workers=1)


def test_the_self_test_sees_files_that_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A fork server whose Landlock domain allows everything, without namespaces."""
    import shutil

    from truing.rewards.sandbox import worker

    opened("B").close()
    for name in ("server.py", "launch.py"):
        shutil.copy(Path(worker.HERE) / name, tmp_path)
    text = (tmp_path / "server.py").read_text()
    (tmp_path / "server.py").write_text(text.replace('("/usr/lib", ', '("/", "/usr/lib", '))
    assert text != (tmp_path / "server.py").read_text()
    monkeypatch.setattr(worker, "HERE", tmp_path)
    with pytest.raises(ConfigError, match="it does not hold: code in it could read a file"):
        Sandbox("B", workers=1)


# The filter of system calls -------------------------------------------------------------------------------------------

ALLOWED, REFUSED, MISSING, NO_TERMINAL = 0x7FFF0000, 0x50001, 0x50026, 0x50019


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_allows_its_list_and_nothing_else(machine: str) -> None:
    arch, _, special = seccomp.ARCHITECTURES[machine]
    code, numbers = seccomp.program(machine), set(seccomp.allowed(machine).values())
    for number in [*range(1000), 0x40000000 + 57, 2**32 - 1]:
        if number not in special.values():
            assert seccomp.run(code, number, arch=arch) == (ALLOWED if number in numbers else REFUSED), number
    assert seccomp.run(code, special["clone3"], arch=arch) == MISSING
    assert [seccomp.run(code, special["fcntl"], (0, c), arch) for c in (0, 1, 2, 3, 4, 1030)] == [ALLOWED] * 6
    assert [seccomp.run(code, special["fcntl"], (0, c), arch) for c in (5, 6, 8, 10, 15, 1024, 1031)] == [REFUSED] * 7  # F_SETOWN 8, F_SETSIG 10, F_SETOWN_EX 15
    assert [seccomp.run(code, special["prlimit64"], a, arch) for a in ((0, 7, 0), (9, 7, 0), (0, 7, 1), (0, 7, 1 << 40), (0, 7))] == [ALLOWED, REFUSED, REFUSED, REFUSED, ALLOWED]
    assert [seccomp.run(code, special["ioctl"], (0, c), arch) for c in (0x5451, 0x5412, 0x5401)] == [ALLOWED, NO_TERMINAL, NO_TERMINAL]
    assert seccomp.run(code, 0, arch=3) == 0x80000000  # 32-bit calls have other numbers: the process is killed


@pytest.mark.parametrize(("machine", "header"), [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")])
def test_the_numbers_are_the_kernels(machine: str, header: str) -> None:
    import re

    if not Path(header).exists():
        pytest.skip(f"no {header} to compare with")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())}
    known.setdefault("newfstatat", known.get("fstatat", 79))
    assert {name: known.get(name) for name in seccomp.allowed(machine)} == seccomp.allowed(machine)
    assert {name: known.get(name) for name in seccomp.ARCHITECTURES[machine][2]} == seccomp.ARCHITECTURES[machine][2]


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="'riscv64' are not known to the sandbox; it knows x86_64, aarch64"):
        seccomp.program("riscv64")
