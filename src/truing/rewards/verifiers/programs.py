"""An installed checker (lean, coqc, drat-trim) as a process with a time limit, little memory of who called it, and bounded output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OUTPUT = 2**20  # bytes of output that are read
PASSED = ("PATH", "HOME", "LANG", "ELAN_HOME", "LEAN_PATH", "COQPATH", "COQLIB", "OPAMROOT")  # of the environment: where the checkers and their libraries lie


@dataclass(frozen=True)
class Done:
    """How it ended: ``code`` is None when it did not end in time, and was ended."""

    code: int | None
    output: str

    @property
    def ended(self) -> bool:
        return self.code is not None


def run(command: Sequence[str], folder: Path, seconds: float) -> Done:
    """Run a program in a folder; its whole process group is ended when its time is up, or when it has."""
    environment = {name: os.environ[name] for name in PASSED if name in os.environ}
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        code: int | None = None
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        out.seek(0)
        return Done(code, out.read(OUTPUT).decode("utf-8", "replace"))
