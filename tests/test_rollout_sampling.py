"""Drawing under temperature, top_k, top_p and min_p: the stated distribution and its exact log-probabilities, against a walk of the CDF in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from truing.config import Sampling
from truing.errors import NonFiniteError
from truing.rollout import sampling as page
from truing.rollout.sampling import draw

Oracle = Callable[..., np.ndarray]
LAST = 1 - 2**-53  # the largest uniform

CASES: list[tuple[float, dict[str, Any]]] = [
    (1.0, {}), (0.7, {}), (1.6, {}), (1.0, {"top_k": 7}), (1.0, {"top_p": 0.8}), (1.0, {"min_p": 0.05}), (0.7, {"top_k": 300}), (1.3, {"top_p": 0.97}), (0.5, {"min_p": 0.01}),
    (1.0, {"top_k": 40, "top_p": 0.6}), (1.3, {"top_k": 40, "top_p": 0.9, "min_p": 0.1}), (0.8, {"top_p": 0.95, "min_p": 0.02}), (1.0, {"top_k": 5000, "top_p": 1.0}),
]  # fmt: skip


@pytest.fixture(params=["compiled", "pytorch"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in both forms that the plain draw has."""
    if request.param == "pytorch":
        monkeypatch.setattr(page, "passes", lambda x, dtype: None)


def oracle(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0, *, crossing: int = 1, of_all: bool = False
) -> np.ndarray:
    """The distribution token by token, one row, in float64: sort, cut, renormalise, three times. ``crossing=0`` and ``of_all`` are mistakes."""
    x = logits.double().numpy() / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")  # of equal ones the first id first
    whole = p.copy()

    def cut(first: int) -> None:
        p[order[first:]] = 0
        p[:] = p / p.sum()

    if top_k is not None:
        cut(top_k)
    if top_p < 1:
        short = np.cumsum((whole if of_all else p)[order]) < top_p - 1e-15  # True as long as the goal is not reached
        cut(max(1, int(short.sum()) + crossing))
    if min_p > 0:
        cut(int((p[order] >= min_p * p.max()).sum()))
    return p


