"""A world small enough to enumerate: 8 tokens, 6 places, 262,144 sequences, and three ways for a reward model to go wrong.

The reference is a random bigram model, the gold score is known for every sequence, and the reward model (the proxy) learns
from noisy comparisons of the reference's samples, as real ones do. Nothing about a policy has to be sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from truing.maths.preference import bradley_terry
from truing.maths.stats import Array
from truing.seeds import generator, stream

VOCABULARY, LENGTH = 8, 6
SIZE = VOCABULARY**LENGTH
HIDDEN = 32
SHARPNESS = 2.0  # a label prefers a over b with probability sigmoid(2 (gold a - gold b))
RARE = 3  # tokens of the third scenario that the reference hardly ever says


class World(NamedTuple):
    """``reference [262144]``, probabilities; ``gold [262144]``, of mean 0 and standard deviation 1 under it."""

    reference: Array
    gold: Array


class Scenario(NamedTuple):
    """How a world is made and what its reward model sees.

    Attributes:
        make: the world, from a random generator.
        pairs, flips: comparisons, and the chance of each to be turned round.
        updates: steps of training.
        spread: first weights, as a multiple of the usual: what training does not touch stays as far off as this.
        shows: what happens, for a figure's title.
    """

    make: Callable[[np.random.Generator], World]
    pairs: int
    flips: float
    updates: int
    spread: float
    shows: str


@cache
def tokens() -> np.ndarray:
    """Every sequence, ``[262144, 6]``, the last place changing fastest."""
    return np.stack(np.unravel_index(np.arange(SIZE), (VOCABULARY,) * LENGTH), 1)


def bigram(table: Array) -> Array:
    """Probability of every sequence under ``table [9, 8]``: row t is what follows token t, row 8 what comes first."""
    prob: Array = table[VOCABULARY]
    for _ in range(1, LENGTH):
        prob = (prob.reshape(-1, VOCABULARY)[:, :, None] * table[:VOCABULARY]).reshape(-1)
    return prob


def network(first: Array, bias: Array, last: Array, activation: Callable[[Array], Array]) -> Array:
    """``last . activation(sum over places of first[place, token] + bias)`` of every sequence; ``first [6, 8, H]``.

    Halves of a sequence are summed once and combined, so that all 262,144 cost little more than one activation each.
    """
    half = LENGTH // 2
    left, right = (
        sum(part[i].reshape(*(VOCABULARY if j == i else 1 for j in range(half)), -1) for i in range(half)).reshape(-1, len(bias)) for part in (first[:half], first[half:])
    )  # fmt: skip
    return np.concatenate([activation(row + bias + right) @ last for row in left])


def standard(score: Array, reference: Array) -> Array:
    """``score`` with mean 0 and standard deviation 1 under the reference."""
    centred = score - reference @ score
    return centred / np.sqrt(reference @ centred**2)


# -- the scenarios -------------------------------------------------------------------------------------------------------


def _table(rng: np.random.Generator, spread: float, fixed: dict[int, float]) -> Array:
    """Rows softmax(spread * N(0, 1)), but for the tokens whose probability is ``fixed`` everywhere."""
    table: Array = np.exp(spread * rng.standard_normal((VOCABULARY + 1, VOCABULARY)))
    free = [t for t in range(VOCABULARY) if t not in fixed]
    table[:, free] *= (1 - sum(fixed.values())) / table[:, free].sum(1, keepdims=True)
    for token, probability in fixed.items():
        table[:, token] = probability
    return table


def _smooth(rng: np.random.Generator) -> Array:
    """A random network with one wide layer: nothing in it is out of a reward model's reach."""
    wide = 2 * HIDDEN
    return network(0.3 * rng.standard_normal((LENGTH, VOCABULARY, wide)), 0.5 * rng.standard_normal(wide), rng.standard_normal(wide), np.tanh)


def _saturate(rng: np.random.Generator) -> World:
    reference = bigram(_table(rng, 0.7, {}))
    return World(reference, standard(_smooth(rng), reference))


def _shared(rng: np.random.Generator) -> World:
    """Token 0 is a flourish: one or two are welcome, each further one costs 1.5 times the square of the excess. Repeating another token costs 0.4."""
    reference = bigram(_table(rng, 0.5, {0: 0.05}))
    said = tokens()
    flourishes = (said == 0).sum(1)
    repeats = ((said[:, 1:] == said[:, :-1]) & (said[:, 1:] != 0)).sum(1)
    gold = np.minimum(flourishes, 2) - 1.5 * np.maximum(flourishes - 2, 0) ** 2 - 0.4 * repeats + 0.5 * standard(_smooth(rng), reference)
    return World(reference, standard(gold, reference))


