"""How long one waits before anything happens: `import truing`, and the first PPO step of a tiny recipe from the command line.

Every time is from the start of a fresh process, Truing's and the peer's in turns. A first step ends for Truing when `truing run` writes the step's time
to its event log, for the peer when its trainer says that the step is over; what either does afterwards (Truing's report) is not in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import goal_of
from benchmarks.results import Result, result
from benchmarks.side_by_side import KEEP, ROOT, THREADS, Chair, ChairError, Seated, Turn, counted, quiet
from benchmarks.turns import machine_busy

LIMIT = 180.0  # seconds that any one process may take
IMPORTS = 10  # fresh processes in a turn of a bare import: one alone is over before the clock of the processors' use has ticked
LOGS = KEEP / "logs" / "start-up"
BARE, FULL, PPO = "TRL, import trl", "TRL, from trl import GRPOTrainer", "TRL, first PPO step"


def measure(peers: str, trl_ppo: str, rounds: int) -> list[Result]:
    """Truing's figures, those that have a goal alone as well, and beside the peer's. Like stands beside like: either package's bare import loads next to nothing."""
    model, here = tiny_model(), sys.executable
    versions = {"truing": _versions(here, "truing"), "peer": _versions(peers, "trl")}
    bare = take_turns({"Truing": lambda: imports("truing", here, IMPORTS), BARE: lambda: imports("trl", peers, IMPORTS)}, rounds)
    full = take_turns({"Truing": lambda: imports("truing.methods.grpo", here), FULL: lambda: imports("trl", peers, name="GRPOTrainer")}, min(rounds, 3))
    steps = take_turns({"Truing": lambda: first_step(model), PPO: lambda: _first_step_of_peer(peers, trl_ppo, model)}, min(rounds, 3))
    recipe = {
        "model": "2 layers of width 96, random weights", "prompts a step": 8, "new tokens": 8, "epochs": 1, "threads": THREADS,
        "Truing's whole process, with the report": round(steps["Truing"].median("whole"), 2),
    }  # fmt: skip
    return [
        *_compared("import truing", "none", "import in a fresh process", bare, BARE, {"processes a turn": IMPORTS, "threads": THREADS}, versions),
        *_compared("import truing.methods.grpo", "none", "import of all that GRPO needs, in a fresh process", full, FULL, {"threads": THREADS}, versions),
        *_compared("first PPO step", "tiny", "from the start of the process to the end of the first PPO step of a tiny recipe", steps, PPO, recipe, {}),
    ]


def _compared(what: str, model: str, work: str, turns: Mapping[str, Turn], peer: str, settings: Mapping[str, Any], versions: Mapping[str, Any]) -> list[Result]:
    """The figure of Truing against its goal, if it has one, and the same beside the peer's."""
    ours, theirs = turns["Truing"], turns[peer]
    figure, others = ours.median("seconds"), {"truing": round(ours.median("others"), 3), "peer": round(theirs.median("others"), 3)}
    more: dict[str, Any] = {"settings": {**settings, "others": others}, "versions": versions or {"truing": ours.facts, "peer": theirs.facts}}
    beside = result("start-up", model, what, work, "speed", "s", figure, peer, theirs.median("seconds"), rounds=min(len(t.rounds) for t in (ours, theirs)), quiet=ours.quiet and theirs.quiet, **more)
    if goal_of("start-up", what, "seconds", model) is None:
        return [beside]
    return [result("start-up", model, what, work, "seconds", "s", figure, rounds=len(ours.rounds), quiet=ours.quiet, **more), beside]


# -- turns ----------------------------------------------------------------------------------------------------------------------
def take_turns(works: Mapping[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, Turn]:
    """Every work once a round, after a first round that fills the disk's caches, until each has had so many quiet turns or twice as many rounds are over."""
    played: dict[str, list[dict[str, Any]]] = {name: [] for name in works}
    for number in range(2 * rounds + 1):
        turns = {name: watched(work) for name, work in works.items()}
        said = ", ".join(f"{name} {turn['seconds']:.2f} s{'' if quiet([turn]) else ' (not quiet)'}" for name, turn in turns.items())
        print(f"start-up, {f'round {number} of {rounds}' if number else 'warm-up'}: {said}", file=sys.stderr, flush=True)
        if number:
            for name, turn in turns.items():
                played[name].append(turn)
        if all(len(quiet(found)) >= rounds for found in played.values()):
            break
    return {name: counted(Chair(name, "none", {}), found[-1].get("versions", {}), 0.0, found, min(3, rounds)) for name, found in played.items()}


def watched(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work found, and the processors that others used meanwhile: neither this process nor those that it has waited for."""
    began, busy, own = time.perf_counter(), machine_busy(), sum(os.times()[:4])
    found = work()
    used = machine_busy() - busy - (sum(os.times()[:4]) - own)
    return {**found, "others": round(max(0.0, used) / (time.perf_counter() - began), 3)}


# -- one process ------------------------------------------------------------------------------------------------------------------
def timed(name: str, command: Sequence[str], log: Path, until: Callable[[], bool] | None = None) -> dict[str, float]:
    """Run a command; ``seconds`` from its start to when ``until`` first holds (None: to its end) and ``whole`` to its end.

    Raises ChairError, with the last lines that the command printed, when it fails, takes longer than `LIMIT`, or ends before ``until`` held.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "ONEDNN_"))}
    if command[0] != sys.executable:  # what helps this interpreter find its packages misleads another
        own = {k: v for k, v in own.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    more = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=own | more)
        with _limited(name, process, log):
            held = None
            while until and held is None and process.poll() is None:
                if until():
                    held = time.perf_counter() - began
                else:
                    time.sleep(0.01)
            process.wait()  # without a timeout, whose waiting is in steps of 50 ms
    whole = time.perf_counter() - began
    if process.returncode:
        raise ChairError(f"{name} ended with code {process.returncode}; {_end_of(log)}")
    if until and held is None:
        raise ChairError(f"{name} ended without what was waited for; {_end_of(log)}")
    return {"seconds": whole if held is None else held, "whole": whole}


