"""The group methods' gradient is that of a loop over completions and tokens in float64, and nothing about how a batch is laid out, cut or skipped changes it."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grpo_tiny
import ppo_tiny
from test_ppo_exactness import D, Gradients, Model, assert_near, in_float64
from truing.config import GRPO, PRESETS
from truing.methods import grpo as page
from truing.methods.actor import Actor
from truing.methods.groups import Drawn
from truing.methods.grpo_loss import Before
from truing.methods.ppo_update import Seen
from truing.rewards.shaping import soft_overlong

# Three groups of four: the second and the fourth reward of the first are its mean, so without a penalty their advantage is 0; the next has equal rewards.
VALUES = (1.0, 0.5, 0.0, 0.5, 0.7, 0.7, 0.7, 0.7, 0.0, 0.2, 1.0, 0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_tiny.world(tmp_path_factory.mktemp("grpo"))


def options(world: Path, **changes: Any) -> GRPO:
    return grpo_tiny.options(world, **{"batch_size": 12, **changes})


# -- what the methods are, one token at a time ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Known:
    """What a loop knows of the completions before any weight changes: log-probabilities under the policy that sampled, and less the reference's."""

    lengths: list[int]
    old: list[list[float]]
    away: list[list[float]]


def logps(model: Model, ids: list[int], start: int) -> Tensor:
    """Of a completion's tokens, each taken at the place before it."""
    return model(ids)[0][torch.arange(start - 1, len(ids) - 1), torch.tensor(ids[start:])]


@torch.no_grad()
def know(drawn: Drawn, old: Model, ref: Model | None) -> Known:
    sequences, starts = drawn.batch.rollout.sequences(), drawn.batch.texts.starts
    past = [logps(old, ids, start).tolist() for ids, start in zip(sequences, starts, strict=True)]
    held = [logps(ref, ids, start).tolist() for ids, start in zip(sequences, starts, strict=True)] if ref else past
    return Known([len(row) for row in past], past, [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(past, held, strict=True)])


def naive_advantages(config: GRPO, drawn: Drawn, known: Known, used: Sequence[int]) -> tuple[list[list[float]], float]:
    """One a token, and what whitening multiplied them by."""
    in_reward = config.kl.coef if config.kl.place == "reward" else 0.0
    scores = []
    for i, n in enumerate(known.lengths):
        cut = (config.scores.missing_eos or 0.0) * (not drawn.batch.rollout.finished_B[i])
        long = 0.0 if config.overlong is None else soft_overlong(n, config.max_new_tokens, round(config.overlong * config.max_new_tokens))
        scores.append(VALUES[i] + cut + long)
    found = [[0.0] * n for n in known.lengths]
    for first in range(0, len(VALUES), config.group):
        group = range(first, first + config.group)
        shaped = {i: scores[i] - in_reward * sum(known.away[i]) for i in group}
        mean, spread = statistics.fmean(shaped.values()), statistics.stdev(shaped.values())
        for i in group:
            value = {
                "standardised": (shaped[i] - mean) / (max(spread, config.std_floor or 0.0) + 1e-6),
                "centred": shaped[i] - mean,
                "centred_batch": shaped[i] - mean,
                "leave_one_out": shaped[i] - statistics.fmean(shaped[j] for j in group if j != i),
                "greedy": shaped[i] - 0.25,
                "best": float(shaped[i] == max(shaped.values()) > min(shaped.values())),
                "batch": 0.0,
            }[config.advantage]
            returns = [scores[i] - in_reward * sum(known.away[i][t:]) for t in range(known.lengths[i])]
            found[i] = returns if config.advantage == "batch" else [value] * known.lengths[i]
    if config.advantage not in ("batch", "centred_batch"):
        return found, 1.0
    counted = [a for i in used for a in found[i]]
    mean, scale = statistics.fmean(counted), 1 / math.sqrt(statistics.variance(counted) + 1e-8)
    return [[(a - mean) * scale for a in row] for row in found], scale


