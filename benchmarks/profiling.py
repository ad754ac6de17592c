"""Where the time of one unit of Truing's work goes: the operators by their own time, and the share of matrix products.

    python -m benchmarks.profiling ppo                           # the rows' own shapes on the small model
    python -m benchmarks.profiling sft --dtype bfloat16 --lora --model medium --top 20

The unit is the same that the suite measures, run by the same chair, in this process. Profiling costs time of its own: read shares, not seconds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from typing import Any

from benchmarks.models import NAMES, folder_of, reward_of
from benchmarks.turns import machine_busy

PRODUCTS = ("mm", "linear", "conv", "attention", "mkldnn", "gemm", "baddbmm")
OWN = "passes::"  # before the name of a compiled pass
WARMUP = 2  # units before the one that is measured without a profiler, which comes before the one with


class Done(Exception):
    """The unit has been profiled."""


class Profiled:
    """Stands where `turns.Turns` does: times one unit, profiles the next, and ends the work."""

    def __init__(self, top: int) -> None:
        self.facts: dict[str, Any] = {}
        self.laps, self.top, self.seconds = 0, top, 0.0
        self._profile: Any = None
        self._start()

    def _start(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), machine_busy(), time.process_time()

    def count_optimiser_steps(self) -> None:
        """Nobody asks here."""

    def lap(self, **found: Any) -> None:
        from torch.profiler import ProfilerActivity, profile

        taken, self.laps = time.perf_counter() - self._began, self.laps + 1
        self.others = max(0.0, machine_busy() - self._busy - time.process_time() + self._own) / taken
        if self.laps == WARMUP + 1:
            self.seconds = taken
            self._profile = profile(activities=[ProfilerActivity.CPU])
            self._profile.__enter__()
        elif self._profile:
            self._profile.__exit__(None, None, None)
            print(self._report(taken, found))
            raise Done
        self._start()

    def _report(self, taken: float, found: dict[str, Any]) -> str:
        events = sorted(self._profile.key_averages(), key=lambda e: -e.self_cpu_time_total)
        total = sum(e.self_cpu_time_total for e in events) / 1e6
        products = sum(e.self_cpu_time_total for e in events if is_product(e.key)) / 1e6
        lines = [f"{self.seconds:.3f} s a unit ({taken:.3f} s under the profiler, others used {self.others:.2f} processors), {found}, {self.facts}", "", "| operator | calls | own time, s | share |", "| --- | --- | --- | --- |"]
        lines += [f"| {e.key} | {e.count:,} | {e.self_cpu_time_total / 1e6:.3f} | {e.self_cpu_time_total / 1e6 / total:.1%} |" for e in events[: self.top]]
        rest = sum(e.self_cpu_time_total for e in events[self.top :]) / 1e6
        lines += [f"| {len(events) - self.top} others | | {rest:.3f} | {rest / total:.1%} |"] if rest else []
        return "\n".join([*lines, "", f"matrix products {products / total:.1%} of the time in operators; {max(0.0, 1 - total / taken):.1%} of the unit was in no operator (Python)"])


def is_product(name: str) -> bool:
    """Whether an operator's own time is that of matrix products, or of a pass that is mostly that."""
    if name.startswith(OWN):
        return name.removeprefix(OWN) in ("linears", "linears_backward", "project", "project_backward", "finish", "finish_backward", "multiply", "step")
    return name.startswith(("aten::", "mkldnn::")) and any(word in name for word in PRODUCTS)


def name_passes() -> None:
    """Let every compiled pass appear as an operator of its own; PyTorch's profiler would count it as its caller's time."""
    from torch.profiler import record_function

    from truing import native

    def named(name: str, run: Any) -> Any:
        def call(*given: Any) -> None:
            with record_function(OWN + name):
                run(*given)

        return call

    for library in filter(None, map(native.library, native.MODES)):
        for name in native.names():
            if hasattr(library, name):
                setattr(library, name, named(name, getattr(library, name)))


def work_of(row: str, model: str, dtype: str, lora: bool) -> tuple[str, dict[str, Any]]:
    """The chair's module, and what it is asked, for a row of the suite."""
    from benchmarks.rows import A_PACK, BATCH, MIXED, NEW, PROMPT, STOPS

    shared = {"model": str(folder_of(model))}
    options = {"dtype": dtype, **({} if lora else {"lora": None})}
    if row == "decode-spread":
        return "truing_decode", {**shared, "dtype": dtype, "lora": lora, "lengths": [256] * (4 * BATCH), "prompt": PROMPT, "slots": BATCH, "stops": STOPS}
    if row == "decode":
        return "truing_decode", {**shared, "dtype": dtype, "lora": lora, "lengths": [NEW] * BATCH, "prompt": PROMPT}
    if row in ("sft", "sft-padded", "sft-packed", "reward", "reward-mixed"):
        lengths = [128] * 256 if row in ("sft", "reward") else MIXED
        return "truing_training", {**shared, "method": row.split("-")[0], "batch": A_PACK if row == "sft-packed" else 8, "lengths": lengths, "options": options}
    reward = str(reward_of(model, lora=lora)) if row == "ppo" else "benchmarks.tokens:sevens"
    return "truing_rollouts", {**shared, "method": row, "batch": BATCH, "prompt": PROMPT, "new": NEW, "epochs": 4, "group": 8, "reward": reward, "options": options}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=("decode", "decode-spread", "sft", "sft-padded", "sft-packed", "reward", "reward-mixed", "ppo", "grpo"))
    parser.add_argument("--model", choices=NAMES, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lora", action="store_true", help="train (or, for decode, merge) adapters instead of every weight")
    parser.add_argument("--top", type=int, default=15)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    name_passes()
    module, asks = work_of(given.row, given.model, given.dtype, given.lora)
    try:
        importlib.import_module(f"benchmarks.{module}").play(Profiled(given.top), asks)
    except Done:
        sys.exit()


if __name__ == "__main__":
    main()
