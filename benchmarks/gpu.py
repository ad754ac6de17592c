"""What a GPU makes of the same work: decoding beside its memory's bandwidth, training beside its matrix products, a PPO step by phase, and peak memory.

    python -m benchmarks.gpu                      # or make bench-gpu: prints JSON and writes benchmarks/results-gpu.json
    python -m benchmarks.gpu decode --model qwen2-0.5b
    python -m benchmarks.gpu --rehearse           # the same code on the CPU with a tiny model; its figures mean nothing

Models have random weights in the shapes of Qwen2 at 0.5B and 1.5B. Every unit runs in a process of its own; limits are measured, not quoted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results, roofline
from benchmarks.models import folder_of, reward_of
from benchmarks.turns import peak_mib, versions

FILE = Path(__file__).resolve().parent / "results-gpu.json"
MODELS = ("qwen2-0.5b", "qwen2-1.5b")
UNITS = ("limits", "decode", "generate", "sft", "sft-lora", "ppo")
GOALS = {"decode": ("share_of_bandwidth", 0.6, MODELS), "sft": ("mfu", 0.45, MODELS[1:])}
NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # bfloat16 operations a second, dense, as the maker says
REAL = {"batch": 64, "prompt": 128, "new": 128, "sequences": 32, "length": 512, "micro_tokens": 16_384, "side": 8192, "copied": 2**30, "rounds": 5}
SMALL = {"batch": 4, "prompt": 8, "new": 6, "sequences": 4, "length": 16, "micro_tokens": 64, "side": 64, "copied": 2**20, "rounds": 1}
WARMUP = 2  # units that are not counted


class Done(Exception):
    """Enough has been measured."""


class Timed:
    """Stands where `turns.Turns` does: seconds of each unit of work once the GPU has done all of it."""

    def __init__(self, device: str, rounds: int) -> None:
        self.facts: dict[str, Any] = {}
        self.laps: list[dict[str, Any]] = []
        self.device, self.rounds = device, rounds
        self._began = stamp(device)

    def count_optimiser_steps(self) -> None:
        """Nobody asks here."""

    def lap(self, **found: Any) -> None:
        self.laps.append({"seconds": stamp(self.device) - self._began, **found})
        if len(self.laps) == WARMUP + self.rounds:
            raise Done
        self._began = stamp(self.device)

    def median(self, name: str) -> float:
        return median(lap[name] for lap in self.laps[WARMUP:])


def stamp(device: str) -> float:
    """Seconds, once everything that was asked of the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


# -- limits --------------------------------------------------------------------------------------------------------------
def limits(device: str, side: int, copied: int, rounds: int) -> dict[str, float | None]:
    """Bytes a second of a copy within the memory (read and written), and operations a second of a large bfloat16 product."""
    import torch

    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    there, matrix = torch.empty_like(source), torch.ones(side, side, dtype=torch.bfloat16, device=device)

    def rate(work: Any, amount: float, times: int = 20) -> float:
        found = []
        for _ in range(WARMUP + rounds):
            began = stamp(device)
            for _ in range(times):
                work()
            found.append(amount * times / (stamp(device) - began))
        return median(found[WARMUP:])

    nominal = next((n for name, n in NOMINAL.items() if device == "cuda" and name in torch.cuda.get_device_name()), None)
    return {"bytes_per_second": rate(lambda: there.copy_(source), 2 * copied), "bfloat16_flops": rate(lambda: matrix @ matrix, 2 * side**3), "nominal_bfloat16_flops": nominal}


def bytes_of_a_step(shape: dict[str, Any], rows: int, length: float) -> float:
    """The least that decoding one token of each row must read: every weight once, layers in bfloat16 and the head in float32, and the rows' keys and values.

    >>> one = {"hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 3, "num_hidden_layers": 1, "vocab_size": 5}
    >>> bytes_of_a_step(one, rows=2, length=10)  # layers 2 (4 * 4 + 3 * 6), head 4 * 10, keys and values 2 rows * 10 tokens * 2 * 2 numbers * 2 bytes
    268
    """
    width, heads, keys = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    head = shape.get("head_dim") or width // heads
    layer = 2 * width * head * (heads + keys) + 3 * width * shape["intermediate_size"]
    return shape["num_hidden_layers"] * (2 * layer + rows * length * 2 * keys * head * 2) + 4 * width * shape["vocab_size"]


def operations(shape: dict[str, Any], length: int, *, lora: bool) -> int:
    """Floating-point operations of learning from one sequence: forward once, the states' gradient once, and the weights' where they are trained."""
    forward = roofline.generation(shape, length, [1]) + 2 * shape["hidden_size"] * shape["vocab_size"] * (length - 2)
    return forward * (2 if lora else 3)


# -- units ---------------------------------------------------------------------------------------------------------------
def unit(name: str, model: str, device: str, size: dict[str, int]) -> dict[str, Any]:
    """One row: what was measured, in this process."""
    if name == "limits":
        return dict(limits(device, size["side"], size["copied"], size["rounds"]))
    os.environ["TRUING_BENCH_SCRATCH"] = scratch = tempfile.mkdtemp(prefix="truing-bench-")
    timed = Timed(device, size["rounds"])
    module, asks = work_of(name, model, device, size)
    try:
        importlib.import_module(f"benchmarks.{module}").play(timed, asks)
    except Done:
        pass
    seconds, tokens = timed.median("seconds"), timed.median("tokens")
    found = {"seconds": seconds, "tokens_per_second": tokens / seconds, "peak_mib": peak(device), "facts": dict(timed.facts)}
    return found | ({"phases": phases(Path(scratch) / "run")} if name == "ppo" else {})