def logits_of(vocabulary: int, rows: int, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def evenly(rows: int) -> torch.Tensor:
    return (torch.arange(rows, dtype=torch.float64) + 0.5) / rows


def faults(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, kind: dict[str, Any], by: Oracle = oracle, near: float = 2e-6) -> list[str]:
    """Where `draw` and the oracle differ: another token than the walk of the CDF finds (but within rounding of a border), or another log-probability."""
    tokens, logp = draw(logits, uniforms, temperature, Sampling(**kind))
    found = []
    for row, (token, said, u) in enumerate(zip(tokens.tolist(), logp.tolist(), uniforms.tolist(), strict=True)):
        p = by(logits[row], temperature, **kind)
        high = p[: token + 1].sum()
        if not (p[token] > 0 and high - p[token] - near <= u <= high + near):
            found.append(f"row {row}: token {token} at {u}")
        elif abs(said - math.log(p[token])) > 1e-6 * max(1.0, abs(said)):  # float32 itself holds log-probabilities beyond 8 no finer than 1e-6
            found.append(f"row {row}: logp {said}, not {math.log(p[token])}")
    return found


# -- by hand ---------------------------------------------------------------------------------------------------------------
HALVES = torch.tensor([[0.25, 0.5, 0.125, 0.0625, 0.0625]]).log()  # in the order of probability: tokens 1, 0, 2, 3, 4


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ({}, [0.25, 0.5, 0.125, 0.0625, 0.0625]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [1 / 3, 2 / 3, 0, 0, 0]),  # 0.25 and 0.5 over 0.75
        ({"top_k": 4}, [4 / 15, 8 / 15, 2 / 15, 1 / 15, 0]),  # of two equal ones the first: the sum is 15/16
        ({"top_k": 99}, [0.25, 0.5, 0.125, 0.0625, 0.0625]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),  # always at least one
        ({"top_p": 0.4}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.6}, [1 / 3, 2 / 3, 0, 0, 0]),  # 0.5 falls short of 0.6; the token that crosses it is kept
        ({"top_p": 0.8}, [2 / 7, 4 / 7, 1 / 7, 0, 0]),  # 0.75 falls short, 0.875 does not
        ({"top_p": 0.93}, [4 / 15, 8 / 15, 2 / 15, 1 / 15, 0]),
        ({"top_p": 0.99}, [0.25, 0.5, 0.125, 0.0625, 0.0625]),
        ({"min_p": 0.6}, [0, 1, 0, 0, 0]),
        ({"min_p": 0.2}, [2 / 7, 4 / 7, 1 / 7, 0, 0]),  # 0.2 * 0.5 = 0.1: 0.125 stays, 0.0625 does not
        ({"min_p": 0.1}, [0.25, 0.5, 0.125, 0.0625, 0.0625]),
        # of the two that top_k leaves, [1/3, 2/3], the first holds 0.6; of all five it would hold 0.5, and two would be kept
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.8, "min_p": 0.3}, [1 / 3, 2 / 3, 0, 0, 0]),
        ({"top_k": 4, "min_p": 0.2}, [2 / 7, 4 / 7, 1 / 7, 0, 0]),
    ],
)  # fmt: skip
def test_small_cases_by_hand(kind: dict[str, Any], wanted: list[float]) -> None:
    uniforms = evenly(1680)  # of which every share above is a whole number: 1680 = 16 * 15 * 7
    tokens, logp = draw(HALVES.expand(1680, -1), uniforms, 1.0, Sampling(**kind))
    assert torch.bincount(tokens, minlength=5).tolist() == [round(1680 * p) for p in wanted]
    assert (tokens[1:] >= tokens[:-1]).all()  # the walk goes by token id: a larger uniform never draws a smaller one
    torch.testing.assert_close(logp.exp(), torch.tensor(wanted, dtype=torch.float32)[tokens], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(oracle(HALVES[0], **kind), wanted, atol=1e-6)


def test_temperature_acts_before_the_truncation() -> None:
    # at temperature 0.5 probabilities are squared: [1, 4, 1/4, ...] / 5.375 for the first three; the first holds 0.744 and the first two 0.93
    tokens, logp = draw(HALVES.expand(2, -1), torch.tensor([0.1, 0.3], dtype=torch.float64), 0.5, Sampling(top_p=0.9))
    assert tokens.tolist() == [0, 1]
    assert logp.exp().tolist() == pytest.approx([0.2, 0.8], abs=1e-6)


def test_temperature_0_takes_the_most_likely_token_and_truncates_nothing() -> None:
    for kind in ({}, {"top_k": 1}, {"top_p": 0.1, "min_p": 0.5}):
        tokens, logp = draw(HALVES, torch.tensor([0.99], dtype=torch.float64), 0.0, Sampling(**kind))
        assert tokens.tolist() == [1] and logp.exp().tolist() == pytest.approx([0.5])
    x = logits_of(1000, 8)
    x[3, [5, 700, 999]] = 50.0
    tokens, logp = draw(x, torch.zeros(8, dtype=torch.float64), 0.0)
    assert torch.equal(tokens, x.argmax(-1)) and tokens[3] == 5
    torch.testing.assert_close(logp, x.double().log_softmax(-1).amax(-1).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("vocabulary", [4, 17, 700, 5000])
@pytest.mark.parametrize(
    ("kind", "kept"), [({"top_k": 3}, 3), ({"top_p": 0.5}, None), ({"top_k": 3, "min_p": 0.9}, 3), ({"top_k": 3, "top_p": 0.5}, 2), ({"min_p": 0.9}, 0)]
)
def test_of_equal_tokens_the_first_are_kept(vocabulary: int, kind: dict[str, Any], kept: int | None) -> None:
    count = vocabulary if kept == 0 else math.ceil(vocabulary / 2) if kept is None else kept
    uniforms = torch.tensor([0.0, 0.5, LAST], dtype=torch.float64)
    tokens, logp = draw(torch.full((3, vocabulary), 2.5), uniforms, 1.0, Sampling(**kind))
    assert tokens[0] == 0 and tokens[2] == count - 1
    assert logp.tolist() == pytest.approx([-math.log(count)] * 3, abs=1e-6)


def test_what_min_p_keeps_is_not_cut_as_the_equals_of_top_k_are() -> None:
    # top_k keeps one of four at 1/16; min_p then leaves what has a quarter of 1/2, and both of these: as multiples of 1/8
    kept = page._truncated(torch.tensor([[0.5, 0.125, 0.125, 0.0625, 0.0625, 0.0625, 0.0625]]), Sampling(top_k=4, min_p=0.25))
    assert kept.tolist() == [[4.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]


# -- the distribution ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("temperature", "kind"), CASES)
def test_draws_follow_the_distribution(temperature: float, kind: dict[str, Any]) -> None:
    logits = logits_of(700, 1)
    logits[0, 5] = float("-inf")
    n = 20_000
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens, logp = draw(logits.expand(n, -1), uniforms, temperature, Sampling(**kind))
    counts = torch.bincount(tokens, minlength=700).double().numpy()
    cut = {**kind, "top_k": min(kind["top_k"], 700)} if "top_k" in kind else kind
    p = oracle(logits[0], temperature, **cut)
    assert counts[p == 0].sum() == 0
    wanted = np.log(np.maximum(p, 1e-300))[tokens]
    np.testing.assert_allclose(logp.numpy(), wanted, rtol=1e-6, atol=1e-6)
    if (p > 0).sum() > 1:
        assert pvalue(counts, p) > 1e-3
    # as if nothing were cut, as if the token that crosses top_p were, and without the temperature
    for wrong in (oracle(logits[0], temperature), oracle(logits[0], temperature, **cut, crossing=0), oracle(logits[0], 1.0, **cut)):
        if np.abs(wrong - p).sum() > 0.05:
            assert pvalue(counts, wrong) < 1e-9


def pvalue(counts: np.ndarray, p: np.ndarray) -> float:
    """Of Pearson's chi-square; what is expected fewer than five times is one class, and an impossible token that came up is impossible."""
    wanted = p * counts.sum()
    big = wanted > 5
    if counts[p == 0].sum():
        return 0.0
    found, expected = (np.append(x[big], x[~big].sum()) for x in (counts, wanted))
    keep = expected > 0
    return float(chisquare(found[keep], expected[keep] * found.sum() / expected[keep].sum()).pvalue) if keep.sum() > 1 else 1.0


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 3000])
@pytest.mark.parametrize(("temperature", "kind"), CASES[:-1])
def test_every_draw_is_the_walk_of_its_own_cdf(vocabulary: int, temperature: float, kind: dict[str, Any]) -> None:
    cut = {**kind, "top_k": min(kind["top_k"], vocabulary)} if "top_k" in kind else kind
    assert faults(logits_of(vocabulary, 24), evenly(24)[torch.randperm(24, generator=torch.Generator().manual_seed(3))], temperature, cut) == []


def test_the_comparison_notices_a_planted_mistake() -> None:
    x, u = logits_of(700, 64), evenly(64)
    wrong = lambda **how: lambda *given, **named: oracle(*given, **{**named, **how})  # noqa: E731
    assert faults(x, u, 1.0, {"top_p": 0.8}) == [] and len(faults(x, u, 1.0, {"top_p": 0.8}, wrong(crossing=0))) > 32
    both = {"top_k": 40, "top_p": 0.6}
    assert faults(x, u, 1.0, both) == [] and len(faults(x, u, 1.0, both, wrong(of_all=True))) > 32
    assert len(faults(x, u, 1.0, {"top_k": 40}, lambda row, t, top_k: oracle(row, t, top_k=top_k + 1))) > 32
    assert len(faults(x, u, 0.8, {"min_p": 0.1}, lambda row, t, min_p: oracle(row, 1.0, min_p=min_p))) > 32


def test_a_nucleus_wider_than_what_is_looked_at_first_is_found() -> None:
    x = logits_of(3 * page.LIKELY, 6, spread=0.3)
    for kind in ({"top_p": 0.9}, {"top_k": 2 * page.LIKELY, "top_p": 0.99}, {"top_p": 0.5, "min_p": 0.8}):
        assert faults(x, evenly(6), 1.0, kind) == []
    p = oracle(x[0], top_p=0.9)
    assert (p > 0).sum() > page.LIKELY


@pytest.mark.parametrize("kind", [{"top_k": 20}, {"top_p": 0.7}, {"top_k": 100, "top_p": 0.9, "min_p": 0.05}])
def test_logits_of_few_bits_have_many_equals(kind: dict[str, Any]) -> None:
    x = logits_of(2000, 32).to(torch.bfloat16).float()
    assert len(set(x[0].tolist())) < 1100
    assert faults(x, evenly(32), 1.0, kind) == []


# -- numbers at their limits -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [{}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.3}])
def test_the_edges_of_the_unit_interval_give_real_tokens(kind: dict[str, Any]) -> None:
    first_and_last = torch.tensor([0.0, LAST], dtype=torch.float64)
    x = torch.full((2, 900), float("-inf"))
    x[:, [300, 310]] = 0.0  # the first and the last block have no weight at all
    assert draw(x, torch.tensor([0.0, 1.0], dtype=torch.float64), 1.0, Sampling(**kind))[0].tolist() == [300, 310]  # a uniform that was rounded to 1
    tokens, logp = draw(x, first_and_last, 1.0, Sampling(**kind))
    assert tokens.tolist() == [300, 310] and logp.tolist() == pytest.approx([-math.log(2)] * 2)
    for vocabulary in (1, 300, 1024):
        for seed in range(20):
            x = logits_of(vocabulary, 2, seed=seed) * 3
            tokens, logp = draw(x, first_and_last, 1.0, Sampling(**kind))
            assert (tokens < vocabulary).all() and torch.isfinite(logp).all()
            assert draw(x, torch.full((2,), 1 - 2**-30, dtype=torch.float64), 1.0, Sampling(**kind))[0].le(tokens[1]).any()


def test_logits_far_apart_and_far_from_0() -> None:
    x = torch.tensor([[0.0, 1e4, -1e4, 1e4 - 1.0, float("-inf")], [-1e30, 3e38, -3e38, 0.0, -math.inf], [8192.0, 8193.0, 8191.0, 0.0, 8193.0]])
    for temperature in (1.0, 0.7, 1e-3):
        for u in (0.0, 0.4, 0.9, LAST):
            assert faults(x, torch.full((3,), u, dtype=torch.float64), temperature, {}) == []
            assert faults(x, torch.full((3,), u, dtype=torch.float64), temperature, {"top_k": 2, "min_p": 0.1}) == []
    tokens, logp = draw(x, torch.full((3,), 0.99, dtype=torch.float64), 1e-30)
    assert tokens[:2].tolist() == [1, 1] and logp[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_row_without_numbers_is_named(bad: float | None, temperature: float, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "AT_ONCE", 600)  # two rows at a time
    x = logits_of(300, 7)
    if bad is None:
        x[5] = float("-inf")
    else:
        x[5, 17] = bad
    with pytest.raises(NonFiniteError, match="row 5 of the logits.*lower the learning rate"):
        draw(x, evenly(7), temperature, Sampling(**kind))
    draw(x[:5], evenly(7)[:5], temperature, Sampling(**kind))


# -- a sample is a function of its own numbers -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [{}, {"top_k": 12}, {"top_p": 0.85}, {"top_p": 0.85, "min_p": 0.05}])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_draw_does_not_depend_on_its_neighbours(temperature: float, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, u = logits_of(5003, 20), torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x[3] *= 0.05  # one whose nucleus is wide makes all be looked at again
    together = draw(x, u, temperature, Sampling(**kind))
    alone = [draw(x[i : i + 1], u[i : i + 1], temperature, Sampling(**kind)) for i in range(20)]
    assert torch.equal(together[0], torch.cat([t for t, _ in alone])) and torch.equal(together[1], torch.cat([p for _, p in alone]))
    monkeypatch.setattr(page, "AT_ONCE", 3 * 5003)
    in_threes = draw(x, u, temperature, Sampling(**kind))
    assert torch.equal(together[0], in_threes[0]) and torch.equal(together[1], in_threes[1])


def test_what_truncates_nothing_changes_nothing_and_the_logits_stay() -> None:
    x, u = logits_of(700, 50), evenly(50)
    before = x.clone()
    plain, whole = draw(x, u, 0.9), draw(x, u, 0.9, Sampling(top_k=700, top_p=1.0, min_p=0.0))
    assert torch.equal(plain[0], whole[0]) and torch.allclose(plain[1], whole[1], atol=1e-6)
    draw(x, u, 0.9, Sampling(top_k=9, top_p=0.9, min_p=0.01))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_of_another_precision_are_read_as_what_they_are(dtype: torch.dtype) -> None:
    x, u = logits_of(300, 40).to(dtype), evenly(40)
    tokens, logp = draw(x, u, 1.0)
    wanted = x.double().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    torch.testing.assert_close(logp.double(), wanted, atol=5e-2, rtol=1e-2)
