"""What grows with the work: time per token and peak memory over ten times the batch and four times the length, of Truing alone.

The sizes of one kind of work sit at the table together, so that they see the same machine. Time per token should stay where it is, and memory,
what is needed beyond the libraries and the loaded model, should grow at most as the work does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import folder_of, reward_of
from benchmarks.results import Result, result
from benchmarks.side_by_side import KEEP, THREADS, Chair, take_turns

SIZES = {"batch": (1, 2, 5, 10), "length": (1, 2, 4)}
WORKS = {"decode": "decode 64 x 64, prompt 32, float32", "sft": "SFT 8 x 128, float32, every weight", "ppo": "PPO step 64 x (32 + 64), as a recipe has it by default"}


def chair(work: str, model: str, batch: int, length: int) -> Chair:
    """One kind of work, so many times its batch and its length."""
    shared = {"model": str(folder_of(model))}
    name = f"batch-{batch} length-{length}"
    if work == "decode":
        return Chair(name, "truing_decode", {**shared, "dtype": "float32", "lengths": [64 * length] * (64 * batch), "prompt": 32})
    if work == "sft":
        whole = {"lora": None, "dtype": "float32", "max_length": 1024}
        return Chair(name, "truing_training", {**shared, "method": "sft", "batch": 8 * batch, "lengths": [128 * length] * (64 * batch), "options": whole})
    shape = {"batch": 64 * batch, "prompt": 32 * length, "new": 64 * length, "epochs": 4}
    return Chair(name, "truing_rollouts", {**shared, "method": "ppo", **shape, "reward": str(reward_of(model, lora=True))})


def measure(model: str, rounds: int, seconds: float, works: Sequence[str] = tuple(WORKS)) -> list[Result]:
    """Every kind of work at every size; the points that the figure is drawn from stand in the settings of each record."""
    found = []
    for work in works:
        sizes = [(b, 1) for b in SIZES["batch"]] + [(1, n) for n in SIZES["length"] if n > 1]
        played = take_turns([chair(work, model, *size) for size in sizes], KEEP / "logs" / f"growth-{work}", rounds=min(rounds, 3), seconds=seconds)
        points = [
            {"batch": b, "length": n, "us_per_token": round(1e6 * t.median("seconds") / t.median("tokens"), 3), "peak_mib": round(t.peak_mib, 1), "own_mib": round(t.peak_mib - t.facts["loaded_mib"], 1)}
            for (b, n), t in zip(sizes, played.turns, strict=True)
        ]  # fmt: skip
        more: dict[str, Any] = {"rounds": min(len(t.rounds) for t in played.turns), "quiet": all(t.quiet for t in played.turns), "versions": {"truing": played.turns[0].facts["versions"]}}
        for axis, factors in SIZES.items():
            line = along(points, axis)
            at = {"threads": THREADS, "points": line}
            for measure, unit, key in (("time per token", "x that of the smallest", "us_per_token"), ("memory", "x that of the smallest", "own_mib")):
                found.append(result("growth", model, f"{work}, {axis} x{factors[-1]}", WORKS[work], measure, unit, worst(line, key), settings=at, **more))
    return found


def along(points: list[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    """The points on which only one of batch and length grows."""
    other = {"batch": "length", "length": "batch"}[axis]
    return sorted((p for p in points if p[other] == 1), key=lambda p: p[axis])


def worst(line: list[dict[str, Any]], key: str) -> float:
    """The most that a figure becomes, against the smallest size."""
    return max(p[key] for p in line[1:]) / line[0][key]


def draw(results: list[Result], path: Path) -> bool:
    """The figure of the measured growth; False when there is none among the results."""
    measured = {r.variant: r for r in results if r.row == "growth" and r.measure == "time per token"}
    if not measured:
        return False
    from truing.labs.canvas import COLOURS, canvas, label_ends, png

    with canvas(2, 2, width=10, height=6.4, sharex="col") as (figure, axes):
        for column, (axis, title) in enumerate((("batch", "Batch, times the smallest"), ("length", "Length, times the smallest"))):
            for colour, work in zip(COLOURS, WORKS, strict=False):
                record = next((r for name, r in measured.items() if name.startswith(f"{work}, {axis} ")), None)
                if record:
                    _lines(axes[0, column], axes[1, column], record.settings["points"], axis, {"decode": "decode", "sft": "SFT", "ppo": "PPO"}[work], colour)
            factors = SIZES[axis]
            for row, (label, reference) in enumerate((("Time per token, relative", [1.0] * len(factors)), ("Memory, relative", list(factors)))):
                ax = axes[row, column]
                ax.plot(factors, reference, color="#999999", linewidth=1.0, linestyle=(0, (4, 3)), label="_flat" if row == 0 else "_linear", zorder=1)
                ax.set_xticks(factors)
                ax.set_ylim(0, 1.5 if row == 0 else None)
                if column == 0:
                    ax.set_ylabel(label)
                label_ends(ax, gap=0.075)
            axes[1, column].set_xlabel(title)
        path.write_bytes(png(figure, dpi=110))
    return True


def _lines(time: Any, memory: Any, line: list[Mapping[str, Any]], axis: str, label: str, colour: str) -> None:
    x = [p[axis] for p in line]
    for ax, key in ((time, "us_per_token"), (memory, "own_mib")):
        ax.plot(x, [p[key] / line[0][key] for p in line], color=colour, marker="o", markersize=4, label=label)