@contextlib.contextmanager
def _limited(name: str, process: subprocess.Popen[Any], log: Path) -> Iterator[None]:
    """Kill the process after `LIMIT` seconds, or with the block when that fails; raises ChairError in the first case."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(LIMIT, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException as error:
        process.kill()
        process.wait()
        if not late.is_set() or not isinstance(error, ChairError):
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise ChairError(f"{name} was not done after {LIMIT:g} s and was killed; {_end_of(log)}")


def _end_of(log: Path) -> str:
    said = log.read_text(errors="replace").strip().splitlines()[-8:]
    return f"the end of {log}:\n" + "\n".join(said) if said else "it printed nothing"


# -- the works --------------------------------------------------------------------------------------------------------------------
def imports(module: str, python: str, times: int = 1, *, name: str | None = None) -> dict[str, Any]:
    """Import a module, or one name from it, in that many fresh processes: their mean."""
    line = f"from {module} import {name}" if name else f"import {module}"
    taken = [timed(f"`{line}`", [python, "-c", line], LOGS / f"import-{module}.log")["seconds"] for _ in range(times)]
    return {"seconds": sum(taken) / times}


def _versions(python: str, package: str) -> dict[str, str]:
    """Of the package, torch and transformers, as that interpreter has them."""
    names, log = (package, "torch", "transformers"), LOGS / f"versions-{package}.log"
    timed(f"versions of {package}", [python, "-c", f"from importlib.metadata import version; print(*map(version, {names}))"], log)
    return dict(zip(names, log.read_text().split()[-len(names) :], strict=True))


def tiny_model() -> Path:
    """The model of both sides; written when it is not there."""
    base = KEEP / "models" / "recipe"
    if not (base / "config.json").exists():
        from truing.demo.tiny import write_tiny_model

        shutil.rmtree(base, ignore_errors=True)
        write_tiny_model(base, ["the river runs past a small town", "people trade stories about old machines"], seed=0, layers=2)
    return base


def tiny_recipe(model: Path, folder: Path) -> dict[str, Any]:
    """A recipe of one step that takes no time but its own; its prompts are written to ``folder``."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": [{"role": "user", "content": f"the river runs past {i}"}]}) + "\n" for i in range(8)))
    stage = {
        "method": "ppo", "model": str(model), "prompts": str(prompts), "reward": "benchmarks.tokens:sevens", "steps": 1, "batch_size": 8, "minibatches": 1, "epochs": 1,
        "max_new_tokens": 8, "max_length": 128,
    }  # fmt: skip
    return {"name": "tiny", "seed": 0, "stages": {"ppo": stage}}


def first_step(model: Path) -> dict[str, Any]:
    """`truing run` of the tiny recipe, read from its event log; "versions" are those that it logged."""
    scratch = KEEP / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folder = Path(place)
        (folder / "recipe.yaml").write_text(json.dumps(tiny_recipe(model, folder)))
        log = folder / "runs" / "tiny" / "ppo" / "events.jsonl"
        command = [sys.executable, "-m", "truing", "run", str(folder / "recipe.yaml"), "--runs-dir", str(folder / "runs")]
        found = timed("truing run", command, LOGS / "truing.log", until=lambda: any("seconds/step" in e for e in events(log)))
        return {**found, "versions": next(e["versions"] for e in events(log) if e["kind"] == "session")}


def events(log: Path) -> list[dict[str, Any]]:
    """The whole lines of an event log; none while there is no file."""
    try:
        return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def _first_step_of_peer(peers: str, trl_ppo: str, model: Path) -> dict[str, Any]:
    asks = {"method": "ppo", "model": str(model), "batch": 8, "parts": 1, "prompt": 8, "new": 8, "epochs": 1, "trl": trl_ppo}
    place = Seated(Chair(PPO, "peer_rollouts", asks, peer=True, python=peers), LOGS / "trl.log")
    try:
        with _limited(PPO, place.process, place.log):
            place.wait_until_ready()
        return {"seconds": place.to_ready, "versions": place.facts["versions"]}
    finally:
        place.leave()
