"""The dictionary: each word of reinforcement learning, with what it was in one walk and in one completion, and who computed it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from truing.envs.table import ACTIONS
from truing.labs.lab import Table
from truing.labs.vocabulary_grid import LIMIT, Episode, Run, settings
from truing.labs.vocabulary_tokens import Recorded
from truing.models.networks import Networks


class Pair(NamedTuple):
    """What was recorded of one seed: a walk and a completion, the rollouts they are from, and the two trainings."""

    size: int
    after: int
    walk: Episode
    walks: list[Episode]
    grid: Run
    networks: Networks
    completion: Episode
    completions: list[Episode]
    words: Run
    seen: Recorded

    def say(self, token: int) -> str:
        return self.seen.text([token])[0]


class Row(NamedTuple):
    word: str
    symbol: str
    grid: str
    words: str
    function: str
    """What computed both, without its leading ``truing.``; with a slash, each has its own."""

    @property
    def shared(self) -> bool:
        return "/" not in self.function


def table(pair: Pair) -> Table:
    made = [*_world(pair), *_worth(pair), *_update(pair)]
    title = f"One walk and one completion after {pair.after} rollouts, and the update that followed; a slash: each has its own function, else the same computed both"
    return Table(title, ("word", "symbol", "on the grid", "in the language model", "computed by truing."), made)


def in_both(made: Table) -> list[str]:
    """The functions that the table says computed both."""
    return sorted({row.function for row in (Row(*map(str, cells)) for cells in made.rows) if row.shared})


# -- the rows -----------------------------------------------------------------------------------------------------------


def _world(p: Pair) -> list[Row]:
    w, c = p.walk, p.completion
    i, j = w.telling, c.telling
    said = [p.say(a) for a in c.actions]
    look = "rollout.steps.Collector.collect / rollout.sampler.sample"
    after = f"cell {place(w.states[i + 1], p.size)}" if i + 1 < len(w) else "the goal" if w.terminated else "cut here"
    state = " ".join(p.seen.text(c.states[j]))
    return [
        Row("state", "s_t", f"cell {place(w.states[i], p.size)}, at t = {i}", f"'{state}', at t = {j}: the prompt and all tokens so far", look),
        Row("action", "a_t", f"{ACTIONS[w.actions[i]]}, one of {w.chances.shape[1]} moves", f"'{said[j]}', one of {c.chances.shape[1]} tokens", look),
        Row("next state", "s_t+1", after, f"'... {said[j]}', one token longer" if j + 1 < len(c) else f"none: '{said[j]}' was the last", "envs.table.Tabular.step / rollout.sampler.sample"),
        Row(
            "policy", "pi(a|s_t)", chances(w.chances[i], ACTIONS), chances(c.chances[j], p.seen.text(range(c.chances.shape[1]))),
            "models.networks.Networks / models.roles.Role",
        ),
        Row(
            "log-probability", "log pi(a_t|s_t)", f"{w.logp[i]:.2f}", f"{c.logp[j]:.2f}",
            "models.networks.Networks.look / maths.likelihood.token_likelihood",
        ),
        Row("episode, trajectory", "tau", f"{path(w)}: {len(w)} moves", f"{' '.join(said)}: {len(c)} tokens", look),
        Row("termination", "gamma = 0", f"enters the goal: {share(p.walks)} walks", f"says <end>: {share(p.completions)} completions", look),
        Row(
            "truncation", "", f"after {LIMIT} moves; V(s_t+1) stands for the rest", f"after {p.seen.config.max_new_tokens} tokens; ends there, and costs {-(p.seen.config.scores.missing_eos or 0):g}",
            "envs.vector.VectorSteps.step / methods.ppo.look",
        ),
    ]  # fmt: skip


def _worth(p: Pair) -> list[Row]:
    w, c = p.walk, p.completion
    gamma = settings(p.size, 1).discount
    beta = p.seen.config.kl.coef
    away = -sum(sum(e.penalties) for e in p.completions) / beta / len(p.completions)
    return [
        Row("reward", "r_t+1", f"{numbers(w.rewards)}: a step costs, the goal pays", f"{numbers(c.rewards)}: score {c.score:.2f} at the last, KL at each", "envs.table.Tabular.step / methods.ppo.look"),
        Row("KL penalty", "-beta (log pi - log ref)", "none", f"{numbers(c.penalties)}, beta {beta:g}", "(none) / maths.kl.k1"),
        Row("reference policy", "ref", "none: there is nothing to keep to", f"the untrained model, {away:.1f} nats away", "(none) / models.roles.reference_role"),
        Row("discount", "gamma", f"{gamma:g}, and 0 into the goal", f"{p.seen.config.discount:g}, and 0 at the last token", "rollout.steps.Collector.collect / methods.ppo.look"),
        Row("return", "G_0", f"{w.returns[0]:.2f}", f"{c.returns[0]:.2f}", "maths.returns.discounted_returns"),
        Row("value", "V(s_t)", numbers(w.values), numbers(c.values), "models.networks.Networks.values / models.roles.Role.values"),
        Row("TD error", "delta_t = r + gamma V' - V", numbers(w.td_errors), numbers(c.td_errors), "maths.advantages.td_error"),
        Row("advantage", "A_t", numbers(w.advantages), numbers(c.advantages), "maths.advantages.gae"),
        Row("... whitened", "(A_t - mean) / std", numbers(w.whitened), numbers(c.whitened), "maths.advantages.whiten"),
        Row("target of the value", "A_t + V(s_t)", numbers(w.targets), numbers(c.targets), "methods.ppo_update.estimate"),
    ]


def _update(p: Pair) -> list[Row]:
    g, w = p.grid.log[p.after], p.words.log[p.after]
    config = settings(p.size, 1)
    moves = config.environments * config.length
    tokens = round(w["tokens/mean"] * p.seen.config.batch_size)
    loss = lambda log: f"{log['policy/loss']:.3f} + {config.value_weight:g} * {log['value/loss']:.2g}"  # noqa: E731
    ratio = lambda log: f"first {1 + log['policy/first_ratio_error']:g}, then up to {log['policy/ratio_max']:.2f}"  # noqa: E731
    clip = lambda log: f"{log['policy/clip_share']:.1%} beyond 1 +- {config.clip:g}"  # noqa: E731
    return [
        Row("exploration", "H(pi), nats", f"{g['policy/entropy']:.2f}", f"{w['policy/entropy']:.2f}", "models.networks.Networks.look / maths.likelihood.token_likelihood"),
        Row("old policy", "pi_old", "the network that walked; its log pi is kept", "the model that spoke; its log pi is kept", "rollout.steps.Collector.collect / methods.ppo.look"),
        Row("ratio", "pi / pi_old", ratio(g), ratio(w), "maths.policy.ratio"),
        Row("clipping", "clip(ratio, 1 +- eps)", clip(g), clip(w), "maths.policy.clipped_surrogate"),
        Row("value loss", "(V - target)^2 / 2", f"{g['value/loss']:.2g}", f"{w['value/loss']:.2g}", "maths.value.squared_error"),
        Row("loss", "surrogate + c * value loss", loss(g), loss(w), "methods.ppo_update.policy_loss"),
        Row("rollout, epochs", "", f"{moves} moves, {config.epochs} times", f"{tokens} tokens, {p.seen.config.epochs} times", "methods.ppo_update.minibatches"),
        Row("update", "theta", f"Adam, gradient norm {g['grad/norm']:.2f}", f"Adam, gradient norm {w['grad/norm']:.2f}", "learn.update.Learner.update"),
    ]


# -- words --------------------------------------------------------------------------------------------------------------


def numbers(values: Sequence[float]) -> str:
    """A row of numbers in few words.

    >>> numbers([0.125, -0.01, 1.0]), numbers([0.0] * 11)
    ('0.12 -0.01 1.00', '0.00 0.00 0.00 0.00 ... 0.00 0.00 0.00')
    """
    shown = [f"{round(v, 2) + 0.0:.2f}" for v in values]
    return " ".join(shown if len(shown) <= 10 else [*shown[:4], "...", *shown[-3:]])


def place(state: int, size: int) -> str:
    return str(divmod(state, size))


def path(walk: Episode) -> str:
    """A walk's moves, with repeats counted."""
    found: list[list[Any]] = []
    for action in walk.actions:
        if found and found[-1][0] == ACTIONS[action]:
            found[-1][1] += 1
        else:
            found.append([ACTIONS[action], 1])
    words = [name if n == 1 else f"{n} {name}" for name, n in found]
    return ", ".join(words if len(words) <= 8 else [*words[:4], "...", *words[-3:]])


def chances(probabilities: Sequence[float], names: Sequence[str]) -> str:
    """The likeliest actions.

    >>> chances([0.1, 0.6, 0.25, 0.05], ["a", "b", "c", "d"])
    'b 0.60, c 0.25, a 0.10, ...'
    """
    order = sorted(range(len(names)), key=lambda a: -float(probabilities[a]))
    return ", ".join([f"{names[a]} {probabilities[a]:.2f}" for a in order[:3]] + ["..."] * (len(order) > 3))


def share(episodes: Sequence[Episode]) -> str:
    return f"{sum(e.terminated for e in episodes)} of {len(episodes)}"


# -- who computed it ----------------------------------------------------------------------------------------------------


def called(run: Callable[[], Any]) -> set[str]:
    """The functions of Truing that really ran, as ``maths.advantages.gae``.

    >>> from truing.labs.vocabulary_table import place
    >>> called(lambda: place(5, 4)) >= {"labs.vocabulary_table.place"}
    True
    """
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.startswith("truing."):
                name = frame.f_code.co_qualname
                found.add(f"{module.removeprefix('truing.')}.{name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found
