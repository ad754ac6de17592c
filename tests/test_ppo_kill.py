"""Killed with SIGKILL in any phase, as often as you like, PPO goes on and ends in the same bits as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ppo_tiny as tiny_ppo
from truing.learn.checkpoint import newest
from truing.observe.events import canonical_events

STEPS, EVERY = 4, 2
Train = Callable[..., int]

# Everything that a resumed run could forget: an adaptive coefficient, a running normaliser, moments of different ages (the value model
# alone at first), updates left out by an early stop, a finding that was told, and data on its second epoch.
OPTIONS: dict[str, Any] = {
    "steps": STEPS, "save_every": EVERY, "batch_size": 4, "max_new_tokens": 4, "value_warmup": 1, "lr": 5e-2, "warmup": 0.0, "epochs": 2, "monitors": {"good": "tiny:good", "moody": "ppo_tiny:moody"},
    "kl": {"coef": 0.1, "target": 0.05, "horizon": 20, "stop": 5e-3}, "scores": {"normalise": "running", "clip": 2.0, "timeout": None}, "reward": "ppo_tiny:sums",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ppo.world(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def train() -> Iterator[Train]:
    """Runs one training in a fresh process and gives its exit status."""
    where = str(Path(__file__).parent)
    path = os.pathsep.join([where, *(p for p in sys.path if p)])
    server = subprocess.Popen([sys.executable, f"{where}/ppo_killed.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True)

    def run(world: Path, folder: Path, kill: tuple[str, int] | None = None, **changes: Any) -> int:
        options = tiny_ppo.options(world, **{**OPTIONS, **changes}).model_dump()
        assert server.stdin and server.stdout
        print(json.dumps({"options": options, "folder": str(folder), "seed": 7, "kill": kill}), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    yield run
    server.kill()  # it sleeps between requests
    server.communicate()


def result(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that may not depend on how often it was killed."""
    done = {k: v for k, v in json.loads((folder / "done.json").read_text()).items() if k not in ("seconds", "peak_mib")}
    last = newest(folder / "checkpoints")
    assert last is not None and not list(folder.rglob("*.tmp-*"))
    state = json.loads((last / "state.json").read_text())
    state["state"] = {k: v for k, v in state["state"].items() if k != "run"} if "state" in state else {k: v for k, v in state.items() if k != "run"}
    return {
        "done": done,
        "events": canonical_events(folder),
        "samples": {p.name: p.read_bytes() for p in (folder / "samples").iterdir()},
        "model": {p.name: p.read_bytes() for p in (folder / "model").iterdir()},
        "checkpoint": {p.name: p.read_bytes() for p in last.glob("*.safetensors")},
        "state": state["state"],
    }


@pytest.fixture(scope="module")
def whole(train: Train, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(world, folder) == 0
    found = result(folder)
    metrics = [json.loads(line) for line in found["events"].splitlines() if b'"metrics"' in line]
    # the run has in it what a resumed one could get wrong
    assert len({m["kl/coef"] for m in metrics}) == STEPS and any(m["policy/stopped"] for m in metrics)
    assert found["events"].count(b'"monitor/moody","severity"') == 1  # said once, and not again after a kill
    assert len({m["reward/normaliser_mean"] for m in metrics}) == STEPS and found["done"]["updates"] == STEPS * 2 * 2
    return found


def same(found: dict[str, Any], whole: dict[str, Any], what: str) -> None:
    for key, wanted in whole.items():
        assert found[key] == wanted, f"{what}: {key}"


# phase -> at which of its calls; an even call is killed after its work, an odd one before
KILLS = [("generate", 3), ("score", 3), ("update", 7), ("log", 3), ("rename", 1)]
MORE = [
    ("generate", 1), ("trunk", 2), ("look", 4), ("update", 2), ("optimiser", 3), ("log", 2), ("save", 2), ("record", 2), ("samples", 1), ("samples", 2), ("save", 1), ("state", 1), ("fsync", 4), ("rename", 2), ("replace", 2),
    ("model", 1), ("finish", 1), *(("fsync", n) for n in range(5, 20, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("phase", "n"), [*KILLS, *(pytest.param(*kill, marks=pytest.mark.slow) for kill in MORE)])
def test_killed_in_any_phase_it_ends_in_the_same_bits(phase: str, n: int, train: Train, world: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    assert train(world, tmp_path / "run", (phase, n)) == -signal.SIGKILL
    assert train(world, tmp_path / "run") == 0
    same(result(tmp_path / "run"), whole, f"{phase} {n}")


AGAIN = [
    [("update", 9), ("load", 1), ("look", 1), ("log", 3), ("rename", 1)],
    [("generate", 1), ("fsync", 7), ("generate", 3), ("load", 1), ("update", 1), ("save", 1), ("replace", 3), ("model", 1), ("finish", 1)],
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
    """Killed right after the first and right before the last step, with a checkpoint at each, at none but the last, and at an odd one between."""
    for kill in (("log", 3), ("generate", STEPS - 1)):
        train(world, tmp_path / "run", kill, save_every=every)
    assert train(world, tmp_path / "run", save_every=every) == 0
    found = result(tmp_path / "run")
    for key in ("done", "events", "model", "state", "checkpoint"):
        assert found[key] == whole[key], key
    shared = whole["samples"].keys() & found["samples"].keys()
    assert {"step-000001.jsonl", f"step-00000{STEPS}.jsonl"} <= shared and all(found["samples"][k] == whole["samples"][k] for k in shared)


VARIANTS: dict[str, dict[str, Any]] = {
    "every weight, shared, divergence in the loss": {"lora": None, "value": "shared", "value_warmup": 0, "lr": 2e-3, "kl": {"coef": 0.1, "target": 0.05, "horizon": 20, "place": "loss_k3"}},
    "a learned reward, scores of the first rollout": {"reward": "rm", "scores": {"normalise": "reference", "timeout": None}, "lora": tiny_ppo.LORA.model_dump()},
    "a reward in a process of its own": {"scores": {"normalise": "running", "timeout": 20.0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_settings_survive_as_well(variant: str, train: Train, world: Path, tmp_path: Path) -> None:
    changes = {**VARIANTS[variant]}
    if changes.get("reward") == "rm":
        changes["reward"] = str(world / "rm")
    assert train(world, tmp_path / "whole", **changes) == 0
    wanted = result(tmp_path / "whole")
    for kill in (("update", 3), ("score", 3), ("optimiser", 6), ("rename", 1)):
        assert train(world, tmp_path / "run", kill, **changes) in (-signal.SIGKILL, 0)
    assert train(world, tmp_path / "run", **changes) == 0
    same(result(tmp_path / "run"), wanted, variant)


def test_a_forgetful_resume_would_be_noticed(train: Train, world: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """The controller's coefficient and the normaliser's memory are in the checkpoint and matter: without them the log would differ from the third step on."""
    assert train(world, tmp_path / "run", ("generate", 3)) == -signal.SIGKILL
    last = newest(tmp_path / "run" / "checkpoints")
    assert last is not None
    saved = json.loads((last / "state.json").read_text())
    text = json.dumps(saved)
    assert '"kl_coef"' in text and '"normaliser"' in text and '"squares"' in text
    metrics = [json.loads(line) for line in whole["events"].splitlines() if b'"metrics"' in line]
    assert metrics[2]["kl/coef"] != OPTIONS["kl"]["coef"]