def naive_loss(config: GRPO, drawn: Drawn, used: Sequence[int], rows: Sequence[int], known: Known, now: Model) -> Tensor:
    """The whole loss on the rows of a minibatch; ``used`` are the completions of all minibatches."""
    sequences, starts, sampler = drawn.batch.rollout.sequences(), drawn.batch.texts.starts, drawn.batch.rollout.sampler_logp_BT.to(D)
    advantages, scale = naive_advantages(config, drawn, known, used)
    later = [[sum(row[t + 1 :]) for t in range(len(row))] for row in known.away]
    baseline = statistics.fmean(x for i in used for x in later[i])
    in_loss = 0.0 if config.kl.place == "reward" else config.kl.coef * (scale if config.kl.place.startswith("loss_") else 1.0)
    low, high = 1 - (config.clip_low or 0.0), 1 + config.clip_high

    def surrogate(a: float, logp: Tensor, rho: Tensor) -> Tensor:
        if config.ratio == "none":
            return -a * logp
        if config.clip == "weight":
            return -rho.detach().clamp(max=high) * a * logp
        return torch.max(-a * rho, -a * rho.clamp(low, high)) if config.clip == "surrogate" else -a * rho

    def penalty(logp: Tensor, old: float, away: float, following: float) -> Tensor:
        d, rho = logp - (old - away), (logp - old).exp()  # from the reference; from the policy that sampled
        own = d**2 / 2 if config.kl.place.endswith("k2") else (-d).exp() - 1 + d
        if config.kl.place.startswith("token_"):
            return own
        bounded = rho.clamp(2 - high, high) if config.clip == "surrogate" and config.ratio == "token" else rho
        return (rho.detach() if config.kl.place.endswith("k2") else rho) * own + torch.max(following * rho, following * bounded)

    total, tokens = torch.zeros((), dtype=D), sum(known.lengths[i] for i in rows)
    for i in rows:
        distribution, new, n = now(sequences[i])[0], logps(now, sequences[i], starts[i]), known.lengths[i]
        whole = sum((new[t] - known.old[i][t] for t in range(n)), torch.zeros((), dtype=D)).div(n).exp()
        summed = torch.zeros((), dtype=D)
        for t in range(n):
            loss = surrogate(advantages[i][t], new[t], whole if config.ratio == "sequence" else (new[t] - known.old[i][t]).exp())
            if config.sampler_cap is not None:
                loss = loss * min(math.exp(known.old[i][t] - float(sampler[i, t])), config.sampler_cap)
            if in_loss:
                loss = loss + in_loss * penalty(new[t], known.old[i][t], known.away[i][t], later[i][t] - baseline)
            here = distribution[starts[i] - 1 + t]
            summed = summed + loss + config.entropy * (here.exp() * here).sum()
        total = total + summed / {"token": tokens, "sequence": n * len(rows), "constant": config.max_new_tokens * len(rows), "sum": len(rows)}[config.reduction]
    return total


# -- the page's beside the loop's ----------------------------------------------------------------------------------------
def of_the_page(actor: Actor, drawn: Drawn, before: Before, rows: list[int], config: GRPO, **cut: int) -> tuple[float, dict[str, Tensor], Seen]:
    """Value, gradient and what was seen of one minibatch, no step taken."""
    learner, seen = Gradients(actor.parameters(), lr=1.0, total=1, **cut), Seen()
    value = page.learn(learner, actor, drawn.batch, before, rows, page.teaches(rows, before, config), config, seen)["loss"]
    return value, learner.found, seen


def looked(actor: Actor, drawn: Drawn, config: GRPO, micro_tokens: int = 4096) -> tuple[Before, list[int], list[list[list[int]]]]:
    """Past the look, exactly as a step of a run goes."""
    used, groups, _ = page.usable(drawn, drawn.scores, config)
    plan = grpo_tiny.planned(used, config)
    first = page.advantage(drawn, drawn.scores, used, groups, page.Looked(), config, config.kl.coef)
    seen = page.look(drawn, actor, config, plan, first, micro_tokens)
    return page.advantage(drawn, drawn.scores, used, groups, seen, config, config.kl.coef), used, plan


def moved(config: GRPO, folder: Path, **given: Any) -> tuple[Actor, Drawn]:
    actor = grpo_tiny.actor(config, folder, 0.2 if config.lora else 0.05)
    drawn = grpo_tiny.drawn(actor, config, VALUES, noise=0.2, **given)
    assert 0 < int(drawn.batch.rollout.finished_B.sum()) < len(drawn.batch)
    return actor, drawn


