"""Killed with SIGKILL in any phase, as often as you like, a group method goes on and ends in the same bits as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import grpo_tiny
from test_ppo_kill import Train, result, same
from truing.learn.checkpoint import newest

STEPS, EVERY = 4, 2

# Everything that a resumed run could forget: where the walk stands and what it knows of each prompt, an adaptive coefficient, a running
# normaliser, updates left out by an early stop, a finding that was told, and data on its second epoch.
OPTIONS: dict[str, Any] = {
    "steps": STEPS, "save_every": EVERY, "batch_size": 16, "max_new_tokens": 4, "lr": 3e-2, "warmup": 0.0, "reward": "grpo_tiny:by_thirds", "monitors": {"good": "tiny:good", "moody": "ppo_tiny:moody"},
    "zero_variance": "resample", "resample_rounds": 2, "curriculum": {"solved": 0.9, "hopeless": 0.1, "after": 4, "rest": 2},
    "kl": {"coef": 0.1, "target": 0.05, "horizon": 40, "stop": 5e-2}, "scores": {"normalise": "running", "clip": 2.0, "timeout": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_tiny.world(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    """Runs one training in a fresh process and gives its exit status."""
    where = str(Path(__file__).parent)
    path = os.pathsep.join([where, *(p for p in sys.path if p)])
    server = subprocess.Popen([sys.executable, f"{where}/grpo_killed.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True)

    def run(world: Path, folder: Path, kill: tuple[str, int] | None = None, **changes: Any) -> int:
        options = grpo_tiny.options(world, **{**OPTIONS, **changes}).model_dump()
        assert server.stdin and server.stdout
        print(json.dumps({"options": options, "folder": str(folder), "seed": 7, "kill": kill}), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    yield run
    server.kill()  # it sleeps between requests
    server.communicate()


@pytest.fixture(scope="module")
def whole(train: Train, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(world, folder) == 0
    found = result(folder)
    metrics = grpo_tiny.metrics(folder)
    # the run has in it what a resumed one could get wrong
    assert len({m["kl/coef"] for m in metrics}) == STEPS and any(m["policy/updates"] < 4 for m in metrics)
    assert len({m["reward/normaliser_mean"] for m in metrics}) == STEPS and found["done"]["updates"] == STEPS * 2 * 2
    assert len({m["groups/count"] for m in metrics}) > 1 and max(m["groups/count"] for m in metrics) > 4  # some prompts were drawn again
    assert sum(m["curriculum/skipped_solved"] + m["curriculum/skipped_hopeless"] for m in metrics[2:]) > 0  # left out for what was learned before the kill
    assert found["events"].count(b'"monitor/moody","severity"') == 1  # said once, and not again after a kill
    return found


# phase -> at which of its calls; an even call is killed after its work, an odd one before
KILLS = [("generate", 5), ("walk", 6), ("advantage", 5), ("update", 9), ("rename", 1)]
MORE = [
    ("walk", 1), ("generate", 2), ("trunk", 4), ("score", 3), ("score", 8), ("look", 3), ("look", 4), ("update", 2), ("optimiser", 3), ("record", 2), ("record", 3), ("log", 2), ("log", 3), ("log", 7),
    ("samples", 1), ("samples", 2), ("save", 1), ("save", 2), ("state", 1), ("rename", 2), ("replace", 2), ("model", 1), ("finish", 1), *(("fsync", n) for n in range(4, 20, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("phase", "n"), [*KILLS, *(pytest.param(*kill, marks=pytest.mark.slow) for kill in MORE)])
def test_killed_in_any_phase_it_ends_in_the_same_bits(phase: str, n: int, train: Train, world: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    assert train(world, tmp_path / "run", (phase, n)) == -signal.SIGKILL
    assert train(world, tmp_path / "run") == 0
    same(result(tmp_path / "run"), whole, f"{phase} {n}")


AGAIN = [
    [("update", 9), ("load", 1), ("look", 1), ("log", 3), ("rename", 1)],
    [("walk", 1), ("fsync", 7), ("look", 3), ("load", 1), ("update", 1), ("save", 1), ("replace", 3), ("model", 1), ("finish", 1)],
]


@pytest.mark.parametrize("kills", [AGAIN[0], pytest.param(AGAIN[1], marks=pytest.mark.slow)])
def test_killed_again_and_again(kills: list[tuple[str, int]], train: Train, world: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """Each session gets a little further or none, some die while they take up what was saved; none leaves anything behind."""
    died = [train(world, tmp_path / "run", kill) for kill in kills]
    assert died.count(-signal.SIGKILL) >= 4 and set(died) <= {-signal.SIGKILL, 0}
    assert train(world, tmp_path / "run") == 0
    same(result(tmp_path / "run"), whole, str(kills))


@pytest.mark.parametrize("every", [100, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_the_boundaries_of_saving_change_nothing(every: int, train: Train, world: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """Killed right after the first step and before the last one, with a checkpoint at each, at none but the last, and at an odd one between."""
    for kill in (("log", 4), ("look", STEPS - 1)):
        train(world, tmp_path / "run", kill, save_every=every)
    assert train(world, tmp_path / "run", save_every=every) == 0
    found = result(tmp_path / "run")
    for key in ("done", "events", "model", "state", "checkpoint"):
        assert found[key] == whole[key], key
    shared = whole["samples"].keys() & found["samples"].keys()
    assert {"step-000001.jsonl", f"step-00000{STEPS}.jsonl"} <= shared and all(found["samples"][k] == whole["samples"][k] for k in shared)


VARIANTS: dict[str, dict[str, Any]] = {
    "episodes": {"environment": "guess(guesses=2, explain=false)", "max_turns": 2, "reward": 'environment() + 0.1 * function("ppo_tiny:sums")', "kl": {"coef": 0.1, "target": 0.05, "horizon": 40}},
    "every weight, whitened, dropped": {"preset": "reinforce++-baseline", "lora": None, "lr": 2e-3, "zero_variance": "drop", "kl": {"coef": 0.1, "target": 0.05, "horizon": 40}},
    "a greedy baseline": {"preset": "remax", "zero_variance": "keep", "scores": {"timeout": None}},
    "a single update without a reference": {"preset": "dapo", "kl": {"coef": 0.0, "target": None}, "epochs": 1, "minibatches": 1},
    "a learned reward, scores of the first rollout": {"reward": "rm", "scores": {"normalise": "reference", "timeout": None}},
    "a reward in a process of its own": {"scores": {"normalise": "running", "timeout": 20.0}},
}


@pytest.mark.parametrize("variant", [v if v == "episodes" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS])
def test_other_settings_survive_as_well(variant: str, train: Train, world: Path, tmp_path: Path) -> None:
    changes = {**VARIANTS[variant]}
    if changes.get("reward") == "rm":
        changes["reward"] = str(world / "rm")
    assert train(world, tmp_path / "whole", **changes) == 0
    wanted = result(tmp_path / "whole")
    died = [train(world, tmp_path / "run", kill, **changes) for kill in (("record", 3), ("score", 1), ("optimiser", 2), ("rename", 1))]
    assert died.count(-signal.SIGKILL) >= 3 and set(died) <= {-signal.SIGKILL, 0}
    assert train(world, tmp_path / "run", **changes) == 0
    same(result(tmp_path / "run"), wanted, variant)


def test_a_forgetful_resume_would_be_noticed(train: Train, world: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """The walk, the coefficient and the normaliser's memory are in the checkpoint and matter: without them the log would differ from the third step on."""
    assert train(world, tmp_path / "run", ("look", 3)) == -signal.SIGKILL
    last = newest(tmp_path / "run" / "checkpoints")
    assert last is not None
    text = json.dumps(json.loads((last / "state.json").read_text()))
    assert all(f'"{key}"' in text for key in ("kl_coef", "normaliser", "squares", "walk", "at", "known"))
    metrics = [json.loads(line) for line in whole["events"].splitlines() if b'"metrics"' in line]
    assert metrics[2]["kl/coef"] != OPTIONS["kl"]["coef"]