def work_of(name: str, model: str, device: str, size: dict[str, int]) -> tuple[str, dict[str, Any]]:
    """The chair's module, and what it is asked."""
    shared = {"model": str(folder_of(model)), "device": device}
    if name in ("decode", "generate"):
        asks = {**shared, "dtype": "bfloat16", "how": "dynamic", "lengths": [size["new"]] * size["batch"], "prompt": size["prompt"]}
        return ("truing_decode" if name == "decode" else "peer_decode"), asks
    options = {"device": device, "dtype": "bfloat16", "micro_tokens": size["micro_tokens"], **({"lora": None} if name == "sft" else {})}
    if name == "ppo":
        rollout = {"batch": size["batch"], "prompt": size["prompt"], "new": size["new"], "epochs": 4, "reward": str(reward_of(model, lora=True))}
        return "truing_rollouts", {**shared, "method": "ppo", **rollout, "options": options}
    return "truing_training", {**shared, "method": "sft", "batch": size["sequences"], "lengths": [size["length"]] * 4 * size["sequences"], "options": options}


def phases(run: Path) -> dict[str, float]:
    """Seconds of each phase of a step, medians over the steps that count. What a GPU has left to do at the end of a phase is in the next one's."""
    from truing.observe.events import read_events

    steps = [{k: v for k, v in e.items() if k.startswith("seconds/")} for e in read_events(run) if e["kind"] == "timing" and "seconds/update" in e][WARMUP:]
    return {name.removeprefix("seconds/"): median(step[name] for step in steps) for name in steps[0]}


def peak(device: str) -> float:
    """Of the GPU's memory that tensors took, or of the process (a rehearsal)."""
    if device == "cpu":
        return peak_mib()
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def judged(name: str, model: str, found: dict[str, Any], bounds: dict[str, Any], size: dict[str, int]) -> dict[str, Any]:
    """The row beside the limits, and beside its goal."""
    shape = json.loads((folder_of(model) / "config.json").read_text())
    if name in ("decode", "generate"):
        step = bytes_of_a_step(shape, size["batch"], size["prompt"] + size["new"] / 2)
        found["share_of_bandwidth"] = found["tokens_per_second"] / size["batch"] * step / bounds["bytes_per_second"]
    if name in ("sft", "sft-lora"):
        rate = operations(shape, size["length"], lora=name == "sft-lora") * size["sequences"] / found["seconds"]
        found["mfu"] = rate / bounds["bfloat16_flops"]
        found["mfu_nominal"] = rate / bounds["nominal_bfloat16_flops"] if bounds["nominal_bfloat16_flops"] else None
    figure, least, models = GOALS.get(name, ("", 0.0, ()))
    return {"unit": name, "model": model, **found, **({"goal": f"{figure} >= {least}", "held": found[figure] >= least} if model in models else {})}


# -- the whole -----------------------------------------------------------------------------------------------------------
def measure(names: list[str], models: list[str], device: str, size: dict[str, int]) -> dict[str, Any]:
    """All rows. On a GPU every unit has a process of its own, so that its memory is its own; one that fails says why, and the others go on."""
    one = _apart if device == "cuda" else unit
    bounds = one("limits", "", device, size)
    rows: list[dict[str, Any]] = []
    for model in models:
        for name in names:
            print(f"{model}: {name} ...", file=sys.stderr, flush=True)
            found = one(name, model, device, size)
            rows.append({"unit": name, "model": model, **found} if "error" in found else judged(name, model, found, bounds, size))
    return {"measured": time.strftime("%Y-%m-%d"), "device": device, "machine": results.machine() | _gpu(device), "settings": size, "limits": bounds, "rows": rows}


def _gpu(device: str) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"versions": versions() | {"torch": torch.__version__}}
    return found | ({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device == "cuda" else {})


def _apart(name: str, model: str, device: str, size: dict[str, int]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--unit", json.dumps([name, model, device, size])], capture_output=True, text=True)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        if name == "limits":
            raise SystemExit(f"the GPU's limits could not be measured:\n{done.stderr[-2000:]}") from None
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", metavar="UNIT", help=f"of {', '.join(UNITS[1:])}; all without")
    parser.add_argument("--model", choices=MODELS, action="append", help="one of the models; both without")
    parser.add_argument("--rehearse", action="store_true", help="run the same code on the CPU with a tiny model; nothing is written")
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.unit:
        print(json.dumps(unit(*json.loads(given.unit))))
        return
    names = given.units or list(UNITS[1:])
    if unknown := [name for name in names if name not in UNITS[1:]]:
        parser.error(f"no unit {unknown[0]!r}; use one of {', '.join(UNITS[1:])}")
    if given.rehearse:
        print(json.dumps(measure(names, ["tiny"], "cpu", SMALL), indent=1))
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"make bench-gpu needs a CUDA GPU, and PyTorch {torch.__version__} finds none here; --rehearse runs the same code on the CPU, make bench measures the CPU")
    found = measure(names, given.model or list(MODELS), "cuda", REAL)
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
