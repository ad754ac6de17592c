"""The self-test of a sandbox: code in it really tries to get out, before it is believed to be one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from truing.errors import ConfigError
from truing.rewards.sandbox.jobs import Job, Limits, Outcome, Ran

CANARY = "nobody in the sandbox may read this"

# Each attempt returns when it got through, and raises when it did not.
ATTEMPTS = '''
import ctypes, os, socket, threading

def read_a_file(folder, memory):
    open(folder + "/canary").read()

def read_the_password_file(folder, memory):
    open("/etc/passwd").read()

def read_an_environment(folder, memory):
    assert os.environ or open("/proc/self/environ").read() or open("/proc/1/environ").read()

def list_processes(folder, memory):
    os.listdir("/proc")

def write_a_file(folder, memory):
    open(folder + "/left", "w").write("x")

def write_into_temporary_files(folder, memory):
    open("/tmp/truing-left", "w").write("x")

def change_a_mode(folder, memory):
    os.chmod(folder, 0o777)

def open_a_tcp_socket(folder, memory):
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)

def open_a_udp_socket(folder, memory):
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)

def open_a_unix_socket(folder, memory):
    socket.socketpair()

def fork(folder, memory):
    if os.fork() == 0:
        os._exit(0)

def execute(folder, memory):
    os.execv("/bin/true", ["true"])

def start_a_thread(folder, memory):
    threading.Thread(target=print).start()

def signal_the_parent(folder, memory):
    os.kill(os.getppid(), 0)

def call(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(number, *args) >= 0

def trace(folder, memory):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(0, 0, 0, 0) >= 0

def new_namespaces(folder, memory):
    assert ctypes.CDLL(None).unshare(0x10000000) >= 0

def open_an_io_uring(folder, memory):
    call(425, 8, ctypes.create_string_buffer(256))

def take_too_much_memory(folder, memory):
    bytearray(memory)

def attempt(name, folder, memory):
    try:
        globals()[name](folder, memory)
    except Exception as error:
        return [name, ""]
    return [name, "got through"]
'''
NAMES = [line[4:].split("(")[0] for line in ATTEMPTS.splitlines() if line.startswith("def ") and "(folder, memory)" in line]


def prove(run: Callable[[Sequence[Job]], list[Outcome]], limits: Limits) -> list[str]:
    """What was tried and repelled. Raises ConfigError when anything got through, or when code cannot run in it at all."""
    with tempfile.TemporaryDirectory(prefix="truing-canary-") as folder:
        path = Path(folder)
        path.chmod(0o777)  # only the sandbox stands between it and a stranger
        (path / "canary").write_text(CANARY)
        (path / "canary").chmod(0o666)
        sums = Job("def add(a, b):\n    return a + b", "add", [2, 3])
        first, *outcomes = run([sums, *(Job(ATTEMPTS, "attempt", [name, folder, limits.memory]) for name in NAMES)])
        if (first.ran, first.value) != (Ran.VALUE, 5):
            raise ConfigError(f"code cannot be run in it: 2 + 3 gave {first.ran.value} {first.note or first.value}")
        for name, outcome in zip(NAMES, outcomes, strict=True):
            if outcome.ran.infrastructure or outcome.value == [name, "got through"]:
                raise ConfigError(f"it does not hold: code in it could {name.replace('_', ' ')}" if outcome.value else f"its self-test was lost: {outcome.note}")
            if outcome.value != [name, ""] and outcome.ran not in (Ran.KILLED, Ran.MEMORY):
                raise ConfigError(f"its self-test to {name.replace('_', ' ')} gave {outcome.ran.value} {outcome.note}")
        left = sorted(p.name for p in path.iterdir() if p.name != "canary") + [str(p) for p in [Path("/tmp/truing-left")] if p.exists()]
        if left or (path / "canary").read_text() != CANARY:
            raise ConfigError(f"it does not hold: code in it could write {', '.join(left) or 'into a file'}")
    return [name.replace("_", " ") for name in NAMES]
