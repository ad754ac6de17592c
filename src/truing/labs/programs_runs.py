"""Training and measuring in the world of `programs_world`: the stage of `truing grpo` as it is, and a policy on tasks it has never met."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from truing.config import GRPO
from truing.errors import RewardError
from truing.labs.programs_world import CONTEXT, LONGEST, World, written
from truing.maths.stats import Array
from truing.methods.grpo import grpo
from truing.observe.doctor import doctor
from truing.observe.folder import read_run
from truing.observe.gaming import gaming
from truing.observe.monitor import Finding, series, values_of
from truing.rewards.verifiers.verifier import open_verifier


class Trained(NamedTuple):
    """A run.

    Attributes:
        model: the policy's folder.
        curves: metrics by step, ``[steps]`` each.
        alarms: what `observe.gaming` says of the events.
        said: names of what `truing doctor` says of the folder.
        sandbox: share of the time that went into scoring; ``rate``: executions a second while it did.
    """

    model: Path
    curves: Mapping[str, Array]
    alarms: list[Finding]
    said: list[str]
    sandbox: float
    rate: float
    seconds: float


def train(made: World, name: str, rows: Sequence[Mapping[str, Any]], seed: int, *, steps: int, lr: float, reward: str = "verified()", **options: Any) -> Trained:
    """GRPO from the warm model on these rows, without a reference."""
    folder = made.folder / name
    shared: dict[str, Any] = dict(
        model=str(made.warm), prompts=str(made.prompts(name, rows)), reward=reward, lora=None, dtype="float32", preset="grpo", kl={"coef": 0.0}, steps=steps,
        lr=lr, schedule="constant", minibatches=2, epochs=2, max_new_tokens=LONGEST, max_length=CONTEXT, save_every=100_000,
    )  # fmt: skip
    config = GRPO(**{**shared, **options})
    grpo(config, folder, seed=seed)
    events = read_run(folder).stages[0].events
    metrics = [e for e in events if e.get("kind") == "metrics"]
    clocks = [values_of(e) for e in events if e.get("kind") == "timing"]
    scoring, whole = (sum(float(v) for c in clocks for k, v in c.items() if k.startswith("seconds/") and k != "seconds/step" and (which in k)) for which in ("score", ""))
    curves = {key: series(metrics, key)[1] for key in ("reward/proxy", "part/visible_tests", "part/hidden_tests", "reward/hidden_gap")}
    ran = config.batch_size * steps * len(rows[0]["tests"])
    return Trained(folder / "model", curves, gaming(events), [f.name for f in doctor(folder)], scoring / whole, ran / scoring, whole)


class Measured(NamedTuple):
    """A policy on held-out rows, ``[rows, samples]``: shares of the visible and of the hidden tests that each completion passes."""

    visible: Array
    hidden: Array
    texts: list[list[str]]

    @property
    def solved(self) -> Array:
        """1 where all tests are passed, visible and hidden."""
        both: Array = ((self.visible == 1) & (self.hidden == 1)).astype(float)
        return both


def measure(made: World, model: Path, seed: int, *, samples: int) -> Measured:
    """``samples`` programs for every held-out row, run through all of its tests."""
    rows = [json.loads(line) for line in made.heldout.read_text().splitlines()]
    texts = written(model, [row["prompt"] for row in rows], seed, samples=samples)
    scores = open_verifier("code")([text for found in texts for text in found], [row for row in rows for _ in range(samples)])
    failed = [score for score in scores if not score.status.usable]
    if failed:
        raise RewardError(f"programs: the sandbox failed on {len(failed)} of {len(scores)} programs, the first with {failed[0].status.value}: {next(iter(failed[0].parts), '')}")
    visible, hidden = (np.array([s.parts[f"{which}_tests"] for s in scores]).reshape(-1, samples) for which in ("visible", "hidden"))
    return Measured(visible, hidden, texts)
