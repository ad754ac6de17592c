"""Every attack again, as an ordinary user: the rest of the suite runs as whoever started it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
USER = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="the suite runs as an ordinary user already")
def test_every_attack_is_repelled_as_an_ordinary_user() -> None:
    place = Path(tempfile.gettempdir()) / f"truing-user-{os.getpid()}"
    place.mkdir()
    os.chown(place, USER, USER)
    command = [sys.executable, "-m", "pytest", str(HERE / "test_sandbox_attacks.py"), "-p", "no:cacheprovider", f"--basetemp={place}/tests", "-rs"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "src")}
    try:
        done = subprocess.run([sys.executable, str(HERE / "as_ordinary_user.py"), str(USER), *command], capture_output=True, text=True, timeout=500, env=environment)
    finally:
        shutil.rmtree(place)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    counts = dict((word, int(number)) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1]))
    if counts.get("skipped"):
        pytest.skip(done.stdout)
    assert done.returncode == 0 and set(counts) == {"passed"} and counts["passed"] > 200, done.stdout[-5000:] + done.stderr[-2000:]