CUT = {"missing_eos": -0.3, "timeout": None}
ALL: dict[str, Any] = {"entropy": 0.03, "temperature": 0.7, "sampler_cap": 1.2, "scores": CUT}
SETTINGS: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in PRESETS},
    **{f"{preset}, every weight": {"preset": preset, "lora": None, **ALL} for preset in ("grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++")},
    "expert, every weight": {"preset": "expert", "lora": None},
    "groups without a difference dropped, cut-off completions masked": {"preset": "grpo", "zero_variance": "drop", "truncated": "mask", "std_floor": 0.4, "max_new_tokens": 12, "entropy": 0.03, "scores": CUT},
    "masked, the penalty in the reward": {"preset": "rloo", "truncated": "mask", "max_new_tokens": 12, "kl": {"coef": 0.3}},
    "whitened, masked, the penalty in the reward": {"preset": "reinforce++", "truncated": "mask", "max_new_tokens": 12, "overlong": 0.5, "kl": {"coef": 0.3}},
    "divergence in the loss, k2": {"preset": "gspo", "kl": {"coef": 0.1, "place": "loss_k2"}},
    "divergence in the loss, k3, whitened": {"preset": "reinforce++-baseline", "kl": {"coef": 0.1, "place": "loss_k3"}, **ALL},
}


def compare(config: GRPO, folder: Path, patch: Callable[[], None] = lambda: None, tolerance: float = 1e-5) -> Seen:
    """A rollout, some updates, one minibatch's gradient; the page's beside the loop's. Raises AssertionError when they differ."""
    actor, drawn = moved(config, folder)
    old, ref = in_float64(actor.policy, config.temperature)[0], in_float64(actor.reference, config.temperature)[0] if actor.reference else None
    patch()
    before, used, _ = looked(actor, drawn, config)
    ppo_tiny.shake(actor.policy, 0.25 if config.lora else 0.1, seed=11)  # some updates later
    now, free = in_float64(actor.policy, config.temperature)
    rows = [i for i in (9, 2, 4, 0, 8, 1, 6, 10, 3) if i in used]
    loss = naive_loss(config, drawn, used, rows, know(drawn, old, ref), now)
    gradients = {f"policy.{k}": torch.zeros_like(p) if g is None else g for (k, p), g in zip(free.items(), torch.autograd.grad(loss, list(free.values()), allow_unused=True), strict=True)}
    _, found, seen = of_the_page(actor, drawn, before, rows, config, micro_tokens=25)
    assert_near(found, gradients, tolerance, "against the loop")
    return seen


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_is_that_of_a_loop_in_float64(setting: str, world: Path, tmp_path: Path) -> None:
    config = options(world, **SETTINGS[setting])
    seen = compare(config, tmp_path)
    if config.clip != "none":  # or it would say little: tokens outside the clip's bounds, and some inside
        far = (seen.all("logp") - seen.all("logp_old")).exp() - 1
        assert seen.all("outside").any() or config.clip_high > 1  # no token of a fresh model is five times as likely
        assert far.max() > 0.1 and far.min() < -0.1 and (not seen.all("outside").all() or config.ratio == "sequence")


def _mutants() -> dict[str, tuple[str, str, Callable[[Any], Any]]]:
    """What -> (setting, where, what becomes of the function there): the field's mistakes, each of which a test must notice."""
    groups, loss = "truing.methods.groups", "truing.methods.grpo_loss"
    one_prompt = lambda self: [list(range(len(self.batch)))]  # noqa: E731
    halved = lambda f: lambda x, counted: f(x, counted) * counted.sum(-1) / 2  # noqa: E731
    return {
        "a mean over the rows of the part": ("grpo", "truing.maths.reduce.sequences", lambda f: lambda x, counted, total: f(x, counted, len(x))),
        "a mean over the tokens of the part": ("dapo", "truing.maths.reduce.tokens", lambda f: lambda x, counted, total: f(x, counted, int(counted.sum()))),
        "a mean over what teaches": ("cispo", "truing.methods.grpo.reduced", lambda f: lambda x, counted, config, **n: f(x, counted, config, tokens=n["tokens"] - 4, sequences=n["sequences"])),
        "divided by the longest and not by a constant": ("dr_grpo", "truing.maths.reduce.constant", lambda f: lambda x, counted, total, length: f(x, counted, total, 4)),
        "groups across prompts": ("grpo", f"{groups}.Drawn.groups", lambda _: one_prompt),
        "advantages off by one row": ("grpo", "truing.methods.grpo.advantages", lambda f: lambda *given: f(*given).roll(1)),
        "the population's deviation": ("grpo", f"{groups}.group_standardised", lambda f: lambda x, **rest: f(x, ddof=0, **rest)),
        "the others' mean with oneself in it": ("rloo", f"{groups}.leave_one_out", lambda _: lambda x: x - x.mean()),
        "whitening by the population's deviation": ("reinforce++", "truing.methods.grpo.whiten", lambda f: lambda x, counted: f(x, counted, ddof=0)),
        "a sum of log-ratios for their mean": ("gspo", f"{loss}.sequence_logp", halved),
        "the ratio the other way round": ("grpo", "truing.maths.policy.ratio", lambda ratio: lambda a, b: ratio(b, a)),
        "one bound for both sides": ("dapo", f"{loss}.clipped_surrogate", lambda f: lambda now, past, a, low, high: f(now, past, a, low, low)),
        "the gradient of what is clipped dropped": ("cispo", f"{loss}.cispo", lambda f: lambda now, past, a, **clip: f(now, past, a, **clip) * ((now - past).exp() < 1 + clip["clip_high"] / 4)),
        "k1 the other way round in the reward": ("rloo", "truing.maths.kl.k1", lambda k1: lambda a, b: k1(b, a)),
        "k3 the other way round in the loss": ("grpo", "truing.maths.kl.k3", lambda k3: lambda a, b: k3(b, a)),
        "the divergence to come left out": ("divergence in the loss, k2", "truing.maths.kl.penalty", lambda f: lambda a, b, c, later, *rest: f(a, b, c, 0 * later, *rest)),
        "masked completions without their penalty": ("masked, the penalty in the reward", "truing.methods.grpo.others", lambda _: lambda *given: []),
        "the sampler's weight on nothing": ("grpo, every weight", f"{loss}.truncated_importance", lambda f: lambda a, b, cap: torch.ones_like(a)),
        "log-probabilities at temperature 1": ("grpo, every weight", "truing.methods.grpo.likelihood", lambda f: lambda *given: f(*given[:-1], given[-1].model_copy(update={"temperature": 1.0}))),
    }  # fmt: skip


