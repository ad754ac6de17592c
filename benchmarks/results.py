"""What was measured: one record a comparison and kind of processor, kept in benchmarks/results.json, replaced when it is measured again."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.goals import goal_of

FILE = Path(__file__).resolve().parent / "results.json"


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        row, model, variant: the row of the suite, the model's size, and what of Truing was measured (a precision, a setting).
        work: the row in words.
        measure: speed, memory, or what else the row shows; ``unit`` is the figures'.
        peer, peer_figure: whom it is compared with, and theirs; None where nobody is.
        truing_figure: Truing's.
        ratio: how many times as fast Truing is (speed), or Truing's figure over the peer's (memory). None where there is no peer.
        goal, held: from `goals`; held is judged on the ratio, or on the figure where there is none. None without a goal, and where the machine was busy.
        rounds, quiet: how many turns the medians are over, at least, and whether nobody else used the processors in them (None where that was not watched).
        settings: what either side was asked to do, and what it says of itself.
    """

    row: str
    model: str
    variant: str
    work: str
    measure: str
    unit: str
    peer: str | None
    peer_figure: float | None
    truing_figure: float
    ratio: float | None
    goal: str | None
    held: bool | None
    rounds: int
    quiet: bool | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    measured: str = ""

    @property
    def processor(self) -> str:
        return str(self.machine.get("processor", ""))

    @property
    def key(self) -> tuple[str, ...]:
        return self.processor, self.row, self.model, self.variant, self.measure, self.peer or ""


def result(row: str, model: str, variant: str, work: str, measure: str, unit: str, truing: float, peer: str | None = None, peer_figure: float | None = None, **more: Any) -> Result:
    """A record with its ratio, goal and verdict. Units that end in "/s" are the better the higher they are."""
    ratio = None
    if peer_figure is not None:
        slower = truing / peer_figure if unit.endswith("/s") or measure == "memory" else peer_figure / truing
        ratio = round(slower, 3)
    goal = goal_of(row, variant, measure, model, peer)
    judged = truing if ratio is None else ratio
    return Result(
        row, model, variant, work, measure, unit, peer, None if peer_figure is None else _rounded(peer_figure), _rounded(truing), ratio, None if goal is None else str(goal),
        None if goal is None or more.get("quiet") is False else goal.held(judged), machine=machine(), measured=time.strftime("%Y-%m-%d"), **more,
    )  # fmt: skip


def _rounded(x: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{x:.4g}")


def load(path: Path = FILE) -> list[Result]:
    """The records of a file; none when it is not there."""
    return [Result(**row) for row in json.loads(path.read_text())] if path.exists() else []


def save(new: Iterable[Result], path: Path = FILE, *, whole: bool = False) -> list[Result]:
    """Write these records over those of the same comparison, or (``whole``) over all of the same row and model; returns all. Another processor's stay."""
    new = list(new)
    again = {(r.processor, r.row, r.model) for r in new} if whole else set()
    found = {r.key: r for r in load(path) if (r.processor, r.row, r.model) not in again} | {r.key: r for r in new}
    path.write_text(json.dumps([asdict(r) for r in found.values()], indent=1) + "\n")
    return list(found.values())


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name, *numbers = (re.search(rf"^{word}\s*:\s*(.+)", info, re.MULTILINE) for word in ("model name", "cpu family", "model"))
    kind = ", ".join(f"{word} {found[1]}" for word, found in zip(("family", "model"), numbers, strict=True) if found)  # virtual machines give several processors one name
    flags = set((re.search(r"flags\s*:\s*(.+)", info) or re.match("()", "")).group(1).split())  # type: ignore[union-attr]
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text()) if Path("/proc/meminfo").exists() else None
    return {
        "processor": f"{name[1]} ({kind})" if name and kind else platform.processor(), "processors": len(os.sched_getaffinity(0)), "memory_gib": round(int(memory[1]) / 2**20) if memory else None,
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}), "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }  # fmt: skip