def _idiosyncratic(rng: np.random.Generator) -> World:
    """Three tokens of probability 0.0001 each cost 2 a piece; the reward model's weights for them stay what they were drawn as."""
    reference = bigram(_table(rng, 0.7, dict.fromkeys(range(RARE), 1e-4)))
    gold = standard(_smooth(rng), reference) - 2.0 * (tokens() < RARE).sum(1)
    return World(reference, standard(gold, reference))


SCENARIOS = {
    "saturate": Scenario(_saturate, 1500, 0.25, 60, 1.0, "noise in the labels:\ngold flattens, and hardly falls"),
    "shared flaw": Scenario(_shared, 1500, 0.0, 100, 1.0, "too much of a good thing\nwas never compared: all models are wrong alike"),
    "idiosyncratic flaw": Scenario(_idiosyncratic, 1000, 0.25, 60, 2.0, "tokens hardly ever\ncompared, and each model wrong in its own way"),
}


# -- the reward model ----------------------------------------------------------------------------------------------------


def compare(world: World, n: int, flips: float, rng: np.random.Generator) -> np.ndarray:
    """``[n, 2]``: chosen and rejected sequence of n pairs drawn from the reference, labelled with Bernoulli(sigmoid(2 (gold_a - gold_b))) and then flipped with chance ``flips``."""
    pair = draw(world.reference, 2 * n, rng).reshape(n, 2)
    difference = world.gold[pair[:, 0]] - world.gold[pair[:, 1]]
    keep = (rng.random(n) < 1 / (1 + np.exp(-SHARPNESS * difference))) ^ (rng.random(n) < flips)
    return np.where(keep[:, None], pair, pair[:, ::-1])


def draw(probabilities: Array, n: int, rng: np.random.Generator) -> np.ndarray:
    """n independent sequences, by index."""
    total = np.cumsum(probabilities)
    return np.minimum(np.searchsorted(total, rng.random(n) * total[-1], side="right"), SIZE - 1)


def proxies(world: World, scenario: Scenario, seed: int, members: int) -> Array:
    """Scores ``[members, 262144]`` of reward models that saw the same comparisons and differ in their first weights, each standardised under the reference.

    One hidden layer over one-hot tokens, the Bradley-Terry loss, AdamW on all pairs at once.
    """
    pair = compare(world, scenario.pairs, scenario.flips, np.random.default_rng(stream(seed, "overoptimisation pairs")))
    seen = torch.nn.functional.one_hot(torch.from_numpy(tokens()[pair.reshape(-1)]), VOCABULARY).float().flatten(1)
    sources = [generator(seed, "overoptimisation weights", i) for i in range(members)]
    first = torch.stack([torch.randn(LENGTH * VOCABULARY, HIDDEN, generator=g) for g in sources]).mul_(scenario.spread / LENGTH**0.5).requires_grad_()
    last = torch.stack([torch.randn(HIDDEN, 1, generator=g) for g in sources]).mul_(scenario.spread / HIDDEN**0.5).requires_grad_()
    bias = torch.zeros(members, 1, HIDDEN, requires_grad=True)
    optimiser = torch.optim.AdamW([first, bias, last], lr=0.01, weight_decay=0.1)
    for _ in range(scenario.updates):
        score = (torch.relu(seen @ first + bias) @ last).view(members, -1, 2)
        loss = bradley_terry(score[..., 0], score[..., 1]).mean(1).sum()  # members do not share a weight
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = [(f.detach().double().numpy().reshape(LENGTH, VOCABULARY, HIDDEN), b[0].detach().double().numpy(), w[:, 0].detach().double().numpy()) for f, b, w in zip(first, bias, last, strict=True)]
    return np.stack([standard(network(*w, lambda x: np.maximum(x, 0)), world.reference) for w in weights])


def combined(scores: Array, doubt: float) -> dict[str, Array]:
    """Four rewards of one ensemble ``[members, 262144]``: its first member, the mean, the least (Coste et al. 2023), and mean - ``doubt`` * variance."""
    return {"single": scores[0], "mean": scores.mean(0), "min": scores.min(0), "mean - var": scores.mean(0) - doubt * scores.var(0)}


def make(name: str, seed: int, members: int) -> tuple[World, Array]:
    """The world of a scenario and its reward models' scores."""
    scenario = SCENARIOS[name]
    world = scenario.make(np.random.default_rng(stream(seed, f"overoptimisation {name}")))
    return world, proxies(world, scenario, seed, members)