@pytest.mark.parametrize("mutant", _mutants())
def test_the_fields_mistakes_are_noticed(mutant: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, where, change = _mutants()[mutant]
    owner, _, name = where.rpartition(".")
    try:
        target: Any = importlib.import_module(owner)
    except ModuleNotFoundError:  # a method of a class
        module, _, kind = owner.rpartition(".")
        target = getattr(importlib.import_module(module), kind)
    changed = change(getattr(target, name))
    with pytest.raises(AssertionError, match="of its largest gradient away"):
        compare(options(world, **SETTINGS[setting]), tmp_path, lambda: monkeypatch.setattr(target, name, changed), tolerance=1e-3)


# -- what is exact -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", ["grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "expert, every weight", "grpo, every weight", "masked, the penalty in the reward"])
@pytest.mark.parametrize("micro_tokens", [4096, 15, 1])
def test_the_first_ratio_is_exactly_one_in_every_minibatch(setting: str, micro_tokens: int, world: Path, tmp_path: Path) -> None:
    """Rows without an advantage are read neither before nor in the update, or the parts would differ, and with them the last bit."""
    config = options(world, **{**SETTINGS[setting], "minibatches": 4})
    actor, drawn = moved(config, tmp_path)
    before, used, plan = looked(actor, drawn, config, micro_tokens)
    seen = Seen()
    for rows in plan[0]:
        if page.teaches(rows, before, config):
            *_, found = of_the_page(actor, drawn, before, rows, config, micro_tokens=micro_tokens)
            seen.updates += found.updates
    assert len(seen.updates) >= min(3, len(used)) and torch.equal(seen.all("logp"), seen.all("logp_old"))
    if setting == "grpo":  # the wrong version: looked at whole, and then read in parts
        whole = [of_the_page(actor, drawn, looked(actor, drawn, config.model_copy(update={"minibatches": 1}))[0], rows, config, micro_tokens=1)[-1] for rows in plan[0] if page.teaches(rows, before, config)]
        assert any(not torch.equal(s.all("logp"), s.all("logp_old")) for s in whole)


@pytest.mark.parametrize("setting", ["grpo", "dapo", "gspo", "cispo", "rloo", "dr_grpo", "expert, every weight", "groups without a difference dropped, cut-off completions masked"])
def test_a_single_update_needs_no_look(setting: str, world: Path, tmp_path: Path) -> None:
    """Without a reference and with one update the old policy is the present one: the shortcut's gradient is that of looking."""
    config = options(world, **{**SETTINGS[setting], "kl": {"coef": 0.0}, "epochs": 1, "minibatches": 1})
    actor, drawn = moved(config, tmp_path)
    short, used, plan = looked(actor, drawn, config)
    assert short.logp is None
    seen = page.look(drawn, actor, config, plan * 2, short, 4096)
    assert seen.logp is not None and used
    value, gradient, _ = of_the_page(actor, drawn, short, used, config)
    again, same, _ = of_the_page(actor, drawn, replace(short, logp=seen.logp), used, config)
    assert_near(gradient, same, 1e-6, "without a look")
    assert value == pytest.approx(again, abs=1e-6)


# -- what must change nothing --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting", ["grpo", "dapo", "gspo", "cispo", "rloo", "dr_grpo", "reinforce++", "expert, every weight", "grpo, every weight", "divergence in the loss, k3, whitened"])
def test_how_a_minibatch_is_cut_and_ordered_changes_nothing(setting: str, world: Path, tmp_path: Path) -> None:
    config = options(world, **SETTINGS[setting])
    actor, drawn = moved(config, tmp_path)
    before, used, _ = looked(actor, drawn, config)
    other, _, _ = looked(actor, drawn, config, micro_tokens=12)
    ppo_tiny.shake(actor.policy, 0.25 if config.lora else 0.1, seed=11)
    rows = [i for i in (6, 1, 8, 2, 9, 0, 11, 10) if i in used]
    value, whole, _ = of_the_page(actor, drawn, before, rows, config)
    assert_near(of_the_page(actor, drawn, other, rows, config)[1], whole, 1e-5, "looked at in small parts")
    for micro_tokens in (1, 12, 25):
        again, found, _ = of_the_page(actor, drawn, before, rows, config, micro_tokens=micro_tokens)
        assert_near(found, whole, 1e-5, f"micro_tokens={micro_tokens}")
        assert again == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert_near(of_the_page(actor, drawn, before, rows[::-1], config)[1], whole, 1e-5, "the other way round")
    if len(rows) < 4:
        return
    halves = [of_the_page(actor, drawn, before, part, config)[1] for part in (rows[:1], rows[1:])]  # the field's mistake, a mean of the parts' own means, is another gradient
    assert max(float(((halves[0][k] + halves[1][k]) / 2 - g).abs().max() / g.abs().max().clamp(min=1e-12)) for k, g in whole.items()) > 0.01


@pytest.mark.parametrize("setting", ["grpo", "rloo", "gspo", "cispo", "dr_grpo"])
def test_rows_without_an_advantage_are_left_out_and_change_nothing(setting: str, world: Path, tmp_path: Path) -> None:
    """They count in the mean and have no gradient, so reading them is work for nothing."""
    config = options(world, **{**SETTINGS[setting], "kl": {"coef": 0.0}})
    actor, drawn = moved(config, tmp_path)
    before, used, _ = looked(actor, drawn, config)
    old = page.look(drawn, actor, config, [[used], [used]], replace(before, leash=1.0), 4096).logp  # of all rows: a penalty would need them
    ppo_tiny.shake(actor.policy, 0.25, seed=11)
    taught = page.teaches(used, before, config)
    # the second group has equal rewards; two completions of the first are its mean; what is cut off costs nothing here
    assert set(used) - set(taught) == {1, 3, 4, 5, 6, 7}
    _, found, _ = of_the_page(actor, drawn, before, used, config)
    learner = Gradients(actor.parameters(), lr=1.0, total=1)
    page.learn(learner, actor, drawn.batch, replace(before, logp=old), used, used, config, Seen())
    assert_near(found, learner.found, 1e-5, "all rows read")
    alone, _, _ = of_the_page(actor, drawn, before, taught, config)  # the wrong version: they do not count either
    assert alone != pytest.approx(of_the_page(actor, drawn, before, used, config)[0], rel=1e-3) or config.reduction == "constant"


def test_an_update_that_runs_out_of_memory_is_cut_smaller_and_stays_what_it_was(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator that fails above 20 tokens: parts are halved until they fit, what was counted starts over, the gradient is the same."""
    config = options(world)
    actor, drawn = moved(config, tmp_path)
    before, used, _ = looked(actor, drawn, config)
    value, whole, seen = of_the_page(actor, drawn, before, used, config)
    real = type(drawn.batch).pack

    def limited(batch: Any, rows: Sequence[int]) -> Any:
        if batch.tokens(rows) > 20:
            raise torch.OutOfMemoryError("simulated")
        return real(batch, rows)

    monkeypatch.setattr(type(drawn.batch), "pack", limited)
    learner, again = Gradients(actor.parameters(), lr=1.0, total=1, micro_tokens=100), Seen()
    found = page.learn(learner, actor, drawn.batch, before, used, page.teaches(used, before, config), config, again)
    assert_near(learner.found, whole, 5e-6, "halved")
    assert found["loss"] == pytest.approx(value, abs=1e-6) and learner.micro_tokens < 25 and len(again.all("logp")) == len(seen.all("logp"))
