"""Timing sft and reward: their own updates, on the rows they will train on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from truing.config import SFT, Reward
from truing.data.trained import require_trained
from truing.learn import checkpoint
from truing.learn.update import Learner
from truing.methods import reward_model, sft
from truing.models.heads import ScalarHead
from truing.models.roles import Role, open_backbone, policy_role
from truing.plan import rows as reading
from truing.plan.clock import NOTHING, Laps, Span, Timing, repeat, span
from truing.plan.rows import Rows

WARM = 256  # tokens of the first piece, which is not counted


def learner_of(config: Any, params: Any) -> Learner:
    """The stage's own optimiser; what it learns here is thrown away."""
    return Learner(params, lr=config.lr, total=1000, weight_decay=config.weight_decay, grad_clip=config.grad_clip, micro_tokens=config.micro_tokens)


class Optimiser:
    """Seconds of the optimiser's own step, apart from what makes its gradients."""

    def __init__(self, learner: Learner) -> None:
        self.seconds: list[float] = []
        self.start = 0.0
        learner.adam.register_step_pre_hook(self._begin)
        learner.adam.register_step_post_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)

    @property
    def last(self) -> float:
        return self.seconds[-1] if self.seconds else 0.0


def saving(learner: Learner) -> float:
    """Seconds of a checkpoint, from one of as many tensors as fit into 32 MiB."""
    some: dict[str, dict[str, Tensor]] = {}
    size = all = 0
    for group, named in learner.tensors().items():
        for name, tensor in named.items():
            all += tensor.nbytes
            if size + tensor.nbytes <= 2**25:
                some.setdefault(group, {})[name] = tensor
                size += tensor.nbytes
    if not some:
        return 0.0
    with tempfile.TemporaryDirectory(prefix="truing-plan-") as scratch:
        found = []
        for n in (1, 2):
            start = time.perf_counter()
            checkpoint.save(Path(scratch), n, some, {}, config_hash="")
            found.append(time.perf_counter() - start)
    return found[-1] * all / size if all > 2 * size else found[-1]


def probe(config: SFT | Reward, rows: Rows, seed: int, seconds: float) -> Timing:
    """Seconds of an update and of everything around it."""
    start = time.perf_counter()
    backbone, source = open_backbone(config.model, config)
    model = policy_role(backbone, source, seed=seed, purpose="plan")
    if isinstance(config, Reward):
        model.head = ScalarHead(backbone.width, seed=seed, purpose="plan")
    learner = learner_of(config, model.parameters())
    optimiser = Optimiser(learner)
    opening = time.perf_counter() - start

    planned = reading.batches(config, rows, seed)
    whole = [batch for batch in planned if len(batch) == len(planned[0])]
    tokens = lambda batch: reading.tokens(config, [rows.train[i] for i in batch])  # noqa: E731
    mean = sum(map(tokens, whole)) / len(whole)
    count = len(whole[0])
    few = max(1, min(count, round(count * WARM / mean)))
    run = _Run(config, model, learner, rows.train)
    made = Laps()
    for _ in range(2):
        with made.lap("few"):
            run(whole[0][:few])
    rate = made.seconds["few"][-1] / tokens(whole[0][:few])
    size = max(few, min(count, round(count * seconds / 4 / (rate * mean))))

    def piece(i: int) -> float:
        batch = whole[i % len(whole)][:size]
        start = time.perf_counter()
        run(batch)
        all = time.perf_counter() - start
        return (all - optimiser.last) * mean / tokens(batch) + optimiser.last

    found = span(repeat(piece, seconds * 0.75))
    after = _held_out(config, model, rows) if rows.held else NOTHING
    basis = f"updates on {size} of {count} rows" if size < count else f"whole updates of {count} rows"
    return Timing({"update": found}, opening, (saving(learner), config.save_every), after, basis)


class _Run:
    """One update on some rows, as the stage makes it."""

    def __init__(self, config: Any, model: Role, learner: Learner, train: Sequence[Any]) -> None:
        self.config, self.model, self.learner, self.train = config, model, learner, train

    def __call__(self, which: Sequence[int]) -> None:
        batch = [self.train[i] for i in which]
        tokens = lambda part: reading.tokens(self.config, [batch[i] for i in part])  # noqa: E731
        if isinstance(self.config, Reward):
            seen: dict[str, float] = {}
            weight = self.config.centering
            self.learner.update(range(len(batch)), tokens, lambda part: reward_model.loss(self.model, [batch[i] for i in part], len(batch), weight, seen), again=seen.clear)
        else:
            counted = require_trained(batch)
            self.learner.update(range(len(batch)), tokens, lambda part: sft.loss(self.model, [batch[i] for i in part], counted))


def _held_out(config: Any, model: Role, rows: Rows) -> Span:
    few = rows.held[: max(2, 2 * WARM // max(1, reading.tokens(config, rows.held[:1])))]
    page: Any = reward_model if isinstance(config, Reward) else sft

    def piece(_: int) -> float:
        start = time.perf_counter()
        page.evaluate(model, few, config.micro_tokens)
        return time.perf_counter() - start

    return span(repeat(piece, 0.0)).times(rows.held_count / len(few))
