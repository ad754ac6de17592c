"""The table's side of taking turns: start the chairs, let each do one unit of work in turn, and take medians.

All chairs of a row are alive for the whole of it and step round by round, so that they see the same machine at the same time. Idle ones
wait in a read and use no processor. The first rounds are a warm-up; only turns count in which nobody else used the processors.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.turns import SCRATCH

ROOT = Path(__file__).resolve().parent.parent
KEEP = ROOT / ".bench"
QUIET = 0.12  # processors that others may use in a quiet turn
THREADS = 2


class ChairError(RuntimeError):
    """A chair's process ended or said something that is no answer."""


@dataclass(frozen=True)
class Chair:
    """Who does a row's work: a module of this package that `Turns`, what it is asked, and the interpreter it runs under.

    ``peer`` says whose figures Truing's are compared with.
    """

    name: str
    module: str
    asks: Mapping[str, Any]
    peer: bool = False
    python: str = sys.executable
    threads: int = THREADS


class Seated:
    """A chair's process."""

    def __init__(self, chair: Chair, log: Path) -> None:
        self.chair, self.log = chair, log
        self.facts: dict[str, Any] = {}
        self.to_ready = 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("w")
        (KEEP / "scratch").mkdir(exist_ok=True)
        self._scratch = tempfile.mkdtemp(dir=KEEP / "scratch")
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "OMP_", "MKL_", "ONEDNN_", "TRUING_BENCH"))}
        offline = {name: "1" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRL_EXPERIMENTAL_SILENCE")}
        threads = {"OMP_NUM_THREADS": str(chair.threads), "MKL_NUM_THREADS": str(chair.threads), "TOKENIZERS_PARALLELISM": "false"}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [chair.python, "-W", "ignore", "-m", f"benchmarks.{chair.module}", json.dumps(dict(chair.asks))], cwd=ROOT, env=own | offline | threads | {SCRATCH: self._scratch},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, bufsize=1,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        self.facts = self.answer()
        self.to_ready = time.perf_counter() - self.began

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            said = self.log.read_text(errors="replace").strip().splitlines()[-8:]
            raise ChairError(f"{self.chair.name} ended with code {self.process.returncode}; the end of {self.log}:\n" + "\n".join(said))
        return json.loads(line)

    def turn(self) -> dict[str, Any]:
        if self.process.stdin is None:
            raise ChairError(f"{self.chair.name} has no input")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        shutil.rmtree(self._scratch, ignore_errors=True)


@contextlib.contextmanager
def seated(chairs: Sequence[Chair], log: Path) -> Iterator[list[Seated]]:
    """Start the chairs one after the other (imports and warm-up in nobody's way) and send them home at the end."""
    found: list[Seated] = []
    try:
        for chair in chairs:
            found.append(Seated(chair, log / f"{chair.name.replace(' ', '-').replace('/', '-')}.log"))
            found[-1].wait_until_ready()
        yield found
    finally:
        for one in found:
            one.leave()


@dataclass(frozen=True)
class Turn:
    """What a chair did over a row: the turns that count, what it said when ready, and the seconds from its start to there.

    ``quiet`` is False where too few turns were, so that all count: such figures show that a row works, not how fast anything is.
    """

    chair: Chair
    facts: Mapping[str, Any]
    to_ready: float
    rounds: list[dict[str, Any]]
    quiet: bool = True

    def median(self, name: str) -> float:
        return statistics.median(float(r[name]) for r in self.rounds)

    def rate(self, name: str = "tokens") -> float:
        """Median over turns of what was done a second."""
        return statistics.median(float(r[name]) / r["seconds"] for r in self.rounds)

    @property
    def peak_mib(self) -> float:
        return max(float(r["peak_mib"]) for r in self.rounds)


@dataclass(frozen=True)
class Played:
    """A row as it was played."""

    turns: list[Turn]

    def __getitem__(self, name: str) -> Turn:
        return next(t for t in self.turns if t.chair.name == name)


def take_turns(chairs: Sequence[Chair], log: Path, *, rounds: int, warmup: int = 0, seconds: float = float("inf")) -> Played:
    """Play until every chair has had so many quiet turns, or twice as many rounds are over, or the time is up (but at least one).

    Args:
        warmup: rounds that do not count, besides the first unit that every chair does before it is ready.
    """
    played: list[list[dict[str, Any]]] = [[] for _ in chairs]
    with seated(chairs, log) as places:
        for _ in range(warmup):
            for place in places:
                place.turn()
        began = time.perf_counter()
        done = 0
        while min(map(len, map(quiet, played))) < rounds and done < 2 * rounds and (not done or (time.perf_counter() - began) * (1 + 1 / done) < seconds):
            for turns, place in zip(played, places, strict=True):
                turns.append(place.turn())
            done += 1
    return Played([counted(p.chair, p.facts, p.to_ready, turns, min(3, rounds)) for p, turns in zip(places, played, strict=True)])


def counted(chair: Chair, facts: Mapping[str, Any], to_ready: float, turns: list[dict[str, Any]], least: int) -> Turn:
    """Its quiet turns when there are enough of them, else all."""
    found = quiet(turns)
    enough = len(found) >= min(least, len(turns))
    return Turn(chair, facts, to_ready, found if enough else turns, enough)


def quiet(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [t for t in turns if t["others"] < QUIET]
