"""Every attack there is a list of, run for real in each tier: none earns anything, none touches the host, all end in time."""

from __future__ import annotations

import os
import socket
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_attacks import BOMBS, CHEATS, SECRET, VALUES
from sandbox_escapes import FILES, SYSTEM
from truing.errors import ConfigError
from truing.rewards.sandbox import Job, Limits, Outcome, Ran, Sandbox
from truing.rewards.verifiers.code import Code
from truing.rewards.verifiers.unit_tests import Case
from truing.rewards.verifiers.verifier import Row
from truing.types import Score

ATTACKS = CHEATS | VALUES | BOMBS | FILES | SYSTEM
SECONDS = 0.4
HONEST = f"def f(x, host):\n    return {SECRET!r}"


class Host:
    """What must stay as it was: a folder open to everybody, a port, an abstract socket, this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for opened in (folder, *folder.parents):
            if opened.owner() != Path("/").owner() or os.getuid() == 0:
                opened.chmod(opened.stat().st_mode | 0o011)  # only the sandbox stands between them
            if opened.name == "tmp":
                break
        folder.chmod(0o777)
        (folder / "canary").write_text("canary")
        (folder / "canary").chmod(0o666)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.tcp.getsockname()[1]))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0truing-{os.getpid()}")
        self.abstract.listen()
        self.sockets = (self.tcp, self.udp, self.abstract)
        for one in self.sockets:
            one.setblocking(False)

    def told(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder), "port": self.tcp.getsockname()[1], "abstract": f"truing-{os.getpid()}", "pid": os.getpid(), "here": __file__,
            "packages": sysconfig.get_path("purelib"),
        }  # fmt: skip

    def unharmed(self) -> None:
        assert os.listdir(self.folder) == ["canary"]
        stat = (self.folder / "canary").stat()
        assert (self.folder / "canary").read_text() == "canary" and stat.st_mode & 0o777 == 0o666 and stat.st_mtime > 0
        for one in (self.tcp, self.abstract):
            with pytest.raises(BlockingIOError):
                one.accept()
        with pytest.raises(BlockingIOError):
            self.udp.recv(1)
        for place in ("/tmp", "/var/tmp", "/dev/shm", "."):
            assert not [n for n in (os.listdir(place) if os.path.isdir(place) else []) if n.startswith(("truing-flood", "made", "conftest.pyc"))]


@pytest.fixture(scope="module", params=["A", "B"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    os.environ["TRUING_CANARY"] = "canary"
    try:
        with Sandbox(request.param, workers=1, limits=Limits(seconds=SECONDS, wall=2 * SECONDS, memory=256 << 20)) as opened:
            yield opened
    except ConfigError as error:
        if "not known" in str(error) or "bubblewrap is not there" in str(error) or "no Landlock" in str(error):
            pytest.skip(str(error))
        raise
    finally:
        del os.environ["TRUING_CANARY"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    found = Host(tmp_path_factory.mktemp("host"))
    yield found
    for one in found.sockets:
        one.close()


class Watched(Code):
    """The verifier, which also lets the outcomes be seen that it judged by."""

    def _score(self, row: Row, cases: list[Case], outcomes: list[Outcome]) -> Score:
        (self.outcome,) = outcomes
        return super()._score(row, cases, outcomes)


def attempt(sandbox: Sandbox, code: str, host: Host) -> Outcome:
    return sandbox.run([Job(code, "f", [1, host.told()])])[0]


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_is_repelled(name: str, sandbox: Sandbox, host: Host) -> None:
    servers = [worker.pid for worker in sandbox.ready()]
    start = time.monotonic()
    verifier = Watched(sandbox)
    (score,) = verifier([ATTACKS[name]], [{"function": "f", "tests": [{"args": [1, host.told()], "expected": SECRET}]}])
    outcome = verifier.outcome
    assert time.monotonic() - start < 2 * SECONDS + 3.0
    assert not outcome.ran.infrastructure, outcome  # its own fault, not the sandbox's: it must not get out of the reckoning either
    assert "got through" not in str(outcome.value) and "got through" not in outcome.note, outcome
    assert "canary" not in str(outcome.value) and SECRET[:14] not in str(outcome.value), outcome
    assert score.status.value == "wrong" and score.value == 0.0, score
    host.unharmed()
    assert [worker.pid for worker in sandbox.ready()] == servers  # the fork servers lived through it
    assert attempt(sandbox, HONEST, host).value == SECRET


def test_programs_are_bounded_too(sandbox: Sandbox) -> None:
    """The same for code that is judged by what it prints."""
    codes = {
        "while True: pass": Ran.TIMED_OUT,
        "while True: print('x' * 10000)": Ran.TOO_LARGE,
        "import os\nwhile True: os.write(1, b'x' * 65536)": Ran.TOO_LARGE,
        "import time\nwhile True: print('x', flush=True); time.sleep(0.01)": Ran.TIMED_OUT,
        "import os\nos.close(1)\nwhile True: pass": Ran.TIMED_OUT,
        "raise SystemExit(3)": Ran.RAISED,
        "import os; os._exit(3)": Ran.EXITED,
        "import os\nprint(os.write(0, b'x'))": Ran.RAISED,
        "bytearray(1 << 40)": Ran.MEMORY,
    }
    outcomes = sandbox.run([Job(code, stdin="given") for code in codes])
    assert {code: outcome.ran for code, outcome in zip(codes, outcomes, strict=True)} == codes


def test_one_attack_does_not_touch_the_next(sandbox: Sandbox, host: Host) -> None:
    """What one run leaves in memory, modules or files is not there for another, of its own group either."""
    leave = "import json, builtins, sys\nbuiltins.left = json.left = 1\nsys.path.append('/left')\ndef f(x):\n    return x"
    look = "import json, builtins, sys\ndef f(x):\n    return [hasattr(builtins, 'left'), hasattr(json, 'left'), '/left' in sys.path]"
    outcomes = sandbox.run([Job(leave, "f", [1], group=1), Job(look, "f", [1], group=1)])
    assert [outcome.value for outcome in outcomes] == [1, [False, False, False]]


def test_memory_holds_nothing_of_runs_before(sandbox: Sandbox, host: Host) -> None:
    """Of eight completions for one prompt, the last must not find the right answer of the first. What a run has itself, the search does find."""
    planted = f"kept = bytes(reversed({SECRET[::-1].encode()!r}))\n" + CHEATS["all_memory"]
    in_text = f"import sys\nprint(sys.stdin.read()[::-1], {SECRET!r})"
    for job in (Job(HONEST, "f", [1, host.told()]), Job(HONEST, "f", ["x" * 20_000, [SECRET]]), Job(in_text, stdin=SECRET)):
        assert SECRET in sandbox.run([job])[0].value
        for hunt in ("all_memory", "garbage_hunt", "frames"):
            assert attempt(sandbox, CHEATS[hunt], host).value is None, hunt
    assert attempt(sandbox, planted, host).value == "got through"


def test_an_unlocked_sandbox_would_be_seen(sandbox: Sandbox, host: Host) -> None:
    """The attacks do get through where nothing stops them: the same code in a plain Python of the same user."""
    import subprocess
    import sys

    for name, code in {"read_canary": FILES["read_canary"], "daemonise": SYSTEM["daemonise"].replace("1000", "0.1"), "udp": SYSTEM["udp"], "threads": BOMBS["threads"]}.items():
        text = code.replace("10000", "10").replace("(1000,)", "(0.1,)") + f"\nprint(f(1, {host.told()!r}))"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, timeout=20)
        assert "got through" in done.stdout, (name, done)
    assert host.udp.recv(1) == b"x"
