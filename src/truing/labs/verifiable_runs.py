"""Runs of the lab `verifiable`: the pipeline's own stage `grpo` on a warm model, watched on held-out questions while it trains."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from truing.config import GRPO
from truing.labs.verifiable_world import CONTEXT, World, answers, policy, right, world
from truing.learn import checkpoint
from truing.maths.stats import Interval, pass_at_k
from truing.methods.grpo import grpo
from truing.observe.events import read_events

LOOKS = 8  # how often a run is measured while it trains
FEW = 4  # answers to a held-out question then
RESAMPLES = 4000
Array = NDArray[np.float64]


class Trained(NamedTuple):
    """A run.

    Attributes:
        at: steps after which it was looked at, the first 0; ``accuracy``: the share of right answers to held-out questions then.
        correct: how many of ``samples`` answers to each held-out question are right at the end, ``[prompts]``.
        log: the metrics of every step.
        seconds: of the training, with its looks.
    """

    at: list[int]
    accuracy: list[float]
    correct: Array
    log: list[dict[str, Any]]
    seconds: float


class Study(NamedTuple):
    """One task and seed: the warm model, and what became of it under each preset."""

    seed: int
    rounds: int
    samples: int
    correct: Array
    runs: dict[str, Trained]


class Watch:
    """Follows a run of the stage as its progress, and measures the weights of every checkpoint while they are there."""

    def __init__(self, w: World, config: GRPO, rows: Sequence[Mapping[str, Any]], folder: Path, seed: int) -> None:
        self.w, self.config, self.rows, self.folder, self.seed = w, config, rows, folder, seed
        self.role, self.tokenizer = policy(w.warm)
        self.at: list[int] = [0]
        self.accuracy = [self._share()]

    def note(self, text: str) -> None:
        """What the stage tells a person."""

    def step(self, name: str, step: int, values: Any, total: int) -> None:
        """A step is over, and the checkpoint of the one before it is written."""
        if (step - 1) % self.config.save_every == 0 and step > 1:
            self.read(step - 1)

    @torch.no_grad()
    def read(self, step: int) -> None:
        weights = checkpoint.load(self.folder / "checkpoints" / f"step-{step:06d}").tensors["weights"]
        for name, parameter in self.role.parameters().items():
            parameter.copy_(weights[f"policy.{name}"])
        self.at.append(step)
        self.accuracy.append(self._share())

    def _share(self) -> float:
        return float(answers(self.role, self.tokenizer, self.rows, self.w.task.longest, samples=FEW, seed=self.seed).mean())


def study(name: str, seed: int, presets: Mapping[str, Mapping[str, Any]], *, samples: int, prompts: int, heldout: int, until: float, **stage: Any) -> Study:
    """Warm up, then train the warm model once under each of these: a label, and the options of the stage that it stands for."""
    with world(name, seed, until=until, prompts=prompts, heldout=heldout) as w:
        rows = held_out(w)
        before = right(w.warm, rows, w.task.longest, samples=samples, seed=seed).sum(1)
        runs = {label: train(w, rows, label, seed, samples, {**stage, **options}) for label, options in presets.items()}
        return Study(seed, w.rounds, samples, before.astype(float), runs)


def held_out(w: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in w.heldout.read_text().splitlines()]


def stage_of(w: World, **options: Any) -> GRPO:
    """The stage as it is run here: the preset's row of the table, and what all runs share."""
    shared: dict[str, Any] = {
        "model": str(w.warm), "prompts": str(w.prompts), "reward": "verified()", "lora": None, "dtype": "float32", "lr": w.task.lr, "schedule": "constant", "warmup": 0.0,
        "max_new_tokens": w.task.longest, "max_length": CONTEXT,
    }  # fmt: skip
    return GRPO(**{**shared, **options})


def train(w: World, rows: Sequence[Mapping[str, Any]], label: str, seed: int, samples: int, options: Mapping[str, Any]) -> Trained:
    """Run `methods.grpo.grpo` as it is."""
    folder, began = w.folder / f"run-{label}", time.monotonic()
    config = stage_of(w, save_every=-(-int(options["steps"]) // LOOKS), **options)
    watch = Watch(w, config, rows, folder, seed)
    grpo(config, folder, seed=seed, progress=watch)
    watch.read(config.steps)
    seconds = time.monotonic() - began
    correct = right(folder / "model", rows, w.task.longest, samples=samples, seed=seed).sum(1)
    log = [event for event in read_events(folder) if event["kind"] == "metrics"]
    return Trained(watch.at, watch.accuracy, correct.astype(float), log, seconds)


# -- what several seeds say ----------------------------------------------------------------------------------------------


class Measured:
    """The studies of one task, and pass@k of each held-out question, ``[seeds, prompts]``."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.studies = list(studies)
        self.samples = self.studies[0].samples

    @cached_property
    def ks(self) -> list[int]:
        """1, 2, 4, ... up to the number of samples."""
        return [2**i for i in range(self.samples.bit_length()) if 2**i <= self.samples]

    def passed(self, k: int, label: str | None = None) -> Array:
        """Unbiased pass@k; of the warm model without a label."""
        return np.array([pass_at_k(self.samples, s.correct if label is None else s.runs[label].correct, k) for s in self.studies])

    def before(self, k: int = 1) -> Interval:
        return nested(self.passed(k))

    def after(self, label: str, k: int = 1) -> Interval:
        return nested(self.passed(k, label))

    def gain(self, label: str, k: int = 1) -> Interval:
        """After less before, question by question."""
        return nested(self.passed(k, label) - self.passed(k))

    def kind(self, label: str) -> str:
        """Learned or sharpened: whether more questions are solved now by any of many answers."""
        most = self.ks[-1]
        gain, reach = self.gain(label), self.gain(label, most)
        if gain.high < 0:
            return "unlearned"
        if gain.low <= 0:
            return "no gain"
        if reach.low > 0:
            return "learned"
        return "sharpened" if reach.high >= 0 else "sharpened, and narrowed"


def nested(values: Array) -> Interval:
    """Mean of ``[seeds, prompts]`` with a 95% bootstrap over the seeds and, within each, over its questions.

    With one seed it speaks of that seed's model only.

    >>> [round(v, 6) for v in nested(np.ones((3, 5)))]
    [1.0, 1.0, 1.0]
    """
    draws = _weights(*values.shape) @ values.ravel()
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _weights(seeds: int, prompts: int) -> Array:
    """What each number weighs in each resampled mean, ``[resamples, seeds * prompts]``; the same draws for all, so that they can be compared."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, seeds, (RESAMPLES, seeds, 1))
    drawn = rng.integers(0, prompts, (RESAMPLES, seeds, prompts))
    at = (chosen * prompts + drawn).reshape(RESAMPLES, -1) + np.arange(RESAMPLES)[:, None] * (seeds * prompts)
    return np.bincount(at.ravel(), minlength=RESAMPLES * seeds * prompts).reshape(RESAMPLES, -1) / (seeds * prompts)
